/**
 * Requests and answers of the Open Inference Protocol (KServe V2) over REST, with the extension for binary tensors: a JSON text,
 * and behind it the elements of tensors, in the order that the JSON has them. It knows nothing of detectors.
 */

import { isObject } from "../native/json";
import {
  binaryElements,
  type Datatype,
  datatypeBytes,
  datatypes,
  elementsOf,
  isDatatype,
  jsonElements,
  type OutputTensor,
  shown,
} from "./tensors";
import { ServiceError } from "./types";

/** The header that says how many bytes of a body are JSON; 0: none, the body is the one input. */
export const HEADER_LENGTH = "Inference-Header-Content-Length";

export type V2Parameters = Readonly<Record<string, unknown>>;

/** An input as it came: elements as JSON in `data`, or as bytes in `bytes`. */
export interface V2Input {
  readonly name: string;
  readonly datatype: Datatype;
  readonly shape: readonly number[];
  readonly parameters: V2Parameters;
  readonly data: unknown;
  readonly bytes: Uint8Array | null;
}

/** An output that is asked for. */
export interface V2Output {
  readonly name: string;
  /** Whether its elements are to come as bytes. */
  readonly binary: boolean;
}

export interface V2Request {
  /** The client's, which the answer has, too; null where it has none. */
  readonly id: string | null;
  readonly parameters: V2Parameters;
  readonly inputs: readonly V2Input[];
  /** null: all of them, as `binaryOutput` says. */
  readonly outputs: readonly V2Output[] | null;
  readonly binaryOutput: boolean;
}

/** The body of a request without JSON: the one element of the one input, and all outputs as bytes. */
export interface V2RawRequest {
  readonly raw: Uint8Array;
}

const bad = (message: string): ServiceError => new ServiceError(400, message);

/** Names of inputs and outputs that are looked at; more of them is no honest request. */
const MAX_TENSORS = 64;
const MAX_DIMENSIONS = 8;

/**
 * Reads the body of an inference request.
 *
 * @param body after decompression; tensors are views of it
 * @param headerLength the value of `Inference-Header-Content-Length`; null where there is none, and all of the body is JSON
 * @param maxJsonBytes the most bytes of JSON, which is parsed at once, on the thread that answers others, too
 * @throws ServiceError 400 naming the field, what was expected and what came; 413 for more JSON than allowed
 */
export function parseV2Request(
  body: Uint8Array,
  headerLength: string | null,
  maxJsonBytes: number,
): V2Request | V2RawRequest {
  if (headerLength === null) return parseHeader(parseJson(body, maxJsonBytes), body.subarray(body.length));
  const length = /^\d{1,15}$/.test(headerLength) ? Number(headerLength) : Number.NaN;
  if (!(length <= body.length)) {
    throw bad(`${HEADER_LENGTH}: expected 0 to the ${body.length} bytes of the body, got ${shown(headerLength)}`);
  }
  if (length === 0) return { raw: body };
  return parseHeader(parseJson(body.subarray(0, length), maxJsonBytes), body.subarray(length));
}

/** Parses UTF-8 JSON of a client. @throws ServiceError 400, or 413 where it is too much */
export function parseJson(bytes: Uint8Array, maxBytes: number): unknown {
  if (bytes.length > maxBytes) {
    throw new ServiceError(413, `JSON: expected at most ${maxBytes} bytes, got ${bytes.length}; send tensors as bytes`);
  }
  if (bytes.length === 0) throw bad("JSON: the body is empty");
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    const reason = error instanceof SyntaxError ? error.message.replace(/^JSON Parse error: /, "") : "it is no UTF-8";
    throw bad(`JSON: ${reason.slice(0, 100)}`);
  }
}

function parseHeader(json: unknown, binary: Uint8Array): V2Request {
  if (!isObject(json)) throw bad(`request: expected an object, got ${shown(json)}`);
  const { id = null, parameters, inputs, outputs } = json;
  if (id !== null && typeof id !== "string") throw bad(`id: expected a string, got ${shown(id)}`);
  const shared = parametersOf(parameters, "parameters");
  const binaryOutput = flagOf(shared, "binary_data_output", "parameters") ?? false;
  let place = 0;
  const take = (bytes: number, at: string): Uint8Array => {
    if (bytes > binary.length - place) {
      throw bad(`${at}: expected ${bytes} bytes behind the JSON, got ${binary.length - place}`);
    }
    place += bytes;
    return binary.subarray(place - bytes, place);
  };
  const parsed = listOf(inputs, "inputs").map((input, i) => parseInput(input, `inputs[${i}]`, take));
  if (parsed.length === 0) throw bad("inputs: expected at least one");
  if (place < binary.length) {
    throw bad(`the body has ${binary.length - place} bytes more than the JSON and its binary_data_size say`);
  }
  unique(parsed, "inputs");
  const wanted =
    outputs === undefined || outputs === null
      ? null
      : listOf(outputs, "outputs").map((output, i) => parseOutput(output, `outputs[${i}]`, binaryOutput));
  if (wanted) unique(wanted, "outputs");
  return {
    ...{ id, parameters: shared, inputs: parsed, binaryOutput },
    outputs: wanted === null || wanted.length === 0 ? null : wanted,
  };
}

function listOf(value: unknown, at: string): readonly unknown[] {
  if (!Array.isArray(value)) throw bad(`${at}: expected an array, got ${shown(value)}`);
  if (value.length > MAX_TENSORS) throw bad(`${at}: expected at most ${MAX_TENSORS}, got ${value.length}`);
  return value;
}

function unique(list: readonly { name: string }[], at: string): void {
  const twice = list.find(({ name }, i) => list.findIndex((other) => other.name === name) < i);
  if (twice) throw bad(`${at}: ${shown(twice.name)} is there twice`);
}

function parametersOf(value: unknown, at: string): V2Parameters {
  if (value === undefined || value === null) return {};
  if (!isObject(value)) throw bad(`${at}: expected an object, got ${shown(value)}`);
  return value;
}

function flagOf(parameters: V2Parameters, name: string, at: string): boolean | undefined {
  const value = parameters[name];
  if (value === undefined || typeof value === "boolean") return value;
  throw bad(`${at}.${name}: expected true or false, got ${shown(value)}`);
}

function nameOf(value: unknown, at: string): string {
  if (typeof value === "string" && value !== "") return value;
  throw bad(`${at}.name: expected a name, got ${shown(value)}`);
}

function noSharedMemory(parameters: V2Parameters, at: string): void {
  if (Object.keys(parameters).some((name) => name.startsWith("shared_memory"))) {
    throw bad(`${at}.parameters: there is no shared memory here; send the elements with the request`);
  }
}

function parseInput(value: unknown, place: string, take: (bytes: number, at: string) => Uint8Array): V2Input {
  if (!isObject(value)) throw bad(`${place}: expected an object, got ${shown(value)}`);
  const name = nameOf(value.name, place);
  const at = `${place} (${shown(name)})`;
  const { datatype, shape, data } = value;
  if (!isDatatype(datatype)) {
    throw bad(`${at}.datatype: expected one of ${datatypes.join(", ")}, got ${shown(datatype)}`);
  }
  const isSide = (side: unknown) => Number.isSafeInteger(side) && (side as number) >= 0;
  if (!Array.isArray(shape) || shape.length > MAX_DIMENSIONS || !shape.every(isSide)) {
    throw bad(`${at}.shape: expected up to ${MAX_DIMENSIONS} whole numbers from 0, got ${shown(shape)}`);
  }
  const elements = elementsOf(shape);
  if (!Number.isSafeInteger(elements * 8)) throw bad(`${at}.shape: [${shape}] has too many elements`);
  const parameters = parametersOf(value.parameters, `${at}.parameters`);
  noSharedMemory(parameters, at);
  const size = parameters.binary_data_size;
  const input = { name, datatype, shape: shape as number[], parameters };
  if (size === undefined) {
    if (data === undefined) throw bad(`${at}: expected data, or parameters.binary_data_size`);
    if (datatype === "BF16") throw bad(`${at}.datatype: BF16 has no form in JSON; send it as bytes`);
    return { ...input, data, bytes: null };
  }
  if (!isSide(size)) throw bad(`${at}.parameters.binary_data_size: expected a number of bytes, got ${shown(size)}`);
  if (data !== undefined) throw bad(`${at}: has both data and parameters.binary_data_size`);
  const expected = elements * datatypeBytes(datatype);
  if (datatype !== "BYTES" && size !== expected) {
    throw bad(
      `${at}.parameters.binary_data_size: ${datatype} of shape [${shape}] has ${expected} bytes, got ${shown(size)}`,
    );
  }
  return { ...input, data: undefined, bytes: take(size as number, at) };
}

function parseOutput(value: unknown, place: string, binaryOutput: boolean): V2Output {
  if (!isObject(value)) throw bad(`${place}: expected an object, got ${shown(value)}`);
  const name = nameOf(value.name, place);
  const parameters = parametersOf(value.parameters, `${place}.parameters`);
  noSharedMemory(parameters, place);
  const { classification } = parameters;
  if (classification !== undefined && classification !== 0) {
    throw bad(`${place}.parameters.classification: outputs are detections already, which cannot be classified`);
  }
  return { name, binary: flagOf(parameters, "binary_data", `${place}.parameters`) ?? binaryOutput };
}

/** What an answer says beside its tensors. */
export interface V2ReplyHead {
  readonly model: string;
  readonly version: string;
  readonly id: string | null;
  readonly parameters?: V2Parameters;
}

/** The body of an answer, and the bytes of it that are JSON: null where all of it is. */
export interface V2Reply {
  readonly body: Uint8Array<ArrayBuffer>;
  readonly headerLength: number | null;
}

/** Writes an answer; outputs that are to be binary come behind the JSON, in its order. */
export function formatV2Reply(
  { model, version, id, parameters }: V2ReplyHead,
  outputs: readonly { readonly tensor: OutputTensor; readonly binary: boolean }[],
): V2Reply {
  const described = outputs.map(({ tensor, binary }) => {
    const { name, datatype, shape } = tensor;
    return binary
      ? { name, datatype, shape, parameters: { binary_data_size: tensor.data.byteLength } }
      : { name, datatype, shape, data: jsonElements(tensor) };
  });
  const json = new TextEncoder().encode(
    JSON.stringify({
      ...{ model_name: model, model_version: version },
      ...(id !== null && { id }),
      ...(parameters && { parameters }),
      outputs: described,
    }),
  );
  const parts = outputs.filter(({ binary }) => binary).map(({ tensor }) => binaryElements(tensor));
  if (parts.length === 0) return { body: json, headerLength: null };
  const body = new Uint8Array(json.length + parts.reduce((sum, { length }) => sum + length, 0));
  body.set(json);
  let place = json.length;
  for (const part of parts) {
    body.set(part, place);
    place += part.length;
  }
  return { body, headerLength: json.length };
}

/** Tensors of the Open Inference Protocol: their datatypes, and their elements as JSON or as bytes. */
import { ServiceError } from "./types";

/** Bytes of an element; 0: elements have lengths of their own. BF16 has no form in JSON. */
const DATATYPE_BYTES = {
  ...{ BOOL: 1, UINT8: 1, UINT16: 2, UINT32: 4, UINT64: 8, INT8: 1, INT16: 2, INT32: 4, INT64: 8 },
  ...{ FP16: 2, BF16: 2, FP32: 4, FP64: 8, BYTES: 0 },
} as const;

export type Datatype = keyof typeof DATATYPE_BYTES;

export const isDatatype = (text: unknown): text is Datatype =>
  typeof text === "string" && Object.hasOwn(DATATYPE_BYTES, text);

export const datatypes: readonly string[] = Object.keys(DATATYPE_BYTES);

/** Bytes of an element; 0 for BYTES, whose elements have lengths of their own. */
export const datatypeBytes = (datatype: Datatype): number => DATATYPE_BYTES[datatype];

/** Elements of a tensor of this shape. */
export const elementsOf = (shape: readonly number[]): number => shape.reduce((product, side) => product * side, 1);

/**
 * Bytes of files, pictures among them, as JSON holds them: base64, by either alphabet, with padding or without, or as a data URL.
 *
 * @param at where it is, for errors
 * @throws ServiceError 400
 */
export function bytesOfText(text: string, at: string): Uint8Array {
  let encoded = text;
  if (/^data:/i.test(text)) {
    const comma = text.indexOf(",", 5);
    const media = comma < 0 ? "" : text.slice(5, Math.min(comma, 200));
    if (!/;base64$/i.test(media)) {
      throw new ServiceError(400, `${at}: expected a data URL in base64, as data:image/jpeg;base64,...`);
    }
    encoded = text.slice(comma + 1);
  }
  const alphabet = /[-_]/.test(encoded) ? "base64url" : "base64";
  try {
    return Uint8Array.fromBase64(encoded, { alphabet });
  } catch {
    throw new ServiceError(400, `${at}: expected base64, got ${quoted(encoded)}`);
  }
}

/** A client's text, short and in quotes, for a message. */
export function quoted(text: string, most = 40): string {
  return JSON.stringify(text.length > most ? `${text.slice(0, most)}...` : text);
}

/** A client's value, short, for a message. */
export function shown(value: unknown): string {
  if (value === undefined) return "nothing";
  if (typeof value === "string") return quoted(value);
  if (Array.isArray(value)) {
    const flat = value.length <= 16 && value.every((item) => typeof item !== "object");
    return flat ? `[${value.map(shown).join(", ")}]` : `an array of ${value.length}`;
  }
  return typeof value === "object" && value !== null ? "an object" : String(value);
}

/**
 * The elements of JSON data in row-major order, as lists of them: all at once where the data is flat, else its innermost arrays.
 * No recursion: a client chooses how deep its data is.
 *
 * @throws ServiceError 400 where the data is of another shape
 */
function* rowsOf(data: unknown, shape: readonly number[], at: string): Generator<readonly unknown[]> {
  if (!Array.isArray(data)) throw new ServiceError(400, `${at}: expected an array, got ${shown(data)}`);
  if (!Array.isArray(data[0])) {
    const elements = elementsOf(shape);
    if (data.length !== elements) {
      throw new ServiceError(400, `${at}: shape [${shape}] has ${elements} elements, got ${data.length}`);
    }
    yield data;
    return;
  }
  const stack: { list: readonly unknown[]; next: number }[] = [];
  const enter = (list: unknown): readonly unknown[] => {
    const side = shape[stack.length];
    if (Array.isArray(list) && list.length === side) return list;
    const got = Array.isArray(list) ? list.length : shown(list);
    const depth = stack.length + 1;
    throw new ServiceError(400, `${at}: expected arrays of ${side} at depth ${depth} of shape [${shape}], got ${got}`);
  };
  stack.push({ list: enter(data), next: 0 });
  for (let top = stack.at(-1); top; top = stack.at(-1)) {
    if (top.next === top.list.length) {
      stack.pop();
      continue;
    }
    const list = enter(top.list[top.next++]);
    if (stack.length + 1 === shape.length) yield list;
    else stack.push({ list, next: 0 });
  }
}

/** UINT8 elements from JSON. @throws ServiceError 400 */
export function uint8FromJson(data: unknown, shape: readonly number[], at: string): Uint8Array {
  const elements = elementsOf(shape);
  // Grows with what is there: the shape is a client's word.
  let bytes = new Uint8Array(Math.min(elements, 2 ** 16));
  let place = 0;
  for (const row of rowsOf(data, shape, at)) {
    if (place + row.length > bytes.length) {
      const larger = new Uint8Array(Math.min(elements, Math.max(2 * bytes.length, place + row.length)));
      larger.set(bytes);
      bytes = larger;
    }
    for (const item of row) {
      if (!Number.isInteger(item) || (item as number) < 0 || (item as number) > 255) {
        throw new ServiceError(400, `${at}: element ${place}: expected an integer from 0 to 255, got ${shown(item)}`);
      }
      bytes[place++] = item as number;
    }
  }
  return bytes;
}

/** BYTES elements from JSON, as base64. @throws ServiceError 400 */
export function bytesFromJson(data: unknown, shape: readonly number[], at: string): Uint8Array[] {
  const elements: Uint8Array[] = [];
  for (const row of rowsOf(data, shape, at)) {
    for (const item of row) {
      const place = `${at}[${elements.length}]`;
      if (typeof item !== "string") throw new ServiceError(400, `${place}: expected base64, got ${shown(item)}`);
      elements.push(bytesOfText(item, place));
    }
  }
  return elements;
}

/**
 * BYTES elements from bytes: each a length of 4 bytes, little-endian, and as many bytes; views, no copies.
 *
 * @throws ServiceError 400 where the lengths do not add up to `count` elements
 */
export function bytesFromBinary(bytes: Uint8Array, count: number, at: string): Uint8Array[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const elements: Uint8Array[] = [];
  let place = 0;
  while (place < bytes.length) {
    if (elements.length === count) {
      throw new ServiceError(400, `${at}: ${bytes.length - place} bytes more than its ${count} elements`);
    }
    const name = `${at}[${elements.length}]`;
    if (place + 4 > bytes.length) throw new ServiceError(400, `${name}: the bytes end within its length`);
    const length = view.getUint32(place, true);
    if (length > bytes.length - place - 4) {
      throw new ServiceError(400, `${name}: expected ${length} bytes, got ${bytes.length - place - 4}`);
    }
    elements.push(bytes.subarray(place + 4, place + 4 + length));
    place += 4 + length;
  }
  if (elements.length < count) {
    throw new ServiceError(400, `${at}: expected ${count} elements, got ${elements.length}`);
  }
  return elements;
}

/** A tensor of an answer, in memory as it is sent: little-endian, row by row. */
export interface OutputTensor {
  readonly name: string;
  readonly datatype: "FP32" | "INT32" | "INT64";
  readonly shape: readonly number[];
  readonly data: Float32Array | Int32Array | BigInt64Array;
}

/** The elements as JSON holds them, flat. What has no number there (not finite) is null. */
export function jsonElements({ data }: OutputTensor): number[] {
  return Array.from(data as Float32Array, Number);
}

/** The elements as bytes; a view. */
export function binaryElements({ data }: OutputTensor): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

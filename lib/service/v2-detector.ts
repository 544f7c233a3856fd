/** Detectors as models of the Open Inference Protocol: their inputs and outputs, and what they say of themselves. */
import { checkImageFile, checkPixels } from "./image-header";
import { MAX_WAIT_MS } from "./limits";
import { bytesFromBinary, bytesFromJson, elementsOf, type OutputTensor, shown, uint8FromJson } from "./tensors";
import {
  type InferenceReply,
  type InferenceRequest,
  type ModelDescription,
  ServiceError,
  type ServiceImage,
  type ServiceResult,
} from "./types";
import type { V2Input, V2Output, V2Parameters, V2RawRequest, V2Request } from "./v2-protocol";

/** As Triton names them: of what kind the model's file is. */
const PLATFORM = "dlfs_flatbuffer";

/** One of them comes with a request. */
const INPUTS = [
  { name: "image_bytes", datatype: "BYTES", shape: [-1] },
  { name: "images", datatype: "UINT8", shape: [-1, -1, -1, 3] },
] as const;

const OUTPUTS = [
  { name: "boxes", datatype: "FP32", shape: [-1, -1, 4] },
  { name: "scores", datatype: "FP32", shape: [-1, -1] },
  { name: "labels", datatype: "INT64", shape: [-1, -1] },
  { name: "num_detections", datatype: "INT32", shape: [-1, 1] },
] as const;

type OutputName = (typeof OUTPUTS)[number]["name"];
const OUTPUT_NAMES: readonly OutputName[] = OUTPUTS.map(({ name }) => name);

/** The answer to GET v2/models/NAME. */
export function modelMetadata(name: string, versions: readonly string[]): unknown {
  return { name, versions, platform: PLATFORM, inputs: INPUTS, outputs: OUTPUTS };
}

/** The answer to GET v2/models/NAME/config, with the fields that Triton's has for models like these. */
export function modelConfig(model: ModelDescription, versions: readonly string[]): unknown {
  const text = (value: string) => ({ string_value: value });
  const withDims = ({ name, datatype, shape }: (typeof INPUTS | typeof OUTPUTS)[number]) => ({
    ...{ name, data_type: datatype === "BYTES" ? "TYPE_STRING" : `TYPE_${datatype}`, dims: shape.slice(1) },
  });
  return {
    ...{ name: model.name, platform: PLATFORM, backend: "dlfs" },
    version_policy: {
      specific: { versions: versions.map((version) => (/^\d+$/.test(version) ? Number(version) : version)) },
    },
    max_batch_size: model.maxBatch,
    // Triton's dims are without the batch; what has none left is of one element.
    input: INPUTS.map((input) => ({
      ...withDims(input),
      dims: input.shape.length === 1 ? [1] : input.shape.slice(1),
      optional: true,
    })),
    output: OUTPUTS.map(withDims),
    instance_group: [{ name: model.name, kind: model.backend === "cuda" ? "KIND_GPU" : "KIND_CPU", count: 1 }],
    dynamic_batching: { priority_levels: model.priorityLevels },
    parameters: {
      class_names: text(JSON.stringify(model.classes)),
      input_size: text(model.size?.join("x") ?? ""),
      precision: text(model.precision),
      device: text(model.device),
    },
  };
}

/** What is asked of the model, and how its answer is wanted. */
export interface V2Inference {
  readonly id: string | null;
  readonly request: Omit<InferenceRequest, "signal">;
  readonly maxDetections: number | null;
  readonly outputs: readonly V2Output[];
}

export interface V2Limits {
  /** The most pixels of an image. */
  readonly maxPixels: number;
}

const bad = (message: string): ServiceError => new ServiceError(400, message);

/**
 * What a request asks of a detector: exactly one of `image_bytes` and `images`, the outputs that are wanted, and the parameters
 * `priority`, `timeout` (microseconds), `score_threshold` and `max_detections`.
 *
 * @throws ServiceError 400 naming the field, what was expected and what came
 */
export function detectionOf(v2: V2Request | V2RawRequest, model: ModelDescription, limits: V2Limits): V2Inference {
  if ("raw" in v2) {
    checkImageFile(v2.raw, "body", limits.maxPixels);
    const outputs = OUTPUT_NAMES.map((name) => ({ name, binary: true }));
    return { id: null, request: { images: [v2.raw] }, maxDetections: null, outputs };
  }
  const { id, inputs, parameters, outputs: wanted, binaryOutput } = v2;
  const unknown = inputs.find(({ name }) => !INPUTS.some((input) => input.name === name));
  if (unknown) throw bad(`inputs: expected image_bytes or images, got ${shown(unknown.name)}`);
  const [input, ...more] = inputs as [V2Input, ...V2Input[]];
  if (more.length > 0) throw bad("inputs: expected one of image_bytes and images, got both");
  const absent = wanted?.find(({ name }) => !(OUTPUT_NAMES as readonly string[]).includes(name));
  if (absent) throw bad(`outputs: expected ${OUTPUT_NAMES.join(", ")}, got ${shown(absent.name)}`);
  const images = input.name === "images" ? pixelsOf(input, model, limits) : filesOf(input, model, limits);
  const options = optionsOf(parameters);
  return {
    ...{ id, maxDetections: options.maxDetections, request: { images, ...options.request } },
    outputs: wanted ?? OUTPUT_NAMES.map((name) => ({ name, binary: binaryOutput })),
  };
}

function expectBatch(images: number, { maxBatch }: ModelDescription, at: string): void {
  if (images >= 1 && images <= maxBatch) return;
  throw bad(`${at}.shape: expected 1 to ${maxBatch} images, got ${images}`);
}

function filesOf({ datatype, shape, data, bytes }: V2Input, model: ModelDescription, limits: V2Limits): Uint8Array[] {
  const at = "image_bytes";
  if (datatype !== "BYTES") throw bad(`${at}.datatype: expected BYTES, got ${datatype}`);
  // (n, 1) is how Triton's clients write a batch of single elements.
  if (!(shape.length === 1 || (shape.length === 2 && shape[1] === 1))) {
    throw bad(`${at}.shape: expected [n] or [n, 1], got [${shape}]`);
  }
  const n = shape[0] as number;
  expectBatch(n, model, at);
  const files = bytes ? bytesFromBinary(bytes, n, at) : bytesFromJson(data, shape, at);
  for (const [i, file] of files.entries()) checkImageFile(file, `${at}[${i}]`, limits.maxPixels);
  return files;
}

function pixelsOf(input: V2Input, model: ModelDescription, { maxPixels }: V2Limits): ServiceImage[] {
  const at = "images";
  const { datatype, shape } = input;
  if (datatype !== "UINT8") {
    throw bad(`${at}.datatype: expected UINT8 (RGB from 0 to 255, not normalised), got ${datatype}`);
  }
  const [n = 0, height = 0, width = 0, channels] = shape;
  if (shape.length !== 4 || channels !== 3 || height < 1 || width < 1) {
    throw bad(`${at}.shape: expected [n, height, width, 3], got [${shape}]`);
  }
  expectBatch(n, model, at);
  checkPixels(width, height, at, maxPixels);
  const data = input.bytes ?? uint8FromJson(input.data, shape, at);
  const size = elementsOf([height, width, 3]);
  return Array.from({ length: n }, (_, i) => ({ width, height, data: data.subarray(i * size, (i + 1) * size) }));
}

function optionsOf(parameters: V2Parameters) {
  const number = (name: string, expected: string, fits: (value: number) => boolean): number | undefined => {
    const value = parameters[name];
    if (value === undefined || value === null) return undefined;
    if (typeof value === "number" && fits(value)) return value;
    throw bad(`parameters.${name}: expected ${expected}, got ${shown(value)}`);
  };
  const whole = (least: number) => (value: number) => Number.isSafeInteger(value) && value >= least;
  const stateful = ["sequence_id", "sequence_start", "sequence_end"].find((name) => parameters[name]);
  if (stateful) throw bad(`parameters.${stateful}: detectors keep nothing from one request to the next`);
  // 0 is what Triton's clients send where they were given none.
  const priority = number("priority", "a whole number from 0", whole(0));
  const timeout = number("timeout", "microseconds from 0", whole(0));
  const scoreThreshold = number("score_threshold", "a number from 0 to 1", (value) => value >= 0 && value <= 1);
  return {
    maxDetections: number("max_detections", "a whole number from 1", whole(1)) ?? null,
    request: {
      ...(priority && { priority }),
      ...(timeout && { timeoutMs: Math.min(timeout / 1000, MAX_WAIT_MS) }),
      ...(scoreThreshold !== undefined && { scoreThreshold }),
    },
  };
}

/**
 * The outputs of a reply that are asked for, padded to the most detections of an image: boxes and scores with 0, labels with -1.
 *
 * @throws ServiceError 400 where an image is damaged: tensors have no room for that
 */
export function outputsOf(
  { results }: InferenceReply,
  { outputs, maxDetections }: Pick<V2Inference, "outputs" | "maxDetections">,
): { tensor: OutputTensor; binary: boolean }[] {
  const damaged = results.findIndex(({ error }) => error !== null);
  if (damaged >= 0) throw bad(`image ${damaged}: ${(results[damaged] as ServiceResult).error}`);
  const counts = results.map(({ detections }) => Math.min(detections.length, maxDetections ?? detections.length));
  const rows = Math.max(...counts);
  const tensors = tensorsOf(results, counts, rows);
  return outputs.map(({ name, binary }) => ({ binary, tensor: tensors[name as OutputName]() }));
}

function tensorsOf(
  results: readonly ServiceResult[],
  counts: readonly number[],
  rows: number,
): Record<OutputName, () => OutputTensor> {
  const n = results.length;
  const each = (put: (detection: ServiceResult["detections"][number], row: number) => void) => {
    for (const [i, { detections }] of results.entries()) {
      for (let k = 0; k < (counts[i] as number); k++) put(detections[k] as (typeof detections)[number], i * rows + k);
    }
  };
  return {
    boxes: () => {
      const data = new Float32Array(n * rows * 4);
      each(({ box }, row) => data.set(box, row * 4));
      return { name: "boxes", datatype: "FP32", shape: [n, rows, 4], data };
    },
    scores: () => {
      const data = new Float32Array(n * rows);
      each(({ score }, row) => {
        data[row] = score;
      });
      return { name: "scores", datatype: "FP32", shape: [n, rows], data };
    },
    labels: () => {
      const data = new BigInt64Array(n * rows).fill(-1n);
      each(({ label }, row) => {
        data[row] = BigInt(label);
      });
      return { name: "labels", datatype: "INT64", shape: [n, rows], data };
    },
    num_detections: () => ({
      ...{ name: "num_detections", datatype: "INT32", shape: [n, 1], data: Int32Array.from(counts) },
    }),
  };
}

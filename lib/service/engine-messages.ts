/** What a server and an engine's process say to each other; images and results lie in the memory that they share. */
import type { BackendName } from "../native";
import type { Precision, QuantizedDType } from "../tensor";
import type { StageTimes } from "./statistics";
import type { ServiceResult } from "./types";

/** The file that an engine's process has the shared memory as. */
export const SHARED_FILE = 3;

/** What an engine is made of. */
export interface EngineSpec {
  /** A model file, a checkpoint, or the folder of a run. */
  readonly path: string;
  readonly backend?: BackendName;
  /** Which device of the backend. */
  readonly device?: number;
  readonly precision?: Precision;
  readonly quantize?: QuantizedDType;
  readonly batchSizes?: readonly number[];
  readonly size?: readonly [height: number, width: number];
  /** Batches at a time. */
  readonly inFlight: number;
  /** Threads for decoding, and on the CPU for computing; 0 chooses. */
  readonly decodeThreads: number;
  readonly computeThreads: number;
  readonly tuneMs?: number;
  /** Bytes of device memory; null: what the device has. */
  readonly memoryLimit: number | null;
  /** How much the process steps back behind others, 0 to 19; null: not on a GPU, 5 on the CPU. */
  readonly niceness: number | null;
  /** Files that are imported before the model is loaded: they register architectures. */
  readonly modules: readonly string[];
}

/** An engine, as its process describes it when it is ready. */
export interface EngineDescription {
  readonly classes: readonly string[];
  readonly size: readonly [height: number, width: number];
  readonly precision: string;
  readonly backend: string;
  readonly device: string;
  readonly maxBatch: number;
  readonly maxDetections: number;
  readonly iteration: number;
  readonly metrics: Readonly<Record<string, number>>;
}

/** Bytes: of the device, and what the process has resident. */
export interface EngineMemory {
  readonly allocated: number;
  readonly free: number;
  readonly total: number;
  readonly resident: number;
}

/** Where an image lies in the shared memory: a file's bytes, or pixels where it has a width; its threshold, -1 for none. */
export type SharedImage = [at: number, bytes: number, width: number, height: number, threshold: number];

/** Times as the engine measures them, in milliseconds. */
export type EngineStageTimes = Omit<StageTimes, "transfer">;

export type ToEngine =
  | { kind: "load"; parent: number; spec: EngineSpec }
  | { kind: "batch"; id: number; images: SharedImage[]; resultsAt: number; resultsBytes: number }
  | { kind: "quit" };

export type FromEngine =
  /** The process runs and listens. */
  | { kind: "started" }
  | { kind: "ready"; engine: EngineDescription; memory: EngineMemory }
  /** The model cannot be loaded; the process ends. */
  | { kind: "failed"; code: number; message: string }
  | { kind: "done"; id: number; times: EngineStageTimes }
  /** A batch failed as a whole. */
  | { kind: "error"; id: number; code: number; message: string }
  | { kind: "memory"; memory: EngineMemory };

/** Of an image's result: width, height, detections, bytes of the error; then detections of six numbers each, or the error. */
const HEAD = 4;
const ROW = 6;
/** Longer errors are cut. */
const ERROR_BYTES = 1024;

/** Numbers of 8 bytes that an image's result takes at most. */
const resultNumbers = (maxDetections: number) => HEAD + Math.max(ROW * maxDetections, ERROR_BYTES / 8);

/** Room for the results of so many images. */
export function resultBytes(images: number, maxDetections: number): number {
  return 8 * images * resultNumbers(maxDetections);
}

/** Writes a batch's results, numbers as they are; `at` is a multiple of 8. */
export function writeResults(
  memory: Uint8Array,
  at: number,
  maxDetections: number,
  results: readonly ServiceResult[],
): void {
  const stride = resultNumbers(maxDetections);
  const numbers = new Float64Array(memory.buffer, memory.byteOffset + at, stride * results.length);
  for (const [i, { width, height, detections, error }] of results.entries()) {
    let next = i * stride;
    numbers[next] = width;
    numbers[next + 1] = height;
    numbers[next + 2] = detections.length;
    next += HEAD;
    const text = at + 8 * next;
    numbers[next - 1] =
      error === null
        ? 0
        : new TextEncoder().encodeInto(error || "-", memory.subarray(text, text + ERROR_BYTES)).written;
    for (const { box, score, label } of detections) {
      numbers[next] = box[0];
      numbers[next + 1] = box[1];
      numbers[next + 2] = box[2];
      numbers[next + 3] = box[3];
      numbers[next + 4] = score;
      numbers[next + 5] = label;
      next += ROW;
    }
  }
}

export function readResults(memory: Uint8Array, at: number, maxDetections: number, images: number): ServiceResult[] {
  const stride = resultNumbers(maxDetections);
  const numbers = new Float64Array(memory.buffer, memory.byteOffset + at, stride * images);
  const number = (place: number) => numbers[place] as number;
  return Array.from({ length: images }, (_, i) => {
    const head = i * stride;
    const errorBytes = number(head + 3);
    const text = at + 8 * (head + HEAD);
    return {
      width: number(head),
      height: number(head + 1),
      detections: Array.from({ length: number(head + 2) }, (_, k) => {
        const row = head + HEAD + ROW * k;
        return {
          box: [number(row), number(row + 1), number(row + 2), number(row + 3)],
          score: number(row + 4),
          label: number(row + 5),
        };
      }),
      error: errorBytes > 0 ? new TextDecoder().decode(memory.subarray(text, text + errorBytes)) : null,
    };
  });
}

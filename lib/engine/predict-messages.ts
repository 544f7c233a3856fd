/** What batch inference in several processes says between them. */
import type { DeviceOptions, Precision, QuantizedDType } from "../tensor";
import type { AboutEngine, DetectedBatch } from "./detect-left";
import type { ListOptions } from "./image-list";

/** What an engine of a process is made of. */
export interface ProcessEngine {
  model: string;
  device: DeviceOptions;
  precision?: Precision;
  quantize?: QuantizedDType;
  size?: readonly [height: number, width: number];
  batchSizes?: readonly number[];
  tuneMs?: number;
  /** Files that each process imports before it loads the model: they register architectures. */
  modules?: readonly string[];
}

/** What is to be done, once the predictions file is open. */
export interface ProcessWork {
  /** As listImages() takes it: each process lists for itself. */
  location: string;
  list: Pick<ListOptions, "every" | "fps">;
  /** Of the images those whose place in the list, divided by `count`, leaves `index`. */
  share: { index: number; count: number };
  /** The predictions file, which says what is done. */
  predictions: string;
  retryFailed: boolean;
  out: string;
  pictures: boolean;
  scoreThreshold: number;
  readAhead?: number;
  batchesAhead?: number;
}

export type ToProcess =
  | { kind: "load"; engine: ProcessEngine }
  | { kind: "work"; work: ProcessWork }
  /** A batch is written: another may be sent. */
  | { kind: "written" }
  /** No more batches than are under way. */
  | { kind: "stop" };

export type FromProcess =
  | { kind: "ready"; about: AboutEngine; device: string; path: string; size: readonly number[]; precision: string }
  | { kind: "batch"; batch: DetectedBatch }
  | { kind: "length"; frames: number }
  | { kind: "known"; frames: number }
  | { kind: "done" }
  | { kind: "failed"; code: number; op: string; message: string };

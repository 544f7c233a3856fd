import type { DType, QuantizedDType } from "../tensor/dtype";

/** Dtypes that a checkpoint holds. */
export type StoredDType = Exclude<DType, QuantizedDType>;

/** Shape and type of a tensor in a checkpoint. */
export interface CheckpointTensor {
  /** Unique, not empty: "model.backbone.conv1.weight". */
  name: string;
  dtype: StoredDType;
  /** From the outermost dimension; empty for a scalar. Row-major. */
  shape: readonly number[];
}

/** A tensor on its way into a checkpoint: its little-endian bytes, which must not change until they are written. */
export interface CheckpointTensorData extends CheckpointTensor {
  data: Uint8Array;
}

/** A tensor's place in a checkpoint. */
export interface CheckpointEntry extends CheckpointTensor {
  /** Bytes from the start of the file, a multiple of 64. */
  offset: number;
  length: number;
  /** xxHash64 of the bytes, seed 0. */
  checksum: bigint;
}

/** A counter-based random stream: the next number drawn is that of `counter`. */
export interface RandomCounter {
  name: string;
  seed: number;
  counter: number;
}

/** Where the data loader stands. */
export interface LoaderPosition {
  epoch: number;
  /** Images of this epoch that have been trained on. */
  position: number;
  /** Seed of the epoch's order. */
  seed: number;
}

/** The learning-rate schedule: its step and whatever else it needs to go on. */
export interface ScheduleState {
  name: string;
  step: number;
  values: Record<string, number>;
}

/** One line of the metrics history, such as an evaluation. */
export interface MetricsRecord {
  kind: string;
  iteration: number;
  epoch: number;
  /** Milliseconds since 1970-01-01 UTC. */
  time: number;
  values: Record<string, number>;
}

/** The best value so far of the metric that decides which checkpoint is kept. */
export interface BestMetric {
  name: string;
  value: number;
  iteration: number;
}

/** What wrote a checkpoint. */
export interface CheckpointVersions {
  dlfs: string;
  bun: string;
  /** "cpu" or "cuda". */
  backend: string;
  /** The backend's libraries and the device, by name. */
  libraries: Record<string, string>;
}

/** Everything about a checkpoint but its tensors. Counts, ids and seeds are whole numbers from 0 to 2^53 - 1. */
export interface CheckpointMetadata {
  /** Optimizer steps done. */
  iteration: number;
  epoch: number;
  /** Milliseconds since 1970-01-01 UTC. */
  created: number;
  /** The resolved configuration of the run: anything that JSON can hold. */
  config: unknown;
  versions: CheckpointVersions;
  random: RandomCounter[];
  loader?: LoaderPosition;
  schedule?: ScheduleState;
  history: MetricsRecord[];
  best?: BestMetric;
  /** Convolution plans picked for this run, by description; a run resumed with them computes the same bytes. */
  convPicks: { key: string; value: string }[];
  /** Training state of other parts: text or bytes under a key. */
  state: Record<string, string | Uint8Array>;
}

import type { PreprocessOp } from "./transforms";

/** Where a loader is: everything that decides which batch comes next, as JSON, for a checkpoint. */
export interface LoaderState {
  /** Passes over the data that are complete. */
  epoch: number;
  /** Batches of the present pass that have been handed out. */
  position: number;
  seed: number;
  /** Whether images come in another order than that of their ids. */
  shuffle: boolean;
  /** Images in a batch of all ranks together. */
  batchSize: number;
  /** Images that there are. */
  images: number;
  /** Whether images that fill no batch are left out. */
  dropLast?: boolean;
  /** The sampler and the batch sampler, where some were given, with their options, as JSON. */
  sampler?: string;
  batchSampler?: string;
  /** Stands for the images' ids and, where a sampler goes by more than their number, for their order in this pass. */
  fingerprint?: string;
}

/**
 * Gives batch after batch, pass after pass, for training or evaluation. Batches are prepared ahead and come in an order that
 * depends on the options alone.
 */
export abstract class DataLoader<Batch> implements AsyncDisposable {
  /** Batches in the present pass (epoch); a sampler may make passes of different lengths. */
  abstract readonly length: number;

  /** What is done to each image, in this order. */
  abstract readonly preprocessing: readonly PreprocessOp[];

  /** The operations on each image, another name of `preprocessing`. */
  get operations(): readonly PreprocessOp[] {
    return this.preprocessing;
  }

  /** Seconds that callers have spent waiting in getBatch: 0 as long as loading keeps up. */
  abstract readonly waitSeconds: number;

  /** The next batch; after the last of a pass comes the first of the next. Calls are answered in order. */
  abstract getBatch(): Promise<Batch>;

  /** Where the loader is, counted in batches handed out, not in batches prepared. */
  abstract state(): LoaderState;

  /** Goes on from a state() of a loader over the same data with the same options. Waiting getBatch calls are rejected. */
  abstract restore(state: LoaderState): void;

  /** Stops loading; resolves when nothing is under way any more. Waiting getBatch calls are rejected. */
  abstract dispose(): Promise<void>;

  /** The batches from here to the end of the pass. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Batch> {
    const { epoch } = this.state();
    while (this.state().epoch === epoch) yield await this.getBatch();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}

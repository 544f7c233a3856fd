import type { PreprocessOp } from "./transforms";

/** Where a loader is: everything that decides which batch comes next, as JSON, for a checkpoint. */
export interface LoaderState {
  /** Passes over the data that are complete. */
  epoch: number;
  /** Batches of the present pass that have been handed out. */
  position: number;
  seed: number;
  shuffle: boolean;
  batchSize: number;
  /** Images in a pass. */
  images: number;
}

/**
 * Gives batch after batch, pass after pass, for training or evaluation. Batches are prepared ahead and come in an order that
 * depends on the options alone.
 */
export abstract class DataLoader<Batch> implements AsyncDisposable {
  /** Batches in a pass (epoch). */
  abstract readonly length: number;

  /** What is done to each image, in this order. */
  abstract readonly preprocessing: readonly PreprocessOp[];

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

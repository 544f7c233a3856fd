import type { CheckpointMetadata, CheckpointStore } from "../formats";
import type { DetectionModel } from "../models";
import type { Ema } from "./ema";
import type { SGD } from "./sgd";
import { Snapshot } from "./snapshot";
import { namedTensors } from "./training-state";

/** The optimizer's flag in a snapshot: it says whether the state is worth keeping, and is not kept itself. */
const FAILED = "optimizer.failed";
const NOT_STORED = new Set([FAILED]);

/** What became of a checkpoint. */
export interface SavedCheckpoint {
  iteration: number;
  /** Where it is; null: the state was not worth keeping, since a loss or the gradients' norm was not finite. */
  path: string | null;
}

/**
 * Writes checkpoints while training goes on: the state is copied to the host between two steps, and written to the disk from there.
 * One at a time: a save waits for the one before.
 */
export class Checkpointing implements Disposable {
  readonly #store: CheckpointStore;
  readonly #snapshot: Snapshot;
  #writing: Promise<SavedCheckpoint> | null = null;

  constructor(model: DetectionModel, optimizer: SGD, ema: Ema | null, store: CheckpointStore) {
    this.#store = store;
    this.#snapshot = new Snapshot(model.device, [...namedTensors(model, optimizer, ema), [FAILED, optimizer.failed]]);
  }

  /**
   * Takes the state as it will be after the steps enqueued so far, of which `metadata` tells, and writes it in the background.
   * Returns once the copying is enqueued, and the one before is written.
   *
   * @returns what becomes of it: rejects where it could not be written
   */
  async save(metadata: CheckpointMetadata): Promise<{ saved: Promise<SavedCheckpoint> }> {
    await this.settled();
    this.#snapshot.take();
    const saved = this.#write(metadata);
    this.#writing = saved;
    saved.catch(() => {}); // reported to whoever awaits it
    return { saved };
  }

  /** Resolves when nothing is being written, whatever became of it. */
  async settled(): Promise<void> {
    await this.#writing?.catch(() => {});
  }

  async #write(metadata: CheckpointMetadata): Promise<SavedCheckpoint> {
    const { iteration } = metadata;
    await this.#snapshot.taken();
    const failed = this.#snapshot.bytes(FAILED).some((byte) => byte !== 0);
    if (failed) return { iteration, path: null };
    const { path } = await this.#store.save(metadata, () => this.#snapshot.data(NOT_STORED));
    return { iteration, path };
  }

  /** After settled(). */
  dispose(): void {
    this.#snapshot.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

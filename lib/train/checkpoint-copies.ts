import type { TrainerObserver } from "./observers";
import type { RemoteCheckpoints } from "./remote-checkpoints";

export interface CheckpointCopiesOptions {
  /** Files that are copied before each checkpoint: the run's metrics. */
  files?: readonly string[];
  /** A checkpoint has been copied to `location`. */
  onCopied?: (location: string, iteration: number) => void;
  /** One could not be; the next is tried when it is there. */
  onError?: (error: Error, iteration: number) => void;
}

/**
 * Copies each checkpoint of a training to a bucket, behind the training's back: an observer of its Trainer. One at a time; of those
 * that are written meanwhile the newest is copied next, and those between are left out. Call settled() when training has ended.
 */
export class CheckpointCopies implements TrainerObserver {
  readonly #remote: RemoteCheckpoints;
  readonly #options: CheckpointCopiesOptions;
  #next: { path: string; iteration: number } | null = null;
  #last: { path: string; iteration: number } | null = null;
  #running: Promise<void> | null = null;
  #failure: Error | null = null;

  constructor(remote: RemoteCheckpoints, options: CheckpointCopiesOptions = {}) {
    this.#remote = remote;
    this.#options = options;
  }

  onCheckpoint(path: string, iteration: number): void {
    this.#next = { path, iteration };
    this.#last = this.#next;
    this.#start();
  }

  #start(): void {
    this.#running ??= this.#run().finally(() => {
      this.#running = null;
      if (this.#next) this.#start();
    });
  }

  /** Copies the checkpoint once more that could not be copied; as settled(). */
  async again(): Promise<Error | null> {
    if (this.#last) this.onCheckpoint(this.#last.path, this.#last.iteration);
    return await this.settled();
  }

  /** Resolves when nothing is left to copy: to what kept the last one from being copied, or null. */
  async settled(): Promise<Error | null> {
    while (this.#running) await this.#running;
    return this.#failure;
  }

  async #run(): Promise<void> {
    for (let taken = this.#next; taken; taken = this.#next) {
      this.#next = null;
      const { path, iteration } = taken;
      try {
        await this.#remote.saveFiles(this.#options.files ?? []);
        const location = await this.#remote.save(path);
        this.#failure = null;
        this.#options.onCopied?.(location, iteration);
      } catch (error) {
        this.#failure = error instanceof Error ? error : new Error(String(error));
        this.#options.onError?.(this.#failure, iteration);
      }
    }
  }
}

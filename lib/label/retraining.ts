/** When to train again: some time after the last of enough new annotations. */

export interface RetrainingOptions {
  /** Trains; a training at a time. */
  train: () => Promise<void>;
  /** New annotations that are worth a training. Default 20. */
  after?: number;
  /** Milliseconds without a new annotation before it begins: a burst of them is one training. Default a minute. */
  quietMs?: number;
  /** Told of trainings that fail. */
  onError: (error: Error) => void;
}

/** Counts new annotations, and trains when there are enough of them and nobody has added one for a while; never in a request. */
export class Retraining implements Disposable {
  readonly #options: Required<RetrainingOptions>;
  #pending = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #training: Promise<void> | null = null;
  #closed = false;

  constructor(options: RetrainingOptions) {
    this.#options = { after: 20, quietMs: 60_000, ...options };
  }

  /** Annotations since the last training began, and whether one is under way. */
  get status(): { pending: number; training: boolean } {
    return { pending: this.#pending, training: this.#training !== null };
  }

  /** An annotation has been made, changed or deleted. */
  note(): void {
    this.#pending++;
    this.#arm();
  }

  /** Trains as soon as none is under way, however few annotations there are. */
  now(): void {
    this.#pending = Math.max(this.#pending, this.#options.after);
    clearTimeout(this.#timer);
    this.#begin();
  }

  /** Resolves when no training is under way. */
  async settled(): Promise<void> {
    while (this.#training) await this.#training;
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  #arm(): void {
    clearTimeout(this.#timer);
    if (this.#closed || this.#pending < this.#options.after) return;
    this.#timer = setTimeout(() => this.#begin(), this.#options.quietMs);
  }

  #begin(): void {
    // What comes meanwhile is for the next one.
    if (this.#closed || this.#training || this.#pending < this.#options.after) return;
    this.#pending = 0;
    this.#training = this.#options
      .train()
      .catch((error: unknown) => this.#options.onError(error instanceof Error ? error : new Error(String(error))))
      .finally(() => {
        this.#training = null;
        this.#arm();
      });
  }
}

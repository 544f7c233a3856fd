/** Lets at most `count` pieces of work run at a time, first come, first served. */
export class Semaphore {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /** Waits for its turn; rejects with the signal's reason, and takes no turn, where that is aborted before. */
  acquire(signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#free > 0) {
      this.#free--;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const granted = (): void => {
        signal?.removeEventListener("abort", stop);
        resolve();
      };
      const stop = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(granted), 1);
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", stop, { once: true });
      this.#waiting.push(granted);
    });
  }

  release(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#free++;
  }
}

/** Hands out the numbers 0 to count - 1, each to one holder at a time, first come, first served. */
export class SlotRing {
  readonly #free: number[];
  readonly #waiting: { resolve: (slot: number) => void; reject: (reason: Error) => void }[] = [];
  #closed: Error | null = null;

  constructor(count: number) {
    this.#free = Array.from({ length: count }, (_, i) => i);
  }

  acquire(): Promise<number> {
    if (this.#closed) return Promise.reject(this.#closed);
    const slot = this.#free.shift();
    if (slot !== undefined) return Promise.resolve(slot);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  release(slot: number): void {
    const next = this.#waiting.shift();
    if (next) next.resolve(slot);
    else this.#free.push(slot);
  }

  /** Turns away all who wait, and all to come, with `reason`. */
  close(reason: Error): void {
    this.#closed = reason;
    for (const { reject } of this.#waiting.splice(0)) reject(reason);
  }
}

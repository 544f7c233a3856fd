/** Lets at most `count` pieces of work run at a time, first come, first served. */
export class Semaphore {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  acquire(): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return Promise.resolve();
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
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

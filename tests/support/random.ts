/** Seeded random numbers for tests: the same name gives the same numbers on every machine. */
export class Random {
  #state: number;

  constructor(seed: string) {
    // FNV-1a
    let hash = 0x811c9dc5;
    for (let i = 0; i < seed.length; ++i) hash = Math.imul(hash ^ seed.charCodeAt(i), 0x01000193);
    this.#state = hash >>> 0;
  }

  /** Uniform in [0, 1): mulberry32. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** An integer in [low, high). */
  integer(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low));
  }

  uniform(n: number, low = -1, high = 1): Float32Array {
    return Float32Array.from({ length: n }, () => low + (high - low) * this.next());
  }

  /** Normal values (Box-Muller). */
  normal(n: number, mean = 0, std = 1): Float32Array {
    return Float32Array.from({ length: n }, () => {
      const radius = Math.sqrt(-2 * Math.log(1 - this.next()));
      return mean + std * radius * Math.cos(2 * Math.PI * this.next());
    });
  }

  integers(n: number, low: number, high: number): Int32Array {
    return Int32Array.from({ length: n }, () => this.integer(low, high));
  }

  /** `n` different values in random order with gaps of at least 1 / n: no ties, no two that rounding could swap. */
  distinct(n: number, low = -1, high = 1): Float32Array {
    const order = Float32Array.from({ length: n }, (_, i) => low + ((high - low) * (i + 0.5)) / n);
    return this.shuffle(order);
  }

  shuffle<T extends { length: number; [index: number]: unknown }>(values: T): T {
    for (let i = values.length - 1; i > 0; --i) {
      const j = this.integer(0, i + 1);
      const kept = values[i];
      values[i] = values[j];
      values[j] = kept;
    }
    return values;
  }

  /** `count` boxes x1, y1, x2, y2 inside a square, sides from 1 to 40 % of it. */
  boxes(count: number, size: number): Float32Array {
    const out = new Float32Array(count * 4);
    for (let i = 0; i < count; ++i) {
      const [x, y] = [this.next() * size * 0.8, this.next() * size * 0.8];
      out.set([x, y, x + 1 + this.next() * size * 0.4, y + 1 + this.next() * size * 0.4], i * 4);
    }
    return out;
  }
}

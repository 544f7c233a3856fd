import { check } from "../native/error";

/**
 * Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), the
 * same function as the native library's dlfs_init_uniform. A number depends on its key and counter alone, so whatever
 * order images are read and decoded in, each one is augmented the same way.
 */

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** High 32 bits of the 64-bit product of two unsigned 32-bit integers. */
function mulHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const cross = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (cross >>> 16)) >>> 0;
}

/**
 * One block of Philox4x32-10: four words for the counter (c0, c1, c2, c3) under the key (k0, k1), written to `out`.
 * All arguments are unsigned 32-bit integers.
 */
export function philox4x32(
  out: Uint32Array,
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  k0: number,
  k1: number,
): void {
  let x0 = c0;
  let x1 = c1;
  let x2 = c2;
  let x3 = c3;
  let key0 = k0;
  let key1 = k1;
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(M0, x0);
    const low0 = Math.imul(M0, x0);
    const high1 = mulHigh(M1, x2);
    const low1 = Math.imul(M1, x2);
    x0 = (high1 ^ x1 ^ key0) >>> 0;
    x1 = low1 >>> 0;
    x2 = (high0 ^ x3 ^ key1) >>> 0;
    x3 = low0 >>> 0;
    key0 = (key0 + W0) >>> 0;
    key1 = (key1 + W1) >>> 0;
  }
  out[0] = x0;
  out[1] = x1;
  out[2] = x2;
  out[3] = x3;
}

const TWO_32 = 2 ** 32;

/**
 * What a stream of random numbers belongs to; all parts are integers in [0, 2^53), `epoch` below 2^32, `operation` below 2^16.
 */
export interface RandomKey {
  seed: number;
  epoch: number;
  /** An image's id, or 0 for what concerns no single image. */
  image: number;
  /** Tells independent uses apart: the place of an operation in the list of preprocessing operations. */
  operation: number;
  /**
   * How often the image came in this epoch before, for samplers that repeat images, so that each time is augmented in its own
   * way; numbers that differ by 2048 give the same stream. Default 0.
   */
  repeat?: number;
}

/** Repeats that have streams of their own: what fits above an image id's 53 bits. */
const REPEATS = 2 ** 11;

/** Operation numbers that are not places in a list of preprocessing operations. */
export const RandomOperation = {
  shuffle: 0xffff,
  sample: 0xfffe,
  repeat: 0xfffd,
  size: 0xfffc,
  weight: 0xfffb,
} as const;

/** The random numbers of one (seed, epoch, image, operation): always the same ones, independent of all other streams. */
export class CounterRandom {
  readonly #words = new Uint32Array(4);
  readonly #c1: number;
  readonly #c2: number;
  readonly #c3: number;
  readonly #k0: number;
  readonly #k1: number;
  readonly #operation: number;
  #block = 0;
  #used = 4;

  constructor({ seed, epoch, image, operation, repeat = 0 }: RandomKey) {
    for (const [name, value] of Object.entries({ seed, epoch, image, operation, repeat })) {
      check(
        Number.isSafeInteger(value) && value >= 0,
        "CounterRandom",
        () => `${name} must be an integer >= 0, got ${value}`,
      );
    }
    check(
      epoch < TWO_32 && operation <= 0xffff,
      "CounterRandom",
      () => `epoch ${epoch} or operation ${operation} is too large`,
    );
    this.#k0 = seed % TWO_32;
    this.#k1 = Math.floor(seed / TWO_32);
    this.#c1 = epoch;
    this.#c2 = image % TWO_32;
    this.#c3 = (((repeat % REPEATS) << 21) | Math.floor(image / TWO_32)) >>> 0;
    this.#operation = operation;
  }

  /** The next 32 random bits. A stream holds 2^18 of them. */
  bits(): number {
    if (this.#used === 4) {
      check(this.#block <= 0xffff, "CounterRandom", () => "more than 2^18 numbers drawn from one stream");
      // Operation and block share the first counter word: 16 bits each.
      const c0 = ((this.#operation << 16) | this.#block++) >>> 0;
      philox4x32(this.#words, c0, this.#c1, this.#c2, this.#c3, this.#k0, this.#k1);
      this.#used = 0;
    }
    return this.#words[this.#used++] as number;
  }

  /** Uniform in [0, 1), a multiple of 2^-32. */
  next(): number {
    return this.bits() / TWO_32;
  }

  /** Uniform in [low, high). */
  uniform(low: number, high: number): number {
    return low + (high - low) * this.next();
  }

  /** Log-uniform in [low, high): a factor and its inverse are equally likely. 0 < low <= high. */
  logUniform(low: number, high: number): number {
    return low * (high / low) ** this.next();
  }

  /** A uniform integer in [0, n). The bias is below n / 2^32. */
  integer(n: number): number {
    return Math.floor(this.next() * n);
  }

  /** True with probability p. */
  chance(p: number): boolean {
    return this.next() < p;
  }

  /** Normal with mean 0 and standard deviation 1 (Box-Muller). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log((this.bits() + 1) / TWO_32));
    return radius * Math.cos(2 * Math.PI * this.next());
  }
}

/** Random numbers that concern a whole epoch, as many as it takes: they depend on seed, epoch and operation alone. */
export class EpochRandom {
  readonly #key: Omit<RandomKey, "image">;
  #random: CounterRandom;
  #stream = 0;
  #left: number;

  constructor(seed: number, epoch: number, operation: number) {
    this.#key = { seed, epoch, operation };
    this.#random = new CounterRandom({ ...this.#key, image: 0 });
    this.#left = EpochRandom.#perStream;
  }

  /** Numbers of one stream; the image part of the key numbers the streams. */
  static readonly #perStream = 1 << 18;

  /** The next 32 random bits. */
  bits(): number {
    if (this.#left === 0) {
      this.#random = new CounterRandom({ ...this.#key, image: ++this.#stream });
      this.#left = EpochRandom.#perStream;
    }
    this.#left--;
    return this.#random.bits();
  }

  /** A uniform integer in [0, n). The bias is below n / 2^32. */
  integer(n: number): number {
    return Math.floor((this.bits() / TWO_32) * n);
  }

  /** Uniform in (0, 1), of 52 bits: fine enough to choose among millions of images by their weights. */
  uniform(): number {
    return ((this.bits() >>> 6) * 2 ** 26 + (this.bits() >>> 6) + 0.5) / 2 ** 52;
  }

  /** Shuffles in place (Fisher-Yates). */
  shuffle<T extends Uint32Array | Uint8Array>(values: T): T {
    for (let i = values.length - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      const kept = values[i] as number;
      values[i] = values[j] as number;
      values[j] = kept;
    }
    return values;
  }
}

/** The numbers 0..n-1. A plain loop: Uint32Array.from with a function takes many times as long. */
export function range(n: number): Uint32Array {
  const values = new Uint32Array(n);
  for (let i = 0; i < n; i++) values[i] = i;
  return values;
}

/** A permutation of 0..n-1 that depends on the seed and the epoch alone. */
export function shuffledOrder(n: number, seed: number, epoch: number): Uint32Array {
  return new EpochRandom(seed, epoch, RandomOperation.shuffle).shuffle(range(n));
}

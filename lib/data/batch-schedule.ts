import { check } from "../native/error";
import type { BatchSampler } from "./batch-sampler";
import type { LoaderState } from "./data-loader";
import { EpochRandom, RandomOperation, range } from "./random";
import { type SampledImages, type SampledPass, type Sampler, SequentialSampler, ShuffleSampler } from "./sampler";
import type { Insertion } from "./targets";

/** A batch's place: its pass (epoch), and its number in that pass. */
export interface BatchPlace {
  epoch: number;
  index: number;
}

/** What a batch is made of. */
export interface ScheduledBatch {
  /** Places of its images in the loader's list. */
  members: Uint32Array;
  /** How often each of them came in the pass before, in batches of any rank. */
  repeats: Uint16Array;
}

export interface ScheduleOptions {
  /** The loader's name and what its images are, for errors. */
  name: string;
  data: string;
  /** Those of each pass, where they become more while it goes on. */
  images: SampledImages | GrowingImages;
  /** Default: ShuffleSampler with `shuffle`, else SequentialSampler. */
  sampler?: Sampler;
  /** Default: batches are cut from the sampler's order as it is. */
  batchSampler?: BatchSampler;
  /** Default true; not beside `sampler`. */
  shuffle?: boolean;
  seed: number;
  /** Images in a batch of this rank. */
  batchSize: number;
  /** This process among those that share the data, from 0. Default 0 of 1. */
  rank?: number;
  ranks?: number;
  /** Whether images that do not fill a last batch of all ranks are left out. Default: unless in sequential order. */
  dropLast?: boolean;
}

/** Images that may become more, and be drawn more often, from pass to pass; what is asked about a pass stays as it was. */
export interface GrowingImages {
  sampledAt(epoch: number): SampledImages;
  /** Images that are drawn more or less often than others in a pass, by place. */
  weightsAt(epoch: number): ReadonlyMap<number, number>;
  /** Images that take others' places in a batch of all ranks. */
  insertionsAt(place: BatchPlace): readonly Insertion[];
}

interface Pass {
  images: SampledImages;
  members: Uint32Array;
  repeats: Uint16Array;
  /** Batches. */
  length: number;
  fingerprint: string;
}

/** Repeats of images that take others' places: augmented in another way than in their turns. */
const FIRST_INSERTED = 1 << 10;

/** Passes kept: that of the batch handed out last, and those of batches prepared ahead. */
const KEPT_PASSES = 3;

/**
 * Which images each batch has, pass after pass, on each rank. It holds no position and does not depend on when it is asked.
 *
 * Ranks: batches of all ranks together are cut from one order, each rank's share from those, so that R ranks with B images each train
 * on the same images in the same steps as one with R * B. All ranks have the same number of batches, of equal sizes. At the end of
 * a pass the images that fill no batch of all ranks are left out (dropLast), or divided evenly, with images from the pass's
 * start where their number is no multiple of the ranks.
 */
export class BatchSchedule {
  readonly #options: ScheduleOptions;
  readonly #sampler: Sampler;
  readonly #rank: number;
  readonly #ranks: number;
  readonly #dropLast: boolean;
  readonly #shuffle: boolean;
  /** By epoch, the one asked for last at the end. */
  readonly #passes = new Map<number, Pass>();
  readonly #images: GrowingImages;
  #newest = -1;

  constructor(options: ScheduleOptions) {
    const { name, sampler, batchSize, seed, rank = 0, ranks = 1, images } = options;
    check(
      sampler === undefined || options.shuffle === undefined,
      name,
      () => "shuffle and sampler are both given, expected one of them",
    );
    for (const [option, value, least] of [
      ["batchSize", batchSize, 1],
      ["seed", seed, 0],
      ["ranks", ranks, 1],
      ["rank", rank, 0],
    ] as const) {
      const good = Number.isSafeInteger(value) && value >= least;
      check(good, name, () => `${option} must be an integer >= ${least}, got ${value}`);
    }
    check(rank < ranks, name, () => `rank must be below ranks, got rank ${rank} of ${ranks}`);
    this.#options = options;
    this.#sampler = sampler ?? (options.shuffle === false ? new SequentialSampler() : new ShuffleSampler());
    this.#shuffle = !(this.#sampler instanceof SequentialSampler);
    this.#dropLast = options.dropLast ?? this.#shuffle;
    this.#rank = rank;
    this.#ranks = ranks;
    this.#images =
      "sampledAt" in images ? images : { sampledAt: () => images, weightsAt: () => new Map(), insertionsAt: () => [] };
  }

  /** Batches in a pass. */
  length(epoch: number): number {
    return this.#pass(epoch).length;
  }

  /** The last pass whose order has been asked for; -1 before the first. */
  get newestPass(): number {
    return this.#newest;
  }

  /** Images of a batch of all ranks together. */
  sizeOf({ epoch, index }: BatchPlace): number {
    const all = this.#options.batchSize * this.#ranks;
    return Math.min(all, this.#pass(epoch).members.length - index * all);
  }

  batch({ epoch, index }: BatchPlace): ScheduledBatch {
    const pass = this.#pass(epoch);
    const all = this.#options.batchSize * this.#ranks;
    const size = this.sizeOf({ epoch, index }) / this.#ranks;
    const first = this.#rank * size;
    const start = index * all + first;
    const members = pass.members.subarray(start, start + size);
    const repeats = pass.repeats.subarray(start, start + size);
    const insertions = this.#images
      .insertionsAt({ epoch, index })
      .filter(({ slot }) => slot >= first && slot < first + size);
    if (insertions.length === 0) return { members, repeats };
    const own = { members: members.slice(), repeats: repeats.slice() };
    for (const { slot, place, turn } of insertions) {
      own.members[slot - first] = place;
      own.repeats[slot - first] = FIRST_INSERTED + turn;
    }
    return own;
  }

  /** The place after one: that of the next pass's first batch after the last of a pass. */
  after({ epoch, index }: BatchPlace): BatchPlace {
    return index + 1 < this.length(epoch) ? { epoch, index: index + 1 } : { epoch: epoch + 1, index: 0 };
  }

  /** What a loader whose next batch is that at `place` saves. It is the same on all ranks. */
  state({ epoch, index }: BatchPlace): LoaderState {
    const { seed, batchSize, sampler, batchSampler } = this.#options;
    const { images, fingerprint } = this.#pass(epoch);
    return {
      epoch,
      position: index,
      seed,
      shuffle: this.#shuffle,
      batchSize: batchSize * this.#ranks,
      images: images.length,
      dropLast: this.#dropLast,
      ...(sampler && { sampler: JSON.stringify(sampler) }),
      ...(batchSampler && { batchSampler: JSON.stringify(batchSampler) }),
      fingerprint,
    };
  }

  /** The place of a state; an error says in what the state's loader differs from this one. */
  placeOf(state: LoaderState): BatchPlace {
    const name = `${this.#options.name}.restore`;
    const { epoch, position } = state;
    const known = Number.isSafeInteger(epoch) && epoch >= 0 && Number.isSafeInteger(position) && position >= 0;
    check(known, name, () => `there is no epoch ${epoch}, batch ${position}`);
    const own = this.state({ epoch, index: 0 });
    for (const field of ["seed", "shuffle", "batchSize", "images", "dropLast", "sampler", "batchSampler"] as const) {
      // States of earlier versions say nothing about dropLast.
      if (field === "dropLast" && state.dropLast === undefined) continue;
      const what = field === "batchSize" && this.#ranks > 1 ? `batchSize of the ${this.#ranks} ranks together` : field;
      check(
        state[field] === own[field],
        name,
        () => `${what} was ${state[field] ?? "none"}, but this loader has ${own[field] ?? "none"}`,
      );
    }
    check(state.fingerprint === undefined || state.fingerprint === own.fingerprint, name, () =>
      this.#looksAtImages
        ? `the images, their boxes, or their order in epoch ${epoch} are not those of the state`
        : `the loader has as many images as the state's, ${own.images}, but not the same ones`,
    );
    const length = this.length(epoch);
    check(
      position < length,
      name,
      () => `there is no epoch ${epoch}, batch ${position} with ${length} batches per epoch`,
    );
    return { epoch, index: position };
  }

  /** Whether the order depends on more than the number of images. */
  get #looksAtImages(): boolean {
    return this.#options.sampler !== undefined || this.#options.batchSampler !== undefined;
  }

  #pass(epoch: number): Pass {
    const known = this.#passes.get(epoch);
    const pass = known ?? this.#arrange(epoch);
    this.#passes.delete(epoch);
    this.#passes.set(epoch, pass);
    for (const oldest of this.#passes.keys()) {
      if (this.#passes.size <= KEPT_PASSES) break;
      this.#passes.delete(oldest);
    }
    return pass;
  }

  #arrange(epoch: number): Pass {
    const { name, data, seed, batchSize, batchSampler } = this.#options;
    this.#newest = Math.max(this.#newest, epoch);
    const images = this.#images.sampledAt(epoch);
    const all = batchSize * this.#ranks;
    let order = this.#sampler.order(images, { seed, epoch });
    this.#checkPlaces(order, images, this.#sampler);
    order = weighted(order, this.#images.weightsAt(epoch), { seed, epoch });
    if (batchSampler) {
      order = batchSampler.arrange(order, images, all, !this.#dropLast);
      this.#checkPlaces(order, images, batchSampler);
    }
    const length = this.#dropLast ? Math.floor(order.length / all) : Math.ceil(order.length / all);
    check(
      length > 0,
      name,
      () =>
        `${data}: epoch ${epoch} has ${order.length} images, fewer than one batch of ${all}; choose a smaller batch`,
    );
    const padding = this.#dropLast ? 0 : (this.#ranks - (order.length % this.#ranks)) % this.#ranks;
    const total = this.#dropLast ? length * all : order.length + padding;
    const members = new Uint32Array(total);
    const seen = new Uint16Array(images.length);
    const repeats = new Uint16Array(total);
    for (let i = 0; i < total; i++) {
      const member = order[i < order.length ? i : i % order.length] as number;
      members[i] = member;
      const before = seen[member] as number;
      repeats[i] = before;
      seen[member] = Math.min(before + 1, 0xffff);
    }
    // Without the padding, which depends on the number of ranks.
    const own = members.subarray(0, Math.min(total, order.length));
    const ids = hash(Float64Array.from(images.ids));
    const fingerprint = this.#looksAtImages ? hash(own, ids) : ids;
    return { images, members, repeats, length, fingerprint };
  }

  #checkPlaces(order: Uint32Array, images: SampledImages, giver: Sampler | BatchSampler): void {
    const { name } = this.#options;
    let largest = 0;
    for (let i = 0; i < order.length; i++) largest = Math.max(largest, order[i] as number);
    check(
      order.length === 0 || largest < images.length,
      name,
      () => `${giver.toJSON().name} gave image ${largest}, expected places below ${images.length}`,
    );
  }
}

/** An order in which some images come `weight` times as often, on average: their further turns lie anywhere in the pass. */
function weighted(order: Uint32Array, weights: ReadonlyMap<number, number>, { seed, epoch }: SampledPass): Uint32Array {
  if (weights.size === 0) return order;
  const random = new EpochRandom(seed, epoch, RandomOperation.weight);
  const kept: number[] = [];
  const further: number[] = [];
  for (const place of order) {
    const weight = weights.get(place);
    if (weight === undefined) kept.push(place);
    else {
      const times = Math.floor(weight) + (random.uniform() < weight % 1 ? 1 : 0);
      if (times > 0) kept.push(place);
      for (let i = 1; i < times; i++) further.push(place);
    }
  }
  const all = new Uint32Array(kept.length + further.length);
  // Which turns are the further ones: the order of the others stays as it was.
  const turns = random.shuffle(range(all.length)).subarray(0, further.length);
  const isFurther = new Uint8Array(all.length);
  for (const turn of turns) isFurther[turn] = 1;
  random.shuffle(Uint32Array.from(further)).forEach((place, i) => {
    further[i] = place;
  });
  for (let i = 0, a = 0, b = 0; i < all.length; i++) all[i] = (isFurther[i] ? further[a++] : kept[b++]) as number;
  return all;
}

/** Sixteen hexadecimal digits that stand for numbers, and for what was hashed before. */
function hash(values: Float64Array | Uint32Array, before = ""): string {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return Bun.hash
    .xxHash64(bytes, before === "" ? 0n : BigInt(`0x${before}`))
    .toString(16)
    .padStart(16, "0");
}

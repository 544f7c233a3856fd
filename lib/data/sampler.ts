import { check } from "../native/error";
import { CounterRandom, EpochRandom, RandomOperation, range, shuffledOrder } from "./random";

/** What a sampler may go by: the images of a loader, each under its place in the loader's list. */
export interface SampledImages {
  readonly length: number;
  /** (length): ids in the data set (COCO's image_id). */
  readonly ids: ArrayLike<number>;
  /** (length): height / width. */
  readonly aspectRatios: ArrayLike<number>;
  /** Class indices are below this. */
  readonly classes: number;
  /** (length + 1): image i has the boxes starts[i] to starts[i + 1] - 1; crowds are none of them. */
  readonly starts: ArrayLike<number>;
  /** Class index of each box. */
  readonly labels: ArrayLike<number>;
}

/** A sampler's name and its options: what tells apart two samplers that give other orders. */
export interface SamplerJson {
  name: string;
  [option: string]: string | number | boolean;
}

/** Which pass over the data is to be ordered. */
export interface SampledPass {
  seed: number;
  epoch: number;
}

/**
 * Decides which images a pass (epoch) over the data has, and in which order. A sampler of one's own is a class with these two
 * methods:
 *
 * ```ts
 * class LargestFirst extends Sampler {
 *   toJSON() { return { name: "LargestFirst" }; }
 *   order(images: SampledImages) {
 *     const boxes = (i: number) => images.starts[i + 1]! - images.starts[i]!;
 *     return Uint32Array.from({ length: images.length }, (_, i) => i).sort((a, b) => boxes(b) - boxes(a));
 *   }
 * }
 * ```
 */
export abstract class Sampler {
  /** Kept in a loader's state: going on with another sampler is refused. */
  abstract toJSON(): SamplerJson;

  /**
   * The images of a pass by their places, in order. They may repeat or be left out, and passes may differ in length. Must depend on
   * the arguments and the sampler's options alone: a state is restored by ordering its pass again, and each rank orders it
   * for itself. Draw with EpochRandom or CounterRandom, keyed by seed and epoch.
   */
  abstract order(images: SampledImages, pass: SampledPass): Uint32Array;
}

/** Each image once, by ascending id. */
export class SequentialSampler extends Sampler {
  override toJSON(): SamplerJson {
    return { name: "SequentialSampler" };
  }

  override order({ length }: SampledImages): Uint32Array {
    return range(length);
  }
}

/** Each image once, in an order of its own in each pass. */
export class ShuffleSampler extends Sampler {
  override toJSON(): SamplerJson {
    return { name: "ShuffleSampler" };
  }

  override order({ length }: SampledImages, { seed, epoch }: SampledPass): Uint32Array {
    return shuffledOrder(length, seed, epoch);
  }
}

export interface FirstImagesOptions {
  /** Of the loader's list, which goes by ascending id. */
  count: number;
  /** Whether each pass has an order of its own. Default true. */
  shuffle?: boolean;
  /** Images in a pass, which come in turns. Default: each once. */
  samples?: number;
}

/** The first images alone: a training that cannot learn even those by heart has an error. */
export class FirstImages extends Sampler {
  readonly #count: number;
  readonly #shuffle: boolean;
  readonly #samples: number;

  constructor({ count, shuffle = true, samples = count }: FirstImagesOptions) {
    super();
    for (const [name, value] of Object.entries({ count, samples })) {
      const good = Number.isSafeInteger(value) && value >= 1;
      check(good, "FirstImages", () => `${name} must be an integer >= 1, got ${value}`);
    }
    this.#count = count;
    this.#shuffle = shuffle;
    this.#samples = samples;
  }

  override toJSON(): SamplerJson {
    return { name: "FirstImages", count: this.#count, samples: this.#samples, shuffle: this.#shuffle };
  }

  override order({ length }: SampledImages, { seed, epoch }: SampledPass): Uint32Array {
    check(this.#count <= length, "FirstImages", () => `expected at least ${this.#count} images, got ${length}`);
    const turn = this.#shuffle ? shuffledOrder(this.#count, seed, epoch) : range(this.#count);
    return Uint32Array.from({ length: this.#samples }, (_, i) => turn[i % this.#count] as number);
  }
}

export interface WeightedSamplerOptions {
  /** Weight of each image, 0 or more: an array in the loader's order, or a function of the image's place. */
  weights: ArrayLike<number> | ((image: number, images: SampledImages) => number);
  /** Images in a pass. Default: as many as there are. */
  samples?: number;
  /** Whether an image may come several times in a pass. Default true. */
  replacement?: boolean;
}

/**
 * Images with a probability in proportion to their weights. Without replacement, the next image is always drawn from those left
 * over, by weight (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters 97, 2006).
 */
export class WeightedSampler extends Sampler {
  readonly #weights: WeightedSamplerOptions["weights"];
  readonly #samples: number | undefined;
  readonly #replacement: boolean;

  constructor({ weights, samples, replacement = true }: WeightedSamplerOptions) {
    super();
    checkSamples("WeightedSampler", samples);
    this.#weights = typeof weights === "function" ? weights : Float64Array.from(weights);
    this.#samples = samples;
    this.#replacement = replacement;
  }

  override toJSON(): SamplerJson {
    return { name: "WeightedSampler", samples: this.#samples ?? "all", replacement: this.#replacement };
  }

  override order(images: SampledImages, { seed, epoch }: SampledPass): Uint32Array {
    const weights = this.#weightsOf(images);
    const samples = this.#samples ?? images.length;
    const random = new EpochRandom(seed, epoch, RandomOperation.sample);
    return this.#replacement
      ? drawWithReplacement(weights, samples, random)
      : this.#withoutReplacement(weights, random);
  }

  #weightsOf(images: SampledImages): Float64Array {
    const given = this.#weights;
    check(
      typeof given === "function" || given.length === images.length,
      "WeightedSampler",
      () => `${(given as ArrayLike<number>).length} weights for ${images.length} images`,
    );
    const weights = new Float64Array(images.length);
    for (let i = 0; i < weights.length; i++) {
      const weight = typeof given === "function" ? given(i, images) : (given[i] as number);
      check(
        weight >= 0 && weight < Infinity,
        "WeightedSampler",
        () => `the weight of image ${images.ids[i]} is ${weight}, expected a number >= 0`,
      );
      weights[i] = weight;
    }
    check(
      weights.some((weight) => weight > 0),
      "WeightedSampler",
      () => "all weights are 0",
    );
    return weights;
  }

  #withoutReplacement(weights: Float64Array, random: EpochRandom): Uint32Array {
    const keys = weights.map((weight) => Math.log(random.uniform()) / weight);
    const drawable = range(weights.length).filter((i) => (weights[i] as number) > 0);
    const samples = this.#samples ?? drawable.length;
    check(
      samples <= drawable.length,
      "WeightedSampler",
      () => `${samples} samples without replacement, but ${drawable.length} images have a weight above 0`,
    );
    return drawable.sort((a, b) => (keys[b] as number) - (keys[a] as number) || a - b).subarray(0, samples);
  }
}

/** `samples` places, each drawn in proportion to `weights`, some of which are above 0. */
function drawWithReplacement(weights: Float64Array, samples: number, random: EpochRandom): Uint32Array {
  const sums = new Float64Array(weights.length);
  let sum = 0;
  for (let i = 0; i < weights.length; i++) sums[i] = sum += weights[i] as number;
  const last = weights.findLastIndex((weight) => weight > 0);
  const order = new Uint32Array(samples);
  for (let i = 0; i < samples; i++) {
    const wanted = random.uniform() * sum;
    // The first place whose sum is above: never one of weight 0.
    let low = 0;
    let high = last;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((sums[middle] as number) > wanted) high = middle;
      else low = middle + 1;
    }
    order[i] = low;
  }
  return order;
}

export interface ClassBalancedSamplerOptions {
  /** Images in a pass. Default: as many as there are. */
  samples?: number;
  /** Share of a pass that images without boxes make up, in [0, 1). Default 0: none of them comes. */
  background?: number;
}

/**
 * Each class equally often: classes take turns, in a new order each round, and a class's images take turns within it, in a new order
 * each time all have come (class-aware sampling: Shen, Lin and Huang, "Relay Backpropagation for Effective Learning of Deep
 * Convolutional Neural Networks", ECCV 2016). What is balanced are the classes that images are drawn for; an image brings its
 * boxes of other classes along.
 */
export class ClassBalancedSampler extends Sampler {
  readonly #samples: number | undefined;
  readonly #background: number;

  constructor({ samples, background = 0 }: ClassBalancedSamplerOptions = {}) {
    super();
    checkSamples("ClassBalancedSampler", samples);
    check(
      background >= 0 && background < 1,
      "ClassBalancedSampler",
      () => `background must be in [0, 1), got ${background}`,
    );
    this.#samples = samples;
    this.#background = background;
  }

  override toJSON(): SamplerJson {
    return { name: "ClassBalancedSampler", samples: this.#samples ?? "all", background: this.#background };
  }

  override order(images: SampledImages, { seed, epoch }: SampledPass): Uint32Array {
    const random = new EpochRandom(seed, epoch, RandomOperation.sample);
    const samples = this.#samples ?? images.length;
    const members = imagesOfClasses(images);
    const empty = range(images.length).filter((i) => images.starts[i] === images.starts[i + 1]);
    const background = Math.round(this.#background * samples);
    check(members.length > 0, "ClassBalancedSampler", () => "no image has boxes");
    check(
      background === 0 || empty.length > 0,
      "ClassBalancedSampler",
      () => `background is ${this.#background}, but all images have boxes`,
    );
    const turns = members.map((list) => new Turns(list, random));
    const classTurns = new Turns(range(turns.length), random);
    const emptyTurns = new Turns(empty, random);
    const isBackground = random.shuffle(new Uint8Array(samples).fill(1, 0, background));
    const order = new Uint32Array(samples);
    for (let i = 0; i < samples; i++) {
      order[i] = (isBackground[i] ? emptyTurns : (turns[classTurns.next()] as Turns)).next();
    }
    return order;
  }
}

/** Elements of a list one after the other, in a new order whenever all have come. */
class Turns {
  #at = 0;

  constructor(
    private readonly list: Uint32Array,
    private readonly random: EpochRandom,
  ) {}

  next(): number {
    if (this.#at === 0) this.random.shuffle(this.list);
    const value = this.list[this.#at] as number;
    this.#at = (this.#at + 1) % this.list.length;
    return value;
  }
}

/** The images that have boxes of a class, for each class that has any. */
function imagesOfClasses(images: SampledImages): Uint32Array[] {
  const counts = imagesPerClass(images);
  const members = Array.from(counts, (count) => new Uint32Array(count));
  const filled = new Uint32Array(images.classes);
  for (let i = 0; i < images.length; i++) {
    for (let k = images.starts[i] as number; k < (images.starts[i + 1] as number); k++) {
      const label = images.labels[k] as number;
      const list = members[label] as Uint32Array;
      const at = filled[label] as number;
      if (at > 0 && list[at - 1] === i) continue;
      list[at] = i;
      filled[label] = at + 1;
    }
  }
  return members.filter((list) => list.length > 0);
}

/** How many images have boxes of each class. */
function imagesPerClass({ length, classes, starts, labels }: SampledImages): Uint32Array {
  const counts = new Uint32Array(classes);
  const lastSeen = new Int32Array(classes).fill(-1);
  for (let i = 0; i < length; i++) {
    for (let k = starts[i] as number; k < (starts[i + 1] as number); k++) {
      const label = labels[k] as number;
      if (lastSeen[label] !== i) counts[label] = (counts[label] as number) + 1;
      lastSeen[label] = i;
    }
  }
  return counts;
}

export interface RepeatFactorSamplerOptions {
  /** Classes in a smaller share of the images than this are repeated: the paper's t. Default 0.001. */
  threshold?: number;
}

/**
 * Images with rare classes several times a pass (repeat factor sampling: Gupta, Dollár and Girshick, "LVIS: A Dataset for Large
 * Vocabulary Instance Segmentation", CVPR 2019). Class c, which a share f(c) of the images have, gets the factor r(c) = max(1,
 * sqrt(t / f(c))), an image the largest factor of its classes, 1 without any. The fraction of a factor is rounded at random, for
 * each pass and image by itself, so that the factor holds on average; passes differ somewhat in length.
 */
export class RepeatFactorSampler extends Sampler {
  readonly threshold: number;

  constructor({ threshold = 0.001 }: RepeatFactorSamplerOptions = {}) {
    super();
    check(
      threshold > 0 && threshold <= 1,
      "RepeatFactorSampler",
      () => `threshold must be above 0 and at most 1, got ${threshold}`,
    );
    this.threshold = threshold;
  }

  override toJSON(): SamplerJson {
    return { name: "RepeatFactorSampler", threshold: this.threshold };
  }

  /** The factor of each image. */
  factors(images: SampledImages): Float64Array {
    const { length, starts, labels } = images;
    const ofClass = Array.from(imagesPerClass(images), (count) => {
      return Math.max(1, Math.sqrt(this.threshold / (count / length)));
    });
    const factors = new Float64Array(length).fill(1);
    for (let i = 0; i < length; i++) {
      for (let k = starts[i] as number; k < (starts[i + 1] as number); k++) {
        factors[i] = Math.max(factors[i] as number, ofClass[labels[k] as number] as number);
      }
    }
    return factors;
  }

  override order(images: SampledImages, { seed, epoch }: SampledPass): Uint32Array {
    const order: number[] = [];
    const factors = this.factors(images);
    for (let i = 0; i < factors.length; i++) {
      const factor = factors[i] as number;
      let times = Math.floor(factor);
      if (times < factor) {
        // Keyed by the image: images that come or go leave the rounding of all others as it was.
        const key = { seed, epoch, image: images.ids[i] as number, operation: RandomOperation.repeat };
        if (new CounterRandom(key).chance(factor - times)) times++;
      }
      for (let k = 0; k < times; k++) order.push(i);
    }
    return new EpochRandom(seed, epoch, RandomOperation.shuffle).shuffle(Uint32Array.from(order));
  }
}

function checkSamples(name: string, samples: number | undefined): void {
  check(
    samples === undefined || (Number.isSafeInteger(samples) && samples >= 1),
    name,
    () => `samples must be an integer >= 1, got ${samples}`,
  );
}

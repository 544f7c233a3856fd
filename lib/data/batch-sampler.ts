import { check } from "../native/error";
import type { SampledImages, SamplerJson } from "./sampler";

/** Decides which images of a pass go into a batch together. One of one's own is a class with these two methods. */
export abstract class BatchSampler {
  /** Kept in a loader's state, as that of a Sampler. */
  abstract toJSON(): SamplerJson;

  /**
   * The images of a pass in the order of their batches: entries k * batchSize to (k + 1) * batchSize - 1 are batch k; what
   * follows the last full batch makes a shorter one. Must depend on the arguments alone.
   *
   * @param order as a Sampler gave it
   * @param batchSize of all ranks together
   * @param complete whether each image of `order` must be there; else what fills no batch may be left out
   */
  abstract arrange(order: Uint32Array, images: SampledImages, batchSize: number, complete: boolean): Uint32Array;
}

export interface AspectRatioBatchesOptions {
  /**
   * Groups by powers of two between 1/2 and 2: height / width is compared with 2 k + 1 bounds at equal distances in their
   * logarithm; 0 tells only images that are wider than high from others. Default 3, as in torchvision's training script.
   */
  k?: number;
}

/**
 * Batches of images whose aspect ratios are alike, as torchvision's GroupedBatchSampler makes them: images are taken in their
 * order, and each time enough of a group have come they are a batch. At the end of a pass the groups with most images left over
 * are filled up with images of their own that came before, until there are as many batches as without grouping, or, where each
 * image must come, until no image is left over.
 */
export class AspectRatioBatches extends BatchSampler {
  readonly #k: number;
  readonly #bounds: number[];

  constructor({ k = 3 }: AspectRatioBatchesOptions = {}) {
    super();
    check(Number.isSafeInteger(k) && k >= 0, "AspectRatioBatches", () => `k must be an integer >= 0, got ${k}`);
    this.#k = k;
    this.#bounds = k === 0 ? [1] : Array.from({ length: 2 * k + 1 }, (_, i) => 2 ** (i / k - 1));
  }

  override toJSON(): SamplerJson {
    return { name: "AspectRatioBatches", k: this.#k };
  }

  /** The group, from 0, of height / width. */
  groupOf(aspectRatio: number): number {
    const above = this.#bounds.findIndex((bound) => aspectRatio < bound);
    return above < 0 ? this.#bounds.length : above;
  }

  override arrange(order: Uint32Array, images: SampledImages, batchSize: number, complete: boolean): Uint32Array {
    const batches: number[] = [];
    const all = new Map<number, number[]>();
    // Of images that are in no batch yet. A group that filled a batch goes to the end: the order decides between equal sizes.
    const open = new Map<number, number[]>();
    for (const image of order) {
      const group = this.groupOf(images.aspectRatios[image] as number);
      append(all, group, image);
      const members = append(open, group, image);
      if (members.length < batchSize) continue;
      for (const member of members) batches.push(member);
      open.delete(group);
      open.set(group, []);
    }
    const missing = Math.floor(order.length / batchSize) - batches.length / batchSize;
    const largestFirst = [...open].filter(([, members]) => members.length > 0);
    largestFirst.sort(([, a], [, b]) => b.length - a.length);
    for (const [group, members] of complete ? largestFirst : largestFirst.slice(0, missing)) {
      const earlier = all.get(group) as number[];
      for (let i = 0; i < batchSize; i++) {
        batches.push(members[i] ?? (earlier[(i - members.length) % earlier.length] as number));
      }
    }
    return Uint32Array.from(batches);
  }
}

/** Adds to a group's list; that list. */
function append(groups: Map<number, number[]>, group: number, image: number): number[] {
  const list = groups.get(group) ?? [];
  groups.set(group, list);
  list.push(image);
  return list;
}

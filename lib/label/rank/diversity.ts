/** Choosing images that are unlike those that are labelled, and unlike each other. */
import { check } from "../../native/error";

export interface GreedyOptions {
  /** How many are chosen; all where it is more. */
  count: number;
  /** Features of what is labelled already. Default: nothing is. */
  labelled?: readonly Float32Array[];
  /** What each image is worth besides, added to its distance, which is 0 to 1. Default 0. */
  values?: readonly number[];
  /** What the distance counts. Default 1. */
  weight?: number;
}

export interface GreedyChoice {
  index: number;
  /** When it was chosen: how far it was from the nearest that is labelled or was chosen, of the farthest at the start; 0 to 1. */
  distance: number;
  /** weight * distance + its own value. */
  value: number;
}

function distanceOf(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let k = 0; k < a.length; k++) sum += (a[k]! - b[k]!) ** 2;
  return Math.sqrt(sum);
}

function meanOf(features: readonly Float32Array[]): Float32Array {
  const mean = new Float32Array(features[0]?.length ?? 0);
  for (const row of features) for (let k = 0; k < mean.length; k++) mean[k]! += row[k]! / features.length;
  return mean;
}

/**
 * k-center greedy (Sener and Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
 * algorithm 1): again and again the image that is farthest from all that are labelled or were chosen before, by Euclidean
 * distance; the largest distance of any image that is left is at most twice the best possible. Where nothing is labelled, the first
 * is the one nearest to the mean of all, not an outlier. With `values`, it chooses by weight * distance + value instead.
 *
 * @throws DlfsError for features of different lengths, or that are no numbers
 */
export function kCenterGreedy(features: readonly Float32Array[], options: GreedyOptions): GreedyChoice[] {
  const { count, labelled = [], values, weight = 1 } = options;
  const length = features[0]?.length ?? 0;
  for (const [i, row] of [...features, ...labelled].entries()) {
    check(
      row.length === length && row.every(Number.isFinite),
      "kCenterGreedy",
      () => `row ${i}: expected ${length} finite numbers, got ${row.length}${row.length === length ? ", not all" : ""}`,
    );
  }
  check(
    values === undefined || values.length === features.length,
    "kCenterGreedy",
    () => `expected ${features.length} values, got ${values?.length}`,
  );
  const nearest = new Float64Array(features.length).fill(Number.POSITIVE_INFINITY);
  const cover = (center: Float32Array) => {
    for (const [i, row] of features.entries()) nearest[i] = Math.min(nearest[i]!, distanceOf(row, center));
  };
  for (const row of labelled) cover(row);
  const farthest = () => nearest.reduce((most, distance) => Math.max(most, distance), 0);
  let scale = labelled.length > 0 ? farthest() : Number.POSITIVE_INFINITY;
  const mean = meanOf(features);
  const fromMean = features.map((row) => distanceOf(row, mean));

  const left = new Set(features.keys());
  const chosen: GreedyChoice[] = [];
  while (left.size > 0 && chosen.length < count) {
    let best: GreedyChoice | null = null;
    for (const index of left) {
      const distance = nearest[index] === Number.POSITIVE_INFINITY ? 1 : scale > 0 ? nearest[index]! / scale : 0;
      const value = weight * distance + (values?.[index] ?? 0);
      const closer = (other: number) => fromMean[index]! < fromMean[other]!;
      if (best === null || value > best.value || (value === best.value && closer(best.index))) {
        best = { index, distance, value };
      }
    }
    const { index } = best as GreedyChoice;
    chosen.push(best as GreedyChoice);
    left.delete(index);
    cover(features[index] as Float32Array);
    if (scale === Number.POSITIVE_INFINITY) scale = farthest();
  }
  return chosen;
}

/** The order in which unlabelled images teach most. */
import { check } from "../../native/error";
import type { FoundBox } from "./boxes";
import { kCenterGreedy } from "./diversity";
import { type Aggregation, balance, classWeights, committeeDisagreement, margin, uncertainty } from "./informativeness";

/** What images can be ordered by. */
export const criteria = ["uncertainty", "margin", "disagreement", "diversity", "balance"] as const;
export type Criterion = (typeof criteria)[number];

/** What is known of an unlabelled image. */
export interface Candidate {
  readonly name: string;
  /** What the (first) model found on it. */
  readonly found: readonly FoundBox[];
  /** What else was found on it: by other models, or on its mirror image. */
  readonly others?: readonly (readonly FoundBox[])[];
  /** What it is like; needed for diversity. */
  readonly features?: Float32Array;
}

export interface RankOptions {
  /** What counts, and how much, 0 or more: one, or several that are mixed. */
  weights: Partial<Record<Criterion, number>>;
  /** How many images are chosen. Default: all. */
  count?: number;
  /** Default "sum". */
  aggregation?: Aggregation;
  /** Labels of each class so far. Default, where nothing is known: those that are expected of the candidates, sums of scores. */
  classCounts?: readonly number[];
  /** How many classes there are. */
  classes: number;
  /** Features of the labelled images. Default: nothing is labelled. */
  labelled?: readonly Float32Array[];
}

export interface RankedImage {
  /** Of the candidates. */
  readonly index: number;
  readonly name: string;
  /** What it is ordered by. */
  readonly value: number;
  /** Of each criterion that counts, its own value; the distance at its turn is diversity's. */
  readonly values: Partial<Record<Criterion, number>>;
}

/** Values from 0 to 1, the least to the most; all 0 where they are the same. */
export function normalised(values: readonly number[]): number[] {
  let [least, most] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of values) [least, most] = [Math.min(least, value), Math.max(most, value)];
  return values.map((value) => (most > least ? (value - least) / (most - least) : 0));
}

function expectedCounts(candidates: readonly Candidate[], classes: number): number[] {
  const counts = new Array<number>(classes).fill(0);
  for (const { found } of candidates) for (const { label, score } of found) counts[label]! += score;
  return counts;
}

/**
 * Orders images by what labelling them would teach, most first; of equal ones the first candidate. One criterion orders by its own
 * value, several by the weighted sum of their values, each normalised to 0 to 1 over the candidates and the weights to a sum
 * of 1. Diversity is chosen greedily: its part is the distance to what is labelled and chosen before.
 *
 * @throws DlfsError for weights that are negative, or none above 0; where diversity counts, for candidates without features
 */
export function rankImages(candidates: readonly Candidate[], options: RankOptions): RankedImage[] {
  const { weights, count = candidates.length, aggregation = "sum", classes, labelled } = options;
  const given = criteria.flatMap((name) => (weights[name] === undefined ? [] : [{ name, weight: weights[name] }]));
  check(
    given.every(({ weight }) => Number.isFinite(weight) && weight >= 0) && given.some(({ weight }) => weight > 0),
    "rankImages",
    () => `weights: expected numbers from 0, one above it, got ${JSON.stringify(weights)}`,
  );
  const total = given.reduce((sum, { weight }) => sum + weight, 0);
  const used = given.filter(({ weight }) => weight > 0).map(({ name, weight }) => ({ name, weight: weight / total }));
  const perClass = classWeights(options.classCounts ?? expectedCounts(candidates, classes));
  const measures: Record<Exclude<Criterion, "diversity">, (image: Candidate) => number> = {
    uncertainty: ({ found }) => uncertainty(found, aggregation),
    margin: ({ found }) => margin(found, aggregation),
    disagreement: ({ found, others = [] }) => committeeDisagreement([found, ...others]),
    balance: ({ found }) => balance(found, perClass, aggregation),
  };
  const own = used.flatMap(({ name, weight }) => {
    return name === "diversity" ? [] : [{ name, weight, values: candidates.map(measures[name]) }];
  });
  const alone = used.length === 1;
  const sums = new Array<number>(candidates.length).fill(0);
  for (const { weight, values } of own) {
    const parts = alone ? values : normalised(values);
    for (const [i, part] of parts.entries()) sums[i]! += weight * part;
  }
  const ranked = (index: number, value: number, distance?: number): RankedImage => ({
    ...{ index, name: (candidates[index] as Candidate).name, value },
    values: {
      ...Object.fromEntries(own.map(({ name, values }) => [name, values[index]])),
      ...(distance !== undefined && { diversity: distance }),
    },
  });
  const diversity = used.find(({ name }) => name === "diversity");
  if (!diversity) {
    const order = [...sums.keys()].sort((a, b) => sums[b]! - sums[a]! || a - b);
    return order.slice(0, count).map((index) => ranked(index, sums[index] as number));
  }
  const features = candidates.map(({ name, features: row }) => {
    check(row !== undefined, name, () => "diversity needs its features");
    return row;
  });
  const chosen = kCenterGreedy(features, { count, labelled, values: sums, weight: diversity.weight });
  return chosen.map(({ index, value, distance }) => ranked(index, value, distance));
}

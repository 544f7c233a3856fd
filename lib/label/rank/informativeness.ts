/** What the detections on an image say of how much its labels would teach. All values are 0 or more; the higher, the more. */
import { type FoundBox, iouOf, pairBoxes } from "./boxes";

/**
 * How the values of an image's boxes become the image's: their sum, their mean or the highest. Brust, Kaeding and Denzler 2019,
 * "Active Learning for Deep Object Detection", section 3.2, compare the three, and find the sum best; it prefers images with
 * many objects, whose labels also take longer.
 */
export type Aggregation = "sum" | "mean" | "max";

export const aggregations: readonly Aggregation[] = ["sum", "mean", "max"];

/** The value of an image of its boxes' values; 0 without any. */
export function aggregate(values: readonly number[], how: Aggregation): number {
  if (values.length === 0) return 0;
  if (how === "max") return values.reduce((most, value) => Math.max(most, value));
  const sum = values.reduce((total, value) => total + value, 0);
  return how === "sum" ? sum : sum / values.length;
}

/** Entropy in bits of whether there is an object, of which a model says so with that probability: 1 at 0.5, 0 at 0 and 1. */
export function scoreEntropy(score: number): number {
  if (!(score > 0 && score < 1)) return 0;
  return -(score * Math.log2(score) + (1 - score) * Math.log2(1 - score));
}

/**
 * Uncertainty sampling by entropy (Settles 2009, "Active Learning Literature Survey", section 3.1) of the boxes' scores, which for
 * sigmoid heads are each the probability of one class against all else.
 */
export function uncertainty(found: readonly FoundBox[], how: Aggregation = "sum"): number {
  return aggregate(
    found.map(({ score }) => scoreEntropy(score)),
    how,
  );
}

/** From this IoU on, boxes of two classes are two opinions of one object. */
const SAME_OBJECT_IOU = 0.5;

/**
 * Margin between the two most likely classes of each object, as (1 - (p1 - p2))^2: Brust et al. 2019, section 3.1, "1-vs-2". The
 * runner-up is the best box of another class that overlaps by an IoU of 0.5, as suppression goes by class and leaves it there, or
 * the background, with 1 - p1, whichever is more likely. The difference counts without its sign, so that a box that is
 * surely none is as certain as one that surely is.
 */
export function margin(found: readonly FoundBox[], how: Aggregation = "sum"): number {
  const left = [...found].sort((a, b) => b.score - a.score);
  const values: number[] = [];
  while (left.length > 0) {
    const best = left.shift() as FoundBox;
    let second = 1 - best.score;
    for (let i = left.length - 1; i >= 0; i--) {
      const other = left[i] as FoundBox;
      if (iouOf(best.box, other.box) < SAME_OBJECT_IOU) continue;
      left.splice(i, 1);
      if (other.label !== best.label) second = Math.max(second, other.score);
    }
    values.push((1 - Math.abs(best.score - second)) ** 2);
  }
  return aggregate(values, how);
}

/**
 * How little two sets of detections of one image agree, 0 (the same) to 1 (nothing in common): 1 less a soft Dice coefficient
 * (Dice 1945), 2 sum(IoU min(s, t)) / (sum(s) + sum(t)), over pairs of one class, matched by IoU from 0.5 on. Boxes that
 * the other set lacks, has elsewhere, of another class or with another score disagree, by their scores.
 *
 * Between checkpoints it is query by committee (Seung, Opper and Sompolinsky 1992), between an image and its mirror image the
 * consistency of Elezi et al. 2022, "Not All Labels Are Equal".
 */
export function disagreement(a: readonly FoundBox[], b: readonly FoundBox[]): number {
  const sum = (boxes: readonly FoundBox[]) => boxes.reduce((total, { score }) => total + score, 0);
  const total = sum(a) + sum(b);
  if (total === 0) return 0;
  const one = (row: number) => a[row] as FoundBox;
  const other = (row: number) => b[row] as FoundBox;
  const pairs = pairBoxes(a, b, SAME_OBJECT_IOU, (i, j) => one(i).label === other(j).label);
  const common = pairs.reduce((c, { a: i, b: j, iou }) => c + 2 * iou * Math.min(one(i).score, other(j).score), 0);
  return Math.max(0, 1 - common / total);
}

/** The mean disagreement of all pairs of several sets; 0 of one alone. */
export function committeeDisagreement(sets: readonly (readonly FoundBox[])[]): number {
  const values = sets.flatMap((a, i) => sets.slice(i + 1).map((b) => disagreement(a, b)));
  return aggregate(values, "mean");
}

/** Detections on an image's mirror image (left and right changed), as they are on the image. */
export function mirrored(found: readonly FoundBox[], width: number): FoundBox[] {
  return found.map(({ box: [x1, y1, x2, y2], ...rest }) => ({ ...rest, box: [width - x2, y1, width - x1, y2] }));
}

/**
 * How much a box of each class is worth: (labels + classes) / (labels of the class + 1), Brust et al. 2019, section 3.3. Rare
 * classes are worth more.
 *
 * @param counts labels of each class so far; expected ones, that is sums of scores, do as well
 */
export function classWeights(counts: readonly number[]): number[] {
  const all = counts.reduce((sum, count) => sum + count, 0);
  return counts.map((count) => (all + counts.length) / (count + 1));
}

/** What an image gives to rare classes: its boxes' scores times the weights of their classes. */
export function balance(found: readonly FoundBox[], weights: readonly number[], how: Aggregation = "sum"): number {
  return aggregate(
    found.map(({ score, label }) => score * (weights[label] ?? 0)),
    how,
  );
}

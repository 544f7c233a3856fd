/** Labels that are likely wrong: where a model is confident of something else. */
import { check } from "../../native/error";
import { type Box, type FoundBox, iouOf, pairBoxes } from "../rank/boxes";

/** An object without a box, a box of another class, a box in the wrong place. */
export const labelProblems = ["missing", "wrong", "loose"] as const;
export type LabelProblem = (typeof labelProblems)[number];

export interface GivenBox {
  readonly box: Box;
  /** Class index, the model's. */
  readonly label: number;
  /** Whatever the caller knows it by. */
  readonly id?: number;
  /** A crowd, or of a class that the model does not know: what is found there is no missing box, and it is not judged. */
  readonly ignore?: boolean;
}

export interface AuditedImage {
  readonly name: string;
  readonly given: readonly GivenBox[];
  /** What the model found, also with low scores. */
  readonly found: readonly FoundBox[];
}

export interface LabelFinding {
  readonly problem: LabelProblem;
  /** Its place in the list, and its name. */
  readonly index: number;
  readonly image: string;
  /** 0 to 1; the higher, the likelier and the worse. */
  readonly value: number;
  /** The box in question; null where one is missing. */
  readonly given: GivenBox | null;
  /** What the model finds there. */
  readonly found: FoundBox;
  /** IoU of the two; of a missing box the highest with any. */
  readonly iou: number;
}

export interface AuditOptions {
  /** Detections from this score on count as confident. Default: confidentScore. */
  score?: number;
}

/** From here on two boxes are of one object. */
const SAME_IOU = 0.5;
/** Below it, a box of that object is loose. */
const LOOSE_IOU = 0.7;
/** Below it, a box is of another object. */
const NEAR_IOU = 0.1;
/** The share of confident detections that lie on boxes of their class. */
const CONFIDENT_PRECISION = 0.75;

/**
 * The score from which on a model counts as confident: the lowest from which on three of four of its detections lie on boxes of their
 * class; infinite where there is none. One for all classes: thresholds by class, as in confident learning (Northcutt, Jiang and
 * Chuang 2021), rest on few detections each, and put fewer errors that were planted first, on photos of eighty classes as on drawn
 * images of eight. The mean score, which is theirs, loses half of all errors, and lets a weak detector find much that is not there.
 */
export function confidentScore(images: readonly AuditedImage[]): number {
  const judged = images.flatMap(({ given, found }) => {
    const pairs = pairBoxes(given, found, SAME_IOU, (g, f) => !given[g]!.ignore && given[g]!.label === found[f]!.label);
    const right = new Set(pairs.map(({ b }) => b));
    const isIgnored = ({ box }: FoundBox) => given.some((one) => one.ignore && within(box, one.box) >= SAME_IOU);
    return found.flatMap((one, f) =>
      right.has(f) || !isIgnored(one) ? [{ score: one.score, right: right.has(f) }] : [],
    );
  });
  let [right, least] = [0, Number.POSITIVE_INFINITY];
  for (const [i, one] of judged.sort((a, b) => b.score - a.score).entries()) {
    if (one.right) right++;
    if (one.right && right >= CONFIDENT_PRECISION * (i + 1)) least = one.score;
  }
  return least;
}

/** The share of a box that lies within another. */
function within(box: Box, other: Box): number {
  const w = Math.min(box[2], other[2]) - Math.max(box[0], other[0]);
  const h = Math.min(box[3], other[3]) - Math.max(box[1], other[1]);
  return w > 0 && h > 0 ? (w * h) / ((box[2] - box[0]) * (box[3] - box[1])) : 0;
}

function auditImage(image: AuditedImage, index: number, confident: number): LabelFinding[] {
  const findings: LabelFinding[] = [];
  const { given, found, name } = image;
  const sure = (f: number) => found[f]!.score >= confident;
  const add = (problem: LabelProblem, value: number, g: number | null, f: number, iou: number) => {
    findings.push({
      ...{ problem, index, image: name, value, given: g === null ? null : given[g]!, found: found[f]!, iou },
    });
  };
  const [judged, explained] = [new Set<number>(), new Set<number>()];
  const free = (g: number, f: number) => !given[g]!.ignore && !judged.has(g) && !explained.has(f);
  const sameClass = (g: number, f: number) => given[g]!.label === found[f]!.label;

  // What lies on a box of its own class.
  const own = pairBoxes(given, found, SAME_IOU, (g, f) => free(g, f) && sameClass(g, f));
  const ownScore = new Map(own.map(({ a, b }) => [a, found[b]!.score]));
  for (const { b } of own) explained.add(b);

  // Wrong: another class is likelier there, and that is not the class of another box at the same place.
  const better = (g: number, f: number) => found[f]!.score > (ownScore.get(g) ?? 0);
  const other = pairBoxes(given, found, SAME_IOU, (g, f) => free(g, f) && !sameClass(g, f) && sure(f) && better(g, f));
  for (const { a, b, iou } of other) {
    add("wrong", (found[b]!.score - (ownScore.get(a) ?? 0)) * iou, a, b, iou);
    judged.add(a);
    explained.add(b);
  }

  // Loose: the same class, not quite there.
  for (const { a, b, iou } of own) {
    if (judged.has(a)) continue;
    judged.add(a);
    if (iou < LOOSE_IOU && sure(b)) add("loose", found[b]!.score * (1 - iou), a, b, iou);
  }
  for (const { a, b, iou } of pairBoxes(given, found, NEAR_IOU, (g, f) => free(g, f) && sameClass(g, f) && sure(f))) {
    add("loose", found[b]!.score * (1 - iou), a, b, iou);
    judged.add(a);
    explained.add(b);
  }

  // Missing: what is left and lies on no box at all; of several at one place the best.
  const best = [...found.keys()].sort((f, g) => found[g]!.score - found[f]!.score);
  const missing: number[] = [];
  for (const f of best) {
    if (explained.has(f) || !sure(f)) continue;
    const { box } = found[f]!;
    const iou = given.reduce((most, one) => Math.max(most, iouOf(one.box, box)), 0);
    if (iou >= SAME_IOU || missing.some((m) => iouOf(found[m]!.box, box) >= SAME_IOU)) continue;
    if (given.some((one) => one.ignore && within(box, one.box) >= SAME_IOU)) continue;
    missing.push(f);
    add("missing", found[f]!.score * (1 - iou), null, f, iou);
  }
  return findings;
}

/**
 * Boxes that are likely missing, wrong or loose, worst first, by a model's confident disagreement: the idea of ObjectLab
 * (Tkachenko, Thyagarajan and Mueller 2023, "ObjectLab: Automated Diagnosis of Mislabeled Images in Object Detection Data"),
 * whose overlooked, swapped and badly located boxes these are. Values are, of confident detections of score s:
 *
 * - missing: s (1 - IoU), with the box that overlaps it most; no box reaches an IoU of 0.5
 * - wrong: (s - t) IoU, s of another class at an IoU from 0.5 on, t the score of the box's own class there
 * - loose: s (1 - IoU), of the same class at an IoU from 0.1 to below 0.7
 *
 * Each box has one finding at most. A model that was trained on the very labels has learnt part of the errors, too.
 */
export function auditLabels(images: readonly AuditedImage[], options: AuditOptions = {}): LabelFinding[] {
  const { score = confidentScore(images) } = options;
  check(score >= 0 && (score <= 1 || score === Number.POSITIVE_INFINITY), "auditLabels", () => {
    return `score: expected 0 to 1, or Infinity, got ${score}`;
  });
  const findings = images.flatMap((image, index) => auditImage(image, index, score));
  return findings.sort((a, b) => b.value - a.value || a.index - b.index);
}

/** Top-k selection, candidate decoding and non-maximum suppression, after torchvision's RetinaNet. */
import { decode, decodeLinear, iou, type Weights } from "./boxes";
import { sigmoid } from "./elementwise";

type Numbers = ArrayLike<number>;

/** The k largest scores > threshold, of sigmoids or of the values, largest first, lower index first among equal values. */
export function topk(
  row: Numbers,
  k: number,
  threshold: number,
  kind: "sigmoid" | "values" = "sigmoid",
): { scores: Float64Array; index: Int32Array } {
  const score = kind === "sigmoid" ? sigmoid : (value: number) => value;
  const order = Array.from({ length: row.length }, (_, i) => i)
    .filter((i) => Math.fround(score(row[i]!)) > Math.fround(threshold))
    .sort((a, b) => row[b]! - row[a]! || a - b)
    .slice(0, k);
  const [scores, index] = [new Float64Array(k), new Int32Array(k).fill(-1)];
  for (const [slot, i] of order.entries()) {
    scores[slot] = score(row[i]!);
    index[slot] = i;
  }
  return { scores, index };
}

/** sqrt(sigmoid(logit) * sigmoid(centerness)) of logits (points, classes). */
export function pointScores(logits: Numbers, centerness: Numbers, classes: number): Float64Array {
  return Float64Array.from(logits, (x, i) => Math.sqrt(sigmoid(x) * sigmoid(centerness[Math.floor(i / classes)]!)));
}

export interface CandidateLayout {
  classes: number;
  /** Candidates of a class, one class after the other; 0: an index is anchor * classes + class. */
  perClass: number;
  coder: "centre" | "linear";
  weights: Weights;
}

/** Box, clipped to [0, width] x [0, height], and label of a row's candidate. */
export function candidate(
  entry: number,
  index: number,
  deltas: Numbers,
  anchors: Numbers,
  { classes, perClass, coder, weights }: CandidateLayout,
  size: readonly [number, number],
) {
  if (index < 0) return { box: [0, 0, 0, 0], label: -1 };
  const anchor = perClass > 0 ? index : Math.floor(index / classes);
  const four = (values: Numbers) => Array.from({ length: 4 }, (_, i) => values[anchor * 4 + i]!);
  const [height, width] = size;
  const [moved, grid] = [four(deltas), four(anchors)];
  const decoded = coder === "linear" ? decodeLinear(moved, grid) : decode(moved, grid, weights);
  const box = Array.from(decoded, (v, i) => Math.min(Math.max(v, 0), i % 2 === 0 ? width : height));
  return { box, label: perClass > 0 ? Math.floor(entry / perClass) : index % classes };
}

/** Greedy non-maximum suppression of one image's candidates; the indices kept, best first. */
export function nms(
  boxes: Numbers,
  scores: Numbers,
  labels: Numbers,
  threshold: number,
  classAware: boolean,
  most: number,
): number[] {
  const order = Array.from({ length: scores.length }, (_, i) => i)
    .filter((i) => labels[i]! >= 0)
    .sort((a, b) => scores[b]! - scores[a]! || a - b);
  const kept: number[] = [];
  for (const i of order) {
    if (kept.length === most) break;
    if (kept.every((j) => (classAware && labels[i] !== labels[j]) || !(iou(boxes, i, boxes, j) > threshold)))
      kept.push(i);
  }
  return kept;
}

export interface SoftNmsRules {
  kind: "linear" | "gaussian";
  iouThreshold: number;
  sigma: number;
  minScore: number;
  classAware: boolean;
  most: number;
}

/**
 * Soft-NMS (Bodla et al. 2017) of one image's candidates: what is taken, best first, and the decayed scores. Every result is
 * rounded to fp32, since equality of scores decides about the order.
 */
export function softNms(
  boxes: Numbers,
  scores: Numbers,
  labels: Numbers,
  { kind, iouThreshold, sigma, minScore, classAware, most }: SoftNmsRules,
): { keep: number[]; scores: number[] } {
  const f = Math.fround;
  const left = Array.from(scores, (score, i) => (labels[i]! >= 0 && score > f(minScore) ? score : -1));
  const [keep, taken]: [number[], number[]] = [[], []];
  while (keep.length < most) {
    const best = left.reduce((best, score, i) => (score > left[best]! ? i : best), 0);
    if (!(left[best]! > 0)) break;
    keep.push(best);
    taken.push(left[best]!);
    left[best] = -1;
    for (const [i, score] of left.entries()) {
      if (score < 0 || (classAware && labels[i] !== labels[best])) continue;
      const overlap = f(iou(boxes, i, boxes, best));
      const linear = overlap > f(iouThreshold) ? f(1 - overlap) : 1;
      const decayed = f(score * (kind === "linear" ? linear : f(Math.exp(-(overlap * overlap) / f(sigma)))));
      left[i] = decayed > f(minScore) ? decayed : -1;
    }
  }
  return { keep, scores: taken };
}

/** Top-k selection, candidate decoding and non-maximum suppression, after torchvision's RetinaNet. */
import { decode, iou, type Weights } from "./boxes";
import { sigmoid } from "./elementwise";

type Numbers = ArrayLike<number>;

/** The k largest sigmoid(row) > threshold, largest first, lower index first among equal logits. */
export function topk(row: Numbers, k: number, threshold: number): { scores: Float64Array; index: Int32Array } {
  const order = Array.from({ length: row.length }, (_, i) => i)
    .filter((i) => Math.fround(sigmoid(row[i]!)) > Math.fround(threshold))
    .sort((a, b) => row[b]! - row[a]! || a - b)
    .slice(0, k);
  const [scores, index] = [new Float64Array(k), new Int32Array(k).fill(-1)];
  for (const [slot, i] of order.entries()) {
    scores[slot] = sigmoid(row[i]!);
    index[slot] = i;
  }
  return { scores, index };
}

/** Box, clipped to [0, width] x [0, height], and label of the candidate with index anchor * classes + class. */
export function candidate(
  index: number,
  deltas: Numbers,
  anchors: Numbers,
  classes: number,
  size: readonly [number, number],
  weights: Weights,
) {
  if (index < 0) return { box: [0, 0, 0, 0], label: -1 };
  const anchor = Math.floor(index / classes);
  const four = (values: Numbers) => Array.from({ length: 4 }, (_, i) => values[anchor * 4 + i]!);
  const [height, width] = size;
  const box = Array.from(decode(four(deltas), four(anchors), weights), (v, i) =>
    Math.min(Math.max(v, 0), i % 2 === 0 ? width : height),
  );
  return { box, label: index % classes };
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

/** From head outputs to detections, on the device: what torchvision's detectors do in postprocess_detections. */
import { cast, softmax, transpose, type Value } from "../graph";
import { type LevelHeads, selectFromClasses, selectFromLevels } from "./candidates";
import type { LevelMaps } from "./levels";
import type { BoxCoderWeights } from "./losses";
import { type SuppressionOptions, suppressCandidates } from "./suppression";

/** Options of points, as FCOS has them. */
export interface PointPostprocessOptions extends SuppressionOptions {
  /** Candidates need a score above this. */
  readonly scoreThreshold: number;
  /** Best candidates kept on each pyramid level before suppression. */
  readonly topK: number;
}

/** Options of anchors with independent classes, as RetinaNet has them. */
export interface PostprocessOptions extends PointPostprocessOptions {
  readonly weights?: BoxCoderWeights;
}

/** Options of anchors with a background class, as SSD has them. */
export interface SoftmaxPostprocessOptions extends SuppressionOptions {
  /** Candidates need a score above this. */
  readonly scoreThreshold: number;
  /** Best candidates kept of each class before suppression. */
  readonly topK: number;
  /** Default 10, 10, 5, 5. */
  readonly weights?: BoxCoderWeights;
}

/** Head outputs of a batch, over all anchors. */
export interface HeadRows {
  /** (N, A, classes); with a background class (N, A, 1 + classes), the background first. */
  readonly logits: Value;
  /** (N, A, 4) */
  readonly deltas: Value;
  /** (A, 4) */
  readonly anchors: Value;
  /** (N, 2) fp32: height, width in pixels of the network's input, which boxes are clipped to. */
  readonly imageSizes: Value;
}

/**
 * Detections as torchvision's RetinaNet.postprocess_detections: on each level the topK scores above the threshold, decoded and
 * clipped to the image, then class-aware non-maximum suppression over all levels.
 *
 * @returns detections (N, maxDetections, 6) fp32: x1, y1, x2, y2, score, class index, best first, zeros after the last; and
 *   their number (N) int32
 */
export function postprocess(
  heads: Omit<LevelHeads, "centerness">,
  { scoreThreshold, topK, weights = [1, 1, 1, 1], ...suppression }: PostprocessOptions,
): { detections: Value; counts: Value } {
  const { logits, deltas, anchors, imageSizes } = heads;
  const selection = { scoreThreshold, topK, weights, coder: "centre" } as const;
  return suppressCandidates(selectFromLevels({ logits, deltas, anchors, imageSizes }, selection), suppression);
}

/**
 * Detections as torchvision's FCOS.postprocess_detections: scores are sqrt(sigmoid(logits) * sigmoid(centerness)), boxes the
 * distances of their sides from the anchors' centres; the rest is as in `postprocess`.
 */
export function postprocessPoints(
  heads: LevelHeads & { readonly centerness: LevelMaps },
  { scoreThreshold, topK, ...suppression }: PointPostprocessOptions,
): { detections: Value; counts: Value } {
  const selection = { scoreThreshold, topK, weights: [1, 1, 1, 1], coder: "linear" } as const;
  return suppressCandidates(selectFromLevels(heads, selection), suppression);
}

/**
 * Detections as torchvision's SSD.postprocess_detections: softmax over the background and the classes, of each class the topK
 * scores above the threshold, decoded and clipped to the image, then class-aware non-maximum suppression. The class index is
 * that of the logit less 1, from 0 for the first class that is not the background (torchvision's label less 1).
 */
export function postprocessSoftmax(
  { logits, deltas, anchors, imageSizes }: HeadRows,
  { scoreThreshold, topK, weights = [10, 10, 5, 5], ...suppression }: SoftmaxPostprocessOptions,
): { detections: Value; counts: Value } {
  const scores = transpose(softmax(cast(logits, "f32")));
  const attrs = { scoreThreshold, topK, weights };
  return suppressCandidates(selectFromClasses([scores, deltas, anchors, imageSizes], attrs), suppression);
}

import { applyOp, expectShape, type Op, type Spec, scratchMemory, type Value } from "../graph";
import { constants } from "../native";
import type { Candidates } from "./candidates";

/** Soft-NMS (Bodla et al. 2017): overlaps lower a box's score instead of dropping it. */
export interface SoftNmsOptions {
  /** "linear": an IoU above iouThreshold multiplies the score by 1 - IoU; "gaussian": any by exp(-IoU^2 / sigma). */
  readonly kind: "linear" | "gaussian";
  /** Default 0.5. */
  readonly sigma?: number;
  /** Default 0.3. */
  readonly iouThreshold?: number;
  /** Detections need a decayed score above this; default 0.001. */
  readonly minScore?: number;
}

export interface SuppressionOptions {
  /** Boxes of one class that overlap a better one by more are dropped; not used with softNms. */
  readonly nmsThreshold: number;
  /** Lowers the scores of boxes that overlap better ones instead. */
  readonly softNms?: SoftNmsOptions;
  /** Detections an image at most. */
  readonly maxDetections: number;
  /** Only boxes of the same class suppress each other; default true. */
  readonly classAware?: boolean;
}

/** The paper's. */
const softDefaults = { sigma: 0.5, iouThreshold: 0.3, minScore: 0.001 } as const;

interface Attrs {
  readonly nmsThreshold: number;
  readonly maxDetections: number;
  readonly classAware: boolean;
}

/** Specs of detections (N, max, 6), kept indices (N, max) and counts (N). */
function inferDetections([boxes, scores, labels]: readonly Spec[], maxDetections: number): Spec[] {
  const [n, k] = scores!.shape as [number, number];
  expectShape(
    boxes!.shape.join() === `${n},${k},4`,
    () => `boxes should have shape (${n}, ${k}, 4), got (${boxes!.shape.join(", ")})`,
  );
  expectShape(
    labels!.shape.join() === `${n},${k}`,
    () => `labels should have shape (${n}, ${k}), got (${labels!.shape.join(", ")})`,
  );
  return [
    { shape: [n, maxDetections, 6], dtype: "f32" },
    { shape: [n, maxDetections], dtype: "i32" },
    { shape: [n], dtype: "i32" },
  ];
}

const suppress: Op<Attrs> = {
  kind: "nms",
  infer: (inputs, { maxDetections }) => inferDetections(inputs, maxDetections),
  prepare(device, { inputs: [, scores] }) {
    const [n, k] = scores!.shape as [number, number];
    return scratchMemory((out) => device.native.nmsWorkspace(device.handle, out, n, k));
  },
  emit(e, { inputs: [boxes, scores, labels], outputs: [detections, keep, counts], attrs }) {
    const [n, k] = scores!.shape as [number, number];
    const [b, s, l, scratch] = [e.address(boxes!), e.address(scores!), e.address(labels!), e.workspace];
    const [dst, kept, keptCounts] = [e.address(detections!), e.address(keep!), e.address(counts!)];
    const { nmsThreshold, maxDetections } = attrs;
    const aware = attrs.classAware ? 1 : 0;
    e.call(() => e.native.nms(e.stream, kept, keptCounts, b, s, l, scratch, n, k, maxDetections, nmsThreshold, aware));
    e.call(() => e.native.gatherDetections(e.stream, dst, b, s, l, kept, null, n, k, maxDetections));
  },
};

interface SoftAttrs extends Required<SoftNmsOptions> {
  readonly maxDetections: number;
  readonly classAware: boolean;
}

const softSuppress: Op<SoftAttrs> = {
  kind: "soft_nms",
  infer(inputs, { sigma, iouThreshold, minScore, maxDetections }) {
    expectShape(sigma > 0, () => `expected softNms.sigma above 0, got ${sigma}`);
    expectShape(
      iouThreshold >= 0 && iouThreshold <= 1,
      () => `expected softNms.iouThreshold from 0 to 1, got ${iouThreshold}`,
    );
    expectShape(
      minScore >= 0 && Number.isFinite(minScore),
      () => `expected softNms.minScore of at least 0, got ${minScore}`,
    );
    const [detections, keep, counts] = inferDetections(inputs, maxDetections) as [Spec, Spec, Spec];
    return [detections, keep, counts, { shape: keep.shape, dtype: "f32" }];
  },
  prepare(device, { inputs: [, scores] }) {
    const [n, k] = scores!.shape as [number, number];
    return scratchMemory((out) => device.native.softNmsWorkspace(device.handle, out, n, k));
  },
  emit(e, { inputs: [boxes, scores, labels], outputs: [detections, keep, counts, keepScores], attrs }) {
    const [n, k] = scores!.shape as [number, number];
    const [b, s, l, scratch] = [e.address(boxes!), e.address(scores!), e.address(labels!), e.workspace];
    const [dst, kept, keptCounts, own] = [
      e.address(detections!),
      e.address(keep!),
      e.address(counts!),
      e.address(keepScores!),
    ];
    const { kind, sigma, iouThreshold, minScore, maxDetections, classAware } = attrs;
    const method = kind === "linear" ? constants.SOFT_NMS_LINEAR : constants.SOFT_NMS_GAUSSIAN;
    const sizes = [n, k, maxDetections] as const;
    const rules = [method, iouThreshold, sigma, minScore, classAware ? 1 : 0] as const;
    e.call(() => e.native.softNms(e.stream, kept, keptCounts, own, b, s, l, scratch, ...sizes, ...rules));
    e.call(() => e.native.gatherDetections(e.stream, dst, b, s, l, kept, own, ...sizes));
  },
};

/**
 * Non-maximum suppression of candidates, hard or soft: detections (N, maxDetections, 6) fp32, x1, y1, x2, y2, score, class
 * index, best first, zeros after the last; and their number (N) int32.
 */
export function suppressCandidates(
  { boxes, scores, labels }: Candidates,
  { nmsThreshold, softNms, maxDetections, classAware = true }: SuppressionOptions,
): { detections: Value; counts: Value } {
  const operands = [boxes, scores, labels];
  const found = softNms
    ? applyOp(softSuppress, operands, { ...softDefaults, ...softNms, maxDetections, classAware })
    : applyOp(suppress, operands, { nmsThreshold, maxDetections, classAware });
  const [detections, , counts] = found as [Value, Value, Value];
  return { detections, counts };
}

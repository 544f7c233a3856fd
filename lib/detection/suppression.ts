import { applyOp, expectShape, type Op, scratchMemory, type Value } from "../graph";
import type { Candidates } from "./candidates";

export interface SuppressionOptions {
  /** Boxes of one class that overlap a better one by more are dropped. */
  readonly nmsThreshold: number;
  /** Detections an image at most. */
  readonly maxDetections: number;
  /** Only boxes of the same class suppress each other; default true. */
  readonly classAware?: boolean;
}

interface Attrs {
  readonly nmsThreshold: number;
  readonly maxDetections: number;
  readonly classAware: boolean;
}

const suppress: Op<Attrs> = {
  kind: "nms",
  infer([boxes, scores, labels], { maxDetections }) {
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
  },
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
    e.call(() => e.native.gatherDetections(e.stream, dst, b, s, l, kept, n, k, maxDetections));
  },
};

/**
 * Non-maximum suppression of candidates: detections (N, maxDetections, 6) fp32, x1, y1, x2, y2, score, class index, best
 * first, zeros after the last; and their number (N) int32.
 */
export function suppressCandidates(
  { boxes, scores, labels }: Candidates,
  { nmsThreshold, maxDetections, classAware = true }: SuppressionOptions,
): { detections: Value; counts: Value } {
  const attrs = { nmsThreshold, maxDetections, classAware };
  const [detections, , counts] = applyOp(suppress, [boxes, scores, labels], attrs) as [Value, Value, Value];
  return { detections, counts };
}

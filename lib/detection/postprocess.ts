import { applyOp, expectShape, type Node, type Op, scratchMemory, type Value } from "../graph";
import { constants } from "../native";
import { align, type Device, dtypeCode, dtypeSize } from "../tensor";
import type { BoxCoderWeights } from "./losses";

export interface PostprocessOptions {
  /** Candidates need a score above this. */
  readonly scoreThreshold: number;
  /** Best candidates kept on each pyramid level before suppression. */
  readonly topK: number;
  /** Boxes of one class that overlap a better one by more are dropped. */
  readonly nmsThreshold: number;
  /** Detections an image at most. */
  readonly maxDetections: number;
  readonly weights?: BoxCoderWeights;
}

interface CandidateAttrs {
  /** Anchors of each level. */
  readonly levels: readonly number[];
  readonly scoreThreshold: number;
  readonly topK: number;
  readonly weights: BoxCoderWeights;
}

/** Candidates that level `anchors` contributes: at most topK. */
function kept(anchors: number, classes: number, topK: number): number {
  return Math.min(topK, anchors * classes);
}

const selectCandidates: Op<CandidateAttrs> = {
  kind: "select_candidates",
  infer([logits, deltas, anchors, sizes], { levels, topK }) {
    const [n, a, classes] = logits!.shape as [number, number, number];
    expectShape(
      deltas!.shape.join() === `${n},${a},4`,
      () => `box deltas should have shape (${n}, ${a}, 4), got (${deltas!.shape.join(", ")})`,
    );
    expectShape(
      anchors!.shape.join() === `${a},4`,
      () => `anchors should have shape (${a}, 4), got (${anchors!.shape.join(", ")})`,
    );
    expectShape(
      sizes!.shape.join() === `${n},2`,
      () => `image sizes should have shape (${n}, 2), got (${sizes!.shape.join(", ")})`,
    );
    const total = levels.reduce((sum, count) => sum + count, 0);
    expectShape(total === a, () => `the levels have ${total} anchors, the logits ${a}`);
    const k = levels.reduce((sum, count) => sum + kept(count, classes, topK), 0);
    return [
      { shape: [n, k, 4], dtype: "f32" },
      { shape: [n, k], dtype: "f32" },
      { shape: [n, k], dtype: "i32" },
    ];
  },
  prepare(device: Device, { inputs: [logits], outputs: [, scores], attrs }: Node<CandidateAttrs>) {
    const [n, , classes] = logits!.shape as [number, number, number];
    const out = new BigInt64Array(1);
    const sizes = attrs.levels.map((count) => {
      device.native.topkWorkspace(device.handle, out, n, count * classes, kept(count, classes, attrs.topK));
      return Number(out[0]);
    });
    // The chosen indices come first, the selection's own scratch memory behind them.
    return { workspace: align(scores!.shape[0]! * scores!.shape[1]! * 4) + Math.max(...sizes) };
  },
  emit(e, { inputs: [logits, deltas, anchors, sizes], outputs: [boxes, scores, labels], attrs }) {
    const [n, a, classes] = logits!.shape as [number, number, number];
    const row = scores!.shape[1]!;
    const [dtype, bytes] = [dtypeCode(logits!.dtype), dtypeSize(logits!.dtype)];
    const [boxDst, scoreDst, labelDst] = [e.address(boxes!), e.address(scores!), e.address(labels!)];
    const [x, d, anchorSrc, imageSizes] = [
      e.address(logits!),
      e.address(deltas!),
      e.address(anchors!),
      e.address(sizes!),
    ];
    const indices = e.workspace!;
    const scratch = indices + align(n * row * 4);
    const { scoreThreshold, topK, weights } = attrs;
    let [anchor, column] = [0, 0];
    for (const count of attrs.levels) {
      const k = kept(count, classes, topK);
      const [levelLogits, levelDeltas] = [x + anchor * classes * bytes, d + anchor * 4 * bytes];
      const levelAnchors = anchorSrc + anchor * 16;
      const [scoreAt, indexAt, boxAt, labelAt] = [
        scoreDst + column * 4,
        indices + column * 4,
        boxDst + column * 16,
        labelDst + column * 4,
      ];
      e.call(() =>
        e.native.topk(
          e.stream,
          scoreAt,
          indexAt,
          levelLogits,
          scratch,
          n,
          count * classes,
          a * classes,
          k,
          row,
          dtype,
          constants.SCORES_SIGMOID,
          scoreThreshold,
        ),
      );
      e.call(() =>
        e.native.decodeCandidates(
          e.stream,
          boxAt,
          labelAt,
          indexAt,
          levelDeltas,
          levelAnchors,
          imageSizes,
          n,
          k,
          row,
          a * 4,
          classes,
          0,
          constants.CODER_CENTRE,
          dtype,
          ...weights,
        ),
      );
      anchor += count;
      column += k;
    }
  },
};

const suppress: Op<{ nmsThreshold: number; maxDetections: number }> = {
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
    e.call(() => e.native.nms(e.stream, kept, keptCounts, b, s, l, scratch, n, k, maxDetections, nmsThreshold, 1));
    e.call(() => e.native.gatherDetections(e.stream, dst, b, s, l, kept, n, k, maxDetections));
  },
};

/**
 * From head outputs to detections, on the device, as torchvision's RetinaNet.postprocess_detections: on each level the topK
 * scores above the threshold, decoded and clipped to the image, then class-aware non-maximum suppression over all levels.
 *
 * @param logits (N, A, classes)
 * @param deltas (N, A, 4)
 * @param anchors (A, 4)
 * @param imageSizes (N, 2) fp32: height, width in pixels of the network's input
 * @param levels anchors of each pyramid level
 * @returns detections (N, maxDetections, 6) fp32: x1, y1, x2, y2, score, class index, best first, zeros after the last; and
 *   their number (N) int32
 */
export function postprocess(
  logits: Value,
  deltas: Value,
  anchors: Value,
  imageSizes: Value,
  levels: readonly number[],
  { scoreThreshold, topK, nmsThreshold, maxDetections, weights = [1, 1, 1, 1] }: PostprocessOptions,
): { detections: Value; counts: Value } {
  const candidates = applyOp(selectCandidates, [logits, deltas, anchors, imageSizes], {
    levels,
    scoreThreshold,
    topK,
    weights,
  });
  const [detections, , counts] = applyOp(suppress, candidates, { nmsThreshold, maxDetections }) as [
    Value,
    Value,
    Value,
  ];
  return { detections, counts };
}

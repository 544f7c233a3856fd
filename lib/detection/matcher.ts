import { applyOp, expectShape, type Node, type Op, scratchMemory, type Value } from "../graph";

export interface MatcherOptions {
  /** IoU from which an anchor is foreground. */
  readonly high: number;
  /** IoU below which it is background; between the two it is ignored. */
  readonly low: number;
  /** Every box keeps its best anchors, however small their IoU. */
  readonly allowLowQuality: boolean;
}

/** Ground truth of a batch, padded to M boxes an image. */
export interface Targets {
  /** (N, M, 4) fp32, x1, y1, x2, y2 in pixels of the network's input. */
  readonly boxes: Value;
  /** (N, M) int32, class indices from 0. */
  readonly labels: Value;
  /** (N) int32: how many of the M are real. */
  readonly counts: Value;
}

const match: Op<MatcherOptions> = {
  kind: "match_anchors",
  infer([anchors, boxes, counts]) {
    expectShape(
      anchors!.shape.length === 2 && anchors!.shape[1] === 4,
      () => `anchors should have shape (A, 4), got (${anchors!.shape.join(", ")})`,
    );
    expectShape(
      boxes!.shape.length === 3 && boxes!.shape[2] === 4,
      () => `boxes should have shape (N, M, 4), got (${boxes!.shape.join(", ")})`,
    );
    const n = boxes!.shape[0]!;
    expectShape(
      counts!.dtype === "i32" && counts!.shape.join() === `${n}`,
      () => `counts should be i32 (${n}), got ${counts!.dtype} (${counts!.shape.join(", ")})`,
    );
    return [
      { shape: [n, anchors!.shape[0]!], dtype: "i32" },
      { shape: [n], dtype: "i32" },
    ];
  },
  prepare(device, { inputs: [anchors, boxes] }: Node<MatcherOptions>) {
    const [n, m] = boxes!.shape as [number, number];
    return scratchMemory((out) => device.native.matchAnchorsWorkspace(device.handle, out, n, anchors!.shape[0]!, m));
  },
  emit(e, { inputs: [anchors, boxes, counts], outputs: [matches, foreground], attrs }) {
    const [dst, fg] = [e.address(matches!), e.address(foreground!)];
    const [a, b, c, workspace] = [e.address(anchors!), e.address(boxes!), e.address(counts!), e.workspace];
    const [n, m] = boxes!.shape as [number, number];
    const lowQuality = attrs.allowLowQuality ? 1 : 0;
    e.call(() =>
      e.native.matchAnchors(
        e.stream,
        dst,
        fg,
        a,
        b,
        c,
        workspace,
        n,
        anchors!.shape[0]!,
        m,
        attrs.high,
        attrs.low,
        lowQuality,
      ),
    );
  },
};

/**
 * Assigns anchors to boxes as torchvision's Matcher: matches (N, A) int32, the box's index, -1 background, -2 ignored; and the
 * number of foreground anchors of each image (N) int32.
 */
export function matchAnchors(
  anchors: Value,
  { boxes, counts }: Targets,
  options: MatcherOptions,
): { matches: Value; foreground: Value } {
  const [matches, foreground] = applyOp(match, [anchors, boxes, counts], options) as [Value, Value];
  return { matches, foreground };
}

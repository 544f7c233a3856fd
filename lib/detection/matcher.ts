import { applyOp, expectShape, type Node, type Op, type Spec, scratchMemory, type Value } from "../graph";
import { constants } from "../native";

export interface MatcherOptions {
  /** IoU from which an anchor is foreground. */
  readonly high: number;
  /** IoU below which it is background; between the two it is ignored. */
  readonly low: number;
  /** Every box keeps its best anchors, however small their IoU. */
  readonly allowLowQuality?: boolean;
  /** The best anchor of every box is matched to that box, however small its IoU: SSDMatcher. Not with allowLowQuality. */
  readonly bestAnchor?: boolean;
}

export interface PointMatcherOptions {
  /** How far from a box's centre its points may be along either axis, in anchor sides; FCOS: 1.5. */
  readonly radius: number;
  /** Anchors of each pyramid level, finest first. */
  readonly levels: readonly number[];
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

/** Specs of matches (N, A) and foreground (N) from those of anchors (A, 4), boxes (N, M, 4) and counts (N). */
function inferMatches([anchors, boxes, counts]: readonly Spec[]): Spec[] {
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
}

const match: Op<MatcherOptions> = {
  kind: "match_anchors",
  infer(inputs, { high, low, allowLowQuality, bestAnchor }) {
    expectShape(low <= high, () => `expected a matcher's low <= high, got low ${low} and high ${high}`);
    expectShape(!(allowLowQuality && bestAnchor), () => "a matcher has either allowLowQuality or bestAnchor, got both");
    return inferMatches(inputs);
  },
  prepare(device, { inputs: [anchors, boxes] }: Node<MatcherOptions>) {
    const [n, m] = boxes!.shape as [number, number];
    return scratchMemory((out) => device.native.matchAnchorsWorkspace(device.handle, out, n, anchors!.shape[0]!, m));
  },
  emit(e, { inputs: [anchors, boxes, counts], outputs: [matches, foreground], attrs }) {
    const [dst, fg] = [e.address(matches!), e.address(foreground!)];
    const [a, b, c, workspace] = [e.address(anchors!), e.address(boxes!), e.address(counts!), e.workspace];
    const [n, m] = boxes!.shape as [number, number];
    const matching = attrs.bestAnchor
      ? constants.MATCH_BEST_ANCHOR
      : attrs.allowLowQuality
        ? constants.MATCH_LOW_QUALITY
        : constants.MATCH_THRESHOLDS;
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
        matching,
      ),
    );
  },
};

/**
 * Assigns anchors to boxes as torchvision's Matcher and SSDMatcher: matches (N, A) int32, the box's index, -1 background, -2
 * ignored; and the number of foreground anchors of each image (N) int32.
 *
 * @param anchors (A, 4)
 */
export function matchAnchors(
  anchors: Value,
  { boxes, counts }: Targets,
  options: MatcherOptions,
): { matches: Value; foreground: Value } {
  const [matches, foreground] = applyOp(match, [anchors, boxes, counts], options) as [Value, Value];
  return { matches, foreground };
}

const matchPoint: Op<PointMatcherOptions> = {
  kind: "match_points",
  infer(inputs, { radius, levels }) {
    expectShape(radius > 0, () => `expected a radius above 0, got ${radius}`);
    const [a, total] = [inputs[0]!.shape[0], levels.reduce((sum, count) => sum + count, 0)];
    expectShape(levels.length > 0 && total === a, () => `the levels have ${total} anchors, expected ${a}`);
    return inferMatches(inputs);
  },
  emit(e, { inputs: [anchors, boxes, counts], outputs: [matches, foreground], attrs: { radius, levels } }) {
    const [dst, fg] = [e.address(matches!), e.address(foreground!)];
    const [a, b, c] = [e.address(anchors!), e.address(boxes!), e.address(counts!)];
    const [n, m] = boxes!.shape as [number, number];
    const sizes = [n, anchors!.shape[0]!, m, levels[0]!, levels.at(-1)!, radius] as const;
    e.call(() => e.native.matchPoints(e.stream, dst, fg, a, b, c, ...sizes));
  },
};

/**
 * Assigns points, the centres of square anchors, to boxes as torchvision's FCOS.compute_loss: the smallest box that contains
 * the point near its centre and has a size that the point's level is responsible for, or -1; results as of matchAnchors.
 *
 * @param anchors (A, 4), as many on each level as `levels` says
 */
export function matchPoints(
  anchors: Value,
  { boxes, counts }: Targets,
  options: PointMatcherOptions,
): { matches: Value; foreground: Value } {
  const [matches, foreground] = applyOp(matchPoint, [anchors, boxes, counts], options) as [Value, Value];
  return { matches, foreground };
}

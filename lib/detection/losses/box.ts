import { applyOp, type Op, type Value } from "../../graph";
import { check, constants } from "../../native";
import { type LevelMaps, layoutOf, listOf } from "../levels";
import type { Targets } from "../matcher";
import {
  anchorLoss,
  codeOf,
  inferAnchorLoss,
  type LevelAttrs,
  type LossNormalization,
  levelOperands,
  type Matched,
  maxBoxes,
  normalizationCode,
} from "./common";

/** Weights of the encoded coordinates x, y, width, height, as torchvision's BoxCoder. */
export type BoxCoderWeights = readonly [number, number, number, number];

/**
 * How deltas code boxes: "centre", torchvision's BoxCoder (shift of the centre, logarithms of the sizes); or "linear", its
 * BoxLinearCoder with normalize_by_size, FCOS's distances of the left, top, right and bottom sides from the anchor's centre.
 */
export type BoxCoder = "centre" | "linear";

/**
 * - "l1", "smooth_l1": of the deltas against the encoded box
 * - "iou": 1 - IoU of the decoded and the matched box
 * - "giou": and the share of their hull that neither covers (Rezatofighi et al. 2019)
 * - "diou": 1 - IoU and the distance of the centres (Zheng et al. 2020)
 * - "ciou": and the difference of the aspect ratios, whose weight alpha is not differentiated (Zheng et al. 2020)
 */
export type BoxLossKind = "l1" | "smooth_l1" | "iou" | "giou" | "diou" | "ciou";

const kindCodes: Record<BoxLossKind, number> = {
  l1: constants.BOX_LOSS_SMOOTH_L1,
  smooth_l1: constants.BOX_LOSS_SMOOTH_L1,
  iou: constants.BOX_LOSS_IOU,
  giou: constants.BOX_LOSS_GIOU,
  diou: constants.BOX_LOSS_DIOU,
  ciou: constants.BOX_LOSS_CIOU,
};

/** The names that a `BoxLossKind` may have. */
export const boxLossKinds = Object.keys(kindCodes) as BoxLossKind[];

const coderCodes: Record<BoxCoder, number> = { centre: constants.CODER_CENTRE, linear: constants.CODER_LINEAR };

interface BoxAttrs extends LevelAttrs {
  kind: number;
  coder: number;
  weights: BoxCoderWeights;
  beta: number;
}

/** Inputs: the deltas' maps, anchors, matches, boxes, foreground. */
const box: Op<BoxAttrs> = {
  ...anchorLoss,
  kind: "box_loss",
  infer: (inputs, attrs) => inferAnchorLoss(inputs, attrs, "box deltas", "4"),
  emit(e, node) {
    const { at, others, scale, sizes, dtype } = levelOperands(e, node);
    const [anchors, matches, boxes, foreground] = others as [number, number, number, number];
    const { kind, coder, weights, beta, normalization, gradFactor } = node.attrs;
    const inputs = [anchors, matches, boxes, foreground, scale, e.workspace] as const;
    const rules = [maxBoxes(node), dtype, kind, coder, ...weights, beta, normalization, gradFactor] as const;
    e.call(() => e.native.boxLoss(e.stream, ...at, ...inputs, ...sizes, ...rules));
  },
};

export interface BoxLossOptions {
  /** Default "l1". */
  readonly kind?: BoxLossKind;
  /** Where "smooth_l1" turns linear, at least 0 (L1); default 1. Of no other kind. */
  readonly beta?: number;
  /** Default "centre". */
  readonly coder?: BoxCoder;
  /** Of coder "centre"; default 1, 1, 1, 1. */
  readonly weights?: BoxCoderWeights;
  /** Default "image". */
  readonly normalization?: LossNormalization;
}

/**
 * Box loss of the foreground anchors, summed and normalized: a scalar. The same as torchvision's _box_loss, within
 * RetinaNetRegressionHead.compute_loss with normalization "image", FCOSHead's (giou, linear) and SSD's (smooth_l1 with beta 1,
 * weights 10, 10, 5, 5) with "batch". Where torchvision gives NaN for a degenerate box, this is finite; see dlfs_box_loss.
 *
 * @param deltas maps (N, h, w, perCell * 4) of all levels, or (N, A, 4)
 * @param anchors (A, 4)
 */
export function boxLoss(
  deltas: LevelMaps,
  anchors: Value,
  { matches, foreground }: Matched,
  targets: Targets,
  {
    kind = "l1",
    beta = kind === "smooth_l1" ? 1 : 0,
    coder = "centre",
    weights = [1, 1, 1, 1],
    normalization = "image",
  }: BoxLossOptions = {},
): Value {
  check(kind === "smooth_l1" || beta === 0, "boxLoss", () => `beta is of kind smooth_l1, got ${beta} for ${kind}`);
  check(beta >= 0 && beta < Infinity, "boxLoss", () => `expected a finite beta of at least 0, got ${beta}`);
  check(
    weights.length === 4 && weights.every((weight) => weight > 0 && weight < Infinity),
    "boxLoss",
    () => `expected four finite weights above 0, got ${weights.join(", ")}`,
  );
  const maps = listOf(deltas);
  const attrs: BoxAttrs = {
    layout: layoutOf(maps, anchors.shape[0] ?? 1, 4),
    kind: codeOf("boxLoss", "kind", kindCodes, kind),
    coder: codeOf("boxLoss", "coder", coderCodes, coder),
    weights,
    beta,
    normalization: normalizationCode("boxLoss", normalization),
    gradFactor: 1,
  };
  return applyOp(box, [...maps, anchors, matches, targets.boxes, foreground], attrs)[0] as Value;
}

import { applyOp, type Op, type Value } from "../../graph";
import { check } from "../../native";
import { expectMaps, type LevelMaps, layoutOf, listOf } from "../levels";
import type { Targets } from "../matcher";
import {
  expectLabels,
  type LevelAttrs,
  type LossNormalization,
  levelLoss,
  levelOperands,
  type Matched,
  normalizationCode,
  splitInputs,
  sumWorkspace,
} from "./common";

interface FocalAttrs extends LevelAttrs {
  alpha: number;
  gamma: number;
}

/** Inputs: the logits' maps, matches, labels, foreground. */
const focal: Op<FocalAttrs> = {
  ...levelLoss,
  kind: "focal_loss",
  infer(inputs, { layout }) {
    const [maps, others] = splitInputs(inputs, layout);
    const anchors = expectMaps(maps, layout, "logits", "classes");
    expectLabels(others, maps[0]!.shape[0]!, anchors);
    return [{ shape: [], dtype: "f32" }, ...maps];
  },
  prepare(device, { inputs, attrs: { layout } }) {
    const [n, anchors] = inputs[layout.levels]!.shape as [number, number];
    return sumWorkspace(device, n, anchors, layout.columns);
  },
  emit(e, node) {
    const { at, others, scale, sizes, dtype } = levelOperands(e, node);
    const [matches, labels, foreground] = others as [number, number, number];
    const boxes = node.inputs[node.attrs.layout.levels + 1]!.shape[1]!;
    const { layout, alpha, gamma, normalization, gradFactor } = node.attrs;
    const [{ columns }, { workspace }] = [layout, e];
    const rules = [columns, boxes, dtype, alpha, gamma, normalization, gradFactor] as const;
    const inputs = [matches, labels, foreground, scale, workspace] as const;
    e.call(() => e.native.focalLoss(e.stream, ...at, ...inputs, ...sizes, ...rules));
  },
};

export interface FocalLossOptions {
  /** Weight of the positive class, from 0 to 1; below 0: none. Default 0.25. */
  readonly alpha?: number;
  /** Exponent of 1 - p_t, from 0 to 1000; default 2. */
  readonly gamma?: number;
  /** Default "image". */
  readonly normalization?: LossNormalization;
}

/**
 * Sigmoid focal loss (Lin et al. 2017), summed over the anchors that are not ignored and all classes, normalized: a scalar.
 * With normalization "image" torchvision's RetinaNetClassificationHead.compute_loss, with "batch" FCOSHead's.
 *
 * @param logits maps (N, h, w, perCell * classes) of all levels, or (N, A, classes)
 */
export function focalLoss(
  logits: LevelMaps,
  { matches, foreground }: Matched,
  targets: Targets,
  { alpha = 0.25, gamma = 2, normalization = "image" }: FocalLossOptions = {},
): Value {
  check(alpha <= 1, "focalLoss", () => `expected alpha up to 1, or below 0 for none, got ${alpha}`);
  check(gamma >= 0 && gamma <= 1000, "focalLoss", () => `expected gamma from 0 to 1000, got ${gamma}`);
  const maps = listOf(logits);
  const attrs = {
    layout: layoutOf(maps, matches.shape[1] ?? 1),
    alpha,
    gamma,
    normalization: normalizationCode("focalLoss", normalization),
    gradFactor: 1,
  };
  return applyOp(focal, [...maps, matches, targets.labels, foreground], attrs)[0] as Value;
}

/**
 * Sigmoid binary cross-entropy of every class (torch's binary_cross_entropy_with_logits), summed and normalized as focalLoss:
 * the focal loss without alpha and with gamma 0.
 *
 * @param logits as focalLoss's
 */
export function binaryCrossEntropyLoss(
  logits: LevelMaps,
  matched: Matched,
  targets: Targets,
  { normalization }: { normalization?: LossNormalization } = {},
): Value {
  return focalLoss(logits, matched, targets, { alpha: -1, gamma: 0, normalization });
}

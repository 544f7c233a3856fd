import { applyOp, type Op, type Value } from "../../graph";
import { check } from "../../native";
import type { Targets } from "../matcher";
import {
  classLossOperands,
  expectClassLogits,
  type LossNormalization,
  lossGradient,
  type Matched,
  normalizationCode,
  type Scaled,
  sumWorkspace,
} from "./common";

interface FocalAttrs extends Scaled {
  alpha: number;
  gamma: number;
}

const focal: Op<FocalAttrs> = {
  kind: "focal_loss",
  optionalOutputs: [1],
  infer([logits, matches, labels, foreground]) {
    expectClassLogits(logits!, matches!, labels!, foreground!);
    return [{ shape: [], dtype: "f32" }, logits!];
  },
  gradient: lossGradient,
  prepare: (device, { inputs: [logits] }) => sumWorkspace(device, ...(logits!.shape as [number, number, number])),
  emit(e, node) {
    const operands = classLossOperands(e, node);
    const { alpha, gamma, normalization, gradFactor } = node.attrs;
    e.call(() => e.native.focalLoss(e.stream, ...operands, alpha, gamma, normalization, gradFactor));
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
 * @param logits (N, A, classes)
 */
export function focalLoss(
  logits: Value,
  { matches, foreground }: Matched,
  targets: Targets,
  { alpha = 0.25, gamma = 2, normalization = "image" }: FocalLossOptions = {},
): Value {
  check(alpha <= 1, "focalLoss", () => `expected alpha up to 1, or below 0 for none, got ${alpha}`);
  check(gamma >= 0 && gamma <= 1000, "focalLoss", () => `expected gamma from 0 to 1000, got ${gamma}`);
  const attrs = { alpha, gamma, normalization: normalizationCode("focalLoss", normalization), gradFactor: 1 };
  return applyOp(focal, [logits, matches, targets.labels, foreground], attrs)[0] as Value;
}

/**
 * Sigmoid binary cross-entropy of every class (torch's binary_cross_entropy_with_logits), summed and normalized as focalLoss:
 * the focal loss without alpha and with gamma 0.
 *
 * @param logits (N, A, classes)
 */
export function binaryCrossEntropyLoss(
  logits: Value,
  matched: Matched,
  targets: Targets,
  { normalization }: { normalization?: LossNormalization } = {},
): Value {
  return focalLoss(logits, matched, targets, { alpha: -1, gamma: 0, normalization });
}

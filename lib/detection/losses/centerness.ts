import { applyOp, expectShape, type Op, type Value } from "../../graph";
import type { Targets } from "../matcher";
import {
  boxLossOperands,
  expectAnchorValues,
  type LossNormalization,
  lossGradient,
  type Matched,
  normalizationCode,
  type Scaled,
  sumWorkspace,
} from "./common";

const centerness: Op<Scaled> = {
  kind: "centerness_loss",
  optionalOutputs: [1],
  infer([logits, ...others]) {
    expectShape(
      logits!.shape.length === 2,
      () => `centre-ness logits should have shape (N, A), got (${logits!.shape.join(", ")})`,
    );
    expectAnchorValues(logits!, "centre-ness logits", others);
    return [{ shape: [], dtype: "f32" }, logits!];
  },
  gradient: lossGradient,
  prepare: (device, { inputs: [logits] }) => sumWorkspace(device, logits!.shape[0]!, logits!.shape[1]!, 1),
  emit(e, node) {
    const operands = boxLossOperands(e, node);
    const { normalization, gradFactor } = node.attrs;
    e.call(() => e.native.centernessLoss(e.stream, ...operands, normalization, gradFactor));
  },
};

/**
 * FCOS's centre-ness loss (Tian et al. 2019): binary cross-entropy of the foreground anchors' logits with sqrt(min(l, r) /
 * max(l, r) min(t, b) / max(t, b)) of their centres' distances from the sides of their boxes, summed and normalized: a scalar.
 * torchvision's FCOSHead.compute_loss; where a centre lies outside its box (NaN there), the target is 0.
 *
 * @param logits (N, A)
 * @param anchors (A, 4)
 */
export function centernessLoss(
  logits: Value,
  anchors: Value,
  { matches, foreground }: Matched,
  targets: Targets,
  { normalization = "batch" }: { normalization?: LossNormalization } = {},
): Value {
  const attrs: Scaled = { normalization: normalizationCode("centernessLoss", normalization), gradFactor: 1 };
  return applyOp(centerness, [logits, anchors, matches, targets.boxes, foreground], attrs)[0] as Value;
}

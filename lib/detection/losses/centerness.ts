import { applyOp, type Op, type Value } from "../../graph";
import { type LevelMaps, layoutOf, listOf } from "../levels";
import type { Targets } from "../matcher";
import {
  anchorLoss,
  inferAnchorLoss,
  type LevelAttrs,
  type LossNormalization,
  levelOperands,
  type Matched,
  maxBoxes,
  normalizationCode,
} from "./common";

/** Inputs: the logits' maps, anchors, matches, boxes, foreground. */
const centerness: Op<LevelAttrs> = {
  ...anchorLoss,
  kind: "centerness_loss",
  infer: (inputs, attrs) => inferAnchorLoss(inputs, attrs, "centre-ness logits", "1"),
  emit(e, node) {
    const { at, others, scale, sizes, dtype } = levelOperands(e, node);
    const [anchors, matches, boxes, foreground] = others as [number, number, number, number];
    const { normalization, gradFactor } = node.attrs;
    const inputs = [anchors, matches, boxes, foreground, scale, e.workspace] as const;
    const rules = [maxBoxes(node), dtype, normalization, gradFactor] as const;
    e.call(() => e.native.centernessLoss(e.stream, ...at, ...inputs, ...sizes, ...rules));
  },
};

/**
 * FCOS's centre-ness loss (Tian et al. 2019): binary cross-entropy of the foreground anchors' logits with sqrt(min(l, r) /
 * max(l, r) min(t, b) / max(t, b)) of their centres' distances from the sides of their boxes, summed and normalized: a scalar.
 * torchvision's FCOSHead.compute_loss; where a centre lies outside its box (NaN there), the target is 0.
 *
 * @param logits maps (N, h, w, perCell) of all levels, or (N, A, 1) or (N, A)
 * @param anchors (A, 4)
 */
export function centernessLoss(
  logits: LevelMaps,
  anchors: Value,
  { matches, foreground }: Matched,
  targets: Targets,
  { normalization = "batch" }: { normalization?: LossNormalization } = {},
): Value {
  const maps = listOf(logits);
  const attrs: LevelAttrs = {
    layout: layoutOf(maps, anchors.shape[0] ?? 1, 1),
    normalization: normalizationCode("centernessLoss", normalization),
    gradFactor: 1,
  };
  return applyOp(centerness, [...maps, anchors, matches, targets.boxes, foreground], attrs)[0] as Value;
}

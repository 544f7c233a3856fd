import { applyOp, expectShape, type Op, scratchMemory, type Value } from "../../graph";
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
} from "./common";

interface CrossEntropyAttrs extends Scaled {
  /** Below 0: every anchor counts. */
  negativeRatio: number;
}

/** What dlfs_cross_entropy_loss takes. */
const MOST_CLASSES = 10240;

const crossEntropy: Op<CrossEntropyAttrs> = {
  kind: "cross_entropy_loss",
  optionalOutputs: [1],
  infer([logits, matches, labels, foreground]) {
    expectClassLogits(logits!, matches!, labels!, foreground!);
    const classes = logits!.shape[2]!;
    expectShape(
      classes >= 2 && classes <= MOST_CLASSES,
      () => `expected logits of 2 to ${MOST_CLASSES} classes, the background first, got ${classes}`,
    );
    return [{ shape: [], dtype: "f32" }, logits!];
  },
  gradient: lossGradient,
  prepare(device, { inputs: [logits], attrs }) {
    const [n, anchors] = logits!.shape as [number, number];
    const { negativeRatio } = attrs;
    return scratchMemory((out) =>
      device.native.crossEntropyLossWorkspace(device.handle, out, n, anchors, negativeRatio),
    );
  },
  emit(e, node) {
    const operands = classLossOperands(e, node);
    const { negativeRatio, normalization, gradFactor } = node.attrs;
    e.call(() => e.native.crossEntropyLoss(e.stream, ...operands, negativeRatio, normalization, gradFactor));
  },
};

export interface CrossEntropyLossOptions {
  /**
   * Background anchors that count, for each of an image's foreground anchors: those with the largest loss (hard negative
   * mining). "all": all of them. Default 3, torchvision's SSD's.
   */
  readonly negativeRatio?: number | "all";
  /** Default "batch". */
  readonly normalization?: LossNormalization;
}

/**
 * Softmax cross-entropy of the anchors that are not ignored, summed and normalized: a scalar. Class 0 is the background, and
 * label l is class l + 1. With hard negative mining, torchvision's SSD.compute_loss: an image without foreground adds nothing,
 * of equal losses the lower anchor counts; where more background anchors are asked for than there are, all of them count (and
 * no foreground anchor twice, as there).
 *
 * @param logits (N, A, classes + 1)
 */
export function crossEntropyLoss(
  logits: Value,
  { matches, foreground }: Matched,
  targets: Targets,
  { negativeRatio = 3, normalization = "batch" }: CrossEntropyLossOptions = {},
): Value {
  check(
    negativeRatio === "all" || (negativeRatio >= 0 && negativeRatio < Infinity),
    "crossEntropyLoss",
    () => `expected a negativeRatio of at least 0 or "all", got ${negativeRatio}`,
  );
  const attrs: CrossEntropyAttrs = {
    negativeRatio: negativeRatio === "all" ? -1 : negativeRatio,
    normalization: normalizationCode("crossEntropyLoss", normalization),
    gradFactor: 1,
  };
  return applyOp(crossEntropy, [logits, matches, targets.labels, foreground], attrs)[0] as Value;
}

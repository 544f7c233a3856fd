import { applyOp, expectActivation, expectShape, type Op, scratchMemory, type Value } from "../../graph";
import { check } from "../../native";
import { dtypeCode } from "../../tensor";
import type { Targets } from "../matcher";
import {
  expectLabels,
  type LossNormalization,
  lossGradient,
  type Matched,
  normalizationCode,
  type Scaled,
  scaleAddress,
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
  infer([logits, ...others]) {
    expectActivation(logits!, "logits");
    expectShape(
      logits!.shape.length === 3,
      () => `logits should have shape (N, A, classes), got (${logits!.shape.join(", ")})`,
    );
    const [n, anchors, classes] = logits!.shape as [number, number, number];
    expectLabels(others, n, anchors);
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
    const [logits, , labels] = node.inputs as [Value, Value, Value, Value];
    const [loss, gradient] = [e.address(node.outputs[0]!), e.optional(node.outputs[1])];
    const inputs = node.inputs.map((value) => e.address(value)) as [number, number, number, number];
    const [n, anchors, classes] = logits.shape as [number, number, number];
    const sizes = [n, anchors, classes, labels.shape[1]!, dtypeCode(logits.dtype)] as const;
    const { negativeRatio, normalization, gradFactor } = node.attrs;
    const rules = [negativeRatio, normalization, gradFactor] as const;
    const [{ workspace }, scale] = [e, scaleAddress(e, node)];
    e.call(() => e.native.crossEntropyLoss(e.stream, loss, gradient, ...inputs, scale, workspace, ...sizes, ...rules));
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

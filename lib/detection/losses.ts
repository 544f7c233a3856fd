import {
  applyOp,
  expectActivation,
  expectShape,
  type Gradient,
  type GradientBuilder,
  type Node,
  type Op,
  type Preparation,
  scaleBy,
  scratchMemory,
  type Value,
} from "../graph";
import { type Device, dtypeCode } from "../tensor";
import type { Targets } from "./matcher";

/** Weights of the encoded coordinates x, y, width, height, as torchvision's BoxCoder. */
export type BoxCoderWeights = readonly [number, number, number, number];

/** Both loss kernels write their gradient in the forward pass, scaled by this; the backward rule sets it. */
interface Scaled {
  gradFactor: number;
}

function lossGradient(builder: GradientBuilder, node: Node<Scaled>, dy: Gradient): Value {
  const gradient = node.outputs[1] as Value;
  if (typeof dy === "number") {
    node.attrs.gradFactor = dy;
    return gradient;
  }
  return scaleBy(builder, gradient, dy);
}

function workspace(device: Device, n: number, anchors: number, classes: number): Preparation {
  return scratchMemory((out) => device.native.detectionLossWorkspace(device.handle, out, n, anchors, classes));
}

const focal: Op<Scaled & { alpha: number; gamma: number }> = {
  kind: "focal_loss",
  optionalOutputs: [1],
  infer([logits, matches, labels, foreground]) {
    expectActivation(logits!, "logits");
    const [n, a] = logits!.shape;
    expectShape(
      logits!.shape.length === 3,
      () => `logits should have shape (N, A, classes), got (${logits!.shape.join(", ")})`,
    );
    expectShape(
      matches!.shape.join() === `${n},${a}`,
      () => `expected matches of shape (${n}, ${a}), got (${matches!.shape.join(", ")})`,
    );
    expectShape(
      labels!.dtype === "i32" && labels!.shape[0] === n,
      () => `expected i32 labels of ${n} images, got ${labels!.dtype} (${labels!.shape.join(", ")})`,
    );
    expectShape(
      foreground!.shape.join() === `${n}`,
      () => `expected foreground counts (${n}), got (${foreground!.shape.join(", ")})`,
    );
    return [{ shape: [], dtype: "f32" }, logits!];
  },
  gradient: (builder, node, [dy]) => [lossGradient(builder, node, dy!), null, null, null],
  prepare: (device, { inputs: [logits] }) => workspace(device, ...(logits!.shape as [number, number, number])),
  emit(e, { inputs: [logits, matches, labels, foreground], outputs: [loss, gradient], attrs }) {
    const [dst, dlogits] = [e.address(loss!), e.optional(gradient)];
    const [x, m, l, fg, scratch] = [
      e.address(logits!),
      e.address(matches!),
      e.address(labels!),
      e.address(foreground!),
      e.workspace,
    ];
    const [n, a, k] = logits!.shape as [number, number, number];
    const [maxBoxes, dtype] = [labels!.shape[1]!, dtypeCode(logits!.dtype)];
    const { alpha, gamma, gradFactor } = attrs;
    e.call(() =>
      e.native.focalLoss(
        e.stream,
        dst,
        dlogits,
        x,
        m,
        l,
        fg,
        scratch,
        n,
        a,
        k,
        maxBoxes,
        dtype,
        alpha,
        gamma,
        gradFactor,
      ),
    );
  },
};

/**
 * Sigmoid focal loss (Lin et al. 2017), summed over the anchors that are not ignored and all classes, divided by the image's
 * foreground anchors (at least 1), averaged over images: torchvision's RetinaNetClassificationHead.compute_loss.
 *
 * @param logits (N, A, classes)
 */
export function focalLoss(
  logits: Value,
  { matches, foreground }: { matches: Value; foreground: Value },
  targets: Targets,
  { alpha = 0.25, gamma = 2 }: { alpha?: number; gamma?: number } = {},
): Value {
  return applyOp(focal, [logits, matches, targets.labels, foreground], { alpha, gamma, gradFactor: 1 })[0] as Value;
}

const box: Op<Scaled & { weights: BoxCoderWeights; beta: number }> = {
  kind: "box_loss",
  optionalOutputs: [1],
  infer([deltas, anchors, matches, boxes]) {
    expectActivation(deltas!, "box deltas");
    const [n, a] = matches!.shape;
    expectShape(
      deltas!.shape.join() === `${n},${a},4`,
      () => `box deltas should have shape (${n}, ${a}, 4), got (${deltas!.shape.join(", ")})`,
    );
    expectShape(anchors!.shape[0] === a, () => `expected ${a} anchors, got ${anchors!.shape[0]}`);
    expectShape(boxes!.shape[0] === n, () => `expected boxes of ${n} images, got ${boxes!.shape[0]}`);
    return [{ shape: [], dtype: "f32" }, deltas!];
  },
  gradient: (builder, node, [dy]) => [lossGradient(builder, node, dy!), null, null, null, null],
  prepare: (device, { inputs: [deltas] }) => workspace(device, deltas!.shape[0]!, deltas!.shape[1]!, 4),
  emit(e, { inputs: [deltas, anchors, matches, boxes, foreground], outputs: [loss, gradient], attrs }) {
    const [dst, ddeltas] = [e.address(loss!), e.optional(gradient)];
    const [x, a, m, b, fg, scratch] = [deltas, anchors, matches, boxes, foreground]
      .map((v) => e.address(v!))
      .concat(e.workspace ?? 0) as [number, number, number, number, number, number];
    const [n, count] = deltas!.shape as [number, number];
    const [maxBoxes, dtype] = [boxes!.shape[1]!, dtypeCode(deltas!.dtype)];
    const { weights, beta, gradFactor } = attrs;
    e.call(() =>
      e.native.boxLoss(
        e.stream,
        dst,
        ddeltas,
        x,
        a,
        m,
        b,
        fg,
        scratch || null,
        n,
        count,
        maxBoxes,
        dtype,
        ...weights,
        beta,
        gradFactor,
      ),
    );
  },
};

/**
 * Smooth L1 between predicted and encoded boxes of the foreground anchors, summed, divided by the image's foreground (at least
 * 1), averaged over images: torchvision's RetinaNetRegressionHead.compute_loss. beta 0 is L1, torchvision's default.
 *
 * @param deltas (N, A, 4)
 */
export function boxLoss(
  deltas: Value,
  anchors: Value,
  { matches, foreground }: { matches: Value; foreground: Value },
  targets: Targets,
  { weights = [1, 1, 1, 1], beta = 0 }: { weights?: BoxCoderWeights; beta?: number } = {},
): Value {
  const inputs = [deltas, anchors, matches, targets.boxes, foreground];
  return applyOp(box, inputs, { weights, beta, gradFactor: 1 })[0] as Value;
}

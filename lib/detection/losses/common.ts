/** What the detection losses share. */
import {
  type Emitter,
  expectActivation,
  expectShape,
  type Gradient,
  type GradientBuilder,
  type Node,
  type Preparation,
  type Spec,
  scaleBy,
  scratchMemory,
  type Value,
} from "../../graph";
import { check, constants } from "../../native";
import { type Device, dtypeCode } from "../../tensor";

/** What matchAnchors gives: which box each anchor is matched to, and how many anchors of each image are. */
export interface Matched {
  /** (N, A) int32: the index of the anchor's box, -1 background, -2 ignored. */
  readonly matches: Value;
  /** (N) int32: the number of foreground anchors. */
  readonly foreground: Value;
}

/**
 * What the sum of a loss is divided by: "image", each image's foreground anchors (at least 1), then the mean over images
 * (RetinaNet); or "batch", the foreground anchors of the whole batch (at least 1; FCOS and SSD).
 */
export type LossNormalization = "image" | "batch";

const normalizationCodes: Record<LossNormalization, number> = {
  image: constants.LOSS_PER_IMAGE,
  batch: constants.LOSS_WHOLE_BATCH,
};

/** The DLFS_LOSS_ constant of dlfs.h; an unknown name is an error of the loss `op`. */
export function normalizationCode(op: string, normalization: LossNormalization): number {
  return codeOf(op, "normalization", normalizationCodes, normalization);
}

/** The code of an option's value; names the values there are where it is none of them. */
export function codeOf<K extends string>(op: string, option: string, codes: Record<K, number>, value: K): number {
  check(
    Object.hasOwn(codes, value),
    op,
    () => `expected ${option} to be one of ${Object.keys(codes).join(", ")}, got ${JSON.stringify(value)}`,
  );
  return codes[value];
}

/** The loss kernels write their gradient in the forward pass, scaled by this; the backward rule sets it. */
export interface Scaled {
  normalization: number;
  gradFactor: number;
}

/** Backward rule of an operation whose second output is the gradient of its first, a scalar, by its first input. */
export function lossGradient(
  builder: GradientBuilder,
  node: Node<Scaled>,
  [dy]: readonly (Gradient | null)[],
): (Value | null)[] {
  const gradient = node.outputs[1] as Value;
  const others = node.inputs.slice(1).map(() => null);
  if (typeof dy === "number") {
    node.attrs.gradFactor = dy;
    return [gradient, ...others];
  }
  return [scaleBy(builder, gradient, dy!), ...others];
}

/** What dlfs.h's losses of class logits take after the stream; their own options and the `Scaled` ones follow. */
export function classLossOperands(e: Emitter, { inputs, outputs: [loss, gradient] }: Node) {
  const [logits, matches, labels, foreground] = inputs as [Value, Value, Value, Value];
  const [n, anchors, classes] = logits.shape as [number, number, number];
  return [
    e.address(loss!),
    e.optional(gradient),
    e.address(logits),
    e.address(matches),
    e.address(labels),
    e.address(foreground),
    e.workspace,
    n,
    anchors,
    classes,
    labels.shape[1]!,
    dtypeCode(logits.dtype),
  ] as const;
}

/** What dlfs.h's losses of (N, A, ...) values against boxes take after the stream, as `classLossOperands`. */
export function boxLossOperands(e: Emitter, { inputs, outputs: [loss, gradient] }: Node) {
  const [values, anchors, matches, boxes, foreground] = inputs as [Value, Value, Value, Value, Value];
  const [n, count] = values.shape as [number, number];
  return [
    e.address(loss!),
    e.optional(gradient),
    e.address(values),
    e.address(anchors),
    e.address(matches),
    e.address(boxes),
    e.address(foreground),
    e.workspace,
    n,
    count,
    boxes.shape[1]!,
    dtypeCode(values.dtype),
  ] as const;
}

/** Scratch memory of the losses that only sum. */
export function sumWorkspace(device: Device, n: number, anchors: number, classes: number): Preparation {
  return scratchMemory((out) => device.native.detectionLossWorkspace(device.handle, out, n, anchors, classes));
}

/** Checks matches and foreground counts of (n, anchors) predictions. */
function expectMatched(matches: Spec, foreground: Spec, n: number, anchors: number): void {
  expectShape(
    matches.dtype === "i32" && matches.shape.join() === `${n},${anchors}`,
    () => `expected matches of shape (${n}, ${anchors}), got ${matches.dtype} (${matches.shape.join(", ")})`,
  );
  expectShape(
    foreground.dtype === "i32" && foreground.shape.join() === `${n}`,
    () => `expected foreground counts (${n}), got ${foreground.dtype} (${foreground.shape.join(", ")})`,
  );
}

/** Checks (N, A, classes) logits with what their anchors are matched to, and the labels of the boxes. */
export function expectClassLogits(logits: Spec, matches: Spec, labels: Spec, foreground: Spec): void {
  expectActivation(logits, "logits");
  expectShape(
    logits.shape.length === 3,
    () => `logits should have shape (N, A, classes), got (${logits.shape.join(", ")})`,
  );
  const [n, anchors] = logits.shape as [number, number, number];
  expectMatched(matches, foreground, n, anchors);
  expectShape(
    labels.dtype === "i32" && labels.shape.length === 2 && labels.shape[0] === n,
    () => `expected i32 labels of ${n} images, got ${labels.dtype} (${labels.shape.join(", ")})`,
  );
}

/** Checks predictions of (N, A) anchors, `what`, with the anchors, what they are matched to, and the boxes. */
export function expectAnchorValues(values: Spec, what: string, [anchors, matches, boxes, foreground]: Spec[]): void {
  expectActivation(values, what);
  const [n, count] = values.shape as [number, number];
  expectShape(
    anchors!.dtype === "f32" && anchors!.shape.join() === `${count},4`,
    () => `expected ${count} anchors (${count}, 4), got ${anchors!.dtype} (${anchors!.shape.join(", ")})`,
  );
  expectMatched(matches!, foreground!, n, count);
  const [images, , coordinates] = boxes!.shape;
  expectShape(
    boxes!.dtype === "f32" && boxes!.shape.length === 3 && images === n && coordinates === 4,
    () => `expected boxes of ${n} images (${n}, M, 4), got ${boxes!.dtype} (${boxes!.shape.join(", ")})`,
  );
}

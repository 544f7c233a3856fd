/** What the detection losses share. */
import {
  type Emitter,
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
import { expectMaps, type LevelLayout, MAX_LEVELS, mapArrays } from "../levels";

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

/** The loss kernels write their gradient in the forward pass, times these; the backward rule sets them. */
export interface Scaled {
  normalization: number;
  gradFactor: number;
  /** A number that is known on the device before the run. Default: none. */
  gradScale?: Value | null;
}

/** Backward rule of an operation whose first output is a scalar, and the others its gradients by the first inputs. */
export function lossGradient(
  builder: GradientBuilder,
  node: Node<Scaled>,
  [dy]: readonly (Gradient | null)[],
): (Value | null)[] {
  const gradients = node.outputs.slice(1);
  const others = node.inputs.slice(gradients.length).map(() => null);
  if (typeof dy === "number") {
    node.attrs.gradFactor = dy;
    node.attrs.gradScale = builder.scale;
    return [...gradients, ...others];
  }
  return [...gradients.map((gradient) => scaleBy(builder, gradient, dy!)), ...others];
}

/** What the losses of level maps have in common: inputs are the maps, then the others; outputs the loss and the gradients. */
export interface LevelAttrs extends Scaled {
  readonly layout: LevelLayout;
}

export const levelLoss = {
  // A gradient takes the place of its map, which backward passes of convolutions do not need.
  inplace: (output: number) => (output === 0 ? [] : [output - 1]),
  optionalOutputs: Array.from({ length: MAX_LEVELS }, (_, level) => level + 1),
  gradient: lossGradient,
  padded: ({ attrs }: Node<LevelAttrs>) => Array.from({ length: attrs.layout.levels }, (_, level) => level),
};

/** The same for the losses of foreground anchors: the other inputs are anchors, matches, boxes, foreground. */
export const anchorLoss = {
  ...levelLoss,
  prepare(device: Device, { inputs, attrs: { layout } }: Node<LevelAttrs>): Preparation {
    const [n, anchors] = inputs[layout.levels + 1]!.shape as [number, number];
    return sumWorkspace(device, n, anchors, layout.columns);
  },
};

/** M of a loss of foreground anchors. */
export function maxBoxes({ inputs, attrs: { layout } }: Node<LevelAttrs>): number {
  return inputs[layout.levels + 2]!.shape[1]!;
}

/** The inputs of a loss of level maps: the maps, and the others. */
export function splitInputs<T>(inputs: readonly T[], { levels }: LevelLayout): [maps: T[], others: T[]] {
  return [inputs.slice(0, levels), inputs.slice(levels)];
}

/** The arguments of dlfs.h's losses that say where the maps are and what sizes they have. */
export function levelOperands(
  e: Emitter,
  node: Node<LevelAttrs>,
): {
  /** The loss, the gradients' and the maps' addresses. */
  readonly at: readonly [number, BigInt64Array, BigInt64Array];
  /** Addresses of the other inputs. */
  readonly others: number[];
  /** Address of the number that multiplies the gradients. */
  readonly scale: number | null;
  /** Cells, pitches, levels, images, anchors of a cell. */
  readonly sizes: readonly [Int32Array, Int32Array, number, number, number];
  readonly dtype: number;
} {
  const { layout } = node.attrs;
  const [maps, others] = splitInputs(node.inputs, layout);
  const [loss, ...gradients] = node.outputs as [Value, ...Value[]];
  const { addresses, cells, pitches } = mapArrays(e, maps);
  return {
    at: [e.address(loss), mapArrays(e, gradients).addresses, addresses],
    others: others.map((value) => e.address(value)),
    scale: scaleAddress(e, node),
    sizes: [cells, pitches, layout.levels, maps[0]!.shape[0]!, layout.perCell],
    dtype: dtypeCode(maps[0]!.dtype),
  };
}

export function scaleAddress(e: Emitter, { attrs: { gradScale } }: Node<Scaled>): number | null {
  return e.optional(gradScale ?? undefined);
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

/** Checks what the anchors of (n, anchors) class logits are matched to, and the labels of the boxes. */
export function expectLabels([matches, labels, foreground]: Spec[], n: number, anchors: number): void {
  expectMatched(matches!, foreground!, n, anchors);
  expectShape(
    labels!.dtype === "i32" && labels!.shape.length === 2 && labels!.shape[0] === n,
    () => `expected i32 labels of ${n} images, got ${labels!.dtype} (${labels!.shape.join(", ")})`,
  );
}

/** Checks what the predictions of (n, count) anchors come with: the anchors, what they are matched to, and the boxes. */
function expectTruth([anchors, matches, boxes, foreground]: Spec[], n: number, count: number): void {
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

/** Infers a loss of level maps of anchors' values, `what`, with `columns` of each. */
export function inferAnchorLoss(
  inputs: readonly Spec[],
  { layout }: LevelAttrs,
  what: string,
  columns: string,
): Spec[] {
  const [maps, others] = splitInputs(inputs, layout);
  const count = expectMaps(maps, layout, what, columns);
  expectTruth(others, maps[0]!.shape[0]!, count);
  return [{ shape: [], dtype: "f32" }, ...maps];
}

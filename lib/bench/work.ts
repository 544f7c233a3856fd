/**
 * What the nodes of a graph do at least, and the floor that follows: the time that a device would take if each node ran at the
 * measured ceiling of its arithmetic or of its traffic, whichever is longer.
 *
 * The floor of a program is the sum over the nodes of its graph, after the graph's own rewrites, of
 *
 *   max(flops / matrix ceiling, bytes / copy rate)
 *
 * where flops are the multiplications and additions of convolutions and linear maps, and bytes those of every operand read once
 * and every result written once, at their dtypes. Nodes that a kernel beside them could do on the way (see PASSENGERS) count
 * without their first operand and their result, which are counted there; the mask of a ReLU counts a bit an element, since no
 * more of it is needed. So the floor is that of the same graph with all such nodes fused, each other node a single pass, and
 * nothing kept in a cache between nodes; fusing larger parts (a normalization into the convolution before it) can go below it.
 */
import type { Node, Value } from "../graph";
import { dtypeSize, elementCount } from "../tensor";
import type { Ceilings, Work } from "./measure";

export interface NodeWork extends Work {
  /** The bytes that count for the floor. */
  floorBytes: number;
}

export const noWork: NodeWork = { flops: 0, bytes: 0, floorBytes: 0 };

/** Elementwise and copying kinds, which could be the beginning or the end of another node's kernel. */
const PASSENGERS = new Set([
  "batch_norm_infer",
  ...["activation", "activation_backward", "add", "add_bias", "multiply", "scale", "cast", "channel_sum"],
  ...["concat", "slice", "slice_backward", "transpose", "reshape", "constant", "fill"],
]);

/** Operands that are needed for the sign of their elements alone. */
const MASKS: Readonly<Record<string, number>> = { activation_backward: 1, batch_norm_backward: 5 };

/** Kinds that read and write no more of their operand than the result has. */
const PARTIAL = new Set(["slice"]);

const bytesOf = ({ shape, dtype }: Value): number => elementCount(shape) * dtypeSize(dtype);

function product(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** Attributes of a convolution's gradients: the geometry with the shapes of x and w. */
interface GradientAttrs {
  readonly x: readonly number[];
  readonly w: readonly number[];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly dilation: readonly [number, number];
}

function isGradientAttrs(attrs: unknown): attrs is GradientAttrs {
  const { x, w, stride } = (attrs ?? {}) as Partial<GradientAttrs>;
  return Array.isArray(x) && Array.isArray(w) && Array.isArray(stride);
}

/** Output pixels of the convolution of x (N, H, W, C) by w (K, R, S, C / groups); rows of a linear map. */
function outputPixels({ x, w, stride, padding, dilation }: GradientAttrs): number {
  if (w.length === 2) return product(x) / (x.at(-1) as number);
  const size = (d: 0 | 1) =>
    Math.floor((x[1 + d]! + 2 * padding[d] - dilation[d] * (w[1 + d]! - 1) - 1) / stride[d]) + 1;
  return x[0]! * size(0) * size(1);
}

/** Multiplications and additions of a convolution or a linear map in any direction; 0 for other kinds. */
function flopsOf({ op, inputs, outputs, attrs }: Node): number {
  if (isGradientAttrs(attrs)) return 2 * outputPixels(attrs) * product(attrs.w);
  const weight = inputs[1]?.shape;
  if (!weight || (weight.length !== 4 && weight.length !== 2)) return 0;
  const perOutput = product(weight.slice(1));
  if (op.kind.startsWith("conv2d") || op.kind.startsWith("linear")) {
    return 2 * elementCount(outputs[0]!.shape) * perOutput;
  }
  // Each element of the input meets the weights of its channel.
  return op.kind.startsWith("conv_transpose2d") ? 2 * elementCount(inputs[0]!.shape) * perOutput : 0;
}

/** What one node does at least. */
export function nodeWork(node: Node): NodeWork {
  const { kind } = node.op;
  const sizes = node.inputs.map(bytesOf);
  const written = node.outputs.map(bytesOf);
  const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
  if (PARTIAL.has(kind)) return { flops: 0, bytes: 2 * sum(written), floorBytes: 0 };
  const mask = MASKS[kind];
  const least = sizes.map((bytes, i) => (i === mask ? elementCount(node.inputs[i]!.shape) / 8 : bytes));
  const floorBytes = kind === "concat" ? 0 : PASSENGERS.has(kind) ? sum(least.slice(1)) : sum(least) + sum(written);
  return { flops: flopsOf(node), bytes: sum(sizes) + sum(written), floorBytes };
}

/** Milliseconds below which a device with these ceilings cannot do the work. */
export function floorOf(
  { flops, floorBytes }: NodeWork,
  { gflops, gbytes }: Pick<Ceilings, "gflops" | "gbytes">,
): number {
  return Math.max(flops / gflops, floorBytes / gbytes) / 1e6;
}

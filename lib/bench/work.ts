/**
 * What the nodes of a graph do at least, and the floor that follows: the time that a device would take if each node ran at the
 * measured ceiling of its arithmetic or of its traffic, whichever is longer.
 *
 * The floor of a program is the sum over the nodes of its graph, after the graph's own rewrites, of
 *
 *   max(flops / matrix ceiling, bytes / copy rate)      (twice the ceiling for convolutions of 8 bits)
 *
 * where flops are the multiplications and additions of convolutions and linear maps, and bytes those of every operand read once
 * and every result written once, at their dtypes. Nodes that a kernel beside them could do on the way (see PASSENGERS) count
 * without their first operand and their result, which are counted there; the mask of a ReLU counts a bit an element, since no
 * more of it is needed. So the floor is that of the same graph with all such nodes fused, each other node a single pass, and
 * nothing kept in a cache between nodes; fusing larger parts (a normalization into the convolution before it) can go below it.
 */
import { type Node, productFlops, type Value } from "../graph";
import { dtypeSize, elementCount } from "../tensor";
import type { Ceilings, Work } from "./measure";

export interface NodeWork extends Work {
  /** The bytes that count for the floor. */
  floorBytes: number;
  /** How many times as fast as at 16 bits the device's matrix units are at this work; default 1. */
  speed?: number;
}

export const noWork: NodeWork = { flops: 0, bytes: 0, floorBytes: 0 };

/** Elementwise and copying kinds, which could be the beginning or the end of another node's kernel. */
const PASSENGERS = new Set([
  "batch_norm_infer",
  "batch_norm_fold_backward",
  ...["activation", "activation_backward", "add", "add_bias", "multiply", "scale", "cast", "channel_sum"],
  ...["concat", "slice", "slice_backward", "transpose", "reshape", "constant", "fill"],
]);

/** The operand that is needed for the sign of its elements alone, of the kinds that have one. */
const MASKS: Readonly<Record<string, (node: Node) => number>> = {
  activation_backward: () => 1,
  conv2d_backward_data: ({ inputs, attrs }) => ((attrs as { mask?: boolean }).mask ? inputs.length - 1 : -1),
};

/** Kinds that read and write no more of their operand than the result has. */
const PARTIAL = new Set(["slice"]);

const bytesOf = ({ shape, dtype }: Value): number => elementCount(shape) * dtypeSize(dtype);

/** What one node does at least. */
export function nodeWork(node: Node): NodeWork {
  const { kind } = node.op;
  const sizes = node.inputs.map(bytesOf);
  const written = node.outputs.map(bytesOf);
  const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
  if (PARTIAL.has(kind)) return { flops: 0, bytes: 2 * sum(written), floorBytes: 0 };
  const mask = MASKS[kind]?.(node);
  const least = sizes.map((bytes, i) => (i === mask ? elementCount(node.inputs[i]!.shape) / 8 : bytes));
  const floorBytes = kind === "concat" ? 0 : PASSENGERS.has(kind) ? sum(least.slice(1)) : sum(least) + sum(written);
  const work = { flops: productFlops(node), bytes: sum(sizes) + sum(written), floorBytes };
  return kind === "conv2d_scaled" ? { ...work, speed: 2 } : work;
}

/** Milliseconds below which a device with these ceilings cannot do the work. */
export function floorOf(
  { flops, floorBytes, speed = 1 }: NodeWork,
  { gflops, gbytes }: Pick<Ceilings, "gflops" | "gbytes">,
): number {
  return Math.max(flops / (gflops * speed), floorBytes / gbytes) / 1e6;
}

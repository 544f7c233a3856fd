import type { Node } from "./node";
import { type BackwardDataAttrs, convBackwardData, convBackwardDataOnto } from "./ops/conv";
import { type ActivationAttrs, activateBackward, add } from "./ops/elementwise";
import { type Rewrite, Rewriter } from "./rewriter";
import type { Graph } from "./trace";
import type { Value } from "./value";

/**
 * Rewrites a differentiated graph, merging passes over memory into the data gradients that they follow:
 *   conv2d_backward_data + add                           -> conv2d_backward_data with a residual: a value that is used several
 *                                                           times, as a block's input is, sums its gradients
 *   conv2d_backward_data (+ add) + backward of a ReLU    -> the same with a mask
 *
 * @param nodes all that results depend on, and nothing else: what nothing reads would count as a reader
 * @param results values that are read after the nodes have run; replaced, in place, by what stands for them afterwards
 * @returns the nodes that are left
 */
export function fuseGradients(graph: Graph, nodes: readonly Node[], results: Value[]): Node[] {
  const rewriter = new Rewriter(graph, nodes, results);
  const masked = new Set(nodes.flatMap((node) => (isReluBackward(node) ? [node.inputs[0]!] : [])));
  const left = rewriter.run((node) => mergeSum(rewriter, node, masked) ?? mergeMask(rewriter, node));
  for (const [i, value] of results.entries()) results[i] = rewriter.current(value);
  return left;
}

/** The attributes of the data gradient of a convolution; null for other nodes. */
function dataGradient(node: Node | null): BackwardDataAttrs | null {
  return node && (node.op === convBackwardData || node.op === convBackwardDataOnto)
    ? (node.attrs as BackwardDataAttrs)
    : null;
}

function isReluBackward({ op, attrs }: Node): boolean {
  return op === activateBackward && (attrs as ActivationAttrs).activation === "relu";
}

/**
 * Which of two data gradients takes the other as its residual, the lowest first. Libraries fuse with those of stride 1. A 1x1
 * kernel with stride leaves most pixels of a sum as they are, unless all of them are to be masked.
 */
function sumRank({ stride, padding, groups, w }: BackwardDataAttrs, masked: boolean): number {
  if (stride.every((step) => step === 1)) return 1;
  const sparse = w[1] === 1 && w[2] === 1 && padding.every((size) => size === 0) && groups === 1;
  return sparse && !masked ? 0 : 2;
}

/** dx + other, dx read here only. */
function mergeSum(rewriter: Rewriter, node: Node, masked: ReadonlySet<Value>): Rewrite | null {
  if (node.op !== add || (node.attrs as ActivationAttrs).activation !== "none") return null;
  const [a, b] = node.inputs as [Value, Value];
  const candidates = (
    [
      [a, b],
      [b, a],
    ] as const
  ).flatMap(([dx, other]) => {
    const first = rewriter.sole(dx);
    const attrs = dataGradient(first);
    return first && attrs && !attrs.residual && !attrs.mask ? [{ first, attrs, dx, other }] : [];
  });
  const rank = ({ attrs }: { attrs: BackwardDataAttrs }) => sumRank(attrs, masked.has(node.outputs[0]!));
  const [best] = candidates.sort(
    (p, q) => rank(p) - rank(q) || rewriter.positionOf(q.dx) - rewriter.positionOf(p.dx), // the later one
  );
  if (!best) return null;
  const { first, attrs, other } = best;
  // The convolution reads all of dy for each part of dx: a sum with dy itself needs memory of its own.
  const op = other === first.inputs[0] ? convBackwardData : convBackwardDataOnto;
  return { first, merged: rewriter.make(op, [...first.inputs, other], { ...attrs, residual: true }, first.path) };
}

/** The gradient of a ReLU's result y, read here only, masked by y. */
function mergeMask(rewriter: Rewriter, node: Node): Rewrite | null {
  if (!isReluBackward(node)) return null;
  const [dy, y] = node.inputs as [Value, Value];
  const first = rewriter.sole(dy);
  const attrs = dataGradient(first);
  if (!first || !attrs || attrs.mask) return null;
  const merged = rewriter.make(
    first.op as typeof convBackwardData,
    [...first.inputs, y],
    { ...attrs, mask: true },
    first.path,
  );
  return { first, merged };
}

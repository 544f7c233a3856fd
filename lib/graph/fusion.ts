import type { Device } from "../tensor";
import type { Node } from "./node";
import { type ConvAttrs, conv2d, linear } from "./ops/conv";
import { addBias } from "./ops/conv-transpose";
import { type ActivationAttrs, activate, add, isFusedActivation, keepsInput } from "./ops/elementwise";
import { groupNorm } from "./ops/group-norm";
import { type BatchNormAttrs, batchNormFold, batchNormInfer, batchNormTrain } from "./ops/norm";
import { type BatchNormJoinAttrs, batchNormJoin } from "./ops/norm-join";
import { type Rewrite, Rewriter } from "./rewriter";
import type { Graph } from "./trace";
import type { Value } from "./value";

/**
 * Rewrites a traced forward graph before differentiation, merging operations into the ones that compute their input:
 *   batch_norm (+ add) (+ relu)              -> one batch_norm with residual and activation
 *   batch_norm + batch_norm (+ relu)         -> one batch_norm_join with activation, where both have the batch's statistics
 *   group_norm + relu                        -> one group_norm with activation
 *   conv2d + batch_norm_infer                -> conv2d with folded weights; in training where the normalization has nothing
 *                                               that is trained. The folding of weights that no run changes is hoisted
 *   conv2d (+ add) + activation              -> conv2d with residual and activation, where the device fuses epilogues;
 *                                               linear likewise
 *   add or add_bias + activation             -> the addition with activation
 * The activations of convolutions, linear and additions are relu, relu6, silu and sigmoid.
 * A value that something else reads too, or that is a result, is never merged away.
 *
 * @param training keeps what backward needs: an activation that is differentiated from its input (SiLU) stays on its own
 */
export function fuse(graph: Graph, device: Device, results: readonly Value[], training: boolean): void {
  const epilogue = device.supports("conv.epilogue");
  const rewriter = new Rewriter(graph, graph.nodes, results);
  graph.nodes = rewriter.run(
    (node) =>
      joinNorms(rewriter, node) ??
      mergeAdd(rewriter, node, epilogue) ??
      mergeActivation(rewriter, node, epilogue, training) ??
      foldBatchNorm(rewriter, node, training),
  );
  for (const [i, value] of results.entries()) (results as Value[])[i] = rewriter.current(value);
}

/** Whether the node is of a kind that takes a residual and an activation. */
const isProduct = ({ op }: Node): boolean => op === conv2d || op === linear;

/** x + y where both are batch normalizations with the batch's statistics, read here only. */
function joinNorms(rewriter: Rewriter, node: Node): Rewrite | null {
  if (node.op !== add || (node.attrs as ActivationAttrs).activation !== "none") return null;
  const [first, second] = [rewriter.sole(node.inputs[0]), rewriter.sole(node.inputs[1])];
  if (!first || !second || first === second) return null;
  const isPlain = ({ op, attrs }: Node) => {
    const { residual, activation, communicator } = attrs as BatchNormAttrs;
    return op === batchNormTrain && !residual && activation === "none" && !communicator;
  };
  if (!isPlain(first) || !isPlain(second)) return null;
  const [a, b] = [first.attrs as BatchNormAttrs, second.attrs as BatchNormAttrs];
  const attrs: BatchNormJoinAttrs = {
    eps: [a.eps, b.eps],
    momentum: [a.momentum, b.momentum],
    activation: "none",
    parts: [0, 0],
  };
  const merged = rewriter.make(batchNormJoin, [...first.inputs, ...second.inputs], attrs, first.path);
  return { first, second, merged };
}

/** x + y where one of them is a batch normalization or convolution read here only: its residual input. */
function mergeAdd(rewriter: Rewriter, node: Node, epilogue: boolean): Rewrite | null {
  if (node.op !== add || (node.attrs as ActivationAttrs).activation !== "none") return null;
  for (const slot of [1, 0]) {
    const first = rewriter.sole(node.inputs[slot]);
    const other = node.inputs[1 - slot]!;
    if (!first || other.node === first) continue;
    const isNorm = first.op === batchNormTrain || first.op === batchNormInfer;
    if (!isNorm && !(isProduct(first) && epilogue)) continue;
    const attrs = first.attrs as BatchNormAttrs | ConvAttrs;
    if (attrs.residual || attrs.activation !== "none") continue;
    const merged = rewriter.make(first.op, [...first.inputs, other], { ...attrs, residual: true }, first.path);
    return { first, merged };
  }
  return null;
}

/** activation(x) where x is a normalization, convolution, addition or bias read here only. */
function mergeActivation(rewriter: Rewriter, node: Node, epilogue: boolean, training: boolean): Rewrite | null {
  if (node.op !== activate) return null;
  const { activation } = node.attrs as ActivationAttrs;
  const first = rewriter.sole(node.inputs[0]);
  if (!first) return null;
  const norms: readonly unknown[] = [batchNormTrain, batchNormInfer, batchNormJoin, groupNorm];
  const isNorm = norms.includes(first.op);
  const fits = isNorm
    ? activation === "relu"
    : (first.op === add || first.op === addBias || (isProduct(first) && epilogue)) &&
      isFusedActivation(activation) &&
      !(training && keepsInput({ activation }));
  const attrs = first.attrs as ConvAttrs;
  if (!fits || attrs.activation !== "none") return null;
  return { first, merged: rewriter.make(first.op, first.inputs, { ...attrs, activation }, first.path) };
}

/** conv2d followed by batch_norm_infer: one convolution with folded weights. */
function foldBatchNorm(rewriter: Rewriter, node: Node, training: boolean): Rewrite | null {
  if (node.op !== batchNormInfer) return null;
  const first = rewriter.sole(node.inputs[0]);
  const norm = node.attrs as BatchNormAttrs;
  const conv = first?.attrs as ConvAttrs | undefined;
  if (!first || first.op !== conv2d || !conv || conv.residual || conv.activation !== "none") return null;
  const statistics = node.inputs.slice(1, 5);
  if (training && !statistics.every(isConstant)) return null;
  const leaf = first.inputs[1]!.leaf;
  if (!leaf || leaf.leaf === "input") return null; // a computed weight cannot be folded ahead of the run
  const w = rewriter.graph.parameter(leaf.parameter);
  const bias = conv.bias ? [first.inputs[2]!] : [];
  const attrs = { eps: norm.eps, dtype: first.inputs[0]!.dtype };
  const fold = rewriter.make(batchNormFold, [w, ...statistics, ...bias], attrs, node.path);
  rewriter.emit(fold);
  const [foldedW, foldedBias] = fold.outputs as [Value, Value];
  const operands = [first.inputs[0]!, foldedW, foldedBias];
  return { first, merged: rewriter.make(conv2d, operands, { ...conv, bias: true }, first.path) };
}

/** Whether a value is a parameter that is not trained. */
function isConstant({ leaf }: Value): boolean {
  return leaf !== null && leaf.leaf !== "input" && !leaf.parameter.requiresGrad;
}

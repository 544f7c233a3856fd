import type { Device } from "../tensor";
import type { Node } from "./node";
import { type ConvAttrs, conv2d, linear } from "./ops/conv";
import { addBias } from "./ops/conv-transpose";
import { type ActivationAttrs, activate, add, isFusedActivation, keepsInput } from "./ops/elementwise";
import { groupNorm } from "./ops/group-norm";
import { type BatchNormAttrs, batchNormFold, batchNormInfer, batchNormTrain } from "./ops/norm";
import type { Graph } from "./trace";
import type { Value } from "./value";

/**
 * Rewrites a traced forward graph before differentiation, merging operations into the ones that compute their input:
 *   batch_norm (+ add) (+ relu)              -> one batch_norm with residual and activation
 *   group_norm + relu                        -> one group_norm with activation
 *   conv2d + batch_norm_infer                -> conv2d with folded weights (inference; the folding is hoisted)
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
  const readers = countReaders(graph, results);
  const replaced = new Map<Value, Value>();
  const nodes: Node[] = [];
  const at = new Map<Value, number>();

  /** The node computing `value`, if `value` is read once only, so that it can be merged into its reader. */
  const sole = (value: Value | undefined): Node | null =>
    value?.node && readers.get(value) === 1 && at.has(value) ? (nodes[at.get(value)!] as Node) : null;

  const emit = (node: Node) => {
    for (const output of node.outputs) at.set(output, nodes.length);
    nodes.push(node);
  };
  /** Puts `merged` in the place of `last`; `first` disappears. The outputs keep their identity where results name them. */
  const merge = (first: Node, last: Node, merged: Node) => {
    const index = at.get(first.outputs[0]!)!;
    nodes[index] = tombstone;
    for (const [slot, output] of last.outputs.entries()) replaced.set(output, merged.outputs[slot]!);
    readers.set(merged.outputs[0]!, readers.get(last.outputs[0]!) ?? 0);
    emit(merged);
  };

  for (const original of graph.nodes) {
    const node: Node = { ...original, inputs: original.inputs.map((input) => replaced.get(input) ?? input) };
    const rewritten =
      mergeAdd(graph, node, sole, epilogue) ??
      mergeActivation(graph, node, sole, epilogue, training) ??
      foldBatchNorm(graph, node, sole, nodes, training);
    if (rewritten) merge(rewritten.first, original, rewritten.merged);
    else {
      Object.assign(original, { inputs: node.inputs });
      emit(original);
    }
  }
  graph.nodes = nodes.filter((node) => node !== tombstone);
  for (const [i, value] of results.entries()) (results as Value[])[i] = replaced.get(value) ?? value;
}

const tombstone: Node = {
  id: -1,
  op: { kind: "none", infer: () => [], emit() {} },
  inputs: [],
  outputs: [],
  attrs: {},
  path: "",
};

/** Whether the node is of a kind that takes a residual and an activation. */
const isProduct = ({ op }: Node): boolean => op === conv2d || op === linear;

type Sole = (value: Value | undefined) => Node | null;
interface Rewrite {
  first: Node;
  merged: Node;
}

function countReaders(graph: Graph, results: readonly Value[]): Map<Value, number> {
  const readers = new Map<Value, number>();
  const read = (value: Value) => readers.set(value, (readers.get(value) ?? 0) + 1);
  for (const node of graph.nodes) node.inputs.forEach(read);
  results.forEach(read);
  return readers;
}

/** Makes a node outside the graph's list; fuse() puts it where it belongs. */
function make(graph: Graph, op: Node["op"], inputs: Value[], attrs: unknown, path: string): Node {
  graph.append(op, inputs, attrs, path);
  return graph.nodes.pop() as Node;
}

/** x + y where one of them is a batch normalization or convolution read here only: its residual input. */
function mergeAdd(graph: Graph, node: Node, sole: Sole, epilogue: boolean): Rewrite | null {
  if (node.op !== add || (node.attrs as ActivationAttrs).activation !== "none") return null;
  for (const slot of [1, 0]) {
    const first = sole(node.inputs[slot]);
    const other = node.inputs[1 - slot]!;
    if (!first || other.node === first) continue;
    const isNorm = first.op === batchNormTrain || first.op === batchNormInfer;
    if (!isNorm && !(isProduct(first) && epilogue)) continue;
    const attrs = first.attrs as BatchNormAttrs | ConvAttrs;
    if (attrs.residual || attrs.activation !== "none") continue;
    return { first, merged: make(graph, first.op, [...first.inputs, other], { ...attrs, residual: true }, first.path) };
  }
  return null;
}

/** activation(x) where x is a normalization, convolution, addition or bias read here only. */
function mergeActivation(graph: Graph, node: Node, sole: Sole, epilogue: boolean, training: boolean): Rewrite | null {
  if (node.op !== activate) return null;
  const { activation } = node.attrs as ActivationAttrs;
  const first = sole(node.inputs[0]);
  if (!first) return null;
  const isNorm = first.op === batchNormTrain || first.op === batchNormInfer || first.op === groupNorm;
  const fits = isNorm
    ? activation === "relu"
    : (first.op === add || first.op === addBias || (isProduct(first) && epilogue)) &&
      isFusedActivation(activation) &&
      !(training && keepsInput({ activation }));
  const attrs = first.attrs as ConvAttrs;
  if (!fits || attrs.activation !== "none") return null;
  return { first, merged: make(graph, first.op, first.inputs, { ...attrs, activation }, first.path) };
}

/** conv2d followed by batch_norm_infer: one convolution with folded weights. */
function foldBatchNorm(graph: Graph, node: Node, sole: Sole, nodes: Node[], training: boolean): Rewrite | null {
  if (training || node.op !== batchNormInfer) return null;
  const first = sole(node.inputs[0]);
  const norm = node.attrs as BatchNormAttrs;
  const conv = first?.attrs as ConvAttrs | undefined;
  if (!first || first.op !== conv2d || !conv || conv.residual || conv.activation !== "none") return null;
  const leaf = first.inputs[1]!.leaf;
  if (!leaf || leaf.leaf === "input") return null; // a computed weight cannot be folded ahead of the run
  const w = graph.parameter(leaf.parameter);
  const bias = conv.bias ? [first.inputs[2]!] : [];
  const fold = make(
    graph,
    batchNormFold as Node["op"],
    [w, ...node.inputs.slice(1, 5), ...bias],
    { eps: norm.eps, dtype: first.inputs[0]!.dtype },
    node.path,
  );
  nodes.push(fold);
  const [foldedW, foldedBias] = fold.outputs as [Value, Value];
  const merged = make(
    graph,
    conv2d as Node["op"],
    [first.inputs[0]!, foldedW, foldedBias],
    { ...conv, bias: true },
    first.path,
  );
  return { first, merged };
}

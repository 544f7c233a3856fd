import { check, constants, DlfsError, ErrorCode } from "../native";
import { type DType, isQuantized, type QuantizedDType } from "../tensor";
import { productFlops } from "./cost";
import type { Node, Op } from "./node";
import { type ConvAttrs, conv2d, operands } from "./ops/conv";
import {
  conv2dScaled,
  countMagnitudes,
  dequantize,
  quantize,
  quantizeChannels,
  quantizedLimits,
  scaleVector,
} from "./ops/quantize";
import { upsampleNearest } from "./ops/upsample";
import type { Graph } from "./trace";
import type { Value } from "./value";

export interface QuantizeOptions {
  readonly dtype: QuantizedDType;
  /** Largest magnitude that each value is expected to have, by `valueKeys`: what is beyond it is clipped. */
  readonly ranges: Readonly<Record<string, number>>;
  /** Paths of layers whose convolutions keep the floating-point dtype, with all below them. */
  readonly exclude?: readonly string[];
}

/**
 * Names of the images-like values (N, H, W, C) of a fused inference graph that may be quantized: the path of the layer and the
 * kind of the operation, numbered where a layer is applied several times. The same model gives the same names for any input size.
 */
export function valueKeys(graph: Graph): Map<Value, string> {
  const keys = new Map<Value, string>();
  const seen = new Map<string, number>();
  const isImage = ({ shape, dtype }: Value) => shape.length === 4 && ["f32", "bf16", "f16"].includes(dtype);
  for (const [name, value] of graph.inputs) if (isImage(value)) keys.set(value, `input ${name}`);
  for (const node of graph.nodes) {
    const [value] = node.outputs;
    if (!value || !isImage(value) || node.op.hoist || node.op.alias) continue;
    const name = `${node.path} ${node.op.kind}`;
    const times = seen.get(name) ?? 0;
    seen.set(name, times + 1);
    keys.set(value, times === 0 ? name : `${name} ${times}`);
  }
  return keys;
}

/**
 * Lets a graph count the magnitudes of its values in each run.
 *
 * @param counts address of DLFS_MAGNITUDE_BINS int64 for each value, from the number of values; called once
 * @returns the keys of the values, in the order of their counts
 */
export function observeMagnitudes(graph: Graph, counts: (values: number) => number): string[] {
  const keys = valueKeys(graph);
  const base = counts(keys.size);
  const place = new Map([...keys.keys()].map((value, i) => [value, base + i * constants.MAGNITUDE_BINS * 8]));
  const observe = (value: Value): Node[] => {
    const address = place.get(value);
    return address === undefined ? [] : [make(graph, countMagnitudes, [value], { counts: address }, "calibration")];
  };
  graph.nodes = [
    ...[...graph.inputs.values()].flatMap(observe),
    ...graph.nodes.flatMap((node) => [node, ...node.outputs.flatMap(observe)]),
  ];
  return [...keys.values()];
}

/**
 * Rewrites a fused inference graph so that its convolutions work on 8 bits: weights are quantized ahead of the runs with a scale
 * for each output channel, activations have one scale each, from their calibrated ranges, and stay in 8 bits from one convolution
 * to the next, through residuals and nearest-neighbour upsampling, whose operands share a scale. What other operations read is
 * converted back. A convolution takes part where it has one group and its channels are multiples of 16 (those of the output may
 * be others where it stays in floating point).
 *
 * @throws DlfsError of code `argument` where no range is known for a value
 */
export function quantizeGraph(graph: Graph, results: Value[], options: QuantizeOptions): void {
  const { dtype, ranges, exclude = [] } = options;
  const isExcluded = (path: string) => exclude.some((layer) => path === layer || path.startsWith(`${layer}.`));
  const candidates = new Set(graph.nodes.filter((node) => isQuantizable(node) && !isExcluded(node.path)));
  const narrow = narrowValues(graph, candidates);
  const scales = scalesOf(graph, candidates, narrow, (key) => {
    const range = ranges[key];
    check(range !== undefined, "quantization", () => `no range for "${key}": calibrate this model again`);
    check(range >= 0 && range < Infinity, "quantization", () => `expected a finite range for "${key}", got ${range}`);
    return range === 0 ? 1 : range / quantizedLimits[dtype];
  });
  new Rewriter(graph, candidates, narrow, scales, dtype).run(results);
}

/** Activations a x = activation(a x) holds for with a > 0, so that the output's scale can be applied before. */
const isHomogeneous = (activation: string): boolean => activation === "none" || activation === "relu";

function isQuantizable(node: Node): boolean {
  if (node.op !== (conv2d as Op<unknown>)) return false;
  const [x, w] = node.inputs as [Value, Value];
  const { groups } = node.attrs as ConvAttrs;
  const isConstant = w.leaf ? w.leaf.leaf !== "input" : (w.node?.op.hoist ?? false);
  return isConstant && groups === 1 && x.shape[3]! % 16 === 0 && !isQuantized(x.dtype);
}

/** The values that are held in 8 bits: whatever a quantized convolution reads, and what is added to such results. */
function narrowValues(graph: Graph, candidates: ReadonlySet<Node>): Set<Value> {
  const narrow = new Set<Value>();
  for (const node of [...graph.nodes].reverse()) {
    const y = node.outputs[0]!;
    if (candidates.has(node)) {
      const attrs = node.attrs as ConvAttrs;
      narrow.add(node.inputs[0]!);
      if (narrow.has(y) && hasNarrowResult(node, narrow)) {
        const { residual } = operands(node.inputs, attrs);
        if (residual) narrow.add(residual);
      }
    } else if (node.op === (upsampleNearest as Op<unknown>) && narrow.has(y)) narrow.add(node.inputs[0]!);
  }
  return narrow;
}

function hasNarrowResult(node: Node, narrow: ReadonlySet<Value>): boolean {
  const y = node.outputs[0]!;
  return narrow.has(y) && isHomogeneous((node.attrs as ConvAttrs).activation) && y.shape[3]! % 16 === 0;
}

/** The scale of each value in 8 bits: one for all that are added or upsampled into each other, the largest of theirs. */
function scalesOf(
  graph: Graph,
  candidates: ReadonlySet<Node>,
  narrow: ReadonlySet<Value>,
  scaleOf: (key: string) => number,
): Map<Value, number> {
  const keys = valueKeys(graph);
  const groups = new Map<Value, Set<Value>>([...narrow].map((value) => [value, new Set([value])]));
  const unite = (a: Value, b: Value) => {
    const merged = new Set([...groups.get(a)!, ...groups.get(b)!]);
    for (const value of merged) groups.set(value, merged);
  };
  for (const node of graph.nodes) {
    const y = node.outputs[0]!;
    if (candidates.has(node) && hasNarrowResult(node, narrow)) {
      const { residual } = operands(node.inputs, node.attrs as ConvAttrs);
      if (residual) unite(y, residual);
    } else if (node.op === (upsampleNearest as Op<unknown>) && narrow.has(y)) unite(y, node.inputs[0]!);
  }
  const scales = new Map<Value, number>();
  for (const [value, group] of groups) {
    const known = [...group].map((member) => {
      const key = keys.get(member);
      if (key === undefined) throw new DlfsError(ErrorCode.internal, "quantization", `value ${member.id} has no name`);
      return scaleOf(key);
    });
    scales.set(value, Math.max(...known));
  }
  return scales;
}

/** Makes a node outside the graph's list. */
function make<A>(graph: Graph, op: Op<A>, inputs: readonly Value[], attrs: A, path: string): Node {
  graph.append(op, inputs, attrs, path);
  return graph.nodes.pop() as Node;
}

/** Builds the new list of nodes; every value of the old graph may have a floating-point form, one in 8 bits, or both. */
class Rewriter {
  readonly #nodes: Node[] = [];
  readonly #wide = new Map<Value, Value>();
  readonly #narrow = new Map<Value, Value>();
  readonly #weights = new Map<Value, readonly [w: Value, scale: Value]>();
  readonly #vectors = new Map<Value, Map<number, Value>>();

  constructor(
    readonly graph: Graph,
    readonly candidates: ReadonlySet<Node>,
    readonly narrow: ReadonlySet<Value>,
    readonly scales: ReadonlyMap<Value, number>,
    readonly dtype: QuantizedDType,
  ) {}

  run(results: Value[]): void {
    for (const node of this.graph.nodes) {
      const y = node.outputs[0];
      if (this.candidates.has(node)) this.#convolution(node);
      else if (node.op === (upsampleNearest as Op<unknown>) && this.narrow.has(y!)) {
        const x = this.#narrowOf(node.inputs[0]!, node.path);
        this.#narrow.set(
          y!,
          this.#apply(upsampleNearest, [x], node.attrs as { size: [number, number] }, node.path)[0]!,
        );
      } else {
        Object.assign(node, { inputs: node.inputs.map((input) => this.#wideOf(input, node.path)) });
        this.#nodes.push(node);
      }
    }
    for (const [i, value] of results.entries()) results[i] = this.#wideOf(value, "");
    this.graph.nodes = this.#nodes;
  }

  #convolution(node: Node): void {
    const { path } = node;
    const attrs = node.attrs as ConvAttrs;
    const [x, w] = node.inputs as [Value, Value];
    const [y] = node.outputs as [Value];
    const { bias, residual } = operands(node.inputs, attrs);
    const isNarrow = hasNarrowResult(node, this.narrow);
    // In the unit of the result, which is its scale in 8 bits, and 1 in floating point.
    const unit = isNarrow ? this.scales.get(y)! : 1;
    const [narrowW, channelScale] = this.#weight(w, path);
    const inputs = [
      this.#narrowOf(x, path),
      narrowW,
      this.#vector(channelScale, this.scales.get(x)! / unit, path),
      ...(bias ? [this.#vector(bias, 1 / unit, path)] : []),
      ...(residual ? [isNarrow ? this.#narrowOf(residual, path) : this.#wideOf(residual, path)] : []),
    ];
    const dtype: DType = isNarrow ? this.dtype : y.dtype;
    const [result] = this.#apply(conv2dScaled, inputs, { ...attrs, dtype }, path);
    (isNarrow ? this.#narrow : this.#wide).set(y, result!);
  }

  #apply<A>(op: Op<A>, inputs: readonly Value[], attrs: A, path: string): Value[] {
    const node = make(this.graph, op, inputs, attrs, path);
    this.#nodes.push(node);
    return node.outputs;
  }

  /** A value in 8 bits; quantized here where it is not yet. */
  #narrowOf(value: Value, path: string): Value {
    let found = this.#narrow.get(value);
    if (!found) {
      const attrs = { dtype: this.dtype, scale: this.scales.get(value)! };
      found = this.#apply(quantize, [this.#wideOf(value, path)], attrs, path)[0]!;
      this.#narrow.set(value, found);
    }
    return found;
  }

  /** A value in its floating-point dtype; converted back here where it is in 8 bits alone. */
  #wideOf(value: Value, path: string): Value {
    const found = this.#wide.get(value);
    if (found) return found;
    const narrow = this.#narrow.get(value);
    if (!narrow || this.#isKept(value)) return value;
    const wide = this.#apply(dequantize, [narrow], { dtype: value.dtype, scale: this.scales.get(value)! }, path)[0]!;
    this.#wide.set(value, wide);
    return wide;
  }

  /** Whether the node that computes a value in floating point is still there. */
  #isKept(value: Value): boolean {
    const { node } = value;
    if (!node) return true;
    return !this.candidates.has(node) && !(node.op === (upsampleNearest as Op<unknown>) && this.narrow.has(value));
  }

  #weight(w: Value, path: string): readonly [Value, Value] {
    let found = this.#weights.get(w);
    if (!found) {
      // The parameter itself rather than its low-precision copy.
      const source = w.leaf && w.leaf.leaf !== "input" ? this.graph.parameter(w.leaf.parameter) : w;
      found = this.#apply(quantizeChannels, [source], { dtype: this.dtype }, path) as [Value, Value];
      this.#weights.set(w, found);
    }
    return found;
  }

  #vector(vector: Value, factor: number, path: string): Value {
    if (factor === 1) return vector;
    const known = this.#vectors.get(vector) ?? new Map<number, Value>();
    this.#vectors.set(vector, known);
    let scaled = known.get(factor);
    if (!scaled) {
      scaled = this.#apply(scaleVector, [vector], { factor }, path)[0]!;
      known.set(factor, scaled);
    }
    return scaled;
  }
}

/** The arithmetic of a graph's products, in FLOP: in 8 bits, and in all. */
export function quantizedShare(graph: Graph): { quantized: number; all: number } {
  const share = { quantized: 0, all: 0 };
  for (const node of graph.nodes) {
    const flops = productFlops(node);
    share.all += flops;
    if (node.op === (conv2dScaled as Op<unknown>)) share.quantized += flops;
  }
  return share;
}

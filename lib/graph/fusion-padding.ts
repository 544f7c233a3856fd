import { type Device, dtypeCode, dtypeSize, elementCount } from "../tensor";
import type { Node, Op } from "./node";
import { expectShape } from "./node";
import { type ConvAttrs, conv2d } from "./ops/conv";
import { slice } from "./ops/shape";
import type { Graph } from "./trace";
import type { Value } from "./value";

/** Above so many channels of a result, convolutions run best at multiples of LARGE_STEP, below at multiples of STEP. */
const LARGE = 64;
const LARGE_STEP = 32;
const STEP = 8;

/** The channels that a convolution's result has in place of so many, where they are padded. */
export function paddedChannels(channels: number): number {
  const step = channels > LARGE ? LARGE_STEP : STEP;
  return channels % STEP === 0 ? channels : Math.ceil(channels / step) * step;
}

interface PadAttrs {
  /** Rows of the result. */
  readonly rows: number;
}

/** The rows of a tensor, then rows of zeros. */
const padRows: Op<PadAttrs> = {
  kind: "pad_rows",
  infer([x], { rows }) {
    expectShape(rows >= x!.shape[0]!, () => `expected at least ${x!.shape[0]} rows, got ${rows}`);
    return [{ shape: [rows, ...x!.shape.slice(1)], dtype: x!.dtype }];
  },
  gradient: (builder, { inputs: [x], outputs: [y] }, [dy]) =>
    builder.apply(slice, [builder.value(dy!, y!)], { axis: 0, start: 0, length: x!.shape[0]! }),
  emit(e, { inputs: [x], outputs: [y] }) {
    const [dst, src] = [e.address(y!), e.address(x!)];
    const [bytes, rest] = [elementCount(x!.shape), elementCount(y!.shape) - elementCount(x!.shape)];
    const size = dtypeSize(x!.dtype);
    e.call(() => e.native.copy(e.stream, dst, src, bytes * size));
    if (rest > 0) e.call(() => e.native.fill(e.stream, dst + bytes * size, rest, dtypeCode(x!.dtype), 0));
  },
};

/** The same ahead of the runs, of weights that do not change between them. */
const padRowsOnce: Op<PadAttrs> = { ...padRows, kind: "pad_rows_once", hoist: true };

/**
 * Pads the output channels of convolutions to a number that the device computes well with, where all that read the result
 * take padding (Op.padded): weights and bias get rows of zeros, shared by all convolutions of one weight, and the readers the
 * longer maps. Removing the padding would cost a copy of the result, which is the largest tensor of a detector's heads.
 * Rewrites the graph before differentiation, where the device says so ("conv.pad8").
 *
 * @param training weights change from run to run
 */
export function padChannels(graph: Graph, device: Device, results: readonly Value[], training: boolean): void {
  if (!device.supports("conv.pad8")) return;
  const readers = readersOf(graph);
  const kept = new Set(results);
  const padded = new Set<Node>(
    graph.nodes.filter((node) => {
      if (node.op !== conv2d) return false;
      const { groups, residual } = node.attrs as ConvAttrs;
      const [y] = node.outputs as [Value];
      const channels = y.shape.at(-1) as number;
      const reads = readers.get(y) ?? [];
      return (
        paddedChannels(channels) !== channels &&
        groups === 1 &&
        !residual &&
        !kept.has(y) &&
        reads.length > 0 &&
        reads.every(([reader, slot]) => reader.op.padded?.(reader).includes(slot))
      );
    }),
  );
  if (padded.size === 0) return;

  const replaced = new Map<Value, Value>();
  const longer = new Map<Value, Value>();
  const nodes = graph.nodes;
  graph.nodes = [];
  /** A weight or bias with rows of zeros; made at its first use. */
  const pad = (value: Value, rows: number): Value => {
    let made = longer.get(value);
    if (!made) {
      // What was folded ahead of the runs stays ahead of them; in training, weights change with every run.
      [made] = graph.append(training ? padRows : padRowsOnce, [value], { rows }, "") as [Value];
      longer.set(value, made);
    }
    return made;
  };
  for (const node of nodes) {
    const inputs = node.inputs.map((input) => replaced.get(input) ?? input);
    if (padded.has(node)) {
      const rows = paddedChannels(node.outputs[0]!.shape.at(-1) as number);
      const [x, ...weights] = inputs as [Value, ...Value[]];
      const operands = [x, ...weights.map((weight) => pad(weight, rows))];
      replaced.set(node.outputs[0]!, graph.append(node.op, operands, node.attrs, node.path)[0]!);
    } else if (inputs.some((input, slot) => input !== node.inputs[slot])) {
      const outputs = graph.append(node.op, inputs, node.attrs, node.path);
      for (const [slot, output] of node.outputs.entries()) replaced.set(output, outputs[slot]!);
    } else {
      graph.nodes.push(node);
    }
  }
  for (const [i, value] of results.entries()) (results as Value[])[i] = replaced.get(value) ?? value;
}

/** What reads each value, and through which input. */
function readersOf(graph: Graph): Map<Value, [Node, number][]> {
  const readers = new Map<Value, [Node, number][]>();
  for (const node of graph.nodes) {
    for (const [slot, input] of node.inputs.entries()) {
      const known = readers.get(input);
      if (known) known.push([node, slot]);
      else readers.set(input, [[node, slot]]);
    }
  }
  return readers;
}

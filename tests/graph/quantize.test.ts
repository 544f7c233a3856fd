/** Graphs in 8 bits compute what they compute in fp32, as closely as 8 bits allow, and convert only where they must. */
import { describe, expect, test } from "bun:test";
import {
  add,
  conv2d,
  maxPool2d,
  type Parameter,
  type Program,
  type QuantizeOptions,
  quantizedShare,
  quantizeGraph,
  relu,
  sigmoid,
  upsample,
  useParameter,
  type Value,
  valueKeys,
  withPath,
} from "../../lib/graph";
import type { QuantizedDType } from "../../lib/tensor";
import { missing, testDevice } from "../support/device";
import { Random } from "../support/random";
import { kinds, numbers, parameter, program } from "./support";

const device = testDevice();
const dtypes = (["f8", "i8"] as const).filter((dtype) => !missing(device, "f32", [`conv.${dtype}`]));
const images = { shape: [2, 16, 12, 3] };

/** A small network with all that is special: a stem of 3 channels, a residual, two levels that are added, shared head weights. */
class Network implements Disposable {
  readonly #owned = new Map<string, ReturnType<typeof parameter>>();

  conv(name: string, x: Value, k: number, kernel: number, stride = 1): Value {
    const shape = [k, kernel, kernel, x.shape[3]!];
    const fanIn = kernel * kernel * x.shape[3]!;
    const make = (suffix: string, of: number[], std: number) => {
      let found = this.#owned.get(name + suffix);
      if (!found) {
        const size = of.reduce((a, b) => a * b);
        found = parameter(device, { shape: of, values: new Random(name + suffix).normal(size, 0, std) }, name + suffix);
        this.#owned.set(name + suffix, found);
      }
      return useParameter(found);
    };
    const options = { stride, padding: (kernel - 1) / 2 };
    return withPath(name, () => conv2d(x, make(".w", shape, Math.sqrt(2 / fanIn)), make(".b", [k], 0.1), options));
  }

  forward({ images: x }: Record<string, Value>): Record<string, Value> {
    const stem = maxPool2d(relu(this.conv("stem", x!, 16, 3)), 2);
    const block = relu(add(this.conv("block.2", relu(this.conv("block.1", stem, 32, 1)), 16, 3), stem));
    const fine = this.conv("lateral.0", block, 32, 1);
    const coarse = this.conv("lateral.1", relu(this.conv("down", block, 48, 3, 2)), 32, 1);
    const merged = add(fine, upsample(coarse, { size: [8, 6] }));
    const head = (level: Value) => this.conv("last", relu(this.conv("head", level, 32, 3)), 36, 3);
    return { fine: head(merged), coarse: head(coarse), scores: sigmoid(this.conv("scores", merged, 16, 1)) };
  }

  get parameters(): Parameter[] {
    return [...this.#owned.values()];
  }

  [Symbol.dispose](): void {
    for (const one of this.#owned.values()) one[Symbol.dispose]();
  }
}

/** The largest magnitude of every value, from a run in fp32. */
function rangesOf(network: Network): Record<string, number> {
  const keys = new Map<Value, string>();
  using made = program(device, { images }, (inputs) => network.forward(inputs), {
    keepAll: true,
    rewrite: (graph) => {
      for (const [value, key] of valueKeys(graph)) keys.set(value, key);
    },
  });
  made.run();
  const ranges: Record<string, number> = { "input images": 4 };
  for (const [index, { outputs }] of made.calls.entries()) {
    const key = keys.get(outputs[0]!);
    if (key) ranges[key] = Math.max(...Array.from(made.readValue(index), Math.abs));
  }
  return ranges;
}

function quantized(network: Network, options: QuantizeOptions): { made: Program; share: number } {
  let share = 0;
  const made = program(device, { images }, (inputs) => network.forward(inputs), {
    rewrite: (graph, results) => {
      quantizeGraph(graph, results, options);
      const { quantized: some, all } = quantizedShare(graph);
      share = some / all;
    },
  });
  made.run();
  return { made, share };
}

/** Root mean square of the differences, as a share of that of the expected values. */
function relativeError(actual: readonly number[], expected: readonly number[]): number {
  const squares = (values: readonly number[]) => values.reduce((sum, value) => sum + value * value, 0);
  return Math.sqrt(squares(actual.map((value, i) => value - expected[i]!)) / squares(expected));
}

/** Half a unit of 4 bits of mantissa is 3 % at most, 1/127 of the range is as much of a common value; some layers add up. */
const allowed: Record<QuantizedDType, number> = { f8: 0.08, i8: 0.05 };

describe.each(dtypes)("a network in %s", (dtype) => {
  test("gives the results of fp32 within what rounding to 8 bits does, also when run again as a graph", () => {
    using network = new Network();
    using exact = program(device, { images }, (inputs) => network.forward(inputs));
    exact.run();
    const { made, share } = quantized(network, { dtype, ranges: rangesOf(network) });
    using owned = made;
    expect(share).toBeGreaterThan(0.8);
    for (const name of ["fine", "coarse", "scores"]) {
      const [actual, expected] = [numbers(made.results[name]), numbers(exact.results[name])];
      expect(relativeError(actual, expected)).toBeLessThan(allowed[dtype]);
      // and it is not fp32 that was computed
      expect(relativeError(actual, expected)).toBeGreaterThan(1e-4);
      owned.run();
      expect(numbers(made.results[name])).toEqual(actual);
    }
  });

  test("stays in 8 bits from the stem to the heads: one conversion, of the first value that is read", () => {
    using network = new Network();
    const { made } = quantized(network, { dtype, ranges: rangesOf(network) });
    using _ = made;
    const counts = new Map<string, number>();
    for (const kind of kinds(made)) counts.set(kind, (counts.get(kind) ?? 0) + 1);
    expect(counts.get("quantize")).toBe(1);
    expect(counts.get("dequantize")).toBeUndefined();
    expect(counts.get("conv2d")).toBe(1);
    expect(counts.get("conv2d_scaled")).toBe(10);
  });

  test("leaves out the layers that are named, with what is below them", () => {
    using network = new Network();
    const ranges = rangesOf(network);
    const { made } = quantized(network, { dtype, ranges, exclude: ["block", "last"] });
    using _ = made;
    const paths = made.calls.filter(({ kind }) => kind === "conv2d").map(({ path }) => path);
    expect(paths).toEqual(["stem", "block.1", "block.2", "last", "last"]);
  });

  test("follows the weights after refresh()", () => {
    using network = new Network();
    using exact = program(device, { images }, (inputs) => network.forward(inputs));
    const { made } = quantized(network, { dtype, ranges: rangesOf(network) });
    using _ = made;
    const before = numbers(made.results.coarse);
    for (const { tensor } of network.parameters) tensor.write(Array.from(tensor.read(), (value) => 0.8 * value));
    made.refresh();
    made.run();
    exact.run();
    const after = numbers(made.results.coarse);
    expect(relativeError(after, before)).toBeGreaterThan(0.1);
    expect(relativeError(after, numbers(exact.results.coarse))).toBeLessThan(2 * allowed[dtype]);
  });
});

test("a value without a range is named", () => {
  if (dtypes.length === 0) return;
  using network = new Network();
  const { "block.1 conv2d": _, ...ranges } = rangesOf(network);
  expect(() => quantized(network, { dtype: dtypes[0]!, ranges })).toThrow(
    'no range for "block.1 conv2d": calibrate this model again',
  );
});

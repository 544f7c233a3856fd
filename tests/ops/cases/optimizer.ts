/** SGD steps over lists of tensors, and the learning-rate schedule. */
import { decodeElements, dtypeCode, encodeElements, outHandle } from "../../../lib/tensor";
import { exact } from "../../support/compare";
import { loadGolden } from "../../support/golden";
import type { Arrays, Input, OpCase, Output } from "./case";

interface SgdOptions {
  sizes: readonly number[];
  /** Learning rate of each step. */
  rates: readonly number[];
  momentum: number;
  nesterov?: boolean;
  /** Per tensor, in turn. */
  decays?: readonly number[];
  factors?: readonly number[];
  gradFactor?: number;
  /** Value of the skip flag; none: no flag is passed. */
  skip?: number;
  /** Dtype of copies that follow every second parameter. */
  copies?: "bf16";
  /** Gradients of every step, momenta and parameters: given, or drawn. */
  given?: Arrays;
}

const cycle = (values: readonly number[], i: number): number => values[i % values.length]!;

/**
 * torch.optim.SGD in float64, one tensor: g = grad * gradFactor + decay * p; v = momentum * v + g; p -= lr * (nesterov ?
 * g + momentum * v : v).
 */
function step(
  p: number,
  v: number,
  grad: number,
  rate: number,
  decay: number,
  { momentum, nesterov = false, gradFactor = 1 }: SgdOptions,
): [number, number] {
  const g = grad * gradFactor + decay * p;
  const velocity = momentum * v + g;
  return [p - rate * (nesterov ? g + momentum * velocity : velocity), velocity];
}

/** Several steps; gradient i of step s is the input `g<i>.<s>`, rates are on the device. */
export function sgdStep(name: string, options: SgdOptions): OpCase {
  const {
    sizes,
    rates,
    momentum,
    nesterov = false,
    decays = [0],
    factors = [1],
    gradFactor = 1,
    skip,
    copies,
    given,
  } = options;
  const inputs: Record<string, Input> = { rates: { shape: [rates.length], kind: "f32", values: () => rates } };
  const outputs: Record<string, Output> = {};
  if (skip !== undefined) inputs.skip = { shape: [1], kind: "i32", values: () => [skip] };
  const f32 = (size: number, key: string, fallback?: Input["values"]): Input => {
    const values = given?.[key] ? () => given[key]! : fallback;
    return { shape: [size], kind: "f32", ...(values && { values }) };
  };
  const hasCopy = (i: number) => copies !== undefined && i % 2 === 0;
  for (const [i, size] of sizes.entries()) {
    inputs[`p${i}`] = f32(size, `p${i}`);
    inputs[`v${i}`] = f32(size, `v${i}`, given ? (_random, n) => new Float32Array(n) : undefined);
    for (const s of rates.keys()) inputs[`g${i}.${s}`] = f32(size, `g${i}.${s}`);
    // Rounding errors of a step are relative to p, v and g, all of magnitude 1.
    outputs[`newP${i}`] = { shape: [size], kind: "f32", inPlaceOf: `p${i}`, terms: 4 };
    outputs[`newV${i}`] = { shape: [size], kind: "f32", inPlaceOf: `v${i}`, terms: 8 };
    if (hasCopy(i)) {
      inputs[`oldCopy${i}`] = { shape: [size], kind: copies!, values: (_random, n) => new Float32Array(n).fill(77) };
      outputs[`copy${i}`] = { shape: [size], kind: copies!, inPlaceOf: `oldCopy${i}` };
    }
  }
  return {
    op: "sgd_step",
    name,
    dtypes: ["f32"],
    features: () => (copies ? [copies] : []),
    inputs,
    outputs,
    prepare(c) {
      const addresses = (key: (i: number) => string) =>
        BigInt64Array.from(sizes.map((_, i) => BigInt(c.address(key(i)) ?? 0)));
      const lists = rates.map((_, s) => {
        const out = outHandle();
        c.native.sgdCreate(
          c.device.handle,
          out.view,
          addresses((i) => `p${i}`),
          addresses((i) => `g${i}.${s}`),
          addresses((i) => `v${i}`),
          addresses((i) => `copy${i}`),
          BigInt64Array.from(sizes.map(BigInt)),
          Float32Array.from(sizes, (_, i) => cycle(decays, i)),
          Float32Array.from(sizes, (_, i) => cycle(factors, i)),
          sizes.length,
          dtypeCode(copies ?? "f32"),
        );
        const handle = out.value;
        c.defer(() => c.native.sgdDestroy(handle));
        return handle;
      });
      const [lr, flag] = [c.address("rates")!, c.address("skip")];
      return () => {
        for (const [s, handle] of lists.entries())
          c.native.sgdStep(c.stream, handle, lr + 4 * s, flag, momentum, nesterov ? 1 : 0, gradFactor);
      };
    },
    reference(values) {
      const expected: Record<string, Float64Array | Float32Array> = {};
      for (const [i, size] of sizes.entries()) {
        const [p, v] = [Float64Array.from(values[`p${i}`]!), Float64Array.from(values[`v${i}`]!)];
        for (const [s, rate] of rates.entries()) {
          for (let j = 0; j < size && !skip; ++j) {
            [p[j], v[j]] = step(
              p[j]!,
              v[j]!,
              values[`g${i}.${s}`]![j]!,
              rate * cycle(factors, i),
              cycle(decays, i),
              options,
            ) as [number, number];
          }
        }
        expected[`newP${i}`] = p;
        expected[`newV${i}`] = v;
        expected[`copy${i}`] = skip ? new Float32Array(size).fill(77) : p;
      }
      return expected;
    },
  };
}

/** The copies are those of the parameters as they are, rounded; parameters do not change. */
function refreshCasts(): OpCase {
  const sizes = [5, 64, 1001];
  const base = sgdStep("copies of parameters that changed", { sizes, rates: [0.1], momentum: 0.9, copies: "bf16" });
  const outputs = Object.fromEntries(Object.entries(base.outputs).filter(([name]) => name.startsWith("copy")));
  return {
    ...base,
    op: "sgd_refresh_casts",
    outputs: Object.fromEntries(
      Object.entries(outputs).map(([name, output]) => [name, { ...output, tolerance: exact }]),
    ),
    prepare(c) {
      const addresses = (key: string) => BigInt64Array.from(sizes.map((_, i) => BigInt(c.address(`${key}${i}`) ?? 0)));
      const gradients = BigInt64Array.from(sizes.map((_, i) => BigInt(c.address(`g${i}.0`)!)));
      const out = outHandle();
      const [decays, factors] = [new Float32Array(3), new Float32Array(3).fill(1)];
      c.native.sgdCreate(
        c.device.handle,
        out.view,
        addresses("p"),
        gradients,
        addresses("v"),
        addresses("copy"),
        BigInt64Array.from(sizes.map(BigInt)),
        decays,
        factors,
        3,
        dtypeCode("bf16"),
      );
      const handle = out.value;
      c.defer(() => c.native.sgdDestroy(handle));
      return () => void c.native.sgdRefreshCasts(c.stream, handle);
    },
    reference: (values) =>
      Object.fromEntries(
        sizes.map((_, i) => [
          `copy${i}`,
          decodeElements(Uint8Array.from(encodeElements(values[`p${i}`]!, "bf16")), "bf16"),
        ]),
      ),
  };
}

/** `runs` steps from `start`; lr is what the last one wrote. */
function schedule(name: string, table: readonly number[], start: number, runs: number): OpCase {
  return {
    op: "schedule_step",
    name,
    dtypes: ["f32"],
    inputs: {
      table: { shape: [table.length], kind: "f32", values: () => table },
      start: { shape: [1], kind: "i32", values: () => [start] },
    },
    outputs: {
      lr: { shape: [1], kind: "f32", tolerance: exact },
      step: { shape: [1], kind: "i32", inPlaceOf: "start" },
    },
    prepare(c) {
      const [lr, counter, rates] = ["lr", "step", "table"].map((operand) => c.address(operand));
      return () => {
        for (let i = 0; i < runs; ++i) c.native.scheduleStep(c.stream, lr!, counter!, rates!, table.length);
      };
    },
    reference: () => ({ lr: [Math.fround(table[Math.min(start + runs, table.length) - 1]!)], step: [start + runs] }),
  };
}

interface GoldenParams {
  momentum: number;
  nesterov: boolean;
  rates: number[];
  sizes: number[];
  decays: number[];
  factors: number[];
}

const goldenCases: OpCase[] = loadGolden<GoldenParams>("sgd").map((golden) => {
  const given: Arrays = Object.fromEntries(golden.names.map((key) => [key, golden.array(key)]));
  const last = golden.params.rates.length - 1;
  const opCase = sgdStep(`${golden.name} (recorded)`, { ...golden.params, given });
  const expected = Object.fromEntries(golden.params.sizes.map((_, i) => [`newP${i}`, golden.array(`p${i}.${last}`)]));
  return { ...opCase, reference: (values) => ({ ...opCase.reference(values), ...expected }) };
});

/** Sizes of a network's parameters: many small ones beside large ones. */
const manySizes = Array.from({ length: 150 }, (_, i) => [64, 1, 2304, 27, 333][i % 5]!);

export const optimizerCases: OpCase[] = [
  sgdStep("momentum 0.9", { sizes: [10, 1, 1000], rates: [0.1], momentum: 0.9 }),
  sgdStep("no momentum", { sizes: [10, 1, 1000], rates: [0.1], momentum: 0 }),
  sgdStep("nesterov, decay, factors", {
    sizes: [10, 1, 513],
    rates: [0.1, 0.2],
    momentum: 0.8,
    nesterov: true,
    decays: [0, 0.01],
    factors: [1, 2, 0.5],
  }),
  sgdStep("gradients times 1/8", { sizes: [33, 5], rates: [0.1], momentum: 0.9, gradFactor: 1 / 8, decays: [0.1] }),
  sgdStep("bf16 copies", { sizes: [33, 5, 1027], rates: [0.1], momentum: 0.9, copies: "bf16" }),
  sgdStep("skip flag set: nothing changes", {
    sizes: [33, 5, 100],
    rates: [0.1],
    momentum: 0.9,
    skip: 1,
    copies: "bf16",
  }),
  sgdStep("skip flag not set", { sizes: [33, 5], rates: [0.1], momentum: 0.9, skip: 0 }),
  sgdStep("150 tensors", { sizes: manySizes, rates: [0.05], momentum: 0.9, decays: [1e-4, 0], factors: [1, 1, 2] }),
  refreshCasts(),
  schedule("first step", [0.5, 0.25, 0.1], 0, 1),
  schedule("all of the table", [0.5, 0.25, 0.1], 0, 3),
  schedule("beyond the table stays at its end", [0.5, 0.25, 0.1], 1, 7),
  schedule("a table of one", [0.01], 100, 2),
  ...goldenCases,
];

export const optimizerBenches: OpCase[] = [
  sgdStep("34 million parameters in 160 tensors", {
    sizes: Array.from({ length: 160 }, (_, i) => (i % 2 === 0 ? 256 : 425984)),
    rates: [0.01],
    momentum: 0.9,
    decays: [1e-4],
  }),
];

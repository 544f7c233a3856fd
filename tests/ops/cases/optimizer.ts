/** SGD steps over lists of tensors, and the learning-rate schedule. */
import { decodeElements, dtypeCode, encodeElements, outHandle } from "../../../lib/tensor";
import { exact } from "../../support/compare";
import { loadGolden } from "../../support/golden";
import { Random } from "../../support/random";
import { dot } from "../reference/elementwise";
import type { Arrays, CaseContext, Input, OpCase, Output } from "./case";
import { lossScaleCases } from "./loss-scale";

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
  /** Divides the gradients: the losses' scale. */
  gradScale?: number;
  /** Clips each step's gradients to this norm; their norms are outputs `norm.<step>`. */
  maxNorm?: number;
  /** Clips each gradient to this size. */
  maxValue?: number;
  /** Value of the skip flag; none: no flag is passed. */
  skip?: number;
  /** Dtype of copies that follow every second parameter. */
  copies?: "bf16";
  /** Gradients of every step, momenta and parameters: given, or drawn. */
  given?: Arrays;
}

const cycle = (values: readonly number[], i: number): number => values[i % values.length]!;

/** The 2-norm of step s's gradients, all tensors as one vector. */
const normOf = (values: Arrays, count: number, s: number, scale = 1): number =>
  Math.sqrt(Array.from({ length: count }, (_, i) => values[`g${i}.${s}`]!).reduce((sum, g) => sum + dot(g, g), 0)) /
  scale;

/** Addresses of a norm and of scratch memory for an optimizer's lists. */
function normWorkspace(c: CaseContext, sgd: number): number | null {
  const bytes = outHandle();
  c.native.sgdGradNormWorkspace(sgd, bytes.view);
  return c.workspace(bytes.value);
}

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
  { momentum, nesterov = false, gradFactor = 1, maxValue = Number.POSITIVE_INFINITY }: SgdOptions,
): [number, number] {
  const g = Math.min(Math.max(grad * gradFactor, -maxValue), maxValue) + decay * p;
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
    gradScale,
    maxNorm,
    maxValue = 0,
    skip,
    copies,
    given,
  } = options;
  const inputs: Record<string, Input> = { rates: { shape: [rates.length], kind: "f32", values: () => rates } };
  const outputs: Record<string, Output> = {};
  if (gradScale !== undefined) inputs.gradScale = { shape: [1], kind: "f32", values: () => [gradScale] };
  if (skip !== undefined) inputs.skip = { shape: [1], kind: "i32", values: () => [skip] };
  const f32 = (size: number, key: string, fallback?: Input["values"]): Input => {
    const values = given?.[key] ? () => given[key]! : fallback;
    return { shape: [size], kind: "f32", ...(values && { values }) };
  };
  if (maxNorm !== undefined) {
    for (const s of rates.keys())
      outputs[`norm.${s}`] = { shape: [1], kind: "f32", tolerance: { rtol: 1e-6, atol: 0 } };
  }
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
      const [lr, flag, scale] = [c.address("rates")!, c.address("skip"), c.address("gradScale")];
      const scratch = lists.map((handle) => (maxNorm === undefined ? null : normWorkspace(c, handle)));
      return () => {
        for (const [s, handle] of lists.entries()) {
          const norm = c.address(`norm.${s}`);
          if (norm !== null) c.native.sgdGradNorm(c.stream, handle, norm, scale, scratch[s]!);
          const order = nesterov ? 1 : 0;
          c.native.sgdStep(
            c.stream,
            handle,
            lr + 4 * s,
            flag,
            norm,
            scale,
            momentum,
            order,
            gradFactor,
            maxNorm ?? 0,
            maxValue,
          );
        }
      };
    },
    reference(values) {
      const expected: Record<string, ArrayLike<number>> = {};
      const norms = rates.map((_, s) => normOf(values, sizes.length, s, gradScale));
      for (const [s, norm] of norms.entries()) expected[`norm.${s}`] = [norm];
      const clipped = norms.map((norm) =>
        maxNorm === undefined ? gradFactor : gradFactor * Math.min(1, maxNorm / (Math.abs(gradFactor) * norm + 1e-6)),
      );
      for (const [i, size] of sizes.entries()) {
        const [p, v] = [Float64Array.from(values[`p${i}`]!), Float64Array.from(values[`v${i}`]!)];
        for (const [s, rate] of rates.entries()) {
          for (let j = 0; j < size && !skip; ++j) {
            [p[j], v[j]] = step(p[j]!, v[j]!, values[`g${i}.${s}`]![j]!, rate * cycle(factors, i), cycle(decays, i), {
              ...options,
              gradFactor: clipped[s]! / (gradScale ?? 1),
            });
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

/** Moving averages of values that stay as they are, over a step for each decay. */
function average(
  name: string,
  { sizes, decays, skip }: { sizes: readonly number[]; decays: readonly number[]; skip?: number },
): OpCase {
  const inputs: Record<string, Input> = { decays: { shape: [decays.length], kind: "f32", values: () => decays } };
  const outputs: Record<string, Output> = {};
  if (skip !== undefined) inputs.skip = { shape: [1], kind: "i32", values: () => [skip] };
  for (const [i, size] of sizes.entries()) {
    inputs[`a${i}`] = { shape: [size], kind: "f32" };
    inputs[`v${i}`] = { shape: [size], kind: "f32" };
    outputs[`newA${i}`] = { shape: [size], kind: "f32", inPlaceOf: `a${i}`, terms: 4 };
  }
  return {
    op: "average_step",
    name,
    dtypes: ["f32"],
    inputs,
    outputs,
    prepare(c) {
      const addresses = (key: string) => BigInt64Array.from(sizes.map((_, i) => BigInt(c.address(`${key}${i}`)!)));
      const out = outHandle();
      const elements = BigInt64Array.from(sizes.map(BigInt));
      c.native.averageCreate(c.device.handle, out.view, addresses("a"), addresses("v"), elements, sizes.length);
      const handle = out.value;
      c.defer(() => c.native.averageDestroy(handle));
      const [decay, flag] = [c.address("decays")!, c.address("skip")];
      return () => {
        for (const s of decays.keys()) c.native.averageStep(c.stream, handle, decay + 4 * s, flag);
      };
    },
    reference: (values) =>
      Object.fromEntries(
        sizes.map((_, i) => {
          const followed = values[`v${i}`]!;
          const averages = Float64Array.from(values[`a${i}`]!, (a, j) =>
            skip ? a : decays.reduce((sum, d) => d * sum + (1 - d) * followed[j]!, a),
          );
          return [`newA${i}`, averages];
        }),
      ),
  };
}

/** The norm alone, of gradients that a function draws for each tensor. */
function gradNorm(name: string, sizes: readonly number[], draw?: (tensor: number) => Input["values"]): OpCase {
  const inputs = sizes.map((size, i): [string, Input] => {
    const values = draw?.(i);
    return [`g${i}.0`, { shape: [size], kind: "f32", ...(values && { values }) }];
  });
  return {
    op: "sgd_grad_norm",
    name,
    dtypes: ["f32"],
    inputs: Object.fromEntries(inputs),
    outputs: { norm: { shape: [1], kind: "f32", tolerance: { rtol: 1e-6, atol: 0 } } },
    prepare(c) {
      const gradients = BigInt64Array.from(sizes.map((_, i) => BigInt(c.address(`g${i}.0`)!)));
      const [none, elements, out] = [
        new BigInt64Array(sizes.length),
        BigInt64Array.from(sizes.map(BigInt)),
        outHandle(),
      ];
      const [zeros, f32] = [new Float32Array(sizes.length), dtypeCode("f32")];
      // The norm reads gradients only, which stand for parameters and momenta here.
      const lists = [gradients, gradients, gradients, none, elements, zeros, zeros] as const;
      c.native.sgdCreate(c.device.handle, out.view, ...lists, sizes.length, f32);
      const handle = out.value;
      c.defer(() => c.native.sgdDestroy(handle));
      const [norm, scratch] = [c.address("norm"), normWorkspace(c, handle)];
      return () => void c.native.sgdGradNorm(c.stream, handle, norm, null, scratch);
    },
    reference: (values) => ({ norm: [Math.fround(normOf(values, sizes.length, 0))] }),
  };
}

const filled =
  (value: number): Input["values"] =>
  (_random, size) =>
    new Float64Array(size).fill(value);

interface GoldenParams {
  maxNorm?: number;
  momentum: number;
  nesterov: boolean;
  rates: number[];
  sizes: number[];
  decays: number[];
  factors: number[];
}

const goldens = ["sgd", "clip"].flatMap((name) => loadGolden<GoldenParams>(name));
const goldenCases: OpCase[] = goldens.map((golden) => {
  const given: Arrays = Object.fromEntries(golden.names.map((key) => [key, golden.array(key)]));
  const last = golden.params.rates.length - 1;
  const opCase = sgdStep(`${golden.name} (recorded)`, { ...golden.params, given });
  const expected = Object.fromEntries([
    ...golden.params.sizes.map((_, i) => [`newP${i}`, golden.array(`p${i}.${last}`)]),
    ...golden.names.filter((key) => key.startsWith("norm.")).map((key) => [key, golden.array(key)]),
  ]);
  return { ...opCase, reference: (values) => ({ ...opCase.reference(values), ...expected }) };
});

/** Sizes of a network's parameters: many small ones beside large ones. */
const manySizes = Array.from({ length: 150 }, (_, i) => [64, 1, 2304, 27, 333][i % 5]!);

export const optimizerCases: OpCase[] = [
  ...lossScaleCases,
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
  sgdStep("clipped in the first step, not in the second", {
    sizes: [33, 5, 1027],
    rates: [0.1, 0.1],
    momentum: 0.9,
    decays: [0.1, 0],
    maxNorm: 5,
    copies: "bf16",
    given: Object.fromEntries(
      [33, 5, 1027].flatMap((size, i) => [
        [`p${i}`, new Random(`p${i}`).normal(size)],
        [`g${i}.0`, new Random(`g${i}.0`).normal(size)],
        [`g${i}.1`, new Random(`g${i}.1`).normal(size, 0, 0.01)],
      ]),
    ),
  }),
  sgdStep("gradients of a scaled loss", {
    sizes: [33, 5, 1027],
    rates: [0.1],
    momentum: 0.9,
    gradScale: 0.375,
    decays: [0.1],
  }),
  sgdStep("gradients of a scaled loss, clipped after they are divided", {
    sizes: [33, 500],
    rates: [0.1],
    momentum: 0.9,
    gradFactor: 0.5,
    gradScale: 8,
    maxNorm: 0.5,
    maxValue: 0.05,
  }),
  sgdStep("clipped after the gradients' factor", {
    sizes: [33, 500],
    rates: [0.1],
    momentum: 0.9,
    nesterov: true,
    gradFactor: -0.5,
    maxNorm: 3,
  }),
  sgdStep("clipped to a norm of 0: only the weights' decay is left", {
    sizes: [33, 5],
    rates: [0.1],
    momentum: 0,
    decays: [0.5],
    maxNorm: 0,
  }),
  sgdStep("clipped by a norm that is NaN: all is, as with torch", {
    sizes: [3, 9],
    rates: [0.1],
    momentum: 0.9,
    maxNorm: 1,
    given: { "g0.0": [1, Number.NaN, 2] },
  }),
  sgdStep("a norm that is NaN with the skip flag set: nothing changes", {
    sizes: [3, 9],
    rates: [0.1],
    momentum: 0.9,
    maxNorm: 1,
    skip: 1,
    given: { "g0.0": [1, Number.NaN, 2] },
  }),
  sgdStep("each gradient clipped, a NaN stays one", {
    sizes: [33, 5, 1027],
    rates: [0.1, 0.2],
    momentum: 0.9,
    decays: [0.1, 0],
    gradFactor: 2,
    maxValue: 0.75,
    given: { "g1.0": [0.3, Number.NaN, -0.9, Number.POSITIVE_INFINITY, 0.375] },
  }),
  sgdStep("clipped to a norm and then each", {
    sizes: [33, 500],
    rates: [0.1],
    momentum: 0.9,
    maxNorm: 5,
    maxValue: 0.2,
  }),
  average("one tensor", { sizes: [1000], decays: [0.9] }),
  average("several steps of 150 tensors", { sizes: manySizes, decays: [0, 0.5, 0.999] }),
  average("a tensor of several pieces", { sizes: [100_003], decays: [0.9998] }),
  average("skip flag set: nothing changes", { sizes: [33, 5], decays: [0.5], skip: 1 }),
  average("skip flag not set", { sizes: [33, 5], decays: [0.5], skip: 0 }),
  gradNorm("150 tensors", manySizes),
  gradNorm("one value", [1]),
  gradNorm("several pieces of one tensor", [100_003]),
  gradNorm("values whose squares fp32 cannot hold, large and small", [40, 9000], (i) =>
    filled(i === 0 ? -1e30 : 1e-30),
  ),
  gradNorm("values whose squares are 0 in fp32", [40, 9000], () => filled(1e-30)),
  gradNorm("zeros", [40], () => filled(0)),
  gradNorm("a NaN", [40, 300], (i) => filled(i === 0 ? Number.NaN : 1)),
  gradNorm("an infinity", [40, 300], (i) => filled(i === 0 ? Number.NEGATIVE_INFINITY : 1)),
  refreshCasts(),
  schedule("first step", [0.5, 0.25, 0.1], 0, 1),
  schedule("all of the table", [0.5, 0.25, 0.1], 0, 3),
  schedule("beyond the table stays at its end", [0.5, 0.25, 0.1], 1, 7),
  schedule("a table of one", [0.01], 100, 2),
  ...goldenCases,
];

const largeSizes = Array.from({ length: 160 }, (_, i) => (i % 2 === 0 ? 256 : 425984));

export const optimizerBenches: OpCase[] = [
  sgdStep("34 million parameters in 160 tensors", {
    sizes: largeSizes,
    rates: [0.01],
    momentum: 0.9,
    decays: [1e-4],
  }),
  gradNorm("34 million gradients in 160 tensors", largeSizes),
  average("34 million values in 160 tensors", { sizes: largeSizes, decays: [0.9998] }),
];

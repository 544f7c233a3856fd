/** Group normalization in both directions. */
import { constants } from "../../../lib/native";
import { outHandle } from "../../../lib/tensor";
import { loadGolden } from "../../support/golden";
import { dot } from "../reference/elementwise";
import { groupNormalize, groupNormalizeBackward, groupStatistics } from "../reference/norm";
import { type Arrays, type CaseContext, type Input, type OpCase, type Output, recorded } from "./case";

interface GroupNormOptions {
  /** (N, H, W, C). */
  shape: readonly number[];
  groups: number;
  relu?: boolean;
  eps?: number;
  /** Mean of x. */
  mean?: number;
  /** The first output takes the memory of x (forward) or dy (backward). */
  inPlace?: boolean;
}

type Sizes = [n: number, rows: number, channels: number, groups: number];

const activationOf = ({ relu }: GroupNormOptions) => (relu ? constants.ACT_RELU : constants.ACT_NONE);

function sizesOf({ shape, groups }: GroupNormOptions): Sizes {
  const [n, h, w, c] = shape as [number, number, number, number];
  return [n, h * w, c, groups];
}

function workspace(c: CaseContext, options: GroupNormOptions): number | null {
  const bytes = outHandle();
  c.native.groupNormWorkspace(c.device.handle, bytes.view, ...sizesOf(options), c.dtype);
  return c.workspace(bytes.value);
}

/** Values with another mean and deviation in each channel, so that mixing up channels or groups shows. */
function operands({ shape, mean = 0.5 }: GroupNormOptions): Record<string, Input> {
  const c = shape.at(-1)!;
  const channels: Input = { shape: [c], kind: "f32" };
  return {
    x: {
      shape,
      values: (random, size) => random.normal(size).map((value, i) => mean + (i % c) / c + value * (1 + ((i % c) % 3))),
    },
    weight: { ...channels, values: (random, size) => random.uniform(size, 0.5, 1.5) },
    bias: channels,
  };
}

function forward(options: GroupNormOptions, { x, weight, bias }: Arrays) {
  const { relu = false, eps = 1e-5 } = options;
  const { mean, invstd } = groupStatistics(x!, options, eps);
  return { y: groupNormalize(x!, options, mean, invstd, weight!, bias!, relu), mean, invstd };
}

export function groupNormForward(name: string, options: GroupNormOptions): OpCase {
  const { shape, groups, eps = 1e-5, mean: offset = 0.5, inPlace = false } = options;
  // x is offset (1 + 2^-24) before its mean is taken away.
  const statistic: Output = {
    shape: [shape[0]!, groups],
    kind: "f32",
    tolerance: { rtol: 1e-5 + Math.abs(offset) * 1e-7, atol: 1e-6 + Math.abs(offset) * 2e-7 },
  };
  return {
    op: "group_norm_forward",
    name,
    inputs: operands(options),
    outputs: {
      y: { shape, terms: 16 + Math.abs(offset), ...(inPlace && { inPlaceOf: "x" }) },
      mean: statistic,
      invstd: statistic,
    },
    prepare(c) {
      const scratch = workspace(c, options);
      const [y, mean, invstd, x, w, b] = ["y", "mean", "invstd", "x", "weight", "bias"].map((key) => c.address(key));
      const [given, activation] = [sizesOf(options), activationOf(options)];
      return () =>
        void c.native.groupNormForward(
          c.stream,
          y!,
          mean!,
          invstd!,
          x!,
          w!,
          b!,
          scratch,
          ...given,
          c.dtype,
          eps,
          activation,
        );
    },
    reference: (inputs) => forward(options, inputs),
  };
}

export function groupNormBackward(name: string, options: GroupNormOptions): OpCase {
  const { shape, groups, relu = false, inPlace = false } = options;
  const [n, rows, channels] = sizesOf(options);
  const perChannel: Output = { shape: [channels], kind: "f32", terms: 4 * n * rows };
  const saved = (key: "mean" | "invstd"): Input => ({
    shape: [n, groups],
    kind: "f32",
    values: (_random, _size, earlier) => forward(options, earlier)[key],
  });
  const loss = (values: Arrays) => dot(values.dy!, forward(options, values).y);
  return {
    op: "group_norm_backward",
    name,
    inputs: {
      ...operands(options),
      mean: saved("mean"),
      invstd: saved("invstd"),
      ...(relu && { y: { shape, values: (_random, _size, earlier) => forward(options, earlier).y } satisfies Input }),
      dy: { shape },
    },
    outputs: {
      dx: { shape, terms: 64, ...(inPlace && { inPlaceOf: "dy" }) },
      dweight: perChannel,
      dbias: perChannel,
    },
    prepare(c) {
      const scratch = workspace(c, options);
      const [dx, dw, db] = ["dx", "dweight", "dbias"].map((key) => c.address(key));
      const [dy, x, y, w, mean, invstd] = ["dy", "x", "y", "weight", "mean", "invstd"].map((key) => c.address(key));
      const [given, activation] = [sizesOf(options), activationOf(options)];
      return () =>
        void c.native.groupNormBackward(
          c.stream,
          dx!,
          dw!,
          db!,
          dy!,
          x!,
          y!,
          w!,
          mean!,
          invstd!,
          scratch,
          ...given,
          c.dtype,
          activation,
        );
    },
    reference: ({ dy, x, y, weight, mean, invstd }) =>
      groupNormalizeBackward(dy!, x!, options, weight!, mean!, invstd!, y),
    gradients: [
      { output: "dx", of: "x", loss },
      { output: "dweight", of: "weight", loss },
      { output: "dbias", of: "bias", loss },
    ],
  };
}

const shapes: [string, GroupNormOptions][] = [
  ["32 groups of 8, as in heads", { shape: [2, 5, 4, 256], groups: 32 }],
  ["2 groups of 3 (no whole vectors)", { shape: [2, 5, 7, 6], groups: 2 }],
  ["4 groups of 6 (vectors that reach into two groups)", { shape: [2, 4, 3, 24], groups: 4 }],
  ["8 groups of 2", { shape: [1, 4, 9, 16], groups: 8 }],
  ["one group", { shape: [3, 4, 5, 12], groups: 1 }],
  ["a group for each channel", { shape: [2, 5, 5, 27], groups: 27 }],
  ["1 channel", { shape: [2, 6, 5, 1], groups: 1 }],
  ["one pixel", { shape: [3, 1, 1, 64], groups: 4 }],
  ["many rows", { shape: [2, 60, 50, 8], groups: 2 }],
  ["many images of few rows", { shape: [150, 2, 3, 8], groups: 4 }],
  ["520 channels", { shape: [1, 3, 3, 520], groups: 8 }],
];

interface GoldenParams {
  shape: number[];
  groups: number;
  eps: number;
  relu: boolean;
}

const goldenCases: OpCase[] = loadGolden<GoldenParams>("group-norm").flatMap(({ name, params, names, array }) => {
  const arrays: Arrays = Object.fromEntries(names.map((key) => [key, array(key)]));
  const pick = (...keys: string[]) => Object.fromEntries(keys.map((key) => [key, arrays[key]!]));
  return [
    recorded(groupNormForward(name, params), arrays, pick("y")),
    recorded(groupNormBackward(name, params), arrays, pick("dx", "dweight", "dbias")),
  ];
});

/** Every group has one value: the variance is 0, and y must be the bias. */
function constantInput(opCase: OpCase): OpCase {
  const values: Input["values"] = (_random, size) =>
    Float32Array.from({ length: size }, (_, i) => Math.floor((i % 8) / 4) - 1.5);
  return { ...opCase, inputs: { ...opCase.inputs, x: { ...opCase.inputs.x!, values } } };
}

export const groupNormCases: OpCase[] = [
  ...shapes.flatMap(([name, options]) =>
    [false, true].flatMap((relu) => [
      groupNormForward(`${name}${relu ? ", relu" : ""}`, { ...options, relu }),
      groupNormBackward(`${name}${relu ? ", relu" : ""}`, { ...options, relu }),
    ]),
  ),
  groupNormForward("another eps", { shape: [2, 4, 4, 6], groups: 3, eps: 0.1 }),
  // One pass over sums of squares would be off by 100 % here.
  {
    ...groupNormForward("mean 300 times the deviation", { shape: [2, 16, 16, 8], groups: 2, mean: 500 }),
    dtypes: ["f32"],
  },
  groupNormForward("y in x's memory", { shape: [2, 4, 4, 16], groups: 4, relu: true, inPlace: true }),
  groupNormBackward("dx in dy's memory", { shape: [2, 4, 4, 16], groups: 4, relu: true, inPlace: true }),
  constantInput(groupNormForward("constant groups", { shape: [2, 3, 3, 8], groups: 2 })),
  ...goldenCases,
];

const head: GroupNormOptions = { shape: [8, 80, 80, 256], groups: 32, relu: true };
export const groupNormBenches: OpCase[] = [
  groupNormForward("relu, 32 groups, 8x80x80x256", head),
  groupNormBackward("relu, 32 groups, 8x80x80x256", head),
  groupNormForward("relu, 32 groups, 8x10x10x256", { ...head, shape: [8, 10, 10, 256] }),
  groupNormBackward("relu, 32 groups, 8x10x10x256", { ...head, shape: [8, 10, 10, 256] }),
];

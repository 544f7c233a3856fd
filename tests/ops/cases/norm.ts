/** Batch normalization: training, inference, backward, folding into a convolution. */
import { constants } from "../../../lib/native";
import { elementCount, outHandle } from "../../../lib/tensor";
import { loadGolden } from "../../support/golden";
import { dot } from "../reference/elementwise";
import { normalize, normalizeBackward, statistics } from "../reference/norm";
import {
  type Arrays,
  type CaseContext,
  type Input,
  type Numbers,
  type OpCase,
  type Operand,
  type Output,
  recorded,
} from "./case";

export interface NormOptions {
  shape: readonly number[];
  residual?: boolean;
  relu?: boolean;
  /** Training without running statistics. */
  stateless?: boolean;
  eps?: number;
  momentum?: number;
  /** Mean of x. */
  mean?: number;
  /** Gradients take the memory of dy. */
  inPlace?: boolean;
  /** The weight of all channels, with a bias of 0: as small as the numbers that are stored as 0. */
  tiny?: number;
  /** Statistics come from this many groups of rows, of different sizes. */
  parts?: number;
  /** Of those, how many have rows; default all. */
  filled?: number;
}

export const activationOf = ({ relu }: { relu?: boolean }) => (relu ? constants.ACT_RELU : constants.ACT_NONE);
export const sizesOf = ({ shape }: { shape: readonly number[] }): [number, number] => [
  elementCount(shape.slice(0, -1)),
  shape.at(-1)!,
];

export function workspace(c: CaseContext, options: NormOptions): number | null {
  const bytes = outHandle();
  c.native.batchNormWorkspace(c.device.handle, bytes.view, ...sizesOf(options), c.dtype);
  return c.workspace(bytes.value);
}

/** ReLU's result has a mask where a residual was added: a row of ceil(C / 8) bytes for each row of y. */
const maskOf = (options: NormOptions): Operand | null =>
  options.relu && options.residual
    ? { shape: [sizesOf(options)[0], Math.ceil(sizesOf(options)[1] / 8)], kind: "u8" }
    : null;

/** Bit j % 8 of byte j / 8 of a row is set where y > 0. */
export function maskBits(y: Numbers, channels: number): Uint8Array {
  const pitch = Math.ceil(channels / 8);
  const bytes = new Uint8Array((y.length / channels) * pitch);
  for (let i = 0; i < y.length; ++i) {
    const [row, channel] = [Math.floor(i / channels), i % channels];
    if (y[i]! > 0) bytes[row * pitch + (channel >> 3)]! |= 1 << (channel & 7);
  }
  return bytes;
}

/** Means, sums of squared distances from them, and numbers of rows of groups of x's rows, the later ones larger or empty. */
function moments(x: Numbers, channels: number, parts: number, filled: number): Float64Array {
  const rows = x.length / channels;
  const start = (part: number) =>
    part > filled ? rows : Math.floor((rows * part * (part + 1)) / (filled * (filled + 1)));
  const values = Array.from({ length: parts }, (_, part) => {
    const group = Array.prototype.slice.call(x, start(part) * channels, start(part + 1) * channels);
    const count = group.length / channels;
    if (count === 0) return { mean: Array(channels).fill(0), squares: Array(channels).fill(0), count };
    const { mean, unbiased } = statistics(group, channels, 0);
    return { mean, squares: unbiased.map((variance) => (count > 1 ? variance * (count - 1) : 0)), count };
  });
  return Float64Array.from([
    ...values.flatMap(({ mean }) => [...mean]),
    ...values.flatMap(({ squares }) => [...squares]),
    ...values.map(({ count }) => count),
  ]);
}

function operands({ shape, residual, mean = 0.5, tiny }: NormOptions): Record<string, Input> {
  const channels: Input = { shape: [shape.at(-1)!], kind: "f32" };
  return {
    x: { shape, values: (random, size) => random.normal(size, mean, 1.5) },
    ...(residual && { residual: { shape } }),
    weight: {
      ...channels,
      values: (random, size) => (tiny ? new Float64Array(size).fill(tiny) : random.uniform(size, 0.5, 1.5)),
    },
    bias: tiny ? { ...channels, values: (_random, size) => new Float64Array(size) } : channels,
  };
}

const running = (options: NormOptions): Record<string, Input> => ({
  runningMean: { shape: [options.shape.at(-1)!], kind: "f32" },
  runningVar: { shape: [options.shape.at(-1)!], kind: "f32", values: (random, size) => random.uniform(size, 0.5, 2) },
});

/** Statistics of a large mean lose digits of x's own roundoff: x is mean (1 + 2^-24), relative to a deviation of 1.5. */
export const statisticTolerance = ({ mean = 0.5 }: NormOptions) => ({
  rtol: 1e-5 + Math.abs(mean) * 1e-7,
  atol: 1e-6 + Math.abs(mean) * 2e-7,
});

export function batchNormTrain(name: string, options: NormOptions): OpCase {
  const [rows, channels] = sizesOf(options);
  const { shape, relu = false, stateless = false, eps = 1e-5, momentum = 0.1 } = options;
  const perChannel: Output = { shape: [channels], kind: "f32", tolerance: statisticTolerance(options) };
  const bits = maskOf(options);
  const { parts = 0, filled = parts } = options;
  const given: Input = {
    shape: [parts * (2 * channels + 1)],
    kind: "f32",
    values: (_random, _size, { x }) => moments(x!, channels, parts, filled),
  };
  return {
    op: "batch_norm_train",
    name,
    inputs: { ...operands(options), ...(!stateless && running(options)), ...(parts > 0 && { moments: given }) },
    outputs: {
      y: { shape, terms: 16 + Math.abs(options.mean ?? 0) },
      ...(bits && { mask: bits }),
      mean: perChannel,
      invstd: perChannel,
      ...(!stateless && {
        newMean: { ...perChannel, inPlaceOf: "runningMean" },
        newVar: { ...perChannel, inPlaceOf: "runningVar" },
      }),
    },
    prepare(c) {
      const scratch = workspace(c, options);
      const [y, mask, mean, invstd] = ["y", "mask", "mean", "invstd"].map((operand) => c.address(operand));
      const [rm, rv, x, z, w, b, from] = [
        "runningMean",
        "runningVar",
        "x",
        "residual",
        "weight",
        "bias",
        "moments",
      ].map((operand) => c.address(operand));
      const activation = activationOf(options);
      return () =>
        void c.native.batchNormTrain(
          c.stream,
          y!,
          mask!,
          mean!,
          invstd!,
          rm!,
          rv!,
          x!,
          z!,
          w!,
          b!,
          from!,
          scratch,
          rows,
          channels,
          parts,
          c.dtype,
          eps,
          momentum,
          activation,
        );
    },
    reference({ x, weight, bias, residual, runningMean, runningVar }) {
      const { mean, invstd, unbiased } = statistics(x!, channels, eps);
      const mix = (old: ArrayLike<number> | undefined, batch: Float64Array) =>
        batch.map((value, i) => (1 - momentum) * (old?.[i] ?? 0) + momentum * value);
      const y = normalize(x!, mean, invstd, weight!, bias!, residual, relu);
      return {
        y,
        mask: maskBits(y, channels),
        mean,
        invstd,
        newMean: mix(runningMean, mean),
        newVar: mix(runningVar, unbiased),
      };
    },
  };
}

export function batchNormInfer(name: string, options: NormOptions): OpCase {
  const [rows, channels] = sizesOf(options);
  const { shape, relu = false, eps = 1e-5 } = options;
  return {
    op: "batch_norm_infer",
    name,
    inputs: { ...operands(options), ...running(options) },
    outputs: { y: { shape, terms: 16, ...(options.inPlace && { inPlaceOf: "x" }) } },
    prepare(c) {
      const [y, x, z, w, b, mean, variance] = ["y", "x", "residual", "weight", "bias", "runningMean", "runningVar"].map(
        (operand) => c.address(operand),
      );
      const activation = activationOf(options);
      return () =>
        void c.native.batchNormInfer(
          c.stream,
          y!,
          x!,
          z!,
          w!,
          b!,
          mean!,
          variance!,
          rows,
          channels,
          c.dtype,
          eps,
          activation,
        );
    },
    reference: ({ x, weight, bias, residual, runningMean, runningVar }) => ({
      y: normalize(
        x!,
        runningMean!,
        Float64Array.from(runningVar!, (v) => 1 / Math.sqrt(v + eps)),
        weight!,
        bias!,
        residual,
        relu,
      ),
    }),
  };
}

export function batchNormBackward(name: string, options: NormOptions): OpCase {
  const [rows, channels] = sizesOf(options);
  const { shape, relu = false, residual = false, eps = 1e-5, inPlace = false, tiny = 0 } = options;
  const perChannel: Output = { shape: [channels], kind: "f32", terms: rows };
  const bits = maskOf(options);
  const saved = (key: "mean" | "invstd"): Input => ({
    shape: [channels],
    kind: "f32",
    values: (_random, _size, { x }) => statistics(x!, channels, eps)[key],
  });
  const forward = ({ x, weight, bias, residual: z }: Arrays) => {
    const { mean, invstd } = statistics(x!, channels, eps);
    return normalize(x!, mean, invstd, weight!, bias!, z, relu);
  };
  const inputs: Record<string, Input> = {
    ...operands(options),
    mean: saved("mean"),
    invstd: saved("invstd"),
    ...(bits && {
      mask: { ...bits, values: (_random, _size, earlier) => maskBits(forward(earlier), channels) } satisfies Input,
    }),
    dy: { shape },
  };
  const loss = (values: Arrays) => dot(values.dy!, forward(values));
  return {
    op: "batch_norm_backward",
    name,
    inputs,
    outputs: {
      dx: { shape, terms: 64, ...(inPlace && !residual && { inPlaceOf: "dy" }) },
      ...(residual && { dresidual: { shape, ...(inPlace && { inPlaceOf: "dy" }) } }),
      dweight: perChannel,
      dbias: perChannel,
    },
    prepare(c) {
      const scratch = workspace(c, options);
      const [dx, dz, dw, db] = ["dx", "dresidual", "dweight", "dbias"].map((operand) => c.address(operand));
      const [dy, x, mask, w, b, mean, invstd] = ["dy", "x", "mask", "weight", "bias", "mean", "invstd"].map((operand) =>
        c.address(operand),
      );
      const activation = activationOf(options);
      return () =>
        void c.native.batchNormBackward(
          c.stream,
          dx!,
          dz!,
          dw!,
          db!,
          dy!,
          x!,
          mask!,
          w!,
          b!,
          mean!,
          invstd!,
          scratch,
          rows,
          channels,
          c.dtype,
          activation,
        );
    },
    reference(values) {
      const { dy, x, weight, mean, invstd } = values;
      const y = relu ? forward(values).map((value) => (value <= tiny ? 0 : value)) : undefined;
      return normalizeBackward(dy!, x!, weight!, mean!, invstd!, y);
    },
    gradients: [
      // Of 2 rows one is the mirror image of the other whatever x is: dx is what is left of terms that cancel.
      ...(rows > 2 ? [{ output: "dx", of: "x", loss }] : []),
      { output: "dweight", of: "weight", loss },
      { output: "dbias", of: "bias", loss },
      ...(residual ? [{ output: "dresidual", of: "residual", loss }] : []),
    ],
  };
}

export function batchNormFold(name: string, k: number, perChannel: number, convBias: boolean): OpCase {
  const eps = 1e-3;
  const channels: Input = { shape: [k], kind: "f32" };
  const positive: Input = { ...channels, values: (random, size) => random.uniform(size, 0.5, 2) };
  return {
    op: "batch_norm_fold",
    name,
    inputs: {
      w: { shape: [k, perChannel], kind: "f32" },
      ...(convBias && { convBias: channels }),
      weight: positive,
      bias: channels,
      mean: channels,
      variance: positive,
    },
    outputs: { foldedW: { shape: [k, perChannel] }, foldedBias: { ...channels, terms: 4 } },
    prepare(c) {
      const [fw, fb, w, cb, weight, bias, mean, variance] = [
        "foldedW",
        "foldedBias",
        "w",
        "convBias",
        "weight",
        "bias",
        "mean",
        "variance",
      ].map((operand) => c.address(operand));
      return () =>
        void c.native.batchNormFold(
          c.stream,
          fw!,
          fb!,
          w!,
          cb!,
          weight!,
          bias!,
          mean!,
          variance!,
          k,
          perChannel,
          c.dtype,
          eps,
        );
    },
    reference({ w, convBias: cb, weight, bias, mean, variance }) {
      const gain = Float64Array.from(weight!, (value, i) => value / Math.sqrt(variance![i]! + eps));
      return {
        foldedW: Float64Array.from(w!, (value, i) => value * gain[Math.floor(i / perChannel)]!),
        foldedBias: gain.map((g, i) => ((cb?.[i] ?? 0) - mean![i]!) * g + bias![i]!),
      };
    },
  };
}

export function batchNormFoldBackward(name: string, k: number, perChannel: number, inPlace = false): OpCase {
  const eps = 1e-3;
  const channels: Input = { shape: [k], kind: "f32", values: (random, size) => random.uniform(size, 0.5, 2) };
  return {
    op: "batch_norm_fold_backward",
    name,
    dtypes: ["f32"],
    inputs: { dfolded: { shape: [k, perChannel] }, weight: channels, variance: channels },
    outputs: { dw: { shape: [k, perChannel], ...(inPlace && { inPlaceOf: "dfolded" }) } },
    prepare(c) {
      const [dw, dfolded, weight, variance] = ["dw", "dfolded", "weight", "variance"].map((name) => c.address(name));
      return () => void c.native.batchNormFoldBackward(c.stream, dw!, dfolded!, weight!, variance!, k, perChannel, eps);
    },
    reference: ({ dfolded, weight, variance }) => ({
      dw: Float64Array.from(dfolded!, (value, i) => {
        const row = Math.floor(i / perChannel);
        return (value * weight![row]!) / Math.sqrt(variance![row]! + eps);
      }),
    }),
  };
}

const shapes: [string, readonly number[]][] = [
  ["3 channels", [2, 5, 7, 3]],
  ["1 channel", [2, 6, 5, 1]],
  ["27 channels", [1, 4, 9, 27]],
  ["36 channels", [1, 7, 9, 36]],
  ["64 channels", [2, 5, 5, 64]],
  ["2 rows", [2, 1, 1, 10]],
  ["many rows", [1, 60, 50, 8]],
];

const variants: [string, Partial<NormOptions>][] = [
  ["", {}],
  [", relu", { relu: true }],
  [", residual", { residual: true }],
  [", residual and relu", { residual: true, relu: true }],
];

interface GoldenParams {
  shape: number[];
  eps: number;
  momentum: number;
  relu: boolean;
}

const goldenCases: OpCase[] = loadGolden<GoldenParams>("norm").flatMap((golden) => {
  const { name, params } = golden;
  const arrays: Arrays = Object.fromEntries(golden.names.map((key) => [key, golden.array(key)]));
  const options: NormOptions = { ...params, residual: golden.has("residual") };
  const pick = (...keys: string[]) =>
    Object.fromEntries(keys.filter((key) => key in arrays).map((key) => [key, arrays[key]!]));
  return [
    recorded(batchNormTrain(name, options), arrays, pick("y", "newMean", "newVar")),
    recorded(batchNormInfer(name, options), arrays, { y: arrays.inferred! }),
    recorded(batchNormBackward(name, options), arrays, pick("dx", "dresidual", "dweight", "dbias")),
  ];
});

export const normCases: OpCase[] = [
  ...shapes.flatMap(([name, shape]) =>
    variants.flatMap(([suffix, variant]) => [
      batchNormTrain(`${name}${suffix}`, { shape, ...variant }),
      batchNormInfer(`${name}${suffix}`, { shape, ...variant }),
      batchNormBackward(`${name}${suffix}`, { shape, ...variant }),
    ]),
  ),
  batchNormTrain("without running statistics", { shape: [2, 4, 4, 6], stateless: true }),
  batchNormTrain("statistics of one group of rows", { shape: [2, 5, 5, 16], parts: 1 }),
  batchNormTrain("statistics of 7 groups of rows", { shape: [2, 9, 9, 27], parts: 7, relu: true }),
  batchNormTrain("statistics of more groups than rows", { shape: [2, 4, 4, 6], parts: 40, filled: 3 }),
  batchNormTrain("statistics of 300 groups of rows", {
    shape: [2, 160, 150, 8],
    parts: 300,
    relu: true,
    residual: true,
  }),
  batchNormTrain("another eps and momentum", { shape: [2, 4, 4, 6], eps: 0.1, momentum: 0.9 }),
  // One pass over sums of squares would be off by 100 % here.
  { ...batchNormTrain("mean 300 times the deviation", { shape: [2, 16, 16, 4], mean: 500 }), dtypes: ["f32"] },
  batchNormInfer("in place", { shape: [2, 4, 4, 6], inPlace: true, relu: true }),
  batchNormBackward("dx in dy's memory", { shape: [2, 4, 4, 6], inPlace: true, relu: true }),
  batchNormBackward("dresidual in dy's memory", { shape: [2, 4, 4, 6], inPlace: true, relu: true, residual: true }),
  // Results up to half of the dtype's smallest number are stored as 0, where ReLU's gradient is 0.
  roundedToZero("f16", 2 ** -25),
  roundedToZero("bf16", 2 ** -134),
  batchNormFold("with a bias", 16, 27, true),
  batchNormFold("without a bias", 5, 8, false),
  batchNormFold("1x1 of 1 channel", 3, 1, true),
  batchNormFold("3x3 of 64 channels", 70, 576, false),
  batchNormFoldBackward("27 weights per channel", 16, 27),
  batchNormFoldBackward("3x3 of 64 channels, in place", 70, 576, true),
  batchNormFoldBackward("a bias", 100, 1),
  constantInput(batchNormTrain("constant input", { shape: [2, 3, 3, 4] })),
  ...goldenCases,
];

/** Results of the size of the largest number that is stored as 0. */
function roundedToZero(dtype: "bf16" | "f16", tiny: number): OpCase {
  const opCase = batchNormBackward(`${dtype} results around 0`, { shape: [2, 8, 8, 16], relu: true, tiny });
  return { ...opCase, dtypes: [dtype], gradients: undefined };
}

/** Every channel has one value: the variance is 0, and 1 / sqrt(eps) must not be infinite nor y anything but the bias. */
function constantInput(opCase: OpCase): OpCase {
  const x: Input = {
    ...opCase.inputs.x!,
    values: (_random, size) => Float32Array.from({ length: size }, (_, i) => (i % 4) - 1.5),
  };
  return {
    ...opCase,
    inputs: { ...opCase.inputs, x },
    outputs: { ...opCase.outputs, y: { ...opCase.outputs.y!, tolerance: { rtol: 1e-2, atol: 1e-2 } } },
  };
}

const large: NormOptions = { shape: [8, 80, 80, 256] };
export const normBenches: OpCase[] = [
  batchNormTrain("relu, 8x80x80x256", { ...large, relu: true }),
  batchNormTrain("residual and relu, 8x80x80x256", { ...large, relu: true, residual: true }),
  batchNormInfer("relu, 8x80x80x256", { ...large, relu: true }),
  batchNormBackward("relu, 8x80x80x256", { ...large, relu: true }),
  batchNormBackward("residual and relu, 8x80x80x256", { ...large, relu: true, residual: true }),
];

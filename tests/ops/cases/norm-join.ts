/** The sum of two batch normalizations: statistics alone, forward, backward. */
import { outHandle } from "../../../lib/tensor";
import { dot } from "../reference/elementwise";
import { normalize, normalizeBackward, statistics } from "../reference/norm";
import type { Arrays, Input, Numbers, OpCase, Output } from "./case";
import { activationOf, maskBits, sizesOf, statisticTolerance, workspace } from "./norm";

interface JoinOptions {
  shape: readonly number[];
  relu: boolean;
  /** The gradient of x takes the memory of dy. */
  inPlace?: boolean;
}

const eps = 1e-5;

/** One normalization's operands, named after its tensor. */
function branch(name: "x" | "z", { shape }: JoinOptions): Record<string, Input> {
  const channels = { shape: [shape.at(-1)!], kind: "f32" as const };
  const saved = (key: "mean" | "invstd"): Input => ({
    ...channels,
    values: (_random, _size, earlier) => statistics(earlier[name]!, shape.at(-1)!, eps)[key],
  });
  return {
    [name]: { shape, values: (random, size) => random.normal(size, name === "x" ? 0.5 : -2, 1.5) },
    [`${name}Weight`]: { ...channels, values: (random, size) => random.uniform(size, 0.5, 1.5) },
    [`${name}Bias`]: channels,
    [`${name}Mean`]: saved("mean"),
    [`${name}Invstd`]: saved("invstd"),
  };
}

/** The sum, with the tensors' own statistics. */
function joined(values: Arrays, channels: number, relu: boolean): Float64Array {
  const of = (name: string, residual: Numbers | undefined, activation: boolean) => {
    const { mean, invstd } = statistics(values[name]!, channels, eps);
    return normalize(
      values[name]!,
      mean,
      invstd,
      values[`${name}Weight`]!,
      values[`${name}Bias`]!,
      residual,
      activation,
    );
  };
  return of("x", of("z", undefined, false), relu);
}

function maskInput(options: JoinOptions): Input {
  const [rows, channels] = sizesOf(options);
  return {
    shape: [rows, Math.ceil(channels / 8)],
    kind: "u8",
    values: (_random, _size, earlier) => maskBits(joined(earlier, channels, true), channels),
  };
}

function batchNormStatistics(name: string, shape: readonly number[]): OpCase {
  const [rows, channels] = sizesOf({ shape });
  const perChannel: Output = { shape: [channels], kind: "f32", tolerance: statisticTolerance({ shape }) };
  return {
    op: "batch_norm_statistics",
    name,
    inputs: { x: { shape, values: (random, size) => random.normal(size, 0.5, 1.5) } },
    outputs: { mean: perChannel, invstd: perChannel },
    prepare(c) {
      const scratch = workspace(c, { shape });
      const [mean, invstd, x] = ["mean", "invstd", "x"].map((operand) => c.address(operand));
      return () =>
        void c.native.batchNormStatistics(
          c.stream,
          mean!,
          invstd!,
          null,
          null,
          x!,
          null,
          scratch,
          rows,
          channels,
          0,
          c.dtype,
          eps,
          0.1,
        );
    },
    reference({ x }) {
      const { mean, invstd } = statistics(x!, channels, eps);
      return { mean, invstd };
    },
  };
}

type Four = [number, number, number, number];

function batchNormJoin(name: string, options: JoinOptions): OpCase {
  const [rows, channels] = sizesOf(options);
  const { shape, relu } = options;
  return {
    op: "batch_norm_join",
    name,
    inputs: { ...branch("x", options), ...branch("z", options) },
    outputs: { y: { shape, terms: 32 }, ...(relu && { mask: { ...maskInput(options) } }) },
    prepare(c) {
      const [y, mask, x, z] = ["y", "mask", "x", "z"].map((operand) => c.address(operand));
      const of = (tensor: string) =>
        ["Weight", "Bias", "Mean", "Invstd"].map((operand) => c.address(`${tensor}${operand}`)) as Four;
      const activation = activationOf(options);
      return () =>
        void c.native.batchNormJoin(
          c.stream,
          y!,
          mask!,
          x!,
          z!,
          ...of("x"),
          ...of("z"),
          rows,
          channels,
          c.dtype,
          activation,
        );
    },
    reference(values) {
      const y = joined(values, channels, relu);
      return { y, mask: maskBits(y, channels) };
    },
  };
}

function batchNormJoinBackward(name: string, options: JoinOptions): OpCase {
  const [rows, channels] = sizesOf(options);
  const { shape, relu, inPlace } = options;
  const perChannel: Output = { shape: [channels], kind: "f32", terms: rows };
  const loss = (values: Arrays) => dot(values.dy!, joined(values, channels, relu));
  return {
    op: "batch_norm_join_backward",
    name,
    inputs: {
      ...branch("x", options),
      ...branch("z", options),
      ...(relu && { mask: maskInput(options) }),
      dy: { shape },
    },
    outputs: {
      dx: { shape, terms: 64, ...(inPlace && { inPlaceOf: "dy" }) },
      dz: { shape, terms: 64 },
      dxWeight: perChannel,
      dxBias: perChannel,
      dzWeight: perChannel,
      dzBias: perChannel,
    },
    prepare(c) {
      const bytes = outHandle();
      c.native.batchNormJoinWorkspace(c.device.handle, bytes.view, rows, channels, c.dtype);
      const scratch = c.workspace(bytes.value);
      const [dx, dz, dxWeight, dxBias, dzWeight, dzBias] = ["dx", "dz", "dxWeight", "dxBias", "dzWeight", "dzBias"].map(
        (operand) => c.address(operand),
      );
      const [dy, x, z, mask] = ["dy", "x", "z", "mask"].map((operand) => c.address(operand));
      const of = (tensor: string) =>
        ["Weight", "Mean", "Invstd"].map((operand) => c.address(`${tensor}${operand}`)) as [number, number, number];
      return () =>
        void c.native.batchNormJoinBackward(
          c.stream,
          dx!,
          dz!,
          dxWeight!,
          dxBias!,
          dzWeight!,
          dzBias!,
          dy!,
          x!,
          z!,
          mask!,
          ...of("x"),
          ...of("z"),
          scratch,
          rows,
          channels,
          c.dtype,
        );
    },
    reference(values) {
      const y = relu ? joined(values, channels, true) : undefined;
      const of = (name: string) =>
        normalizeBackward(
          values.dy!,
          values[name]!,
          values[`${name}Weight`]!,
          values[`${name}Mean`]!,
          values[`${name}Invstd`]!,
          y,
        );
      const [x, z] = [of("x"), of("z")];
      return {
        dx: x.dx,
        dz: z.dx,
        dxWeight: x.dweight,
        dxBias: x.dbias,
        dzWeight: z.dweight,
        dzBias: z.dbias,
      };
    },
    gradients: [
      ...(rows > 2
        ? [
            { output: "dx", of: "x", loss },
            { output: "dz", of: "z", loss },
          ]
        : []),
      { output: "dxWeight", of: "xWeight", loss },
      { output: "dzWeight", of: "zWeight", loss },
      { output: "dxBias", of: "xBias", loss },
      { output: "dzBias", of: "zBias", loss },
    ],
  };
}

const shapes: [string, readonly number[]][] = [
  ["3 channels", [2, 5, 7, 3]],
  ["36 channels", [1, 7, 9, 36]],
  ["64 channels", [2, 5, 5, 64]],
  ["2 rows", [2, 1, 1, 10]],
  ["many rows", [1, 60, 50, 8]],
];

export const normJoinCases: OpCase[] = [
  ...shapes.flatMap(([name, shape]) => [
    batchNormStatistics(name, shape),
    ...[true, false].flatMap((relu) => [
      batchNormJoin(`${name}${relu ? ", relu" : ""}`, { shape, relu }),
      batchNormJoinBackward(`${name}${relu ? ", relu" : ""}`, { shape, relu }),
    ]),
  ]),
  batchNormJoinBackward("dx in dy's memory", { shape: [2, 4, 4, 6], relu: true, inPlace: true }),
];

const large: JoinOptions = { shape: [8, 80, 80, 256], relu: true };
export const normJoinBenches: OpCase[] = [
  batchNormJoin("relu, 8x80x80x256", large),
  batchNormJoinBackward("relu, 8x80x80x256", large),
];

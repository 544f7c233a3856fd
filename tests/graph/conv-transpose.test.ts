/** Transposed convolution: against the naive definition, PyTorch's numbers and finite differences, and its fusion. */
import { describe, expect, test } from "bun:test";
import {
  type ConvTransposeOptions,
  convPicks,
  convTranspose2d,
  relu,
  restoreConvPicks,
  silu,
  useParameter,
  type Value,
} from "../../lib/graph";
import { Device, type DType, decodeElements, encodeElements } from "../../lib/tensor";
import { tolerance } from "../ops/cases/case";
import {
  type ConvTransposeShape,
  channelSum,
  convTranspose,
  convTransposeBackward,
  transposedSize,
} from "../ops/reference/conv";
import { expectClose, type Tolerance } from "../support/compare";
import { backend, missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { loadGolden } from "../support/golden";
import { Random } from "../support/random";
import { expectGradients, kinds, numbers, parameter, program } from "./support";

const device = testDevice();

function shape(
  given: Partial<ConvTransposeShape> & Pick<ConvTransposeShape, "h" | "w" | "c" | "k">,
): ConvTransposeShape {
  const none = { padding: [0, 0], outputPadding: [0, 0] } as const;
  return { n: 2, r: 1, s: 1, stride: [1, 1], dilation: [1, 1], groups: 1, ...none, ...given };
}

const shapes: [string, ConvTransposeShape][] = [
  ["2x2 stride 2", shape({ h: 4, w: 5, c: 16, k: 8, r: 2, s: 2, stride: [2, 2] })],
  [
    "3x3 stride 2, padding 1, output padding 1",
    shape({ h: 5, w: 4, c: 8, k: 16, r: 3, s: 3, stride: [2, 2], padding: [1, 1], outputPadding: [1, 1] }),
  ],
  ["4x4 stride 2", shape({ h: 3, w: 6, c: 8, k: 8, r: 4, s: 4, stride: [2, 2], padding: [1, 1] })],
  ["3x3 stride 1", shape({ h: 6, w: 5, c: 8, k: 3, r: 3, s: 3, padding: [1, 1] })],
  ["1x1", shape({ h: 3, w: 4, c: 16, k: 27 })],
  [
    "1x1 stride 3 (gaps between pixels)",
    shape({ n: 1, h: 3, w: 2, c: 8, k: 8, stride: [3, 3], outputPadding: [2, 1] }),
  ],
  ["2x2 stride 3 (gaps between windows)", shape({ h: 3, w: 3, c: 4, k: 6, r: 2, s: 2, stride: [3, 3] })],
  ["3x3 dilation 2", shape({ h: 5, w: 5, c: 8, k: 8, r: 3, s: 3, padding: [2, 2], dilation: [2, 2] })],
  [
    "3x2, unequal everything",
    shape({
      ...{ n: 1, h: 4, w: 5, c: 6, k: 4, r: 3, s: 2 },
      ...{ stride: [1, 3], padding: [2, 0], dilation: [2, 1], outputPadding: [0, 2], groups: 2 },
    }),
  ],
  ["1x7", shape({ n: 1, h: 4, w: 6, c: 4, k: 4, r: 1, s: 7, stride: [1, 2], padding: [0, 3] })],
  [
    "output padding of the stride and more (dilation allows it)",
    shape({ h: 4, w: 3, c: 4, k: 8, r: 3, s: 3, padding: [2, 1], dilation: [3, 3], outputPadding: [2, 1] }),
  ],
  ["padding beyond the kernel (crops)", shape({ h: 5, w: 6, c: 8, k: 4, r: 2, s: 2, stride: [2, 2], padding: [3, 2] })],
  ["one pixel", shape({ n: 3, h: 1, w: 1, c: 8, k: 5, r: 4, s: 3, stride: [2, 2] })],
  ["in 4 groups of 2, 3 out", shape({ h: 3, w: 3, c: 8, k: 12, r: 2, s: 2, stride: [2, 2], groups: 4 })],
  ["in 32 groups of 4", shape({ n: 1, h: 3, w: 4, c: 128, k: 128, r: 3, s: 3, padding: [1, 1], groups: 32 })],
  ["depthwise stride 2", shape({ h: 4, w: 4, c: 16, k: 16, r: 4, s: 4, stride: [2, 2], padding: [1, 1], groups: 16 })],
  ["depthwise dilation 2", shape({ h: 5, w: 4, c: 8, k: 8, r: 3, s: 3, dilation: [2, 2], padding: [2, 2], groups: 8 })],
  ["1 channel to 1", shape({ h: 4, w: 4, c: 1, k: 1, r: 3, s: 3, stride: [2, 2] })],
];

const optionsOf = ({ stride, padding, dilation, groups, outputPadding }: ConvTransposeShape): ConvTransposeOptions => ({
  stride,
  padding,
  dilation,
  groups,
  outputPadding,
});

/** Random numbers rounded to a dtype, as an operand holds them. */
function rounded(name: string, size: number, std: number, dtype: DType): ArrayLike<number> {
  return decodeElements(Uint8Array.from(encodeElements(new Random(name).normal(size, 0, std), dtype)), dtype);
}

interface Operands {
  x: ArrayLike<number>;
  w: ArrayLike<number>;
  bias: ArrayLike<number> | null;
  dy: ArrayLike<number>;
}

/** The result and all gradients of a program, by name. */
function run(of: ConvTransposeShape, dtype: DType, { x, w, bias, dy }: Operands): Record<string, number[]> {
  const { n, h, w: width, c, k, r, s, groups } = of;
  const inputs = {
    x: { shape: [n, h, width, c], values: x, dtype },
    w: { shape: [c, r, s, k / groups], values: w, dtype },
    ...(bias && { bias: { shape: [k], values: bias } }),
  };
  using made = program(
    device,
    inputs,
    (values) => ({ y: convTranspose2d(values.x!, values.w!, values.bias ?? null, optionsOf(of)) }),
    { training: true, seeds: "inputs", inputGradients: Object.keys(inputs) },
  );
  expect(made.results.y!.shape).toEqual([n, ...transposedSize(of), k]);
  made.inputs["grad.y"]!.write(dy);
  made.run();
  return Object.fromEntries(Object.entries(made.results).map(([name, tensor]) => [name, numbers(tensor)]));
}

for (const dtype of ["f32", "bf16", "f16"] as const) {
  const reason = missing(device, dtype, dtype === "f32" ? [] : [`conv.${dtype}`]);
  describe(`agrees with the definition in ${dtype}`, () => {
    if (reason) {
      test.skip(`${shapes.length} shapes (${reason})`, () => {});
      return;
    }
    test.each(shapes)("%s", (name, of) => {
      const { n, h, w, c, k, r, s, groups } = of;
      const terms = (r * s * c) / groups;
      const [p, q] = transposedSize(of);
      const given: Operands = {
        x: rounded(`${name} x`, n * h * w * c, 1, dtype),
        w: rounded(`${name} w`, (c * r * s * k) / groups, 1 / Math.sqrt(terms), dtype),
        bias: new Random(`${name} bias`).normal(k),
        dy: rounded(`${name} dy`, n * p * q * k, 1, dtype),
      };
      const actual = run(of, dtype, given);
      const { dx, dw } = convTransposeBackward(given.dy, given.x, given.w, of);
      const y = convTranspose(given.x, given.w, of).map((value, i) => value + given.bias![i % k]!);
      // The result is rounded before the bias is added, and weight gradients where a library has no fp32 ones.
      const twice = (allowed: Tolerance): Tolerance =>
        dtype === "f32"
          ? allowed
          : { ...allowed, rtol: Math.max(allowed.rtol, tolerance(dtype).rtol), atol: 4 * tolerance(dtype).rtol };
      expectClose(actual.y!, y, twice(tolerance(dtype, terms)), "y");
      expectClose(actual["grad.x"]!, dx, tolerance(dtype, (r * s * k) / groups), "dx");
      expectClose(actual["grad.w"]!, dw, twice(tolerance("f32", n * h * w)), "dw");
      expectClose(actual["grad.bias"]!, channelSum(given.dy, k), tolerance("f32", n * p * q), "dbias");
    });
  });
}

describe("agrees with PyTorch", () => {
  type Params = Pick<ConvTransposeShape, "stride" | "padding" | "outputPadding" | "dilation" | "groups">;
  test.each(loadGolden<Params>("conv-transpose").map((golden) => [golden.name, golden] as const))(
    "%s",
    (_name, golden) => {
      const [n, h, w, c] = golden.shape("x") as [number, number, number, number];
      const [, r, s, perGroup] = golden.shape("w") as [number, number, number, number];
      const of = { n, h, w, c, k: perGroup * golden.params.groups, r, s, ...golden.params };
      const bias = golden.has("bias") ? golden.array("bias") : null;
      const actual = run(of, "f32", { x: golden.array("x"), w: golden.array("w"), bias, dy: golden.array("dy") });
      const margin = { rtol: 1e-5, atol: 1e-5 };
      const reference = convTranspose(golden.array("x"), golden.array("w"), of).map(
        (v, i) => v + (bias?.[i % of.k] ?? 0),
      );
      expectClose(reference, golden.array("y"), margin, "the reference's y");
      expectClose(actual.y!, golden.array("y"), margin, "y");
      expectClose(actual["grad.x"]!, golden.array("dx"), margin, "dx");
      expectClose(actual["grad.w"]!, golden.array("dw"), margin, "dw");
      if (bias) expectClose(actual["grad.bias"]!, golden.array("dbias"), margin, "dbias");
    },
  );
});

test("gradients agree with finite differences, through an activation too", () => {
  using w = parameter(device, { shape: [6, 3, 2, 4] }, "w");
  using b = parameter(device, { shape: [8] }, "b");
  const up = (v: Value) => convTranspose2d(v, useParameter(w), useParameter(b), { stride: 2, groups: 2 });
  expectGradients(device, { x: { shape: [2, 3, 4, 6] } }, ({ x: v }) => ({ y: silu(up(v!)) }), [w, b]);
});

describe("fusion", () => {
  const spec = { shape: [1, 3, 3, 4] };
  const build = (activation: (v: Value) => Value, training: boolean) => {
    using w = parameter(device, { shape: [4, 2, 2, 5] }, "w");
    using b = parameter(device, { shape: [5] }, "b");
    using made = program(
      device,
      { x: spec },
      ({ x: v }) => ({ y: activation(convTranspose2d(v!, useParameter(w), useParameter(b), { stride: 2 })) }),
      training ? { training, seeds: "inputs" } : {},
    );
    using plain = program(
      device,
      { x: spec },
      ({ x: v }) => ({ y: activation(convTranspose2d(v!, useParameter(w), useParameter(b), { stride: 2 })) }),
      { fuse: false },
    );
    made.run();
    plain.run();
    expectClose(numbers(made.results.y), numbers(plain.results.y), { rtol: 1e-6, atol: 1e-6 }, "y");
    return kinds(made).slice(0, made.backwardStart);
  };

  test("an activation is applied with the bias", () => {
    expect(build(relu, false)).toEqual(["conv_transpose2d", "add_bias"]);
    expect(build(silu, false)).toEqual(["conv_transpose2d", "add_bias"]);
    expect(build(relu, true)).toEqual(["conv_transpose2d", "add_bias"]);
  });

  test("SiLU stays on its own where its gradient needs its input", () => {
    expect(build(silu, true)).toEqual(["conv_transpose2d", "add_bias", "activation"]);
  });
});

test("its algorithms are stored and restored as a checkpoint does", () => {
  const build = (on: Device) => {
    const inputs = { x: { shape: [1, 3, 4, 8] }, w: { shape: [8, 2, 2, 4] } };
    using made = program(on, inputs, ({ x, w }) => ({ y: convTranspose2d(x!, w!, null, { stride: 2 }) }), {
      training: true,
      seeds: "inputs",
      inputGradients: ["x", "w"],
    });
    made.run();
    return convPicks(on);
  };
  using first = new Device({ backend });
  const picks = build(first);
  expect(picks).toHaveLength(3);
  using restored = new Device({ backend });
  restoreConvPicks(restored, picks);
  expect(build(restored)).toEqual(picks);
});

describe("refuses", () => {
  const refused: [string, number[], ConvTransposeOptions, RegExp][] = [
    ["a weight for other channels", [3, 2, 2, 4], {}, /expected 3 channels, got 4/],
    ["groups that do not divide", [4, 2, 2, 4], { groups: 3 }, /divisible by 3 groups, got 4/],
    ["output padding as large as stride and dilation", [4, 2, 2, 4], { stride: 2, outputPadding: 2 }, /got 2x2/],
    ["padding that leaves nothing", [4, 1, 1, 4], { padding: 2 }, /leaves nothing of the result: -1x-1/],
  ];
  test.each(refused)("%s", (_name, weight, options, message) => {
    const error = errorOf(() =>
      program(device, { x: { shape: [1, 3, 3, 4] }, w: { shape: weight } }, ({ x, w }) => ({
        y: convTranspose2d(x!, w!, null, options),
      })),
    );
    expect(error.message).toMatch(message);
  });
});

/** Conversions to and from 8 bits, counts of magnitudes, and convolutions of 8 bits. */
import { constants, cString } from "../../../lib/native";
import { dtypeCode, outHandle, type QuantizedDType } from "../../../lib/tensor";
import { fromF8, toF8 } from "../../../lib/tensor/dtype";
import type { Random } from "../../support/random";
import * as reference from "../reference/conv";
import { activate, map } from "../reference/elementwise";
import { activationCodes } from "./activation";
import type { Input, Numbers, OpCase } from "./case";
import { type ConvShape, convShape, type Epilogue } from "./conv";

const limits = { f8: 448, i8: 127 } as const;
const both = ["f8", "i8"] as const;
const exact = { rtol: 0, atol: 0 };

/** The 8-bit number nearest to a value, as PyTorch's float8_e4m3fn and rounding to even say. */
function nearest(value: number, dtype: QuantizedDType): number {
  if (dtype === "f8") return fromF8(toF8(value));
  if (Number.isNaN(value)) return 0;
  const below = Math.floor(value);
  const isUp = value - below > 0.5 || (value - below === 0.5 && below % 2 !== 0);
  return Math.min(127, Math.max(-128, below + (isUp ? 1 : 0)));
}

function quantizeCase(
  name: string,
  dtype: QuantizedDType,
  size: number,
  factor: number,
  values?: Input["values"],
): OpCase {
  return {
    op: "quantize",
    name: `${name} to ${dtype}`,
    inputs: { x: { shape: [size], ...(values && { values }) } },
    outputs: { y: { shape: [size], kind: dtype, tolerance: exact } },
    prepare(c) {
      const [y, x] = [c.address("y")!, c.address("x")!];
      return () => void c.native.quantize(c.stream, y, x, size, dtypeCode(dtype), c.dtype, factor);
    },
    reference: ({ x }) => ({ y: map(x!, (value) => nearest(Math.fround(value * Math.fround(factor)), dtype)) }),
  };
}

function dequantizeCase(dtype: QuantizedDType, size: number, factor: number): OpCase {
  return {
    op: "dequantize",
    name: `all values of ${dtype}, ${size}`,
    inputs: { x: { shape: [size], kind: dtype, values: () => everyValue(dtype, size) } },
    outputs: { y: { shape: [size] } },
    prepare(c) {
      const [y, x] = [c.address("y")!, c.address("x")!];
      return () => void c.native.dequantize(c.stream, y, x, size, c.dtype, dtypeCode(dtype), factor);
    },
    reference: ({ x }) => ({ y: map(x!, (value) => value * Math.fround(factor)) }),
  };
}

/** The 256 patterns in a row, again and again. */
function everyValue(dtype: QuantizedDType, size: number): Numbers {
  return Float32Array.from({ length: size }, (_, i) => (dtype === "f8" ? fromF8(i & 255) : ((i & 255) << 24) >> 24));
}

function channelsCase(dtype: QuantizedDType, k: number, perChannel: number): OpCase {
  const values = (random: Random, size: number) => {
    const drawn = random.normal(size);
    return drawn.map((value, i) => (Math.floor(i / perChannel) === 1 ? 0 : value * (1 + (i % 3))));
  };
  const scaleOf = (w: Numbers, channel: number) => {
    const row = Array.from({ length: perChannel }, (_, i) => Math.abs(w[channel * perChannel + i]!));
    return Math.max(...row) === 0 ? 1 : Math.fround(Math.max(...row) / limits[dtype]);
  };
  return {
    op: "quantize_channels",
    name: `${k} x ${perChannel} to ${dtype}`,
    inputs: { w: { shape: [k, perChannel], values } },
    outputs: {
      y: { shape: [k, perChannel], kind: dtype, tolerance: exact },
      scale: { shape: [k], kind: "f32", tolerance: exact },
    },
    prepare(c) {
      const [y, scale, w] = [c.address("y")!, c.address("scale")!, c.address("w")!];
      return () => void c.native.quantizeChannels(c.stream, y, scale, w, k, perChannel, dtypeCode(dtype), c.dtype);
    },
    reference({ w }) {
      const scale = Float32Array.from({ length: k }, (_, channel) => scaleOf(w!, channel));
      const y = map(w!, (value, i) => nearest(Math.fround(value / scale[Math.floor(i / perChannel)]!), dtype));
      return { y, scale };
    },
  };
}

function countCase(name: string, size: number, values?: Input["values"]): OpCase {
  const bins = constants.MAGNITUDE_BINS;
  const before: Input = {
    shape: [bins],
    kind: "i64",
    values: (_, n) => Float64Array.from({ length: n }, (__, i) => i % 5),
  };
  return {
    op: "count_magnitudes",
    name,
    inputs: { x: { shape: [size], ...(values && { values }) }, before },
    outputs: { counts: { shape: [bins], kind: "i64", inPlaceOf: "before", tolerance: exact } },
    prepare(c) {
      const [counts, x] = [c.address("counts")!, c.address("x")!];
      return () => void c.native.countMagnitudes(c.stream, counts, x, size, c.dtype);
    },
    reference({ x, before: start }) {
      const counts = Float64Array.from(start!);
      const bits = new Uint32Array(Float32Array.from(x!).buffer);
      for (const one of bits) counts[(one & 0x7fffffff) >>> 18]!++;
      return { counts };
    },
  };
}

/**
 * @param wide the result has the dtype of "x" instead of 8 bits
 * @param pick the algorithm, by a text that dlfs_conv_create takes; default the library's choice
 */
export function convScaled(
  name: string,
  dtype: QuantizedDType,
  shape: ConvShape,
  { bias = false, residual = false, activation = "none" }: Epilogue = {},
  wide = false,
  pick = "",
): OpCase {
  const { n, h, w, c, k, r, s, stride, padding, dilation, groups } = shape;
  const [p, q] = reference.outputSize(shape);
  const terms = (r * s * c) / groups;
  // Results of magnitude 1 where they stay wide, of a third of the largest 8-bit number elsewhere: some are beyond it.
  const magnitude = wide ? 1 : limits[dtype] / 3;
  const amplitude = dtype === "f8" ? 4 : 50;
  const narrow = (random: Random, size: number) =>
    random.normal(size, 0, amplitude).map((value) => nearest(value, dtype));
  const drawn = (random: Random, size: number) => random.normal(size, 0, magnitude);
  const y = { shape: [n, p, q, k] };
  const flag: Record<number, number> = {
    [constants.F32]: constants.CONV_Y_F32,
    [constants.BF16]: constants.CONV_Y_BF16,
    [constants.F16]: constants.CONV_Y_F16,
  };
  // What tensor cores lose in sums of E4M3: each addition of 32 products leaves about 14 bits, cut off rather than rounded.
  const lost = dtype === "f8" ? Math.max(1, terms / 256) : 0;
  // That, and half the distance of neighbouring numbers.
  const rounding =
    dtype === "f8" ? { rtol: 1.02 * 2 ** -4, atol: 2 ** -10 + magnitude * 2e-3 * lost } : { rtol: 0, atol: 0.501 };
  return {
    op: "conv_forward_scaled",
    name: `${name} in ${dtype}${wide ? ", wide result" : ""}`,
    dtypes: wide ? ["f32", "bf16", "f16"] : ["f32"],
    features: () => [`conv.${dtype}`],
    inputs: {
      x: { shape: [n, h, w, c], kind: dtype, values: narrow },
      w: { shape: [k, r, s, c / groups], kind: dtype, values: narrow },
      scale: {
        shape: [k],
        kind: "f32",
        values: (random, size) =>
          random.uniform(size, 0.5, 1.5).map((v) => (v * magnitude) / (amplitude ** 2 * Math.sqrt(terms))),
      },
      ...(bias && { bias: { shape: [k], kind: "f32" as const, values: drawn } }),
      ...(residual && {
        residual: wide
          ? y
          : {
              ...y,
              kind: dtype,
              values: (random: Random, size: number) => drawn(random, size).map((v) => nearest(v, dtype)),
            },
      }),
    },
    outputs: {
      y: wide
        ? { ...y, terms: dtype === "f8" ? 2 ** 14 * lost : 64, roundings: 1 }
        : { ...y, kind: dtype, tolerance: rounding },
    },
    prepare(context) {
      const { native, device } = context;
      const flags =
        (bias ? constants.CONV_BIAS : 0) |
        (residual ? constants.CONV_RESIDUAL : 0) |
        (wide ? (flag[context.dtype] as number) : 0);
      const out = outHandle();
      native.convCreate(
        device.handle,
        out.view,
        cString(pick),
        constants.CONV_FORWARD,
        dtypeCode(dtype),
        n,
        h,
        w,
        c,
        k,
        r,
        s,
        ...stride,
        ...padding,
        ...dilation,
        groups,
        flags,
        activationCodes[activation],
      );
      const handle = out.value;
      context.defer(() => native.convDestroy(handle));
      const bytes = outHandle();
      native.convWorkspace(handle, bytes.view);
      const workspace = context.workspace(bytes.value);
      const [dst, xs, ws, factors] = ["y", "x", "w", "scale"].map((name) => context.address(name) as number);
      const [b, z] = ["bias", "residual"].map((operand) => context.address(operand) ?? null) as (number | null)[];
      return () => void native.convForwardScaled(context.stream, handle, dst!, xs!, ws!, factors!, b!, z!, workspace);
    },
    // Not rounded to 8 bits: half a unit is what the tolerance allows.
    reference: (inputs) => ({
      y: map(reference.convForward(inputs.x!, inputs.w!, shape), (sum, i) => {
        const value = inputs.scale![i % k]! * sum + (inputs.bias?.[i % k] ?? 0) + (inputs.residual?.[i] ?? 0);
        const result = activate(value, activation);
        if (wide) return result;
        return Math.max(dtype === "i8" ? -128 : -448, Math.min(limits[dtype], result));
      }),
    }),
    flops: 2 * n * p * q * k * terms,
  };
}

const ties = (dtype: QuantizedDType) => () =>
  dtype === "f8"
    ? Float32Array.of(
        0,
        -0,
        1.0625,
        1.1875,
        2 ** -10,
        3 * 2 ** -10,
        2 ** -6,
        447,
        448,
        463,
        464,
        1e30,
        -1e30,
        17,
        19,
        -17,
      )
    : Float32Array.of(0, -0, 0.5, 1.5, -0.5, -2.5, 126.5, 127.5, 128, 1e30, -128.5, -1e30, 3.25, -3.75, 100.5, 101.5);
const notFinite = () => Float32Array.of(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1, -1, 0, 2, 3);

const convs = (dtype: QuantizedDType): OpCase[] => [
  convScaled("1x1, 5x7", dtype, convShape({ h: 5, w: 7, c: 32, k: 48 }), { bias: true, activation: "relu" }),
  convScaled("3x3, padding 1", dtype, convShape({ h: 9, w: 6, c: 64, k: 32, r: 3, s: 3, padding: [1, 1] }), {
    bias: true,
  }),
  convScaled(
    "3x3, stride 2, residual and relu",
    dtype,
    convShape({ h: 11, w: 8, c: 16, k: 64, r: 3, s: 3, stride: [2, 2], padding: [1, 1] }),
    { bias: true, residual: true, activation: "relu" },
  ),
  convScaled("1x1, no epilogue", dtype, convShape({ h: 4, w: 4, c: 64, k: 16 })),
  convScaled(
    "3x3, 36 channels out",
    dtype,
    convShape({ h: 6, w: 6, c: 32, k: 36, r: 3, s: 3, padding: [1, 1] }),
    { bias: true },
    true,
  ),
  convScaled(
    "1x1, residual",
    dtype,
    convShape({ h: 6, w: 5, c: 32, k: 32 }),
    { bias: true, residual: true, activation: "relu" },
    true,
  ),
  convScaled(
    "3x3, sigmoid",
    dtype,
    convShape({ h: 6, w: 5, c: 16, k: 16, r: 3, s: 3 }),
    { bias: true, activation: "sigmoid" },
    true,
  ),
  // What no library has: odd channels, groups.
  convScaled("3x3, 3 to 5 channels", dtype, convShape({ h: 6, w: 5, c: 3, k: 5, r: 3, s: 3 }), {
    bias: true,
    activation: "relu",
  }),
  convScaled(
    "2 groups, dilation 2",
    dtype,
    convShape({ h: 9, w: 9, c: 32, k: 32, r: 3, s: 3, groups: 2, dilation: [2, 2] }),
    {
      residual: true,
    },
  ),
];

export const quantizeCases: OpCase[] = [
  ...both.flatMap((dtype) => [
    quantizeCase("normal", dtype, 4099, limits[dtype] / 4),
    quantizeCase("ties and limits", dtype, 16, 1, ties(dtype)),
    quantizeCase("not finite", dtype, 8, 1, notFinite),
    quantizeCase("small", dtype, 1000, 2 ** -7),
    dequantizeCase(dtype, 1037, 0.0371),
    channelsCase(dtype, 3, 7),
    channelsCase(dtype, 65, 576),
    ...convs(dtype),
  ]),
  countCase("normal, 5000", 5000),
  countCase("zeros, negative numbers, not finite", 8, notFinite),
];

const bench = 8 * 80 * 80 * 256;
const benchShapes: [string, ConvShape, Epilogue][] = [
  [
    "3x3, 8x40x40x256",
    convShape({ n: 8, h: 40, w: 40, c: 256, k: 256, r: 3, s: 3, padding: [1, 1] }),
    { bias: true, activation: "relu" },
  ],
  [
    "1x1, 8x40x40, 256 to 1024, residual",
    convShape({ n: 8, h: 40, w: 40, c: 256, k: 1024 }),
    { bias: true, residual: true, activation: "relu" },
  ],
];
export const quantizeBenches: OpCase[] = both.flatMap((dtype) => [
  quantizeCase("8x80x80x256", dtype, bench, 1),
  dequantizeCase(dtype, bench, 1),
  ...benchShapes.map(([name, shape, epilogue]) => convScaled(name, dtype, shape, epilogue)),
]);

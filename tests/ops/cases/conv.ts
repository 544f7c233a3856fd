/** Convolution in three directions with epilogues, and the bias gradient. */
import { constants, cString } from "../../../lib/native";
import { outHandle } from "../../../lib/tensor";
import { loadGolden } from "../../support/golden";
import * as reference from "../reference/conv";
import { activate, dot, map } from "../reference/elementwise";
import { activationCodes, fusedNames } from "./activation";
import { type Arrays, type CaseContext, type Input, type OpCase, recorded } from "./case";

export type ConvShape = reference.ConvShape;

export interface Epilogue {
  bias?: boolean;
  residual?: boolean;
  activation?: (typeof fusedNames)[number];
}

/** What follows a data gradient. */
export interface GradientEpilogue {
  residual?: boolean;
  /** By x, which has values above, below and at 0. */
  mask?: boolean;
  /** The result lies in the residual's memory. */
  inPlace?: boolean;
}

/** A shape with the defaults filled in. */
export function convShape(shape: Partial<ConvShape> & Pick<ConvShape, "h" | "w" | "c" | "k">): ConvShape {
  return { n: 2, r: 1, s: 1, stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1, ...shape };
}

/** Weights and gradients are scaled so that results have magnitude 1 whatever the number of terms. */
function operands(shape: ConvShape): { x: Input; w: Input; dy: Input; terms: number; products: number } {
  const { n, h, w, c, k, r, s, groups } = shape;
  const [p, q] = reference.outputSize(shape);
  const terms = (r * s * c) / groups;
  return {
    x: { shape: [n, h, w, c] },
    w: { shape: [k, r, s, c / groups], values: (random, size) => random.normal(size, 0, 1 / Math.sqrt(terms)) },
    dy: { shape: [n, p, q, k] },
    terms,
    products: n * p * q * k * terms,
  };
}

function plan(
  c: CaseContext,
  direction: number,
  shape: ConvShape,
  pick: string,
  { bias, residual, mask, activation = "none" }: Epilogue & GradientEpilogue = {},
) {
  const { n, h, w, k, r, s, stride, padding, dilation, groups } = shape;
  const flags =
    (bias ? constants.CONV_BIAS : 0) | (residual ? constants.CONV_RESIDUAL : 0) | (mask ? constants.CONV_RELU_MASK : 0);
  const out = outHandle();
  c.native.convCreate(
    c.device.handle,
    out.view,
    cString(pick),
    direction,
    c.dtype,
    n,
    h,
    w,
    shape.c,
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
  c.defer(() => c.native.convDestroy(handle));
  const bytes = outHandle();
  c.native.convWorkspace(handle, bytes.view);
  return { handle, workspace: c.workspace(bytes.value) };
}

const needsConv: OpCase["features"] = (dtype) =>
  dtype === "bf16" ? ["conv.bf16"] : dtype === "f16" ? ["conv.f16"] : [];

/** @param pick the algorithm, by a text that dlfs_conv_create takes; default the library's choice */
export function convForward(name: string, shape: ConvShape, epilogue: Epilogue = {}, pick = ""): OpCase {
  const { x, w, dy, terms, products } = operands(shape);
  const { bias = false, residual = false, activation = "none" } = epilogue;
  // ReLU6 clips what is beyond 6: sums of 4 times the magnitude often are.
  const magnitude = activation === "relu6" ? 4 : 1;
  if (magnitude > 1) x.values = (random, size) => random.normal(size, 0, magnitude);
  return {
    op: "conv_forward",
    name,
    features: needsConv,
    inputs: {
      x,
      w,
      ...(bias && { bias: { shape: [shape.k], kind: "f32" as const } }),
      ...(residual && { residual: dy }),
    },
    // Where the library has no fused epilogue the sums are stored before it runs: magnitude 1, 4 in the tails.
    outputs: {
      y: {
        shape: dy.shape,
        terms: magnitude * (terms + 2),
        roundings: bias || residual || activation !== "none" ? 2 : 1,
        magnitude: 4 * magnitude,
      },
    },
    prepare(c) {
      const { handle, workspace } = plan(c, constants.CONV_FORWARD, shape, pick, epilogue);
      const [y, xs, ws, b, z] = ["y", "x", "w", "bias", "residual"].map((operand) => c.address(operand));
      return () => void c.native.convForward(c.stream, handle, y!, xs!, ws!, b!, z!, workspace);
    },
    reference: (inputs) => ({
      y: map(reference.convForward(inputs.x!, inputs.w!, shape), (value, i) =>
        activate(value + (inputs.bias?.[i % shape.k] ?? 0) + (inputs.residual?.[i] ?? 0), activation),
      ),
    }),
    flops: 2 * products,
  };
}

export function convBackwardData(name: string, shape: ConvShape, epilogue: GradientEpilogue = {}, pick = ""): OpCase {
  const { x, w, dy, products } = operands(shape);
  const { residual = false, mask = false, inPlace = false } = epilogue;
  const terms = (shape.r * shape.s * shape.k) / shape.groups;
  return {
    op: "conv_backward_data",
    name,
    features: needsConv,
    inputs: {
      dy,
      w,
      ...(residual && { residual: x }),
      ...(mask && {
        x: {
          ...x,
          values: (random, size) => random.normal(size).map((value, i) => (i % 5 === 0 ? 0 : value)),
        } as Input,
      }),
    },
    outputs: {
      dx: {
        shape: x.shape,
        terms: terms + 1,
        roundings: residual || mask ? 2 : 1,
        // dy has magnitude 1 whatever the number of channels; dx that of the terms' sum.
        magnitude: 4 * Math.max(1, Math.sqrt(shape.k / shape.c)),
        ...(inPlace && { inPlaceOf: "residual" }),
      },
    },
    prepare(c) {
      const { handle, workspace } = plan(c, constants.CONV_BACKWARD_DATA, shape, pick, epilogue);
      const [dx, upstream, ws, added, xs] = ["dx", "dy", "w", "residual", "x"].map((operand) => c.address(operand));
      const kept = mask ? xs! : null;
      return () => void c.native.convBackwardData(c.stream, handle, dx!, upstream!, ws!, added!, kept, workspace);
    },
    reference: (inputs) => ({
      dx: map(reference.convBackwardData(inputs.dy!, inputs.w!, shape), (value, i) =>
        mask && inputs.x![i]! <= 0 ? 0 : value + (inputs.residual?.[i] ?? 0),
      ),
    }),
    flops: 2 * products,
  };
}

export function convBackwardWeight(name: string, shape: ConvShape, pick = ""): OpCase {
  const { x, w, dy, products } = operands(shape);
  const summed = dy.shape[0]! * dy.shape[1]! * dy.shape[2]!;
  return {
    op: "conv_backward_weight",
    name,
    features: needsConv,
    inputs: { x, dy },
    outputs: { dw: { shape: w.shape, kind: "f32", terms: summed, roundings: 1 } },
    prepare(c) {
      const { handle, workspace } = plan(c, constants.CONV_BACKWARD_WEIGHT, shape, pick);
      const [dw, xs, upstream] = ["dw", "x", "dy"].map((operand) => c.address(operand));
      return () => void c.native.convBackwardWeight(c.stream, handle, dw!, xs!, upstream!, workspace);
    },
    reference: (inputs) => ({ dw: reference.convBackwardWeight(inputs.x!, inputs.dy!, shape) }),
    flops: 2 * products,
  };
}

/** The gradients with the check against differences of <dy, conv(x, w)>; the operand that is no input of theirs is added. */
function withGradients(shape: ConvShape, opCase: OpCase, output: "dx" | "dw"): OpCase {
  const { x, w } = operands(shape);
  const of = output === "dx" ? "x" : "w";
  const loss = (inputs: Arrays) => dot(inputs.dy!, reference.convForward(inputs.x!, inputs.w!, shape));
  return { ...opCase, inputs: { ...opCase.inputs, [of]: of === "x" ? x : w }, gradients: [{ output, of, loss }] };
}

export function channelSum(name: string, rows: number, channels: number): OpCase {
  return {
    op: "channel_sum",
    name,
    inputs: { x: { shape: [rows, channels] } },
    outputs: { sum: { shape: [channels], kind: "f32", terms: rows } },
    prepare(c) {
      const bytes = outHandle();
      c.native.channelSumWorkspace(c.device.handle, bytes.view, rows, channels, c.dtype);
      const [sum, x, workspace] = [c.address("sum"), c.address("x"), c.workspace(bytes.value)];
      return () => void c.native.channelSum(c.stream, sum!, x!, workspace, rows, channels, c.dtype);
    },
    reference: (inputs) => ({ sum: reference.channelSum(inputs.x!, channels) }),
  };
}

export function addBias(
  name: string,
  rows: number,
  channels: number,
  activation: (typeof fusedNames)[number] = "none",
  inPlace = false,
): OpCase {
  return {
    op: "add_bias",
    name,
    inputs: { x: { shape: [rows, channels] }, bias: { shape: [channels], kind: "f32" } },
    outputs: { y: { shape: [rows, channels], terms: 4, ...(inPlace && { inPlaceOf: "x" }) } },
    prepare(c) {
      const [y, x, bias] = ["y", "x", "bias"].map((operand) => c.address(operand));
      const code = activationCodes[activation];
      return () => void c.native.addBias(c.stream, y!, x!, bias!, rows, channels, c.dtype, code);
    },
    reference: ({ x, bias }) => ({
      y: Float64Array.from(x!, (value, i) => activate(value + bias![i % channels]!, activation)),
    }),
  };
}

const shapes: [string, ConvShape][] = [
  ["1x1", convShape({ h: 7, w: 9, c: 16, k: 24 })],
  ["1x1 on one pixel", convShape({ n: 1, h: 1, w: 1, c: 8, k: 5 })],
  ["1x1 stride 2 of an even size (last row unread)", convShape({ h: 6, w: 8, c: 8, k: 16, stride: [2, 2] })],
  ["1x1 stride 2, few channels", convShape({ n: 1, h: 12, w: 10, c: 8, k: 4, stride: [2, 2] })],
  ["1x1 stride 1x2", convShape({ n: 3, h: 9, w: 6, c: 7, k: 3, stride: [1, 2] })],
  ["1x1 to 5 channels, 6x5", convShape({ h: 6, w: 5, c: 16, k: 5 })],
  ["1x1 to 27 channels, 9x10", convShape({ n: 1, h: 9, w: 10, c: 32, k: 27 })],
  ["1x1 padding 1", convShape({ h: 4, w: 4, c: 4, k: 4, padding: [1, 1] })],
  ["3x3", convShape({ h: 8, w: 6, c: 16, k: 16, r: 3, s: 3, padding: [1, 1] })],
  ["3x3 without padding", convShape({ h: 5, w: 7, c: 8, k: 8, r: 3, s: 3 })],
  ["3x3 stride 2, odd size", convShape({ h: 9, w: 11, c: 8, k: 16, r: 3, s: 3, stride: [2, 2], padding: [1, 1] })],
  [
    "3x3 stride 2, even size",
    convShape({ n: 1, h: 8, w: 10, c: 5, k: 7, r: 3, s: 3, stride: [2, 2], padding: [1, 1] }),
  ],
  ["2x2 stride 3 (gaps between windows)", convShape({ h: 9, w: 8, c: 4, k: 6, r: 2, s: 2, stride: [3, 3] })],
  [
    "7x7 stride 2 of RGB, not square",
    convShape({ h: 22, w: 31, c: 3, k: 16, r: 7, s: 7, stride: [2, 2], padding: [3, 3] }),
  ],
  ["3x3 of RGB", convShape({ h: 6, w: 6, c: 3, k: 8, r: 3, s: 3, padding: [1, 1] })],
  [
    "5x3, unequal strides and padding",
    convShape({ h: 9, w: 7, c: 6, k: 10, r: 5, s: 3, stride: [2, 1], padding: [2, 1] }),
  ],
  ["4x4 stride 2, padding 1", convShape({ h: 8, w: 10, c: 8, k: 16, r: 4, s: 4, stride: [2, 2], padding: [1, 1] })],
  ["2x2, padding 1", convShape({ h: 5, w: 6, c: 8, k: 8, r: 2, s: 2, padding: [1, 1] })],
  ["7x1 stride 3x2", convShape({ h: 13, w: 5, c: 8, k: 4, r: 7, s: 1, stride: [3, 2], padding: [3, 0] })],
  [
    "2x3 dilation 3x2, stride 3x4 (larger than the kernel)",
    convShape({ h: 12, w: 14, c: 8, k: 8, r: 2, s: 3, stride: [3, 4], padding: [1, 2], dilation: [3, 2] }),
  ],
  ["1x7", convShape({ n: 1, h: 4, w: 12, c: 4, k: 4, r: 1, s: 7, padding: [0, 3] })],
  ["3x3 dilation 2", convShape({ h: 10, w: 9, c: 8, k: 8, r: 3, s: 3, padding: [2, 2], dilation: [2, 2] })],
  [
    "3x3 dilation 1x3, stride 2",
    convShape({ n: 1, h: 9, w: 12, c: 4, k: 6, r: 3, s: 3, stride: [2, 2], padding: [1, 3], dilation: [1, 3] }),
  ],
  ["3x3 in 2 groups", convShape({ h: 6, w: 6, c: 12, k: 16, r: 3, s: 3, padding: [1, 1], groups: 2 })],
  ["3x3 in 4 groups of 2, 3 out", convShape({ n: 1, h: 5, w: 5, c: 8, k: 12, r: 3, s: 3, padding: [1, 1], groups: 4 })],
  ["3x3 depthwise", convShape({ h: 7, w: 7, c: 16, k: 16, r: 3, s: 3, padding: [1, 1], groups: 16 })],
  [
    "3x3 depthwise stride 2",
    convShape({ h: 8, w: 9, c: 24, k: 24, r: 3, s: 3, stride: [2, 2], padding: [1, 1], groups: 24 }),
  ],
  [
    "5x5 depthwise dilation 2",
    convShape({ n: 1, h: 9, w: 9, c: 8, k: 8, r: 5, s: 5, padding: [4, 4], dilation: [2, 2], groups: 8 }),
  ],
  [
    "3x3 depthwise dilation 2, stride 2",
    convShape({
      ...{ h: 11, w: 10, c: 16, k: 16, r: 3, s: 3, groups: 16 },
      ...{ stride: [2, 2], padding: [2, 2], dilation: [2, 2] },
    }),
  ],
  ["4x4 depthwise", convShape({ n: 1, h: 6, w: 7, c: 16, k: 16, r: 4, s: 4, padding: [1, 2], groups: 16 })],
  ["7x1 depthwise", convShape({ h: 9, w: 4, c: 8, k: 8, r: 7, s: 1, padding: [3, 0], groups: 8 })],
  ["2x2 depthwise stride 3", convShape({ h: 8, w: 9, c: 24, k: 24, r: 2, s: 2, stride: [3, 3], groups: 24 })],
  ["3x3 in 32 groups of 4", convShape({ n: 1, h: 6, w: 5, c: 128, k: 128, r: 3, s: 3, padding: [1, 1], groups: 32 })],
  [
    "3x3 in 32 groups of 4, stride 2",
    convShape({ n: 1, h: 7, w: 6, c: 128, k: 128, r: 3, s: 3, stride: [2, 2], padding: [1, 1], groups: 32 }),
  ],
  [
    "3x3 in 4 groups, dilation 2x1, stride 1x2",
    convShape({
      ...{ h: 8, w: 9, c: 16, k: 8, r: 3, s: 3, groups: 4 },
      ...{ stride: [1, 2], padding: [2, 1], dilation: [2, 1] },
    }),
  ],
  ["1x1 in 4 groups, stride 3", convShape({ h: 8, w: 7, c: 16, k: 32, stride: [3, 3], groups: 4 })],
  ["3x3 depthwise, 2 per channel", convShape({ h: 5, w: 6, c: 6, k: 12, r: 3, s: 3, padding: [1, 1], groups: 6 })],
  ["3x3 to 27 channels", convShape({ n: 1, h: 6, w: 5, c: 16, k: 27, r: 3, s: 3, padding: [1, 1] })],
  ["3x3 to 36 channels", convShape({ h: 4, w: 5, c: 16, k: 36, r: 3, s: 3, padding: [1, 1] })],
  ["3x3 to 819 channels", convShape({ n: 1, h: 3, w: 4, c: 8, k: 819, r: 3, s: 3, padding: [1, 1] })],
  ["1x1 of 1 channel to 1", convShape({ h: 5, w: 5, c: 1, k: 1 })],
  ["kernel of the image's size", convShape({ h: 5, w: 4, c: 3, k: 6, r: 5, s: 4 })],
  ["1x1 of 513 channels", convShape({ n: 1, h: 3, w: 3, c: 513, k: 17 })],
  // The smallest levels of a pyramid: most of the kernel lies outside the image.
  ["3x3 on one pixel", convShape({ h: 1, w: 1, c: 8, k: 9, r: 3, s: 3, padding: [1, 1] })],
  [
    "3x3 stride 2 on one column",
    convShape({ n: 1, h: 11, w: 1, c: 8, k: 16, r: 3, s: 3, stride: [2, 2], padding: [1, 1] }),
  ],
  ["3x3 stride 2 on 3x1", convShape({ n: 3, h: 3, w: 1, c: 3, k: 48, r: 3, s: 3, stride: [2, 2], padding: [1, 1] })],
  ["7x7 stride 2 on 13x2", convShape({ n: 1, h: 13, w: 2, c: 3, k: 8, r: 7, s: 7, stride: [2, 2], padding: [3, 3] })],
  [
    "3x3 dilation 3, padding 4 on one row (rows of y that see no pixel)",
    convShape({ n: 1, h: 1, w: 12, c: 3, k: 27, r: 3, s: 3, padding: [4, 0], dilation: [3, 3] }),
  ],
  // Few input channels, which have kernels of their own in 16 bits: several tiles, odd sizes, widened pixels.
  [
    "7x7 stride 2, 3 to 64, odd size",
    convShape({ h: 27, w: 71, c: 3, k: 64, r: 7, s: 7, stride: [2, 2], padding: [3, 3] }),
  ],
  [
    "7x7 stride 2, 4 to 24",
    convShape({ n: 1, h: 18, w: 20, c: 4, k: 24, r: 7, s: 7, stride: [2, 2], padding: [3, 3] }),
  ],
  ["7x7 stride 2, 1 to 9", convShape({ n: 1, h: 21, w: 70, c: 1, k: 9, r: 7, s: 7, stride: [2, 2], padding: [3, 3] })],
  ["7x7, 3 to 5", convShape({ n: 1, h: 9, w: 35, c: 3, k: 5, r: 7, s: 7, padding: [3, 3] })],
  ["3x3 stride 2, 3 to 24", convShape({ h: 20, w: 66, c: 3, k: 24, r: 3, s: 3, stride: [2, 2], padding: [1, 1] })],
  ["3x3, 1 to 96", convShape({ n: 1, h: 6, w: 34, c: 1, k: 96, r: 3, s: 3, padding: [1, 1] })],
  ["3x3, 2 to 130", convShape({ n: 1, h: 5, w: 7, c: 2, k: 130, r: 3, s: 3, padding: [1, 1] })],
  ["4x4 stride 4, 3 to 96", convShape({ n: 1, h: 36, w: 70, c: 3, k: 96, r: 4, s: 4, stride: [4, 4] })],
  ["5x5, 4 to 20", convShape({ n: 1, h: 7, w: 8, c: 4, k: 20, r: 5, s: 5, padding: [2, 2] })],
  [
    "3x3 dilation 2x3, stride 1x2, 3 to 48",
    convShape({
      ...{ h: 12, w: 20, c: 3, k: 48, r: 3, s: 3 },
      ...{ stride: [1, 2], padding: [3, 2], dilation: [2, 3] },
    }),
  ],
  [
    "3x3 dilation 2, 4 to 40",
    convShape({ n: 1, h: 9, w: 40, c: 4, k: 40, r: 3, s: 3, padding: [2, 2], dilation: [2, 2] }),
  ],
  // Linear maps: images of one pixel, with the odd sizes that vectors and tensor cores do not divide.
  ["linear, 37 rows, 16 to 24", convShape({ n: 37, h: 1, w: 1, c: 16, k: 24 })],
  ["linear, 5 rows, 819 to 7", convShape({ n: 5, h: 1, w: 1, c: 819, k: 7 })],
  ["linear, one row, 3 to 80", convShape({ n: 1, h: 1, w: 1, c: 3, k: 80 })],
  ["linear, 130 rows, 5 to 1", convShape({ n: 130, h: 1, w: 1, c: 5, k: 1 })],
  ["1x1 on 3x2 pixels", convShape({ n: 7, h: 3, w: 2, c: 12, k: 20 })],
  ["3x3, batch of 5", convShape({ n: 5, h: 4, w: 4, c: 32, k: 32, r: 3, s: 3, padding: [1, 1] })],
];

const epilogues: [string, Epilogue][] = [
  ["bias", { bias: true }],
  ["residual", { residual: true }],
  ["bias and residual", { bias: true, residual: true }],
  ...fusedNames.slice(1).flatMap((activation): [string, Epilogue][] => [
    [activation, { activation }],
    [`bias and ${activation}`, { bias: true, activation }],
    [`bias, residual and ${activation}`, { bias: true, residual: true, activation }],
  ]),
];

const gradientEpilogues: [string, GradientEpilogue][] = [
  ["residual", { residual: true }],
  ["residual in place and mask", { residual: true, mask: true, inPlace: true }],
  ["mask", { mask: true }],
  ["residual in place", { residual: true, inPlace: true }],
  ["residual and mask", { residual: true, mask: true }],
];

/** `all`: with each epilogue; with the first two otherwise. */
const gradientShapes: [name: string, shape: ConvShape, all?: boolean][] = [
  ["1x1", convShape({ h: 7, w: 9, c: 16, k: 24 }), true],
  ["1x1 from 27 channels", convShape({ n: 1, h: 9, w: 10, c: 32, k: 27 })],
  ["1x1 to 5 channels", convShape({ h: 6, w: 5, c: 5, k: 16 })],
  ["1x1 stride 2 of an even size", convShape({ h: 6, w: 8, c: 16, k: 32, stride: [2, 2] })],
  ["1x1 stride 2 of an odd size", convShape({ h: 7, w: 5, c: 8, k: 16, stride: [2, 2] })],
  ["3x3", convShape({ h: 8, w: 6, c: 16, k: 16, r: 3, s: 3, padding: [1, 1] }), true],
  ["3x3 of 64 channels", convShape({ h: 12, w: 11, c: 64, k: 64, r: 3, s: 3, padding: [1, 1] })],
  ["3x3 stride 2", convShape({ h: 9, w: 11, c: 8, k: 16, r: 3, s: 3, stride: [2, 2], padding: [1, 1] }), true],
  ["3x3 to 3 channels", convShape({ h: 6, w: 6, c: 3, k: 8, r: 3, s: 3, padding: [1, 1] })],
  ["3x3 depthwise", convShape({ h: 7, w: 7, c: 16, k: 16, r: 3, s: 3, padding: [1, 1], groups: 16 })],
  ["3x3 in 2 groups", convShape({ h: 6, w: 6, c: 16, k: 16, r: 3, s: 3, padding: [1, 1], groups: 2 })],
  ["linear", convShape({ n: 35, h: 1, w: 1, c: 24, k: 40 })],
];

type GoldenParams = Omit<ConvShape, "stride"> & { stride: [number, number] };

export const goldenConvCases: OpCase[] = loadGolden<GoldenParams>("conv").flatMap((golden) => {
  const { name, params } = golden;
  const array = (key: string) => golden.array(key);
  const inputs: Arrays = Object.fromEntries(
    ["x", "w", "bias", "dy"].filter((key) => golden.has(key)).map((key) => [key, array(key)]),
  );
  const rows = golden
    .shape("dy")
    .slice(0, 3)
    .reduce((a, b) => a * b);
  return [
    recorded(convForward(name, params, { bias: golden.has("bias") }), inputs, { y: array("y") }),
    recorded(convBackwardData(name, params), inputs, { dx: array("dx") }),
    recorded(convBackwardWeight(name, params), inputs, { dw: array("dw") }),
    ...(golden.has("dbias")
      ? [recorded(channelSum(name, rows, params.k), { x: array("dy") }, { sum: array("dbias") })]
      : []),
  ];
});

export const convCases: OpCase[] = [
  ...shapes.flatMap(([name, shape]) => [
    convForward(name, shape),
    withGradients(shape, convBackwardData(name, shape), "dx"),
    withGradients(shape, convBackwardWeight(name, shape), "dw"),
  ]),
  ...epilogues.flatMap(([name, epilogue]) => [
    convForward(`3x3 with ${name}`, convShape({ h: 5, w: 6, c: 8, k: 16, r: 3, s: 3, padding: [1, 1] }), epilogue),
    convForward(`1x1 to 27 channels with ${name}`, convShape({ n: 1, h: 4, w: 3, c: 16, k: 27 }), epilogue),
    convForward(`linear with ${name}`, convShape({ n: 35, h: 1, w: 1, c: 24, k: 40 }), epilogue),
  ]),
  ...fusedNames
    .slice(1)
    .flatMap((activation) => [
      convForward(
        `depthwise with bias and ${activation}`,
        convShape({ h: 5, w: 5, c: 8, k: 8, r: 3, s: 3, padding: [1, 1], groups: 8 }),
        { bias: true, activation },
      ),
      convForward(
        `3x3 in 8 groups of 4, stride 2, with bias, residual and ${activation}`,
        convShape({ n: 1, h: 6, w: 7, c: 32, k: 32, r: 3, s: 3, stride: [2, 2], padding: [1, 1], groups: 8 }),
        { bias: true, residual: true, activation },
      ),
      convForward(
        `4x1 dilation 2 with bias and ${activation}`,
        convShape({ n: 1, h: 9, w: 5, c: 8, k: 16, r: 4, s: 1, padding: [3, 0], dilation: [2, 1] }),
        { bias: true, activation },
      ),
    ]),
  convForward(
    "depthwise with bias and relu6",
    convShape({ h: 9, w: 7, c: 16, k: 16, r: 3, s: 3, stride: [2, 2], padding: [1, 1], groups: 16 }),
    { bias: true, activation: "relu6" },
  ),
  convForward(
    "stem with bias and silu",
    convShape({ n: 1, h: 15, w: 13, c: 3, k: 16, r: 7, s: 7, stride: [2, 2], padding: [3, 3] }),
    { bias: true, activation: "silu" },
  ),
  ...([64, 16, 27] as const).map((k) =>
    convForward(
      `stem to ${k} channels with bias, residual and relu`,
      convShape({ n: 1, h: 19, w: 67, c: 3, k, r: 7, s: 7, stride: [2, 2], padding: [3, 3] }),
      { bias: true, residual: true, activation: "relu" },
    ),
  ),
  ...[convForward, convBackwardWeight].map((make) =>
    make(
      "3x3, 1 to 8, more tiles than a GPU runs blocks",
      convShape({ n: 4, h: 160, w: 201, c: 1, k: 8, r: 3, s: 3, padding: [1, 1] }),
    ),
  ),
  convForward(
    "groups with bias, residual and silu, image narrower than the kernel",
    convShape({ n: 3, h: 5, w: 1, c: 32, k: 8, r: 5, s: 5, padding: [2, 2], groups: 4 }),
    { bias: true, residual: true, activation: "silu" },
  ),
  convForward("1x1 in 4 groups with silu", convShape({ n: 3, h: 5, w: 8, c: 16, k: 32, groups: 4 }), {
    activation: "silu",
  }),
  convForward(
    "2x3 in 4 groups with residual and sigmoid",
    convShape({ h: 10, w: 11, c: 16, k: 32, r: 2, s: 3, padding: [1, 0], groups: 4 }),
    { residual: true, activation: "sigmoid" },
  ),
  convForward(
    "819 channels with bias and sigmoid",
    convShape({ n: 1, h: 2, w: 3, c: 8, k: 819, r: 3, s: 3, padding: [1, 1] }),
    { bias: true, activation: "sigmoid" },
  ),
  convForward(
    "3x3 dilation 3, padding 4 on one row with residual and relu",
    convShape({ n: 1, h: 1, w: 13, c: 3, k: 64, r: 3, s: 3, padding: [4, 1], dilation: [3, 3] }),
    { bias: true, residual: true, activation: "relu" },
  ),
  ...gradientShapes.flatMap(([of, shape, all]) =>
    gradientEpilogues
      .filter((_, i) => all || i < 2)
      .map(([name, epilogue]) => convBackwardData(`${of} with ${name}`, shape, epilogue)),
  ),
  addBias("27 channels", 35, 27),
  addBias("64 channels, relu", 300, 64, "relu"),
  addBias("12 channels, silu", 50, 12, "silu"),
  addBias("5 channels, sigmoid", 9, 5, "sigmoid"),
  addBias("one channel", 1000, 1),
  addBias("in place, 256 channels", 20, 256, "relu", true),
  channelSum("one row", 1, 5),
  channelSum("one channel", 1000, 1),
  channelSum("3 channels", 777, 3),
  channelSum("27 channels", 129, 27),
  channelSum("36 channels", 515, 36),
  channelSum("64 channels", 300, 64),
  channelSum("819 channels", 37, 819),
  channelSum("long columns", 20000, 4),
  ...goldenConvCases,
];

const rowsBench = (rows: number, c: number, k: number): ConvShape => convShape({ n: rows, h: 1, w: 1, c, k });

const bench = (c: number, k: number, size: number, kernel: number, stride = 1, groups = 1): ConvShape =>
  convShape({
    n: 8,
    h: size,
    w: size,
    c,
    k,
    r: kernel,
    s: kernel,
    stride: [stride, stride],
    padding: [kernel >> 1, kernel >> 1],
    groups,
  });

const benchShapes: [string, ConvShape][] = [
  ["stem 7x7 stride 2, 3 to 64, 8x320x320", bench(3, 64, 320, 7, 2)],
  ["stem 3x3 stride 2, 3 to 32, 8x320x320", bench(3, 32, 320, 3, 2)],
  ["1x1, 64 to 256, 8x80x80", bench(64, 256, 80, 1)],
  ["3x3, 128 to 128, 8x40x40", bench(128, 128, 40, 3)],
  ["3x3, 256 to 256, 8x40x40", bench(256, 256, 40, 3)],
  ["3x3, 256 to 819, 8x20x20", bench(256, 819, 20, 3)],
  ["3x3 depthwise, 128, 8x80x80", bench(128, 128, 80, 3, 1, 128)],
  ["linear, 1280 to 1000, 32 rows", rowsBench(32, 1280, 1000)],
  ["linear, 256 to 819, 12800 rows", rowsBench(12800, 256, 819)],
  ["linear, 2048 to 2048, 4096 rows", rowsBench(4096, 2048, 2048)],
];

export const convBenches: OpCase[] = [
  ...benchShapes.flatMap(([name, shape]) => [
    convForward(name, shape, { bias: true, activation: "relu" }),
    convBackwardData(name, shape),
    convBackwardWeight(name, shape),
  ]),
  convBackwardData("1x1, 64 to 256, 8x80x80, residual and mask", bench(64, 256, 80, 1), {
    residual: true,
    mask: true,
    inPlace: true,
  }),
  convBackwardData("3x3, 256 to 256, 8x40x40, mask", bench(256, 256, 40, 3), { mask: true }),
  channelSum("256 channels, 51200 rows", 51200, 256),
  addBias("relu, 256 channels, 51200 rows", 51200, 256, "relu"),
];

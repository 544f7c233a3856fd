/**
 * Operations as functions of symbolic tensors, for use inside forward(), in the spirit of torch.nn.functional. Image batches
 * are (N, H, W, C); weights (out channels, kernel height, kernel width, in channels / groups).
 */
import { check, ErrorCode } from "../native";
import type { Communicator, DType } from "../tensor";
import { channelScale, channelShuffle as channelShuffleOp } from "./ops/channel";
import { constant as constantOp } from "./ops/constant";
import { type ConvGeometry, conv2d as conv2dOp, linear as linearOp } from "./ops/conv";
import { addBias, convTranspose2d as convTranspose2dOp } from "./ops/conv-transpose";
import { dropout as dropoutOp } from "./ops/dropout";
import {
  activate,
  add as addOp,
  cast as castOp,
  fill,
  multiply as multiplyOp,
  scale as scaleOp,
} from "./ops/elementwise";
import { groupNorm as groupNormOp } from "./ops/group-norm";
import { batchNormInfer, batchNormTrain } from "./ops/norm";
import { avgPool as avgPoolOp, maxPool as maxPoolOp, type Window } from "./ops/pool";
import { concat as concatOp, reshape as reshapeOp, slice as sliceOp, transpose as transposeOp } from "./ops/shape";
import { softmax as softmaxOp } from "./ops/softmax";
import { upsampleBilinear, upsampleNearest } from "./ops/upsample";
import { applyOp, currentPath } from "./trace";
import type { Value } from "./value";

/** A size for both axes, or [height, width]. */
export type Size2 = number | readonly [number, number];

export function pair(size: Size2): [number, number] {
  return typeof size === "number" ? [size, size] : [size[0], size[1]];
}

const only = (values: Value[]): Value => values[0] as Value;

export interface ConvOptions {
  stride?: Size2;
  padding?: Size2;
  dilation?: Size2;
  groups?: number;
}

function convGeometry({ stride = 1, padding = 0, dilation = 1, groups = 1 }: ConvOptions): ConvGeometry {
  return { stride: pair(stride), padding: pair(padding), dilation: pair(dilation), groups };
}

/** 2-D convolution (cross-correlation) of x (N, H, W, C) with w (K, R, S, C / groups) and an fp32 bias (K), or null. */
export function conv2d(x: Value, w: Value, bias: Value | null, options: ConvOptions = {}): Value {
  const attrs = { ...convGeometry(options), bias: bias !== null, residual: false, activation: "none" as const };
  return only(applyOp(conv2dOp, bias ? [x, w, bias] : [x, w], attrs));
}

export interface ConvTransposeOptions extends ConvOptions {
  /** Rows and columns added at the end of the result; below the stride or the dilation. Default 0. */
  outputPadding?: Size2;
}

/**
 * 2-D transposed convolution (torch.nn.functional.conv_transpose2d): the data gradient of a convolution. x (N, H, W, C), w
 * (C, R, S, K / groups), an fp32 bias (K) or null.
 */
export function convTranspose2d(x: Value, w: Value, bias: Value | null, options: ConvTransposeOptions = {}): Value {
  const given = convGeometry(options);
  const wanted = pair(options.outputPadding ?? 0);
  const valid = wanted.every(
    (size, d) => Number.isInteger(size) && size >= 0 && size < Math.max(given.stride[d]!, given.dilation[d]!),
  );
  check(
    valid,
    currentPath("convTranspose2d"),
    () => `expected output padding from 0 to below the stride or the dilation, got ${wanted.join("x")}`,
    ErrorCode.shape,
  );
  // A row of zeros below the image adds a stride's worth of rows to the result and nothing to its values.
  let padded = x;
  const outputPadding: [number, number] = [0, 0];
  for (const d of [0, 1] as const) {
    const more = Math.floor(wanted[d] / given.stride[d]);
    outputPadding[d] = wanted[d] - more * given.stride[d];
    if (more === 0) continue;
    const shape = padded.shape.map((size, axis) => (axis === d + 1 ? more : size));
    padded = concat([padded, only(applyOp(fill, [], { shape, dtype: x.dtype, value: 0 }))], d + 1);
  }
  const y = only(applyOp(convTranspose2dOp, [padded, w], { ...given, outputPadding }));
  return bias ? only(applyOp(addBias, [y, bias], { activation: "none" })) : y;
}

/** x w^T + bias over the last axis: x (..., C), w (K, C), an fp32 bias (K) or null; (..., K). */
export function linear(x: Value, w: Value, bias: Value | null): Value {
  const attrs = { ...convGeometry({}), bias: bias !== null, residual: false, activation: "none" as const };
  return only(applyOp(linearOp, bias ? [x, w, bias] : [x, w], attrs));
}

/**
 * Batch normalization over N, H, W (Ioffe and Szegedy 2015; torch.nn.functional.batch_norm): with the batch's statistics when
 * training, updating the running ones; with the running ones else. With a communicator the batch is that of all its ranks.
 */
export function batchNorm(
  x: Value,
  weight: Value,
  bias: Value,
  runningMean: Value,
  runningVar: Value,
  options: { training: boolean; eps?: number; momentum?: number; communicator?: Communicator },
): Value {
  const { training, eps = 1e-5, momentum = 0.1, communicator } = options;
  const op = training ? batchNormTrain : batchNormInfer;
  const shared = training && communicator ? { communicator } : {};
  const attrs = { eps, momentum, residual: false, activation: "none" as const, ...shared };
  return only(applyOp(op, [x, weight, bias, runningMean, runningVar], attrs));
}

/**
 * Group normalization (Wu and He 2018; torch.nn.functional.group_norm): statistics of each image's groups of C / groups
 * neighbouring channels; weight and bias (C).
 */
export function groupNorm(
  x: Value,
  weight: Value,
  bias: Value,
  groups: number,
  { eps = 1e-5 }: { eps?: number } = {},
): Value {
  return only(applyOp(groupNormOp, [x, weight, bias], { groups, eps, activation: "none" }));
}

export function relu(x: Value): Value {
  return only(applyOp(activate, [x], { activation: "relu" }));
}

/** x * sigmoid(x) (Elfwing et al. 2018). */
export function silu(x: Value): Value {
  return only(applyOp(activate, [x], { activation: "silu" }));
}

export function sigmoid(x: Value): Value {
  return only(applyOp(activate, [x], { activation: "sigmoid" }));
}

/** min(max(x, 0), 6), as torch's relu6. */
export function relu6(x: Value): Value {
  return only(applyOp(activate, [x], { activation: "relu6" }));
}

/** x where x > 0, else negativeSlope * x. */
export function leakyRelu(x: Value, negativeSlope = 0.01): Value {
  return only(applyOp(activate, [x], { activation: "leaky_relu", slope: negativeSlope }));
}

/** x * hardsigmoid(x) (Howard et al. 2019). */
export function hardswish(x: Value): Value {
  return only(applyOp(activate, [x], { activation: "hardswish" }));
}

/** min(max(x + 3, 0), 6) / 6. */
export function hardsigmoid(x: Value): Value {
  return only(applyOp(activate, [x], { activation: "hardsigmoid" }));
}

/** Softmax over the last axis: the channels of image batches. */
export function softmax(x: Value): Value {
  return only(applyOp(softmaxOp, [x], {}));
}

/** a + b, of one shape and dtype. */
export function add(a: Value, b: Value): Value {
  return only(applyOp(addOp, [a, b], { activation: "none" }));
}

/** Whether s has a factor (N, 1, 1, C) for each channel of images x (N, H, W, C) that are larger than a pixel. */
function scalesChannels(x: Value, s: Value): boolean {
  const isPixel = ({ shape }: Value) => shape.length === 4 && shape[1] === 1 && shape[2] === 1;
  return x.shape.length === 4 && isPixel(s) && !isPixel(x);
}

/** a * b, of one shape and dtype, or one of them (N, 1, 1, C) and the other (N, H, W, C): each channel times its factor. */
export function multiply(a: Value, b: Value): Value {
  if (scalesChannels(a, b)) return only(applyOp(channelScale, [a, b], {}));
  if (scalesChannels(b, a)) return only(applyOp(channelScale, [b, a], {}));
  return only(applyOp(multiplyOp, [a, b], {}));
}

/** Deals the channels of `groups` groups out in turn (Zhang et al. 2018; torch's channel_shuffle). */
export function channelShuffle(x: Value, groups: number): Value {
  return only(applyOp(channelShuffleOp, [x], { groups }));
}

/**
 * Zeros each element with probability p, in [0, 1), and scales the others by 1 / (1 - p) (Srivastava et al. 2014).
 *
 * @param counter an f32 scalar, such as a buffer of a layer: it numbers the draws, and each run raises it by 1
 * @param seed with the counter, decides which elements are zeroed, equally on every backend; at most 2^53
 */
export function dropout(x: Value, counter: Value, { p, seed }: { p: number; seed: number }): Value {
  return applyOp(dropoutOp, [x, counter], { p, seed })[0] as Value;
}

/** factor * x. */
export function scale(x: Value, factor: number): Value {
  return only(applyOp(scaleOp, [x], { factor }));
}

export function cast(x: Value, dtype: DType): Value {
  return x.dtype === dtype ? x : only(applyOp(castOp, [x], { dtype }));
}

export function reshape(x: Value, shape: readonly number[]): Value {
  return only(applyOp(reshapeOp, [x], { shape }));
}

/** Swaps the last two axes: (..., rows, columns) to (..., columns, rows), of f32, bf16, f16 or i32. */
export function transpose(x: Value): Value {
  return only(applyOp(transposeOp, [x], {}));
}

/** Joins tensors along an axis; by default the channels of image batches. */
export function concat(inputs: readonly Value[], axis = 3): Value {
  return only(applyOp(concatOp, inputs, { axis }));
}

/** `length` steps along an axis from `start`. */
export function slice(x: Value, axis: number, start: number, length: number): Value {
  return only(applyOp(sliceOp, [x], { axis, start, length }));
}

/**
 * The parts of a tensor along an axis, by default the channels, as torch.split: of `sizes` steps each, the last one shorter
 * where they do not fit, or of the sizes listed, which must add up to the whole.
 */
export function split(x: Value, sizes: number | readonly number[], axis = 3): Value[] {
  const total = x.shape[axis] ?? 0;
  let lengths = sizes as readonly number[];
  if (typeof sizes === "number") {
    const step = Math.max(1, Math.trunc(sizes));
    check(step === sizes, currentPath("split"), () => `expected a size of at least 1, got ${sizes}`);
    lengths = Array.from({ length: Math.ceil(total / step) }, (_, i) => Math.min(step, total - i * step));
  }
  check(
    lengths.length > 0 && lengths.reduce((sum, length) => sum + length, 0) === total,
    currentPath("split"),
    () => `expected sizes that add up to ${total}, axis ${axis} of (${x.shape.join(", ")}), got ${lengths.join(" + ")}`,
    ErrorCode.shape,
  );
  let start = 0;
  return lengths.map((length) => {
    const part = slice(x, axis, start, length);
    start += length;
    return part;
  });
}

function window(kernel: Size2, stride: Size2 | undefined, padding: Size2): Window {
  return { kernel: pair(kernel), stride: pair(stride ?? kernel), padding: pair(padding) };
}

/** Maximum over windows; stride defaults to the kernel's size. */
export function maxPool2d(x: Value, kernel: Size2, options: { stride?: Size2; padding?: Size2 } = {}): Value {
  return only(applyOp(maxPoolOp, [x], window(kernel, options.stride, options.padding ?? 0)));
}

/** Mean over windows; stride defaults to the kernel's size. */
export function avgPool2d(
  x: Value,
  kernel: Size2,
  options: { stride?: Size2; padding?: Size2; countIncludePad?: boolean } = {},
): Value {
  const attrs = {
    ...window(kernel, options.stride, options.padding ?? 0),
    countIncludePad: options.countIncludePad ?? true,
  };
  return only(applyOp(avgPoolOp, [x], attrs));
}

/** The mean of each channel over the whole image: (N, H, W, C) to (N, 1, 1, C). */
export function globalAvgPool2d(x: Value): Value {
  return avgPool2d(x, [x.shape[1] ?? 1, x.shape[2] ?? 1]);
}

/** What to resize to, and how, in torch.nn.Upsample's terms. */
export type UpsampleOptions = ({ scale: Size2 } | { size: Size2 }) & {
  /** Default "nearest". */
  mode?: "nearest" | "bilinear";
  /** Of "bilinear" alone: the centres of the corner pixels stay where they are. Default false. */
  alignCorners?: boolean;
};

/**
 * Resampling by a factor (sizes are rounded down) or to a size, as torch.nn.functional.interpolate; pairs are (height, width).
 * Nearest neighbours follow from the sizes alone, which for factors that do not give whole sizes is torch's
 * recompute_scale_factor.
 */
export function upsample(x: Value, { mode = "nearest", alignCorners = false, ...to }: UpsampleOptions): Value {
  const [, h = 0, w = 0] = x.shape;
  const scale: [number, number] = "scale" in to ? pair(to.scale) : [0, 0];
  const size: [number, number] = "size" in to ? pair(to.size) : [Math.floor(h * scale[0]), Math.floor(w * scale[1])];
  if (mode === "bilinear") return only(applyOp(upsampleBilinear, [x], { size, alignCorners, scale }));
  check(!alignCorners, currentPath("upsample"), () => 'expected mode "bilinear" with alignCorners, got "nearest"');
  return only(applyOp(upsampleNearest, [x], { size }));
}

/** A tensor of given numbers. */
export function constant(values: ArrayLike<number>, shape: readonly number[], dtype: DType = "f32"): Value {
  return only(applyOp(constantOp, [], { values, shape, dtype }));
}

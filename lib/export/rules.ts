/** How the operations of lib/graph are written in ONNX: a rule for each kind. */
import type { Node, OnnxLayout, Value } from "../graph";
import { DlfsError, ErrorCode } from "../native";
import { axisIn, type GraphBuilder, shapeIn } from "./builder";

/** Writes a node; its attributes are those of the operation of this kind. */
export type Rule = (builder: GraphBuilder, node: Node) => void;

type Pair = readonly [number, number];

/** Both ends of each axis, as ONNX wants them: all begins, then all ends. */
const bothEnds = (padding: Pair) => ({ ints: [...padding, ...padding] });

interface ActivationAttrs {
  readonly activation: string;
  /** Of a leaky ReLU below 0. */
  readonly slope?: number;
}

/** activation(x) of an ONNX value; gives the name of the result. */
export function activation(b: GraphBuilder, x: string, { activation: kind, slope = 0 }: ActivationAttrs): string {
  switch (kind) {
    case "none":
      return x;
    case "relu":
      return b.add("Relu", [x]);
    case "sigmoid":
      return b.add("Sigmoid", [x]);
    case "silu":
      return b.add("Mul", [x, b.add("Sigmoid", [x])]);
    case "relu6":
      return b.add("Clip", [x, b.floats(0), b.floats(6)]);
    case "leaky_relu":
      return b.add("LeakyRelu", [x], { alpha: { float: slope } });
    case "hardswish":
      return b.add("HardSwish", [x]);
    case "hardsigmoid":
      return b.add("HardSigmoid", [x], { alpha: { float: 1 / 6 }, beta: { float: 0.5 } });
  }
  throw new DlfsError(ErrorCode.unsupported, b.path || "activation", `${kind} has no counterpart in ONNX`);
}

/** What operations do to their result when others have been merged into them: x + residual, then an activation. */
function finish(
  b: GraphBuilder,
  x: string,
  layout: OnnxLayout,
  residual: Value | undefined,
  attrs: ActivationAttrs,
): string {
  return activation(b, residual ? b.add("Add", [x, b.input(residual, layout)]) : x, attrs);
}

interface ConvAttrs extends ActivationAttrs {
  readonly stride: Pair;
  readonly padding: Pair;
  readonly dilation: Pair;
  readonly groups: number;
  readonly bias: boolean;
  readonly residual: boolean;
}

/** Conv of x with a weight and a bias by name. */
function conv(b: GraphBuilder, node: Node, weight: string, bias: string | null): string {
  const [x, w] = node.inputs as [Value, Value];
  const { stride, padding, dilation, groups } = node.attrs as ConvAttrs;
  return b.add("Conv", [b.input(x, "nchw"), weight, ...(bias === null ? [] : [bias])], {
    dilations: { ints: dilation },
    group: { int: groups },
    kernel_shape: { ints: w.shape.slice(1, 3) },
    pads: bothEnds(padding),
    strides: { ints: stride },
  });
}

/** (K, R, S, C) as (K, C, R, S). */
const weightAxes = [0, 3, 1, 2];

const conv2d: Rule = (b, node) => {
  const attrs = node.attrs as ConvAttrs;
  const [, w, ...rest] = node.inputs as [Value, Value, ...Value[]];
  const bias = attrs.bias ? b.parameter(rest[0]!) : null;
  const residual = attrs.residual ? rest.at(-1) : undefined;
  const y = conv(b, node, b.parameter(w, weightAxes), bias);
  b.output(node.outputs[0]!, finish(b, y, "nchw", residual, attrs), "nchw");
};

/** The weight (C, R, S, K / groups) is (C, K / groups, R, S) in ONNX. */
const convTranspose: Rule = (b, node) => {
  const [x, w] = node.inputs as [Value, Value];
  const { stride, padding, dilation, groups, outputPadding } = node.attrs as ConvAttrs & { outputPadding: Pair };
  const y = b.add("ConvTranspose", [b.input(x, "nchw"), b.parameter(w, weightAxes)], {
    dilations: { ints: dilation },
    group: { int: groups },
    kernel_shape: { ints: w.shape.slice(1, 3) },
    output_padding: { ints: outputPadding },
    pads: bothEnds(padding),
    strides: { ints: stride },
  });
  b.output(node.outputs[0]!, y, "nchw");
};

/** x + a bias of the channels. */
const addBias: Rule = (b, node) => {
  const [x, bias] = node.inputs as [Value, Value];
  const layout = b.layoutOf(x);
  const name = b.parameter(bias);
  const y = b.add("Add", [b.input(x, layout), layout === "nchw" ? b.add("Unsqueeze", [name, b.ints([1, 2])]) : name]);
  b.output(node.outputs[0]!, activation(b, y, node.attrs as ActivationAttrs), layout);
};

interface NormAttrs extends ActivationAttrs {
  readonly eps: number;
  readonly residual: boolean;
}

const valuesOf = (value: Value): Float32Array => {
  const leaf = value.leaf;
  if (!leaf || leaf.leaf === "input") throw new DlfsError(ErrorCode.internal, "export", "expected a parameter");
  return leaf.parameter.tensor.read() as Float32Array;
};

/** Multiplier of each channel in a batch normalization by running statistics: weight / sqrt(variance + eps). */
function scales({ inputs, attrs }: Node): Float64Array {
  const [weight, variance] = [valuesOf(inputs[1]!), valuesOf(inputs[4]!)];
  const { eps } = attrs as NormAttrs;
  return Float64Array.from(weight, (w, k) => w / Math.sqrt(variance[k]! + eps));
}

/**
 * A convolution and the batch normalization of its result by running statistics as one Conv, which has the names of the
 * convolution's parameters.
 */
export function foldedConv(b: GraphBuilder, node: Node, norm: Node): void {
  const [, w, convBias] = node.inputs as [Value, Value, Value | undefined];
  const [, , shift, mean] = norm.inputs as [Value, Value, Value, Value];
  const { name } = (w.leaf as { parameter: { name: string } }).parameter;
  const folded = () => {
    const [scale, values] = [scales(norm), valuesOf(w)];
    const each = values.length / scale.length;
    return values.map((x, i) => x * scale[Math.floor(i / each)]!);
  };
  const foldedBias = () => {
    const [scale, offset, average] = [scales(norm), valuesOf(shift), valuesOf(mean)];
    const bias = convBias ? valuesOf(convBias) : null;
    return offset.map((x, k) => x + ((bias?.[k] ?? 0) - average[k]!) * scale[k]!);
  };
  // One convolution may be shared by several normalizations.
  const key = `${norm.inputs.slice(1).map(({ id }) => id)}`;
  const weight = b.weights(`${name}:${key}`, name, w.shape, weightAxes, folded);
  const bias = b.weights(`${name}.bias:${key}`, name.replace(/weight$/, "bias"), shift.shape, [0], foldedBias);
  const attrs = norm.attrs as NormAttrs;
  const y = conv(b, node, weight, bias);
  const residual = attrs.residual ? norm.inputs[5] : undefined;
  b.output(norm.outputs[0]!, finish(b, y, "nchw", residual, attrs), "nchw");
}

const batchNorm: Rule = (b, node) => {
  const attrs = node.attrs as NormAttrs;
  const [x, ...parameters] = node.inputs as [Value, ...Value[]];
  const names = parameters.slice(0, 4).map((value) => b.parameter(value));
  const y = b.add("BatchNormalization", [b.input(x, "nchw"), ...names], { epsilon: { float: attrs.eps } });
  const residual = attrs.residual ? parameters[4] : undefined;
  b.output(node.outputs[0]!, finish(b, y, "nchw", residual, attrs), "nchw");
};

/** x w^T + b over the last axis. */
const linear: Rule = (b, node) => {
  const attrs = node.attrs as ConvAttrs;
  const [x, w, ...rest] = node.inputs as [Value, Value, ...Value[]];
  const [weight, bias] = [b.parameter(w), attrs.bias ? b.parameter(rest[0]!) : null];
  const residual = attrs.residual ? rest.at(-1) : undefined;
  let y: string;
  if (x.shape.length === 2) {
    y = b.add("Gemm", [b.input(x), weight, ...(bias === null ? [] : [bias])], { transB: { int: 1 } });
  } else {
    y = b.add("MatMul", [b.input(x), b.add("Transpose", [weight], { perm: { ints: [1, 0] } })]);
    if (bias !== null) y = b.add("Add", [y, bias]);
  }
  b.output(node.outputs[0]!, finish(b, y, "plain", residual, attrs));
};

/** Statistics of each image's groups of channels. Before opset 21, the groups are channels of an instance normalization. */
const groupNorm: Rule = (b, node) => {
  const [x, weight, bias] = node.inputs as [Value, Value, Value];
  const { groups, eps, ...rest } = node.attrs as ActivationAttrs & { groups: number; eps: number };
  const [, h, w, c] = x.shape as [number, number, number, number];
  const [from, scales, offsets] = [b.input(x, "nchw"), b.parameter(weight), b.parameter(bias)];
  let y: string;
  if (b.opset >= 21) {
    const attributes = { num_groups: { int: groups }, epsilon: { float: eps } };
    y = b.add("GroupNormalization", [from, scales, offsets], attributes);
  } else {
    const rows = b.add("Reshape", [from, b.ints([0, groups, (c / groups) * h * w])]);
    const [ones, zeros] = [1, 0].map((value) => b.floats(new Float32Array(groups).fill(value))) as [string, string];
    const normal = b.add("InstanceNormalization", [rows, ones, zeros], { epsilon: { float: eps } });
    const perChannel = (name: string) => b.add("Unsqueeze", [name, b.ints([1, 2])]);
    const scaled = b.add("Mul", [b.add("Reshape", [normal, b.ints([0, c, h, w])]), perChannel(scales)]);
    y = b.add("Add", [scaled, perChannel(offsets)]);
  }
  b.output(node.outputs[0]!, activation(b, y, rest), "nchw");
};

const softmax: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const layout = b.layoutOf(x);
  const axis = axisIn(x.shape.length - 1, layout);
  b.output(node.outputs[0]!, b.add("Softmax", [b.input(x, layout)], { axis: { int: axis } }), layout);
};

/** Swaps the last two axes. */
const transpose: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const axes = x.shape.map((_, axis) => axis);
  const perm = [...axes.slice(0, -2), axes.at(-1)!, axes.at(-2)!];
  b.output(node.outputs[0]!, b.add("Transpose", [b.input(x)], { perm: { ints: perm } }));
};

const activate: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const layout = b.layoutOf(x);
  b.output(node.outputs[0]!, activation(b, b.input(x, layout), node.attrs as ActivationAttrs), layout);
};

/** Channel g C / groups + j becomes channel j groups + g. */
const channelShuffle: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const { groups } = node.attrs as { groups: number };
  const channels = x.shape.at(-1)!;
  const from = Array.from({ length: channels }, (_, i) => (i % groups) * (channels / groups) + Math.floor(i / groups));
  const layout = b.layoutOf(x);
  const axis = axisIn(x.shape.length - 1, layout);
  const y = b.add("Gather", [b.input(x, layout), b.ints(from)], { axis: { int: axis } });
  b.output(node.outputs[0]!, y, layout);
};

/** An operation of ONNX on two values of one shape, or of shapes that broadcast. */
function binary(opType: string): Rule {
  return (b, node) => {
    const layout = b.layoutOf(...node.inputs);
    const y = b.add(
      opType,
      node.inputs.map((value) => b.input(value, layout)),
    );
    b.output(node.outputs[0]!, activation(b, y, { activation: "none", ...(node.attrs as object) }), layout);
  };
}

const scale: Rule = (b, node) => {
  const [x, s] = node.inputs as [Value, Value | undefined];
  const { factor } = node.attrs as { factor: number };
  const layout = b.layoutOf(x);
  let y = b.add("Mul", [b.input(x, layout), b.floats(factor)]);
  if (s) y = b.add("Mul", [y, b.input(s)]);
  b.output(node.outputs[0]!, y, layout);
};

/** Everything floating-point is fp32 in the exported graph. */
const cast: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const { dtype } = node.attrs as { dtype: string };
  const layout = b.layoutOf(x);
  const types: Record<string, number> = { i32: 6, u8: 2, f64: 1, f32: 1, bf16: 1, f16: 1 };
  const name = b.input(x, layout);
  const same = types[x.dtype] === types[dtype];
  b.output(node.outputs[0]!, same ? name : b.add("Cast", [name], { to: { int: types[dtype]! } }), layout);
};

const reshape: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const { shape } = node.attrs as { shape: readonly number[] };
  // With one pixel, or one channel, the elements of an image lie in the same order in both layouts.
  const [, h, w, c] = x.shape;
  const alike = x.shape.length === 4 && (c === 1 || h! * w! === 1);
  const layout = alike ? b.layoutOf(x) : "plain";
  const y = b.add("Reshape", [b.input(x, layout), b.shape(shape, shapeIn(x.shape, layout))]);
  b.output(node.outputs[0]!, y);
};

const concat: Rule = (b, node) => {
  const { axis } = node.attrs as { axis: number };
  const layout = b.layoutOf(...node.inputs);
  const names = node.inputs.map((value) => b.input(value, layout));
  b.output(node.outputs[0]!, b.add("Concat", names, { axis: { int: axisIn(axis, layout) } }), layout);
};

/** `length` steps of an ONNX value along an axis. */
export function sliceOf(b: GraphBuilder, x: string, axis: number, start: number, length: number): string {
  return b.add("Slice", [x, b.ints([start]), b.ints([start + length]), b.ints([axis])]);
}

const slice: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const { axis, start, length } = node.attrs as { axis: number; start: number; length: number };
  const layout = b.layoutOf(x);
  const y = sliceOf(b, b.input(x, layout), axisIn(axis, layout), start, length);
  b.output(node.outputs[0]!, y, layout);
};

const constant: Rule = (b, node) => {
  const { values, shape, dtype } = node.attrs as { values: ArrayLike<number>; shape: readonly number[]; dtype: string };
  if (dtype !== "f32") {
    throw new DlfsError(ErrorCode.unsupported, b.path || "constant", `a constant of dtype ${dtype} cannot be exported`);
  }
  b.output(node.outputs[0]!, b.floats(values, shape));
};

interface WindowAttrs {
  readonly kernel: Pair;
  readonly stride: Pair;
  readonly padding: Pair;
  readonly countIncludePad?: boolean;
}

/** MaxPool or AveragePool; sizes are rounded down on both sides. */
function pool(opType: "MaxPool" | "AveragePool"): Rule {
  return (b, node) => {
    const [x] = node.inputs as [Value];
    const { kernel, stride, padding, countIncludePad } = node.attrs as WindowAttrs;
    const from = b.input(x, "nchw");
    const whole = [...kernel, ...padding].join() === [x.shape[1], x.shape[2], 0, 0].join();
    if (whole && opType === "AveragePool") {
      b.output(node.outputs[0]!, b.add("GlobalAveragePool", [from]), "nchw");
      return;
    }
    const y = b.add(opType, [from], {
      kernel_shape: { ints: kernel },
      pads: bothEnds(padding),
      strides: { ints: stride },
      ...(opType === "AveragePool" && { count_include_pad: { int: countIncludePad ? 1 : 0 } }),
    });
    b.output(node.outputs[0]!, y, "nchw");
  };
}

/**
 * Nearest-neighbour resizing, output pixel i from input pixel floor(i in / out): Resize by a whole factor, else Gather, since
 * runtimes round other factors differently.
 */
const upsampleNearest: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const [, h, w] = x.shape as [number, number, number, number];
  const { size } = node.attrs as { size: Pair };
  let y = b.input(x, "nchw");
  if (size[0] % h === 0 && size[1] % w === 0) {
    y = b.add("Resize", [y, "", b.floats([1, 1, size[0] / h, size[1] / w])], {
      coordinate_transformation_mode: { text: "asymmetric" },
      mode: { text: "nearest" },
      nearest_mode: { text: "floor" },
    });
  } else {
    for (const [axis, from, to] of [
      [2, h, size[0]],
      [3, w, size[1]],
    ] as const) {
      if (from === to) continue;
      const rows = Array.from({ length: to }, (_, i) => Math.floor((i * from) / to));
      y = b.add("Gather", [y, b.ints(rows)], { axis: { int: axis } });
    }
  }
  b.output(node.outputs[0]!, y, "nchw");
};

interface BilinearAttrs {
  readonly size: Pair;
  readonly alignCorners: boolean;
  /** What the size was rounded down from; 0 for the ratio of the sizes. */
  readonly scale: Pair;
}

/** Bilinear resizing, to a size, or by factors where these are not the ratio of the sizes. */
const upsampleBilinear: Rule = (b, node) => {
  const [x] = node.inputs as [Value];
  const [, h, w] = x.shape as [number, number, number, number];
  const { size, alignCorners, scale } = node.attrs as BilinearAttrs;
  const from = b.input(x, "nchw");
  const attributes = {
    coordinate_transformation_mode: { text: alignCorners ? "align_corners" : "half_pixel" },
    mode: { text: "linear" },
  };
  const rounded = !alignCorners && [h, w].some((length, d) => scale[d] !== 0 && length * scale[d]! !== size[d]);
  let y: string;
  if (rounded) {
    const factors = [scale[0] || size[0] / h, scale[1] || size[1] / w];
    y = b.add("Resize", [from, "", b.floats([1, 1, ...factors])], attributes);
  } else if (b.opset >= 18) {
    y = b.add("Resize", [from, "", "", b.ints(size)], { ...attributes, axes: { ints: [2, 3] } });
  } else {
    const outer = b.add("Shape", [from], { start: { int: 0 }, end: { int: 2 } });
    y = b.add("Resize", [from, "", "", b.add("Concat", [outer, b.ints(size)], { axis: { int: 0 } })], attributes);
  }
  b.output(node.outputs[0]!, y, "nchw");
};

/** A tensor of one value; its first dimension may be the batch. */
const fill: Rule = (b, node) => {
  const { shape, value } = node.attrs as { shape: readonly number[]; value: number };
  const layout = shape.length === 4 ? "nchw" : "plain";
  b.output(node.outputs[0]!, b.add("Expand", [b.floats(value), b.sizes(shapeIn(shape, layout))]), layout);
};

export const graphRules: Readonly<Record<string, Rule>> = {
  activation: activate,
  add: binary("Add"),
  add_bias: addBias,
  avg_pool: pool("AveragePool"),
  batch_norm_infer: batchNorm,
  cast,
  channel_scale: binary("Mul"),
  channel_shuffle: channelShuffle,
  concat,
  constant,
  conv2d,
  conv_transpose2d: convTranspose,
  fill,
  group_norm: groupNorm,
  linear,
  max_pool: pool("MaxPool"),
  multiply: binary("Mul"),
  reshape,
  scale,
  slice,
  softmax,
  transpose,
  upsample_bilinear: upsampleBilinear,
  upsample_nearest: upsampleNearest,
};

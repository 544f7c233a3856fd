import { constants } from "../../native";
import { type Device, dtypeCode } from "../../tensor";
import { type ConvPlan, convPlan } from "../conv-plans";
import {
  type Emitter,
  expectActivation,
  expectShape,
  type Node,
  nhwc,
  type Op,
  type Preparation,
  rowsAndChannels,
  scratchMemory,
} from "../node";
import type { Spec, Value } from "../value";
import { activateBackward, activationCode, type FusedActivation } from "./elementwise";

/** Geometry of a convolution; pairs are (height, width). */
export interface ConvGeometry {
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly dilation: readonly [number, number];
  readonly groups: number;
}

export interface ConvAttrs extends ConvGeometry {
  readonly bias: boolean;
  readonly residual: boolean;
  readonly activation: FusedActivation;
}

interface BackwardAttrs extends ConvGeometry {
  /** Shapes of x (N, H, W, C) and w (K, R, S, C / groups); of a linear map x (..., C) and w (K, C). */
  readonly x: readonly number[];
  readonly w: readonly number[];
}

export interface BackwardDataAttrs extends BackwardAttrs {
  /** A tensor is added to the gradient. */
  readonly residual: boolean;
  /** x is a ReLU's result: its gradient, with the residual, is 0 where x <= 0. */
  readonly mask: boolean;
}

/** Shape of the convolution of x with w. */
export function outputShape(x: Spec, w: Spec, g: ConvGeometry): number[] {
  const [n, h, width, c] = nhwc(x);
  const [k, r, s, perGroup] = nhwc(w, "a weight");
  expectShape(c === perGroup * g.groups, () => `expected ${perGroup * g.groups} channels, got ${c}`);
  expectShape(k % g.groups === 0, () => `expected out channels divisible by ${g.groups} groups, got ${k}`);
  expectShape(x.dtype === w.dtype, () => `expected a weight of dtype ${x.dtype}, got ${w.dtype}`);
  const size = (input: number, kernel: number, d: 0 | 1) =>
    Math.floor((input + 2 * g.padding[d] - g.dilation[d] * (kernel - 1) - 1) / g.stride[d]) + 1;
  const [p, q] = [size(h, r, 0), size(width, s, 1)];
  expectShape(
    p > 0 && q > 0,
    () =>
      `the ${r}x${s} kernel (dilation ${g.dilation.join("x")}, padding ${g.padding.join("x")}) is larger than the image, ${h}x${width}`,
  );
  return [n, p, q, k];
}

function plan(
  device: Device,
  direction: number,
  x: readonly number[],
  w: readonly number[],
  dtype: Spec["dtype"],
  g: ConvGeometry,
  flags = 0,
  activation: FusedActivation = "none",
): Preparation<ConvPlan> {
  // A linear map is a 1x1 convolution of images of one pixel, one for each row.
  const [rows, channels] = rowsAndChannels(x);
  const image = (w.length === 2 ? [rows, 1, 1, channels] : x) as [number, number, number, number];
  const [k, r, s] = w.length === 2 ? [w[0]!, 1, 1] : (w as [number, number, number]);
  const state = convPlan(device, [
    direction,
    dtypeCode(dtype),
    ...image,
    k,
    r,
    s,
    ...g.stride,
    ...g.padding,
    ...g.dilation,
    g.groups,
    flags,
    activationCode(activation),
  ]);
  return {
    // Asked for when all of a program's nodes are prepared, so that their plans are made together.
    get workspace() {
      return state.workspace;
    },
    state,
  };
}

const handleOf = (e: Emitter) => (e.state as ConvPlan).handle;

/** Checks the bias and the residual of a node with a result of this shape. */
function expectOperands(inputs: readonly Spec[], attrs: ConvAttrs, shape: readonly number[]): void {
  const { bias, residual } = operands(inputs, attrs);
  const [{ dtype }, channels] = [inputs[0]!, shape.at(-1)];
  if (bias) {
    expectShape(
      bias.dtype === "f32" && bias.shape.length === 1 && bias.shape[0] === channels,
      () => `expected an f32 bias of shape (${channels}), got ${bias.dtype} (${bias.shape.join(", ")})`,
    );
  }
  if (residual) {
    expectShape(
      residual.dtype === dtype && residual.shape.join() === shape.join(),
      () => `expected a residual ${dtype} (${shape.join(", ")}), got ${residual.dtype} (${residual.shape.join(", ")})`,
    );
  }
}

/** y = activation(conv(x, w) + bias + residual). Inputs x, w, then the bias and the residual where attrs say so. */
export const conv2d: Op<ConvAttrs> = {
  kind: "conv2d",
  infer(inputs, attrs) {
    const [x, w] = inputs as [Spec, Spec];
    expectActivation(x, "an image batch");
    const shape = outputShape(x, w, attrs);
    expectOperands(inputs, attrs, shape);
    return [{ shape, dtype: x.dtype }];
  },
  gradient(builder, node, [dy]) {
    const [x, w] = node.inputs;
    const [y] = node.outputs;
    const { bias, residual } = operands(node.inputs, node.attrs);
    let upstream = builder.value(dy!, y!);
    const { activation } = node.attrs;
    if (activation !== "none") upstream = builder.apply(activateBackward, [upstream, y!], { activation })[0]!;
    const attrs: BackwardAttrs = { ...geometry(node.attrs), x: x!.shape, w: w!.shape };
    const gradients = [
      builder.needed(x!)
        ? builder.apply(convBackwardData, [upstream, w!], { ...attrs, residual: false, mask: false })[0]!
        : null,
      builder.needed(w!) ? builder.apply(convBackwardWeight, [x!, upstream], attrs)[0]! : null,
    ];
    if (bias) gradients.push(builder.needed(bias) ? builder.apply(channelSum, [upstream], {})[0]! : null);
    if (residual) gradients.push(upstream);
    return gradients;
  },
  prepare(device, { inputs: [x, w], attrs }) {
    const flags = (attrs.bias ? constants.CONV_BIAS : 0) | (attrs.residual ? constants.CONV_RESIDUAL : 0);
    return plan(device, constants.CONV_FORWARD, x!.shape, w!.shape, x!.dtype, attrs, flags, attrs.activation);
  },
  emit(e, node) {
    const { bias, residual } = operands(node.inputs, node.attrs);
    const [y, x, w] = [e.address(node.outputs[0]!), e.address(node.inputs[0]!), e.address(node.inputs[1]!)];
    const [b, z, conv, workspace] = [e.optional(bias), e.optional(residual), handleOf(e), e.workspace];
    e.call(() => e.native.convForward(e.stream, conv, y, x, w, b, z, workspace));
  },
};

/** conv2d that also gives the moments of y, by `parts` parts, which batchNormTrain takes; see dlfs_conv_forward_moments. */
export const conv2dWithMoments: Op<ConvAttrs & { readonly parts: number }> = {
  ...conv2d,
  infer(inputs, attrs) {
    const [y] = conv2d.infer(inputs, attrs) as [Spec];
    return [y, { shape: [(2 * y.shape.at(-1)! + 1) * attrs.parts], dtype: "f32" }];
  },
  prepare: (device, { inputs: [x, w], attrs }) =>
    plan(device, constants.CONV_FORWARD, x!.shape, w!.shape, x!.dtype, attrs, constants.CONV_MOMENTS),
  emit(e, { inputs: [x, w], outputs: [y, moments] }) {
    const [dst, statistics, src, weight] = [e.address(y!), e.address(moments!), e.address(x!), e.address(w!)];
    const [conv, workspace] = [handleOf(e), e.workspace];
    e.call(() => e.native.convForwardMoments(e.stream, conv, dst, statistics, src, weight, workspace));
  },
};

/** y (..., K) = activation(x (..., C) w^T + bias + residual), w (K, C). Inputs as conv2d's; the geometry is a 1x1 kernel's. */
export const linear: Op<ConvAttrs> = {
  ...conv2d,
  kind: "linear",
  infer(inputs, attrs) {
    const [x, w] = inputs as [Spec, Spec];
    expectActivation(x, "a tensor");
    expectShape(w.shape.length === 2, () => `expected a weight of shape (K, C), got (${w.shape.join(", ")})`);
    const [k, c] = w.shape as [number, number];
    expectShape(
      x.shape.length >= 1 && x.shape.at(-1) === c,
      () => `expected a tensor of shape (..., ${c}), got (${x.shape.join(", ")})`,
    );
    expectShape(x.dtype === w.dtype, () => `expected a weight of dtype ${x.dtype}, got ${w.dtype}`);
    const shape = [...x.shape.slice(0, -1), k];
    expectOperands(inputs, attrs, shape);
    return [{ shape, dtype: x.dtype }];
  },
};

export function geometry({ stride, padding, dilation, groups }: ConvGeometry): ConvGeometry {
  return { stride, padding, dilation, groups };
}

/** The optional operands of a conv2d node by name. */
export function operands<T>(inputs: readonly T[], attrs: ConvAttrs): { bias: T | undefined; residual: T | undefined } {
  return {
    bias: attrs.bias ? inputs[2] : undefined,
    residual: attrs.residual ? inputs[attrs.bias ? 3 : 2] : undefined,
  };
}

/** Plans the data gradient of the convolution of a tensor of shape x with weights of shape w. */
export function prepareBackwardData(
  device: Device,
  x: readonly number[],
  w: readonly number[],
  dtype: Spec["dtype"],
  g: ConvGeometry,
  flags = 0,
): Preparation<ConvPlan> {
  return plan(device, constants.CONV_BACKWARD_DATA, x, w, dtype, g, flags);
}

/** Records the data gradient dx from dy and w, and from the residual and x that its plan has flags for. */
export function emitBackwardData(
  e: Emitter,
  { inputs: [dy, w], outputs: [dx] }: Pick<Node, "inputs" | "outputs">,
  residual?: Value,
  x?: Value,
) {
  const [dst, upstream, weight] = [e.address(dx!), e.address(dy!), e.address(w!)];
  const [added, mask, conv, workspace] = [e.optional(residual), e.optional(x), handleOf(e), e.workspace];
  e.call(() => e.native.convBackwardData(e.stream, conv, dst, upstream, weight, added, mask, workspace));
}

/** Inputs dy, w, then the residual and x where attrs say so. */
export const convBackwardData: Op<BackwardDataAttrs> = {
  kind: "conv2d_backward_data",
  infer: ([dy, , ...others], { x }) => {
    for (const other of others) {
      expectShape(
        other.dtype === dy!.dtype && other.shape.join() === x.join(),
        () => `expected ${dy!.dtype} (${x.join(", ")}), got ${other.dtype} (${other.shape.join(", ")})`,
      );
    }
    return [{ shape: x, dtype: dy!.dtype }];
  },
  prepare(device, { inputs: [dy], attrs }) {
    const flags = (attrs.residual ? constants.CONV_RESIDUAL : 0) | (attrs.mask ? constants.CONV_RELU_MASK : 0);
    return prepareBackwardData(device, attrs.x, attrs.w, dy!.dtype, attrs, flags);
  },
  emit(e, node) {
    const { residual, mask } = node.attrs;
    const others = node.inputs.slice(2);
    emitBackwardData(e, node, residual ? others.shift() : undefined, mask ? others.shift() : undefined);
  },
};

/** The same with a residual that is not dy, in whose memory the result may lie. */
export const convBackwardDataOnto: Op<BackwardDataAttrs> = { ...convBackwardData, inplace: [2] };

export const convBackwardWeight: Op<BackwardAttrs> = {
  kind: "conv2d_backward_weight",
  infer: (_, { w }) => [{ shape: w, dtype: "f32" }],
  prepare: (device, { inputs: [x], attrs }) =>
    plan(device, constants.CONV_BACKWARD_WEIGHT, attrs.x, attrs.w, x!.dtype, attrs),
  emit(e, { inputs: [x, dy], outputs: [dw] }) {
    const [dst, src, upstream, conv, workspace] = [
      e.address(dw!),
      e.address(x!),
      e.address(dy!),
      handleOf(e),
      e.workspace,
    ];
    e.call(() => e.native.convBackwardWeight(e.stream, conv, dst, src, upstream, workspace));
  },
};

/** Sums over all but the last axis, fp32: the gradient of a bias. */
export const channelSum: Op<object> = {
  kind: "channel_sum",
  infer: ([x]) => [{ shape: [x!.shape.at(-1)!], dtype: "f32" }],
  prepare(device, { inputs: [x] }: Node<object>) {
    const [size, dtype] = [rowsAndChannels(x!.shape), dtypeCode(x!.dtype)];
    return scratchMemory((out) => device.native.channelSumWorkspace(device.handle, out, ...size, dtype));
  },
  emit(e, { inputs: [x], outputs: [y] }) {
    const [dst, src, workspace, dtype] = [e.address(y!), e.address(x!), e.workspace, dtypeCode(x!.dtype)];
    const [rows, channels] = rowsAndChannels(x!.shape);
    e.call(() => e.native.channelSum(e.stream, dst, src, workspace, rows, channels, dtype));
  },
};

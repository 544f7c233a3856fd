import { dtypeCode } from "../../tensor";
import { expectActivation, expectShape, nhwc, type Op, rowsAndChannels } from "../node";
import type { Spec } from "../value";
import {
  type ConvGeometry,
  channelSum,
  conv2d,
  convBackwardWeight,
  emitBackwardData,
  geometry,
  prepareBackwardData,
} from "./conv";
import { activateBackward, activationCode, type FusedActivation } from "./elementwise";

export interface ConvTransposeAttrs extends ConvGeometry {
  /** Rows and columns added at the end of the result, smaller than the stride. */
  readonly outputPadding: readonly [number, number];
}

/** What the convolution y -> x that this is the transpose of takes: (N, P, Q, K) from x (N, H, W, C) and w (C, R, S, K / groups). */
function outputShape(x: Spec, w: Spec, g: ConvTransposeAttrs): number[] {
  const [n, h, width, c] = nhwc(x);
  expectActivation(x, "an image batch");
  const [inputs, r, s, perGroup] = nhwc(w, "a weight");
  expectShape(c === inputs, () => `expected ${inputs} channels, got ${c}`);
  expectShape(c % g.groups === 0, () => `expected channels divisible by ${g.groups} groups, got ${c}`);
  expectShape(x.dtype === w.dtype, () => `expected a weight of dtype ${x.dtype}, got ${w.dtype}`);
  expectShape(
    g.outputPadding[0] < g.stride[0] && g.outputPadding[1] < g.stride[1],
    () => `expected output padding below the stride ${g.stride.join("x")}, got ${g.outputPadding.join("x")}`,
  );
  const size = (input: number, kernel: number, d: 0 | 1) =>
    (input - 1) * g.stride[d] - 2 * g.padding[d] + g.dilation[d] * (kernel - 1) + g.outputPadding[d] + 1;
  const [p, q] = [size(h, r, 0), size(width, s, 1)];
  expectShape(
    p > 0 && q > 0,
    () => `padding ${g.padding.join("x")} leaves nothing of the result: ${p}x${q} from an image of ${h}x${width}`,
  );
  return [n, p, q, perGroup * g.groups];
}

/**
 * Transposed convolution: the data gradient of the convolution from its result to x. Inputs x and w (C, R, S, K / groups), in
 * which C are x's channels. It uses that convolution's plans, so its algorithms are tuned and stored as all others are.
 */
export const convTranspose2d: Op<ConvTransposeAttrs> = {
  kind: "conv_transpose2d",
  infer: ([x, w], attrs) => [{ shape: outputShape(x!, w!, attrs), dtype: x!.dtype }],
  gradient(builder, { inputs: [x, w], outputs: [y], attrs }, [dy]) {
    const upstream = builder.value(dy!, y!);
    const given = geometry(attrs);
    return [
      builder.needed(x!)
        ? builder.apply(conv2d, [upstream, w!], { ...given, bias: false, residual: false, activation: "none" })[0]!
        : null,
      builder.needed(w!)
        ? builder.apply(convBackwardWeight, [upstream, x!], { ...given, x: y!.shape, w: w!.shape })[0]!
        : null,
    ];
  },
  prepare: (device, { inputs: [x, w], outputs: [y], attrs }) =>
    prepareBackwardData(device, y!.shape, w!.shape, x!.dtype, attrs),
  emit: (e, node) => emitBackwardData(e, node),
};

/** y = activation(x + bias), bias (C) fp32 along the last axis: for results of operations that have no bias of their own. */
export const addBias: Op<{ activation: FusedActivation }> = {
  kind: "add_bias",
  inplace: [0],
  infer([x, bias]) {
    expectActivation(x!, "a tensor");
    const channels = x!.shape.at(-1);
    expectShape(
      bias!.dtype === "f32" && bias!.shape.length === 1 && bias!.shape[0] === channels,
      () => `expected an f32 bias of shape (${channels}), got ${bias!.dtype} (${bias!.shape.join(", ")})`,
    );
    return [x!];
  },
  gradient(builder, { inputs: [, bias], outputs: [y], attrs: { activation } }, [dy]) {
    let upstream = builder.value(dy!, y!);
    if (activation !== "none") upstream = builder.apply(activateBackward, [upstream, y!], { activation })[0]!;
    return [upstream, builder.needed(bias!) ? builder.apply(channelSum, [upstream], {})[0]! : null];
  },
  emit(e, { inputs: [x, bias], outputs: [y], attrs }) {
    const [dst, src, b] = [e.address(y!), e.address(x!), e.address(bias!)];
    const [rows, channels] = rowsAndChannels(x!.shape);
    const [dtype, activation] = [dtypeCode(x!.dtype), activationCode(attrs.activation)];
    e.call(() => e.native.addBias(e.stream, dst, src, b, rows, channels, dtype, activation));
  },
};

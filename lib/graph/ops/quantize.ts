import { constants } from "../../native";
import { type DType, dtypeCode, elementCount, isQuantized, type QuantizedDType } from "../../tensor";
import { type ConvPlan, convPlan } from "../conv-plans";
import { expectActivation, expectShape, nhwc, type Op } from "../node";
import type { Spec } from "../value";
import { type ConvAttrs, operands, outputShape } from "./conv";
import { activationCode } from "./elementwise";

/** The largest magnitude that a value is scaled to. */
export const quantizedLimits: Readonly<Record<QuantizedDType, number>> = { f8: 448, i8: 127 };

/** y = x / scale, rounded to nearest even and saturated. */
export const quantize: Op<{ dtype: QuantizedDType; scale: number }> = {
  kind: "quantize",
  infer([x], { dtype }) {
    expectActivation(x!, "a tensor");
    return [{ shape: x!.shape, dtype }];
  },
  emit(e, { inputs: [x], outputs: [y], attrs: { scale } }) {
    const [dst, src, n] = [e.address(y!), e.address(x!), elementCount(x!.shape)];
    const [to, from] = [dtypeCode(y!.dtype), dtypeCode(x!.dtype)];
    e.call(() => e.native.quantize(e.stream, dst, src, n, to, from, 1 / scale));
  },
};

/** y = x * scale in a floating-point dtype. */
export const dequantize: Op<{ dtype: DType; scale: number }> = {
  kind: "dequantize",
  infer: ([x], { dtype }) => [{ shape: x!.shape, dtype }],
  emit(e, { inputs: [x], outputs: [y], attrs: { scale } }) {
    const [dst, src, n] = [e.address(y!), e.address(x!), elementCount(x!.shape)];
    const [to, from] = [dtypeCode(y!.dtype), dtypeCode(x!.dtype)];
    e.call(() => e.native.dequantize(e.stream, dst, src, n, to, from, scale));
  },
};

/** Weights (K, R, S, C) in 8 bits and the scale of each output channel, (K) fp32. */
export const quantizeChannels: Op<{ dtype: QuantizedDType }> = {
  kind: "quantize_channels",
  hoist: true,
  infer: ([w], { dtype }) => [
    { shape: w!.shape, dtype },
    { shape: [w!.shape[0]!], dtype: "f32" },
  ],
  emit(e, { inputs: [w], outputs: [y, scale] }) {
    const [dst, factors, src] = [e.address(y!), e.address(scale!), e.address(w!)];
    const k = w!.shape[0]!;
    const perChannel = elementCount(w!.shape) / k;
    const [to, from] = [dtypeCode(y!.dtype), dtypeCode(w!.dtype)];
    e.call(() => e.native.quantizeChannels(e.stream, dst, factors, src, k, perChannel, to, from));
  },
};

/** y = x * factor, of a vector that depends on parameters alone. */
export const scaleVector: Op<{ factor: number }> = {
  kind: "scale_vector",
  hoist: true,
  infer: ([x]) => [x!],
  emit(e, { inputs: [x], outputs: [y], attrs: { factor } }) {
    const [dst, src, n, dtype] = [e.address(y!), e.address(x!), elementCount(x!.shape), dtypeCode(x!.dtype)];
    e.call(() => e.native.scale(e.stream, dst, src, null, n, dtype, factor));
  },
};

export interface ScaledConvAttrs extends ConvAttrs {
  /** Of y and the residual: x's, or a floating-point one. */
  readonly dtype: DType;
}

const resultFlags: Partial<Record<DType, number>> = {
  f32: constants.CONV_Y_F32,
  bf16: constants.CONV_Y_BF16,
  f16: constants.CONV_Y_F16,
};

/**
 * y = activation(scale[k] conv(x, w) + bias + residual), x and w of 8 bits. Inputs x, w, scale (K), then the bias (K) and the
 * residual where attrs say so; scale and bias are fp32.
 */
export const conv2dScaled: Op<ScaledConvAttrs> = {
  kind: "conv2d_scaled",
  infer(inputs, attrs) {
    const [x, w, scale] = inputs as [Spec, Spec, Spec];
    expectShape(isQuantized(x.dtype), () => `expected x of dtype f8 or i8, got ${x.dtype}`);
    const shape = outputShape(x, w, attrs);
    const { bias, residual } = operands([x, w, ...inputs.slice(3)], attrs);
    for (const vector of [scale, bias]) {
      expectShape(
        !vector || (vector.dtype === "f32" && vector.shape.join() === `${shape[3]}`),
        () => `expected f32 vectors of shape (${shape[3]}), got ${vector!.dtype} (${vector!.shape.join(", ")})`,
      );
    }
    expectShape(
      !residual || (residual.dtype === attrs.dtype && residual.shape.join() === shape.join()),
      () => `expected a residual ${attrs.dtype} (${shape.join(", ")}), got ${residual!.dtype}`,
    );
    return [{ shape, dtype: attrs.dtype }];
  },
  prepare(device, { inputs: [x, w], attrs }) {
    const flags =
      (attrs.bias ? constants.CONV_BIAS : 0) |
      (attrs.residual ? constants.CONV_RESIDUAL : 0) |
      (resultFlags[attrs.dtype] ?? 0);
    const [k, r, s] = nhwc(w!);
    const state = convPlan(device, [
      constants.CONV_FORWARD,
      dtypeCode(x!.dtype),
      ...nhwc(x!),
      k,
      r,
      s,
      ...attrs.stride,
      ...attrs.padding,
      ...attrs.dilation,
      attrs.groups,
      flags,
      activationCode(attrs.activation),
    ]);
    return {
      // Asked for when all of a program's nodes are prepared, so that their plans are made together.
      get workspace() {
        return state.workspace;
      },
      state,
    };
  },
  emit(e, { inputs, outputs: [y], attrs }) {
    const [x, w, scale, ...rest] = inputs.map((input) => e.address(input)) as [number, number, number, ...number[]];
    const { bias = null, residual = null } = operands([x, w, ...rest], attrs);
    const [dst, conv, workspace] = [e.address(y!), (e.state as ConvPlan).handle, e.workspace];
    e.call(() => e.native.convForwardScaled(e.stream, conv, dst, x, w, scale, bias, residual, workspace));
  },
};

/** Adds the magnitudes of a value to the counts (DLFS_MAGNITUDE_BINS, int64) at an address outside the program. */
export const countMagnitudes: Op<{ counts: number }> = {
  kind: "count_magnitudes",
  effect: true,
  infer: () => [],
  emit(e, { inputs: [x], attrs: { counts } }) {
    const [src, n, dtype] = [e.address(x!), elementCount(x!.shape), dtypeCode(x!.dtype)];
    e.call(() => e.native.countMagnitudes(e.stream, counts, src, n, dtype));
  },
};

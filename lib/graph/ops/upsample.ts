import { dtypeCode, isQuantized } from "../../tensor";
import { expectActivation, expectShape, nhwc, type Op } from "../node";
import type { Spec } from "../value";

function resized(x: Spec, [p, q]: readonly [number, number]): Spec {
  const [n, , , c] = nhwc(x);
  expectActivation(x, "an image batch");
  expectShape(p > 0 && q > 0, () => `expected a positive size, got ${p}x${q}`);
  return { shape: [n, p, q, c], dtype: x.dtype };
}

/**
 * Nearest-neighbour resize to `size` (height, width), as torch's "nearest". Values of 8 bits, whose channels are a multiple of
 * four, are moved as words of four channels.
 */
export const upsampleNearest: Op<{ size: readonly [number, number] }> = {
  kind: "upsample_nearest",
  infer: ([x], { size }) => {
    if (!isQuantized(x!.dtype)) return [resized(x!, size)];
    expectShape(x!.shape.at(-1)! % 4 === 0, () => `expected a multiple of 4 channels, got ${x!.shape.at(-1)}`);
    return [{ shape: resized({ ...x!, dtype: "f32" }, size).shape, dtype: x!.dtype }];
  },
  gradient: (builder, { inputs: [x], outputs: [y] }, [dy]) =>
    builder.apply(upsampleNearestBackward, [builder.value(dy!, y!)], { shape: x!.shape }),
  emit(e, { inputs: [x], outputs: [y], attrs: { size } }) {
    const [n, h, w, c] = nhwc(x!);
    const isWords = isQuantized(x!.dtype);
    const [dst, src, dtype] = [e.address(y!), e.address(x!), dtypeCode(isWords ? "f32" : x!.dtype)];
    const columns = isWords ? c / 4 : c;
    e.call(() => e.native.upsampleNearestForward(e.stream, dst, src, n, h, w, columns, size[0], size[1], dtype));
  },
};

const upsampleNearestBackward: Op<{ shape: readonly number[] }> = {
  kind: "upsample_nearest_backward",
  infer: ([dy], { shape }) => [{ shape, dtype: dy!.dtype }],
  emit(e, { inputs: [dy], outputs: [dx] }) {
    const [n, h, w, c] = nhwc(dx!);
    const [, p, q] = nhwc(dy!);
    const [dst, src, dtype] = [e.address(dx!), e.address(dy!), dtypeCode(dy!.dtype)];
    e.call(() => e.native.upsampleNearestBackward(e.stream, dst, src, n, h, w, c, p, q, dtype));
  },
};

export interface BilinearAttrs {
  readonly size: readonly [number, number];
  /** Corners lie at the centres of the corner pixels instead of at their corners. */
  readonly alignCorners: boolean;
  /** The factors that the size was rounded down from, (height, width); 0 for the ratio of the sizes. */
  readonly scale: readonly [number, number];
}

/** Bilinear resize to `size` (height, width), as torch's "bilinear" without antialiasing. */
export const upsampleBilinear: Op<BilinearAttrs> = {
  kind: "upsample_bilinear",
  infer: ([x], { size }) => [resized(x!, size)],
  gradient: (builder, { inputs: [x], outputs: [y], attrs }, [dy]) =>
    builder.apply(upsampleBilinearBackward, [builder.value(dy!, y!)], { ...attrs, shape: x!.shape }),
  emit(e, { inputs: [x], outputs: [y], attrs }) {
    const [n, h, w, c] = nhwc(x!);
    const [dst, src, dtype] = [e.address(y!), e.address(x!), dtypeCode(x!.dtype)];
    const [[p, q], align, scale] = [attrs.size, attrs.alignCorners ? 1 : 0, attrs.scale];
    e.call(() => e.native.upsampleBilinearForward(e.stream, dst, src, n, h, w, c, p, q, align, dtype, ...scale));
  },
};

const upsampleBilinearBackward: Op<BilinearAttrs & { shape: readonly number[] }> = {
  kind: "upsample_bilinear_backward",
  infer: ([dy], { shape }) => [{ shape, dtype: dy!.dtype }],
  emit(e, { inputs: [dy], outputs: [dx], attrs }) {
    const [n, h, w, c] = nhwc(dx!);
    const [dst, src, dtype] = [e.address(dx!), e.address(dy!), dtypeCode(dy!.dtype)];
    const [[p, q], align, scale] = [attrs.size, attrs.alignCorners ? 1 : 0, attrs.scale];
    e.call(() => e.native.upsampleBilinearBackward(e.stream, dst, src, n, h, w, c, p, q, align, dtype, ...scale));
  },
};

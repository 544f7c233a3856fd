import { dtypeCode } from "../../tensor";
import { expectActivation, expectShape, nhwc, type Op } from "../node";
import type { Spec } from "../value";

export interface Window {
  readonly kernel: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
}

function pooled(x: Spec, { kernel, stride, padding }: Window): number[] {
  const [n, h, w, c] = nhwc(x);
  expectActivation(x, "an image batch");
  const size = (input: number, d: 0 | 1) => Math.floor((input + 2 * padding[d] - kernel[d]) / stride[d]) + 1;
  const [p, q] = [size(h, 0), size(w, 1)];
  expectShape(
    p > 0 && q > 0,
    () =>
      `the ${kernel.join("x")} window with padding ${padding.join("x")} is larger than the image, (${x.shape.join(", ")})`,
  );
  expectShape(
    padding[0] * 2 <= kernel[0] && padding[1] * 2 <= kernel[1],
    () => `expected padding of at most half the window ${kernel.join("x")}, got ${padding.join("x")}`,
  );
  return [n, p, q, c];
}

type Sizes = [number, number, number, number, number, number, number, number, number, number];

function sizes(shape: readonly number[], { kernel, stride, padding }: Window): Sizes {
  return [...shape, ...kernel, ...stride, ...padding] as Sizes;
}

/** Maximum over windows; the second output is the winners' positions, for the backward pass. */
export const maxPool: Op<Window> = {
  kind: "max_pool",
  optionalOutputs: [1],
  infer([x], window) {
    const shape = pooled(x!, window);
    return [
      { shape, dtype: x!.dtype },
      { shape, dtype: "u8" },
    ];
  },
  gradient: (builder, { inputs: [x], outputs: [y, index], attrs }, [dy]) =>
    builder.apply(maxPoolBackward, [builder.value(dy!, y!), index!], { ...attrs, shape: x!.shape }),
  emit(e, { inputs: [x], outputs: [y, index], attrs }) {
    const [dst, winners, src] = [e.address(y!), e.optional(index), e.address(x!)];
    const args = sizes(x!.shape, attrs);
    const dtype = dtypeCode(x!.dtype);
    e.call(() => e.native.maxPoolForward(e.stream, dst, winners, src, ...args, dtype));
  },
};

const maxPoolBackward: Op<Window & { shape: readonly number[] }> = {
  kind: "max_pool_backward",
  infer: ([dy], { shape }) => [{ shape, dtype: dy!.dtype }],
  emit(e, { inputs: [dy, index], outputs: [dx], attrs }) {
    const [dst, src, winners] = [e.address(dx!), e.address(dy!), e.address(index!)];
    const args = sizes(attrs.shape, attrs);
    const dtype = dtypeCode(dy!.dtype);
    e.call(() => e.native.maxPoolBackward(e.stream, dst, src, winners, ...args, dtype));
  },
};

/** Mean over windows. */
export const avgPool: Op<Window & { countIncludePad: boolean }> = {
  kind: "avg_pool",
  infer: ([x], window) => [{ shape: pooled(x!, window), dtype: x!.dtype }],
  gradient: (builder, { inputs: [x], outputs: [y], attrs }, [dy]) =>
    builder.apply(avgPoolBackward, [builder.value(dy!, y!)], { ...attrs, shape: x!.shape }),
  emit(e, { inputs: [x], outputs: [y], attrs }) {
    const [dst, src] = [e.address(y!), e.address(x!)];
    const args = sizes(x!.shape, attrs);
    const [countPad, dtype] = [attrs.countIncludePad ? 1 : 0, dtypeCode(x!.dtype)];
    e.call(() => e.native.avgPoolForward(e.stream, dst, src, ...args, countPad, dtype));
  },
};

const avgPoolBackward: Op<Window & { countIncludePad: boolean; shape: readonly number[] }> = {
  kind: "avg_pool_backward",
  infer: ([dy], { shape }) => [{ shape, dtype: dy!.dtype }],
  emit(e, { inputs: [dy], outputs: [dx], attrs }) {
    const [dst, src] = [e.address(dx!), e.address(dy!)];
    const args = sizes(attrs.shape, attrs);
    const [countPad, dtype] = [attrs.countIncludePad ? 1 : 0, dtypeCode(dy!.dtype)];
    e.call(() => e.native.avgPoolBackward(e.stream, dst, src, ...args, countPad, dtype));
  },
};

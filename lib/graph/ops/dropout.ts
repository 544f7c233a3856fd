import { dtypeCode, elementCount } from "../../tensor";
import { expectActivation, expectShape, type Op } from "../node";

/**
 * Zeros with probability p, scales the rest by 1 / (1 - p). Inputs x and an f32 counter, which each run raises by 1; outputs y
 * and the mask, a bit for each element.
 */
export const dropout: Op<{ p: number; seed: number }> = {
  kind: "dropout",
  effect: true,
  inplace: [0],
  optionalOutputs: [1],
  infer([x, counter], { p }) {
    expectActivation(x!, "a tensor");
    expectShape(
      counter!.dtype === "f32" && elementCount(counter!.shape) === 1,
      () => `expected an f32 scalar as counter, got ${counter!.dtype} (${counter!.shape.join(", ")})`,
    );
    expectShape(p >= 0 && p < 1, () => `expected p in [0, 1), got ${p}`);
    return [x!, { shape: [Math.ceil(elementCount(x!.shape) / 8)], dtype: "u8" }];
  },
  gradient: (builder, { outputs: [y, mask], attrs: { p } }, [dy]) => [
    builder.apply(dropoutBackward, [builder.value(dy!, y!), mask!], { p })[0]!,
    null,
  ],
  emit(e, { inputs: [x, counter], outputs: [y, mask], attrs: { p, seed } }) {
    const [dst, kept, count, src] = [e.address(y!), e.optional(mask), e.address(counter!), e.address(x!)];
    const [n, dtype] = [elementCount(x!.shape), dtypeCode(x!.dtype)];
    e.call(() => e.native.dropoutForward(e.stream, dst, kept, count, src, n, dtype, p, seed));
  },
};

const dropoutBackward: Op<{ p: number }> = {
  kind: "dropout_backward",
  inplace: [0],
  infer: ([dy]) => [dy!],
  emit(e, { inputs: [dy, mask], outputs: [dx], attrs: { p } }) {
    const [dst, upstream, kept] = [e.address(dx!), e.address(dy!), e.address(mask!)];
    const [n, dtype] = [elementCount(dy!.shape), dtypeCode(dy!.dtype)];
    e.call(() => e.native.dropoutBackward(e.stream, dst, upstream, kept, n, dtype, p));
  },
};

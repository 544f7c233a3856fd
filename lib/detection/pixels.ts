import { applyOp, expectShape, type Op, type Value } from "../graph";
import { type DType, dtypeCode, elementCount } from "../tensor";

interface PixelAttrs {
  readonly mean: readonly [number, number, number];
  readonly std: readonly [number, number, number];
  readonly dtype: DType;
}

const normalize: Op<PixelAttrs> = {
  kind: "normalize_pixels",
  infer([images], { dtype }) {
    const { shape } = images!;
    expectShape(
      images!.dtype === "u8" && shape.at(-1) === 3,
      () => `expected u8 RGB images (..., 3), got ${images!.dtype} (${shape.join(", ")})`,
    );
    return [{ shape, dtype }];
  },
  emit(e, { inputs: [images], outputs: [y], attrs: { mean, std } }) {
    const [dst, src, dtype] = [e.address(y!), e.address(images!), dtypeCode(y!.dtype)];
    const [normalisation, pixels] = [Float32Array.from([...mean, ...std]), elementCount(images!.shape) / 3];
    e.call(() => e.native.normalizePixels(e.stream, dst, src, normalisation, pixels, dtype));
  },
};

/** (pixel / 255 - mean) / std of u8 RGB images (N, H, W, 3), in a dtype: what the data loader's preprocessing computes. */
export function normalizePixels(
  images: Value,
  { mean, std }: Pick<PixelAttrs, "mean" | "std">,
  dtype: DType = "f32",
): Value {
  return applyOp(normalize, [images], { mean, std, dtype })[0] as Value;
}

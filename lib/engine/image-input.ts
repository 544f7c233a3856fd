/** What an engine detects on, and where it lies in the network's input. */
import {
  type DeviceImageCodec,
  type InputMapping,
  mappingOf,
  type Pixels,
  type PreprocessOp,
  planInput,
  writeTransform,
} from "../data";
import type { InputSize } from "../data/codec";
import { check, DlfsError, ErrorCode } from "../native";
import { Tensor } from "../tensor";

/**
 * An image of any size: the bytes of a JPEG, PNG or WebP file; pixels on the host; or pixels on the engine's device, a u8 tensor
 * (height, width, 3) of RGB that was written on the device's stream and stays as it is until the answer is there.
 */
export type EngineImage = Uint8Array | Pixels | Tensor;

/** The most pixels of an image, as many as can be decoded. */
const MAX_PIXELS = 2 ** 28;

/** How an image is drawn. */
export interface PlannedImage {
  readonly image: EngineImage;
  /** In pixels, upright. */
  readonly width: number;
  readonly height: number;
  /** From its pixels to the network input's. */
  readonly toInput: InputMapping;
  /** As dlfs_preprocess takes it, written to place `index` of `out`. */
  writeTransform(out: Float32Array, index: number): void;
}

function sizeOf(image: EngineImage, codec: DeviceImageCodec): { width: number; height: number } {
  if (image instanceof Uint8Array) return codec.info(image);
  const argument = (good: boolean, message: () => string) => check(good, "image", message, ErrorCode.shape);
  if (image instanceof Tensor) {
    const { shape, dtype, device } = image;
    argument(
      shape.length === 3 && shape[2] === 3 && dtype === "u8",
      () => `expected a u8 tensor (height, width, 3), got ${dtype} (${shape.join(", ")})`,
    );
    argument(device === codec.device, () => "the tensor is on another device than the engine");
    return { width: shape[1] as number, height: shape[0] as number };
  }
  const isPixels = typeof image === "object" && image !== null && image.data instanceof Uint8Array;
  if (!isPixels) throw new DlfsError(ErrorCode.argument, "image", "expected a file's bytes, pixels or a tensor");
  const { width, height, data } = image;
  argument(
    [width, height].every((side) => Number.isSafeInteger(side) && side > 0),
    () => `expected a width and a height in pixels, got ${width} x ${height}`,
  );
  argument(
    data.byteLength === 3 * width * height,
    () => `expected ${width} x ${height} x 3 bytes, got ${data.byteLength}`,
  );
  return { width, height };
}

/**
 * Plans an image for an input of a size.
 *
 * @throws DlfsError of code `image` for bytes that are no image, of code `shape` for pixels of another size than they say
 */
export function planImage(
  image: EngineImage,
  codec: DeviceImageCodec,
  preprocessing: readonly PreprocessOp[],
  size: InputSize,
): PlannedImage {
  const { width, height } = sizeOf(image, codec);
  check(
    width * height <= MAX_PIXELS,
    "image",
    () => `${width} x ${height} pixels are more than the limit of 2^28`,
    ErrorCode.image,
  );
  const plan = planInput({ width, height }, preprocessing, size);
  return { image, width, height, toInput: mappingOf(plan), writeTransform: (out, i) => writeTransform(out, i, plan) };
}

/** The recorded image files of tests/golden/ops/images.json, and a device's answers to them. */
import { type Device, Tensor } from "../../lib/tensor";
import { missing } from "./device";
import { type GoldenCase, loadGolden } from "./golden";

/** What info() is to find: see dlfs_image_info_sync. */
export interface ImageParams {
  format: "jpeg" | "png" | "webp";
  components: number;
  bits: number;
  process: number;
  orientation: number;
}

/** `bytes` of a file and the `pixels` (height, width, 3) that Pillow decodes from it and turns upright. */
export type ImageCase = GoldenCase<ImageParams>;

export const imageCases = (): ImageCase[] => loadGolden<ImageParams>("images");

export const bytesOf = (golden: ImageCase) => golden.array("bytes") as Uint8Array<ArrayBuffer>;

export const sizeOf = (golden: ImageCase) =>
  golden.shape("pixels") as [height: number, width: number, channels: number];

/** Why a case's file cannot be decoded on this device; null where it can. */
export function lackOf(device: Device, { params }: ImageCase): string | null {
  const cmyk = params.format === "jpeg" && params.components === 4;
  return missing(device, "u8", [cmyk ? "jpeg.cmyk" : `${params.format}.decode`]);
}

export function decodeImage(device: Device, bytes: Uint8Array, height: number, width: number): Uint8Array {
  using pixels = Tensor.empty(device, [height, width, 3], "u8");
  device.native.imageDecodeSync(device.stream.handle, pixels.address, bytes, bytes.byteLength, width, height);
  return pixels.read() as Uint8Array;
}

/** The values of dlfs_image_info_sync. */
export function imageInfo(device: Device, bytes: Uint8Array): number[] {
  const values = new Int32Array(8);
  device.native.imageInfoSync(values, bytes, bytes.byteLength);
  return Array.from(values);
}

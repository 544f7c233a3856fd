/**
 * What the first bytes of an image file say of its size, before anything is decoded: a few hundred bytes can ask for gigabytes of
 * pixels. The engine reads the headers again, by the decoder's own library; this is a gate.
 */
import { looksLike } from "../data/image-file";
import { ServiceError } from "./types";

export interface HeaderSize {
  readonly width: number;
  readonly height: number;
}

/** @throws ServiceError 400 that begins with `at`: no image, none that can be decoded, or one of too many pixels */
export function checkImageFile(bytes: Uint8Array, at: string, maxPixels: number): void {
  if (bytes.length === 0) throw new ServiceError(400, `${at}: the image is empty`);
  const kind = looksLike(bytes);
  const read = kind === "JPEG" ? jpegSize : kind === "PNG" ? pngSize : kind === "WebP" ? webpSize : null;
  if (read === null) {
    throw new ServiceError(400, `${at}: expected a JPEG, PNG or WebP image, got ${kind ?? "something else"}`);
  }
  const size = read(bytes);
  if (size === null) throw new ServiceError(400, `${at}: the ${kind} image ends before its size, or is damaged there`);
  if (size.width === 0 || size.height === 0) {
    throw new ServiceError(400, `${at}: the ${kind} image has ${size.width} x ${size.height} pixels`);
  }
  checkPixels(size.width, size.height, at, maxPixels);
}

/** @throws ServiceError 400 that begins with `at` */
export function checkPixels(width: number, height: number, at: string, maxPixels: number): void {
  if (width * height <= maxPixels) return;
  throw new ServiceError(400, `${at}: ${width} x ${height} pixels are more than the limit of ${maxPixels}`);
}

const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The frame header of a JPEG (ITU-T T.81, B.2.2); null where the file ends, or is none, before it. */
function jpegSize(bytes: Uint8Array): HeaderSize | null {
  const data = view(bytes);
  let at = 2;
  while (at + 1 < bytes.length) {
    if (bytes[at] !== 0xff) {
      // Decoders look for the next marker, too.
      at = bytes.indexOf(0xff, at);
      if (at < 0) return null;
      continue;
    }
    const marker = bytes[at + 1] as number;
    if (marker === 0xff) {
      at++;
      continue;
    }
    if (marker === 0x00 || marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += 2;
      continue;
    }
    if (marker === 0xd9 || marker === 0xda) return null;
    const isFrame = marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc;
    if (isFrame)
      return at + 9 <= bytes.length ? { height: data.getUint16(at + 5), width: data.getUint16(at + 7) } : null;
    if (at + 4 > bytes.length) return null;
    at += 2 + Math.max(2, data.getUint16(at + 2));
  }
  return null;
}

function pngSize(bytes: Uint8Array): HeaderSize | null {
  if (bytes.length < 24) return null;
  const data = view(bytes);
  return data.getUint32(12) === 0x49484452 ? { width: data.getUint32(16), height: data.getUint32(20) } : null;
}

/** The canvas of an extended file, or the size of its one picture (RFC 9649). */
function webpSize(bytes: Uint8Array): HeaderSize | null {
  if (bytes.length < 30) return null;
  const data = view(bytes);
  const chunk = data.getUint32(12);
  const u24 = (at: number) => data.getUint16(at, true) | (data.getUint8(at + 2) << 16);
  if (chunk === 0x56503858) return { width: u24(24) + 1, height: u24(27) + 1 }; // "VP8X"
  if (chunk === 0x56503820) {
    const isKeyFrame = u24(23) === 0x2a019d;
    return isKeyFrame ? { width: data.getUint16(26, true) & 0x3fff, height: data.getUint16(28, true) & 0x3fff } : null;
  }
  if (chunk === 0x5650384c) {
    const bits = data.getUint32(21, true);
    return data.getUint8(20) === 0x2f ? { width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 } : null;
  }
  return null;
}

import type { ImageFormat } from "./codec";

const SIGNATURES: readonly (readonly [kind: string, bytes: readonly (number | null)[]])[] = [
  ["JPEG", [0xff, 0xd8, 0xff]],
  ["PNG", [0x89, 0x50, 0x4e, 0x47]],
  ["GIF", [0x47, 0x49, 0x46, 0x38]],
  ["WebP", [0x52, 0x49, 0x46, 0x46, null, null, null, null, 0x57, 0x45, 0x42, 0x50]],
  ["BMP", [0x42, 0x4d]],
  ["TIFF", [0x49, 0x49, 0x2a, 0x00]],
  ["TIFF", [0x4d, 0x4d, 0x00, 0x2a]],
  ["HEIF or AVIF", [null, null, null, null, 0x66, 0x74, 0x79, 0x70]],
  ["a Git LFS pointer", [0x76, 0x65, 0x72, 0x73, 0x69, 0x6f, 0x6e, 0x20, 0x68, 0x74, 0x74, 0x70]],
  ["HTML", [0x3c, 0x21]],
  ["HTML", [0x3c, 0x68, 0x74, 0x6d, 0x6c]],
];

/** The kind of file that these bytes start, or null where they start none of the known ones. */
export function looksLike(bytes: Uint8Array): string | null {
  const found = SIGNATURES.find(([, signature]) => startsWith(bytes, 0, signature));
  return found?.[0] ?? null;
}

/** What the formats that can be decoded are called. */
export const FORMAT_NAMES: Readonly<Record<ImageFormat, string>> = { jpeg: "JPEG", png: "PNG", webp: "WebP" };

/** Bytes at the end of a file that endsWell looks at. */
export const TAIL_BYTES = 12;

/** The end of a PNG: a chunk of no content named IEND, and its checksum. */
const PNG_END = [0, 0, 0, 0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82];

/**
 * Whether a file of `size` bytes is all there, by the bytes that it begins with and its last TAIL_BYTES; where these are in
 * doubt, as other bytes may come behind a picture, hasEnd tells by all of them.
 */
export function endsWell(format: ImageFormat, head: Uint8Array, tail: Uint8Array, size: number): boolean {
  if (format === "jpeg") return tail.at(-2) === 0xff && tail.at(-1) === 0xd9;
  if (format === "png") return startsWith(tail, 0, PNG_END);
  return riffSize(head) <= size;
}

/** Whether a file goes on to its end. */
export function hasEnd(format: ImageFormat, bytes: Uint8Array): boolean {
  if (format === "jpeg") return hasEndOfImage(bytes);
  return format === "png" ? hasEndChunk(bytes) : riffSize(bytes) <= bytes.length;
}

/**
 * Whether a JPEG goes on to its end-of-image marker (ITU-T T.81, annex B): segments are passed over by their lengths, so
 * that the end of a thumbnail inside one does not count, and coded data up to a marker.
 */
export function hasEndOfImage(bytes: Uint8Array): boolean {
  let at = 2;
  while (at + 1 < bytes.length) {
    if (bytes[at] !== 0xff) {
      // Coded data: a 0xff in it is followed by 0x00 unless it starts a marker.
      at = bytes.indexOf(0xff, at);
      if (at < 0) return false;
      continue;
    }
    const marker = bytes[at + 1] as number;
    if (marker === 0xd9) return true;
    if (marker === 0xff) {
      // Fill byte before a marker.
      at++;
    } else if (marker === 0x00 || marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += 2;
    } else {
      if (at + 3 >= bytes.length) return false;
      at += 2 + (((bytes[at + 2] as number) << 8) | (bytes[at + 3] as number));
    }
  }
  return false;
}

/** Whether a PNG's chunks go on to the one named IEND. */
function hasEndChunk(bytes: Uint8Array): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (startsWith(bytes, at + 4, PNG_END.slice(4, 8))) return true;
  }
  return false;
}

/** The size of a WebP file as its first chunk has it. */
function riffSize(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(4, true) + 8;
}

function startsWith(bytes: Uint8Array, at: number, start: readonly (number | null)[]): boolean {
  return start.every((byte, i) => byte === null || byte === bytes[at + i]);
}

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
  const found = SIGNATURES.find(([, signature]) => signature.every((byte, i) => byte === null || byte === bytes[i]));
  return found?.[0] ?? null;
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

/**
 * TensorFlow's record files, as TensorBoard's event files are: one record after the other, each
 *
 * | bytes  | value                                                |
 * |--------|------------------------------------------------------|
 * | 8      | length of the data, little-endian                    |
 * | 4      | masked CRC-32C of those 8 bytes                      |
 * | length | data                                                 |
 * | 4      | masked CRC-32C of the data                           |
 */
import { DlfsError, ErrorCode } from "../native/error";

/** For each byte, what it adds to the remainder of the polynomial 0x1EDC6F41 (Castagnoli), its bits reversed. */
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ 0x82f63b78 : rest >>> 1;
  return rest;
});

/** CRC-32C (RFC 3720, appendix B.4). */
export function crc32c(data: Uint8Array): number {
  let rest = 0xffffffff;
  for (let i = 0; i < data.length; i++) {
    rest = (TABLE[(rest ^ (data[i] as number)) & 255] as number) ^ (rest >>> 8);
  }
  return ~rest >>> 0;
}

/** A CRC as records keep it: turned and shifted, so that the CRC of data which contains CRCs is sound. */
function masked(crc: number): number {
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** Data with its frame. */
export function encodeTfRecord(data: Uint8Array): Uint8Array<ArrayBuffer> {
  const record = new Uint8Array(data.length + 16);
  const view = new DataView(record.buffer);
  view.setBigUint64(0, BigInt(data.length), true);
  view.setUint32(8, masked(crc32c(record.subarray(0, 8))), true);
  record.set(data, 12);
  view.setUint32(12 + data.length, masked(crc32c(data)), true);
  return record;
}

/**
 * The data of each record. An incomplete one at the end, which is being written or was cut by a kill, is left out.
 *
 * @param name of the file, for messages
 * @throws DlfsError for a record whose checksum is wrong
 */
export function* decodeTfRecords(file: Uint8Array, name: string): Generator<Uint8Array> {
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  for (let at = 0; at + 12 <= file.length; ) {
    const damaged = (what: string) =>
      new DlfsError(ErrorCode.io, name, `the record at byte ${at} is damaged: the checksum of its ${what} is wrong`);
    if (view.getUint32(at + 8, true) !== masked(crc32c(file.subarray(at, at + 8)))) throw damaged("length");
    const length = Number(view.getBigUint64(at, true));
    if (at + 16 + length > file.length) return;
    const data = file.subarray(at + 12, at + 12 + length);
    if (view.getUint32(at + 12 + length, true) !== masked(crc32c(data))) throw damaged("data");
    yield data;
    at += 16 + length;
  }
}

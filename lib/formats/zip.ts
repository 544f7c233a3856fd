/**
 * Zip archives whose entries are stored as they are, zip64 included (PKWARE's APPNOTE 6.3). That is what `torch.save`
 * writes; nothing here decompresses, so an archive cannot grow when read.
 */
import { DlfsError, ErrorCode } from "../native/error";
import type { FileBytes } from "./file-bytes";
import { quoteName } from "./weights";

/** A file inside the archive. */
export interface ZipEntry {
  name: string;
  /** Where its bytes begin in the archive. */
  offset: number;
  length: number;
  /** 0 for stored. */
  method: number;
  crc32: number;
}

const LOCAL_HEADER = 0x04034b50;
const CENTRAL_HEADER = 0x02014b50;
const END_RECORD = 0x06054b50;
const END_RECORD_64 = 0x06064b50;
const END_LOCATOR_64 = 0x07064b50;
const LOCAL_BYTES = 30;
const CENTRAL_BYTES = 46;
const END_BYTES = 22;
const END_BYTES_64 = 56;
const LOCATOR_BYTES = 20;
const MAX_COMMENT = 0xffff;
/** In a 16- or 32-bit field: the value is in the zip64 record. */
const IN_ZIP64_16 = 0xffff;
const IN_ZIP64_32 = 0xffffffff;

/**
 * All entries by name, folders left out.
 *
 * @throws DlfsError of code `io` for an archive that is truncated or damaged, `unsupported` for one that is encrypted
 *   or split
 */
export function readZipDirectory(file: FileBytes): Map<string, ZipEntry> {
  const end = findEnd(file);
  const directory = viewOf(file.slice(end.directoryOffset, end.directoryBytes, "zip directory"));
  const entries = new Map<string, ZipEntry>();
  const taken: { name: string; begin: number; end: number }[] = [];
  let at = 0;
  for (let i = 0; i < end.count; i++) {
    const field = `zip directory, entry ${i}`;
    if (at + CENTRAL_BYTES > directory.byteLength) throw damaged(file, `${field}: the directory ends before it`);
    if (directory.getUint32(at, true) !== CENTRAL_HEADER) throw damaged(file, `${field}: no entry begins here`);
    const nameBytes = directory.getUint16(at + 28, true);
    const extraBytes = directory.getUint16(at + 30, true);
    const next = at + CENTRAL_BYTES + nameBytes + extraBytes + directory.getUint16(at + 32, true);
    if (next > directory.byteLength) throw damaged(file, `${field}: it goes beyond the end of the directory`);
    const name = decodeName(file, field, directory, at + CENTRAL_BYTES, nameBytes);
    const what = `zip entry ${quoteName(name)}`;
    if (directory.getUint16(at + 8, true) & 1) throw unsupported(file, `${what} is encrypted`);
    const method = directory.getUint16(at + 10, true);
    const extra = sub(directory, at + CENTRAL_BYTES + nameBytes, extraBytes);
    const places = centralPlaces(file, what, directory, at, extra);
    if (method === 0 && places.stored !== places.length) {
      throw damaged(file, `${what}: ${places.length} bytes stored without compression take ${places.stored} bytes`);
    }
    const offset = dataOffset(file, what, places.header, name);
    if (offset + places.stored > end.directoryOffset) {
      throw damaged(file, `${what}: ${places.stored} bytes at ${offset} go beyond the directory`);
    }
    taken.push({ name, begin: places.header, end: offset + places.stored });
    if (entries.has(name)) throw damaged(file, `${what}: the name occurs twice`);
    if (!name.endsWith("/")) {
      entries.set(name, { name, offset, length: places.length, method, crc32: directory.getUint32(at + 16, true) });
    }
    at = next;
  }
  if (at !== directory.byteLength) {
    throw damaged(file, `zip directory: ${end.count} entries take ${at} bytes, it claims ${directory.byteLength}`);
  }
  checkOverlaps(file, taken);
  return entries;
}

/**
 * The bytes of an entry.
 *
 * @param verify compare the checksum
 * @param field what they are for, for messages
 * @throws DlfsError of code `io` where the checksum differs, `unsupported` for a compressed entry
 */
export function readZipEntry(file: FileBytes, entry: ZipEntry, verify: boolean, field = ""): Uint8Array<ArrayBuffer> {
  const what = `${field === "" ? "" : `${field}, `}zip entry ${quoteName(entry.name)}`;
  if (entry.method !== 0) {
    throw unsupported(file, `${what} is compressed (method ${entry.method}), only stored entries are read`);
  }
  const bytes = file.slice(entry.offset, entry.length, what);
  const checksum = verify ? Bun.hash.crc32(bytes) : entry.crc32;
  if (checksum !== entry.crc32) {
    const hex = (value: number) => value.toString(16).padStart(8, "0");
    throw damaged(file, `${what}: its checksum is ${hex(checksum)}, ${hex(entry.crc32)} was recorded`);
  }
  return bytes;
}

interface End {
  count: number;
  directoryOffset: number;
  directoryBytes: number;
}

/** The record at the end of the file that says where the directory is. */
function findEnd(file: FileBytes): End {
  const tailBytes = Math.min(file.size, END_BYTES + MAX_COMMENT);
  const tailOffset = file.size - tailBytes;
  const tail = viewOf(file.slice(tailOffset, tailBytes, "zip end record"));
  let at = tailBytes - END_BYTES;
  const isEnd = () =>
    tail.getUint32(at, true) === END_RECORD && at + END_BYTES + tail.getUint16(at + 20, true) === tailBytes;
  while (at >= 0 && !isEnd()) at--;
  if (at < 0) throw damaged(file, "zip end record: there is none, the file is truncated");
  let endOffset = tailOffset + at;
  let end: End = {
    count: tail.getUint16(at + 10, true),
    directoryBytes: tail.getUint32(at + 12, true),
    directoryOffset: tail.getUint32(at + 16, true),
  };
  let disks = tail.getUint16(at + 4, true) | tail.getUint16(at + 6, true);
  if (end.count === IN_ZIP64_16 || end.directoryBytes === IN_ZIP64_32 || end.directoryOffset === IN_ZIP64_32) {
    const wide = findEnd64(file, endOffset);
    endOffset = wide.offset;
    end = {
      count: end.count === IN_ZIP64_16 ? wide.count : end.count,
      directoryBytes: end.directoryBytes === IN_ZIP64_32 ? wide.directoryBytes : end.directoryBytes,
      directoryOffset: end.directoryOffset === IN_ZIP64_32 ? wide.directoryOffset : end.directoryOffset,
    };
    disks = wide.disks;
  }
  if (disks !== 0) throw unsupported(file, "the zip archive is split over several files");
  if (end.directoryOffset + end.directoryBytes > endOffset) {
    const place = `${end.directoryBytes} bytes at ${end.directoryOffset}`;
    throw damaged(file, `zip directory: ${place} go beyond the end record at ${endOffset}`);
  }
  return end;
}

function findEnd64(file: FileBytes, endOffset: number): End & { offset: number; disks: number } {
  const locatorOffset = endOffset - LOCATOR_BYTES;
  if (locatorOffset < 0) throw damaged(file, "zip64 locator: there is none");
  const locator = viewOf(file.slice(locatorOffset, LOCATOR_BYTES, "zip64 locator"));
  if (locator.getUint32(0, true) !== END_LOCATOR_64) throw damaged(file, "zip64 locator: there is none");
  const offset = u64(file, "zip64 locator", locator, 8);
  if (offset + END_BYTES_64 > locatorOffset) throw damaged(file, `zip64 end record: ${offset} is beyond its locator`);
  const record = viewOf(file.slice(offset, END_BYTES_64, "zip64 end record"));
  if (record.getUint32(0, true) !== END_RECORD_64) throw damaged(file, "zip64 end record: there is none");
  return {
    offset,
    disks: record.getUint32(16, true) | record.getUint32(20, true),
    count: u64(file, "zip64 end record", record, 32),
    directoryBytes: u64(file, "zip64 end record", record, 40),
    directoryOffset: u64(file, "zip64 end record", record, 48),
  };
}

/** Sizes and place of an entry, from the zip64 field where the 32-bit ones say so. */
function centralPlaces(file: FileBytes, what: string, directory: DataView, at: number, extra: DataView) {
  const wide = findExtra64(extra);
  let used = 0;
  const read = (value: number) => {
    if (value !== IN_ZIP64_32) return value;
    if (!wide || used + 8 > wide.byteLength) throw damaged(file, `${what}: its zip64 field is missing or too short`);
    used += 8;
    return u64(file, what, wide, used - 8);
  };
  // The field holds only what the header lacks, in this order.
  const length = read(directory.getUint32(at + 24, true));
  const stored = read(directory.getUint32(at + 20, true));
  const header = read(directory.getUint32(at + 42, true));
  return { length, stored, header };
}

function findExtra64(extra: DataView): DataView | undefined {
  for (let at = 0; at + 4 <= extra.byteLength; ) {
    const bytes = extra.getUint16(at + 2, true);
    if (at + 4 + bytes > extra.byteLength) return undefined;
    if (extra.getUint16(at, true) === 1) return sub(extra, at + 4, bytes);
    at += 4 + bytes;
  }
  return undefined;
}

/** The local header is padded as it likes, so only it says where the data begins. */
function dataOffset(file: FileBytes, what: string, header: number, name: string): number {
  const local = viewOf(file.slice(header, LOCAL_BYTES, `${what}, local header`));
  if (local.getUint32(0, true) !== LOCAL_HEADER) throw damaged(file, `${what}: there is no local header at ${header}`);
  const nameBytes = local.getUint16(26, true);
  const localName = viewOf(file.slice(header + LOCAL_BYTES, nameBytes, `${what}, local name`));
  const found = decodeName(file, what, localName, 0, nameBytes);
  if (found !== name) throw damaged(file, `${what}: its local header names it ${quoteName(found)}`);
  return header + LOCAL_BYTES + nameBytes + local.getUint16(28, true);
}

function checkOverlaps(file: FileBytes, taken: { name: string; begin: number; end: number }[]): void {
  taken.sort((a, b) => a.begin - b.begin);
  for (let i = 1; i < taken.length; i++) {
    const before = taken[i - 1]!;
    const entry = taken[i]!;
    if (entry.begin < before.end) {
      throw damaged(file, `zip entry ${quoteName(entry.name)}: it overlaps ${quoteName(before.name)}`);
    }
  }
}

function decodeName(file: FileBytes, field: string, view: DataView, at: number, length: number): string {
  const bytes = new Uint8Array(view.buffer as ArrayBuffer, view.byteOffset + at, length);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw damaged(file, `${field}: its name is not UTF-8`);
  }
}

function u64(file: FileBytes, field: string, view: DataView, at: number): number {
  const value = view.getBigUint64(at, true);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged(file, `${field}: ${value} is beyond 2^53`);
  return Number(value);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function sub(view: DataView, at: number, length: number): DataView {
  return new DataView(view.buffer, view.byteOffset + at, length);
}

function damaged(file: FileBytes, message: string): DlfsError {
  return new DlfsError(ErrorCode.io, file.path, `damaged: ${message}`);
}

function unsupported(file: FileBytes, message: string): DlfsError {
  return new DlfsError(ErrorCode.unsupported, file.path, message);
}

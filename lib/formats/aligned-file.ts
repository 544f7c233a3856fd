/**
 * A file of raw, 64-byte-aligned sections with an index behind them, written in one pass. All numbers little-endian:
 *
 * | bytes          | content                                                                                    |
 * |----------------|--------------------------------------------------------------------------------------------|
 * | 0 .. 8         | magic, eight ASCII characters                                                              |
 * | 8 .. 12        | u32 format version, from 1                                                                 |
 * | 12 .. 16       | u32 zero                                                                                   |
 * | 16 .. 24       | u64 offset of the index, a multiple of 64                                                  |
 * | 24 .. 32       | u64 length of the index, which ends the file                                               |
 * | 32 .. 40       | u64 xxHash64 of the index                                                                  |
 * | 40 .. 48       | u64 length of the file                                                                     |
 * | 48 .. 56       | u64 zero                                                                                   |
 * | 56 .. 64       | u64 xxHash64 of bytes 0 .. 56                                                              |
 * | 64 ..          | sections, each from a multiple of 64, padded with zeros                                    |
 * | index offset   | the index, which says what the sections are and holds their checksums                      |
 *
 * Sections can be memory-mapped. The header keeps this layout in every version, so that a reader can tell a newer file
 * from a damaged one. xxHash64 has seed 0.
 */

import type { FileHandle } from "node:fs/promises";
import { open } from "node:fs/promises";
import { DlfsError, ErrorCode } from "../native/error";
import { AtomicFile, fileError } from "./atomic-file";

export const SECTION_ALIGNMENT = 64;
const HEADER_BYTES = 64;
const HEADER_CHECKSUM_AT = 56;
/** Flatbuffers address their bytes with signed 32-bit offsets. */
const MAX_INDEX_BYTES = 2 ** 31 - 1;
const CHUNK_BYTES = 64 * 1024 * 1024;

export interface AlignedFormat {
  /** Eight ASCII characters. */
  magic: string;
  /** The version written, and the newest one read. */
  version: number;
  /** What to call such a file in messages: "checkpoint". */
  what: string;
}

/** A place in the file, and what its bytes hash to. */
export interface Section {
  /** Bytes from the start of the file. */
  offset: number;
  /** Bytes, without padding. */
  length: number;
  checksum: bigint;
}

/** xxHash64 with seed 0. */
export function checksumOf(data: Uint8Array): bigint {
  return Bun.hash.xxHash64(data, 0n);
}

export function alignUp(offset: number): number {
  return Math.ceil(offset / SECTION_ALIGNMENT) * SECTION_ALIGNMENT;
}

/** The file is damaged: its bytes are not what was written. */
export function damaged(path: string, field: string, message: string): DlfsError {
  return new DlfsError(ErrorCode.io, path, `damaged: ${field}: ${message}`);
}

/** Writes such a file in one pass and in constant memory; ends with exactly one `commit()` or `abort()`. */
export class AlignedFileWriter {
  private constructor(
    private readonly file: AtomicFile,
    private readonly format: AlignedFormat,
  ) {}

  static async create(path: string, format: AlignedFormat): Promise<AlignedFileWriter> {
    const file = await AtomicFile.create(path);
    const writer = new AlignedFileWriter(file, format);
    // The true header is written last: until then the file has no magic and is no file of this kind.
    await writer.guard(() => file.append(new Uint8Array(HEADER_BYTES)));
    return writer;
  }

  /** Appends one section. `data` must not change until the promise is fulfilled, and is not kept after it. */
  async append(data: Uint8Array): Promise<Section> {
    return await this.guard(async () => {
      await this.pad();
      const section = { offset: this.file.length, length: data.length, checksum: checksumOf(data) };
      await this.file.append(data);
      return section;
    });
  }

  /** Writes index and header and puts the file in its place. */
  async commit(index: Uint8Array): Promise<void> {
    await this.guard(async () => {
      if (index.length > MAX_INDEX_BYTES) {
        throw new DlfsError(
          ErrorCode.argument,
          this.file.path,
          `the index of this ${this.format.what} has ${index.length} bytes, more than ${MAX_INDEX_BYTES}`,
        );
      }
      await this.pad();
      const offset = this.file.length;
      await this.file.append(index);
      // The body is on the disk before a header says so.
      await this.file.sync();
      const header = encodeHeader(this.format, offset, index, this.file.length);
      await this.file.writeAt(header, 0);
    });
    await this.file.commit();
  }

  async abort(): Promise<void> {
    await this.file.abort();
  }

  private async pad(): Promise<void> {
    const padding = alignUp(this.file.length) - this.file.length;
    if (padding > 0) await this.file.append(new Uint8Array(padding));
  }

  /** A failed write leaves nothing behind. */
  private async guard<T>(action: () => Promise<T>): Promise<T> {
    try {
      return await action();
    } catch (error) {
      await this.file.abort();
      throw error;
    }
  }
}

function encodeHeader(format: AlignedFormat, indexOffset: number, index: Uint8Array, length: number): Uint8Array {
  const header = new Uint8Array(HEADER_BYTES);
  const view = new DataView(header.buffer);
  for (let i = 0; i < 8; i++) header[i] = format.magic.charCodeAt(i);
  view.setUint32(8, format.version, true);
  view.setBigUint64(16, BigInt(indexOffset), true);
  view.setBigUint64(24, BigInt(index.length), true);
  view.setBigUint64(32, checksumOf(index), true);
  view.setBigUint64(40, BigInt(length), true);
  view.setBigUint64(HEADER_CHECKSUM_AT, checksumOf(header.subarray(0, HEADER_CHECKSUM_AT)), true);
  return header;
}

/** An open file of this kind: index in memory, sections read on demand. */
export class AlignedFileReader {
  private constructor(
    readonly path: string,
    private readonly handle: FileHandle,
    readonly version: number,
    /** The index's bytes; their checksum was right. */
    readonly index: Uint8Array,
    /** Where sections end and the index begins. */
    readonly sectionsEnd: number,
  ) {}

  /**
   * Opens and checks header and index.
   *
   * @throws DlfsError of code `io` for a file that is missing, damaged or of another kind, and of code `unsupported`
   *   for an intact file of a newer version, or one written in big-endian order
   */
  static async open(path: string, format: AlignedFormat): Promise<AlignedFileReader> {
    let handle: FileHandle;
    try {
      handle = await open(path, "r");
    } catch (error) {
      throw fileError(path, `open the ${format.what}`, error);
    }
    try {
      return await AlignedFileReader.load(path, handle, format);
    } catch (error) {
      await handle.close().catch(() => undefined);
      throw fileError(path, `read the ${format.what}`, error);
    }
  }

  private static async load(path: string, handle: FileHandle, format: AlignedFormat): Promise<AlignedFileReader> {
    const status = await handle.stat();
    if (!status.isFile()) throw new DlfsError(ErrorCode.io, path, `a ${format.what} is a file, this is none`);
    const header = decodeHeader(path, await readHeader(path, handle, status.size), format, status.size);
    const index = new Uint8Array(header.indexLength);
    await readFully(path, handle, index, header.indexOffset, "index");
    const checksum = checksumOf(index);
    if (checksum !== header.indexChecksum)
      throw damaged(path, "index", checksumMessage(header.indexChecksum, checksum));
    return new AlignedFileReader(path, handle, header.version, index, header.indexOffset);
  }

  /**
   * Reads one section into `into` (at least as long; default: a new array) and compares its checksum.
   *
   * @param section a place that lies within the file's sections
   * @param field what to call it in messages
   * @returns the bytes, a view of `into` where that was given
   */
  async read(section: Section, field: string, into?: Uint8Array): Promise<Uint8Array> {
    if (into && into.length < section.length) {
      throw new DlfsError(
        ErrorCode.argument,
        this.path,
        `${field}: has ${section.length} bytes, the buffer for them has ${into.length}`,
      );
    }
    const data = await this.readRaw(section.offset, section.length, field, into);
    const checksum = checksumOf(data);
    if (checksum !== section.checksum) throw damaged(this.path, field, checksumMessage(section.checksum, checksum));
    return data;
  }

  /** Reads bytes that have no checksum, such as padding. The place must lie within the file. */
  async readRaw(offset: number, length: number, field: string, into?: Uint8Array): Promise<Uint8Array> {
    const data = into ? into.subarray(0, length) : new Uint8Array(length);
    try {
      await readFully(this.path, this.handle, data, offset, field);
    } catch (error) {
      throw fileError(this.path, `read ${field}`, error);
    }
    return data;
  }

  async close(): Promise<void> {
    await this.handle.close();
  }
}

async function readHeader(path: string, handle: FileHandle, size: number): Promise<Uint8Array> {
  if (size < HEADER_BYTES) {
    throw damaged(path, "header", `the file has ${size} bytes, the header alone takes ${HEADER_BYTES}`);
  }
  const header = new Uint8Array(HEADER_BYTES);
  await readFully(path, handle, header, 0, "header");
  return header;
}

function decodeHeader(path: string, header: Uint8Array, format: AlignedFormat, size: number) {
  const view = new DataView(header.buffer);
  const magic = String.fromCharCode(...header.subarray(0, 8));
  if (magic !== format.magic) {
    const found = header.subarray(0, 8).every((byte) => byte >= 32 && byte < 127)
      ? `"${magic}"`
      : `bytes ${header.subarray(0, 8).toHex()}`;
    throw damaged(path, "magic", `a ${format.what} starts with "${format.magic}", this file with ${found}`);
  }
  // Versions are small numbers: one whose bytes make sense only from the other end is of a big-endian writer.
  if (view.getUint32(8, true) > 0xffff && view.getUint32(8, false) - 1 < 0xffff) {
    const bytes = header.subarray(8, 12).toHex();
    throw new DlfsError(
      ErrorCode.unsupported,
      path,
      `byte order: expected little-endian numbers, got big-endian ones (format version: bytes ${bytes})`,
    );
  }
  const checksum = checksumOf(header.subarray(0, HEADER_CHECKSUM_AT));
  const stored = view.getBigUint64(HEADER_CHECKSUM_AT, true);
  if (checksum !== stored) throw damaged(path, "header", checksumMessage(stored, checksum));
  const version = view.getUint32(8, true);
  if (version > format.version) {
    throw new DlfsError(
      ErrorCode.unsupported,
      path,
      `format version: a newer dlfs wrote version ${version} of the ${format.what} format, ` +
        `this one reads up to ${format.version}; update dlfs`,
    );
  }
  if (version === 0) throw damaged(path, "format version", "expected 1 or more, got 0");
  const field = (name: string, at: number) => {
    const value = view.getBigUint64(at, true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged(path, name, `${value} is beyond 2^53`);
    return Number(value);
  };
  const length = field("file length", 40);
  if (size !== length) {
    const what = size < length ? "truncated" : "followed by foreign bytes";
    throw damaged(path, "file length", `expected ${length} bytes, the file has ${size}: it is ${what}`);
  }
  const indexOffset = field("index offset", 16);
  const indexLength = field("index length", 24);
  if (indexOffset < HEADER_BYTES || indexOffset % SECTION_ALIGNMENT !== 0 || indexOffset > length) {
    throw damaged(
      path,
      "index offset",
      `expected a multiple of ${SECTION_ALIGNMENT} in ${HEADER_BYTES} .. ${length}, got ${indexOffset}`,
    );
  }
  if (indexLength !== length - indexOffset || indexLength > MAX_INDEX_BYTES) {
    throw damaged(
      path,
      "index length",
      `the index at ${indexOffset} ends the file of ${length} bytes, but claims ${indexLength} bytes`,
    );
  }
  return { version, indexOffset, indexLength, indexChecksum: view.getBigUint64(32, true) };
}

/** Fills `into` from `offset`; an end of the file before that is damage. */
async function readFully(path: string, handle: FileHandle, into: Uint8Array, offset: number, field: string) {
  for (let done = 0; done < into.length; ) {
    const size = Math.min(CHUNK_BYTES, into.length - done);
    const { bytesRead } = await handle.read(into, done, size, offset + done);
    if (bytesRead === 0) {
      throw damaged(path, field, `expected ${into.length} bytes at ${offset}, the file ends after ${done} of them`);
    }
    done += bytesRead;
  }
}

function checksumMessage(expected: bigint, actual: bigint): string {
  const hex = (value: bigint) => value.toString(16).padStart(16, "0");
  return `its checksum is ${hex(actual)}, ${hex(expected)} was recorded`;
}

import { type FileHandle, mkdir, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { createInflateRaw, inflateRaw, crc32 as updateCrc } from "node:zlib";
import { DlfsError, ErrorCode } from "../native/error";
import { fileError } from "./local-data-source";

/** A file in an archive. */
export interface ZipEntry {
  name: string;
  /** Bytes when unpacked, and as stored. */
  size: number;
  stored: number;
  crc32: number;
  /** 0 stored, 8 deflated. */
  method: number;
  /** Where its local header begins. */
  offset: number;
}

const END = 0x06054b50;
const END_64 = 0x06064b50;
const LOCATOR_64 = 0x07064b50;
const CENTRAL = 0x02014b50;
const LOCAL = 0x04034b50;

/** Entries up to this size are unpacked in memory, larger ones piece by piece. */
const IN_MEMORY = 8 << 20;
const PIECE = 1 << 20;

/** Reads ZIP archives, also those beyond 4 GiB (PKWARE's APPNOTE 6.3: stored or deflated, not encrypted, in one part). */
export class ZipArchive implements AsyncDisposable {
  private constructor(
    readonly path: string,
    readonly entries: readonly ZipEntry[],
    readonly file: FileHandle,
  ) {}

  /** Reads an archive's directory; folders in it are left out. */
  static async open(path: string): Promise<ZipArchive> {
    let file: FileHandle | null = null;
    try {
      file = await open(path, "r");
      return new ZipArchive(path, await readDirectory(file, path), file);
    } catch (error) {
      await file?.close();
      throw fileError("ZipArchive", path, error);
    }
  }

  /**
   * Writes an entry to a file, which appears when it is complete: it has the size and the checksum that the archive's directory
   * says.
   */
  async extract(entry: ZipEntry, path: string, signal?: AbortSignal): Promise<void> {
    const partial = `${path}.partial`;
    try {
      await mkdir(dirname(path), { recursive: true });
      {
        await using output = await open(partial, "w");
        const start = await this.#dataStart(entry);
        const found = { size: 0, crc32: 0 };
        const write = async (bytes: Uint8Array): Promise<void> => {
          signal?.throwIfAborted();
          found.size += bytes.length;
          found.crc32 = updateCrc(bytes, found.crc32);
          if (found.size > entry.size) throw damaged(this.path, `${entry.name}: more than ${entry.size} bytes`);
          await output.writeFile(bytes);
        };
        if (entry.size <= IN_MEMORY && entry.stored <= IN_MEMORY) {
          const stored = await readAt(this.file, start, entry.stored, this.path);
          await write(entry.method === 0 ? stored : await inflated(stored, entry, this.path));
        } else {
          for await (const bytes of this.#unpacked(entry, start)) await write(bytes);
        }
        if (found.size !== entry.size || found.crc32 !== entry.crc32) {
          const sums = `checksum ${hex(found.crc32)} and ${found.size} bytes`;
          throw damaged(this.path, `${entry.name}: ${sums}, expected ${hex(entry.crc32)} and ${entry.size}`);
        }
      }
      await rename(partial, path);
    } catch (error) {
      await rm(partial, { force: true }).catch(() => {}); // what failed first is what to report
      if (signal?.aborted) throw signal.reason;
      throw fileError("ZipArchive.extract", path, error);
    }
  }

  /** Where an entry's bytes begin: behind its local header, whose length differs from that in the directory. */
  async #dataStart(entry: ZipEntry): Promise<number> {
    const header = viewOf(await readAt(this.file, entry.offset, 30, this.path));
    if (header.getUint32(0, true) !== LOCAL)
      throw damaged(this.path, `${entry.name}: no header at byte ${entry.offset}`);
    return entry.offset + 30 + header.getUint16(26, true) + header.getUint16(28, true);
  }

  async *#unpacked(entry: ZipEntry, start: number): AsyncIterable<Uint8Array> {
    const { file, path } = this;
    async function* pieces(): AsyncIterable<Uint8Array> {
      for (let at = 0; at < entry.stored; at += PIECE) {
        yield await readAt(file, start + at, Math.min(PIECE, entry.stored - at), path);
      }
    }
    if (entry.method === 0) {
      yield* pieces();
      return;
    }
    const inflater = createInflateRaw({ chunkSize: PIECE });
    // Ends by itself, or with the inflater; what it could not feed shows in the size and the checksum.
    void (async () => {
      for await (const piece of pieces()) {
        if (!inflater.write(piece)) await new Promise((resolve) => inflater.once("drain", resolve));
      }
      inflater.end();
    })().catch((error: Error) => inflater.destroy(error));
    try {
      yield* inflater as AsyncIterable<Uint8Array>;
    } catch (error) {
      throw error instanceof DlfsError ? error : damaged(path, `${entry.name}: ${(error as Error).message}`);
    } finally {
      inflater.destroy();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file.close();
  }
}

function damaged(path: string, what: string): DlfsError {
  return new DlfsError(ErrorCode.io, "ZipArchive", `${path}: ${what}`);
}

const hex = (sum: number): string => sum.toString(16).padStart(8, "0");

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

async function readAt(file: FileHandle, start: number, length: number, path: string): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length);
  for (let filled = 0; filled < length; ) {
    const { bytesRead } = await file.read(bytes, filled, length - filled, start + filled);
    if (bytesRead === 0) throw damaged(path, `ends at byte ${start + filled}, expected ${length - filled} more`);
    filled += bytesRead;
  }
  return bytes;
}

function inflated(stored: Uint8Array, entry: ZipEntry, path: string): Promise<Uint8Array> {
  // One byte more than announced is enough to notice that there are more.
  return new Promise((resolve, reject) => {
    inflateRaw(stored, { maxOutputLength: entry.size + 1 }, (error, bytes) => {
      if (error) reject(damaged(path, `${entry.name}: ${error.message}`));
      else resolve(bytes);
    });
  });
}

async function readDirectory(file: FileHandle, path: string): Promise<ZipEntry[]> {
  const { size } = await file.stat();
  // The end record is followed by a comment of up to 65,535 bytes.
  const tailStart = Math.max(0, size - 65_557);
  const tail = viewOf(await readAt(file, tailStart, size - tailStart, path));
  let at = tail.byteLength - 22;
  while (at >= 0 && tail.getUint32(at, true) !== END) at--;
  if (at < 0) throw damaged(path, "not a ZIP archive, or cut off: it has no end record");
  let count = tail.getUint16(at + 10, true);
  let length = tail.getUint32(at + 12, true);
  let start = tail.getUint32(at + 16, true);
  if (at >= 20 && tail.getUint32(at - 20, true) === LOCATOR_64) {
    const place = Number(tail.getBigUint64(at - 12, true));
    const end = viewOf(await readAt(file, place, 56, path));
    if (end.getUint32(0, true) !== END_64) throw damaged(path, `no 64-bit end record at byte ${place}`);
    count = Number(end.getBigUint64(32, true));
    length = Number(end.getBigUint64(40, true));
    start = Number(end.getBigUint64(48, true));
  }
  if (start + length > size) throw damaged(path, `its directory ends at byte ${start + length} of ${size}`);
  const bytes = await readAt(file, start, length, path);
  const view = viewOf(bytes);
  const entries: ZipEntry[] = [];
  let offset = 0;
  for (let i = 0; i < count; i++) {
    if (offset + 46 > length || view.getUint32(offset, true) !== CENTRAL) {
      throw damaged(path, `its directory has ${i} of ${count} entries`);
    }
    const nameLength = view.getUint16(offset + 28, true);
    const extraLength = view.getUint16(offset + 30, true);
    const next = offset + 46 + nameLength + extraLength + view.getUint16(offset + 32, true);
    if (next > length) throw damaged(path, `entry ${i} of its directory is cut off`);
    const name = new TextDecoder().decode(bytes.subarray(offset + 46, offset + 46 + nameLength));
    const method = view.getUint16(offset + 10, true);
    if (view.getUint16(offset + 8, true) & 1) throw damaged(path, `${name}: is encrypted`);
    if (method !== 0 && method !== 8) throw damaged(path, `${name}: compression method ${method} is not supported`);
    const extra = new DataView(bytes.buffer, bytes.byteOffset + offset + 46 + nameLength, extraLength);
    const entry = { name, method, crc32: view.getUint32(offset + 16, true), ...sizesOf(view, offset, extra) };
    if (!name.endsWith("/")) entries.push(entry);
    offset = next;
  }
  return entries;
}

/** Sizes and place of an entry; where 32 bits do not hold them, they are in an extra field, in this order. */
function sizesOf(view: DataView, offset: number, extra: DataView): Pick<ZipEntry, "size" | "stored" | "offset"> {
  const values = [
    view.getUint32(offset + 24, true),
    view.getUint32(offset + 20, true),
    view.getUint32(offset + 42, true),
  ];
  for (let at = 0; at + 4 <= extra.byteLength; at += 4 + extra.getUint16(at + 2, true)) {
    if (extra.getUint16(at, true) !== 1) continue;
    let place = at + 4;
    for (const [i, value] of values.entries()) {
      if (value !== 0xffffffff || place + 8 > extra.byteLength) continue;
      values[i] = Number(extra.getBigUint64(place, true));
      place += 8;
    }
  }
  const [size, stored, start] = values as [number, number, number];
  return { size, stored, offset: start };
}

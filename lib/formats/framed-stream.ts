/**
 * A stream of messages, appended one by one and readable while it grows: in files, and frame by frame over sockets. All numbers
 * little-endian. A file begins with
 *
 * | bytes    | content                                                        |
 * |----------|----------------------------------------------------------------|
 * | 0 .. 8   | magic, eight ASCII characters                                  |
 * | 8 .. 12  | u32 format version, from 1                                     |
 * | 12 .. 16 | u32 the lower half of the xxHash64 of bytes 0 .. 12            |
 *
 * and goes on with frames, each from a multiple of 8:
 *
 * | bytes    | content                                                        |
 * |----------|----------------------------------------------------------------|
 * | 0 .. 4   | kind of the message, four ASCII characters                     |
 * | 4 .. 8   | u32 length of the message                                      |
 * | 8 .. 16  | u64 xxHash64 of bytes 0 .. 8 and of the message behind them    |
 * | 16 ..    | the message, padded with zeros to a multiple of 8              |
 *
 * xxHash64 has seed 0. A file may end within a frame: its writer has not come further, or was killed, and the next one to append
 * writes over it. Whatever else is wrong is damage.
 */
import { type FileHandle, open } from "node:fs/promises";
import { check, DlfsError, ErrorCode } from "../native/error";
import { checksumOf, damaged } from "./aligned-file";
import { AtomicFile, fileError } from "./atomic-file";

const HEADER_BYTES = 16;
const FRAME_BYTES = 16;
/** No message is longer: a damaged length must not claim the memory of the machine. */
const MAX_MESSAGE_BYTES = 2 ** 28;
const READ_BYTES = 1 << 20;
const WRITE_BYTES = 1 << 20;

export interface FramedFormat {
  /** Eight ASCII characters. */
  magic: string;
  /** The version written, and the newest one read. */
  version: number;
  /** What to call such a file in messages: "predictions file". */
  what: string;
}

export interface Frame {
  /** Four ASCII characters. */
  kind: string;
  message: Uint8Array;
}

const padded = (length: number): number => Math.ceil(length / 8) * 8;

/** A message as a frame. */
export function encodeFrame({ kind, message }: Frame): Uint8Array {
  check(/^[\x21-\x7e]{4}$/.test(kind), "frame", () => `kind: expected four ASCII characters, got "${kind}"`);
  check(
    message.length <= MAX_MESSAGE_BYTES,
    "frame",
    () => `${message.length} bytes are more than the limit of ${MAX_MESSAGE_BYTES}`,
  );
  const frame = new Uint8Array(FRAME_BYTES + padded(message.length));
  const view = new DataView(frame.buffer);
  for (let i = 0; i < 4; i++) frame[i] = kind.charCodeAt(i);
  view.setUint32(4, message.length, true);
  frame.set(message, FRAME_BYTES);
  view.setBigUint64(8, frameChecksum(frame, message.length), true);
  return frame;
}

function frameChecksum(frame: Uint8Array, length: number): bigint {
  const head = checksumOf(frame.subarray(0, 8));
  return Bun.hash.xxHash64(frame.subarray(FRAME_BYTES, FRAME_BYTES + length), head);
}

/**
 * The frame at `offset` of some bytes, a copy, and where the next one begins; null where they end before it does. `source` and
 * `at` say in messages where the bytes are from.
 *
 * @throws DlfsError of code `io` where it is damaged
 */
export function decodeFrame(
  bytes: Uint8Array,
  offset: number,
  source: string,
  at = offset,
): { frame: Frame; next: number } | null {
  if (bytes.length - offset < FRAME_BYTES) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, bytes.length - offset);
  const length = view.getUint32(4, true);
  const field = `frame at ${at}`;
  if (length > MAX_MESSAGE_BYTES) {
    throw damaged(source, field, `it claims ${length} bytes, the limit is ${MAX_MESSAGE_BYTES}`);
  }
  const end = offset + FRAME_BYTES + padded(length);
  if (bytes.length < end) return null;
  const frame = bytes.subarray(offset, end);
  const [found, recorded] = [frameChecksum(frame, length), view.getBigUint64(8, true)];
  if (found !== recorded) {
    const [is, was] = [found, recorded].map((value) => value.toString(16).padStart(16, "0"));
    throw damaged(source, field, `its checksum is ${is}, ${was} was recorded`);
  }
  const kind = String.fromCharCode(...frame.subarray(0, 4));
  return { frame: { kind, message: frame.slice(FRAME_BYTES, FRAME_BYTES + length) }, next: end };
}

function encodeHeader({ magic, version }: FramedFormat): Uint8Array {
  const header = new Uint8Array(HEADER_BYTES);
  const view = new DataView(header.buffer);
  for (let i = 0; i < 8; i++) header[i] = magic.charCodeAt(i);
  view.setUint32(8, version, true);
  view.setUint32(12, Number(checksumOf(header.subarray(0, 12)) & 0xffffffffn), true);
  return header;
}

function checkHeader(path: string, header: Uint8Array, format: FramedFormat): void {
  const magic = String.fromCharCode(...header.subarray(0, 8));
  if (magic !== format.magic) {
    const found = /^[\x20-\x7e]*$/.test(magic) ? `"${magic}"` : `bytes ${header.subarray(0, 8).toHex()}`;
    throw damaged(path, "magic", `a ${format.what} starts with "${format.magic}", this file with ${found}`);
  }
  const view = new DataView(header.buffer, header.byteOffset, HEADER_BYTES);
  const checksum = Number(checksumOf(header.subarray(0, 12)) & 0xffffffffn);
  if (view.getUint32(12, true) !== checksum) throw damaged(path, "header", "its checksum is another");
  const version = view.getUint32(8, true);
  if (version > format.version) {
    throw new DlfsError(
      ErrorCode.unsupported,
      path,
      `format version: a newer dlfs wrote version ${version} of the ${format.what} format, this one reads up to ${format.version}; update dlfs`,
    );
  }
}

/** A file of frames that is read, from its beginning to where it ends now; reading may go on when it has grown. */
export class FramedFileReader implements AsyncDisposable {
  /** Where the next frame begins. */
  #position: number;
  #buffer: Uint8Array = new Uint8Array(0);

  private constructor(
    readonly path: string,
    private readonly handle: FileHandle,
    private readonly format: FramedFormat,
    from: number,
  ) {
    this.#position = from;
  }

  /**
   * @param from where to begin: another reader's position, or 0
   * @throws DlfsError naming the file where it is missing
   */
  static async open(path: string, format: FramedFormat, from = 0): Promise<FramedFileReader> {
    try {
      return new FramedFileReader(path, await open(path, "r"), format, from);
    } catch (error) {
      throw fileError(path, `open the ${format.what}`, error);
    }
  }

  /** Bytes that hold whole frames, header included; what follows is not complete. */
  get position(): number {
    return this.#position;
  }

  /**
   * The frames from where the last call ended to the end of the file.
   *
   * @throws DlfsError of code `io` naming file and place where a frame is damaged, of code `unsupported` for a newer version
   */
  async *frames(): AsyncGenerator<Frame> {
    if (this.#position === 0) {
      const header = new Uint8Array(HEADER_BYTES);
      // Its writer has not come to the end of it.
      if ((await this.#read(header, 0)) < HEADER_BYTES) return;
      checkHeader(this.path, header, this.format);
      this.#position = HEADER_BYTES;
    }
    this.#buffer = new Uint8Array(0);
    for (let used = 0, size = READ_BYTES; ; ) {
      const found = decodeFrame(this.#buffer, used, this.path, this.#position);
      if (found) {
        this.#position += found.next - used;
        used = found.next;
        size = READ_BYTES;
        yield found.frame;
        continue;
      }
      // More of it: a frame that is longer than what was read takes twice as much each time.
      const rest = this.#buffer.subarray(used);
      const grown = new Uint8Array(rest.length + size);
      grown.set(rest);
      const got = await this.#read(grown.subarray(rest.length), this.#position + rest.length);
      if (got === 0) return;
      this.#buffer = grown.subarray(0, rest.length + got);
      used = 0;
      size *= 2;
    }
  }

  async #read(into: Uint8Array, offset: number): Promise<number> {
    try {
      let done = 0;
      while (done < into.length) {
        const { bytesRead } = await this.handle.read(into, done, into.length - done, offset + done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      return done;
    } catch (error) {
      throw fileError(this.path, `read the ${this.format.what}`, error);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.handle.close();
  }
}

/** Appends frames to a file. */
export class FramedFileWriter implements AsyncDisposable {
  private constructor(
    readonly path: string,
    private readonly handle: FileHandle,
    private readonly format: FramedFormat,
    private end: number,
  ) {}

  /** Bytes of the file. */
  get position(): number {
    return this.end;
  }

  /** Starts a file; one that is there is an error. */
  static async create(path: string, format: FramedFormat): Promise<FramedFileWriter> {
    return await FramedFileWriter.#open(path, format, "wx", 0);
  }

  /** Goes on with a file from byte `position` on, a reader's at its end; what is behind it is cut off. */
  static async append(path: string, format: FramedFormat, position: number): Promise<FramedFileWriter> {
    return await FramedFileWriter.#open(path, format, "r+", position);
  }

  static async #open(path: string, format: FramedFormat, flags: string, position: number): Promise<FramedFileWriter> {
    let handle: FileHandle;
    try {
      handle = await open(path, flags);
    } catch (error) {
      throw fileError(path, `open the ${format.what}`, error);
    }
    const writer = new FramedFileWriter(path, handle, format, position);
    try {
      await handle.truncate(position);
      if (position === 0) await writer.#write(encodeHeader(format));
      return writer;
    } catch (error) {
      await handle.close();
      throw fileError(path, `write the ${format.what}`, error);
    }
  }

  /** Appends frames, in one write; a write that fails, of a full disk say, leaves the file as it was. One call at a time. */
  async append(frames: readonly Frame[]): Promise<void> {
    await this.appendEncoded(frames.map(encodeFrame));
  }

  /** The same for what encodeFrame() has made. */
  async appendEncoded(encoded: readonly Uint8Array[]): Promise<void> {
    const bytes = new Uint8Array(encoded.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const frame of encoded) {
      bytes.set(frame, at);
      at += frame.length;
    }
    await this.#write(bytes);
  }

  async #write(bytes: Uint8Array): Promise<void> {
    const start = this.end;
    try {
      for (let done = 0; done < bytes.length; ) {
        const { bytesWritten } = await this.handle.write(bytes, done, bytes.length - done, start + done);
        done += bytesWritten;
      }
      this.end = start + bytes.length;
    } catch (error) {
      await this.handle.truncate(start).catch(() => undefined);
      throw fileError(this.path, `write the ${this.format.what}`, error);
    }
  }

  /** Has what was appended on the disk. */
  async sync(): Promise<void> {
    try {
      await this.handle.sync();
    } catch (error) {
      throw fileError(this.path, `write the ${this.format.what}`, error);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.handle.close();
  }
}

/** Writes a whole file of what encodeFrame() has made; it appears complete or not at all, in place of one that is there. */
export async function writeFramedFile(
  path: string,
  format: FramedFormat,
  encoded: Iterable<Uint8Array>,
): Promise<void> {
  const file = await AtomicFile.create(path);
  try {
    let [waiting, bytes] = [[encodeHeader(format)], HEADER_BYTES];
    const flush = async () => {
      await file.append(Buffer.concat(waiting));
      [waiting, bytes] = [[], 0];
    };
    for (const frame of encoded) {
      waiting.push(frame);
      bytes += frame.length;
      if (bytes >= WRITE_BYTES) await flush();
    }
    await flush();
  } catch (error) {
    await file.abort();
    throw error;
  }
  await file.commit();
}

/** A file's bytes at random places: memory-mapped where that is possible, else read when asked for. */
import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { DlfsError, ErrorCode } from "../native/error";
import { fileError } from "./atomic-file";

export interface FileBytesOptions {
  /**
   * Map the file into memory (default). Pages are then loaded when they are touched and cost no heap. A file that
   * another process may shorten meanwhile should be read instead: touching a page that is gone ends the process.
   */
  map?: boolean;
}

/** An open file of fixed size. A mapping is private: writing into its views changes neither file nor other readers. */
export class FileBytes {
  private constructor(
    readonly path: string,
    /** Bytes of the file when it was opened. */
    readonly size: number,
    private mapping: Uint8Array<ArrayBuffer> | undefined,
    private handle: number | undefined,
  ) {}

  /**
   * @param what what such a file is called in messages: "safetensors file"
   * @throws DlfsError of code `io` for a file that is missing, unreadable or no regular file
   */
  static open(path: string, what: string, options: FileBytesOptions = {}): FileBytes {
    let handle: number | undefined;
    try {
      // Before opening: opening a named pipe would wait for its writer.
      if (!statSync(path).isFile()) throw new DlfsError(ErrorCode.io, path, `a ${what} is a file, this is none`);
      if (options.map !== false) {
        const mapping = tryMap(path);
        if (mapping) return new FileBytes(path, mapping.length, mapping, undefined);
      }
      handle = openSync(path, "r");
      return new FileBytes(path, fstatSync(handle).size, undefined, handle);
    } catch (error) {
      if (handle !== undefined) closeSync(handle);
      throw fileError(path, `open the ${what}`, error);
    }
  }

  /** Whether `slice` gives views of a mapping. */
  get mapped(): boolean {
    return this.mapping !== undefined;
  }

  /**
   * Bytes `offset` to `offset + length`: a view of the mapping (not to be written to), or a new array.
   *
   * @param field what lies there, for messages
   * @throws DlfsError of code `io` for a place beyond the file, `handle` after `close()`
   */
  slice(offset: number, length: number, field: string): Uint8Array<ArrayBuffer> {
    if (!(offset >= 0 && length >= 0 && offset + length <= this.size)) {
      const place = `${length} bytes at ${offset} go beyond the end of the file at ${this.size}`;
      throw new DlfsError(ErrorCode.io, this.path, `damaged: ${field}: ${place}`);
    }
    if (this.mapping) return this.mapping.subarray(offset, offset + length);
    const bytes = new Uint8Array(length);
    this.read(offset, bytes, field);
    return bytes;
  }

  /** Copies the bytes from `offset` to `into`, as many as it holds; errors as of `slice`. */
  copy(offset: number, into: Uint8Array, field: string): void {
    if (this.mapping) into.set(this.slice(offset, into.length, field));
    else this.read(offset, into, field);
  }

  private read(offset: number, into: Uint8Array, field: string): void {
    if (this.handle === undefined) throw new DlfsError(ErrorCode.handle, this.path, `${field}: the file is closed`);
    try {
      for (let done = 0; done < into.length; ) {
        const count = readSync(this.handle, into, done, into.length - done, offset + done);
        if (count === 0) throw new Error(`the file ends at ${offset + done}, it had ${this.size} bytes when opened`);
        done += count;
      }
    } catch (error) {
      throw fileError(this.path, `read ${field}`, error);
    }
  }

  /** Nothing can be read afterwards; views of a mapping that were given out stay valid. */
  close(): void {
    if (this.handle !== undefined) closeSync(this.handle);
    this.handle = undefined;
    this.mapping = undefined;
  }
}

/** Undefined where mapping fails: an empty file, one that may not be written, or a file system without mappings. */
function tryMap(path: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Bun.mmap(path, { shared: false }) as Uint8Array<ArrayBuffer>;
  } catch {
    return undefined;
  }
}

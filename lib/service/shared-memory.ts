/** Memory that a process shares with its children: a file without a name, of which nothing is left when the last of them ends. */
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, write } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { check, DlfsError, ErrorCode } from "../native/error";

/** Linux' O_TMPFILE | O_DIRECTORY, with O_RDWR: a file in a folder that has no name there. */
const UNNAMED = 0o20200000 | 2;
const ZEROS = 1 << 20;

export interface SharedMemoryOptions {
  /** Where a folder has no room for all, half of it is tried, and so on, down to so many bytes. Default: all. */
  leastBytes?: number;
  /** Where the file is made, the first that has room. Default: /dev/shm, which is memory, then the folder for temporary files. */
  folders?: readonly string[];
  /** Hears why it has not all that was asked for, or is not in the first folder. */
  warn?: (message: string) => void;
  /** Makes a file of so many bytes that exist. Default: writes them. */
  reserve?: (file: number, bytes: number) => Promise<void>;
}

/** Opens a file in a folder that nobody else can open by a name. */
function openUnnamed(folder: string): number {
  try {
    return openSync(folder, UNNAMED, 0o600);
  } catch {
    // A file system that has no files without a name: with one, then, for as short as can be.
    const own = mkdtempSync(join(folder, "dlfs-shared-"));
    try {
      return openSync(join(own, "memory"), "wx+", 0o600);
    } finally {
      rmSync(own, { recursive: true });
    }
  }
}

/** All its bytes are written, so that a file system that is full says so here, and not by ending a process that uses the memory. */
async function writeZeros(file: number, bytes: number): Promise<void> {
  const zeros = new Uint8Array(Math.min(ZEROS, bytes));
  for (let at = 0; at < bytes; ) {
    const { bytesWritten } = await writeTo(file, zeros, 0, Math.min(zeros.length, bytes - at), at);
    at += bytesWritten;
  }
}

const writeTo = promisify(write);

/**
 * Shared memory of this process. A child that is given `descriptor` as its file n maps it with `mapShared(n)`; both see what the
 * other writes at once.
 */
export class SharedMemory implements Disposable {
  readonly folder: string;
  readonly byteLength: number;
  readonly #bytes: Uint8Array;
  #descriptor: number;

  private constructor(folder: string, descriptor: number) {
    this.folder = folder;
    this.#bytes = mapShared(descriptor);
    this.byteLength = this.#bytes.byteLength;
    this.#descriptor = descriptor;
  }

  /** @throws DlfsError of code `hostMemory` where no folder has room */
  static async create(byteLength: number, options: SharedMemoryOptions = {}): Promise<SharedMemory> {
    const { folders = ["/dev/shm", tmpdir()], leastBytes = byteLength, warn, reserve = writeZeros } = options;
    check(byteLength > 0, "SharedMemory", () => `expected bytes from 1, got ${byteLength}`);
    const reasons: string[] = [];
    for (const folder of folders) {
      for (let bytes = byteLength; bytes >= leastBytes && bytes > 0; bytes = Math.floor(bytes / 2)) {
        let file = -1;
        try {
          file = openUnnamed(folder);
          await reserve(file, bytes);
          const memory = new SharedMemory(folder, file);
          const found = `shared memory of ${bytes} bytes, of ${byteLength}, is in ${folder}`;
          if (reasons.length > 0) warn?.(`${found}: ${reasons.join("; ")}`);
          return memory;
        } catch (error) {
          if (file >= 0) closeSync(file);
          reasons.push(`${folder} has no room for ${bytes} (${(error as Error).message})`);
          if (file < 0) break; // no size helps
        }
      }
    }
    const message = `cannot have ${byteLength} bytes of shared memory: ${reasons.join("; ")}`;
    throw new DlfsError(ErrorCode.hostMemory, "SharedMemory", message);
  }

  get bytes(): Uint8Array {
    this.#checkOpen();
    return this.#bytes;
  }

  /** The file, to be given to a child. */
  get descriptor(): number {
    this.#checkOpen();
    return this.#descriptor;
  }

  /** Gives the memory back, at once. No child uses it any more, and nobody a view of it. */
  [Symbol.dispose](): void {
    if (this.#descriptor < 0) return;
    ftruncateSync(this.#descriptor, 0);
    closeSync(this.#descriptor);
    this.#descriptor = -1;
  }

  #checkOpen(): void {
    check(this.#descriptor >= 0, "SharedMemory", () => "used after dispose()", ErrorCode.handle);
  }
}

/** Maps the shared memory that this process has as its open file `descriptor`. */
export function mapShared(descriptor: number): Uint8Array {
  return Bun.mmap(`/proc/self/fd/${descriptor}`, { shared: true });
}

/**
 * Files that appear complete or not at all: written under another name in the same folder, synced, renamed, and the
 * folder synced. Whatever happens before the rename, what stood at the path before is untouched.
 */
import { randomBytes } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { mkdir, open, readdir, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { DlfsError, ErrorCode } from "../native/error";

/** `.<name>.<pid>.<random>.dlfs-tmp`: hidden, and telling whose it is. */
const TEMPORARY = /^\..+\.(\d+)\.[0-9a-f]+\.dlfs-tmp$/;

/** A temporary file that nobody has written to for this long belongs to nobody, whatever process has its pid now. */
const ABANDONED_AFTER_MS = 10 * 60 * 1000;

/** Largest single write: bounds how long one call holds a thread of the pool. */
const CHUNK_BYTES = 64 * 1024 * 1024;

/** The operating system's error as a `DlfsError` that names the file and what was being done to it. */
export function fileError(path: string, action: string, error: unknown): DlfsError {
  if (error instanceof DlfsError) return error;
  const code = (error as NodeJS.ErrnoException).code;
  const reasons: Record<string, string> = {
    ENOSPC: "no space left on the disk",
    EDQUOT: "the disk quota is used up",
    EFBIG: "the file would exceed the largest size allowed",
    ENOENT: "no such file or folder",
    EACCES: "permission denied",
    EROFS: "the file system is read-only",
    EISDIR: "it is a folder",
    ENOTDIR: "a part of the path is not a folder",
  };
  const reason = code !== undefined && reasons[code] ? `${reasons[code]} (${code})` : String((error as Error).message);
  return new DlfsError(ErrorCode.io, path, `cannot ${action}: ${reason}`, { cause: error });
}

/** A file being written; ends with exactly one `commit()` or `abort()`. */
export class AtomicFile {
  private closed = false;
  /** Bytes written by `append` so far. */
  length = 0;

  private constructor(
    readonly path: string,
    readonly temporaryPath: string,
    private readonly handle: FileHandle,
  ) {}

  /**
   * Creates the temporary file beside `path`, after removing what killed processes have left in that folder.
   *
   * @param mode who may read and write the file, less what the process's umask takes away
   */
  static async create(path: string, mode = 0o666): Promise<AtomicFile> {
    const folder = dirname(path);
    try {
      await removeAbandonedFiles(folder);
      const temporary = join(folder, `.${basename(path)}.${process.pid}.${randomBytes(6).toString("hex")}.dlfs-tmp`);
      return new AtomicFile(path, temporary, await open(temporary, "wx", mode));
    } catch (error) {
      throw fileError(path, "create the file", error);
    }
  }

  /** Writes at the end. `data` must not change until the promise is fulfilled. */
  async append(data: Uint8Array): Promise<void> {
    await this.writeAt(data, this.length);
    this.length += data.length;
  }

  /** Overwrites bytes at `position`, which is inside of what has been written. */
  async writeAt(data: Uint8Array, position: number): Promise<void> {
    try {
      for (let done = 0; done < data.length; ) {
        const size = Math.min(CHUNK_BYTES, data.length - done);
        const { bytesWritten } = await this.handle.write(data, done, size, position + done);
        if (bytesWritten === 0) throw new Error("the file took no more bytes");
        done += bytesWritten;
      }
    } catch (error) {
      throw fileError(this.path, "write", error);
    }
  }

  /** Makes what was written so far durable. */
  async sync(): Promise<void> {
    try {
      await this.handle.sync();
    } catch (error) {
      throw fileError(this.path, "sync", error);
    }
  }

  /** Syncs and puts the file in its place. When it fails, the temporary file is gone and the old file is as it was. */
  async commit(): Promise<void> {
    try {
      await this.handle.sync();
      await this.handle.close();
      this.closed = true;
      await rename(this.temporaryPath, this.path);
    } catch (error) {
      await this.abort();
      throw fileError(this.path, "finish the file", error);
    }
    try {
      const folder = await open(dirname(this.path), "r");
      try {
        await folder.sync();
      } finally {
        await folder.close();
      }
    } catch (error) {
      throw fileError(this.path, "sync the folder", error);
    }
  }

  /** Closes and removes the temporary file; never throws, since it runs on the way out of another error. */
  async abort(): Promise<void> {
    if (!this.closed) await this.handle.close().catch(() => undefined);
    this.closed = true;
    await unlink(this.temporaryPath).catch(() => undefined);
  }
}

/** Writes a whole small file atomically; text is UTF-8. `mode`: see AtomicFile.create. */
export async function writeFileAtomic(path: string, data: string | Uint8Array, mode?: number): Promise<void> {
  const file = await AtomicFile.create(path, mode);
  try {
    await file.append(typeof data === "string" ? new TextEncoder().encode(data) : data);
  } catch (error) {
    await file.abort();
    throw error;
  }
  await file.commit();
}

/** Characters of a text that are kept before they are written. */
const TEXT_CHUNK = 1 << 20;

/** Writes a text of any length atomically, as UTF-8, from its parts, of which few are in memory at a time. */
export async function writeTextAtomic(path: string, parts: AsyncIterable<string>): Promise<void> {
  const file = await AtomicFile.create(path);
  const encoder = new TextEncoder();
  try {
    let [kept, length] = [[] as string[], 0];
    for await (const part of parts) {
      kept.push(part);
      length += part.length;
      if (length < TEXT_CHUNK) continue;
      await file.append(encoder.encode(kept.join("")));
      [kept, length] = [[], 0];
    }
    await file.append(encoder.encode(kept.join("")));
  } catch (error) {
    await file.abort();
    throw error;
  }
  await file.commit();
}

/** `mkdir -p` with this module's errors. */
export async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true });
  } catch (error) {
    throw fileError(path, "create the folder", error);
  }
}

/** Removes temporary files whose process is gone, or that have not been written to for ten minutes. */
async function removeAbandonedFiles(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const match = TEMPORARY.exec(name);
    if (!match) continue;
    const path = join(folder, name);
    // Another process may remove the same file at the same time, so a file that is gone is no error.
    const idle = await stat(path).then(
      (entry) => Date.now() - entry.mtimeMs,
      () => undefined,
    );
    if (idle === undefined) continue;
    if (idle > ABANDONED_AFTER_MS || !isAlive(Number(match[1]))) await unlink(path).catch(() => undefined);
  }
}

/** Whether a process of this machine is there. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives, under another user.
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}

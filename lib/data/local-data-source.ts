import { randomUUID } from "node:crypto";
import { mkdir, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { check, DlfsError } from "../native/error";
import {
  type CallOptions,
  checkRange,
  DataSource,
  keyProblem,
  type ObjectInfo,
  type ReadOptions,
  SourceError,
  type SourceFailure,
} from "./data-source";

export { keyProblem };

const REASONS: Record<string, string> = {
  ENOENT: "no such file",
  ENOTDIR: "a part of the path is not a folder",
  EISDIR: "is a folder, not a file",
  EACCES: "permission denied",
  EPERM: "operation not permitted",
  ENOSPC: "no space left on the device",
  EROFS: "the file system is read-only",
  ENAMETOOLONG: "the name is too long",
  ELOOP: "too many symbolic links",
  EMFILE: "too many open files",
  EIO: "input/output error",
  EDQUOT: "the disk quota is used up",
};

const FAILURES: Record<string, SourceFailure> = {
  ENOENT: "missing",
  ENOTDIR: "missing",
  EACCES: "denied",
  EPERM: "denied",
  EROFS: "denied",
  ENOSPC: "full",
  EDQUOT: "full",
};

/** An error for one of the file system: `op`, the path, and what went wrong in words. */
export function fileError(op: string, path: string, error: unknown): DlfsError {
  if (error instanceof DlfsError) return error;
  const code = (error as NodeJS.ErrnoException | null)?.code;
  const reason = (code && REASONS[code]) ?? (error instanceof Error ? error.message : String(error));
  return new SourceError(op, path, (code && FAILURES[code]) || "other", reason, { cause: error });
}

/** Whether an error of the file system says that the file is not there. */
export function isMissing(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return code === "ENOENT" || code === "ENOTDIR";
}

/** Files of a folder that are asked about together. */
const STATS_AT_A_TIME = 64;

/**
 * Files below a folder. Keys are paths relative to it; a key that would leave the folder (absolute, with "..", ...) is an
 * error, so that names out of an annotation file cannot reach other files. Symbolic links inside the folder are followed:
 * data sets are often put together from them.
 */
export class LocalDataSource extends DataSource {
  readonly root: string;

  constructor(root: string) {
    super();
    check(root.length > 0, "LocalDataSource", () => "the root folder's name is empty");
    this.root = resolve(root);
  }

  override locate(key: string): string {
    return join(this.root, this.#checked(key));
  }

  override async read(key: string, options: ReadOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    const path = this.locate(key);
    const { range, signal } = options;
    signal?.throwIfAborted();
    try {
      if (!range) {
        const bytes = await readFile(path);
        signal?.throwIfAborted();
        return bytes as Uint8Array<ArrayBuffer>;
      }
      checkRange(range, "LocalDataSource.read", path);
      await using file = await open(path, "r");
      const bytes = new Uint8Array(range.end - range.start);
      let filled = 0;
      while (filled < bytes.length) {
        signal?.throwIfAborted();
        const { bytesRead } = await file.read(bytes, filled, bytes.length - filled, range.start + filled);
        if (bytesRead === 0) break;
        filled += bytesRead;
      }
      return bytes.subarray(0, filled);
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      throw fileError("LocalDataSource.read", path, error);
    }
  }

  override async *list(prefix: string, { signal }: CallOptions = {}): AsyncIterable<ObjectInfo> {
    const folder = prefix.slice(0, prefix.lastIndexOf("/") + 1);
    yield* this.#walk(folder, prefix, signal);
  }

  async *#walk(folder: string, prefix: string, signal: AbortSignal | undefined): AsyncIterable<ObjectInfo> {
    signal?.throwIfAborted();
    const path = folder === "" ? this.root : this.locate(folder.slice(0, -1));
    let names: string[];
    try {
      names = (await readdir(path, { withFileTypes: true })).map((e) => (e.isDirectory() ? `${e.name}/` : e.name));
    } catch (error) {
      if (isMissing(error)) return;
      throw fileError("LocalDataSource.list", path, error);
    }
    // A folder sorts by its name with the slash, as the keys below it do.
    names.sort((a, b) => (a < b ? -1 : 1));
    // Files are asked about many at a time: one after the other takes ten times as long.
    for (let at = 0; at < names.length; ) {
      signal?.throwIfAborted();
      const key = folder + (names[at] as string);
      if (key.endsWith("/")) {
        if (key.startsWith(prefix) || prefix.startsWith(key)) yield* this.#walk(key, prefix, signal);
        at++;
        continue;
      }
      const files: string[] = [];
      for (; at < names.length && files.length < STATS_AT_A_TIME && !names[at]?.endsWith("/"); at++) {
        if ((folder + names[at]).startsWith(prefix)) files.push(folder + names[at]);
      }
      for (const info of await Promise.all(files.map((file) => this.stat(file, { signal })))) if (info) yield info;
    }
  }

  override async stat(key: string, { signal }: CallOptions = {}): Promise<ObjectInfo | null> {
    const path = this.locate(key);
    signal?.throwIfAborted();
    try {
      const info = await stat(path);
      return info.isFile() ? { key, size: info.size, modified: Math.floor(info.mtimeMs) } : null;
    } catch (error) {
      if (isMissing(error)) return null;
      throw fileError("LocalDataSource.stat", path, error);
    }
  }

  /** The path of a key's file, whether there is one or not. */
  override pathOf(key: string): string {
    return this.locate(key);
  }

  override async write(key: string, bytes: Uint8Array, { signal }: CallOptions = {}): Promise<void> {
    const path = this.locate(key);
    signal?.throwIfAborted();
    const partial = `${path}.${randomUUID()}.partial`;
    try {
      await mkdir(dirname(path), { recursive: true });
      {
        await using file = await open(partial, "wx");
        await file.writeFile(bytes);
        signal?.throwIfAborted();
      }
      await rename(partial, path);
    } catch (error) {
      await rm(partial, { force: true }).catch(() => {}); // what failed first is what to report
      if (signal?.aborted) throw signal.reason;
      throw fileError("LocalDataSource.write", path, error);
    }
  }

  override async remove(key: string): Promise<void> {
    const path = this.locate(key);
    await rm(path, { force: true }).catch((error: unknown) => {
      throw fileError("LocalDataSource.remove", path, error);
    });
  }

  #checked(key: string): string {
    const problem = keyProblem(key);
    check(problem === null, "LocalDataSource", () => `key ${JSON.stringify(key)} in ${this.root}: ${problem}`);
    return key;
  }
}

import { createHash, randomUUID } from "node:crypto";
import { type Stats, statSync } from "node:fs";
import { type FileHandle, mkdir, open, readdir, rename, rm, stat, statfs, unlink, utimes } from "node:fs/promises";
import { join, resolve } from "node:path";
import { check } from "../native/error";
import type { ByteRange } from "./data-source";
import { fileError, isMissing } from "./local-data-source";

/** What tells one version of an object from another. */
export interface Version {
  size: number;
  /** Milliseconds since 1970. */
  modified: number;
}

export interface DiskCacheOptions {
  /** Bytes of all entries together, beyond which those are removed that were not used for longest. */
  limit: number;
  /** Bytes of the disk that are left to others: the cache shrinks where less is free. Default 1 GiB. */
  reserve?: number;
  /** Milliseconds without a change after which a half-written file belongs to a process that has ended. Default an hour. */
  abandonedAfter?: number;
}

interface Entry {
  path: string;
  size: number;
  /** When it was last used, in milliseconds since 1970. */
  used: number;
}

/** Entries are removed down to this share of the limit, so that it is not reached again at once. */
const LOW_WATER = 0.9;

/** The folder is looked through again after this share of the limit was written: other processes may write, too. */
const RESCAN = 1 / 64;

/** Milliseconds for which a use of an entry stands for later ones: each mark costs a system call. */
const USE_INTERVAL = 600_000;

/** Files looked at between two turns of the event loop. */
const STATS_AT_A_TIME = 64;

/**
 * Files in a folder, found by name, for several processes at once and without locks. An entry is one file that holds exactly
 * the bytes; its time of change is the object's, its time of access that of the last use, so that there is no index that could
 * disagree with the files. A file gets its name by an atomic rename, after its bytes have reached the disk: neither another
 * process nor one after a crash or a power failure sees a part of it. Whoever removes an entry while another reads it
 * leaves the reader its open file. Each process looks after the limit with what it wrote itself and looks through the folder
 * now and then; P processes exceed it by P / 64 of it at most, until one of them notices.
 */
export class DiskCache {
  readonly folder: string;
  readonly limit: number;
  /** Entries and bytes that this process has removed to keep within the limit. */
  readonly evicted = { entries: 0, bytes: 0 };
  readonly #reserve: number;
  readonly #abandonedAfter: number;
  /** Bytes in the folder at the last scan, and those written since; null before the first. */
  #bytes: number | null = null;
  #written = 0;
  #trimming: Promise<void> | null = null;

  constructor(folder: string, options: DiskCacheOptions) {
    const { limit, reserve = 2 ** 30, abandonedAfter = 3_600_000 } = options;
    for (const [name, value] of Object.entries({ limit, reserve, abandonedAfter })) {
      const good = Number.isFinite(value) && value >= 0;
      check(good, "DiskCache", () => `${name} must be a number >= 0, got ${value}`);
    }
    this.folder = resolve(folder);
    this.limit = limit;
    this.#reserve = reserve;
    this.#abandonedAfter = abandonedAfter;
  }

  /** The path of the entry of a name, whether there is one or not. */
  pathOf(name: string): string {
    const hash = createHash("sha256").update(name).digest("hex");
    return join(this.folder, "objects", hash.slice(0, 2), hash.slice(2, 40));
  }

  /** The version of an entry, null where there is none. */
  version(name: string): Version | null {
    try {
      const info = statSync(this.pathOf(name), { throwIfNoEntry: false });
      return info ? { size: info.size, modified: Math.round(info.mtimeMs) } : null;
    } catch (error) {
      throw fileError("DiskCache", this.pathOf(name), error);
    }
  }

  /** Marks an entry as used, for those who read its file by themselves. */
  async touch(name: string): Promise<void> {
    try {
      await using file = await open(this.pathOf(name), "r");
      await markUsed(file, await file.stat());
    } catch (error) {
      if (!isMissing(error)) throw fileError("DiskCache", this.pathOf(name), error);
    }
  }

  /** The bytes of an entry, or of a range of it; null where there is none. */
  async read(name: string, range?: ByteRange): Promise<Uint8Array<ArrayBuffer> | null> {
    const path = this.pathOf(name);
    try {
      await using file = await open(path, "r");
      const info = await file.stat();
      const { size } = info;
      const start = Math.min(range?.start ?? 0, size);
      const bytes = new Uint8Array(Math.min(range?.end ?? size, size) - start);
      for (let filled = 0; filled < bytes.length; ) {
        const { bytesRead } = await file.read(bytes, filled, bytes.length - filled, start + filled);
        if (bytesRead === 0) throw new Error(`ends after ${start + filled} of ${size} bytes`);
        filled += bytesRead;
      }
      await markUsed(file, info);
      return bytes;
    } catch (error) {
      if (isMissing(error)) return null;
      throw fileError("DiskCache.read", path, error);
    }
  }

  /**
   * Stores an entry, in place of one that may be there. `fill` writes the bytes; nothing is stored where it fails, or where
   * it writes another number of bytes than `version` says.
   */
  async store(name: string, version: Version, fill: (file: FileHandle) => Promise<void>): Promise<string> {
    const path = this.pathOf(name);
    const partial = join(this.folder, "partial", randomUUID());
    try {
      await mkdir(join(this.folder, "partial"), { recursive: true });
      {
        await using file = await open(partial, "wx");
        await fill(file);
        await file.datasync();
        const { size } = await file.stat();
        if (size !== version.size) throw new Error(`${size} bytes were written, expected ${version.size}`);
      }
      await utimes(partial, Date.now() / 1000, version.modified / 1000);
      await mkdir(join(path, ".."), { recursive: true });
      await rename(partial, path);
    } catch (error) {
      await rm(partial, { force: true }).catch(() => {}); // what failed first is what to report
      throw fileError("DiskCache.store", path, error);
    }
    this.#written += version.size;
    this.#lookAfterLimit();
    return path;
  }

  /** Removes an entry. */
  async remove(name: string): Promise<void> {
    await unlink(this.pathOf(name)).catch((error: unknown) => {
      if (!isMissing(error)) throw fileError("DiskCache.remove", this.pathOf(name), error);
    });
  }

  /** Entries and bytes in the folder now. */
  async usage(): Promise<{ entries: number; bytes: number }> {
    const entries = await this.#scan();
    return { entries: entries.length, bytes: entries.reduce((sum, { size }) => sum + size, 0) };
  }

  /** Removes all entries. */
  async clear(): Promise<void> {
    for (const { path } of await this.#scan()) await rm(path, { force: true });
  }

  /** Removes what was not used for longest until `room` bytes more would be within the limit, and the disk has its reserve. */
  async trim(room = 0): Promise<void> {
    const written = this.#written;
    const entries = await this.#scan();
    let bytes = entries.reduce((sum, { size }) => sum + size, 0);
    const allowed = Math.min(this.limit, bytes + (await this.#freeBytes()) - this.#reserve) - room;
    if (bytes > allowed) {
      entries.sort((a, b) => a.used - b.used || (a.path < b.path ? -1 : 1));
      for (const { path, size } of entries) {
        if (bytes <= allowed * LOW_WATER) break;
        // Another process may have removed it just before: then it is gone all the same.
        const removed = await unlink(path).then(
          () => true,
          (error: unknown) => {
            if (isMissing(error)) return false;
            throw fileError("DiskCache", path, error);
          },
        );
        bytes -= size;
        if (removed) {
          this.evicted.entries++;
          this.evicted.bytes += size;
        }
      }
    }
    this.#bytes = bytes;
    this.#written -= written;
  }

  /** Resolves when no clearing is under way. */
  async settled(): Promise<void> {
    while (this.#trimming) await this.#trimming;
  }

  /** Clears, in the background, where the limit may have been reached. */
  #lookAfterLimit(): void {
    if (this.#trimming || !this.#isDue()) return;
    this.#trimming = this.#trimWhileDue()
      .catch(() => {
        // A folder that cannot be read or cleared is noticed by those who read and store; the limit waits.
      })
      .finally(() => {
        this.#trimming = null;
      });
  }

  /** Clears until nothing was stored meanwhile that calls for it: nobody may ever store, and so look, again. */
  async #trimWhileDue(): Promise<void> {
    do await this.trim();
    while (this.#isDue());
  }

  #isDue(): boolean {
    return this.#bytes === null || this.#bytes + this.#written > this.limit || this.#written > this.limit * RESCAN;
  }

  async #freeBytes(): Promise<number> {
    try {
      const { bavail, bsize } = await statfs(this.folder);
      return bavail * bsize;
    } catch {
      return Number.POSITIVE_INFINITY; // not every file system says
    }
  }

  /** All entries; removes what ended processes left half-written. */
  async #scan(): Promise<Entry[]> {
    const entries: Entry[] = [];
    const paths: string[] = [];
    for (const shard of await names(join(this.folder, "objects"))) {
      for (const name of await names(join(this.folder, "objects", shard))) {
        paths.push(join(this.folder, "objects", shard, name));
      }
    }
    for (let at = 0; at < paths.length; at += STATS_AT_A_TIME) {
      const group = paths.slice(at, at + STATS_AT_A_TIME);
      const infos = await Promise.all(group.map((path) => stat(path).catch(() => null)));
      for (const [i, info] of infos.entries()) {
        if (info?.isFile()) entries.push({ path: group[i] as string, size: info.size, used: info.atimeMs });
      }
    }
    for (const name of await names(join(this.folder, "partial"))) {
      const path = join(this.folder, "partial", name);
      const info = await stat(path).catch(() => null);
      // The time of the last change of any kind: that of the content is set to the object's before the rename.
      if (info && Date.now() - info.ctimeMs > this.#abandonedAfter) await rm(path, { force: true }).catch(() => {});
    }
    return entries;
  }
}

/** Sets the time of access of an open file, which file systems do not keep by themselves, where it is not recent. */
async function markUsed(file: FileHandle, { atimeMs, mtimeMs }: Stats): Promise<void> {
  const now = Date.now();
  // Failing, as on a disk that is only for reading, costs the entry nothing but its place in the order.
  if (now - atimeMs > USE_INTERVAL) await file.utimes(now / 1000, mtimeMs / 1000).catch(() => {});
}

async function names(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (isMissing(error)) return [];
    throw fileError("DiskCache", folder, error);
  }
}

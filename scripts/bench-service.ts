/**
 * Measures `dlfs serve`, and torchvision's RetinaNet behind a Python server beside it, under the same load on the same machine:
 *
 *   bun run scripts/bench-service.ts [--peers PYTHON] [--json FILE]
 *
 * Both serve RetinaNet-R50 with the same weights (random ones that detect; see scripts/service/bench-model.ts), JPEG in, JSON out, from
 * the same files; the load comes from processes on the machine. Printed are the most images/s (closed loops of growing numbers of
 * clients), latencies of an open load of 80 % of that (corrected for coordinated omission), and those of a single client.
 *
 * torchvision resizes an image of 640x480 to 640x480, where dlfs puts it into an input of 640x640: the peer has a quarter less work.
 *
 *   --model FILE      another model for dlfs serve; no peer then
 *   --size N          network input, default 640
 *   --images DIR      JPEGs; default: drawn ones, 640x480 of about 110 KB
 *   --seconds N       of each measurement, default 8
 *   --clients N,...   closed loops, default 32,64,128
 *   --processes N     of the load, default 4
 *   --serve='ARGS'    further options of dlfs serve, in one text: --serve='--instances 2'
 *   --peers PYTHON    with PyTorch and torchvision; --peer-options='ARGS': of scripts/peers/serve_torchvision.py
 */
import { mkdirSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { writeBenchModel } from "./service/bench-model";
import { describeLoad, type LoadResult, runLoad } from "./service/load";
import { loadImages, serveCommand, startServer } from "./service/start";

const { values: args } = parseArgs({
  options: {
    model: { type: "string" },
    size: { type: "string", default: "640" },
    images: { type: "string" },
    seconds: { type: "string", default: "8" },
    clients: { type: "string", default: "32,64,128" },
    processes: { type: "string", default: "4" },
    serve: { type: "string", default: "" },
    peers: { type: "string" },
    "peer-options": { type: "string", default: "" },
    json: { type: "string" },
  },
});
const seconds = Number(args.seconds);
const processes = Number(args.processes);
const words = (text: string) => text.split(/\s+/).filter((word) => word !== "");
const folder = join(tmpdir(), `dlfs-bench-service-${process.pid}`);
mkdirSync(folder, { recursive: true });
const files = loadImages(args.images);

export interface ServerBench {
  readonly name: string;
  /** The most images/s, and how many clients that took. */
  readonly best: LoadResult;
  readonly closed: readonly LoadResult[];
  readonly open: LoadResult;
  readonly single: LoadResult;
  /** Milliseconds, of dlfs: the bound of the service's histogram that 99 % of the delays are within. */
  readonly eventLoopDelayP99?: number;
}

async function measure(name: string, url: string): Promise<ServerBench> {
  const load = { url: `${url}predict`, files, seconds };
  const show = (result: LoadResult) => {
    console.log(`${name}: ${describeLoad(result)}`);
    return result;
  };
  const single = show(await runLoad({ ...load, mode: "closed", clients: 1, processes: 1, warmUp: 3 }));
  const closed: LoadResult[] = [];
  for (const clients of args.clients.split(",").map(Number)) {
    closed.push(show(await runLoad({ ...load, mode: "closed", clients, processes, warmUp: 2 })));
  }
  const best = closed.reduce((most, result) => (result.perSecond > most.perSecond ? result : most));
  const open = show(await runLoad({ ...load, mode: "open", rate: 0.8 * best.perSecond, processes, warmUp: 2 }));
  return { name, best, closed, open, single };
}

/** Serves, measures, and ends. */
async function bench(name: string, command: readonly string[]): Promise<ServerBench> {
  await using server = await startServer(command, join(folder, `${name}.log`));
  console.log(`${name}: ready`);
  if (name !== "dlfs") return await measure(name, server.url);
  const before = await delayBuckets(server.url);
  const result = await measure(name, server.url);
  const eventLoopDelayP99 = delayP99(before, await delayBuckets(server.url));
  console.log(`dlfs: ${await describeStages(server.url)}`);
  console.log(`dlfs: the event loop's delay was at most ${eventLoopDelayP99} ms in 99 % of its measurements`);
  return { ...result, eventLoopDelayP99 };
}

/** How often the event loop's delay was at most each bound, in seconds, by the service's own histogram. */
async function delayBuckets(url: string): Promise<{ bound: number; count: number }[]> {
  const text = await (await fetch(`${url}metrics`)).text();
  const buckets = text.matchAll(/^dlfs_event_loop_delay_seconds_bucket\{le="([^"]+)"\} (\d+)$/gm);
  return [...buckets].map(([, le, count]) => ({ bound: Number(le === "+Inf" ? Infinity : le), count: Number(count) }));
}

/** The bound, in milliseconds, that 99 % of the delays since `before` are within. */
function delayP99(before: Awaited<ReturnType<typeof delayBuckets>>, after: typeof before): number {
  const counts = after.map(({ count }, i) => count - (before[i]?.count ?? 0));
  const total = counts.at(-1) ?? 0;
  return 1000 * (after[counts.findIndex((count) => count >= 0.99 * total)]?.bound ?? Number.NaN);
}

/** Where batches spent their time, and how large they were, on average. */
async function describeStages(url: string): Promise<string> {
  const text = await (await fetch(`${url}metrics`)).text();
  const mean = (name: string, label = "") => {
    const value = (part: string) =>
      Number(new RegExp(`^${name}_${part}\\{[^}]*${label}[^}]*\\} (\\S+)$`, "m").exec(text)?.[1] ?? Number.NaN);
    return value("sum") / value("count");
  };
  const stage = (name: string) =>
    `${name} ${(1000 * mean("dlfs_inference_stage_duration_seconds", `stage="${name}"`)).toFixed(2)}`;
  const stages = ["transfer", "decode", "infer", "postprocess"].map(stage).join(", ");
  const queue = (1000 * mean("dlfs_inference_queue_duration_seconds")).toFixed(2);
  return `batches of ${mean("dlfs_inference_batch_size").toFixed(1)} images; mean ms: queue ${queue}, ${stages}`;
}

const model = args.model ?? (await writeBenchModel(folder, Number(args.size)));
const results = [await bench("dlfs", serveCommand(model, "--port", "0", "--log-level", "info", ...words(args.serve)))];
if (args.peers !== undefined && args.model === undefined) {
  const weights = join(folder, "retinanet.safetensors");
  const exported = Bun.spawnSync([
    process.execPath,
    "run",
    "lib/cli/main.ts",
    "export",
    "--checkpoint",
    model,
    "--out",
    weights,
  ]);
  if (exported.exitCode !== 0) throw new Error(exported.stderr.toString());
  const script = "scripts/peers/serve_torchvision.py";
  const peer = [args.peers, script, "--weights", weights, "--size", args.size, ...words(args["peer-options"])];
  results.push(await bench("torchvision", peer));
}

const ms = (value: number) => value.toFixed(1).padStart(8);
console.log(`\n${"".padEnd(14)}  images/s  single p50  single p99  at 80 %: p50      p99`);
for (const { name, best, open, single } of results) {
  const row = [
    best.perSecond.toFixed(1).padStart(8),
    `    ${ms(single.latencies.p50)}`,
    `    ${ms(single.latencies.p99)}`,
  ];
  console.log(`${name.padEnd(14)}  ${row.join("")}      ${ms(open.latencies.p50)} ${ms(open.latencies.p99)}`);
}
const [own, peer] = results;
const ratio = own && peer ? own.best.perSecond / peer.best.perSecond : null;
if (ratio !== null) console.log(`\ndlfs answers ${ratio.toFixed(2)} times as many images a second`);
if (args.json !== undefined) {
  const machine = { cpus: cpus().length, cpu: cpus()[0]?.model ?? "" };
  await Bun.write(
    args.json,
    `${JSON.stringify({ date: new Date().toISOString(), machine, size: Number(args.size), images: files.length, ratio, results }, null, 2)}\n`,
  );
}
process.exit(0);

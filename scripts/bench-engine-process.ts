/**
 * What it costs to have an engine elsewhere: in this thread, in a Worker, and as the service has it, in a process of its own behind
 * a queue.
 *
 *   bun run scripts/bench-engine-process.ts [MODEL] [--clients 1,64] [--seconds 5] [--images 64] [--batch N] [--backend cpu]
 *     [--precision fp16] [--only process] [--json FILE]
 *
 * MODEL is a model file, a checkpoint or a run; default: a small detector with random weights. The images are JPEGs of 640x480.
 * Each of so many clients asks for one image after the other. "outside" is what an answer took beyond decoding, the network and
 * post-processing; "loop" is how much later than it should a timer of 5 ms comes in this thread, "cpu" what this thread and its
 * process' others use for an image. Latencies are p50 / p99 in milliseconds.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { drawPicture, QUALITY } from "../lib/bench/bench-images";
import { table } from "../lib/bench/table";
import { DeviceImageCodec, Normalize, Resize } from "../lib/data";
import { Engine, type EngineTimes, EngineWorker } from "../lib/engine";
import { modelFromConfig } from "../lib/models";
import type { BackendName } from "../lib/native";
import { ModelRepository, type ModelStatistics } from "../lib/service";
import { DynamicBatcher } from "../lib/service/dynamic-batcher";
import { Device, type Precision } from "../lib/tensor";
import { powersOfTwo, saveModel } from "../lib/train";

const { values: args, positionals } = parseArgs({
  options: {
    clients: { type: "string", default: "1,64" },
    seconds: { type: "string", default: "5" },
    images: { type: "string", default: "64" },
    batch: { type: "string" },
    backend: { type: "string" },
    precision: { type: "string" },
    only: { type: "string" },
    json: { type: "string" },
  },
  allowPositionals: true,
});
const backend = args.backend as BackendName | undefined;
const seconds = Number(args.seconds);
const clients = args.clients.split(",").map(Number);
const batchSizes = args.batch === undefined ? undefined : powersOfTwo(Number(args.batch));

const folder = mkdtempSync(join(tmpdir(), "dlfs-bench-engine-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

/** A small detector with random weights. */
async function smallModel(device: Device): Promise<string> {
  const config = { name: "compact", classes: 8, width: 16, headConvs: 1 } as const;
  using model = modelFromConfig(config).to(device, { seed: 1 });
  const path = join(folder, "small.dlfs");
  const preprocessing = [new Resize(), new Normalize()];
  await saveModel(path, {
    ...{ model, path, iteration: 0, metrics: {}, preprocessing, [Symbol.dispose]: () => {} },
    config: {
      ...{ model: config, classes: Array.from({ length: 8 }, (_, i) => `class ${i}`), size: [192, 192] },
      preprocessing: preprocessing.map((op) => op.toJSON()),
    },
  });
  return path;
}

const percentile = (values: readonly number[], share: number): number =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * share))] ?? 0;

/** Detects on one image; what it took beyond decoding, network and post-processing, where that is known. */
type Ask = (image: Uint8Array) => Promise<number>;

interface Row {
  where: string;
  clients: number;
  imagesPerSecond: number;
  latency: [p50: number, p99: number];
  outside: [p50: number, p99: number];
  loopDelay: [p99: number, most: number];
  cpuMicroseconds: number;
}

const LOOP_MS = 5;

async function measure(where: string, count: number, images: readonly Uint8Array[], ask: Ask): Promise<Row> {
  const [latencies, outsides, delays]: [number[], number[], number[]] = [[], [], []];
  let end = performance.now() + 1000; // warms up
  const client = async (first: number) => {
    for (let i = first; performance.now() < end; i++) {
      const asked = performance.now();
      outsides.push(await ask(images[i % images.length] as Uint8Array));
      latencies.push(performance.now() - asked);
    }
  };
  const all = () => Promise.all(Array.from({ length: count }, (_, i) => client(i * 7)));
  await all();
  for (const values of [latencies, outsides]) values.length = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    delays.push(performance.now() - last - LOOP_MS);
    last = performance.now();
  }, LOOP_MS);
  const [started, cpu] = [performance.now(), process.cpuUsage()];
  end = started + 1000 * seconds;
  await all();
  const took = performance.now() - started;
  const { user, system } = process.cpuUsage(cpu);
  clearInterval(timer);
  const pair = (values: number[]): [number, number] => [percentile(values, 0.5), percentile(values, 0.99)];
  return {
    ...{ where, clients: count, imagesPerSecond: (1000 * latencies.length) / took, latency: pair(latencies) },
    ...{ outside: pair(outsides), loopDelay: [percentile(delays, 0.99), Math.max(0, ...delays)] },
    cpuMicroseconds: (user + system) / latencies.length,
  };
}

/** What the queue costs for a request, in nanoseconds: coming, waiting with others, and going with a batch of 32. */
function queueCost(): number {
  const batcher = new DynamicBatcher<number>({
    ...{ maxBatch: 32, preferredSizes: [], maxDelayMs: 1, priorityLevels: 1, maxQueue: 4096, maxQueueBytes: 1e12 },
    ...{ maxBatchBytes: 1e9, timeoutAction: "reject", defaultTimeoutMs: 1e6, allowTimeoutOverride: true },
  });
  const rounds = 2000;
  const run = () => {
    const started = performance.now();
    for (let round = 0; round < rounds; round++) {
      for (let i = 0; i < 64; i++) batcher.add({ item: i, images: 1, bytes: 1000, priority: 1 }, round);
      batcher.expire(round);
      batcher.take(round);
      batcher.take(round);
    }
    return (1e6 * (performance.now() - started)) / (64 * rounds);
  };
  run();
  return run();
}

const device = new Device({ backend }, console.log);
const precision = (args.precision ?? (device.supports("conv.f16") ? "fp16" : "fp32")) as Precision;
const model = positionals[0] ?? (await smallModel(device));
const codec = new DeviceImageCodec(device);
const images = Array.from({ length: Number(args.images) }, (_, i) => codec.encode(drawPicture(i), QUALITY));
const bytes = images.reduce((sum, image) => sum + image.byteLength, 0) / images.length;
console.log(
  `${images.length} JPEGs of 640x480, ${Math.round(bytes / 1024)} KiB each; ${navigator.hardwareConcurrency} cores`,
);
const options = { backend, batchSizes, precision };
const rows: Row[] = [];

const outside = async (detect: (onTimes: (times: EngineTimes) => void) => Promise<unknown>): Promise<number> => {
  let inside = 0;
  const started = performance.now();
  await detect(({ decode, infer, postprocess }) => {
    inside = decode + infer + postprocess;
  });
  return performance.now() - started - inside;
};

/** Where the time of batches went. */
function describeBatches(count: number, { inferences, executions, stageTimes }: ModelStatistics): void {
  const stages = Object.entries(stageTimes).map(
    ([stage, { sum }]) => `${stage} ${((1000 * sum) / executions).toFixed(2)} ms`,
  );
  console.log(`${count} clients: batches of ${(inferences / executions).toFixed(1)} images: ${stages.join(", ")}`);
}

const places: Record<string, (count: number) => Promise<Row>> = {
  async thread(count) {
    await using engine = await Engine.load(model, { ...options, device });
    return await measure("this thread", count, images, (image) =>
      outside((onTimes) => engine.detect(image, { onTimes })),
    );
  },
  async worker(count) {
    await using engine = await EngineWorker.load(model, options);
    return await measure("a Worker", count, images, (image) => outside((onTimes) => engine.detect(image, { onTimes })));
  },
  async process(count) {
    await using repository = await ModelRepository.open({
      ...{ models: [`bench=${model}`], config: options },
      log: { info: () => {}, warn: console.warn, error: console.error },
    });
    await repository.load("bench");
    const row = await measure("a process behind a queue", count, images, async (image) => {
      const { times, results } = await repository.infer("bench", undefined, { images: [image] });
      if (results[0]?.error) throw new Error(results[0].error);
      return times.queue + times.stages.transfer;
    });
    describeBatches(count, repository.statistics()[0] as ModelStatistics);
    return row;
  },
};
for (const [name, run] of Object.entries(places)) {
  if (args.only !== undefined && args.only !== name) continue;
  for (const count of clients) rows.push(await run(count));
}
const two = ([a, b]: readonly [number, number]) => `${a.toFixed(2)} / ${b.toFixed(2)}`;
const header = ["engine in", "clients", "images/s", "latency", "outside", "loop p99 / most", "cpu us/image"];
const cells = rows.map((row) => [
  ...[row.where, `${row.clients}`, row.imagesPerSecond.toFixed(1), two(row.latency), two(row.outside)],
  ...[two(row.loopDelay), row.cpuMicroseconds.toFixed(0)],
]);
for (const line of table(header, cells)) console.log(line);
const queue = queueCost();
console.log(`the queue takes ${queue.toFixed(0)} ns for a request`);
if (args.json !== undefined) {
  const description = { device: device.info, backend: device.backend, cores: navigator.hardwareConcurrency, precision };
  await Bun.write(
    args.json,
    `${JSON.stringify({ ...description, model: positionals[0] ?? "small", rows, queue }, null, 2)}\n`,
  );
}
device.dispose();

/**
 * Loads many batches (files read, decoded, augmented, into device memory) and checks that memory stays flat: the most that the process,
 * its pinned buffers and the device have in the last fifth may be at most 5 % above the most they have in the second tenth. With
 * --records the batches come from record files, which are packed into a temporary folder; their mapped pages, which are the page
 * cache's, do not count.
 *
 *   bun run scripts/check-loader-memory.ts                                 10,000 batches of 8 of the demo data set
 *   bun run scripts/check-loader-memory.ts --records
 *   bun run scripts/check-loader-memory.ts --data DIR --batches 2000 --batch 32 --size 640 --sampler repeat-factor
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  AspectRatioBatches,
  ClassBalancedSampler,
  CocoDataLoader,
  Device,
  DeviceBatchDecoder,
  DeviceImageCodec,
  DeviceRecordReader,
  demoFolder,
  generateDemo,
  HorizontalFlip,
  loadDataset,
  Normalize,
  PinnedBuffer,
  packRecords,
  RandomCrop,
  RecordLoader,
  RecordSet,
  RepeatFactorSampler,
  Resize,
  ScaleJitter,
} from "dlfs";

const SAMPLERS = {
  shuffle: () => undefined,
  "class-balanced": () => new ClassBalancedSampler({ background: 0.1 }),
  "repeat-factor": () => new RepeatFactorSampler({ threshold: 0.5 }),
};

function fail(message: string): never {
  console.error(`check-loader-memory: ${message}`);
  process.exit(2);
}

function integer(name: string, text: string): number {
  const value = Number(text);
  return Number.isSafeInteger(value) && value >= 1
    ? value
    : fail(`--${name}: expected an integer from 1, got "${text}"`);
}

function parse() {
  try {
    return parseArgs({
      options: {
        data: { type: "string", default: "demo" },
        split: { type: "string", default: "train2017" },
        batches: { type: "string", default: "10000" },
        batch: { type: "string", default: "8" },
        size: { type: "string", default: "192" },
        sampler: { type: "string", default: "shuffle" },
        "group-by-aspect": { type: "boolean", default: false },
        records: { type: "boolean", default: false },
      },
    }).values;
  } catch (error) {
    return fail(error instanceof Error ? error.message : String(error));
  }
}

const args = parse();
const batches = integer("batches", args.batches);
const batchSize = integer("batch", args.batch);
const size = integer("size", args.size);
if (batches < 100) fail(`--batches: expected at least 100, got ${batches}`);
const sampler = SAMPLERS[args.sampler as keyof typeof SAMPLERS];
if (!sampler) fail(`--sampler: expected one of ${Object.keys(SAMPLERS).join(", ")}, got "${args.sampler}"`);

using device = new Device({}, console.log);
const codec = new DeviceImageCodec(device);
const folder = args.data === "demo" ? demoFolder() : args.data;
if (args.data === "demo") {
  await generateDemo(folder, {
    encode: (data, width, height, quality) => codec.encode({ data, width, height }, quality),
  });
}
using dataset = await loadDataset(folder, { codec, trainSplit: args.split });
const { store, source } = dataset;
const order = { sampler: sampler(), batchSampler: args["group-by-aspect"] ? new AspectRatioBatches() : undefined };
const mappedBefore = statusBytes("RssFile");
await using opened = new AsyncDisposableStack();
const loader = args.records ? await openRecords() : openImages();

function openImages(): CocoDataLoader {
  const preprocessing = [
    new RandomCrop(),
    new Resize(),
    new ScaleJitter(0.7, 1.4),
    new HorizontalFlip(),
    new Normalize(),
  ];
  const decoder = opened.use(new DeviceBatchDecoder(device, { batchSize, height: size, width: size, preprocessing }));
  return opened.use(
    new CocoDataLoader({
      ...{ ...order, store, source, split: args.split, size: [size, size] },
      ...{ decoder, batchSize, preprocessing },
    }),
  );
}

async function openRecords(): Promise<RecordLoader> {
  const folder = mkdtempSync(join(tmpdir(), "dlfs-check-records-"));
  opened.defer(() => rmSync(folder, { recursive: true, force: true }));
  await packRecords({ store, source, split: args.split, folder, device, size: [size, size] });
  const reader = opened.use(new DeviceRecordReader(device, await RecordSet.open(folder), { batchSize }));
  const augmentation = [new ScaleJitter(0.7, 1.4), new HorizontalFlip()];
  return opened.use(new RecordLoader({ ...order, reader, batchSize, augmentation }));
}

/** A line of /proc/self/status in bytes; NaN where there is none. */
function statusBytes(name: string): number {
  try {
    return 1024 * Number(new RegExp(`^${name}:\\s*(\\d+)`, "m").exec(readFileSync("/proc/self/status", "utf8"))?.[1]);
  } catch {
    return Number.NaN;
  }
}

/** Resident memory; of mapped files, where the system tells them apart, what there was before the loader was: the programs'. */
function processBytes(): number {
  const own = statusBytes("RssAnon") + statusBytes("RssShmem") + mappedBefore;
  return Number.isFinite(own) ? own : process.memoryUsage.rss();
}

/** Of a GPU also what its libraries have; the CPU backend's device memory is the process's. */
function deviceBytes(): number {
  const { total, free, allocated } = device.memory();
  return device.backend === "cuda" ? total - free : allocated;
}

console.log(
  `${batches} batches of ${batchSize} images at ${size}x${size}, ${args.sampler}; ${loader.length} batches a pass`,
);
const MIB = 2 ** 20;
const KINDS = {
  process: processBytes,
  pinned: () => PinnedBuffer.allocatedBytes,
  device: deviceBytes,
};
type Kind = keyof typeof KINDS;
const kinds = Object.keys(KINDS) as Kind[];
const every = Math.floor(batches / 20);
/** The most bytes of each kind while each part of the batches was loaded. */
const most: Record<Kind, number[]> = { process: [], pinned: [], device: [] };
const peak: Record<Kind, number> = { process: 0, pinned: 0, device: 0 };
const started = performance.now();
let shown = started;
for (let done = 1; done <= batches; done++) {
  (await loader.getBatch()).release();
  for (const kind of kinds) peak[kind] = Math.max(peak[kind], KINDS[kind]());
  if (done % every === 0 && most.process.length < 20) {
    for (const kind of kinds) {
      most[kind].push(peak[kind]);
      peak[kind] = 0;
    }
  }
  const now = performance.now();
  if (now - shown < 2000 && done < batches) continue;
  shown = now;
  const seconds = (now - started) / 1000;
  const sizes = kinds.map((kind) => `${kind} ${(KINDS[kind]() / MIB).toFixed(1)}`).join(", ");
  console.log(`${done}/${batches}  ${((done * batchSize) / seconds).toFixed(0)} images/s  MiB: ${sizes}`);
}
console.log(
  `loaded in ${((performance.now() - started) / 1000).toFixed(0)} s; waited ${loader.waitSeconds.toFixed(0)} s`,
);
for (const kind of kinds) {
  const parts = most[kind];
  console.log(`${kind}, most in each twentieth, MiB: ${parts.map((bytes) => (bytes / MIB).toFixed(1)).join(" ")}`);
  const before = Math.max(...parts.slice(2, 4));
  const after = Math.max(...parts.slice(-4));
  const growth = before === 0 && after === 0 ? 0 : 100 * (after / before - 1);
  console.log(
    `${kind}: second tenth ${(before / MIB).toFixed(1)} MiB, last fifth ${(after / MIB).toFixed(1)} MiB: ` +
      `${growth >= 0 ? "+" : ""}${growth.toFixed(2)} % (limit 5 %)`,
  );
  if (growth <= 5) continue;
  console.error(`check-loader-memory: ${kind} memory grows with the number of batches`);
  process.exitCode = 1;
}

/**
 * Loads many batches (files read, decoded, augmented, into device memory) and checks that the memory of the process stays flat: the
 * most it has in the last fifth may be at most 5 % above the most it has in the second tenth.
 *
 *   bun run scripts/check-loader-memory.ts                                 10,000 batches of 8 of the demo data set
 *   bun run scripts/check-loader-memory.ts --data DIR --batches 2000 --batch 32 --size 640 --sampler repeat-factor
 */
import { parseArgs } from "node:util";
import {
  AspectRatioBatches,
  ClassBalancedSampler,
  CocoDataLoader,
  Device,
  DeviceBatchDecoder,
  DeviceImageCodec,
  demoFolder,
  generateDemo,
  HorizontalFlip,
  loadDataset,
  Normalize,
  RandomCrop,
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
const preprocessing = [
  new RandomCrop(),
  new Resize(),
  new ScaleJitter(0.7, 1.4),
  new HorizontalFlip(),
  new Normalize(),
];
using decoder = new DeviceBatchDecoder(device, { batchSize, height: size, width: size, preprocessing });
await using loader = new CocoDataLoader({
  store: dataset.store,
  source: dataset.source,
  split: args.split,
  size: [size, size],
  sampler: sampler(),
  batchSampler: args["group-by-aspect"] ? new AspectRatioBatches() : undefined,
  ...{ decoder, batchSize, preprocessing },
});

console.log(
  `${batches} batches of ${batchSize} images at ${size}x${size}, ${args.sampler}; ${loader.length} batches a pass`,
);
const MIB = 2 ** 20;
const every = Math.floor(batches / 20);
/** The most memory while each part of the batches was loaded, in bytes. */
const most: number[] = [];
let peak = 0;
const started = performance.now();
let shown = started;
for (let done = 1; done <= batches; done++) {
  (await loader.getBatch()).release();
  peak = Math.max(peak, process.memoryUsage.rss());
  if (done % every === 0 && most.length < 20) {
    most.push(peak);
    peak = 0;
  }
  const now = performance.now();
  if (now - shown < 2000 && done < batches) continue;
  shown = now;
  const seconds = (now - started) / 1000;
  const resident = (process.memoryUsage.rss() / MIB).toFixed(0);
  console.log(`${done}/${batches}  ${((done * batchSize) / seconds).toFixed(0)} images/s  ${resident} MiB resident`);
}
console.log(`most in each twentieth, MiB: ${most.map((bytes) => (bytes / MIB).toFixed(0)).join(" ")}`);
const before = Math.max(...most.slice(2, 4));
const after = Math.max(...most.slice(-4));
const growth = 100 * (after / before - 1);
console.log(
  `second tenth ${(before / MIB).toFixed(1)} MiB, last fifth ${(after / MIB).toFixed(1)} MiB: ` +
    `${growth >= 0 ? "+" : ""}${growth.toFixed(2)} % (limit 5 %)`,
);
if (growth > 5) {
  console.error("check-loader-memory: memory grows with the number of batches");
  process.exitCode = 1;
}

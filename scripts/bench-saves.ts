/**
 * What saving costs a training: the time of a step without checkpoints, and with one every so many steps, in turns. The batch is
 * synthetic and on the device; checkpoints hold weights, momentum and averages, and go to a folder of --out.
 *
 *   bun run scripts/bench-saves.ts [--model NAME] [--batch 32] [--size 640] [--precision bf16] [--steps 200] [--every 100]
 *     [--repetitions 2] [--tune-ms N] [--out DIR] [--backend cuda] [--json FILE]
 */
import { mkdtempSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import type { Precision } from "../lib/bench/measure";
import { BOXES, makeModel, type NetworkSettings, syntheticImages, syntheticTargets } from "../lib/bench/network";
import { type BatchImages, DataLoader, type DetectionBatch, type DetectionLoader, type LoaderState } from "../lib/data";
import { formatBytes } from "../lib/layers/summary";
import type { BackendName } from "../lib/native";
import { Device } from "../lib/tensor";
import { autotune, constantRate, Trainer } from "../lib/train";

const { values: args } = parseArgs({
  options: {
    model: { type: "string", default: "retinanet_resnet50_fpn" },
    batch: { type: "string", default: "32" },
    size: { type: "string", default: "640" },
    precision: { type: "string", default: "bf16" },
    steps: { type: "string", default: "200" },
    every: { type: "string", default: "100" },
    repetitions: { type: "string", default: "2" },
    "tune-ms": { type: "string" },
    out: { type: "string", default: tmpdir() },
    backend: { type: "string" },
    json: { type: "string" },
  },
});
const [batch, side, steps, every, repetitions] = [args.batch, args.size, args.steps, args.every, args.repetitions].map(
  Number,
) as [number, number, number, number, number];
for (const [name, value] of Object.entries({ batch, side, steps, every, repetitions })) {
  if (!Number.isSafeInteger(value) || value < 1) throw new Error(`--${name}: expected an integer from 1, got ${value}`);
}
const WARM_UP = 10;

const settings = {
  ...{ model: args.model, batch, size: [side, side], classes: 91, precision: args.precision as Precision, repetitions },
  ...(args.model.startsWith("retinanet") && { norm: "batch" as const, trainableLayers: 5 }),
} as NetworkSettings;

/** The same batch again and again. */
class OneBatch extends DataLoader<DetectionBatch> implements DetectionLoader {
  override readonly length = Number.POSITIVE_INFINITY;
  override readonly waitSeconds = 0;
  override readonly preprocessing = [];
  readonly maxBoxes = BOXES;
  readonly height = side;
  readonly width = side;
  readonly batchSize = batch;
  readonly #targets = syntheticTargets(settings);

  override async getBatch(): Promise<DetectionBatch> {
    const release = () => {};
    const place = { slot: 0, n: batch, images: [], epoch: 0, index: 0, size: [side, side] as const };
    return { ...place, ...this.#targets, release, [Symbol.dispose]: release };
  }

  override state(): LoaderState {
    const order = { seed: 0, shuffle: false, batchSize: batch, images: batch, dropLast: true };
    return { epoch: 0, position: 0, ...order } as LoaderState;
  }

  stateAfter(): LoaderState {
    return this.state();
  }

  override restore(): void {}

  override async dispose(): Promise<void> {}
}

const device = new Device({ backend: args.backend as BackendName | undefined }, console.log);
if (args["tune-ms"] !== undefined) autotune(device, { ms: Number(args["tune-ms"]) });
const folder = mkdtempSync(join(resolve(args.out), "dlfs-bench-saves-"));
let bytes = 0;

/** Milliseconds of a step, after those that warm up, from report to report. */
async function train(saves: boolean): Promise<{ ms: number; saved: number; seconds: number }> {
  using model = makeModel(settings, device);
  using images = syntheticImages(device, settings);
  const decoder: BatchImages = { batchSize: batch, height: side, width: side, images: () => images };
  const times: number[] = [];
  const began = new Map<number, number>();
  const took: number[] = [];
  using trainer = new Trainer({
    ...{ model, decoder, loader: new OneBatch(), iterations: WARM_UP + steps, ema: { decay: 0.999 } },
    optimizer: { schedule: constantRate(1e-4), weightDecay: 1e-4 },
    ...(saves && { checkpointFolder: folder, checkpointEvery: every }),
    observer: {
      onResult: () => void times.push(performance.now()),
      onCheckpointStart: (iteration) => void began.set(iteration, performance.now()),
      onCheckpoint: (path, iteration) => {
        bytes = Bun.file(path).size;
        // The last one is behind the steps.
        if (iteration < WARM_UP + steps) took.push(performance.now() - (began.get(iteration) ?? 0));
      },
    },
  });
  await trainer.train();
  const [first, last] = [times[WARM_UP - 1], times.at(-1)] as [number, number];
  const seconds = took.reduce((sum, ms) => sum + ms, 0) / Math.max(1, took.length) / 1000;
  return { ms: (last - first) / steps, saved: took.length, seconds };
}

try {
  const without: number[] = [];
  const withSaves: number[] = [];
  let last = { saved: 0, seconds: 0 };
  for (let i = 0; i < repetitions; i++) {
    without.push((await train(false)).ms);
    last = await train(true);
    withSaves.push((last as Awaited<ReturnType<typeof train>>).ms);
  }
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [a, b] = [mean(without), mean(withSaves)];
  const rise = 100 * (b / a - 1);
  const text = (values: readonly number[]) => values.map((ms) => ms.toFixed(2)).join(", ");
  console.log(
    `${args.model}, ${batch} images of ${side}x${side}, ${args.precision}, ${steps} steps, on ${device.info.name}`,
  );
  console.log(`a step without checkpoints: ${a.toFixed(2)} ms (${text(without)})`);
  console.log(
    `with one of ${formatBytes(bytes)} every ${every} steps: ${b.toFixed(2)} ms (${text(withSaves)}), ${rise.toFixed(2)} % more; ` +
      `written in ${last.seconds.toFixed(2)} s behind the steps (${last.saved} of them)`,
  );
  if (args.json !== undefined) {
    const { type } = statfsSync(folder);
    const work = {
      model: args.model,
      batch,
      size: side,
      precision: args.precision,
      steps,
      every,
      repetitions,
      warmUp: WARM_UP,
    };
    const found = { without, withSaves, risePercent: rise, checkpointBytes: bytes, writeSeconds: last.seconds };
    await Bun.write(
      args.json,
      `${JSON.stringify({ device: device.info, fileSystem: type, work, ...found }, null, 2)}\n`,
    );
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
  device.dispose();
}

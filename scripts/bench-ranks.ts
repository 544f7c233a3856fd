/**
 * How well a training step scales: each rank trains on a synthetic batch first by itself, all at the same time, then together.
 *
 *   bun run dlfs launch --gpus 4 -- scripts/bench-ranks.ts [--model NAME] [--batch N] [--size N] [--precision P] [--steps N]
 *     [--bucket-mib N,...] [--sync-bn]
 *
 * --batch is each rank's; --bucket-mib may name several sizes of gradients' buckets, which are tried in turn. Prints images/s of each
 * rank alone, of all keeping step with nothing reduced but the losses, and of all together, with their shares of the ranks' sum and
 * quantiles of a step's milliseconds on each rank.
 */
import { parseArgs } from "node:util";
import {
  autotune,
  constantRate,
  DataParallel,
  Device,
  deviceOfRank,
  ProcessGroup,
  ranksFromEnvironment,
  SGD,
  synchronizeBatchNorm,
  TrainStep,
} from "../lib";
import type { Precision } from "../lib/bench/measure";
import { BOXES, makeModel, type NetworkSettings, syntheticImages, syntheticTargets } from "../lib/bench/network";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "retinanet_resnet50_fpn" },
    batch: { type: "string", default: "32" },
    size: { type: "string", default: "640" },
    precision: { type: "string", default: "bf16" },
    steps: { type: "string", default: "40" },
    "bucket-mib": { type: "string", default: "25" },
    "sync-bn": { type: "boolean", default: false },
  },
});
const [batch, side, steps] = [Number(values.batch), Number(values.size), Number(values.steps)];
const bucketSizes = values["bucket-mib"].split(",").map(Number);
const WARM_UP = 5;
interface Measured {
  /** Of a step. */
  ms: number;
  /** 5, 25, 50, 75 and 95 % of the steps took less. */
  quantiles: number[];
}

/** Ranks that keep step with each other, their gradients their own: what waiting for the slowest costs by itself. */
class InStep extends DataParallel {
  override gradientCalls() {
    return [];
  }
}

const ranks = ranksFromEnvironment();
if (!ranks) throw new Error("start it by dlfs launch, torchrun, srun or mpirun");
const group = await ProcessGroup.join({ ranks, facts: { values } });

await group.run(async () => {
  using device = new Device(deviceOfRank(ranks, process.env.DLFS_BACKEND ?? "cuda"));
  const communicator = await group.connect(device);
  const settings: NetworkSettings = {
    ...{ model: values.model, batch, size: [side, side], classes: 91, precision: values.precision as Precision },
    ...(values.model.startsWith("retinanet") && { norm: "batch" as const, trainableLayers: 5 }),
    repetitions: steps,
  };
  /** Milliseconds of a step, after warming up: of this rank alone, or of all together with buckets of so many MiB. */
  const measure = async (bucketMib: number | null): Promise<Measured> => {
    const together = bucketMib !== null;
    using model = makeModel(settings, device);
    if (together && values["sync-bn"]) synchronizeBatchNorm(model, communicator);
    autotune(device);
    using optimizer = new SGD(model, { schedule: constantRate(1e-4), iterations: steps + WARM_UP });
    using images = syntheticImages(device, settings);
    const targets = syntheticTargets(settings);
    const Kind = bucketMib === 0 ? InStep : DataParallel;
    const bucketBytes = (bucketMib || 25) * 2 ** 20;
    const parallel = together ? new Kind(model, communicator, { bucketBytes }) : undefined;
    const shape = { batchSize: batch, height: side, width: side, maxBoxes: BOXES };
    using step = new TrainStep(model, optimizer, { ...shape, parallel });
    for (let i = 0; i < WARM_UP; i++) await step.submit(images, targets);
    await step.drain();
    await group.barrier("measure");
    const started = performance.now();
    const each: number[] = [];
    let before = started;
    for (let i = 0; i < steps; i++) {
      // Returns when the step before the last one is done, once two are under way.
      await step.submit(images, targets);
      const now = performance.now();
      if (i >= 4) each.push(now - before);
      before = now;
    }
    await step.drain();
    const ms = (performance.now() - started) / steps;
    each.sort((a, b) => a - b);
    return {
      ms,
      quantiles: [0.05, 0.25, 0.5, 0.75, 0.95].map((share) => each[Math.floor(share * each.length)] as number),
    };
  };
  const alone = await group.exchangeJson("alone", await measure(null));
  const together: { bucketMib: number; all: Measured[] }[] = [];
  for (const bucketMib of [0, ...bucketSizes]) {
    together.push({ bucketMib, all: await group.exchangeJson(`together ${bucketMib}`, await measure(bucketMib)) });
  }
  await group.disconnect();
  if (!group.isRoot) return;
  const rate = (ms: number) => (1000 * batch) / ms;
  const one = alone.map(({ ms }) => rate(ms));
  const spread = (all: Measured[]) =>
    all.map(({ quantiles }) => quantiles.map((ms) => ms.toFixed(2)).join(" ")).join("; ");
  const sum = one.reduce((a, b) => a + b, 0);
  const what = `${values.model} ${side}x${side} ${values.precision}, batch ${batch} on each of ${ranks.world} ranks`;
  console.log(`${what}${values["sync-bn"] ? ", synchronized batch normalization" : ""}, ${device.info.name}`);
  console.log(
    `alone:    ${one.map((each) => each.toFixed(1)).join(", ")} images/s; ms of a step at 5, 25, 50, 75, 95 %: ${spread(alone)}`,
  );
  for (const { bucketMib, all } of together) {
    const images = ranks.world * rate(Math.max(...all.map(({ ms }) => ms)));
    const share = `${((100 * images) / sum).toFixed(1)} % of ${sum.toFixed(1)}`;
    const [what, how] =
      bucketMib === 0 ? ["in step: ", "only losses reduced"] : ["together:", `in buckets of ${bucketMib} MiB`];
    console.log(`${what} ${images.toFixed(1)} images/s, ${share}, ${how}; ${spread(all)}`);
  }
});
process.exit(0);

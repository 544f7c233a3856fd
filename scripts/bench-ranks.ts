/**
 * How well a training step scales: each rank trains on a synthetic batch first by itself, all at the same time, then together.
 *
 *   bun run dlfs launch --gpus 4 -- scripts/bench-ranks.ts [--model NAME] [--batch N] [--size N] [--precision P] [--steps N]
 *     [--bucket-mib N,...] [--sync-bn]
 *
 * --batch is each rank's; --bucket-mib may name several sizes of gradients' buckets, which are tried in turn. Prints images/s of one rank alone (the ranks' mean), of all together, and the share of the ranks' sum.
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
  const measure = async (bucketMib: number | null): Promise<number> => {
    const together = bucketMib !== null;
    using model = makeModel(settings, device);
    if (together && values["sync-bn"]) synchronizeBatchNorm(model, communicator);
    autotune(device);
    using optimizer = new SGD(model, { schedule: constantRate(1e-4), iterations: steps + WARM_UP });
    using images = syntheticImages(device, settings);
    const targets = syntheticTargets(settings);
    const parallel = together ? new DataParallel(model, communicator, { bucketBytes: bucketMib * 2 ** 20 }) : undefined;
    const shape = { batchSize: batch, height: side, width: side, maxBoxes: BOXES };
    using step = new TrainStep(model, optimizer, { ...shape, parallel });
    for (let i = 0; i < WARM_UP; i++) await step.submit(images, targets);
    await step.drain();
    await group.barrier("measure");
    const started = performance.now();
    for (let i = 0; i < steps; i++) await step.submit(images, targets);
    await step.drain();
    return (performance.now() - started) / steps;
  };
  const alone = await group.exchangeJson("alone", await measure(null));
  const together: { bucketMib: number; ms: number }[] = [];
  for (const bucketMib of bucketSizes) {
    const ms = Math.max(...(await group.exchangeJson(`together ${bucketMib}`, await measure(bucketMib))));
    together.push({ bucketMib, ms });
  }
  await group.disconnect();
  if (!group.isRoot) return;
  const rate = (ms: number) => (1000 * batch) / ms;
  const one = alone.map(rate);
  const sum = one.reduce((a, b) => a + b, 0);
  const what = `${values.model} ${side}x${side} ${values.precision}, batch ${batch} on each of ${ranks.world} ranks`;
  console.log(`${what}${values["sync-bn"] ? ", synchronized batch normalization" : ""}, ${device.info.name}`);
  console.log(`alone:    ${one.map((each) => each.toFixed(1)).join(", ")} images/s`);
  for (const { bucketMib, ms } of together) {
    const all = ranks.world * rate(ms);
    const share = `${((100 * all) / sum).toFixed(1)} % of ${sum.toFixed(1)}`;
    console.log(`together: ${all.toFixed(1)} images/s, ${share}, in buckets of ${bucketMib} MiB`);
  }
});
process.exit(0);

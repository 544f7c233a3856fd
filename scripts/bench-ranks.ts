/**
 * How well a training step scales: each rank trains on a synthetic batch by itself, all at the same time, then together, in turns.
 *
 *   bun run dlfs launch --gpus 4 -- scripts/bench-ranks.ts [--model NAME] [--batch N] [--size N] [--precision P] [--steps N]
 *     [--rounds N] [--bucket-mib N,...] [--sync-bn] [--at-end] [--share S]
 *
 * --batch is each rank's; --bucket-mib may name several sizes of gradients' buckets, which are tried in turn. Prints images/s of each
 * rank alone, of all keeping step with nothing reduced but the losses, and of all together, with their shares of the ranks' sum and
 * quantiles of a step's milliseconds on each rank. For seeing what reductions cost: --at-end does them all behind the backward pass,
 * --share only of a share of each bucket (0.01: a hundredth; what is trained is wrong then).
 */
import { parseArgs } from "node:util";
import {
  autotune,
  type Call,
  constantRate,
  DataParallel,
  Device,
  deviceOfRank,
  type GradientCall,
  ProcessGroup,
  ranksFromEnvironment,
  SGD,
  synchronizeBatchNorm,
  Tensor,
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
    rounds: { type: "string", default: "5" },
    "bucket-mib": { type: "string", default: "25" },
    "sync-bn": { type: "boolean", default: false },
    "at-end": { type: "boolean", default: false },
    share: { type: "string", default: "1" },
  },
});
const [batch, side, steps] = [Number(values.batch), Number(values.size), Number(values.steps)];
const bucketSizes = values["bucket-mib"].split(",").map(Number);
const rounds = Number(values.rounds);
const WARM_UP = 5;
interface Measured {
  /** Of a step, by round. */
  ms: number[];
  /** 5, 25, 50, 75 and 95 % of the steps took less. */
  quantiles: number[];
}

/** Ranks that keep step with each other, their gradients their own: what waiting for the slowest costs by itself. */
class InStep extends DataParallel {
  override gradientCalls() {
    return [];
  }
}

/** With reductions as --at-end and --share say. */
class Diagnosed extends DataParallel {
  override gradientCalls(): GradientCall[] {
    const share = Number(values.share);
    const calls = super.gradientCalls();
    return values["at-end"] ? [] : share === 1 ? calls : calls.map((call) => this.#part(call, share));
  }

  override lossCalls(...args: Parameters<DataParallel["lossCalls"]>): Call[] {
    const share = Number(values.share);
    const { stream } = args[0];
    const held = values["at-end"] ? super.gradientCalls() : [];
    const reductions = held.map((call) => (share === 1 ? call : this.#part(call, share)));
    const calls = reductions.map(({ kind, path, run }): Call => ({ kind, path, outputs: [], run: () => run(stream) }));
    return [...calls, ...super.lossCalls(...args)];
  }

  /** A reduction of the first values of its bucket. */
  #part(call: GradientCall, share: number): GradientCall {
    const gradients = call.parameters.map(({ grad }) => grad!);
    const address = Math.min(...gradients.map((gradient) => gradient.address));
    const end = Math.max(...gradients.map((gradient) => gradient.address + gradient.byteLength));
    const { communicator } = this;
    const part = Tensor.at(communicator.device, address, [Math.ceil((share * (end - address)) / 4)], "f32");
    return { ...call, run: (stream) => communicator.allReduce(stream, [part], call.path, "average") };
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
  using disposables = new DisposableStack();
  /** A training of this rank alone, or of all together with buckets of so many MiB. */
  const prepare = async (bucketMib: number | null) => {
    const together = bucketMib !== null;
    const model = disposables.use(makeModel(settings, device));
    if (together && values["sync-bn"]) synchronizeBatchNorm(model, communicator);
    autotune(device);
    const optimizer = disposables.use(new SGD(model, { schedule: constantRate(1e-4), iterations: 10 ** 6 }));
    const images = disposables.use(syntheticImages(device, settings));
    const targets = syntheticTargets(settings);
    const Kind = bucketMib === 0 ? InStep : Diagnosed;
    const bucketBytes = (bucketMib || 25) * 2 ** 20;
    const parallel = together ? new Kind(model, communicator, { bucketBytes }) : undefined;
    const shape = { batchSize: batch, height: side, width: side, maxBoxes: BOXES };
    const step = disposables.use(new TrainStep(model, optimizer, { ...shape, parallel }));
    const run = async (count: number, each?: number[]) => {
      let before = performance.now();
      for (let i = 0; i < count; i++) {
        // Returns when the step before the last one is done, once two are under way.
        await step.submit(images, targets);
        const now = performance.now();
        if (i >= 4) each?.push(now - before);
        before = now;
      }
      await step.drain();
    };
    await run(WARM_UP);
    return { bucketMib, run, ms: [] as number[], each: [] as number[] };
  };
  const kinds: Awaited<ReturnType<typeof prepare>>[] = [];
  for (const bucketMib of [null, 0, ...bucketSizes]) kinds.push(await prepare(bucketMib));
  // In turns, as a GPU at its limit of power slows down as it gets warm.
  for (let round = 0; round < rounds; round++) {
    for (const { run, ms, each } of kinds) {
      await group.barrier("measure");
      const started = performance.now();
      await run(steps, each);
      ms.push((performance.now() - started) / steps);
    }
  }
  const all: { bucketMib: number | null; all: Measured[] }[] = [];
  for (const { bucketMib, ms, each } of kinds) {
    each.sort((a, b) => a - b);
    const quantiles = [0.05, 0.25, 0.5, 0.75, 0.95].map((share) => each[Math.floor(share * each.length)] as number);
    all.push({ bucketMib, all: await group.exchangeJson(`measured ${bucketMib}`, { ms, quantiles }) });
  }
  const [{ all: alone }, ...together] = all as [(typeof all)[0], ...typeof all];
  await group.disconnect();
  if (!group.isRoot) return;
  const rate = (ms: number) => (1000 * batch) / ms;
  const median = (numbers: number[]) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1] as number;
  const one = alone.map(({ ms }) => rate(median(ms)));
  const spread = (all: Measured[]) =>
    all.map(({ quantiles }) => quantiles.map((ms) => ms.toFixed(2)).join(" ")).join("; ");
  const sum = one.reduce((a, b) => a + b, 0);
  const what = `${values.model} ${side}x${side} ${values.precision}, batch ${batch} on each of ${ranks.world} ranks`;
  const diagnosis = `${values["at-end"] ? ", all at the end" : ""}${values.share === "1" ? "" : `, ${values.share} of the bytes`}`;
  console.log(
    `${what}${values["sync-bn"] ? ", synchronized batch normalization" : ""}, ${device.info.name}${diagnosis}`,
  );
  console.log(
    `alone:    ${one.map((each) => each.toFixed(1)).join(", ")} images/s; ms of a step at 5, 25, 50, 75, 95 %: ${spread(alone)}`,
  );
  for (const { bucketMib, all } of together) {
    // Of each round, by the rank that took longest.
    const times = Array.from({ length: rounds }, (_, round) => Math.max(...all.map(({ ms }) => ms[round] as number)));
    const images = ranks.world * rate(median(times));
    const each = times.map((ms, round) => {
      const sum = alone.reduce((sum, { ms }) => sum + rate(ms[round] as number), 0);
      return ((100 * ranks.world * rate(ms)) / sum).toFixed(1);
    });
    const share = `${((100 * images) / sum).toFixed(1)} % of ${sum.toFixed(1)}`;
    const [what, how] =
      bucketMib === 0 ? ["in step: ", "only losses reduced"] : ["together:", `in buckets of ${bucketMib} MiB`];
    console.log(
      `${what} ${images.toFixed(1)} images/s, ${share}, ${how} (by round: ${each.join(", ")}); ${spread(all)}`,
    );
  }
});
process.exit(0);

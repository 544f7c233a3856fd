/**
 * What checkpoints cost a training that goes on meanwhile: milliseconds of a step in runs of steps with saves and without, in turn.
 *
 *   bun run scripts/bench-saves.ts [--model NAME] [--batch N] [--size N] [--precision P] [--steps N] [--every N] [--rounds N]
 *
 * A synthetic batch, momentum and averaged weights; a save every N steps, written to a folder of the machine's temporary files. Prints
 * the median of the rounds, and what a save holds.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { autotune, constantRate, Device, Ema, SGD, TrainStep } from "dlfs";
import { type Precision, timingOf } from "../lib/bench/measure";
import { BOXES, makeModel, type NetworkSettings, syntheticImages, syntheticTargets } from "../lib/bench/network";
import { CheckpointStore } from "../lib/formats";
import { Checkpointing } from "../lib/train/checkpointing";
import { namedTensors } from "../lib/train/training-state";
import { versionsOf } from "../lib/train/versions";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "retinanet_resnet50_fpn" },
    batch: { type: "string", default: "32" },
    size: { type: "string", default: "640" },
    precision: { type: "string", default: "bf16" },
    steps: { type: "string", default: "60" },
    every: { type: "string", default: "20" },
    rounds: { type: "string", default: "5" },
  },
});
const [batch, side, steps, every, rounds] = [values.batch, values.size, values.steps, values.every, values.rounds].map(
  (text) => Number(text),
) as [number, number, number, number, number];

using device = new Device();
const settings: NetworkSettings = {
  ...{ model: values.model, batch, size: [side, side], classes: 91, precision: values.precision as Precision },
  ...(values.model.startsWith("retinanet") && { norm: "batch" as const, trainableLayers: 5 }),
  repetitions: rounds,
};
autotune(device);
using model = makeModel(settings, device);
using optimizer = new SGD(model, { schedule: constantRate(1e-5), iterations: 1e6 });
using ema = new Ema(model);
using images = syntheticImages(device, settings);
const targets = syntheticTargets(settings);
using step = new TrainStep(model, optimizer, { batchSize: batch, height: side, width: side, maxBoxes: BOXES, ema });
const folder = await mkdtemp(join(tmpdir(), "dlfs-saves-"));
const store = new CheckpointStore(folder, { keepLast: 2 });
using checkpointing = new Checkpointing(model, optimizer, ema, store);

let iteration = 0;
/** Milliseconds of a step, of `steps` in a row; what is still being written at their end is waited for outside of the time. */
async function run(saves: boolean): Promise<number> {
  await checkpointing.settled();
  const started = performance.now();
  for (let i = 1; i <= steps; i++) {
    await step.submit(images, targets);
    iteration++;
    if (!saves || i % every !== 0) continue;
    const created = Date.now();
    const rest = { config: {}, versions: versionsOf(device), random: [], history: [], convPicks: [], state: {} };
    const { saved } = await checkpointing.save({ iteration, epoch: 0, created, ...rest });
    saved.then(({ path }) => {
      if (path === null) throw new Error(`the state of step ${iteration} was not finite`);
    });
  }
  await step.drain();
  return (performance.now() - started) / steps;
}

try {
  for (const saves of [false, true]) await run(saves);
  const times: Record<"without" | "with", number[]> = { without: [], with: [] };
  for (let round = 0; round < rounds; round++) {
    times.without.push(await run(false));
    times.with.push(await run(true));
  }
  await checkpointing.settled();
  const bytes = [...namedTensors(model, optimizer, ema)].reduce((sum, [, tensor]) => sum + tensor.byteLength, 0);
  const [without, withSaves] = [timingOf(times.without).ms, timingOf(times.with).ms];
  console.log(`${values.model} ${side}x${side} ${values.precision}, batch ${batch}, ${device.info.name}`);
  console.log(
    `checkpoints of ${(bytes / 2 ** 20).toFixed(0)} MiB, one every ${every} steps; median of ${rounds} rounds of ${steps} steps`,
  );
  for (const [name, list] of Object.entries(times)) {
    console.log(
      `${name.padEnd(8)} ${timingOf(list).ms.toFixed(2)} ms a step (${list.map((ms) => ms.toFixed(2)).join(", ")})`,
    );
  }
  console.log(`a step takes ${(100 * (withSaves / without - 1)).toFixed(2)} % more`);
} finally {
  await checkpointing.settled();
  await rm(folder, { recursive: true, force: true });
}

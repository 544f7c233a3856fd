/** Whole networks: a training step, the network alone, and a whole call from images to boxes, on a synthetic batch. */
import { Program, type RecomputeOption } from "../graph";
import { type DetectionModel, type ModelConfig, modelFromConfig, namedModel } from "../models";
import { type Device, Tensor } from "../tensor";
import { autotune, constantRate, DetectStep, type HostTargets, SGD, TrainStep } from "../train";
import { type Ceilings, fillNormal, type Precision, type Timing, timeEach, timeOnHost } from "./measure";
import { type CallTiming, profileCalls } from "./profile";
import type { BenchRow } from "./results";
import type { NodeWork } from "./work";

export interface NetworkSettings {
  /** One of `detectorNames`. */
  model: string;
  batch: number;
  size: readonly [height: number, width: number];
  classes: number;
  precision: Precision;
  /** Normalization of the backbone, of models that have the choice. */
  norm?: "batch" | "frozen";
  /** Stages of the backbone that train, from the deepest, of models that have the choice. */
  trainableLayers?: number;
  /** At least 1; 15 or more for figures that are to be compared. */
  repetitions: number;
  /** Runs in a row when a call is timed alone. */
  profileRuns?: number;
  /** Streams that captured programs are spread over; see ProgramOptions. */
  lanes?: number;
  /** What a training step computes again in its backward pass; see ProgramOptions. */
  recompute?: RecomputeOption;
  /** Whether the device is one that gives the same bytes each run. */
  deterministic?: boolean;
}

export interface NetworkBench {
  rows: BenchRow[];
  /** The calls of the (first) program, timed alone. */
  profile: CallTiming[];
}

/** Boxes of an image of the synthetic batch. */
const BOXES = 16;
const WARM_UP = 5;

/** The model of the settings on a device, with random weights. */
export function makeModel(
  { model, classes, norm, trainableLayers, precision }: NetworkSettings,
  device: Device,
): DetectionModel {
  const options = { classes, ...(norm && { norm }), ...(trainableLayers !== undefined && { trainableLayers }) };
  const made = modelFromConfig({ ...namedModel(model), ...options } as ModelConfig, `--model ${model}`);
  return made.to(device, { precision, seed: 0 });
}

/** A fixed sequence of numbers from 0 to 1 (Numerical Recipes' linear congruential generator). */
function fixedRandom(): () => number {
  let state = 1;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Boxes of a tenth to a third of the image, anywhere in it. */
function syntheticTargets({ batch, size: [height, width], classes }: NetworkSettings): HostTargets {
  const random = fixedRandom();
  const boxes = new Float32Array(batch * BOXES * 4);
  for (let i = 0; i < batch * BOXES; ++i) {
    const [w, h] = [width * (0.1 + 0.23 * random()), height * (0.1 + 0.23 * random())];
    const [x, y] = [random() * (width - w), random() * (height - h)];
    boxes.set([x, y, x + w, y + h], 4 * i);
  }
  const labels = Int32Array.from({ length: batch * BOXES }, () => Math.floor(random() * classes));
  return { boxes, labels, counts: new Int32Array(batch).fill(BOXES) };
}

function syntheticImages(device: Device, { batch, size, precision }: NetworkSettings): Tensor {
  const images = Tensor.empty(device, [batch, ...size, 3], precision);
  try {
    fillNormal(device, images);
    return images;
  } catch (error) {
    images.dispose();
    throw error;
  }
}

/** RGB pixels of noise. */
function syntheticPixels(device: Device, { batch, size }: NetworkSettings): Tensor {
  const pixels = Tensor.empty(device, [batch, ...size, 3], "u8");
  try {
    const random = fixedRandom();
    pixels.writeBytes(Uint8Array.from({ length: pixels.byteLength }, () => 256 * random()));
    return pixels;
  } catch (error) {
    pixels.dispose();
    throw error;
  }
}

/** SGD with momentum reads a weight, its gradient and its momentum in fp32, and writes the weight, its copy and the momentum. */
function updateWork(model: DetectionModel): Record<string, NodeWork> {
  const trained = model.parameters().filter(({ grad }) => grad);
  const bytes = trained.reduce((sum, { size, copy }) => sum + size * (20 + (copy ? 2 : 0)), 0);
  return { sgd: { flops: 0, bytes, floorBytes: bytes } };
}

function row(bench: string, name: string, timing: Timing, profile: CallTiming[], settings: NetworkSettings): BenchRow {
  const sum = (field: "flops" | "floorMs") => profile.reduce((total, call) => total + call[field], 0);
  const { batch: images } = settings;
  return { bench, name, ...timing, warmUp: WARM_UP, images, flops: sum("flops"), floorMs: sum("floorMs") };
}

/** "retinanet_resnet50_fpn 32x640x640 bf16, norm batch, 5 stages". */
export function networkName(settings: NetworkSettings): string {
  const { model, batch, size, precision, norm, trainableLayers, lanes, deterministic } = settings;
  const parts = [`${model} ${batch}x${size.join("x")} ${precision}`];
  if (norm) parts.push(`norm ${norm}`);
  if (trainableLayers !== undefined) parts.push(`${trainableLayers} stages`);
  if (lanes !== undefined) parts.push(`${lanes} lanes`);
  if (deterministic) parts.push("deterministic");
  return parts.join(", ");
}

/** The network's name with what is computed again. */
function trainingName(settings: NetworkSettings): string {
  const { recompute } = settings;
  if (recompute === undefined || recompute === false) return networkName(settings);
  return `${networkName(settings)}, recompute ${recompute === true ? "all" : `to ${recompute} bytes`}`;
}

/** Times a training step: schedule, forward, target assignment, losses, backward, SGD with momentum; one launch. */
export async function benchTraining(
  device: Device,
  settings: NetworkSettings,
  ceilings: Ceilings,
): Promise<NetworkBench> {
  const { batch, size, repetitions, profileRuns, lanes, recompute } = settings;
  const before = device.memory().allocated;
  autotune(device);
  using model = makeModel(settings, device);
  using optimizer = new SGD(model, { schedule: constantRate(1e-4), iterations: 1_000_000 });
  const shape = { batchSize: batch, height: size[0], width: size[1], maxBoxes: BOXES };
  using step = new TrainStep(model, optimizer, { ...shape, lanes, recompute });
  using images = syntheticImages(device, settings);
  const memoryBytes = device.memory().allocated - before;
  await step.submit(images, syntheticTargets(settings));
  await step.drain();
  const { program } = step;
  const timing = timeEach(device, program.stream, () => program.run(), { repetitions, warmUp: WARM_UP });
  const profile = profileCalls(program, ceilings, { runs: profileRuns, extra: updateWork(model) });
  return {
    rows: [{ ...row("train", `step, ${trainingName(settings)}`, timing, profile, settings), memoryBytes }],
    profile,
  };
}

/** Times inference: the network alone, and the whole call from uint8 images on the device to boxes on the host. */
export async function benchInference(
  device: Device,
  settings: NetworkSettings,
  ceilings: Ceilings,
): Promise<NetworkBench> {
  const { batch, size, precision, repetitions, profileRuns, lanes } = settings;
  const name = networkName({ ...settings, trainableLayers: undefined });
  autotune(device);
  const before = device.memory().allocated;
  using model = makeModel(settings, device);
  model.eval();
  using images = syntheticImages(device, settings);
  const held = device.memory().allocated - before;
  const limits = { repetitions, warmUp: WARM_UP };

  const network = (): NetworkBench => {
    using program = new Program(
      device,
      { images: { shape: [batch, ...size, 3], dtype: precision } },
      ({ images: values }) => ({ ...model.forward(values!) }),
      { lanes },
    );
    program.inputs.images!.copyFrom(images, program.stream);
    const timing = timeEach(device, program.stream, () => program.run(), limits);
    const profile = profileCalls(program, ceilings, { runs: profileRuns });
    const one = row("infer", `network only, ${name}`, timing, profile, settings);
    return { rows: [{ ...one, memoryBytes: held + program.arenaBytes }], profile };
  };
  const alone = network();

  using pixels = syntheticPixels(device, settings);
  const shape = { batchSize: batch, height: size[0], width: size[1] };
  using step = new DetectStep(model, { ...shape, images: "pixels", lanes });
  const whole = await timeOnHost(() => step.run(pixels, batch), limits);
  const { warmUp, images: count } = alone.rows[0]!;
  const memoryBytes = held + step.program.arenaBytes;
  alone.rows.push({ bench: "infer", name: `whole call, ${name}`, ...whole, warmUp, images: count, memoryBytes });
  return alone;
}

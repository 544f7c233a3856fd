/** Whole networks: a training step, the network alone, and a whole call from images to boxes, on a synthetic batch. */
import { applyOp, type Op, Program, type RecomputeOption, type Value } from "../graph";
import { type DetectionModel, type ModelConfig, modelFromConfig, namedModel } from "../models";
import { type Device, type QuantizedDType, Tensor } from "../tensor";
import {
  autotune,
  calibrate,
  constantRate,
  DetectStep,
  type HostTargets,
  type Quantization,
  rewriteOf,
  SGD,
  TrainStep,
} from "../train";
import { type Ceilings, fillNormal, type Precision, type Timing, timeEach, timeOnHost } from "./measure";
import { type CallTiming, profileCalls, workOfCalls } from "./profile";
import type { BenchRow } from "./results";
import { floorOf, type NodeWork } from "./work";

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
  /** Of inference: convolutions of 8 bits, calibrated on the batch. */
  quantize?: QuantizedDType;
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
  /** Whether the device is one whose fp32 convolutions may round to TF32. */
  tf32?: boolean;
}

export interface NetworkBench {
  rows: BenchRow[];
  /** The calls of the (first) program, timed alone. */
  profile: CallTiming[];
}

/** Boxes of an image of the synthetic batch. */
export const BOXES = 16;
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
export function syntheticTargets({ batch, size: [height, width], classes }: NetworkSettings): HostTargets {
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

export function syntheticImages(device: Device, { batch, size, precision }: NetworkSettings): Tensor {
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

/** The row of a program that was timed, with what its calls do at least. */
function rowOf(
  program: Program,
  row: Pick<BenchRow, "bench" | "name" | "images" | "memoryBytes"> & Timing,
  ceilings: Ceilings,
  extra?: Readonly<Record<string, NodeWork>>,
): BenchRow {
  const works = workOfCalls(program, extra);
  const flops = works.reduce((sum, work) => sum + work.flops, 0);
  const floorMs = works.reduce((sum, work) => sum + floorOf(work, ceilings), 0);
  return { ...row, warmUp: WARM_UP, flops, floorMs };
}

/** "retinanet_resnet50_fpn 32x640x640 bf16, norm batch, 5 stages". */
export function networkName(settings: NetworkSettings): string {
  const { model, batch, size, precision, norm, trainableLayers, lanes, deterministic, tf32, quantize } = settings;
  const parts = [`${model} ${batch}x${size.join("x")} ${precision}`];
  if (tf32) parts.push("tf32");
  if (quantize) parts.push(`convolutions ${quantize}`);
  if (norm) parts.push(`norm ${norm}`);
  if (trainableLayers !== undefined) parts.push(`${trainableLayers} stages`);
  if (lanes !== undefined) parts.push(`${lanes} lanes`);
  if (deterministic) parts.push("deterministic");
  return parts.join(", ");
}

/** The network's name with what is computed again. */
export function trainingName(settings: NetworkSettings): string {
  const { recompute } = settings;
  if (recompute === undefined || recompute === false) return networkName(settings);
  return `${networkName(settings)}, recompute ${recompute === true ? "all" : `to ${recompute} bytes`}`;
}

/** A program that was timed, and is still there. */
export interface Timed {
  program: Program;
  row: BenchRow;
}

/** Times steps of a model on a synthetic batch; `look` says what is kept of it. Memory is what the model and the step take. */
export async function timeTraining<T>(
  model: DetectionModel,
  optimizer: SGD,
  settings: NetworkSettings,
  ceilings: Ceilings,
  look: (timed: Timed) => T,
): Promise<T> {
  const { device } = model;
  const { batch, size, repetitions, lanes, recompute } = settings;
  const shape = { batchSize: batch, height: size[0], width: size[1], maxBoxes: BOXES };
  using step = new TrainStep(model, optimizer, { ...shape, lanes, recompute });
  using images = syntheticImages(device, settings);
  const memoryBytes = device.memory().allocated;
  await step.submit(images, syntheticTargets(settings));
  await step.drain();
  const { program } = step;
  const timing = timeEach(device, program.stream, () => program.run(), { repetitions, warmUp: WARM_UP });
  const name = `step, ${trainingName(settings)}`;
  const row = { bench: "train", name, images: batch, memoryBytes, ...timing };
  return look({ program, row: rowOf(program, row, ceilings, updateWork(model)) });
}

/** Times a training step: schedule, forward, target assignment, losses, backward, SGD with momentum; one launch. */
export async function benchTraining(
  device: Device,
  settings: NetworkSettings,
  ceilings: Ceilings,
): Promise<NetworkBench> {
  autotune(device);
  using model = makeModel(settings, device);
  using optimizer = new SGD(model, { schedule: constantRate(1e-4), iterations: 1_000_000 });
  const { profileRuns: runs } = settings;
  return await timeTraining(model, optimizer, settings, ceilings, ({ program, row }) => ({
    rows: [row],
    profile: profileCalls(program, ceilings, { runs, extra: updateWork(model) }),
  }));
}

/** Reads the network's maps where they are, as losses and post-processing do, which take padded channels; computes nothing. */
const networkEnd: Op<object> = {
  kind: "network_end",
  infer: () => [{ shape: [1], dtype: "f32" }],
  padded: ({ inputs }) => inputs.map((_, slot) => slot),
  emit() {},
};

/**
 * Times the network alone on a synthetic batch: from normalised images to the maps that post-processing reads, neither joined
 * nor cropped. The model is in evaluation mode then. `look` says what is kept of it.
 */
export function timeNetwork<T>(
  model: DetectionModel,
  settings: NetworkSettings,
  ceilings: Ceilings,
  look: (timed: Timed) => T,
  quantization?: Quantization,
): T {
  const { device } = model;
  const { batch, size, precision, repetitions, lanes } = settings;
  model.eval();
  using program = new Program(
    device,
    { images: { shape: [batch, ...size, 3], dtype: precision } },
    ({ images }) => ({ end: applyOp(networkEnd, model.maps(images!), {})[0] as Value }),
    { lanes, rewrite: quantization && rewriteOf(quantization) },
  );
  fillNormal(device, program.inputs.images!);
  const memoryBytes = device.memory().allocated;
  const timing = timeEach(device, program.stream, () => program.run(), { repetitions, warmUp: WARM_UP });
  const name = `network only, to its maps, ${networkName({ ...settings, trainableLayers: undefined })}`;
  return look({
    program,
    row: rowOf(program, { bench: "infer", name, images: batch, memoryBytes, ...timing }, ceilings),
  });
}

/** The ranges of a synthetic batch, where the settings ask for convolutions of 8 bits. */
async function quantizationOf(model: DetectionModel, settings: NetworkSettings): Promise<Quantization | undefined> {
  const { quantize: dtype, batch: count } = settings;
  if (!dtype) return undefined;
  using images = syntheticImages(model.device, settings);
  return { dtype, table: await calibrate(model.eval(), [{ images, count }], { method: "max" }) };
}

/** Times inference: the network alone, and the whole call from uint8 images on the device to boxes on the host. */
export async function benchInference(
  device: Device,
  settings: NetworkSettings,
  ceilings: Ceilings,
): Promise<NetworkBench> {
  const { batch, size, repetitions, profileRuns: runs, lanes } = settings;
  autotune(device);
  using model = makeModel(settings, device);
  const quantization = await quantizationOf(model, settings);
  const { row, profile } = timeNetwork(
    model,
    settings,
    ceilings,
    ({ program, row }) => ({ row, profile: profileCalls(program, ceilings, { runs }) }),
    quantization,
  );
  using pixels = syntheticPixels(device, settings);
  const shape = { batchSize: batch, height: size[0], width: size[1] };
  using step = new DetectStep(model, { ...shape, images: "pixels", lanes, quantization });
  const memoryBytes = device.memory().allocated;
  const whole = await timeOnHost(() => step.run(pixels, batch), { repetitions, warmUp: WARM_UP });
  const name = `whole call, ${networkName({ ...settings, trainableLayers: undefined })}`;
  const { warmUp, images } = row;
  return { rows: [row, { bench: "infer", name, ...whole, warmUp, images, memoryBytes }], profile };
}

/** Detectors with generated weights on generated images: what the recorders compute with torchvision, computed with dlfs. */
import type { Model } from "../../../lib/layers";
import { type DetectionModel, loadTorchWeights, type TorchWeight, torchWeights } from "../../../lib/models";
import { type Device, Tensor } from "../../../lib/tensor";
import { constantRate, DetectStep, type HostTargets, SGD, TrainStep } from "../../../lib/train";

/** As in common.py. */
const MOMENTUM = 0.9;
const DECAY = 1e-4;

/** What common.py reads of a case, which says what it means. */
export interface Case {
  norm?: "batch" | "frozen";
  classes: number;
  n: number;
  height: number;
  width: number;
  steps: number;
  boxes?: readonly number[];
  spread?: number;
}

/** A kind of detector: what the Recorder of its record.py describes. */
export interface Family<C extends Case = Case> {
  readonly rate: number;
  /** Head outputs in the order in which forward() gives them. */
  readonly outputs: readonly string[];
  /** Losses in the recorder's order. */
  readonly losses: readonly string[];
  /** torchvision's label of class 0. */
  readonly firstLabel: number;
  build(given: C): DetectionModel;
  /** The range of a parameter's or buffer's generated values; its shape in torch. */
  weightRange(name: string, shape: readonly number[]): [low: number, high: number];
}

/** `count` float32 numbers in [low, high): element i hashes (name, i) (FNV-1a, then Murmur3's finaliser). */
export function uniform(name: string, count: number, low = -1, high = 1): Float32Array {
  let seed = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) seed = Math.imul(seed ^ byte, 0x01000193);
  const out = new Float32Array(count);
  for (let i = 0; i < count; ++i) {
    let x = (Math.imul(i + 1, 0x9e3779b9) + seed) >>> 0;
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    x = (x ^ (x >>> 16)) >>> 0;
    out[i] = low + (high - low) * (x / 2 ** 32);
  }
  return out;
}

/** As common.py's: of a convolution weight in torch's layout. */
export function fanInBound(shape: readonly number[]): number {
  const [, c, r, s] = shape as [number, number, number, number];
  return Math.sqrt(6 / (c * r * s));
}

/** A state dict in torch's layout with generated values for every parameter and buffer of a model. */
export function generatedWeights(model: Model, { weightRange }: Pick<Family, "weightRange">) {
  return new Map<string, TorchWeight>(
    [...model.namedState()].flatMap(([name, { shape, size, isPersistent }]) => {
      if (!isPersistent) return [];
      const [k, r, s, c] = shape as [number, number, number, number];
      const torchShape = shape.length === 4 ? [k, c, r, s] : shape;
      return [[name, { shape: torchShape, data: uniform(name, size, ...weightRange(name, torchShape)) }] as const];
    }),
  );
}

/** Generated images (N, H, W, 3). */
export function nhwcImages({ n, height, width }: Pick<Case, "n" | "height" | "width">): Float32Array {
  const planes = uniform("images", n * 3 * height * width, -2, 2);
  const images = new Float32Array(planes.length);
  const area = height * width;
  for (let image = 0; image < n; ++image) {
    for (let c = 0; c < 3; ++c) {
      for (let i = 0; i < area; ++i) images[(image * area + i) * 3 + c] = planes[(image * 3 + c) * area + i] as number;
    }
  }
  return images;
}

/** Images (N, H, W, 3) and targets, padded to the largest number of boxes of an image. */
export function inputs(given: Case, firstLabel: number): { images: Float32Array; targets: HostTargets } {
  const { n, height, width, classes, spread = 0.4 } = given;
  const counts = Int32Array.from(given.boxes ?? Array.from({ length: n }, (_, i) => i + 1));
  const most = Math.max(1, ...counts);
  const targets: HostTargets = { boxes: new Float32Array(n * most * 4), labels: new Int32Array(n * most), counts };
  for (const [image, count] of counts.entries()) {
    const random = uniform(`boxes of image ${image}`, 5 * count, 0, 1);
    for (let k = 0; k < count; ++k) {
      const [x, y, w, h, label] = random.subarray(5 * k) as unknown as [number, number, number, number, number];
      const [x1, y1] = [x * (0.9 - spread), y * (0.9 - spread)];
      targets.boxes.set(
        [x1 * width, y1 * height, (x1 + 0.1 + spread * w) * width, (y1 + 0.1 + spread * h) * height],
        (image * most + k) * 4,
      );
      targets.labels[image * most + k] = 1 + Math.trunc(label * (classes - 1)) - firstLabel;
    }
  }
  return { images: nhwcImages(given), targets };
}

/** (K, R, S, C) to torch's (K, C, R, S). */
function toTorch(data: Float32Array, shape: readonly number[]): TorchWeight {
  if (shape.length !== 4) return { shape, data };
  const [k, r, s, c] = shape as [number, number, number, number];
  const out = new Float32Array(data.length);
  let from = 0;
  for (let i = 0; i < k; ++i) {
    for (let j = 0; j < r * s; ++j) for (let l = 0; l < c; ++l) out[(i * c + l) * r * s + j] = data[from++] as number;
  }
  return { shape: [k, c, r, s], data: out };
}

/** All tensors of a case by the recorder's names, in torch's layouts. */
export async function compute<C extends Case>(
  device: Device,
  family: Family<C>,
  given: C,
): Promise<Map<string, TorchWeight>> {
  const { n, height, width, steps } = given;
  const out = new Map<string, TorchWeight>();
  using model = family.build(given).to(device);
  loadTorchWeights(model, generatedWeights(model, family));
  const { images: pixels, targets } = inputs(given, family.firstLabel);
  using images = Tensor.from(device, pixels, [n, height, width, 3]);

  model.eval();
  for (const [i, output] of (model.call(images) as Tensor[]).entries())
    out.set(family.outputs[i] as string, { shape: output.shape, data: output.read() as Float32Array });
  {
    using detect = new DetectStep(model, { batchSize: n, height, width });
    for (const [i, found] of (await detect.run(images, n)).entries()) {
      const rows = found.flatMap(({ box, score, label }) => [...box, score, label + family.firstLabel]);
      out.set(`detections.${i}`, { shape: [found.length, 6], data: Float32Array.from(rows) });
    }
  }

  const trained = [...model.namedParameters()].filter(([, parameter]) => parameter.requiresGrad);
  using optimizer = new SGD(model, {
    schedule: constantRate(family.rate),
    iterations: steps,
    momentum: MOMENTUM,
    weightDecay: DECAY,
  });
  using step = new TrainStep(model, optimizer, { batchSize: n, height, width, maxBoxes: targets.labels.length / n });
  const losses: number[] = [];
  for (let i = 0; i < steps; ++i) {
    await step.submit(images, targets);
    for (const result of await step.drain())
      losses.push(...step.lossNames.map((name) => result.losses[name] as number));
    if (i > 0) continue;
    for (const [name, { grad, shape }] of trained)
      out.set(`grad.${name}`, toTorch(grad!.read() as Float32Array, shape));
  }
  out.set("losses", { shape: [steps, family.losses.length], data: Float32Array.from(losses) });
  const after = torchWeights(model);
  for (const [name, parameter] of model.namedState()) {
    if (parameter.requiresGrad || (given.norm !== "frozen" && name.includes("running_")))
      out.set(`after.${name}`, after.get(name)!);
  }
  return out;
}

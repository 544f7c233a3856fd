/** RetinaNets with generated weights on generated images: what record.py computes with torchvision, computed with dlfs. */
import { loadTorchWeights, type ResNetName, RetinaNet, type TorchWeight, torchWeights } from "../../../lib/models";
import { type Device, Tensor } from "../../../lib/tensor";
import { constantRate, DetectStep, type HostTargets, SGD, TrainStep } from "../../../lib/train";

/** As in record.py. */
export const RATE = 0.000002;
export const MOMENTUM = 0.9;
export const DECAY = 1e-4;

export interface Case {
  backbone: ResNetName;
  norm: "batch" | "frozen";
  trainableLayers: number;
  classes: number;
  n: number;
  height: number;
  width: number;
  steps: number;
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

/** Ranges as in record.py, which says why. */
function weightRange(name: string, shape: readonly number[]): [low: number, high: number] {
  if (name.endsWith("running_var")) return [0.5, 1.5];
  if (name.endsWith("running_mean")) return [-0.2, 0.2];
  if (shape.length === 4) {
    const [, c, r, s] = shape as [number, number, number, number];
    let bound = Math.sqrt(6 / (c * r * s));
    bound *= name.includes("cls_logits") ? 0.01 : name.includes("bbox_reg") ? 0.02 : 1;
    return [-bound, bound];
  }
  if (name.endsWith("weight")) return [0.3, 0.9];
  if (name.endsWith("cls_logits.bias")) return [-5, -3];
  if (name.includes("backbone.body.")) return [1, 2];
  return name.includes("_head.conv.") ? [0.6, 1.2] : [-0.1, 0.1];
}

/** A state dict in torch's layout with generated values for every parameter and buffer of a model. */
export function generatedWeights(model: RetinaNet): Map<string, TorchWeight> {
  return new Map(
    [...model.namedState()].map(([name, { shape, size }]) => {
      const [k, r, s, c] = shape as [number, number, number, number];
      const torchShape = shape.length === 4 ? [k, c, r, s] : shape;
      return [name, { shape: torchShape, data: uniform(name, size, ...weightRange(name, torchShape)) }] as const;
    }),
  );
}

/** Images (N, H, W, 3) and targets padded to N boxes, image i having i + 1. */
export function inputs({ n, height, width, classes }: Case): { images: Float32Array; targets: HostTargets } {
  const planes = uniform("images", n * 3 * height * width, -2, 2);
  const images = new Float32Array(planes.length);
  const area = height * width;
  for (let image = 0; image < n; ++image) {
    for (let c = 0; c < 3; ++c) {
      for (let i = 0; i < area; ++i) images[(image * area + i) * 3 + c] = planes[(image * 3 + c) * area + i] as number;
    }
  }
  const targets: HostTargets = {
    boxes: new Float32Array(n * n * 4),
    labels: new Int32Array(n * n),
    counts: Int32Array.from({ length: n }, (_, i) => i + 1),
  };
  for (let image = 0; image < n; ++image) {
    const random = uniform(`boxes of image ${image}`, 5 * (image + 1), 0, 1);
    for (let k = 0; k <= image; ++k) {
      const [x, y, w, h, label] = random.subarray(5 * k) as unknown as [number, number, number, number, number];
      targets.boxes.set(
        [x * 0.5 * width, y * 0.5 * height, (x * 0.5 + 0.1 + 0.4 * w) * width, (y * 0.5 + 0.1 + 0.4 * h) * height],
        (image * n + k) * 4,
      );
      targets.labels[image * n + k] = 1 + Math.trunc(label * (classes - 1));
    }
  }
  return { images, targets };
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

/** All tensors of a case by record.py's names, in torch's layouts. */
export async function compute(device: Device, given: Case): Promise<Map<string, TorchWeight>> {
  const { backbone, norm, trainableLayers, classes, n, height, width, steps } = given;
  const out = new Map<string, TorchWeight>();
  using model = new RetinaNet({ backbone, norm, trainableLayers, classes }).to(device);
  loadTorchWeights(model, generatedWeights(model));
  const { images: pixels, targets } = inputs(given);
  using images = Tensor.from(device, pixels, [n, height, width, 3]);

  model.eval();
  const [logits, deltas] = model.call(images) as [Tensor, Tensor];
  out.set("logits", { shape: logits.shape, data: logits.read() as Float32Array });
  out.set("deltas", { shape: deltas.shape, data: deltas.read() as Float32Array });
  {
    using detect = new DetectStep(model, { batchSize: n, height, width });
    for (const [i, found] of (await detect.run(images, n)).entries()) {
      const rows = found.flatMap(({ box, score, label }) => [...box, score, label]);
      out.set(`detections.${i}`, { shape: [found.length, 6], data: Float32Array.from(rows) });
    }
  }

  const trained = [...model.namedParameters()].filter(([, parameter]) => parameter.requiresGrad);
  using optimizer = new SGD(model, {
    schedule: constantRate(RATE),
    iterations: steps,
    momentum: MOMENTUM,
    weightDecay: DECAY,
  });
  using step = new TrainStep(model, optimizer, { batchSize: n, height, width, maxBoxes: n });
  const losses: number[] = [];
  for (let i = 0; i < steps; ++i) {
    await step.submit(images, targets);
    for (const result of await step.drain())
      losses.push(result.losses.classification as number, result.losses.boxRegression as number);
    if (i > 0) continue;
    for (const [name, { grad, shape }] of trained)
      out.set(`grad.${name}`, toTorch(grad!.read() as Float32Array, shape));
  }
  out.set("losses", { shape: [steps, 2], data: Float32Array.from(losses) });
  const after = torchWeights(model);
  for (const [name, parameter] of model.namedState()) {
    if (parameter.requiresGrad || (norm === "batch" && name.includes("running_")))
      out.set(`after.${name}`, after.get(name)!);
  }
  return out;
}

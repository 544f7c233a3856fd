/** What follows the network in a whole call: post-processing of its maps, and non-maximum suppression alone. */
import type { Program, Value } from "../graph";
import { DlfsError, ErrorCode } from "../native";
import { type Device, outHandle, Tensor } from "../tensor";
import { autotune, DetectStep } from "../train";
import { captured, fillNormal, time, timeEach } from "./measure";
import { makeModel, type NetworkSettings, networkName } from "./network";
import type { BenchRow } from "./results";
import { nodeWork } from "./work";

const WARM_UP = 5;

/** Logits of which 0.5 % are above the threshold of 0.05, as a trained detector's on images full of objects. */
const LOGITS = { mean: -6, std: 1.2 };
const DELTAS = { mean: 0, std: 0.5 };

/** The value whose memory this one is a view of. */
function rootOf(value: Value): Value {
  let root = value;
  while (root.node?.op.alias) root = root.node.inputs[0]!;
  return root;
}

/** Fills what calls before `start` compute and those from there on read; the maps of the heads. */
function fillMaps(device: Device, program: Program, start: number): void {
  const read = new Set(program.calls.slice(start).flatMap(({ outputs }) => outputs[0]?.node?.inputs.map(rootOf) ?? []));
  for (const [index, { outputs, path }] of program.calls.slice(0, start).entries()) {
    for (const [slot, output] of outputs.entries()) {
      if (!read.has(output)) continue;
      const { mean, std } = /class|cls|logit/i.test(path) ? LOGITS : DELTAS;
      fillNormal(device, program.valueTensor(index, slot), mean, std);
    }
  }
}

/** Times everything after the last convolution of a detector, on maps of noise whose scores are spread as a trained network's. */
export function benchPostprocess(device: Device, settings: NetworkSettings): BenchRow[] {
  const { batch, size, repetitions } = settings;
  autotune(device);
  using model = makeModel(settings, device);
  using step = new DetectStep(model, { batchSize: batch, height: size[0], width: size[1], keepAll: true });
  const { program } = step;
  const start =
    program.calls.findLastIndex(({ outputs: [value] }) => value?.node && nodeWork(value.node).flops > 0) + 1;
  // One run as a whole computes what does not depend on the maps: the anchors.
  program.inputs.imageSizes!.write(Array.from({ length: batch }, () => size).flat(), program.stream);
  fillNormal(device, program.inputs.images!);
  program.runCalls();
  fillMaps(device, program, start);
  const { launch, release } = captured(device, program.stream, () => program.runCalls(start));
  try {
    const timing = timeEach(device, program.stream, launch, { repetitions, warmUp: WARM_UP });
    const counts = program.results.counts!.read(program.stream);
    if (Array.from(counts).every((count) => count === 0)) {
      throw new DlfsError(ErrorCode.internal, "bench postprocess", "nothing was detected in maps made to hold objects");
    }
    const name = networkName({ ...settings, norm: undefined, trainableLayers: undefined });
    return [{ bench: "postprocess", name, ...timing, warmUp: WARM_UP, images: batch }];
  } finally {
    program.stream.synchronize();
    release();
  }
}

/** Boxes of one image for non-maximum suppression among those of a class. */
export interface NmsCase {
  name: string;
  /** [boxes, 4]: left, top, right, bottom in pixels. */
  boxes: Float32Array;
  scores: Float32Array;
  labels: Int32Array;
  /** Boxes that overlap more than this IoU with a kept one are dropped. */
  threshold: number;
}

/** How many boxes of how many classes. */
const NMS_SIZES = [
  [1000, 80],
  [5000, 80],
  [20_000, 80],
  [100_000, 80],
  [20_000, 1],
] as const;

/** Boxes of 4 to 64 pixels anywhere on 640x640, all kept boxes wanted: as torchvision's batched_nms is timed. */
export function nmsCases(sizes: readonly (readonly [boxes: number, classes: number])[] = NMS_SIZES): NmsCase[] {
  return sizes.map(([k, classes]) => {
    const corner = Float32Array.from({ length: 2 * k }, (_, i) => 600 * halton(1 + (i >> 1), i % 2 === 0 ? 2 : 3));
    const side = (i: number) => 4 + 60 * halton(1 + i, 5);
    const boxes = Float32Array.from({ length: 4 * k }, (_, i) => {
      const [box, axis] = [i >> 2, i & 1];
      return corner[2 * box + axis]! + ((i & 2) === 0 ? 0 : side(2 * box + axis));
    });
    const scores = Float32Array.from({ length: k }, (_, i) => halton(1 + i, 7));
    const labels = Int32Array.from({ length: k }, (_, i) => Math.floor(classes * halton(1 + i, 11)));
    const name = `${k} boxes, ${classes} ${classes === 1 ? "class" : "classes"}, IoU 0.5`;
    return { name, boxes, scores, labels, threshold: 0.5 };
  });
}

/** Times non-maximum suppression of these boxes, all kept ones wanted. */
export function benchNms(device: Device, cases: readonly NmsCase[] = nmsCases()): BenchRow[] {
  return cases.map(({ name, boxes, scores, labels, threshold }) => {
    const k = scores.length;
    using boxTensor = Tensor.from(device, boxes, [1, k, 4]);
    using scoreTensor = Tensor.from(device, scores, [1, k]);
    using labelTensor = Tensor.from(device, labels, [1, k], "i32");
    using keep = Tensor.empty(device, [1, k], "i32");
    using kept = Tensor.empty(device, [1], "i32");
    const bytes = outHandle();
    device.native.nmsWorkspace(device.handle, bytes.view, 1, k);
    using workspace = Tensor.empty(device, [Math.max(1, bytes.value)], "u8");
    const [{ native, stream }, scratch] = [device, bytes.value > 0 ? workspace.address : null];
    const addresses = [keep, kept, boxTensor, scoreTensor, labelTensor].map(({ address }) => address);
    const [a, b, c, d, e] = addresses as [number, number, number, number, number];
    const run = () => void native.nms(stream.handle, a, b, c, d, e, scratch, 1, k, k, threshold, 1);
    const { launch, release } = captured(device, stream, run);
    const timing = time(device, stream, launch);
    release();
    return { bench: "nms", name, ...timing, warmUp: 2 };
  });
}

/** Element i of the van der Corput sequence in a base, from 0 to 1: spread evenly, the same everywhere. */
function halton(i: number, base: number): number {
  let [value, fraction] = [0, 1 / base];
  for (let rest = i; rest > 0; rest = Math.floor(rest / base), fraction /= base) value += (rest % base) * fraction;
  return value;
}

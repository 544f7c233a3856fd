/**
 * Compares RetinaNet's detections and losses with torchvision's on real photos, from identical pixels and weights.
 *
 *   bun run scripts/compare-photos.ts --data DIR --split val2017 [--photos 24] [--batch 4] [--size 480x640]
 *     [--backbone resnet50] [--norm frozen|batch] [--weights FILE] [--backend cpu|cuda] [--bf16]
 *     [--python python3] [--python-device cpu|cuda] [--reference float32|float64]
 *
 * The photos of a data set in COCO's layout are decoded and resized by dlfs; both libraries get the same numbers. Weights come
 * from a safetensors or .pth file in torchvision's names, or are generated (seeded, with heads that give each photo at least
 * 50 detections, and with running statistics off their defaults). Asked: the same classes and count, boxes within 0.1 pixel,
 * scores within 1e-4, but for ties: a detection may be missing on one side where its score is within 1e-5 of the threshold, of
 * the lowest that its level's top-k took or of the last place's, where its overlap with another box is as near to the
 * suppression threshold as the boxes' differences reach, where it overlaps a box of the other side whose score is equal within
 * 1e-5, so that rounding decides which of them suppresses the other, or where a better box that is a tie itself suppresses it.
 * Losses within 1e-5 relative; with --bf16 those of a bf16 network too, within 1 %. Exits with 1 when something differs by
 * more.
 */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { CocoDataLoader, DeviceBatchDecoder, DeviceImageCodec, loadDataset, Normalize, Resize } from "../lib/data";
import { loadWeights } from "../lib/formats";
import { type BackboneName, backboneNames, loadTorchWeights, RetinaNet, type TorchWeight } from "../lib/models";
import { Device, Tensor } from "../lib/tensor";
import {
  constantRate,
  type Detection,
  DetectStep,
  type HostTargets,
  SGD,
  saveTorchWeights,
  TrainStep,
} from "../lib/train";
import type { BackboneCase } from "../tests/golden/detectors/backbones";
import { generatedWeights } from "../tests/golden/detectors/network";
import { retinaNet } from "../tests/golden/retinanet/network";

const { values: args } = parseArgs({
  options: {
    data: { type: "string" },
    split: { type: "string", default: "val2017" },
    photos: { type: "string", default: "24" },
    batch: { type: "string", default: "4" },
    size: { type: "string", default: "480x640" },
    backbone: { type: "string", default: "resnet50" },
    norm: { type: "string", default: "frozen" },
    weights: { type: "string" },
    backend: { type: "string" },
    bf16: { type: "boolean", default: false },
    python: { type: "string", default: "python3" },
    "python-device": { type: "string", default: "cpu" },
    reference: { type: "string", default: "float32" },
  },
});

function fail(message: string): never {
  console.error(message);
  process.exit(2);
}

const [, height, width] = (/^(\d+)x(\d+)$/.exec(args.size) ?? fail(`--size: expected HxW, got ${args.size}`)).map(
  Number,
);
const [photos, batchSize] = [args.photos, args.batch].map(Number) as [number, number];
if (!args.data) fail("--data: expected a folder in COCO's layout");
if (!(photos > 0 && batchSize > 0 && photos % batchSize === 0)) fail("--photos: expected a multiple of --batch");
if (!backboneNames.includes(args.backbone as BackboneName))
  fail(`--backbone: expected one of ${backboneNames.join(", ")}`);
if (args.norm !== "frozen" && args.norm !== "batch") fail(`--norm: expected frozen or batch, got ${args.norm}`);

/** The thresholds of post-processing, torchvision's defaults, and how near is equal. */
const limits = {
  score: 0.05,
  nms: 0.5,
  detections: 300,
  box: 0.1,
  sameScore: 1e-4,
  tiedScore: 1e-5,
};

interface Batch {
  images: Float32Array;
  targets: HostTargets;
}

/** The photos' pixels as the network sees them, and their boxes. */
async function readPhotos(
  device: Device,
): Promise<{ batches: Batch[]; names: string[]; classes: number; maxBoxes: number }> {
  const codec = new DeviceImageCodec(device);
  using dataset = await loadDataset(args.data as string, { codec, trainSplit: args.split, valSplit: args.split });
  const preprocessing = [new Resize(), new Normalize()];
  const shape = { batchSize, height: height as number, width: width as number };
  using decoder = new DeviceBatchDecoder(device, { ...shape, preprocessing });
  await using loader = new CocoDataLoader({
    store: dataset.store,
    source: dataset.source,
    split: args.split,
    batchSize,
    size: [shape.height, shape.width],
    preprocessing,
    decoder,
    shuffle: false,
  });
  const batches: Batch[] = [];
  const names: string[] = [];
  while (names.length < photos) {
    const batch = await loader.getBatch();
    if (batch.n < batchSize || batch.index + 1 > photos / batchSize)
      fail(`--photos: the split has fewer than ${photos}`);
    names.push(...batch.images.map(({ fileName }) => fileName));
    batches.push({
      images: Float32Array.from(decoder.images(batch.slot).read()),
      targets: { boxes: batch.boxes.slice(), labels: batch.labels.slice(), counts: batch.counts.slice() },
    });
    batch.release();
  }
  return { batches, names, classes: dataset.classes.length, maxBoxes: loader.maxBoxes };
}

async function readWeights(model: RetinaNet): Promise<ReadonlyMap<string, TorchWeight>> {
  if (!args.weights) return generatedWeights(model, retinaNet);
  using file = await loadWeights(args.weights);
  return new Map([...file.tensors].map(([name, w]) => [name, { shape: w.shape, data: w.toFloat32() }]));
}

/** Losses of each batch in training mode. */
async function lossesOf(model: RetinaNet, batches: readonly Batch[], maxBoxes: number): Promise<number[][]> {
  const { device } = model;
  using optimizer = new SGD(model, { schedule: constantRate(0), iterations: batches.length });
  using step = new TrainStep(model, optimizer, { batchSize, height: height!, width: width!, maxBoxes });
  const losses: number[][] = [];
  for (const { images, targets } of batches) {
    using pixels = Tensor.from(device, images, [batchSize, height!, width!, 3], model.precision);
    await step.submit(pixels, targets);
    for (const { losses: l } of await step.drain()) losses.push([l.classification!, l.boxRegression!]);
  }
  return losses;
}

const iou = ([ax, ay, bx, by]: number[], [cx, cy, dx, dy]: number[]): number => {
  const [w, h] = [Math.min(bx!, dx!) - Math.max(ax!, cx!), Math.min(by!, dy!) - Math.max(ay!, cy!)];
  const inter = Math.max(0, w) * Math.max(0, h);
  return inter / ((bx! - ax!) * (by! - ay!) + (dx! - cx!) * (dy! - cy!) - inter);
};

/** What is on one side only, and not a tie; and the largest differences of what is on both. */
function difference(
  ours: number[][],
  theirs: number[][],
  cuts: readonly number[],
): { lost: number[][]; ties: number; box: number; score: number } {
  const left = [...ours];
  let alone: number[][] = [];
  let [box, score] = [0, 0];
  for (const row of theirs) {
    const at = left.findIndex(
      (found) =>
        found[5] === row[5] &&
        Math.abs(found[4]! - row[4]!) <= limits.sameScore &&
        found.slice(0, 4).every((x, i) => Math.abs(x - row[i]!) <= limits.box),
    );
    if (at < 0) {
      alone.push(row);
      continue;
    }
    const [found] = left.splice(at, 1) as [number[]];
    score = Math.max(score, Math.abs(found[4]! - row[4]!));
    box = Math.max(box, ...found.slice(0, 4).map((x, i) => Math.abs(x - row[i]!)));
  }
  alone.push(...left);
  const all = [...ours, ...theirs];
  const places = [ours, theirs].map((side) => (side.length < limits.detections ? 0 : side.at(-1)![4]!));
  const overlaps = (row: number[], least: number, most: number, others: number[][]) =>
    others.some((other) => {
      if (other === row || other[5] !== row[5]) return false;
      const overlap = iou(other, row);
      return overlap > least && overlap < most;
    });
  /** How far the coordinates' differences can move the overlap of a box with another. */
  const margin = ([x1, y1, x2, y2]: number[]) => (8 * Math.max(box, 1e-4)) / Math.min(x2! - x1!, y2! - y1!);
  const ties: number[][] = [];
  for (;;) {
    const tied = alone.filter(
      (row) =>
        [limits.score, ...cuts, ...places].some((edge) => Math.abs(row[4]! - edge) < limits.tiedScore) ||
        overlaps(row, limits.nms - margin(row), limits.nms + margin(row), all) ||
        overlaps(
          row,
          limits.nms,
          1.1,
          alone.filter((other) => Math.abs(other[4]! - row[4]!) < limits.tiedScore),
        ) ||
        overlaps(
          row,
          limits.nms,
          1.1,
          ties.filter((tie) => tie[4]! > row[4]!),
        ),
    );
    if (tied.length === 0) return { lost: alone, ties: ties.length, box, score };
    ties.push(...tied);
    alone = alone.filter((row) => !tied.includes(row));
  }
}

const relative = (a: number[][], b: number[][]) =>
  Math.max(...a.flatMap((row, i) => row.map((x, j) => Math.abs(x - b[i]![j]!) / Math.abs(b[i]![j]!))));

const device = new Device({ backend: args.backend });
const { batches, names, classes, maxBoxes } = await readPhotos(device);
const given: BackboneCase = {
  backbone: args.backbone as BackboneName,
  norm: args.norm,
  trainableLayers: args.backbone === "mobilenet_v2" ? 6 : 5,
  classes,
  n: batchSize,
  height: height!,
  width: width!,
  steps: 1,
};
const { backbone, norm, trainableLayers } = given;
const folder = await mkdtemp(join(tmpdir(), "dlfs-photos-"));
let failed = false;
try {
  const ours: number[][][] = [];
  let losses: number[][] = [];
  let low: number[][] | null = null;
  {
    using model = new RetinaNet({ backbone, norm, trainableLayers, classes }).to(device);
    const weights = await readWeights(model);
    loadTorchWeights(model, weights);
    await saveTorchWeights(join(folder, "weights.safetensors"), model);
    using detect = new DetectStep(model, { batchSize, height: height!, width: width! });
    for (const { images } of batches) {
      using pixels = Tensor.from(device, images, [batchSize, height!, width!, 3]);
      const found = await detect.run(pixels, batchSize);
      ours.push(...found.map((rows) => rows.map(({ box, score, label }: Detection) => [...box, score, label])));
    }
    losses = await lossesOf(model, batches, maxBoxes);
    if (args.bf16) {
      using half = new RetinaNet({ backbone, norm, trainableLayers, classes }).to(device, { precision: "bf16" });
      loadTorchWeights(half, weights);
      low = await lossesOf(half, batches, maxBoxes);
    }
  }
  const join32 = (arrays: Float32Array[]) =>
    new Uint8Array(Buffer.concat(arrays.map((a) => new Uint8Array(a.buffer, a.byteOffset, a.byteLength))));
  await writeFile(join(folder, "images.bin"), join32(batches.map(({ images }) => images)));
  await writeFile(join(folder, "boxes.bin"), join32(batches.map(({ targets }) => targets.boxes)));
  const labels = batches.flatMap(({ targets: { labels: all, counts } }) =>
    Array.from(counts, (count, i) => [...all.subarray(i * maxBoxes, i * maxBoxes + count)]),
  );
  await writeFile(join(folder, "labels.json"), JSON.stringify(labels));
  const request = {
    case: given,
    batch: batchSize,
    photos,
    maxBoxes,
    device: args["python-device"],
    dtype: args.reference,
  };
  await writeFile(join(folder, "request.json"), JSON.stringify(request));
  const script = fileURLToPath(new URL("torchvision_photos.py", import.meta.url));
  console.log(`${device.info.name} (${device.backend}, f32) against`);
  const python = Bun.spawn([args.python, script, folder], { stdout: "inherit", stderr: "inherit" });
  if ((await python.exited) !== 0) fail(`${args.python} ${script} failed; --python names one with torchvision`);
  const read = async (name: string) => JSON.parse(await readFile(join(folder, name), "utf8"));
  const theirs = (await read("detections.json")) as number[][][];
  const cuts = (await read("cuts.json")) as number[][];
  const expected = (await read("losses.json")) as number[][];

  console.log(
    `${args.weights ?? "generated weights"}, ${photos} photos of ${args.split} at ${args.size}, ${classes} classes`,
  );
  console.log("photo                     ours  theirs  differ  ties  boxes, pixels  scores");
  for (const [i, name] of names.entries()) {
    const { lost, ties, box, score } = difference(ours[i]!, theirs[i]!, cuts[i]!);
    const enough = args.weights !== undefined || ours[i]!.length >= 50;
    failed ||= lost.length > 0 || !enough;
    const figures = [ours[i]!.length, theirs[i]!.length, lost.length, ties].map((x, j) =>
      String(x).padStart([6, 7, 7, 5][j]!),
    );
    console.log(
      `${name.padEnd(24)}${figures.join(" ")}  ${box.toExponential(1).padStart(13)} ${score.toExponential(1).padStart(8)}${enough ? "" : "  fewer than 50"}`,
    );
    for (const row of lost) {
      const side = ours[i]!.includes(row) ? "dlfs" : "torchvision";
      const others = [...ours[i]!, ...theirs[i]!].filter((other) => other !== row && other[5] === row[5]);
      const nearest = Math.min(...others.map((other) => Math.abs(iou(other, row) - limits.nms)));
      const cut = Math.min(...cuts[i]!.map((edge) => Math.abs(edge - row[4]!)));
      console.log(
        `    only ${side}: box ${row.slice(0, 4).map((x) => x.toFixed(2))} class ${row[5]} score ${row[4]!.toFixed(6)}, ` +
          `${cut.toExponential(1)} from a top-k's end, an overlap ${nearest.toExponential(1)} from ${limits.nms}`,
      );
    }
  }
  const report = (what: string, worst: number, limit: number) => {
    failed ||= !(worst <= limit);
    console.log(
      `${worst <= limit ? "ok  " : "FAIL"} ${what}: ${worst.toExponential(2)}, limit ${limit.toExponential(0)}`,
    );
  };
  report("losses, relative", relative(losses, expected), 1e-5);
  if (low) report("losses in bf16, relative", relative(low, expected), 1e-2);
} finally {
  await rm(folder, { recursive: true });
}
device.dispose();
process.exit(failed ? 1 : 0);

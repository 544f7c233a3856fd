/**
 * A real pretrained detector, built from layers: the face detector RFB-320 of Linzaer's
 * Ultra-Light-Fast-Generic-Face-Detector-1MB (MIT), 0.28 M parameters. Loads its weights, compares what the network computes
 * with reference runs, detects the faces in photos, compares them with the expected ones and draws them.
 *
 *   bun run examples/03_pretrained.ts DIR [--weights FILE] [--out runs] [--backend cpu|cuda]
 *
 * DIR holds the weights (`*.npz` or `*.onnx`; --weights names one of several), reference/NAME.{input,scores,boxes}.f32 with float32
 * numbers of (1, 3, 240, 320), (1, 4420, 2) and (1, 4420, 4), images/ and expected_detections.json. Ends with 1 where a difference
 * is too large.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  add,
  BatchNorm2d,
  Conv2d,
  type Conv2dOptions,
  concat,
  constant,
  Device,
  DeviceImageCodec,
  DlfsError,
  drawBoxes,
  ErrorCode,
  InputLayer,
  Layer,
  loadTorchWeights,
  loadWeights,
  Model,
  Program,
  postprocess,
  ReLU,
  RunFolder,
  relu,
  reshape,
  resize,
  Sequential,
  scale,
  slice,
  softmax,
  split,
  type Value,
} from "dlfs";

const HEIGHT = 240;
const WIDTH = 320;
/** Side lengths in pixels of the square priors of each level, and the level's stride. */
const LEVELS = [
  { stride: 8, sides: [10, 16, 24] },
  { stride: 16, sides: [32, 48] },
  { stride: 32, sides: [64, 96] },
  { stride: 64, sides: [128, 192, 256] },
] as const;
/** Corrections of centre and size are predicted divided by these (Liu et al. 2016, "SSD"). */
const CENTER_VARIANCE = 0.1;
const SIZE_VARIANCE = 0.2;
const SCORE_THRESHOLD = 0.7;
const NMS_THRESHOLD = 0.3;

/** Differences up to these are rounding; photos also go through a JPEG decoder, and those differ in the last bit. */
const REFERENCE_LIMIT = 1e-4;
const PHOTO_LIMIT = 0.01;
/** A face this near to the score threshold may be found or not, depending on that last bit. */
const UNSURE = 0.02;

/** Convolution, normalization and, unless told otherwise, ReLU. */
class BasicConv extends Layer {
  readonly conv: Conv2d;
  readonly bn: BatchNorm2d;

  constructor(
    from: number,
    to: number,
    kernel: number,
    readonly activation: "relu" | "none",
    options: Conv2dOptions = {},
  ) {
    super();
    this.conv = new Conv2d(from, to, kernel, { bias: false, ...options });
    this.bn = new BatchNorm2d(to);
  }

  forward(x: Value): Value {
    const y = this.bn.forward(this.conv.forward(x));
    return this.activation === "relu" ? relu(y) : y;
  }
}

/** Branches of growing dilation side by side, joined with a shortcut (Liu et al. 2018, "Receptive Field Block Net"). */
class ReceptiveFieldBlock extends Layer {
  readonly branch0: Sequential;
  readonly branch1: Sequential;
  readonly branch2: Sequential;
  readonly convLinear: BasicConv;
  readonly shortcut: BasicConv;

  constructor(channels: number) {
    super();
    const narrow = channels / 8;
    const wide = channels / 4;
    const dilated = (dilation: number) => new BasicConv(wide, wide, 3, "none", { padding: dilation, dilation });
    this.branch0 = new Sequential(
      new BasicConv(channels, narrow, 1, "none"),
      new BasicConv(narrow, wide, 3, "relu", { padding: 1 }),
      dilated(2),
    );
    this.branch1 = new Sequential(
      new BasicConv(channels, narrow, 1, "none"),
      new BasicConv(narrow, wide, 3, "relu", { padding: 1 }),
      dilated(3),
    );
    this.branch2 = new Sequential(
      new BasicConv(channels, narrow, 1, "none"),
      new BasicConv(narrow, (narrow * 3) / 2, 3, "relu", { padding: 1 }),
      new BasicConv((narrow * 3) / 2, wide, 3, "relu", { padding: 1 }),
      dilated(5),
    );
    this.convLinear = new BasicConv(3 * wide, channels, 1, "none");
    this.shortcut = new BasicConv(channels, channels, 1, "none");
  }

  forward(x: Value): Value {
    const branches = [this.branch0, this.branch1, this.branch2].map((branch) => branch.forward(x));
    return relu(add(this.convLinear.forward(concat(branches)), this.shortcut.forward(x)));
  }
}

const depthwise = (channels: number, options: Conv2dOptions = {}) =>
  new Conv2d(channels, channels, 3, { padding: 1, groups: channels, ...options });

/** A depthwise and a 1x1 convolution, each with normalization and ReLU (Howard et al. 2017, "MobileNets"). */
function separable(from: number, to: number, stride: number): Sequential {
  return new Sequential(
    depthwise(from, { stride, bias: false }),
    new BatchNorm2d(from),
    new ReLU(),
    new Conv2d(from, to, 1, { bias: false }),
    new BatchNorm2d(to),
    new ReLU(),
  );
}

/** The network. Its parameters have the names of the original, but for `base_net.7.ConvLinear`. */
export class RFB320 extends Model {
  readonly input = new InputLayer(3, [HEIGHT, WIDTH]);
  readonly baseNet = [
    new Sequential(new Conv2d(3, 16, 3, { stride: 2, padding: 1, bias: false }), new BatchNorm2d(16), new ReLU()),
    separable(16, 32, 1),
    separable(32, 32, 2),
    separable(32, 32, 1),
    separable(32, 64, 2),
    separable(64, 64, 1),
    separable(64, 64, 1),
    new ReceptiveFieldBlock(64),
    separable(64, 128, 2),
    separable(128, 128, 1),
    separable(128, 128, 1),
    separable(128, 256, 2),
    separable(256, 256, 1),
  ];
  readonly extras = [
    new Sequential(
      new Conv2d(256, 64, 1),
      new ReLU(),
      new Sequential(depthwise(64, { stride: 2 }), new ReLU(), new Conv2d(64, 256, 1)),
      new ReLU(),
    ),
  ];
  /** Logits of background and face for each prior of a cell. */
  readonly classificationHeaders = heads(2);
  /** Corrections of each prior: centre x and y, width, height. */
  readonly regressionHeaders = heads(4);

  /** Logits (N, 4420, 2) and corrections (N, 4420, 4) from images (N, 240, 320, 3). */
  forward(images: Value): { logits: Value; deltas: Value } {
    const run = (layers: readonly (Sequential | ReceptiveFieldBlock)[], x: Value) =>
      layers.reduce((y, layer) => layer.forward(y), x);
    const stride8 = run(this.baseNet.slice(0, 8), this.input.forward(images));
    const stride16 = run(this.baseNet.slice(8, 11), stride8);
    const stride32 = run(this.baseNet.slice(11), stride16);
    const maps = [stride8, stride16, stride32, run(this.extras, stride32)];
    const [n] = images.shape as [number];
    const collect = (headers: readonly (Sequential | Conv2d)[], values: number) =>
      concat(
        maps.map((map, level) => reshape(headers[level]!.forward(map), [n, anchorsOf(level), values])),
        1,
      );
    return { logits: collect(this.classificationHeaders, 2), deltas: collect(this.regressionHeaders, 4) };
  }

  /** Probabilities (N, 4420, 2), corrections as forward() gives them, and the final boxes in pixels of the network's input. */
  detect(images: Value, imageSizes: Value): Record<"scores" | "deltas" | "detections" | "counts", Value> {
    const { logits, deltas } = this.forward(images);
    // postprocess() takes sigmoids: that of the difference of two logits is their softmax.
    const margin = add(slice(logits, 2, 1, 1), scale(slice(logits, 2, 0, 1), -1));
    const corners = priors().flatMap(([x, y, w, h]) => [
      (x - w / 2) * WIDTH,
      (y - h / 2) * HEIGHT,
      (x + w / 2) * WIDTH,
      (y + h / 2) * HEIGHT,
    ]);
    const anchors = constant(corners, [corners.length / 4, 4]);
    // Candidates are chosen on each level by itself.
    const levels = LEVELS.map((_, level) => anchorsOf(level));
    const found = postprocess(
      { logits: split(margin, levels, 1), deltas: split(deltas, levels, 1), anchors, imageSizes },
      {
        scoreThreshold: SCORE_THRESHOLD,
        topK: 1000,
        nmsThreshold: NMS_THRESHOLD,
        maxDetections: 300,
        weights: [1 / CENTER_VARIANCE, 1 / CENTER_VARIANCE, 1 / SIZE_VARIANCE, 1 / SIZE_VARIANCE],
      },
    );
    return { scores: softmax(logits), deltas, ...found };
  }
}

/** The heads of all levels, `values` numbers for each prior of a cell. */
function heads(values: number): (Sequential | Conv2d)[] {
  return [64, 128, 256, 256].map((channels, level) => {
    const out = LEVELS[level]!.sides.length * values;
    return level < 3
      ? new Sequential(depthwise(channels), new ReLU(), new Conv2d(channels, out, 1))
      : new Conv2d(channels, out, 3, { padding: 1 });
  });
}

function gridOf(level: number): { rows: number; columns: number } {
  const { stride } = LEVELS[level]!;
  return { rows: Math.ceil(HEIGHT / stride), columns: Math.ceil(WIDTH / stride) };
}

function anchorsOf(level: number): number {
  const { rows, columns } = gridOf(level);
  return rows * columns * LEVELS[level]!.sides.length;
}

/** Centre x and y, width and height of all priors as fractions of the image; cells divide it evenly, sizes are cut at 1. */
export function priors(): [x: number, y: number, w: number, h: number][] {
  const cut = (x: number) => Math.min(1, x);
  return LEVELS.flatMap(({ sides }, level) => {
    const { rows, columns } = gridOf(level);
    return Array.from({ length: rows * columns }, (_, cell) => {
      const x = ((cell % columns) + 0.5) / columns;
      const y = (Math.floor(cell / columns) + 0.5) / rows;
      return sides.map((side): [number, number, number, number] => [x, y, cut(side / WIDTH), cut(side / HEIGHT)]);
    }).flat();
  });
}

/** Corners x1, y1, x2, y2 as fractions of the image, from the corrections of all priors. */
export function decode(deltas: ArrayLike<number>): Float64Array {
  const corners = new Float64Array(deltas.length);
  for (const [i, [x, y, w, h]] of priors().entries()) {
    const [dx, dy, dw, dh] = [0, 1, 2, 3].map((k) => deltas[4 * i + k]) as [number, number, number, number];
    const [cx, cy] = [x + dx * CENTER_VARIANCE * w, y + dy * CENTER_VARIANCE * h];
    const [width, height] = [w * Math.exp(dw * SIZE_VARIANCE), h * Math.exp(dh * SIZE_VARIANCE)];
    corners.set([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], 4 * i);
  }
  return corners;
}

/** A face: corners as fractions of the image, and the probability. */
interface Face {
  box: [x1: number, y1: number, x2: number, y2: number];
  score: number;
}

/** The largest difference of two lists of numbers; NaN where there is one in either. */
function largestDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.NaN;
  let largest = 0;
  for (let i = 0; i < expected.length; ++i) {
    const difference = Math.abs(actual[i]! - expected[i]!);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

function overlap(a: Face["box"], b: Face["box"]): number {
  const area = ([x1, y1, x2, y2]: Face["box"]) => Math.max(0, x2 - x1) * Math.max(0, y2 - y1);
  const shared = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return shared / (area(a) + area(b) - shared);
}

/** Pairs each expected face with the found one that overlaps it most, best first; IoU 0.5 at least. */
function pairUp(expected: readonly Face[], found: readonly Face[]): [Face, Face][] {
  const left = [...found];
  return expected.flatMap((face): [Face, Face][] => {
    const best = left.reduce(
      (at, other, i) => (overlap(face.box, other.box) > overlap(face.box, left[at]!.box) ? i : at),
      0,
    );
    if (left.length === 0 || overlap(face.box, left[best]!.box) < 0.5) return [];
    return [[face, left.splice(best, 1)[0]!]];
  });
}

/** Expected and found faces side by side. */
function compareFaces(expected: readonly Face[], found: readonly Face[]) {
  const pairs = pairUp(expected, found);
  const paired = new Set(pairs.flat());
  const unpaired = [...expected, ...found].filter((face) => !paired.has(face));
  return {
    expected: expected.length,
    found: found.length,
    unpaired: unpaired.length,
    /** Those of them that are no matter of the last bit. */
    wrong: unpaired.filter(({ score }) => score > SCORE_THRESHOLD + UNSURE).length,
    box: Math.max(0, ...pairs.map(([a, b]) => largestDifference(a.box, b.box))),
    score: Math.max(0, ...pairs.map(([a, b]) => Math.abs(a.score - b.score))),
  };
}

/** The network as one program for an image at a time. */
class FaceDetector implements Disposable {
  readonly program: Program;

  constructor(model: RFB320) {
    this.program = new Program(
      model.device,
      { images: { shape: [1, HEIGHT, WIDTH, 3], dtype: "f32" }, imageSizes: { shape: [1, 2], dtype: "f32" } },
      ({ images, imageSizes }) => model.detect(images!, imageSizes!),
    );
    this.program.inputs.imageSizes!.write([HEIGHT, WIDTH]);
  }

  /** @param input pixels (240, 320, 3), RGB, (value - 127) / 128 */
  run(input: Float32Array): { scores: ArrayLike<number>; boxes: Float64Array; faces: Face[] } {
    this.program.inputs.images!.write(input);
    this.program.run();
    const read = (name: string) => this.program.results[name]!.read();
    const rows = read("detections");
    const faces = Array.from({ length: read("counts")[0] as number }, (_, i): Face => {
      const [x1, y1, x2, y2, score] = [...rows.subarray(6 * i, 6 * i + 5)] as [number, number, number, number, number];
      return { box: [x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT], score };
    });
    return { scores: read("scores"), boxes: decode(read("deltas")), faces };
  }

  [Symbol.dispose](): void {
    this.program.dispose();
  }
}

async function readFloats(...path: string[]): Promise<Float32Array> {
  return new Float32Array(await Bun.file(join(...path)).arrayBuffer());
}

/** (3, height, width) to (height, width, 3). */
function toChannelsLast(planes: Float32Array): Float32Array {
  const area = HEIGHT * WIDTH;
  return Float32Array.from({ length: 3 * area }, (_, i) => planes[(i % 3) * area + Math.floor(i / 3)]!);
}

async function readExpected(folder: string): Promise<{ file: string; faces: Face[] }[]> {
  const photos = (await Bun.file(join(folder, "expected_detections.json")).json()) as {
    file: string;
    detections: { box_xyxy_norm: Face["box"]; score: number }[];
  }[];
  // Found boxes are clipped to the image.
  const clip = (box: Face["box"]) => box.map((x) => Math.min(1, Math.max(0, x))) as Face["box"];
  return photos.map(({ file, detections }) => ({
    file,
    faces: detections.map(({ box_xyxy_norm: box, score }) => ({ box: clip(box), score })),
  }));
}

function findWeights(folder: string): string {
  const names = readdirSync(folder).sort();
  const name = names.find((file) => file.endsWith(".npz")) ?? names.find((file) => file.endsWith(".onnx"));
  if (name === undefined)
    throw new DlfsError(ErrorCode.io, folder, "expected weights in an .npz or .onnx file, there are none");
  return join(folder, name);
}

const exponent = (x: number, width: number) => x.toExponential(1).padStart(width);
const columns = (widths: readonly number[], values: readonly (string | number)[]) =>
  values.map((value, i) => String(value).padStart(widths[i]!)).join("");

type Print = (line: string) => void;

/** From the stored inputs: the network's outputs, and where the photo of that name has them, its final boxes. */
async function compareReferences(
  folder: string,
  detector: FaceDetector,
  expected: readonly { file: string; faces: Face[] }[],
  print: Print,
) {
  print(`reference run    scores     boxes   faces expected   found   face boxes   (limit ${REFERENCE_LIMIT})`);
  const stored = join(folder, "reference");
  const inputs = readdirSync(stored).filter((file) => file.endsWith(".input.f32"));
  const results = [];
  for (const file of inputs.sort()) {
    const name = file.slice(0, -".input.f32".length);
    const { scores, boxes, faces } = detector.run(toChannelsLast(await readFloats(stored, file)));
    const photo = expected.find((entry) => entry.file.replace(/\.[^.]*$/, "") === name);
    const compared = compareFaces(photo?.faces ?? [], photo ? faces : []);
    const differences = {
      scores: largestDifference(scores, await readFloats(stored, `${name}.scores.f32`)),
      boxes: largestDifference(boxes, await readFloats(stored, `${name}.boxes.f32`)),
    };
    const all = [differences.scores, differences.boxes, compared.box, compared.score];
    const good = all.every((difference) => difference <= REFERENCE_LIMIT) && compared.unpaired === 0;
    results.push({ name, ...differences, faces: compared, good });
    const [left, right] = [exponent(differences.scores, 11), exponent(differences.boxes, 10)];
    const found = columns([17, 8], [compared.expected, compared.found]);
    print(`${name.padEnd(12)}${left}${right}${found}${exponent(compared.box, 13)}   ${good ? "ok" : "FAIL"}`);
  }
  return results;
}

/** From the photos themselves: the same faces, drawn into a folder. */
async function comparePhotos(
  folder: string,
  detector: FaceDetector,
  expected: readonly { file: string; faces: Face[] }[],
  pictures: string,
  print: Print,
) {
  print(`photo        expected   found   unpaired     boxes    scores   (limit ${PHOTO_LIMIT})`);
  const codec = new DeviceImageCodec(detector.program.device);
  const results = [];
  for (const { file, faces: wanted } of expected) {
    const image = codec.decode(await Bun.file(join(folder, "images", file)).bytes());
    const { data } = resize(image, WIDTH, HEIGHT);
    const { faces } = detector.run(Float32Array.from(data, (value) => (value - 127) / 128));
    const compared = compareFaces(wanted, faces);
    const good = compared.wrong === 0 && compared.box <= PHOTO_LIMIT;
    results.push({ file, ...compared, good });
    const counts = columns([9, 8, 11], [compared.expected, compared.found, compared.unpaired]);
    const differences = `${exponent(compared.box, 10)}${exponent(compared.score, 10)}`;
    print(`${file.padEnd(12)}${counts}${differences}   ${good ? "ok" : "FAIL"}`);
    const shown = faces.map(({ box: [x1, y1, x2, y2], score }) => ({
      box: [x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height],
      classIndex: 0,
      score,
    }));
    drawBoxes(image, shown, ["face"]);
    await Bun.write(join(pictures, file), codec.encode(image));
  }
  return results;
}

/** The command line; where it is wrong, says what is expected and ends. */
function parse() {
  const usage = "usage: bun run examples/03_pretrained.ts DIR [--weights FILE] [--out DIR] [--backend cpu|cuda]";
  try {
    const { values, positionals } = parseArgs({
      options: {
        weights: { type: "string" },
        out: { type: "string", default: "runs" },
        backend: { type: "string" },
        help: { type: "boolean" },
      },
      allowPositionals: true,
    });
    const [folder] = positionals;
    if (values.help) {
      console.log(usage);
      process.exit(0);
    }
    if (folder === undefined || positionals.length > 1) throw new Error("expected one folder, DIR");
    return { options: values, folder };
  } catch (error) {
    console.error(`${(error as Error).message}\n${usage}`);
    process.exit(2);
  }
}

async function main(): Promise<number> {
  const { options, folder } = parse();

  using device = new Device({ backend: options.backend }, console.log);
  using model = new RFB320().to(device);
  model.eval();
  const path = options.weights ?? findWeights(folder);
  using weights = await loadWeights(path);
  // Properties have names in camelCase, parameters have them in snake_case.
  const rename = (name: string) => name.replace(".ConvLinear.", ".conv_linear.");
  const { loaded } = loadTorchWeights(model, weights.tensors, { rename });
  console.log(`${path}: ${loaded.length} tensors loaded\n`);

  const run = await RunFolder.create({ name: "rfb320", root: options.out });
  await run.writeConfig({ data: folder, weights: path, backend: device.backend });
  const print = (line: string): void => {
    console.log(line);
    run.appendLog(line);
  };
  using detector = new FaceDetector(model);
  const expected = await readExpected(folder);
  const references = await compareReferences(folder, detector, expected, print);
  console.log();
  const photos = await comparePhotos(folder, detector, expected, run.picturesFolder, print);
  await run.writeSummary({ references, photos });
  run.close();
  console.log(`\npictures: ${run.picturesFolder}`);
  return [...references, ...photos].every(({ good }) => good) ? 0 : 1;
}

if (import.meta.main) {
  try {
    process.exitCode = await main();
  } catch (error) {
    // A file that is missing, or has other weights.
    const expected = error instanceof DlfsError || (error instanceof Error && "code" in error);
    console.error(`error: ${expected ? error.message : Bun.inspect(error)}`);
    process.exitCode = 1;
  }
}

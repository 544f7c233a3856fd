/**
 * How fast images become boxes: the network by itself, the engine on pixels that are on the device, `dlfs predict` on a folder of
 * JPEG files, and, with --python, torchvision's RetinaNet on the same files with the same weights, all in one run.
 *
 *   bun run scripts/bench-predict.ts [--model NAME] [--size 640x640] [--batch 32] [--precision fp16] [--classes 91]
 *     [--images N or DIR] [--detections N] [--repetitions 3] [--gpus N] [--tune-ms N] [--backend cuda] [--python PYTHON]
 *     [--peer-images N] [--peer-variants autocast,half,compiled] [--json FILE]
 *
 * The model's weights are random, and set so that about --detections objects are found on an image: suppression, and what is done
 * with each box, take their time as with a trained model. The JPEGs, of 640x480, are drawn where --images names no folder. A rate is
 * the median of --repetitions, after one that warms up: of the engine while four batches are under way, of `dlfs predict` what the
 * command itself says, which begins when the model is loaded. Prints a table, and writes all figures to --json.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { benchImages, drawPicture, PICTURE_SIZE } from "../lib/bench/bench-images";
import { table } from "../lib/bench/table";
import { DeviceImageCodec, Normalize, type Pixels, Resize } from "../lib/data";
import { Engine, type EngineImage, listImages } from "../lib/engine";
import { type DetectionModel, type ModelConfig, modelFromConfig, namedModel } from "../lib/models";
import { type BackendName, backendNames } from "../lib/native";
import { Device, type Precision, precisionPolicy, Tensor } from "../lib/tensor";
import { autotune, DetectStep, loadTrainedModel, saveModel, saveTorchWeights } from "../lib/train";
import packageJson from "../package.json";

const { values: args } = parseArgs({
  options: {
    model: { type: "string", default: "retinanet_resnet50_fpn" },
    size: { type: "string", default: "640x640" },
    batch: { type: "string", default: "32" },
    precision: { type: "string" },
    classes: { type: "string", default: "91" },
    images: { type: "string", default: "8192" },
    detections: { type: "string", default: "20" },
    repetitions: { type: "string", default: "3" },
    gpus: { type: "string", default: "1" },
    "tune-ms": { type: "string" },
    backend: { type: "string" },
    python: { type: "string" },
    "peer-images": { type: "string", default: "2048" },
    "peer-variants": { type: "string", default: "autocast,half" },
    json: { type: "string" },
  },
});

function fail(message: string): never {
  console.error(`bench-predict: ${message}`);
  process.exit(2);
}

function count(name: keyof typeof args): number {
  const value = Number(args[name]);
  if (Number.isSafeInteger(value) && value > 0) return value;
  fail(`--${name}: expected an integer from 1, got "${args[name]}"`);
}

const [batch, classes, repetitions, wanted] = [
  count("batch"),
  count("classes"),
  count("repetitions"),
  count("detections"),
];
const sides = args.size.split("x").map(Number);
const size: readonly [height: number, width: number] = [sides[0] as number, sides[1] ?? (sides[0] as number)];
if (!size.every((side) => Number.isSafeInteger(side) && side > 0)) fail(`--size: expected HxW, got "${args.size}"`);
const backend = args.backend as BackendName | undefined;
if (backend !== undefined && !backendNames.includes(backend)) fail(`--backend: expected cuda or cpu, got "${backend}"`);
const tuneMs = args["tune-ms"] === undefined ? undefined : Number(args["tune-ms"]);

const folder = mkdtempSync(join(tmpdir(), "dlfs-bench-predict-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
const modelPath = join(folder, "model.dlfs");
const weightsPath = join(folder, "weights.safetensors");
/** Seconds of a measurement of the engine. */
const SECONDS = 1.5;
/** Batches under way at a time. */
const UNDER_WAY = 4;

/** A rate: the median of several. */
interface Row {
  name: string;
  imagesPerSecond: number;
  samples: number[];
  /** Of a sample. */
  images: number;
  detectionsPerImage: number;
}

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] as number;

/**
 * Sets random weights so that values keep their size through the network and scores are spread, as a trained network's are: each
 * block adds little to its input, and the convolutions of the classification head neither shrink nor blow up what they are given.
 */
function spreadScores(model: DetectionModel): void {
  for (const [name, { tensor, size: length }] of model.namedParameters()) {
    if (/\.bn3\.weight$/.test(name)) tensor.write(new Float32Array(length).fill(0.2));
    if (!/classification_head\..*conv.*weight$|cls_logits\.weight$/.test(name)) continue;
    tensor.write((tensor.read() as Float32Array).map((value) => 3.5 * value));
  }
  model.refresh();
}

/** Finds the bias of the scores at which about `wanted` objects are found on an image, by halving; what was found then. */
async function setDetections(model: DetectionModel, images: Tensor): Promise<number> {
  const bias = [...model.namedParameters()].find(([name]) => /(cls_logits|class_head\.last)\.bias$/.test(name))?.[1];
  if (!bias) fail(`--model ${args.model}: expected a model whose classification head has a bias`);
  const [height, width] = size;
  const n = images.shape[0] as number;
  using step = new DetectStep(model, { batchSize: n, height, width, images: "pixels" });
  let [low, high, found] = [-30, 10, 0];
  for (let i = 0; i < 16; i++) {
    const middle = (low + high) / 2;
    bias.tensor.write(new Float32Array(bias.size).fill(middle));
    model.refresh();
    step.refresh();
    found = mean((await step.run(images, n)).map((detections) => detections.length));
    if (Math.abs(found - wanted) <= 0.1 * wanted) break;
    if (found > wanted) high = middle;
    else low = middle;
  }
  return found;
}

/** Different pictures among those that are on the device: drawing one takes a tenth of a second. */
const PICTURES = 16;
const drawnPictures: Pixels[] = [];

function pictureOf(i: number): Pixels {
  drawnPictures[i % PICTURES] ??= drawPicture(i % PICTURES);
  return drawnPictures[i % PICTURES] as Pixels;
}

/** So many drawn pictures as the network is given them, but for normalisation. */
function drawnInputs(device: Device, n: number): Tensor {
  const [height, width] = size;
  const bytes = new Uint8Array(n * height * width * 3);
  for (let i = 0; i < n; i++) {
    const picture = pictureOf(i);
    for (let y = 0; y < Math.min(height, picture.height); y++) {
      const from = 3 * y * picture.width;
      const row = picture.data.subarray(from, from + 3 * Math.min(width, picture.width));
      bytes.set(row, 3 * width * (i * height + y));
    }
  }
  const pixels = Tensor.empty(device, [n, height, width, 3], "u8");
  pixels.writeBytes(bytes);
  return pixels;
}

/** Writes a model file with random weights, and the weights for torchvision; objects that are found on an image. */
async function makeModelFile(device: Device, precision: Precision): Promise<number> {
  const named = namedModel(args.model);
  const config = { ...named, classes, ...(named.name === "retinanet" && { norm: "batch" }) } as ModelConfig;
  using model = modelFromConfig(config).to(device, { precision, seed: 0 });
  if (named.name === "retinanet") spreadScores(model);
  using inputs = drawnInputs(device, batch); // the batch whose convolutions are tuned anyway
  const found = await setDetections(model, inputs);
  const preprocessing = [new Resize(), new Normalize(model.normalization)];
  const run = { model: config, classes: Array.from({ length: classes }, (_, i) => `class ${i}`), size };
  await saveModel(modelPath, {
    ...{ model, path: modelPath, iteration: 0, metrics: {}, preprocessing, [Symbol.dispose]: () => {} },
    config: { ...run, preprocessing: preprocessing.map((op) => op.toJSON()) },
  });
  if (args.python !== undefined) await saveTorchWeights(weightsPath, model);
  return found;
}

/** Images a second of `run`, which detects on a batch. */
async function measure(name: string, run: () => Promise<readonly { length: number }[]>): Promise<Row> {
  const found = await run();
  const around = async (batches: number): Promise<number> => {
    const started = performance.now();
    let left = batches;
    const one = async () => {
      while (left-- > 0) await run();
    };
    await Promise.all(Array.from({ length: UNDER_WAY }, one));
    return (1000 * batches * batch) / (performance.now() - started);
  };
  const batches = Math.max(2 * UNDER_WAY, Math.ceil((SECONDS * (await around(2 * UNDER_WAY))) / batch));
  await around(batches);
  const samples: number[] = [];
  for (let i = 0; i < repetitions; i++) samples.push(await around(batches));
  const detectionsPerImage = mean(found.map(({ length }) => length));
  return { name, imagesPerSecond: median(samples), samples, images: batches * batch, detectionsPerImage };
}

/** The network with its post-processing, on a batch that is on the device as it takes it. */
async function measureNetwork(device: Device, precision: Precision): Promise<Row> {
  using trained = await loadTrainedModel(modelPath, device, { precision });
  using inputs = drawnInputs(device, batch);
  const [height, width] = size;
  using step = new DetectStep(trained.model, { batchSize: batch, height, width, images: "pixels" });
  return await measure(`network and post-processing, ${width}x${height}`, () => step.run(inputs, batch));
}

/** The engine, on pixels that are on the device. */
async function measureEngine(device: Device, precision: Precision): Promise<Row> {
  const [height, width] = PICTURE_SIZE;
  await using engine = await Engine.load(modelPath, { device, precision, batchSizes: [batch] });
  using pixels = Tensor.empty(device, [batch, height, width, 3], "u8");
  const all = Array.from({ length: batch }, (_, i) => pictureOf(i).data);
  pixels.writeBytes(new Uint8Array(Buffer.concat(all)));
  const each = pixels.byteLength / batch;
  const images = all.map((_, i): EngineImage => Tensor.at(device, pixels.address + i * each, [height, width, 3], "u8"));
  return await measure(`engine, ${width}x${height} pixels on the device`, async () =>
    (await engine.detect(images)).map(({ detections }) => detections),
  );
}

/** `dlfs predict` by itself, in a process of its own, with a folder of its own each time. */
async function measureCommand(images: string, files: number, precision: Precision): Promise<Row> {
  const program = fileURLToPath(new URL("../lib/cli/main.ts", import.meta.url));
  const samples: number[] = [];
  let detections = 0;
  for (let i = 0; i <= repetitions; i++) {
    const out = join(folder, `out-${i}`);
    const options = ["--batch", `${batch}`, "--precision", precision, "--out", out];
    if (backend) options.push("--backend", backend);
    if (tuneMs !== undefined) options.push("--tune-ms", `${tuneMs}`);
    if (args.gpus !== "1") options.push("--gpus", args.gpus);
    const child = Bun.spawn([process.execPath, "run", program, "predict", modelPath, images, ...options], {
      stdout: "pipe",
      stderr: "pipe",
    });
    const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    const said = /^(\d+) images, (\d+) detections in [\d.]+ s, ([\d.]+) images\/s$/m.exec(stdout);
    if ((await child.exited) !== 0 || !said) fail(`dlfs predict ended with ${child.exitCode}: ${stderr.slice(-1000)}`);
    if (Number(said[1]) !== files) fail(`dlfs predict: expected ${files} images, got ${said[1]}`);
    detections = Number(said[2]);
    if (i > 0) samples.push(Number(said[3])); // the first has the files read from the disk
    rmSync(out, { recursive: true });
  }
  const name = `dlfs predict, ${args.gpus === "1" ? "" : `${args.gpus} devices, `}JPEG files`;
  return { name, imagesPerSecond: median(samples), samples, images: files, detectionsPerImage: detections / files };
}

/** torchvision's RetinaNet, as scripts/peers/predict_torchvision.py says. */
async function measurePeer(python: string, files: string[], device: Device, precision: Precision) {
  const script = fileURLToPath(new URL("peers/predict_torchvision.py", import.meta.url));
  const child = Bun.spawn([python, script], { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
  const [variants, threads] = [args["peer-variants"].split(","), Math.min(16, navigator.hardwareConcurrency)];
  const options = { batch, size, classes, precision: precisionPolicy(precision).name, threads, variants, repetitions };
  child.stdin.write(JSON.stringify({ ...options, files, weights: weightsPath, warmUp: 8, device: device.backend }));
  child.stdin.end();
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  if ((await child.exited) !== 0) fail(`torchvision: ${stderr.trim().slice(-1000) || stdout.slice(-1000)}`);
  const lines = stdout.trim().split("\n");
  const parsed = lines.map((line) => JSON.parse(line) as Partial<Row> & { versions?: object; failed?: string });
  return {
    versions: parsed.find(({ versions }) => versions)?.versions,
    failed: parsed.flatMap(({ failed }) => failed ?? []),
    rows: parsed.filter((line): line is Row => line.imagesPerSecond !== undefined),
  };
}

const device = new Device({ backend }, console.log);
const precision = (args.precision ?? (device.supports("conv.f16") ? "fp16" : "fp32")) as Precision;
if (tuneMs !== undefined) autotune(device, { ms: tuneMs });
const drawn = Number(args.images);
const isNumber = Number.isSafeInteger(drawn) && drawn > 0;
const images = isNumber ? benchImages(new DeviceImageCodec(device), drawn) : resolve(args.images);
const names = (await listImages(images)).images.map(({ name }) => join(images, name));
const found = await makeModelFile(device, precision);
console.log(
  `model: ${args.model}, ${classes} classes, input ${size.join("x")}, ${precision}, batches of ${batch}, random weights, ` +
    `${found.toFixed(1)} objects found on an image; ${names.length} images in ${images}`,
);
const network = await measureNetwork(device, precision);
const engine = await measureEngine(device, precision);
const peerFiles = names.slice(0, count("peer-images"));
const description = { device: device.info, backend: device.backend, cores: navigator.hardwareConcurrency };
const command = await measureCommand(images, names.length, precision);
const peer = args.python === undefined ? null : await measurePeer(args.python, peerFiles, device, precision);
device.dispose();

const best = Math.max(0, ...(peer?.rows ?? []).map(({ imagesPerSecond }) => imagesPerSecond));
const all = [network, engine, command, ...(peer?.rows ?? [])];
const cells = all.map(({ name, imagesPerSecond, samples, images: n, detectionsPerImage }) => [
  ...[name, imagesPerSecond.toFixed(1), `${Math.min(...samples).toFixed(1)} to ${Math.max(...samples).toFixed(1)}`],
  ...[`${n}`, detectionsPerImage.toFixed(1), (imagesPerSecond / engine.imagesPerSecond).toFixed(3)],
]);
const header = ["what", "images/s", "from", "images", "objects", "of the engine"];
for (const line of table(header, cells)) console.log(line);
for (const failed of peer?.failed ?? []) console.log(`torchvision, not measured: ${failed}`);
if (best > 0)
  console.log(
    `dlfs predict is ${(command.imagesPerSecond / best).toFixed(2)} times as fast as torchvision's best, on ${description.device.name}`,
  );
if (args.json !== undefined) {
  const settings = { model: args.model, size, batch, precision, classes, images: names.length, picture: PICTURE_SIZE };
  const work = {
    ...settings,
    objectsPerImage: found,
    warmUp: 1,
    repetitions,
    underWay: UNDER_WAY,
    gpus: Number(args.gpus),
  };
  const versions = { dlfs: packageJson.version, bun: Bun.version, peer: peer?.versions };
  const ratios = {
    ofEngine: command.imagesPerSecond / engine.imagesPerSecond,
    ...(best > 0 && { ofPeer: command.imagesPerSecond / best }),
  };
  await Bun.write(
    args.json,
    `${JSON.stringify({ ...description, versions, work, rows: all, failed: peer?.failed, ratios }, null, 2)}\n`,
  );
}

import { parseArgs } from "node:util";
import { Engine, listImages, PredictProcesses, predictionFormats, runBatchInference } from "../engine";
import { chooseBackend, listDevices, loadLibrary } from "../native";
import { Device, type DeviceOptions } from "../tensor";
import { stopOnSignals } from "../train";
import { milliseconds, number, oneOf, positiveInteger, precisionOf, sizeOf, UsageError } from "./arguments";
import type { Verb } from "./main";

const help = `dlfs predict: detects objects on many images.

Usage: dlfs predict MODEL SOURCE --out DIR [options]

  MODEL               a model file (dlfs export), a checkpoint, or the folder of a run
  SOURCE              images: a folder, gs://BUCKET/PREFIX or s3://BUCKET/PREFIX, with all below it; a pattern in quotes, such as
                      'shots/**/*.jpg'; a .txt file with a path in each line; a COCO annotation file, for its images; a video,
                      for its frames (ffmpeg must be installed); an image
  --out DIR           where predictions.dlpr is written, which grows as images are done (schemas/predictions.fbs says what is in
                      it); a second run detects on what is not in it yet
  --format NAMES      at the end also, of coco,jsonl,yolo: results.json in COCO's results format, predictions.jsonl with an
                      object for each image, labels/ with YOLO's text files
  --pictures          JPEGs of the images with their boxes, in DIR/pictures
  --score X           leave out detections below it; default what the model's post-processing keeps
  --every N           of a video, every Nth frame
  --fps X             of a video, so many frames a second
  --retry-failed      also tries images again that were damaged at an earlier run; those that could not be read are tried again
                      in any case
  --gpus N            a process on each of the first N GPUs, which share the images; on the CPU N processes
  --devices LIST      the same on these GPUs: 0,2,3
  --batch N           most images at a time; default 32 on a GPU, 8 on the CPU
  --size N or HxW     network input in pixels; default the model's
  --precision P       fp32, tf32, bf16 or fp16; default fp16 where the device has it, else fp32
  --quantize DTYPE    f8 or i8: convolutions of 8 bits, for a model file with a calibration
  --read-ahead N      files read ahead; default four batches
  --tune-ms N         time for choosing each convolution's algorithm where none is saved, 0 for heuristics
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device

Images that cannot be read or decoded are counted and named; Ctrl-C stops with what is done, and the same command goes on.
Exit status: 0 all images are done, 1 something failed as a whole, 130 stopped.`;

const options = {
  out: { type: "string" },
  format: { type: "string" },
  pictures: { type: "boolean" },
  score: { type: "string" },
  batch: { type: "string" },
  size: { type: "string" },
  precision: { type: "string" },
  quantize: { type: "string" },
  "read-ahead": { type: "string" },
  every: { type: "string" },
  fps: { type: "string" },
  "retry-failed": { type: "boolean" },
  gpus: { type: "string" },
  devices: { type: "string" },
  "tune-ms": { type: "string" },
  backend: { type: "string" },
} as const;

function aboveZero(name: string, text: string): number {
  const value = number(name, text);
  if (value > 0) return value;
  throw new UsageError(`--${name}: expected a number above 0, got "${text}"`);
}

/** The devices that are asked for, each once. */
function devicesOf(args: { gpus?: string; devices?: string; backend?: string }, tf32?: boolean): DeviceOptions[] {
  if (args.gpus !== undefined && args.devices !== undefined)
    throw new UsageError("--devices: say either this or --gpus");
  const backend = args.backend;
  if (args.gpus === undefined && args.devices === undefined) return [{ backend, tf32 }];
  const chosen = chooseBackend(backend).name;
  const listed = args.devices?.split(",").map((text) => (text === "0" ? 0 : positiveInteger("devices", text)));
  const indices = listed ?? Array.from({ length: positiveInteger("gpus", args.gpus as string) }, (_, i) => i);
  if (new Set(indices).size < indices.length) throw new UsageError(`--devices: ${args.devices} names one twice`);
  if (chosen === "cpu") {
    if (listed)
      throw new UsageError("--devices: names GPUs, and the backend is the CPU; --gpus N gives so many processes");
    const threads = Math.max(1, Math.floor(navigator.hardwareConcurrency / indices.length));
    return indices.map(() => ({ backend: chosen, threads }));
  }
  const there = listDevices(loadLibrary(chosen)).length;
  const missing = indices.find((index) => index >= there);
  const option = listed ? "devices" : "gpus";
  if (missing !== undefined) throw new UsageError(`--${option}: there is no GPU ${missing}, the machine has ${there}`);
  return indices.map((index) => ({ backend: chosen, index, tf32 }));
}

/** Failures that are named one by one. */
const NAMED_FAILURES = 10;

export const verb: Verb = {
  help,
  async run(argv) {
    const { values: args, positionals } = parseArgs({ args: argv, options, strict: true, allowPositionals: true });
    const [model, source, ...others] = positionals;
    if (model === undefined || source === undefined || others.length > 0) {
      throw new UsageError(`expected MODEL and SOURCE, got ${positionals.length} arguments`);
    }
    const { out } = args;
    if (out === undefined) throw new UsageError("expected --out, the folder of the results");
    const given = <T>(name: keyof typeof args, parse: (name: string, text: string) => T): T | undefined =>
      args[name] === undefined ? undefined : parse(name, args[name] as string);
    const formats = (args.format?.split(",") ?? []).map((name) => oneOf("format", name, predictionFormats));
    const policy = given("precision", precisionOf);
    const batch = given("batch", positiveInteger);
    const settings = {
      precision: policy?.name,
      quantize: given("quantize", (name, text) => oneOf(name, text, ["f8", "i8"] as const)),
      size: given("size", sizeOf),
      tuneMs: given("tune-ms", milliseconds),
    };
    const run = {
      ...{ out, formats, pictures: args.pictures, retryFailed: args["retry-failed"] },
      scoreThreshold: given("score", number),
      readAhead: given("read-ahead", positiveInteger),
    };

    const choice = { every: given("every", positiveInteger), fps: given("fps", aboveZero) };
    if (choice.every !== undefined && choice.fps !== undefined)
      throw new UsageError("--fps: say either this or --every");
    const devices = devicesOf(args, policy?.tf32);

    const list = await listImages(source, choice);
    console.log(list.description);
    await using owned = new AsyncDisposableStack();
    const batchSizes = batch === undefined ? undefined : [batch];
    let engine: Engine | PredictProcesses;
    if (devices.length > 1) {
      const shared = { ...settings, model, batchSizes, devices, location: source, list: choice };
      engine = owned.use(await PredictProcesses.start(shared));
      console.log(`model: ${engine.description}`);
    } else {
      const device = owned.use(new Device(devices[0], console.log));
      engine = owned.use(await Engine.load(model, { ...settings, device, batchSizes }));
      const { path, iteration, size, precision } = engine;
      console.log(`model: ${path}, ${iteration} iterations, input ${size.join("x")}, ${precision}`);
    }
    using stop = stopOnSignals(() => console.error("\nstopping after this batch; again to stop at once"));
    const result = await runBatchInference({ ...run, engine, list, signal: stop.signal });
    const { before, images, retried, detections, seconds, failures, interrupted } = result;
    if (before > 0) console.log(`${before} images were done before`);
    if (retried > 0) console.log(`${retried} images that had failed were tried again`);
    const rate = images > 0 ? `, ${(images / seconds).toFixed(1)} images/s` : "";
    console.log(`${images} images, ${detections} detections in ${seconds.toFixed(1)} s${rate}`);
    if (failures.length > 0) console.log(`${failures.length} images could not be used:`);
    for (const { name, error } of failures.slice(0, NAMED_FAILURES)) console.log(`  ${name}: ${error}`);
    if (failures.length > NAMED_FAILURES)
      console.log(`  and ${failures.length - NAMED_FAILURES} more, in ${result.path}`);
    for (const path of [result.path, ...result.written]) console.log(`written: ${path}`);
    return interrupted ? stop.exitStatus : 0;
  },
};

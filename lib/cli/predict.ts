import { parseArgs } from "node:util";
import { Engine, listImages, predictionFormats, runBatchInference } from "../engine";
import { Device } from "../tensor";
import { stopOnSignals } from "../train";
import { milliseconds, number, oneOf, positiveInteger, precisionOf, sizeOf, UsageError } from "./arguments";
import type { Verb } from "./main";

const help = `dlfs predict: detects objects on many images.

Usage: dlfs predict MODEL SOURCE --out DIR [options]

  MODEL               a model file (dlfs export), a checkpoint, or the folder of a run
  SOURCE              images: a folder, gs://BUCKET/PREFIX or s3://BUCKET/PREFIX, with all below it; a pattern in quotes, such as
                      'shots/**/*.jpg'; a .txt file with a path in each line; a COCO annotation file, for its images; an image
  --out DIR           where predictions.dlpr is written, which grows as images are done (schemas/predictions.fbs says what is in
                      it); a second run detects on what is not in it yet
  --format NAMES      at the end also, of coco,jsonl,yolo: results.json in COCO's results format, predictions.jsonl with an
                      object for each image, labels/ with YOLO's text files
  --pictures          JPEGs of the images with their boxes, in DIR/pictures
  --score X           leave out detections below it; default what the model's post-processing keeps
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
  "tune-ms": { type: "string" },
  backend: { type: "string" },
} as const;

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
      ...{ out, formats, pictures: args.pictures },
      scoreThreshold: given("score", number),
      readAhead: given("read-ahead", positiveInteger),
    };

    const list = await listImages(source);
    console.log(list.description);
    using device = new Device({ backend: args.backend, tf32: policy?.tf32 }, console.log);
    const batchSizes = batch === undefined ? undefined : [batch];
    await using engine = await Engine.load(model, { ...settings, device, batchSizes });
    console.log(
      `model: ${engine.path}, ${engine.iteration} iterations, input ${engine.size.join("x")}, ${engine.precision}`,
    );
    using stop = stopOnSignals(() => console.error("\nstopping after this batch; again to stop at once"));
    const result = await runBatchInference({ ...run, engine, list, signal: stop.signal });
    const { before, images, detections, seconds, failures, interrupted } = result;
    if (before > 0) console.log(`${before} images were done before`);
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

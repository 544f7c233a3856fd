import { basename, dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { Device } from "../tensor";
import {
  evaluateModel,
  evaluateResultsFile,
  formatQuantized,
  formatReport,
  reportOf,
  writeCalibration,
  writeReport,
} from "../train";
import { milliseconds, oneOf, positiveInteger, precisionOf, sizeOf, UsageError } from "./arguments";
import type { Verb } from "./main";

const help = `dlfs eval: measures detections with COCO's metrics, equal to pycocotools': the twelve figures, a table of the
classes, and what each kind of error costs.

Usage: dlfs eval --run RUN | --checkpoint FILE [options]
       dlfs eval --results FILE --annotations FILE [--out DIR]

A trained model, on data in COCO's layout:
  --run RUN           the folder of a run; its newest checkpoint is used
  --checkpoint FILE   one of its checkpoints
  --data DIR          default: what the model was trained on; "demo" is the drawn data set
  --split NAME        default: the split that training was evaluated on
  --size N or HxW     network input in pixels; default: as in training
  --batch N           images a batch; default 8
  --precision P       fp32, tf32, bf16 or fp16; default fp32, with --quantize fp16 where the device has it
  --quantize DTYPES   f8, i8 or f8,i8: also with convolutions of 8 bits, after a calibration; prints the figures side by side
                      and writes RUN/calibration.json
  --calibration-images N   images of the training split that the calibration looks at; default 128
  --tune-ms N         time for choosing each convolution's algorithm where none is saved, 0 for heuristics; default 300 on a GPU
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device

Detections of any program:
  --results FILE      a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}
  --annotations FILE  COCO's instances_SPLIT.json

  --out DIR           where metrics.json, detections.json (of a model), confusion-matrix.svg, pr-curve.svg and f1-curve.svg are
                      written; default for a model: RUN/evaluation-SPLIT, else nothing is written`;

const options = {
  run: { type: "string" },
  checkpoint: { type: "string" },
  data: { type: "string" },
  split: { type: "string" },
  size: { type: "string" },
  batch: { type: "string" },
  precision: { type: "string" },
  quantize: { type: "string" },
  "calibration-images": { type: "string" },
  "tune-ms": { type: "string" },
  backend: { type: "string" },
  results: { type: "string" },
  annotations: { type: "string" },
  out: { type: "string" },
} as const;

type Args = ReturnType<typeof parseArgs<{ options: typeof options }>>["values"];

/** Where results of a checkpoint or a model file go: the run's folder, or the one that the file lies in. */
function folderOf(path: string): string {
  const folder = dirname(path);
  return basename(folder) === "checkpoints" ? dirname(folder) : folder;
}

async function evaluateTrained(path: string, args: Args): Promise<void> {
  const { data, split, "calibration-images": calibrationImages } = args;
  if (calibrationImages !== undefined && args.quantize === undefined) {
    throw new UsageError("--calibration-images is for --quantize");
  }
  const policy = args.precision === undefined ? undefined : precisionOf("precision", args.precision);
  const settings = {
    data,
    split,
    size: args.size === undefined ? undefined : sizeOf("size", args.size),
    batchSize: args.batch === undefined ? undefined : positiveInteger("batch", args.batch),
    precision: policy?.name,
    quantize: args.quantize?.split(",").map((dtype) => oneOf("quantize", dtype, ["f8", "i8"] as const)),
    calibration: {
      images: calibrationImages === undefined ? undefined : positiveInteger("calibration-images", calibrationImages),
    },
    tuneMs: args["tune-ms"] === undefined ? undefined : milliseconds("tune-ms", args["tune-ms"]),
  };
  using device = new Device({ backend: args.backend, tf32: policy?.tf32 }, console.log);
  const evaluation = await evaluateModel(path, device, { ...settings, log: console.log });
  const report = reportOf(evaluation);
  for (const line of ["", ...formatReport(report)]) console.log(line);
  for (const line of formatQuantized(evaluation)) console.log(line);
  const run = args.run ?? folderOf(path);
  const out = args.out ?? join(run, `evaluation-${evaluation.split}`);
  await writeReport(out, report, evaluation.detections);
  if (evaluation.table) await writeCalibration(join(run, "calibration.json"), evaluation.table);
  console.log(`\nwritten: ${out}`);
}

async function evaluateFiles(results: string, annotations: string, out: string | undefined): Promise<void> {
  const report = reportOf(await evaluateResultsFile(annotations, results));
  for (const line of formatReport(report)) console.log(line);
  if (out === undefined) return;
  await writeReport(out, report);
  console.log(`\nwritten: ${out}`);
}

export const verb: Verb = {
  help,
  async run(argv) {
    const args = parseArgs({ args: argv, options, strict: true, allowPositionals: false }).values;
    const given = (["run", "checkpoint", "results"] as const).filter((name) => args[name] !== undefined);
    if (given.length !== 1) throw new UsageError("expected one of --run, --checkpoint and --results");
    if (args.results !== undefined) {
      if (args.annotations === undefined) throw new UsageError("--results needs --annotations");
      for (const name of [
        "data",
        "split",
        "size",
        "batch",
        "precision",
        "quantize",
        "calibration-images",
        "tune-ms",
        "backend",
      ] as const) {
        if (args[name] !== undefined) throw new UsageError(`--${name} is for --run and --checkpoint`);
      }
      await evaluateFiles(args.results, args.annotations, args.out);
    } else {
      if (args.annotations !== undefined) throw new UsageError("--annotations is for --results");
      await evaluateTrained((args.run ?? args.checkpoint) as string, args);
    }
    return 0;
  },
};

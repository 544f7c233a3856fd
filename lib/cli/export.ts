import { existsSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { exportOnnx } from "../export";
import { Device } from "../tensor";
import { loadTrainedModel, readCalibration, saveModel, saveTorchWeights, trainedMetadata } from "../train";
import { oneOf, positiveInteger, sizeOf, UsageError } from "./arguments";
import type { Verb } from "./main";

const help = `dlfs export: writes a trained model as one file, for serving or for other programs.

Usage: dlfs export --run RUN | --checkpoint FILE --out FILE [options]

  --run RUN           the folder of a run; its newest checkpoint is used
  --checkpoint FILE   one of its checkpoints, or a model file
  --out FILE          what is written
  --format NAME       dlfs: a model file, with all that detecting objects takes; onnx: the network with its weights, for any
                      number of images of one size, fp32; safetensors: the weights by PyTorch's names and shapes.
                      Default: as the file's name ends
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device

Of dlfs:
  --calibration FILE  how values are scaled to 8 bits, as dlfs eval --quantize writes it; default: calibration.json of the
                      run, where that is there

Of onnx:
  --postprocess       detections (N, most, 6) with x1, y1, x2, y2, score, class, and their counts (N), from images and their sizes
                      (N, 2); default: what the heads give for all anchors
  --size N or HxW     images in pixels; default: as in training
  --layout NAME       nchw or nhwc images; default nchw
  --opset N           version of ai.onnx, 17 to 22; default 17
  --keep-batch-norm   batch normalization as nodes of its own, with all parameters by name

All but the model file say which names the classes have and how images are prepared: "names" and "preprocessing" in their metadata, as JSON.`;

const options = {
  run: { type: "string" },
  checkpoint: { type: "string" },
  out: { type: "string" },
  format: { type: "string" },
  backend: { type: "string" },
  calibration: { type: "string" },
  postprocess: { type: "boolean" },
  size: { type: "string" },
  layout: { type: "string" },
  opset: { type: "string" },
  "keep-batch-norm": { type: "boolean" },
} as const;

const formats = ["dlfs", "onnx", "safetensors"] as const;

function formatOf(given: string | undefined, out: string): (typeof formats)[number] {
  if (given !== undefined) return oneOf("format", given, formats);
  const found = formats.find((name) => out.endsWith(`.${name}`));
  if (found) return found;
  throw new UsageError(`--out: "${out}" ends in none of .dlfs, .onnx and .safetensors: --format says what it is`);
}

/** What `dlfs eval --quantize` has left in a run's folder. */
function calibrationOf(run: string | undefined): string | undefined {
  const path = join(run ?? "", "calibration.json");
  return run !== undefined && existsSync(path) ? path : undefined;
}

export const verb: Verb = {
  help,
  async run(argv) {
    const args = parseArgs({ args: argv, options, strict: true, allowPositionals: false }).values;
    if ((args.run === undefined) === (args.checkpoint === undefined)) {
      throw new UsageError("expected one of --run and --checkpoint");
    }
    const { out } = args;
    if (out === undefined) throw new UsageError("expected --out, the file to be written");
    const format = formatOf(args.format, out);
    for (const name of ["postprocess", "size", "layout", "opset", "keep-batch-norm"] as const) {
      if (format !== "onnx" && args[name] !== undefined) throw new UsageError(`--${name} is for --format onnx`);
    }
    if (format !== "dlfs" && args.calibration !== undefined) throw new UsageError("--calibration is for --format dlfs");
    const size = args.size === undefined ? undefined : sizeOf("size", args.size);
    const layout = args.layout === undefined ? "nchw" : oneOf("layout", args.layout, ["nchw", "nhwc"]);
    const opset = args.opset === undefined ? 17 : positiveInteger("opset", args.opset);

    using device = new Device({ backend: args.backend });
    using trained = await loadTrainedModel((args.run ?? args.checkpoint) as string, device);
    const { model, config, path, iteration } = trained;
    const metadata = trainedMetadata(trained);
    console.log(`model: ${model.constructor.name} of iteration ${iteration}, ${path}`);
    if (format === "dlfs") {
      const path = args.calibration ?? calibrationOf(args.run);
      const calibration = path === undefined ? undefined : await readCalibration(path);
      await saveModel(out, trained, { calibration });
      if (path !== undefined) console.log(`calibration: ${path}`);
    } else if (format === "safetensors") {
      await saveTorchWeights(out, model, { metadata });
    } else {
      const { graph } = await exportOnnx(model, out, {
        size: size ?? config.size,
        layout,
        opset,
        postprocess: args.postprocess,
        foldBatchNorm: !args["keep-batch-norm"],
        metadata,
      });
      for (const [what, values] of Object.entries({ input: graph.inputs, output: graph.outputs })) {
        for (const { name, dtype, shape } of values) console.log(`${what}: ${name} ${dtype} (${shape.join(", ")})`);
      }
    }
    console.log(`written: ${out}`);
    return 0;
  },
};

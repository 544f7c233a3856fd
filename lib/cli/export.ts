import { parseArgs } from "node:util";
import { exportOnnx } from "../export";
import { Device } from "../tensor";
import { loadTrainedModel, saveTorchWeights, trainedMetadata } from "../train";
import { oneOf, positiveInteger, sizeOf, UsageError } from "./arguments";
import type { Verb } from "./main";

const help = `dlfs export: writes a trained model for other programs.

Usage: dlfs export --run RUN | --checkpoint FILE --out FILE [options]

  --run RUN           the folder of a run; its newest checkpoint is used
  --checkpoint FILE   one of its checkpoints
  --out FILE          what is written
  --format NAME       onnx: the network with its weights, for any number of images of one size, fp32;
                      safetensors: the weights by PyTorch's names and shapes. Default: as the file's name ends
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device

Of onnx:
  --postprocess       detections (N, most, 6) with x1, y1, x2, y2, score, class, and their counts (N), from images and their sizes
                      (N, 2); default: what the heads give for all anchors
  --size N or HxW     images in pixels; default: as in training
  --layout NAME       nchw or nhwc images; default nchw
  --opset N           version of ai.onnx, 17 to 22; default 17
  --keep-batch-norm   batch normalization as nodes of its own, with all parameters by name

The file says which names the classes have and how images are prepared: "names" and "preprocessing" in its metadata, as JSON.`;

const options = {
  run: { type: "string" },
  checkpoint: { type: "string" },
  out: { type: "string" },
  format: { type: "string" },
  backend: { type: "string" },
  postprocess: { type: "boolean" },
  size: { type: "string" },
  layout: { type: "string" },
  opset: { type: "string" },
  "keep-batch-norm": { type: "boolean" },
} as const;

const formats = ["onnx", "safetensors"] as const;

function formatOf(given: string | undefined, out: string): (typeof formats)[number] {
  if (given !== undefined) return oneOf("format", given, formats);
  const found = formats.find((name) => out.endsWith(`.${name}`));
  if (found) return found;
  throw new UsageError(`--out: "${out}" ends neither in .onnx nor in .safetensors: --format says what it is`);
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
    const size = args.size === undefined ? undefined : sizeOf("size", args.size);
    const layout = args.layout === undefined ? "nchw" : oneOf("layout", args.layout, ["nchw", "nhwc"]);
    const opset = args.opset === undefined ? 17 : positiveInteger("opset", args.opset);

    using device = new Device({ backend: args.backend });
    using trained = await loadTrainedModel((args.run ?? args.checkpoint) as string, device);
    const { model, config, path, iteration } = trained;
    const metadata = trainedMetadata(trained);
    console.log(`model: ${model.constructor.name} of iteration ${iteration}, ${path}`);
    if (format === "safetensors") {
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

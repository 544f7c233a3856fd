/**
 * Fine-tuning from start to end: defines a detector on a ResNet-18, loads a classifier's weights into its backbone, trains it,
 * measures it, writes its weights for PyTorch and all of it as ONNX, reads both back, and reuses the weights for other classes.
 *
 *   bun run examples/04_fine_tune.ts                                  the demo's images, all weights drawn at random
 *   bun run examples/04_fine_tune.ts --backbone-weights resnet18.pth  torchvision's ResNet-18, .pth or .safetensors
 *   bun run examples/04_fine_tune.ts --data DIR                       data in COCO's layout, train2017 and val2017
 *
 * --iterations N trains for N steps, by default 150; --out DIR is where the files go, by default runs/04_fine_tune.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  BatchNorm2d,
  CocoDataLoader,
  Conv2d,
  Detector,
  DetectStep,
  Device,
  DeviceBatchDecoder,
  DeviceImageCodec,
  DlfsError,
  demoFolder,
  describeLoaded,
  Evaluator,
  exportOnnx,
  FeaturePyramid,
  generateDemo,
  type HeadOutput,
  HorizontalFlip,
  Layer,
  loadBackboneWeights,
  loadDataset,
  loadTorchWeights,
  loadWeights,
  multiStep,
  Normalize,
  octaveAnchors,
  ReLU,
  Resize,
  ResNet,
  Sequential,
  saveTorchWeights,
  statsLine,
  Trainer,
  type Value,
  warmup,
} from "dlfs";

const USAGE =
  "usage: bun run examples/04_fine_tune.ts [--data DIR] [--backbone-weights FILE] [--iterations N] [--out DIR]";

function parse() {
  try {
    return parseArgs({
      options: {
        data: { type: "string" },
        "backbone-weights": { type: "string" },
        iterations: { type: "string", default: "150" },
        out: { type: "string", default: "runs/04_fine_tune" },
        help: { type: "boolean" },
      },
    }).values;
  } catch (error) {
    console.error(`${(error as Error).message}\n${USAGE}`);
    process.exit(2);
  }
}

const options = parse();
const pretrained = options["backbone-weights"];
const iterations = Number(options.iterations);
const batchSize = 8;
const size = [160, 160] as const;
const CHANNELS = 64;

/** A ResNet-18 with a feature pyramid of three levels; its parameters have torchvision's names. */
class Backbone extends Layer {
  // Statistics of pretrained weights are kept as they are, and so are the stem and the first stage.
  readonly body = new ResNet("resnet18", pretrained ? { norm: "frozen", trainableLayers: 3 } : {});
  readonly fpn = new FeaturePyramid(this.body.outChannels.slice(1), CHANNELS);

  /** Maps of 64 channels at strides 8, 16 and 32. */
  forward(images: Value): Value[] {
    const [, ...maps] = this.body.forward(images);
    return this.fpn.forward(maps);
  }
}

/** Convolution, normalization and ReLU, then `outputs` numbers for each cell. */
function head(outputs: number, bias: number): Sequential {
  const init = { weight: { kind: "normal", mean: 0, std: 0.01 }, bias: { kind: "constant", value: bias } } as const;
  return new Sequential(
    new Conv2d(CHANNELS, CHANNELS, 3, { padding: 1, bias: false }),
    new BatchNorm2d(CHANNELS),
    new ReLU(),
    new Conv2d(CHANNELS, outputs, 3, { padding: 1, init }),
  );
}

/** What Detector adds are anchors, matching, losses and post-processing. */
class ShapeDetector extends Detector {
  readonly backbone = new Backbone();
  readonly scores: Sequential[];
  readonly boxes: Sequential[];

  constructor(classes: number) {
    super({ classes, anchors: octaveAnchors(24), matcher: { high: 0.4, low: 0.3, allowLowQuality: true } });
    const { perCell } = this.anchorGenerator;
    // Every anchor starts out believing in an object with a probability of 0.01.
    this.scores = [0, 1, 2].map(() => head(perCell * classes, -Math.log(99)));
    this.boxes = [0, 1, 2].map(() => head(perCell * 4, 0));
  }

  heads(images: Value): HeadOutput[] {
    return this.backbone.forward(images).map((map, level) => ({
      logits: this.scores[level]!.forward(map),
      deltas: this.boxes[level]!.forward(map),
    }));
  }
}

async function main(): Promise<void> {
  using device = new Device({}, console.log);
  const codec = new DeviceImageCodec(device);
  const folder = options.data ?? demoFolder();
  if (options.data === undefined) {
    await generateDemo(folder, {
      encode: (data, width, height, quality) => codec.encode({ data, width, height }, quality),
    });
  }
  using dataset = await loadDataset(folder, { codec });

  // 1. The model, and what it starts from.
  using model = new ShapeDetector(dataset.classes.length);
  model.to(device, { seed: 1 });
  if (pretrained !== undefined) {
    using file = await loadWeights(pretrained);
    console.log(`${pretrained}: ${describeLoaded(loadBackboneWeights(model, file.tensors)).join(", ")}`);
  }

  // 2. Batches for training, with augmentation, and for evaluation.
  const [height, width] = size;
  const evaluation = [new Resize(), new Normalize()];
  const training = [new HorizontalFlip(), ...evaluation];
  using decoder = new DeviceBatchDecoder(device, { batchSize, height, width, preprocessing: training });
  using evalDecoder = new DeviceBatchDecoder(device, { batchSize, height, width, preprocessing: evaluation });
  const split = dataset.valSplit as string;
  const common = { store: dataset.store, source: dataset.source, batchSize, size };
  await using loader = new CocoDataLoader({ ...common, split: dataset.trainSplit, decoder, preprocessing: training });
  await using evalLoader = new CocoDataLoader({
    ...common,
    split,
    decoder: evalDecoder,
    preprocessing: evaluation,
    shuffle: false,
  });

  // 3. Training, and COCO's metrics at the end.
  {
    using evaluator = new Evaluator({ model, store: dataset.store, split, loader: evalLoader, decoder: evalDecoder });
    using trainer = new Trainer({
      model,
      loader,
      decoder,
      evaluator,
      iterations,
      optimizer: { schedule: warmup(multiStep(0.02, [Math.ceil(iterations * 0.8)]), Math.ceil(iterations / 10)) },
      observer: {
        onResult({ iteration, losses }) {
          if (iteration % 10 !== 0) return;
          const parts = Object.entries(losses).map(([name, loss]) => `${name} ${loss.toFixed(3)}`);
          console.log(`iteration ${iteration}: ${parts.join(", ")}`);
        },
      },
    });
    const { evaluation } = await trainer.train();
    if (evaluation) console.log(`${split}: ${statsLine(evaluation.result)}`);
  }

  // 4. Out into files: weights that safetensors.torch.load_file reads, with PyTorch's names and layouts; and the whole detector,
  // from normalised images to final boxes, for ONNX Runtime and others.
  const weights = join(options.out, "weights.safetensors");
  const onnx = join(options.out, "detector.onnx");
  await saveTorchWeights(weights, model);
  await exportOnnx(model, onnx, { size, postprocess: true, foldBatchNorm: false });
  console.log(`weights: ${weights}\nmodel:   ${onnx}`);

  // 5. Read back by name, from either: the same detections.
  const batch = await evalLoader.getBatch();
  const detect = async (network: ShapeDetector) => {
    using step = new DetectStep(network, { batchSize, height, width });
    return await step.run(evalDecoder.images(batch.slot), batch.n);
  };
  const found = await detect(model);
  for (const path of [weights, onnx]) {
    using again = new ShapeDetector(dataset.classes.length);
    again.to(device);
    using file = await loadWeights(path);
    // The ONNX file has constants besides: parameters are looked for below the model's own parts.
    loadTorchWeights(again, file.tensors, { only: ["backbone", "scores", "boxes"] });
    const same = JSON.stringify(await detect(again)) === JSON.stringify(found);
    console.log(`${path}: ${same ? "the same" : "OTHER"} detections`);
  }
  batch.release();
  console.log(`${found.reduce((sum, { length }) => sum + length, 0)} detections on ${found.length} images`);

  // 6. A detector for other classes: all but the last layers of the scores are reused.
  using file = await loadWeights(weights);
  using other = new ShapeDetector(dataset.classes.length + 1);
  other.to(device);
  for (const line of describeLoaded(loadTorchWeights(other, file.tensors, { ignoreMismatched: true })))
    console.log(line);
}

if (options.help) {
  console.log(USAGE);
} else {
  try {
    await main();
  } catch (error) {
    // A file that is missing, or has other weights; anything else is a defect.
    if (!(error instanceof DlfsError)) throw error;
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  }
}

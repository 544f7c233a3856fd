/**
 * Trains an object detector on a data set in COCO's layout, or on a small drawn one that comes with dlfs:
 *
 *   bun run examples/train_coco.ts                        COCO 2017 in ~/datasets/coco, where that exists, else the demo
 *   bun run examples/train_coco.ts --data demo
 *   bun run examples/train_coco.ts --data DIR --train-split train --val-split val
 *   bun run examples/train_coco.ts --data gs://BUCKET/coco
 *   bun run examples/train_coco.ts --model retinanet_resnet50_fpn --backbone-weights resnet50.pth
 *   bun run examples/train_coco.ts --data DIR --records RECORDS
 *   bun run examples/train_coco.ts --resume runs/demo-1
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import {
  AspectRatioBatches,
  augmentationPreset,
  augmentationPresets,
  autotune,
  type BatchImages,
  boxLossKinds,
  CheckpointStore,
  ClassBalancedSampler,
  CocoDataLoader,
  type CocoDataLoaderOptions,
  type CompactConfig,
  type Dataset,
  type DetectionModel,
  Device,
  DeviceBatchDecoder,
  DeviceCompositionDecoder,
  DeviceImageCodec,
  DeviceRecordReader,
  DlfsError,
  demoFolder,
  describeDataset,
  describeLoaded,
  detectorNames,
  Evaluator,
  generateDemo,
  HorizontalFlip,
  type ImageFailure,
  isRemoteLocation,
  type LoadedWeights,
  loadBackboneWeights,
  loadDataset,
  loadTorchWeights,
  loadTrainedModel,
  loadWeights,
  type ModelConfig,
  modelFromConfig,
  multiStep,
  type NamedModel,
  Normalize,
  namedModel,
  needCompositions,
  type PreprocessJson,
  type PreprocessOp,
  parsePreprocessing,
  parseRecompute,
  type RecomputeOption,
  RecordLoader,
  RecordSet,
  RepeatFactorSampler,
  Reporter,
  Resize,
  RunFolder,
  readCheckpoint,
  ScaleJitter,
  saveTorchWeights,
  showProgress,
  statsLine,
  Trainer,
  torchWeights,
  VerticalFlip,
  warmup,
} from "dlfs";

const HELP = `Trains an object detector on a data set in COCO's layout.

  --data DIR          folder with annotations/instances_SPLIT.json and the images in SPLIT/ or images/, or where such a folder
                      lies: gs://BUCKET/PREFIX, s3://BUCKET/PREFIX, https://HOST/PATH (read through a cache on disk); or
                      "demo"; default: ~/datasets/coco where that exists, else the demo
  --records DIR       take the images from record files, without decoding: DIR/TRAIN_SPLIT and, where it is there, DIR/VAL_SPLIT,
                      made of the same data by dlfs data pack; boxes to evaluate against come from --data as ever
  --on-bad-image HOW  an image that becomes unreadable during training: "skip" trains without it and counts it, "stop" ends
                      the training; default skip
  --max-bad-images X  end the training when more than this share of the images was skipped; default 0.1, 1 for never
  --sampler NAME      which images a pass has: shuffle (each once), class-balanced (classes take turns), or repeat-factor (images
                      with rare classes several times, as for LVIS); default shuffle
  --repeat-threshold X
                      repeat-factor repeats classes that less than this share of the images have; default 0.001
  --group-by-aspect   batches of images with similar height / width
  --train-split NAME  default train2017
  --val-split NAME    default val2017
  --iterations N      steps; default 1500 for the demo, else 12 passes over the data, at least 2000
  --batch N           images a step; default 8 for the demo, else 16
  --lr X              learning rate after the warm-up; default 0.04 for 8 images of the demo, else 0.02 for 16 images a step
                      (models by torchvision's names 0.01), in proportion to --batch
  --model NAME        one of the names below; default compact
  --backbone-weights FILE
                      start from a classifier's weights in torchvision's names (.pth, .safetensors), or a detector's backbone
  --weights FILE      start from a detector's weights: .pth, .safetensors, .npz, .onnx (with all parameters: dlfs export
                      --keep-batch-norm), or a run folder or checkpoint
  --partial           --weights may lack some, have others, or be for other classes; what does not fit is listed
  --trainable-layers N
                      stages of the backbone that train, from the deepest; default 3 with weights to start from, else all
  --norm KIND         frozen (fixed statistics, for weights to start from) or batch; default frozen with weights, else batch
  --box-loss KIND     l1, smooth_l1, giou, ciou, diou or iou, of RetinaNet and the compact model; default l1
  --export-weights FILE
                      at the end, the weights in torchvision's names, as safetensors
  --size N or HxW     network input in pixels, multiples of 32; default 192 for the demo, else 640 (CPU, SSDLite: 320)
  --multi-scale N     train each batch at one of up to five sizes, from N (the smaller side) to --size, multiples of 32
  --precision P       f32, bf16 or f16 activations; default f32 on the CPU, bf16 on CUDA where the card has it
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device
  --seed N            of the weights, the order and the augmentation; default 0
  --flip HOW          mirror training images: none, horizontal, or both ways (where up and down mean nothing, as under a
                      microscope); default horizontal
  --augment NAME      what else is done to training images: default (scaled by up to 1.4 either way; not for the demo), none, ssd
                      (colours, zoom out, crops), retinanet (scaled), or yolo (mosaic, scale and shift, mixup, colours)
  --close-augment N   passes at the end without mosaic and mixup; default a tenth of all
  --antialias         filter over what an input pixel covers when images shrink, as Pillow; the trained model keeps to it
  --clip-norm X       scale a step's gradients down to this 2-norm where theirs is larger, 0 or "none" for never; default 10,
                      for the compact model none
  --tune-ms N         time for choosing each convolution's algorithm where none is saved from an earlier start, 0 for heuristics;
                      default 300 on a GPU, 0 on the CPU
  --recompute WHAT    compute activations again in the backward pass instead of keeping them: "all" that are cheap, or as many as
                      a step needs to fit a size such as 10GiB (its activations; weights come on top); default none
  --deterministic     only algorithms that give the same bytes each run; the CPU's do in any case
  --out DIR           where run folders are made; default runs
  --resume RUN        a run folder, or one of its checkpoints, to continue; its options are used but for those given
  --help              this text

Models: ${detectorNames.join(", ")}`;

const options = {
  data: { type: "string" },
  records: { type: "string" },
  "on-bad-image": { type: "string" },
  "max-bad-images": { type: "string" },
  sampler: { type: "string" },
  "repeat-threshold": { type: "string" },
  "group-by-aspect": { type: "boolean" },
  "train-split": { type: "string" },
  "val-split": { type: "string" },
  iterations: { type: "string" },
  batch: { type: "string" },
  lr: { type: "string" },
  model: { type: "string" },
  "backbone-weights": { type: "string" },
  weights: { type: "string" },
  partial: { type: "boolean" },
  "trainable-layers": { type: "string" },
  norm: { type: "string" },
  "box-loss": { type: "string" },
  "export-weights": { type: "string" },
  size: { type: "string" },
  "multi-scale": { type: "string" },
  precision: { type: "string" },
  backend: { type: "string" },
  seed: { type: "string" },
  flip: { type: "string" },
  augment: { type: "string" },
  "close-augment": { type: "string" },
  antialias: { type: "boolean" },
  "clip-norm": { type: "string" },
  "tune-ms": { type: "string" },
  recompute: { type: "string" },
  deterministic: { type: "boolean" },
  out: { type: "string" },
  resume: { type: "string" },
  help: { type: "boolean" },
} as const;

/** What a resumed run cannot change. */
const MODEL_OPTIONS = [
  "model",
  "backbone-weights",
  "weights",
  "partial",
  "trainable-layers",
  "norm",
  "box-loss",
] as const;

const SAMPLERS = ["shuffle", "class-balanced", "repeat-factor"] as const;
type SamplerName = (typeof SAMPLERS)[number];

const AUGMENTATIONS = ["default", "none", ...augmentationPresets] as const;

/** The options with all defaults resolved: what config.json and checkpoints keep. */
interface Config {
  data: string;
  /** Folder of the splits' record files, where images come from those. */
  records?: string;
  trainSplit: string;
  valSplit: string;
  iterations: number;
  batch: number;
  size: [height: number, width: number];
  /** The smaller side of the smallest network input, where training takes several sizes. */
  multiScale?: number;
  precision: "f32" | "bf16" | "f16";
  backend: string;
  seed: number;
  deterministic: boolean;
  /** What is computed again in the backward pass: all that is cheap, or what it takes for so many bytes; absent: nothing. */
  recompute?: RecomputeOption;
  learningRate: number;
  flip: "none" | "horizontal" | "both";
  /** Largest 2-norm of a step's gradients, beyond which they are scaled down; null: as they are. */
  clipNorm: number | null;
  /** Which images a pass has and how often; absent: each once. */
  sampler?: SamplerName;
  /** Of repeat-factor sampling. */
  repeatThreshold?: number;
  /** Whether batches have images of similar aspect ratios. */
  groupByAspect?: boolean;
  /** Training images are scaled by up to 1.4 either way, where no preset says more. The drawn ones are varied enough. */
  scaleJitter: boolean;
  /** What is done to training images: a preset; absent: mirroring and what scaleJitter says. */
  augment?: (typeof AUGMENTATIONS)[number];
  /** Passes at the end without operations that compose images; absent: a tenth. */
  closeAugment?: number;
  /** Names of the classes, by class index. */
  classes: readonly string[];
  /** From a decoded image to the network input, without augmentation. */
  preprocessing: readonly PreprocessJson[];
  model: ModelConfig;
  /** What training started from. */
  backboneWeights?: string;
  weights?: string;
}

function usage(message: string): never {
  console.error(`train_coco: ${message}\nTry --help for the options.`);
  process.exit(2);
}

function integer(name: string, text: string, least: number): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < least)
    usage(`--${name}: expected an integer from ${least}, got "${text}"`);
  return value;
}

function positive(name: string, text: string): number {
  const value = Number(text);
  if (!(Number.isFinite(value) && value > 0)) usage(`--${name}: expected a number above 0, got "${text}"`);
  return value;
}

function share(name: string, text: string): number {
  const value = positive(name, text);
  if (value > 1) usage(`--${name}: expected a share of at most 1, got "${text}"`);
  return value;
}

/** The largest norm of gradients, null for none. */
function parseClipNorm(text: string): number | null {
  const value = text === "none" ? 0 : Number(text);
  if (text.trim() === "" || !(Number.isFinite(value) && value >= 0))
    usage(`--clip-norm: expected a number above 0, or 0 or "none" for no clipping, got "${text}"`);
  return value === 0 ? null : value;
}

function recomputeOf(text: string): RecomputeOption {
  const option = parseRecompute(text);
  if (option === null) usage(`--recompute: expected all, none or a size such as 10GiB or 800MiB, got "${text}"`);
  return option;
}

function parseSize(text: string): [number, number] {
  const match = /^(\d+)(?:x(\d+))?$/.exec(text);
  const [h, w] = match ? [Number(match[1]), Number(match[2] ?? match[1])] : [0, 0];
  if (h < 32 || w < 32 || h % 32 !== 0 || w % 32 !== 0) {
    usage(`--size: expected N or HxW, multiples of 32, got "${text}"`);
  }
  return [h, w];
}

function oneOf<T extends string>(name: string, text: string, allowed: readonly T[]): T {
  const found = allowed.find((value) => value === text);
  if (!found) usage(`--${name}: expected one of ${allowed.join(", ")}, got "${text}"`);
  return found;
}

function parse() {
  try {
    return parseArgs({ args: process.argv.slice(2), options, strict: true }).values;
  } catch (error) {
    return usage(error instanceof Error ? error.message : String(error));
  }
}

/** The run folder and checkpoint file that --resume names. */
function findRun(path: string): { run: string; checkpoint: string | null } {
  if (!existsSync(path)) usage(`--resume: ${resolve(path)} does not exist`);
  if (statSync(path).isDirectory()) return { run: resolve(path), checkpoint: null };
  return { run: dirname(dirname(resolve(path))), checkpoint: resolve(path) };
}

/** The options that a run was started with. */
function readConfig(run: string): Config {
  const path = join(run, "config.json");
  if (!existsSync(path)) usage(`--resume: ${run} is no run folder: it has no config.json`);
  try {
    const config = JSON.parse(readFileSync(path, "utf8")) as Config | null;
    return typeof config?.model === "object" ? config : usage(`--resume: ${path}: model: expected an object`);
  } catch (error) {
    return usage(`--resume: ${path}: ${error instanceof Error ? error.message : error}`);
  }
}

async function main(): Promise<number> {
  const args = parse();
  if (args.help) {
    console.log(HELP);
    return 0;
  }
  for (const option of MODEL_OPTIONS) {
    if (args.resume !== undefined && args[option] !== undefined) usage(`--${option}: a resumed run keeps its model`);
  }
  const resumed = args.resume ? findRun(args.resume) : null;
  const earlier = resumed && readConfig(resumed.run);

  // What was typed wrong is said before anything is opened or drawn.
  const given = {
    seed: args.seed === undefined ? undefined : integer("seed", args.seed, 0),
    batch: args.batch === undefined ? undefined : integer("batch", args.batch, 1),
    iterations: args.iterations === undefined ? undefined : integer("iterations", args.iterations, 1),
    size: args.size === undefined ? undefined : parseSize(args.size),
    multiScale: args["multi-scale"] === undefined ? undefined : integer("multi-scale", args["multi-scale"], 32),
    precision: args.precision === undefined ? undefined : oneOf("precision", args.precision, ["f32", "bf16", "f16"]),
    lr: args.lr === undefined ? undefined : positive("lr", args.lr),
    clipNorm: args["clip-norm"] === undefined ? undefined : parseClipNorm(args["clip-norm"]),
    tuneMs: args["tune-ms"] === undefined ? undefined : integer("tune-ms", args["tune-ms"], 0),
    flip: args.flip === undefined ? undefined : oneOf("flip", args.flip, ["none", "horizontal", "both"]),
    recompute: args.recompute === undefined ? undefined : recomputeOf(args.recompute),
    failures: oneOf("on-bad-image", args["on-bad-image"] ?? "skip", ["skip", "stop"]),
    maxFailureShare: args["max-bad-images"] === undefined ? undefined : share("max-bad-images", args["max-bad-images"]),
    augment: args.augment === undefined ? undefined : oneOf("augment", args.augment, AUGMENTATIONS),
    closeAugment: args["close-augment"] === undefined ? undefined : integer("close-augment", args["close-augment"], 0),
    sampler: args.sampler === undefined ? undefined : oneOf("sampler", args.sampler, SAMPLERS),
    repeatThreshold:
      args["repeat-threshold"] === undefined ? undefined : share("repeat-threshold", args["repeat-threshold"]),
  };
  const sampler = given.sampler ?? earlier?.sampler ?? "shuffle";
  if (given.repeatThreshold !== undefined && sampler !== "repeat-factor")
    usage(`--repeat-threshold: needs --sampler repeat-factor, the sampler is ${sampler}`);
  const chosen: NamedModel = earlier?.model ?? chooseModel(args);
  const deterministic = args.deterministic ?? earlier?.deterministic ?? false;
  const seed = given.seed ?? earlier?.seed ?? 0;
  using device = new Device({ backend: args.backend ?? earlier?.backend, deterministic }, console.log);
  if (given.tuneMs !== undefined) autotune(device, { ms: given.tuneMs });
  const codec = new DeviceImageCodec(device);
  const cuda = device.backend === "cuda";

  const coco = join(homedir(), "datasets", "coco");
  const data = args.data ?? earlier?.data ?? (existsSync(coco) ? coco : "demo");
  const isDemo = data === "demo";
  const folder = isDemo ? demoFolder() : isRemoteLocation(data) ? data : resolve(data);
  console.log(isDemo ? `data: the demo, in ${folder}` : `data: ${folder}`);
  const progress = showProgress();
  if (isDemo)
    await generateDemo(folder, {
      encode: (data, width, height, quality) => codec.encode({ data, width, height }, quality),
      progress,
    });

  using dataset = await loadDataset(folder, {
    codec,
    trainSplit: args["train-split"] ?? earlier?.trainSplit ?? "train2017",
    valSplit: args["val-split"] ?? earlier?.valSplit ?? "val2017",
    progress,
  });
  for (const line of describeDataset(dataset)) console.log(`  ${line}`);

  const batch = given.batch ?? earlier?.batch ?? (isDemo ? 8 : 16);
  const recordsFolder = args.records === undefined ? earlier?.records : resolve(args.records);
  const records = recordsFolder === undefined ? null : await openRecords(recordsFolder, dataset);
  const packedSize = records?.train.description.size;
  const size =
    given.size ??
    earlier?.size ??
    (packedSize && ([...packedSize] as [number, number])) ??
    parseSize(isDemo ? "192" : cuda && chosen.name !== "ssdlite" ? "640" : "320");
  const precision = given.precision ?? earlier?.precision ?? (cuda && device.supports("conv.bf16") ? "bf16" : "f32");
  const passes = Math.max(2000, Math.ceil((12 * dataset.train.usable) / batch));
  const network = !earlier && chosen.name === "compact" ? { ...chosen, ...compactOptions(isDemo, cuda) } : chosen;
  const rate = network.name !== "compact" ? 0.01 * (batch / 16) : isDemo ? 0.04 * (batch / 8) : 0.02 * (batch / 16);
  const modelConfig: ModelConfig = { ...network, classes: dataset.classes.length };
  using model = modelFromConfig(modelConfig, resumed ? `${resumed.run}/config.json: model` : undefined);
  if (earlier && args.antialias) usage("--antialias: a resumed run keeps how its images are resized");
  if (records && args.antialias) usage("--antialias: how images are resized is what the records were packed with");
  const evaluation = earlier
    ? parsePreprocessing(earlier.preprocessing)
    : [
        records ? resizeOf(records.train) : new Resize({ antialias: args.antialias }),
        new Normalize(model.normalization),
      ];
  if (records) checkRecords(records, size, evaluation);
  const config: Config = {
    data: isDemo ? "demo" : folder,
    records: recordsFolder,
    trainSplit: dataset.trainSplit,
    valSplit: dataset.valSplit as string,
    iterations: given.iterations ?? earlier?.iterations ?? (isDemo ? 1500 : passes),
    batch,
    size,
    multiScale: given.multiScale ?? earlier?.multiScale,
    precision,
    backend: device.backend,
    seed,
    deterministic,
    recompute: given.recompute ?? earlier?.recompute,
    learningRate: given.lr ?? earlier?.learningRate ?? rate,
    flip: given.flip ?? earlier?.flip ?? "horizontal",
    augment: given.augment ?? earlier?.augment,
    closeAugment: given.closeAugment ?? earlier?.closeAugment,
    clipNorm: clipNormOf(given.clipNorm, earlier, network),
    sampler,
    repeatThreshold: given.repeatThreshold ?? earlier?.repeatThreshold,
    groupByAspect: args["group-by-aspect"] ?? earlier?.groupByAspect ?? false,
    scaleJitter: earlier?.scaleJitter ?? !isDemo,
    classes: dataset.classes.names,
    preprocessing: evaluation.map((op) => op.toJSON()),
    model: modelConfig,
    backboneWeights: args["backbone-weights"] ?? earlier?.backboneWeights,
    weights: args.weights ?? earlier?.weights,
  };

  model.to(device, { precision: config.precision, seed });
  const parameters = model.parameters().reduce((sum, { size: n }) => sum + n, 0);
  console.log(
    `model: ${model.constructor.name}, ${(parameters / 1e6).toFixed(2)} M parameters, input ${size.join("x")}, ${precision}`,
  );

  if (!resumed) await loadInitialWeights(model, config, args.partial ?? false);

  let reporter: Reporter | null = null;
  const onFailure = ({ message }: ImageFailure) =>
    reporter ? reporter.print(`warning: ${message}`) : console.warn(`warning: ${message}`);
  const { failures, maxFailureShare } = given;
  const reading = { config, dataset, evaluation, device, loading: { failures, maxFailureShare, onFailure } };
  await using trainFeed = records ? recordFeed(reading, records.train, true) : imageFeed(reading, true);
  await using evalFeed = records?.val ? recordFeed(reading, records.val, false) : imageFeed(reading, false);
  const { loader, images: decoder } = trainFeed;
  using evaluator = new Evaluator({
    model,
    store: dataset.store,
    split: config.valSplit,
    loader: evalFeed.loader,
    decoder: evalFeed.images,
  });

  const name = isDemo ? "demo" : basename(folder).replace(/[^A-Za-z0-9._-]/g, "-");
  const checkpoint = resumed && (await openCheckpoint(resumed));
  const run = resumed
    ? RunFolder.open(resumed.run, { from: checkpoint?.metadata.iteration })
    : await RunFolder.create({
        name,
        root: args.out ?? "runs",
        notes: (path) => [`Continue: bun run examples/train_coco.ts --resume ${path}`],
      });
  if (checkpoint && checkpoint.metadata.iteration >= config.iterations) {
    const { iteration } = checkpoint.metadata;
    usage(
      `--resume: ${iteration} of ${config.iterations} iterations are done, --iterations with a larger number goes on`,
    );
  }
  await run.writeConfig(config);

  const stop = new AbortController();
  // A machine that is taken away says so by SIGTERM and waits some seconds; a step and a checkpoint take less.
  const interrupt = (signal: NodeJS.Signals): void => {
    const code = signal === "SIGTERM" ? 143 : 130;
    if (stop.signal.aborted) process.exit(code);
    stop.abort(code);
    console.error("\nstopping after this step, with a checkpoint; again to stop at once");
  };
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", interrupt);
  console.log("training; Ctrl-C stops with a checkpoint");

  const { iterations } = config;
  reporter = new Reporter({ run, dataset, codec, iterations, start: checkpoint?.metadata.iteration ?? 0 });
  const milestones = new Set([0.7, 0.9].map((share) => Math.max(1, Math.round(iterations * share))));
  const schedule = warmup(multiStep(config.learningRate, [...milestones]), Math.min(500, Math.ceil(iterations * 0.1)));
  using trainer = new Trainer({
    model,
    loader,
    decoder,
    optimizer: { schedule, clipNorm: config.clipNorm ?? undefined },
    iterations,
    evaluator,
    evaluateEvery: Math.max(100, Math.ceil(iterations / 5)),
    checkpointFolder: run.checkpointFolder,
    checkpointEvery: Math.max(100, Math.ceil(iterations / 10)),
    observer: reporter,
    signal: stop.signal,
    recompute: config.recompute,
    config,
  });
  if (checkpoint) {
    await trainer.resume(checkpoint);
    await checkpoint.close();
    reporter.print(`resumed ${checkpoint.path} at iteration ${trainer.iteration}`);
  }
  const started = performance.now();
  try {
    const outcome = await trainer.train();
    reporter.finish();
    const seconds = (performance.now() - started) / 1000;
    if (outcome.interrupted) {
      console.log(`stopped at iteration ${outcome.iteration} of ${iterations}\ncheckpoint ${outcome.checkpoint}`);
      console.log(`continue with: bun run examples/train_coco.ts --resume ${run.path}`);
      return stop.signal.reason as number;
    }
    const result = outcome.evaluation?.result;
    const unreadable = loader.failures;
    if (unreadable.length > 0) {
      const times = unreadable.reduce((sum, { count }) => sum + count, 0);
      reporter.print(`${unreadable.length} images could not be read or decoded, and were skipped ${times} times:`);
      for (const { message } of unreadable.slice(0, 5)) reporter.print(`  ${message}`);
    }
    await run.writeSummary({ ...result?.stats, iterations: outcome.iteration, seconds });
    console.log(`\n${result?.summarize() ?? ""}`);
    console.log(
      `\ntrained ${outcome.iteration} iterations in ${seconds.toFixed(0)} s on ${device.info.name} (${device.backend}, ${precision})`,
    );
    console.log(result ? statsLine(result) : "not evaluated");
    if (args["export-weights"] !== undefined) {
      await saveTorchWeights(args["export-weights"], model);
      console.log(`weights:    ${args["export-weights"]}`);
    }
    console.log(`run folder: ${run.path}`);
    console.log(`pictures:   ${run.picturePath(outcome.iteration)}`);
    console.log(`go on:      bun run examples/train_coco.ts --resume ${run.path} --iterations ${2 * iterations}`);
    return 0;
  } finally {
    reporter.finish();
    process.off("SIGINT", interrupt);
    process.off("SIGTERM", interrupt);
    run.close();
  }
}

/** The record files of both splits; null where those of the validation split are not there. */
interface Records {
  train: RecordSet;
  val: RecordSet | null;
}

async function openRecords(folder: string, { trainSplit, valSplit }: Dataset): Promise<Records> {
  const train = await RecordSet.open(join(folder, trainSplit));
  const place = join(folder, valSplit as string);
  const val = existsSync(place) ? await RecordSet.open(place) : null;
  console.log(
    `  records: ${train.length} of ${trainSplit}, ${val ? `${val.length} of ${valSplit}` : "none"} in ${folder}`,
  );
  if (!val) console.log(`  ${valSplit} is read from its images: there is no ${place}`);
  return { train, val };
}

const resizeOf = ({ preprocessing }: RecordSet): Resize => preprocessing.find((op) => op instanceof Resize) as Resize;

/** The records must be what evaluation does to images, at the network's size. */
function checkRecords({ train, val }: Records, size: readonly number[], evaluation: readonly PreprocessOp[]): void {
  const resize = JSON.stringify(evaluation.find((op) => op instanceof Resize));
  for (const records of [train, ...(val ? [val] : [])]) {
    const packed = records.description.size;
    if (packed.join("x") !== size.join("x"))
      usage(
        `--size: the records of ${records.folder} are ${packed.join("x")}, the network's input is ${size.join("x")}`,
      );
    const found = JSON.stringify(resizeOf(records));
    if (found !== resize)
      usage(`--records: ${records.folder} was packed with the resizing ${found}, the model is trained with ${resize}`);
  }
}

/** Batches of a split, and what holds their images. */
interface Feed extends AsyncDisposable {
  loader: CocoDataLoader | RecordLoader;
  images: BatchImages;
}

/** What feeds have in common. */
interface Reading {
  config: Config;
  dataset: Dataset;
  /** What evaluation does to images. */
  evaluation: PreprocessOp[];
  device: Device;
  loading: Pick<CocoDataLoaderOptions, "failures" | "maxFailureShare" | "onFailure">;
}

/** Batches from image files: augmented and shuffled for training, else as they are. */
function imageFeed({ config, dataset, evaluation, device, loading }: Reading, train: boolean): Feed {
  const { batch: batchSize, size, seed, precision: dtype } = config;
  const preprocessing = train ? trainingOperations(config, evaluation) : evaluation;
  const epochs = Math.ceil(config.iterations / Math.max(1, Math.floor(dataset.train.usable / batchSize)));
  const closeLast = Math.min(epochs, config.closeAugment ?? Math.round(epochs / 10));
  const Decoder = needCompositions(preprocessing) ? DeviceCompositionDecoder : DeviceBatchDecoder;
  const decoder = new Decoder(device, { batchSize, height: size[0], width: size[1], dtype, preprocessing });
  const { store, source } = dataset;
  const loader = new CocoDataLoader({
    ...{ ...loading, store, source, batchSize, size, seed, decoder, preprocessing },
    ...(train
      ? { split: config.trainSplit, epochs, closeLast, sizes: sizesOf(config) }
      : { split: config.valSplit, shuffle: false }),
    ...(train && samplingOf(config)),
  });
  const dispose = async (): Promise<void> => {
    await loader.dispose();
    decoder.dispose();
  };
  return { loader, images: decoder, [Symbol.asyncDispose]: dispose };
}

/** The same from record files. Those of values are the network's input already: nothing is done to them. */
function recordFeed(
  { config, dataset, evaluation, device, loading }: Reading,
  records: RecordSet,
  train: boolean,
): Feed {
  const { batch: batchSize, seed, precision: dtype, augment } = config;
  if (augment === "ssd" || augment === "yolo")
    usage(`--augment ${augment}: needs the images as they were before they were resized; records do without`);
  if (config.multiScale !== undefined) usage("--multi-scale: records are of one size");
  const operations = trainingOperations(config, evaluation);
  const isPixels = records.description.dtype === "u8";
  const normalize = evaluation.find((op) => op instanceof Normalize);
  if (!isPixels && JSON.stringify(records.normalize) !== JSON.stringify(normalize))
    usage(`--records: ${records.folder} has values normalised by ${JSON.stringify(records.normalize)}`);
  const reader = new DeviceRecordReader(device, records, { batchSize, dtype, ...(isPixels && { normalize }) });
  const loader = new RecordLoader({
    ...{ ...loading, reader, batchSize, seed, store: dataset.store },
    ...(train ? { split: config.trainSplit, ...samplingOf(config) } : { split: config.valSplit, shuffle: false }),
    ...(train && isPixels && { augmentation: operations.filter((op) => op.random) }),
  });
  const dispose = async (): Promise<void> => {
    await loader.dispose();
    await reader.dispose();
  };
  return { loader, images: reader, [Symbol.asyncDispose]: dispose };
}

/** What is done to training images: the preset, or mirroring and scaling, around what evaluation does. */
function trainingOperations({ augment, flip, scaleJitter }: Config, evaluation: PreprocessOp[]): PreprocessOp[] {
  const preset = augmentationPresets.find((name) => name === augment);
  const flips = [...(flip === "none" ? [] : [new HorizontalFlip()]), ...(flip === "both" ? [new VerticalFlip()] : [])];
  if (!preset) {
    const scaling = augment === "none" || (!scaleJitter && augment === undefined) ? [] : [new ScaleJitter(0.7, 1.4)];
    return [...scaling, ...flips, ...evaluation];
  }
  const resize = evaluation.find((op) => op instanceof Resize);
  const normalize = evaluation.find((op) => op instanceof Normalize);
  // `--flip` says how images are mirrored, whatever the preset does.
  const operations = augmentationPreset(preset, { resize, normalize }).filter((op) => !(op instanceof HorizontalFlip));
  return [...operations, ...flips];
}

/** The sizes of network inputs that training takes turns with: up to five, evenly spread; undefined: one. */
function sizesOf({ size, multiScale }: Config): [number, number][] | undefined {
  if (multiScale === undefined) return undefined;
  const [height, width] = size;
  const least = multiScale / Math.min(height, width);
  if (least > 1) usage(`--multi-scale: expected at most ${Math.min(height, width)}, the smaller side of --size`);
  const whole = (side: number) => Math.max(32, 32 * Math.round(side / 32));
  const sizes = [0, 1, 2, 3, 4].map((i): [number, number] => {
    const scale = 1 - (i / 4) * (1 - least);
    return [Math.min(height, whole(height * scale)), Math.min(width, whole(width * scale))];
  });
  return sizes.filter(([h, w], i) => sizes.findIndex(([a, b]) => a === h && b === w) === i);
}

/** The loader's options for what `--sampler` and `--group-by-aspect` ask for. */
function samplingOf({ sampler, repeatThreshold, groupByAspect }: Config) {
  return {
    ...(sampler === "class-balanced" && { sampler: new ClassBalancedSampler() }),
    ...(sampler === "repeat-factor" && { sampler: new RepeatFactorSampler({ threshold: repeatThreshold }) }),
    ...(groupByAspect && { batchSampler: new AspectRatioBatches() }),
  };
}

/** The model that the options name, without the number of classes. */
function chooseModel(args: ReturnType<typeof parse>): NamedModel {
  const name = oneOf("model", args.model ?? "compact", detectorNames);
  const chosen = namedModel(name);
  const kind = args["box-loss"];
  if (kind !== undefined && (chosen.name === "fcos" || chosen.name === "ssdlite")) {
    usage(`--box-loss: ${name} has a box loss of its own`);
  }
  const boxLoss = kind === undefined ? {} : { boxLoss: { kind: oneOf("box-loss", kind, boxLossKinds) } };
  if (chosen.name === "compact") {
    for (const option of ["backbone-weights", "trainable-layers", "norm"] as const) {
      if (args[option] !== undefined)
        usage(`--${option}: the compact model has no such backbone, choose another --model`);
    }
    return { ...chosen, ...boxLoss };
  }
  // SSDLite's batch normalization and all of its backbone train in any case, as in torchvision.
  const ssd = chosen.name === "ssdlite";
  const pretrained = !ssd && (args["backbone-weights"] !== undefined || args.weights !== undefined);
  const layers = args["trainable-layers"];
  const all = ssd || chosen.backbone === "mobilenet_v2" ? 6 : 5;
  return {
    ...chosen,
    ...boxLoss,
    norm: oneOf<"frozen" | "batch">("norm", args.norm ?? (pretrained ? "frozen" : "batch"), ["frozen", "batch"]),
    trainableLayers: layers !== undefined ? integer("trainable-layers", layers, 0) : pretrained ? 3 : all,
  };
}

/**
 * The largest norm of gradients: what was given, else what the run had, else the model's default. The deep backbones' gradients
 * are so large in some early steps from random weights that without clipping a training may end in NaN.
 */
function clipNormOf(given: number | null | undefined, earlier: Config | null, { name }: NamedModel): number | null {
  if (given !== undefined) return given;
  return earlier ? (earlier.clipNorm ?? null) : name === "compact" ? null : 10;
}

/** A compact network for the hardware: small for a CPU, wider on a GPU; the demo's is made to learn in a few passes. */
function compactOptions(isDemo: boolean, cuda: boolean): Omit<CompactConfig, "name" | "classes"> {
  const small = { width: 16, depths: [1, 1, 1, 1], pyramidChannels: 64, headConvs: 2, anchorBase: 24 } as const;
  if (isDemo) {
    // More anchors count as hits, and they weigh more, than the defaults (torchvision's) that suit long trainings.
    return { ...small, matcher: { high: 0.4, low: 0.3, allowLowQuality: true }, focal: { alpha: 0.5, gamma: 1.5 } };
  }
  return cuda ? { width: 48, depths: [2, 2, 3, 2], pyramidChannels: 192, headConvs: 3, anchorBase: 32 } : small;
}

/** Replaces the weights that were drawn at random by those of files, and prints what became of them. */
async function loadInitialWeights(model: DetectionModel, config: Config, partial: boolean): Promise<void> {
  const { backboneWeights, weights } = config;
  const print = (path: string, report: LoadedWeights) => console.log(`${path}: ${describeLoaded(report).join("\n  ")}`);
  if (backboneWeights !== undefined) {
    using file = await loadWeights(backboneWeights);
    print(backboneWeights, loadBackboneWeights(model, file.tensors));
  }
  if (weights !== undefined) {
    const options = { strict: !partial, ignoreMismatched: partial };
    if (weights.endsWith(".dlck") || (existsSync(weights) && statSync(weights).isDirectory())) {
      using trained = await loadTrainedModel(weights, model.device);
      print(trained.path, loadTorchWeights(model, torchWeights(trained.model), options));
    } else {
      using file = await loadWeights(weights);
      // An ONNX file has constants besides.
      const parts = new Set([...model.namedState().keys()].map((name) => name.split(".")[0]!));
      const only = file.format === "onnx" ? { only: [...parts] } : {};
      print(weights, loadTorchWeights(model, file.tensors, { ...options, ...only }));
    }
  }
}

async function openCheckpoint(resumed: { run: string; checkpoint: string | null }) {
  if (resumed.checkpoint) return await readCheckpoint(resumed.checkpoint);
  const latest = await new CheckpointStore(join(resumed.run, "checkpoints")).latest();
  for (const error of latest?.damaged ?? []) console.error(`warning: ${error.message}; using the one before`);
  if (!latest) usage(`--resume: ${resumed.run} has no checkpoint`);
  return latest.checkpoint;
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof DlfsError)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}

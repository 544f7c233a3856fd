/**
 * All settings of a training, in one table: types, checks, the command line's options and help, and the published JSON Schema
 * (schemas/train.schema.json) follow from it. Names of settings are those of config.json; `learningRate` is `--learning-rate`, or
 * `--lr` by the short name given here.
 */
import { augmentationPresets } from "../../data";
import { boxLossKinds } from "../../detection";
import type { RecomputeOption } from "../../graph";
import type { CocoStats } from "../../metrics";
import { detectorNames, type NamedModel } from "../../models";
import { type PrecisionPolicy, precisionNames, precisionPolicy } from "../../tensor";
import { parseRecompute } from "../train-step";
import { choice, flag, integer, type Kind, list, number, orNone, parseStructure, place, refuse, text } from "./kinds";
import { scheduleKind, warmupKind } from "./schedule-settings";
import { byDefault, computed, type Given, optional, type Resolved, record, required, type Settings } from "./setting";

/** Sides of the network's input. */
export type InputSides = [height: number, width: number];

const sizeWords = "N or HxW, multiples of 32";
const isSide = (side: unknown) => Number.isSafeInteger(side) && (side as number) >= 32 && (side as number) % 32 === 0;

const size: Kind<InputSides> = {
  expected: sizeWords,
  sign: "HxW",
  schema: {
    anyOf: [
      { type: "array", items: { type: "integer", minimum: 32, multipleOf: 32 }, minItems: 2, maxItems: 2 },
      { type: "integer", minimum: 32, multipleOf: 32 },
      { type: "string", pattern: "^\\d+(x\\d+)?$" },
    ],
  },
  parse: (value) => value,
  read: (value, at) => {
    const match = /^(\d+)(?:x(\d+))?$/.exec(String(value));
    const sides = Array.isArray(value) ? value : match ? [Number(match[1]), Number(match[2] ?? match[1])] : [];
    return sides.length === 2 && sides.every(isSide) ? [sides[0], sides[1]] : refuse(at, sizeWords, value);
  },
};

const recompute: Kind<RecomputeOption> = {
  expected: "all, none or a size such as 10GiB or 800MiB",
  sign: "WHAT",
  schema: { type: ["boolean", "integer", "string"] },
  parse: (value) => (/^(true|false|\d+)$/.test(value) ? JSON.parse(value) : value),
  read(value, at) {
    const meant = typeof value === "string" ? parseRecompute(value) : value;
    const isBytes = Number.isSafeInteger(meant) && (meant as number) > 0;
    return typeof meant === "boolean" || isBytes ? (meant as RecomputeOption) : refuse(at, this.expected, value);
  },
};

const names = choice(detectorNames);

/** A detector's name, or a configuration of one (see ModelConfig), whose fields `modelFromConfig` checks. */
const model: Kind<string | NamedModel> = {
  ...names,
  schema: {
    anyOf: [
      { enum: [...detectorNames] },
      { type: "object", properties: { name: { type: "string" } }, required: ["name"] },
    ],
  },
  parse: (value) => (/^\s*\{/.test(value) ? parseStructure(value) : value),
  read(value, at) {
    const isConfig = typeof value === "object" && value !== null && "name" in value;
    return isConfig ? (value as NamedModel) : names.read(value, at);
  },
};

const count = integer(1);

/** A number of images, or "auto". */
const batch: Kind<number | "auto"> = {
  ...count,
  expected: "an integer from 1, or auto",
  schema: { anyOf: [count.schema, { enum: ["auto"] }] },
  read(value, at) {
    if (value === "auto") return value;
    return Number.isSafeInteger(value) && (value as number) >= 1 ? (value as number) : refuse(at, this.expected, value);
  },
};

const precisions = choice(precisionNames, "P");

/** The name of a policy; dtypes' names stand for one, too. */
const precision: Kind<PrecisionPolicy["name"]> = {
  ...precisions,
  read: (value, at) => precisionPolicy(precisions.read(value, at)).name,
};

const pattern: Kind<string> = {
  ...text("PATTERN", "a regular expression"),
  read(value, at) {
    try {
      if (typeof value === "string" && value !== "") return new RegExp(value).source;
    } catch {
      // said below
    }
    return refuse(at, this.expected, value);
  },
};

const group = record("a group of parameters: match, and weightDecay or rate", {
  match: required(pattern, "which: a regular expression for names such as backbone.body.conv1.weight"),
  weightDecay: optional(number({ from: 0 }), "their weight decay"),
  rate: optional(number({ from: 0 }), "what their learning rate is multiplied by"),
});

const layers = text("LAYERS", "layers' paths or parameters' names, such as backbone.body.layer1");

const frozen = record(
  "a path such as backbone.body.layer1, or match and until",
  {
    match: required(
      layers,
      "which: a layer's path or a parameter's name; * and ? within a part of it, ** across parts",
    ),
    until: optional(place(1), "the first iteration in which they train, or a share of all; default: none"),
  },
  { kind: layers, expand: (match: string) => ({ match }) },
);

const averages = record(
  "a decay between 0 and 1",
  {
    decay: byDefault(number({ above: 0, below: 1 }), 0.9998, "how much of the average stays at a step"),
    warmup: byDefault(integer(0), 2000, "steps over which the decay grows to that"),
  },
  { kind: number({ above: 0, below: 1 }), expand: (decay: number) => ({ decay }) },
);

const metrics = [
  ...["AP", "AP50", "AP75", "APs", "APm", "APl"],
  ...["AR1", "AR10", "AR100", "ARs", "ARm", "ARl"],
] as (keyof CocoStats)[];
const metric = choice(metrics);

const plateau = record(
  "a metric such as AP, or settings",
  {
    metric: byDefault(metric, "AP", "what should get better"),
    better: byDefault(choice(["smaller", "larger"]), "larger", "which values are better"),
    factor: byDefault(number({ above: 0, below: 1 }), 0.1, "what the rate is multiplied by"),
    patience: byDefault(integer(0), 10, "evaluations in a row without improvement that are put up with"),
    threshold: byDefault(number({ from: 0 }), 1e-4, "how much better a value must be"),
    thresholdMode: byDefault(choice(["relative", "absolute"]), "relative", "whether that is a part of the best value"),
    cooldown: byDefault(integer(0), 0, "evaluations after a reduction that are not counted"),
    least: byDefault(number({ from: 0 }), 0, "the factor in all goes no lower"),
  },
  { kind: metric, expand: (name: string) => ({ metric: name }) },
);

const lossScaling = record("settings of dynamic loss scaling", {
  initial: byDefault(number({ above: 0 }), 65536, "the first steps' scale"),
  growth: byDefault(number({ from: 1 }), 2, "what it is multiplied by after so many good steps in a row"),
  backoff: byDefault(number({ above: 0, to: 1 }), 0.5, "what it is multiplied by after a step that overflowed"),
  interval: byDefault(integer(1), 2000, "good steps in a row after which it grows"),
  least: byDefault(number({ above: 0 }), 1, "it falls no lower"),
  patience: byDefault(integer(1), 20, "overflows in a row at the least scale that end the training"),
});

const share = number({ above: 0, to: 1 }, "X", "a share of at most 1");
const positive = number({ above: 0 });

/** Settings in sections, as the help shows them. */
export const trainSections = {
  Data: {
    data: computed(
      text("DIR"),
      "~/datasets/coco where that exists, else the demo",
      "folder with annotations/instances_SPLIT.json and the images in SPLIT/ or images/, or where such a folder lies: gs://BUCKET/PREFIX, s3://BUCKET/PREFIX, https://HOST/PATH (read through a cache on disk); or demo, drawn images",
    ),
    trainSplit: byDefault(text("NAME"), "train2017", "the split to train on"),
    valSplit: byDefault(
      orNone(text("NAME", "the name of a split")),
      "val2017",
      "the split to evaluate on; none: training does without evaluations, and the newest checkpoints stay (--no-eval says the same)",
      { otherwise: "val2017" },
    ),
    records: optional(
      text("DIR"),
      "take the images from record files, without decoding: DIR/TRAIN_SPLIT and, where it is there, DIR/VAL_SPLIT, made of the same data by dlfs data pack; boxes to evaluate against come from data as ever",
    ),
    onBadImage: byDefault(
      choice(["skip", "stop"], "HOW"),
      "skip",
      "an image that becomes unreadable during training: skip trains without it and counts it, stop ends the training",
    ),
    maxBadImages: byDefault(
      share,
      0.1,
      "end the training when more than this share of the images was skipped; 1: never",
    ),
    sampler: byDefault(
      choice(["shuffle", "class-balanced", "repeat-factor"]),
      "shuffle",
      "which images a pass has: shuffle (each once), class-balanced (classes take turns), or repeat-factor (images with rare classes several times, as for LVIS)",
    ),
    repeatThreshold: optional(
      share,
      "repeat-factor repeats classes that less than this share of the images have; default: 0.001",
    ),
    groupByAspect: byDefault(flag, false, "batches of images with similar height / width"),
    overfit: optional(
      integer(1),
      "train on the first N images alone, as they are, and evaluate on them: what cannot learn those has an error",
    ),
  },
  Model: {
    model: computed(model, "compact", "one of the names below; in a file also settings of one"),
    backboneWeights: optional(
      text("FILE"),
      "start from a classifier's weights in torchvision's names (.pth, .safetensors), or a detector's backbone",
    ),
    weights: optional(
      text("FILE"),
      "start from a detector's weights: .pth, .safetensors, .npz, .onnx (with all parameters: dlfs export --keep-batch-norm), or a run folder or checkpoint",
    ),
    partial: byDefault(
      flag,
      false,
      "weights may lack some, have others, or be for other classes; what does not fit is listed",
    ),
    trainableLayers: optional(
      integer(0),
      "stages of the backbone that train, from the deepest; default: 3 with weights to start from, else all",
    ),
    norm: optional(
      choice(["frozen", "batch"], "KIND"),
      "frozen (fixed statistics, for weights to start from) or batch; default: frozen with weights, else batch",
    ),
    boxLoss: optional(
      choice(boxLossKinds, "KIND"),
      "l1, smooth_l1, giou, ciou, diou or iou, of RetinaNet and the compact model; default: l1",
    ),
    size: computed(size, "192 for the demo, else 640 (CPU, SSDLite: 320)", "network input in pixels, multiples of 32"),
    precision: computed(
      precision,
      "fp32 on the CPU, bf16 on CUDA where the card has it",
      "fp32, tf32 (convolutions of fp32 round what they multiply), bf16 or fp16 (with loss scaling)",
    ),
    exportWeights: optional(text("FILE"), "at the end, the weights in torchvision's names, as safetensors"),
  },
  Augmentation: {
    flip: byDefault(
      choice(["none", "horizontal", "both"], "HOW"),
      "horizontal",
      "mirror training images: none, horizontal, or both ways (where up and down mean nothing, as under a microscope)",
    ),
    augment: byDefault(
      choice(["default", "none", ...augmentationPresets]),
      "default",
      "what else is done to training images: default (scaled by up to 1.4 either way; not for the demo), none, ssd (colours, zoom out, crops), retinanet (scaled), or yolo (mosaic, scale and shift, mixup, colours)",
    ),
    closeAugment: optional(integer(0), "passes at the end without mosaic and mixup; default: a tenth of all"),
    multiScale: optional(
      integer(32),
      "train each batch at one of up to five sizes, from N (the smaller side) to size, multiples of 32",
    ),
    antialias: byDefault(
      flag,
      false,
      "filter over what an input pixel covers when images shrink, as Pillow; the trained model keeps to it",
    ),
  },
  Optimization: {
    iterations: computed(integer(1), "1500 for the demo, else 12 passes over the data, at least 2000", "steps in all"),
    epochs: optional(integer(1), "passes over the data in all, instead of iterations"),
    batch: computed(
      batch,
      "8 for the demo, else 16",
      "images a batch; auto: the most, up to a sixteenth of the images, that memory has room for, found by trying, with the learning rate in proportion",
    ),
    accumulate: byDefault(integer(1), 1, "batches whose gradients' mean makes a step"),
    learningRate: computed(
      positive,
      "0.04 for 8 images of the demo, else 0.02 for 16 images a step (models by torchvision's names 0.01), in proportion to batch and accumulate",
      "learning rate after the warm-up",
      { option: "lr" },
    ),
    schedule: byDefault(
      scheduleKind,
      { kind: "multiStep", milestones: [0.7, 0.9], gamma: 0.1 },
      `how the rate changes: ${scheduleKind.expected}`,
      { otherwise: "multiStep, a tenth of the rate after 0.7 and 0.9 of all iterations" },
    ),
    warmup: computed(
      orNone(warmupKind),
      "linear over 500 iterations, at most a tenth of all; none for oneCycle, which has its own",
      "how the rate rises at the start: linear, exponential or none",
    ),
    plateau: byDefault(
      orNone(plateau),
      null,
      "multiply the rate by a factor when a metric of the evaluations has stopped getting better",
      { otherwise: "none" },
    ),
    momentum: byDefault(number({ from: 0, below: 1 }), 0.9, "of SGD"),
    nesterov: byDefault(flag, false, "Nesterov's momentum"),
    weightDecay: byDefault(number({ from: 0 }), 1e-4, "of SGD"),
    decayBiases: byDefault(flag, true, "weight decay of biases and of the parameters of normalization"),
    groups: byDefault(
      list(group, 0),
      [],
      'parameters with settings of their own, the first that matches holds: [{match: "^backbone[.]", rate: 0.1}]',
    ),
    freeze: byDefault(
      list(frozen, 0),
      [],
      "what does not train: stem,backbone.body.layer[12], or for a time: [{match: backbone, until: 2000}]; batch normalization goes on with the statistics of batches",
      { otherwise: "nothing but what trainableLayers says" },
    ),
    clipNorm: computed(
      orNone(positive, { zero: true, expected: 'a number above 0, or 0 or "none" for no clipping' }),
      "10, for the compact model none",
      "scale a step's gradients down to this 2-norm where theirs is larger",
    ),
    clipValue: byDefault(
      orNone(positive, { zero: true, expected: 'a number above 0, or 0 or "none" for no clipping' }),
      null,
      "clip each gradient to -X to X",
      { otherwise: "none" },
    ),
    lossScaling: optional(
      orNone(lossScaling),
      "dynamic loss scaling: lossScaling.initial=1024, or none; default: for fp16, by the rule of torch.amp.GradScaler",
    ),
    ema: byDefault(
      orNone(averages),
      null,
      "keep moving averages of the weights, by this decay: they are what is evaluated and used",
      { otherwise: "none" },
    ),
  },
  "Evaluation and checkpoints": {
    evaluateEvery: computed(integer(1), "a fifth of all, at least 100", "iterations between evaluations"),
    overlapEvaluation: byDefault(
      flag,
      false,
      "evaluate a copy of the weights while training goes on; it takes the memory of a second model",
    ),
    patience: optional(integer(1), "end after so many evaluations in a row that were no better than the best"),
    checkpointEvery: computed(integer(1), "a tenth of all, at least 100", "iterations between checkpoints"),
    keep: byDefault(integer(1), 3, "how many of the newest checkpoints stay, besides the best"),
    keepEvery: optional(integer(1), "checkpoints of iterations that this divides stay, too"),
    copyTo: optional(
      text("PLACE", "gs://BUCKET/PREFIX, s3://BUCKET/PREFIX or a folder"),
      "copy each checkpoint to gs://BUCKET/PREFIX, s3://BUCKET/PREFIX or a folder, below it by the name of the run; --resume takes such an address, too",
    ),
  },
  "Being watched": {
    logEvery: byDefault(integer(1), 10, "iterations between lines in metrics.jsonl, and points in TensorBoard"),
    tensorboard: byDefault(
      flag,
      false,
      "write what TensorBoard shows into the run's folder: figures, pictures of predictions, histograms of weights and gradients",
    ),
    metricsPort: optional(integer(0, 65535), "answer Prometheus at this port, /metrics; 0: any free one"),
    metricsHost: byDefault(text("HOST"), "127.0.0.1", "the address that it is answered at; 0.0.0.0: from everywhere"),
  },
  "While it goes on": {
    live: byDefault(
      flag,
      false,
      "take in labels and commands, at an address of its own that is printed with its token (or DLFS_LIVE_TOKEN): docs/live.md",
    ),
    dashboard: byDefault(
      flag,
      false,
      "serve a page with this run and those beside it, at the same address as --live where that is given: docs/live.md",
    ),
    edit: byDefault(
      flag,
      false,
      "let boxes be drawn, changed and deleted on the page of --dashboard, and go into the training with --live",
    ),
    livePort: optional(integer(0, 65535), "the port of that address; default: any free one"),
    liveHost: byDefault(text("HOST"), "127.0.0.1", "the address that it is served at; 0.0.0.0: from everywhere"),
    liveBoxes: optional(
      integer(1),
      "boxes that an image may come to have; default: twice the most that one has at the start, 64 at least",
    ),
    livePost: optional(
      text("URL"),
      "post all that the training says there, with DLFS_LIVE_POST_TOKEN as its token where that is set",
    ),
    replay: optional(
      text("RUN"),
      "do again what entered another run while it went on: its folder, or the journal in it",
    ),
  },
  Execution: {
    backend: computed(choice(["cuda", "cpu"]), "DLFS_BACKEND, else cuda where it finds a device", "cuda or cpu"),
    seed: byDefault(integer(0), 0, "of the weights, the order and the augmentation"),
    deterministic: byDefault(
      flag,
      false,
      "only algorithms that give the same bytes each run; the CPU's do in any case",
    ),
    syncBn: byDefault(
      flag,
      false,
      "of several ranks: batch normalization takes its statistics over all ranks' images, not over each rank's own",
    ),
    checksumEvery: byDefault(
      integer(0),
      100,
      "of several ranks: steps between comparisons of their weights, which must be the same; 0: never",
    ),
    recompute: byDefault(
      recompute,
      false,
      "compute activations again in the backward pass instead of keeping them: all that are cheap, or as many as a step needs to fit a size such as 10GiB (its activations; weights come on top)",
      { otherwise: "none" },
    ),
    tuneMs: optional(
      integer(0),
      "time for choosing each convolution's algorithm where none is saved from an earlier start, 0 for heuristics; default: 300 on a GPU, 0 on the CPU",
    ),
    out: byDefault(text("DIR"), "runs", "where run folders are made"),
  },
} as const satisfies Record<string, Settings>;

type Sections = typeof trainSections;
type Merged<U> = (U extends unknown ? (x: U) => void : never) extends (x: infer I) => void ? I : never;
type TrainSettingTable = Merged<Sections[keyof Sections]>;

/** The settings by name. */
export const trainSettings = Object.assign({}, ...Object.values(trainSections)) as TrainSettingTable;

/** What a user has said of a training: files, overrides and options together. */
export type TrainSettings = Given<TrainSettingTable>;

/** The settings of a training with their defaults. `model` and `epochs` are resolved into other forms: see TrainConfig. */
export type ResolvedSettings = Resolved<TrainSettingTable>;

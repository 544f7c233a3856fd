/** A training's configuration with nothing left open: what config.json and checkpoints keep. */
import type { PreprocessJson } from "../../data";
import { type CompactConfig, type ModelConfig, type NamedModel, namedModel } from "../../models";
import { ConfigError } from "./kinds";
import { type WarmupConfig, warmupLength } from "./schedule-settings";
import type { Settings } from "./setting";
import { labelOf, NO_EVALUATION, type TrainArguments } from "./train-arguments";
import { type InputSides, type ResolvedSettings, type TrainSettings, trainSettings } from "./train-settings";

/** All settings, those of the model within `model`, and what follows from the data. */
export type TrainConfig = Omit<
  ResolvedSettings,
  "model" | "trainableLayers" | "norm" | "boxLoss" | "epochs" | "warmup" | "data" | "batch"
> & {
  batch: number;
  /** "demo", an absolute path or an address. */
  data: string;
  /** null: none. */
  warmup: WarmupConfig | null;
  model: ModelConfig;
  /** Names of the classes, by class index. */
  classes: readonly string[];
  /** From a decoded image to the network input, without augmentation. */
  preprocessing: readonly PreprocessJson[];
  /** Training images are scaled by up to 1.4 either way, where no preset says more. The drawn ones are varied enough. */
  scaleJitter: boolean;
};

/** What a configuration follows from besides the user's settings. */
export interface TrainFacts {
  /** "demo", an absolute path or an address. */
  data: string;
  backend: "cuda" | "cpu";
  /** Whether the device computes convolutions in bf16. */
  bf16: boolean;
  /** Images that can be trained on. */
  images: number;
  /** Input size of the record files that images come from. */
  packedSize?: InputSides;
  classes: readonly string[];
  /** Images a batch where the settings leave that to what memory has room for. Default 1. */
  autoBatch?: number;
}

/** Raises what settings contradict each other, or cannot be had together; what follows from the data comes later. */
export function checkContradictions({ settings, givenBy, resumed }: TrainArguments): void {
  const fail = (name: keyof TrainSettings, reason: string): never => {
    throw new ConfigError(givenBy(name) ?? labelOf(name), reason);
  };
  const given = (name: keyof TrainSettings) => givenBy(name) !== undefined;
  const { sampler = "shuffle", momentum = 0.9, evaluateEvery, checkpointEvery, keepEvery, augment } = settings;
  if (given("epochs") && given("iterations")) fail("epochs", `say either this or ${givenBy("iterations")}`);
  if (given("repeatThreshold") && sampler !== "repeat-factor") {
    fail("repeatThreshold", `needs --sampler repeat-factor, the sampler is ${sampler}`);
  }
  if (settings.overfit !== undefined) {
    for (const name of ["sampler", "groupByAspect", "flip", "augment", "closeAugment", "multiScale"] as const) {
      if (given(name)) fail(name, `--overfit ${settings.overfit} trains on the first images as they are`);
    }
  }
  if (settings.nesterov && momentum === 0) fail("nesterov", "needs a momentum above 0");
  if (keepEvery !== undefined && checkpointEvery !== undefined && keepEvery % checkpointEvery !== 0) {
    fail("keepEvery", `expected a multiple of --checkpoint-every ${checkpointEvery}, got ${keepEvery}`);
  }
  if (evaluateEvery !== undefined && settings.iterations !== undefined && evaluateEvery > settings.iterations) {
    if (given("patience")) fail("patience", `needs evaluations, and --evaluate-every ${evaluateEvery} is past the end`);
  }
  if (settings.valSplit === null && settings.overfit === undefined) {
    for (const name of ["evaluateEvery", "plateau", "patience", "overlapEvaluation"] as const) {
      if (given(name) && settings[name]) fail(name, `needs evaluations, and ${givenBy("valSplit")} leaves them out`);
    }
  }
  if (settings.overfit !== undefined && givenBy("valSplit") === NO_EVALUATION) {
    fail("valSplit", `--overfit ${settings.overfit} evaluates on the images that it trains on`);
  }
  if (settings.overlapEvaluation) {
    const reason = "needs the result of an evaluation before the next step; leave out --overlap-evaluation";
    if (settings.plateau) fail("plateau", reason);
    if (settings.patience !== undefined) fail("patience", reason);
  }
  // A run's config.json has settings at their defaults, too.
  const chosen = (name: "liveHost" | "metricsHost") => given(name) && settings[name] !== trainSettings[name].value;
  const serves = settings.live || settings.dashboard;
  if (settings.edit && !settings.dashboard) fail("edit", "needs --dashboard");
  if (given("livePort") && !serves) fail("livePort", "needs --live or --dashboard");
  if (chosen("liveHost") && !serves) fail("liveHost", "needs --live or --dashboard");
  for (const name of ["liveBoxes", "livePost"] as const) {
    if (given(name) && !settings.live && settings.replay === undefined) fail(name, "needs --live or --replay");
  }
  if (settings.records !== undefined) {
    for (const name of ["live", "replay"] as const) {
      if (settings[name]) fail(name, "records hold the boxes that they were packed with; leave out --records");
    }
  }
  if (chosen("metricsHost") && settings.metricsPort === undefined) fail("metricsHost", "needs --metrics-port");
  if (settings.records !== undefined) {
    if (augment === "ssd" || augment === "yolo") {
      fail("augment", `${augment} needs the images as they were before they were resized; records do without`);
    }
    if (settings.multiScale !== undefined) fail("multiScale", "records are of one size");
    if (given("antialias")) fail("antialias", "how images are resized is what the records were packed with");
  }
  if (settings.schedule?.kind === "chained" && settings.schedule.parts[0]?.start !== 0) {
    fail("schedule", `parts: expected the first to start at 0, got ${settings.schedule.parts[0]?.start}`);
  }
  if (!resumed) chooseModel({ settings, givenBy, resumed });
}

/** The model that the settings name, without the number of classes. */
export function chooseModel({
  settings,
  givenBy,
  resumed,
}: Pick<TrainArguments, "settings" | "givenBy" | "resumed">): NamedModel {
  if (resumed) return resumed.config.model;
  const { model = "compact", boxLoss, norm, trainableLayers, backboneWeights, weights } = settings;
  const refuse = (name: keyof TrainSettings, reason: string): void => {
    const at = givenBy(name);
    if (at !== undefined) throw new ConfigError(at, reason);
  };
  if (typeof model !== "string") {
    for (const name of ["boxLoss", "norm", "trainableLayers"] as const)
      refuse(name, "say it within the settings of model");
    return model;
  }
  const chosen = namedModel(model);
  if (chosen.name === "fcos" || chosen.name === "ssdlite") refuse("boxLoss", `${model} has a box loss of its own`);
  const loss = boxLoss === undefined ? {} : { boxLoss: { kind: boxLoss } };
  if (chosen.name === "compact") {
    for (const name of ["backboneWeights", "trainableLayers", "norm"] as const) {
      refuse(name, "the compact model has no such backbone, choose another --model");
    }
    return { ...chosen, ...loss };
  }
  // SSDLite's batch normalization and all of its backbone train in any case, as in torchvision.
  const ssd = chosen.name === "ssdlite";
  const pretrained = !ssd && (backboneWeights !== undefined || weights !== undefined);
  const all = ssd || chosen.backbone === "mobilenet_v2" ? 6 : 5;
  return {
    ...chosen,
    ...loss,
    norm: norm ?? (pretrained ? "frozen" : "batch"),
    trainableLayers: trainableLayers ?? (pretrained ? 3 : all),
  };
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

function networkOf(args: TrainArguments, isDemo: boolean, cuda: boolean): NamedModel {
  const chosen = chooseModel(args);
  if (args.resumed || chosen.name !== "compact" || typeof args.settings.model === "object") return chosen;
  return { ...compactOptions(isDemo, cuda), ...chosen };
}

/**
 * The largest norm of gradients where nobody says it. The deep backbones' gradients are so large in some early steps from random
 * weights that without clipping a training may end in NaN. Runs that were started before clipping existed go on without.
 */
function clipNormOf({ resumed }: TrainArguments, { name }: NamedModel): number | null {
  return resumed || name === "compact" ? null : 10;
}

/** The settings with a default of their own, where they are not given. */
function standardValues(): Record<string, unknown> {
  const entries = Object.entries(trainSettings as unknown as Settings);
  return Object.fromEntries(
    entries.flatMap(([name, { presence, value }]) => (presence === "default" ? [[name, value]] : [])),
  );
}

/**
 * Settles every setting: as given, as the resumed run has it, or by default. How images become network inputs is not among them:
 * `preprocessing` is empty unless a resumed run has it.
 */
export function resolveConfig(args: TrainArguments, facts: TrainFacts): TrainConfig {
  const { settings, resumed, givenBy } = args;
  const { data, backend } = facts;
  const { overfit } = settings;
  const images = Math.min(facts.images, overfit ?? Number.POSITIVE_INFINITY);
  const [isDemo, cuda] = [data === "demo", backend === "cuda"];
  const network = networkOf(args, isDemo, cuda);
  const standardBatch = isDemo ? 8 : 16;
  const isAuto = settings.batch === "auto";
  const batch = settings.batch === "auto" ? (facts.autoBatch ?? 1) : (settings.batch ?? standardBatch);
  const accumulate = settings.accumulate ?? 1;
  const perStep = batch * accumulate;
  const passes = (epochs: number) => Math.ceil((epochs * images) / perStep);
  const standardLength = isDemo ? 1500 : Math.max(2000, passes(12));
  const iterations =
    givenBy("epochs") === undefined ? (settings.iterations ?? standardLength) : passes(settings.epochs as number);
  const standardRate = network.name !== "compact" ? (0.01 * standardBatch) / 16 : isDemo ? 0.04 : 0.02;
  // The linear rule (Goyal et al. 2017). A rate that is given holds for the batch that is given, or for the standard one.
  const given = settings.learningRate !== undefined && !isAuto ? settings.learningRate : undefined;
  const rate = (settings.learningRate ?? standardRate) * (perStep / standardBatch);
  const side = isDemo ? 192 : cuda && network.name !== "ssdlite" ? 640 : 320;
  const { model: _, trainableLayers, norm, boxLoss, epochs, ...rest } = settings;
  const schedule = settings.schedule ?? trainSettings.schedule.value!;
  const warm =
    settings.warmup === undefined && schedule.kind !== "oneCycle"
      ? trainSettings.warmup.kind.read("linear", "warmup")
      : (settings.warmup ?? null);
  const config = {
    ...standardValues(),
    ...rest,
    data,
    backend,
    batch,
    iterations,
    size: settings.size ?? facts.packedSize ?? [side, side],
    precision: settings.precision ?? (cuda && facts.bf16 ? "bf16" : "fp32"),
    learningRate: given ?? rate,
    clipNorm: settings.clipNorm === undefined ? clipNormOf(args, network) : settings.clipNorm,
    warmup: warm && { ...warm, iterations: warmupLength(warm, iterations) },
    evaluateEvery: settings.evaluateEvery ?? Math.max(100, Math.ceil(iterations / 5)),
    checkpointEvery: settings.checkpointEvery ?? Math.max(100, Math.ceil(iterations / 10)),
    classes: facts.classes,
    preprocessing: resumed?.config.preprocessing ?? [],
    scaleJitter: resumed?.config.scaleJitter ?? !isDemo,
    ...(overfit !== undefined && { flip: "none", augment: "none", scaleJitter: false }),
    model: { ...network, classes: facts.classes.length },
  } as TrainConfig;
  if (overfit !== undefined && overfit > facts.images) {
    const most = `expected at most ${facts.images}, the images that can be trained on, got ${overfit}`;
    throw new ConfigError(givenBy("overfit") ?? labelOf("overfit"), most);
  }
  if (config.multiScale !== undefined && config.multiScale > Math.min(...config.size)) {
    const least = `expected at most ${Math.min(...config.size)}, the smaller side of --size, got ${config.multiScale}`;
    throw new ConfigError(givenBy("multiScale") ?? labelOf("multiScale"), least);
  }
  return inTableOrder(config);
}

/** As the table has the settings, then what is worked out: so config.json can be read. */
function inTableOrder(config: TrainConfig): TrainConfig {
  const names = Object.keys(trainSettings);
  const place = (name: string) => (names.includes(name) && name !== "model" ? names.indexOf(name) : names.length);
  const entries = Object.entries(config).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries.sort(([a], [b]) => place(a) - place(b))) as unknown as TrainConfig;
}

/** Where a training's batches come from: image files or record files, sampled, augmented and mirrored as its configuration says. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import {
  AspectRatioBatches,
  augmentationPreset,
  augmentationPresets,
  type BatchImages,
  ClassBalancedSampler,
  CocoDataLoader,
  type CocoDataLoaderOptions,
  type Dataset,
  DeviceBatchDecoder,
  DeviceCompositionDecoder,
  DeviceRecordReader,
  FirstImages,
  HorizontalFlip,
  Normalize,
  needCompositions,
  type PreprocessOp,
  RecordLoader,
  RecordSet,
  RepeatFactorSampler,
  Resize,
  ScaleJitter,
  VerticalFlip,
} from "../../data";
import type { ProcessGroup } from "../../distributed";
import { type Device, precisionPolicy } from "../../tensor";
import { ConfigError } from "../config/kinds";
import type { TrainConfig } from "../config/train-config";
import type { InputSides } from "../config/train-settings";
import type { EvaluatedSplit } from "../evaluator";

/** Batches of a split, and what holds their images. */
export interface Feed {
  readonly loader: CocoDataLoader | RecordLoader;
  readonly images: BatchImages;
}

/** The record files of both splits; null where those of the validation split are not there. */
export interface Records {
  readonly train: RecordSet;
  readonly val: RecordSet | null;
}

/** What feeds have in common. */
export interface Reading {
  readonly config: TrainConfig;
  readonly dataset: Dataset;
  /** From a decoded image to the network's input, without augmentation. */
  readonly evaluation: readonly PreprocessOp[];
  readonly device: Device;
  readonly onFailure?: CocoDataLoaderOptions["onFailure"];
  /** Ranks that share the images of a batch. */
  readonly group?: Pick<ProcessGroup, "rank" | "world">;
  /** What is trained on may change while it is. */
  readonly live?: Required<Pick<CocoDataLoaderOptions, "changes" | "boxesPerImage">>;
}

/** Opens the records of both splits under a folder, and says what is there. */
export async function openRecords(
  folder: string,
  { trainSplit, valSplit }: Dataset,
  log: (line: string) => void,
): Promise<Records> {
  const train = await RecordSet.open(join(folder, trainSplit));
  if (valSplit === null) {
    log(`  records: ${train.length} of ${trainSplit} in ${folder}`);
    return { train, val: null };
  }
  const place = join(folder, valSplit);
  const val = existsSync(place) ? await RecordSet.open(place) : null;
  log(`  records: ${train.length} of ${trainSplit}, ${val ? `${val.length} of ${valSplit}` : "none"} in ${folder}`);
  if (!val) log(`  ${valSplit} is read from its images: there is no ${place}`);
  return { train, val };
}

/** How images were resized into records. */
export function resizeOf({ preprocessing }: RecordSet): Resize {
  return preprocessing.find((op) => op instanceof Resize) as Resize;
}

/** The records must be what evaluation does to images, at the network's size. */
export function checkRecords({ train, val }: Records, size: InputSides, evaluation: readonly PreprocessOp[]): void {
  const resize = JSON.stringify(evaluation.find((op) => op instanceof Resize));
  for (const { folder, description, preprocessing } of [train, ...(val ? [val] : [])]) {
    if (description.size.join("x") !== size.join("x")) {
      const found = `the records of ${folder} are ${description.size.join("x")}`;
      throw new ConfigError("--size", `${found}, the network's input is ${size.join("x")}`);
    }
    const found = JSON.stringify(preprocessing.find((op) => op instanceof Resize));
    if (found !== resize) {
      throw new ConfigError(
        "--records",
        `${folder} was packed with the resizing ${found}, the model is trained with ${resize}`,
      );
    }
  }
}

/** Batches of the training split, augmented and shuffled. `owned` gets what is to be released, also where the rest fails. */
export function trainingFeed(reading: Reading, records: Records | null, owned: AsyncDisposableStack): Feed {
  return records ? recordFeed(reading, records.train, true, owned) : imageFeed(reading, true, owned);
}

/** What is evaluated on: all of the validation split, or the few images of the training split that are trained on; or nothing. */
export function evaluatedSplit({ overfit, trainSplit, valSplit }: TrainConfig): EvaluatedSplit | null {
  if (overfit !== undefined) return { split: trainSplit, partial: true };
  return valSplit === null ? null : { split: valSplit };
}

/** Batches of what is evaluated on, each image once, as it is; null where nothing is. `owned`: see trainingFeed. */
export function validationFeed(reading: Reading, records: Records | null, owned: AsyncDisposableStack): Feed | null {
  if (!evaluatedSplit(reading.config)) return null;
  if (reading.config.overfit !== undefined && records) return recordFeed(reading, records.train, false, owned);
  return records?.val ? recordFeed(reading, records.val, false, owned) : imageFeed(reading, false, owned);
}

function loading(reading: Reading) {
  const { config, dataset, onFailure, group } = reading;
  const { seed, onBadImage: failures, maxBadImages: maxFailureShare } = config;
  const place = { rank: group?.rank ?? 0, ranks: group?.world ?? 1 };
  return { store: dataset.store, batchSize: shareOf(reading), seed, failures, maxFailureShare, onFailure, ...place };
}

/** Images of a batch that are this rank's. Throws ConfigError where the ranks cannot share it. */
export function shareOf({ config: { batch }, group }: Pick<Reading, "config" | "group">): number {
  const world = group?.world ?? 1;
  if (batch % world === 0) return batch / world;
  throw new ConfigError("--batch", `${world} ranks cannot share ${batch} images evenly`);
}

/** Batches from image files. */
function imageFeed(reading: Reading, train: boolean, owned: AsyncDisposableStack): Feed {
  const { config, dataset, evaluation, device } = reading;
  const { size, precision, trainSplit } = config;
  const batchSize = shareOf(reading);
  const { dtype } = precisionPolicy(precision);
  const preprocessing = train ? trainingOperations(config, evaluation) : [...evaluation];
  const perPass = Math.max(1, Math.floor(dataset.train.usable / config.batch));
  const epochs = Math.ceil((config.iterations * config.accumulate) / perPass);
  const closeLast = Math.min(epochs, config.closeAugment ?? Math.round(epochs / 10));
  const Decoder = needCompositions(preprocessing) ? DeviceCompositionDecoder : DeviceBatchDecoder;
  const shape = { batchSize, height: size[0], width: size[1], dtype, preprocessing };
  const decoder = owned.use<DeviceBatchDecoder | DeviceCompositionDecoder>(new Decoder(device, shape));
  const options: CocoDataLoaderOptions = {
    ...{ ...loading(reading), source: dataset.source, size, decoder, preprocessing },
    ...(train
      ? { split: trainSplit, epochs, closeLast, sizes: sizesOf(config), ...samplingOf(config), ...reading.live }
      : evaluationOf(config)),
  };
  return { loader: owned.use(new CocoDataLoader(options)), images: decoder };
}

/** The same from record files. Those of values are the network's input already: nothing is done to them. */
function recordFeed(reading: Reading, records: RecordSet, train: boolean, owned: AsyncDisposableStack): Feed {
  const { config, evaluation, device } = reading;
  const { precision, trainSplit } = config;
  const batchSize = shareOf(reading);
  const { dtype } = precisionPolicy(precision);
  const isPixels = records.description.dtype === "u8";
  const normalize = evaluation.find((op) => op instanceof Normalize);
  if (!isPixels && JSON.stringify(records.normalize) !== JSON.stringify(normalize)) {
    const found = JSON.stringify(records.normalize);
    throw new ConfigError("--records", `${records.folder} has values normalised by ${found}`);
  }
  const augmentation = trainingOperations(config, evaluation).filter((op) => op.random);
  const shape = { batchSize, dtype, ...(isPixels && { normalize }) };
  const reader = owned.use(new DeviceRecordReader(device, records, shape));
  const loader = new RecordLoader({
    ...{ ...loading(reading), reader },
    ...(train ? { split: trainSplit, ...samplingOf(config) } : evaluationOf(config)),
    ...(train && isPixels && { augmentation }),
  });
  return { loader: owned.use(loader), images: reader };
}

/** What is done to training images: the preset, or mirroring and scaling, around what evaluation does. */
function trainingOperations(
  { augment, flip, scaleJitter }: TrainConfig,
  evaluation: readonly PreprocessOp[],
): PreprocessOp[] {
  const preset = augmentationPresets.find((name) => name === augment);
  const flips = [...(flip === "none" ? [] : [new HorizontalFlip()]), ...(flip === "both" ? [new VerticalFlip()] : [])];
  if (!preset) {
    const scaling = augment === "default" && scaleJitter ? [new ScaleJitter(0.7, 1.4)] : [];
    return [...scaling, ...flips, ...evaluation];
  }
  const resize = evaluation.find((op) => op instanceof Resize);
  const normalize = evaluation.find((op) => op instanceof Normalize);
  // `flip` says how images are mirrored, whatever the preset does.
  const operations = augmentationPreset(preset, { resize, normalize }).filter((op) => !(op instanceof HorizontalFlip));
  return [...operations, ...flips];
}

/** The sizes of network inputs that training takes turns with: up to five, evenly spread; undefined: one. */
function sizesOf({ size, multiScale }: TrainConfig): InputSides[] | undefined {
  if (multiScale === undefined) return undefined;
  const [height, width] = size;
  const least = multiScale / Math.min(height, width);
  const whole = (side: number) => Math.max(32, 32 * Math.round(side / 32));
  const sizes = [0, 1, 2, 3, 4].map((i): InputSides => {
    const scale = 1 - (i / 4) * (1 - least);
    return [Math.min(height, whole(height * scale)), Math.min(width, whole(width * scale))];
  });
  return sizes.filter(([h, w], i) => sizes.findIndex(([a, b]) => a === h && b === w) === i);
}

/** The loader's options for an evaluation. */
function evaluationOf(config: TrainConfig) {
  const { overfit: count } = config;
  const { split } = evaluatedSplit(config) as EvaluatedSplit; // else there is no feed
  if (count === undefined) return { split, shuffle: false };
  return { split, sampler: new FirstImages({ count, shuffle: false }), dropLast: false };
}

/** The loader's options for what `sampler`, `groupByAspect` and `overfit` ask for. */
function samplingOf({ sampler, repeatThreshold, groupByAspect, overfit: count, batch }: TrainConfig) {
  return {
    // Where they do not fill a batch, they are in it several times.
    ...(count !== undefined && { sampler: new FirstImages({ count, samples: Math.max(count, batch) }) }),
    ...(sampler === "class-balanced" && { sampler: new ClassBalancedSampler() }),
    ...(sampler === "repeat-factor" && { sampler: new RepeatFactorSampler({ threshold: repeatThreshold }) }),
    ...(groupByAspect && { batchSampler: new AspectRatioBatches() }),
  };
}

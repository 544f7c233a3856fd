/** Evaluations from start to end: of a results file, and of a trained model. */
import {
  CocoDataLoader,
  DeviceBatchDecoder,
  DeviceImageCodec,
  demoFolder,
  generateDemo,
  loadDataset,
  type ProgressListener,
  type ResultRow,
  readCocoAnnotations,
  readCocoResults,
  showProgress,
} from "../data";
import { CocoEvaluator, type CocoResult } from "../metrics";
import { check, ErrorCode } from "../native";
import {
  type Device,
  type Precision,
  type PrecisionPolicy,
  precisionPolicy,
  precisionText,
  type QuantizedDType,
} from "../tensor";
import {
  type CalibrationBatch,
  type CalibrationOptions,
  type CalibrationTable,
  calibrate,
  type Quantization,
} from "./calibration";
import { autotune } from "./convolution-tuning";
import type { Evaluation } from "./evaluation-report";
import { collectForMetrics, Evaluator, type ImageDetections } from "./evaluator";
import { loadTrainedModel } from "./trained-model";

/**
 * Measures detections in COCO's results format, as pycocotools' COCOeval does.
 *
 * @throws DlfsError naming the file and the field of what is wrong: see readCocoAnnotations and readCocoResults
 */
export async function evaluateResultsFile(
  annotations: string,
  results: string,
  options: { progress?: ProgressListener } = {},
): Promise<Evaluation> {
  const truth = await readCocoAnnotations(annotations, options);
  const { images, categories, objects } = truth;
  const evaluator = new CocoEvaluator({ images, categories });
  evaluator.addGroundTruth(objects);
  await readCocoResults(
    results,
    truth,
    ({ imageId, categoryId, bbox, score }) => evaluator.addDetection(imageId, categoryId, bbox, score),
    options,
  );
  return { evaluator, result: evaluator.evaluate(), categories, images: images.length };
}

export interface EvaluateModelOptions {
  /** Folder of a data set in COCO's layout, or "demo". Default: what the model was trained on. */
  data?: string;
  /** Default: the split that the run was evaluated on. */
  split?: string;
  /** Network input in pixels. Default: as in training. */
  size?: readonly [height: number, width: number];
  /** Images a batch. Default 8. */
  batchSize?: number;
  /** Default "fp32"; beside `quantize` "fp16" where the device has it. */
  precision?: Precision;
  /** Dtypes of 8 bits that the model is measured in, too, after a calibration. */
  quantize?: readonly QuantizedDType[];
  calibration?: {
    /** Images to look at. Default 128. */
    images?: number;
    /** Where they come from. Default: the split that the model was trained on. */
    split?: string;
    /** Layers that keep the floating-point dtype, with all below them. */
    exclude?: readonly string[];
  } & CalibrationOptions;
  /** Milliseconds for timing the candidates of a convolution, 0 for heuristics; see `autotune`, which says the default. */
  tuneMs?: number;
  progress?: ProgressListener;
  /** Told what is evaluated on what, before that starts. */
  log?: (line: string) => void;
}

export interface ModelEvaluation extends Evaluation {
  readonly split: string;
  /** The detections with the ids of the annotation file. */
  readonly detections: ResultRow[];
  readonly precision: PrecisionPolicy["name"];
  /** With `quantize`: what the model was calibrated to, and how it does in each dtype. */
  readonly table?: CalibrationTable;
  readonly quantized: readonly { readonly dtype: QuantizedDType; readonly result: CocoResult }[];
}

/**
 * Runs a trained model over a split and measures what it detects.
 *
 * @param path a checkpoint, or the folder of a run, whose newest checkpoint is used
 * @throws DlfsError where the checkpoint or the data cannot be used, or the data's classes are not the model's
 */
export async function evaluateModel(
  path: string,
  device: Device,
  options: EvaluateModelOptions = {},
): Promise<ModelEvaluation> {
  const { batchSize = 8, quantize = [], calibration = {}, progress = showProgress(), log = () => {} } = options;
  const half = quantize.length > 0 && device.supports("conv.f16");
  const policy = precisionPolicy(options.precision ?? (half ? "fp16" : "fp32"));
  const { name: precision, dtype } = policy;
  if (options.tuneMs !== undefined) autotune(device, { ms: options.tuneMs });
  using trained = await loadTrainedModel(path, device, { precision });
  const { model, config, preprocessing } = trained;
  const {
    data: trainedOn,
    trainSplit,
    valSplit,
  } = config as Partial<Record<"data" | "trainSplit" | "valSplit", unknown>>;
  const data = options.data ?? trainedOn;
  const split = options.split ?? valSplit;
  check(typeof data === "string", trained.path, () => "config.data: expected the data set's folder, give one");
  check(
    typeof split === "string",
    trained.path,
    () => "config.valSplit: expected the name of a split, the training evaluated on none; give one: --split",
  );
  const codec = new DeviceImageCodec(device);
  const folder = data === "demo" ? demoFolder() : data;
  if (data === "demo") {
    const encode = (pixels: Uint8Array, width: number, height: number, quality: number) =>
      codec.encode({ data: pixels, width, height }, quality);
    await generateDemo(folder, { encode, progress });
  }
  const seen = calibration.split ?? (typeof trainSplit === "string" ? trainSplit : split);
  const other = quantize.length > 0 && seen !== split ? seen : null;
  using dataset = await loadDataset(folder, { codec, trainSplit: split, valSplit: other, progress });
  const { store, source, classes } = dataset;
  check(
    classes.names.join("\n") === config.classes.join("\n"),
    folder,
    () => `its classes are not those of ${trained.path}: ${differingClass(classes.names, config.classes)}`,
    ErrorCode.argument,
  );

  const size = options.size ?? config.size;
  const [height, width] = size;
  log(`model: ${trained.path}, ${trained.iteration} iterations`);
  log(
    `data: ${folder}, ${split}, ${dataset.train.usable} images, input ${height}x${width}, ${precisionText(policy, device)}`,
  );
  using decoder = new DeviceBatchDecoder(device, { batchSize, height, width, dtype, preprocessing });
  const common = { store, source, batchSize, size, preprocessing, decoder };
  const detect = async (name: string, quantization?: Quantization) => {
    await using loader = new CocoDataLoader({ ...common, split, shuffle: false });
    using evaluator = new Evaluator({ model, store, split, loader, decoder, quantization });
    return await evaluator.detect((done, total) => progress(name, done, total));
  };
  const found = await detect("evaluating");
  const metrics = collectForMetrics(store, split, found);
  let table: CalibrationTable | undefined;
  const quantized: { dtype: QuantizedDType; result: CocoResult }[] = [];
  if (quantize.length > 0) {
    await using loader = new CocoDataLoader({ ...common, split: other ?? split, shuffle: true, dropLast: false });
    table = await calibrate(model, firstImages(loader, decoder, calibration.images ?? 128, progress), calibration);
  }
  for (const dtype of quantize) {
    const detections = await detect(`evaluating ${dtype}`, { dtype, table: table!, exclude: calibration.exclude });
    quantized.push({ dtype, result: collectForMetrics(store, split, detections).evaluate() });
  }
  return {
    precision,
    table,
    quantized,
    evaluator: metrics,
    result: metrics.evaluate(),
    categories: store.categories(),
    images: dataset.train.usable,
    split,
    detections: resultRows(dataset, found),
  };
}

/** The batches of a loader up to a number of images. */
async function* firstImages(
  loader: CocoDataLoader,
  decoder: DeviceBatchDecoder,
  images: number,
  progress: ProgressListener,
): AsyncGenerator<CalibrationBatch> {
  const wanted = Math.min(images, loader.images.length);
  for (let done = 0; done < wanted; ) {
    const batch = await loader.getBatch();
    try {
      const count = Math.min(batch.n, wanted - done);
      yield { images: decoder.images(batch.slot), count };
      decoder.device.stream.synchronize(); // the slot is filled again once it is released
      done += count;
    } finally {
      batch.release();
    }
    progress("calibrating", done, wanted);
  }
}

/** Detections with the ids of the annotation file. */
function resultRows(
  { store, classes }: Pick<Awaited<ReturnType<typeof loadDataset>>, "store" | "classes">,
  found: readonly ImageDetections[],
): ResultRow[] {
  return found.flatMap(({ imageId, detections }) => {
    const sourceId = store.image(imageId)!.sourceId;
    return detections.map(({ box: [x1, y1, x2, y2], score, label }): ResultRow => {
      return { imageId: sourceId, categoryId: classes.categoryIdOf(label), bbox: [x1, y1, x2 - x1, y2 - y1], score };
    });
  });
}

/** The first class that two lists have differently, in words. */
function differingClass(here: readonly string[], expected: readonly string[]): string {
  const at =
    Array.from({ length: Math.max(here.length, expected.length) }, (_, i) => i).find((i) => here[i] !== expected[i]) ??
    0;
  const name = (names: readonly string[]) => (names[at] === undefined ? "missing" : JSON.stringify(names[at]));
  return `class ${at} is ${name(here)}, expected ${name(expected)}`;
}

import type { AnnotationStore, BatchImages, DataLoader, DetectionBatch } from "../data";
import type { ProcessGroup } from "../distributed";
import { CocoEvaluator, type CocoResult } from "../metrics";
import type { DetectionModel } from "../models";
import { check } from "../native";
import { Event, type Stream, type Tensor } from "../tensor";
import type { Quantization } from "./calibration";
import { type Detection, DetectStep, detectionsOnImage } from "./detect-step";
import { gatherDetections } from "./gather-detections";

/** An image's detections, in pixels of the image file, best first. */
export interface ImageDetections {
  /** ImageRecord.id in the store. */
  imageId: number;
  fileName: string;
  detections: Detection[];
}

/** What is measured. */
export interface EvaluatedSplit {
  split: string;
  /** Only the images that were detected on count, not all of the split. Default false. */
  partial?: boolean;
}

export interface EvaluatorOptions extends EvaluatedSplit {
  model: DetectionModel;
  store: AnnotationStore;
  /** Goes over the split, or a part of it, once, without augmentation and shuffling. */
  loader: DataLoader<DetectionBatch>;
  decoder: BatchImages;
  /** Convolutions of 8 bits; default: the model's precision. */
  quantization?: Quantization;
  /**
   * A stream of its own, for a model of its own, which takeWeights() gives weights to: evaluations then leave the device's own
   * stream, and what trains there, alone.
   */
  stream?: Stream;
  /** Ranks that each have a share of the images; all of them measure all detections, so that they agree to the last digit. */
  group?: ProcessGroup;
}

/** Measures a detector on a split with COCO's metrics. */
export class Evaluator implements Disposable {
  readonly model: DetectionModel;
  readonly #step: DetectStep;
  readonly #options: EvaluatorOptions;
  /** Marks where the weights have been taken. */
  readonly #taken: Event | null;

  constructor(options: EvaluatorOptions) {
    const { batchSize, height, width } = options.decoder;
    this.#options = options;
    const { model, quantization, stream } = options;
    this.model = model;
    this.#step = new DetectStep(model, { batchSize, height, width, quantization, stream });
    this.#taken = stream ? new Event(model.device) : null;
  }

  /**
   * Copies weights and statistics, by their names, to the evaluator's model, as they are when the work enqueued so far on the
   * device's own stream is done. Not during an evaluation.
   */
  takeWeights(weights: ReadonlyMap<string, Tensor>): void {
    const { model } = this;
    for (const [name, tensor] of model.stateDict()) {
      const given = weights.get(name);
      check(
        given !== undefined,
        "Evaluator",
        () => `${name}: expected the weights of the same model, got none of that name`,
      );
      tensor.copyFrom(given);
    }
    model.refresh();
    const { stream } = this.#options;
    if (!stream) return;
    this.#taken?.record(model.device.stream);
    stream.waitFor(this.#taken as Event);
  }

  /**
   * Detects on the whole split with the present weights, and measures. `onBatch` hears of each finished batch. Throws the signal's
   * reason when it is aborted, after the batch under way.
   */
  async evaluate(
    onBatch?: (done: number, total: number) => void,
    signal?: AbortSignal,
  ): Promise<{ result: CocoResult; detections: ImageDetections[] }> {
    const { group, store, split } = this.#options;
    let detections = await this.detect((done, total) => {
      signal?.throwIfAborted();
      onBatch?.(done, total);
    });
    if (group) {
      const names = new Map(store.images(split).map(({ id, fileName }) => [id, fileName]));
      // One that is given up does not wait for ranks that have given it up before.
      const all = gatherDetections(group, detections, (id) => names.get(id) ?? "");
      detections = await (signal ? Promise.race([all, aborted(signal)]) : all);
    }
    return { result: measure(this.#options.store, this.#options, detections), detections };
  }

  /** Detects on the whole split, or so many batches of it, with the present weights. */
  async detect(
    onBatch?: (done: number, total: number) => void,
    batches = Number.POSITIVE_INFINITY,
  ): Promise<ImageDetections[]> {
    const { loader } = this.#options;
    this.#step.refresh();
    const detections: ImageDetections[] = [];
    let done = 0;
    for await (const batch of loader) {
      try {
        detections.push(...(await this.#detect(batch)));
      } finally {
        batch.release();
      }
      done++;
      onBatch?.(done, loader.length);
      if (done >= batches) break;
    }
    return detections;
  }

  async #detect(batch: DetectionBatch): Promise<ImageDetections[]> {
    const found = await this.#step.run(this.#options.decoder.images(batch.slot), batch.n);
    return batch.images.flatMap(({ imageId, fileName, toInput, width, height, repeat }, i) => {
      if (repeat) return []; // it fills up a batch, and its detections count once
      check(
        toInput !== null,
        "Evaluator",
        () => `${fileName} is turned or combined with others: evaluate without that`,
      );
      const detections = detectionsOnImage(found[i] as Detection[], toInput, width, height);
      return [{ imageId, fileName, detections }];
    });
  }

  dispose(): void {
    this.#step.dispose();
    this.#taken?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Rejects with the signal's reason once it is aborted. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    else signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** COCO's metrics of detections against a split's annotations; crowds count as pycocotools counts them. */
export function measure(
  store: AnnotationStore,
  evaluated: string | EvaluatedSplit,
  detections: readonly ImageDetections[],
): CocoResult {
  return collectForMetrics(store, evaluated, detections).evaluate();
}

/** A split's annotations and detections on its images, ready to be measured. */
export function collectForMetrics(
  store: AnnotationStore,
  evaluated: string | EvaluatedSplit,
  detections: readonly ImageDetections[],
): CocoEvaluator {
  const { split, partial = false } = typeof evaluated === "string" ? { split: evaluated } : evaluated;
  const seen = new Set(detections.map(({ imageId }) => imageId));
  const all = store.images(split, { usable: true }).map(({ id }) => ({ id }));
  const images = partial ? all.filter(({ id }) => seen.has(id)) : all;
  const usable = new Set(images.map(({ id }) => id));
  const classes = store.classes();
  const evaluator = new CocoEvaluator({ categories: store.categories(), images });
  for (const { imageId, categoryId, bbox, area, isCrowd } of store.annotations(split)) {
    if (usable.has(imageId)) evaluator.addGroundTruth([{ imageId, categoryId, bbox, area, iscrowd: isCrowd }]);
  }
  for (const { imageId, detections: found } of detections) {
    for (const { box, score, label } of found) {
      const [x1, y1, x2, y2] = box;
      evaluator.addDetection(imageId, classes.categoryIdOf(label), [x1, y1, x2 - x1, y2 - y1], score);
    }
  }
  return evaluator;
}

/** Batch inference: all images of a list, into a folder of results that a second run goes on with. */
import { mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import { type ProgressListener, showProgress } from "../data";
import { type ImagePrediction, PredictionsWriter } from "../formats";
import { classColor, drawTag, type RgbImage, strokeRect } from "../monitor";
import { versionsOf } from "../train";
import type { Engine } from "./engine";
import type { ImageList } from "./image-list";
import { type Predicted, type PredictOptions, predict } from "./predict";
import { convertPredictions, type PredictionFormat, pathInside, withoutExtension } from "./prediction-formats";

export interface BatchInferenceOptions extends PredictOptions {
  engine: Engine;
  list: ImageList;
  /** Folder of the results; made where it is not there. */
  out: string;
  /** What is made of predictions.dlpr at the end. Default: nothing. */
  formats?: readonly PredictionFormat[];
  /** JPEGs of all images with their boxes, in the folder "pictures". Default false: drawing takes longer than detecting. */
  pictures?: boolean;
  progress?: ProgressListener;
}

export interface BatchInferenceResult {
  /** The predictions file. */
  path: string;
  /** Images that this call has detected on, those that failed included. */
  images: number;
  /** Images that the folder had results of. */
  before: number;
  detections: number;
  /** Images that could not be read or decoded, with why, those of earlier calls included. */
  failures: { name: string; error: string }[];
  /** Of this call, without loading the model. */
  seconds: number;
  /** `signal` ended it early; calling again does what is left. */
  interrupted: boolean;
  /** What was written besides. */
  written: string[];
}

/** Bytes of predictions that a crash of the machine may take: they are put on the disk at least so often. */
const SYNC_MS = 5000;

/** A picture with boxes, classes and scores on it, as a JPEG. */
export function drawPrediction(engine: Engine, bytes: Uint8Array, prediction: ImagePrediction): Uint8Array {
  const image: RgbImage = engine.codec.decode(bytes);
  const { boxes, scores, labels } = prediction;
  const stroke = Math.max(1, Math.round(Math.max(image.width, image.height) / 400));
  // The best are drawn last, on top.
  for (let i = scores.length - 1; i >= 0; i--) {
    const [x1, y1, x2, y2] = boxes.subarray(4 * i, 4 * i + 4) as unknown as [number, number, number, number];
    const label = labels[i] as number;
    const color = classColor(label);
    strokeRect(image, { x: x1, y: y1, width: x2 - x1, height: y2 - y1 }, color, { thickness: stroke });
    drawTag(image, `${engine.classes[label] ?? label} ${(scores[i] as number).toFixed(2)}`, x1, y1, color);
  }
  return engine.codec.encode(image);
}

/**
 * Detects on all images of a list that `out` has no results of yet, and appends to out/predictions.dlpr.
 *
 * @throws DlfsError where the folder has results of another model or threshold, or a file cannot be written; what was written
 *   before stays, and calling again goes on
 */
export async function runBatchInference(options: BatchInferenceOptions): Promise<BatchInferenceResult> {
  const { engine, list, out, formats = [], pictures = false, scoreThreshold = 0, signal } = options;
  const progress = options.progress ?? showProgress();
  mkdirSync(out, { recursive: true });
  const path = join(out, "predictions.dlpr");
  const known = new Set<string>();
  const failures: BatchInferenceResult["failures"] = [];
  const note = ({ name, error }: ImagePrediction) => error !== undefined && failures.push({ name, error });
  await using writer = await PredictionsWriter.open(
    path,
    {
      classes: [...engine.classes],
      model: basename(engine.path),
      iteration: engine.iteration,
      scoreThreshold,
      created: Date.now(),
      versions: versionsOf(engine.device),
    },
    (prediction) => {
      known.add(prediction.name);
      note(prediction);
    },
  );
  const left = list.images.filter(({ name }) => !known.has(name));
  const before = list.images.length - left.length;
  let [images, detections, synced] = [0, 0, performance.now()];
  const started = performance.now();
  progress("detecting", before, list.images.length);
  for await (const batch of predict(engine, left, { ...options, scoreThreshold })) {
    // An image with a prediction has its picture, also after a kill in between.
    if (pictures) for (const predicted of batch) await writePicture(engine, out, predicted);
    await writer.append(batch.map(({ prediction }) => prediction));
    for (const { prediction } of batch) {
      note(prediction);
      detections += prediction.scores.length;
    }
    images += batch.length;
    progress("detecting", before + images, list.images.length);
    if (performance.now() - synced < SYNC_MS) continue;
    await writer.sync();
    synced = performance.now();
  }
  await writer.sync();
  const seconds = (performance.now() - started) / 1000;
  const interrupted = (signal?.aborted ?? false) && images < left.length;
  const written: string[] = [];
  if (!interrupted) {
    const names = { coco: "results.json", jsonl: "predictions.jsonl", yolo: "labels" } as const;
    for (const format of formats) {
      written.push(await convertPredictions(path, format, join(out, names[format]), list));
    }
  }
  return { path, images, before, detections, failures, seconds, interrupted, written };
}

async function writePicture(engine: Engine, out: string, { bytes, prediction }: Predicted): Promise<void> {
  if (bytes === null || prediction.error !== undefined) return;
  const name = `${withoutExtension(pathInside(prediction.name))}.jpg`;
  await Bun.write(join(out, "pictures", name), drawPrediction(engine, bytes, prediction));
}

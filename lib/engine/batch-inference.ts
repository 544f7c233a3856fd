/** Batch inference: all images of a list, into a folder of results that a second run goes on with. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { type ProgressListener, showProgress } from "../data";
import { PredictionsWriter } from "../formats";
import { check, ErrorCode } from "../native";
import { aboutEngine, detectLeft, KnownImages } from "./detect-left";
import type { Engine } from "./engine";
import type { ImageList } from "./image-list";
import type { PredictOptions } from "./predict";
import { PredictProcesses } from "./predict-processes";
import { convertPredictions, type PredictionFormat } from "./prediction-formats";

export interface BatchInferenceOptions extends PredictOptions {
  /** What detects: an engine, or processes with an engine on each of several devices, which have the list's location. */
  engine: Engine | PredictProcesses;
  list: ImageList;
  /** Folder of the results; made where it is not there. */
  out: string;
  /** What is made of predictions.dlpr at the end. Default: nothing. */
  formats?: readonly PredictionFormat[];
  /** JPEGs of all images with their boxes, in the folder "pictures". They are drawn on threads of their own. Default false. */
  pictures?: boolean;
  /** Tries images again that were damaged when they were tried before; those that could not be read are tried in any case. */
  retryFailed?: boolean;
  progress?: ProgressListener;
}

export interface BatchInferenceResult {
  /** The predictions file. */
  path: string;
  /** Images that this call has detected on, those that failed included. */
  images: number;
  /** Images that the folder had results of. */
  before: number;
  /** Of `images`, those that had failed before. */
  retried: number;
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

/**
 * Detects on all images of a list that `out` has no results of yet, and appends to out/predictions.dlpr. Images that could not be read
 * are tried again.
 *
 * @throws DlfsError where the folder has results of another model or threshold, or a file cannot be written; what was written
 *   before stays, and calling again goes on
 */
export async function runBatchInference(options: BatchInferenceOptions): Promise<BatchInferenceResult> {
  const { engine, list, out, formats = [], scoreThreshold = 0, retryFailed = false, signal } = options;
  const progress = options.progress ?? showProgress();
  mkdirSync(out, { recursive: true });
  const path = join(out, "predictions.dlpr");
  const known = new KnownImages(retryFailed);
  const about = engine instanceof PredictProcesses ? engine.about : aboutEngine(engine);
  await using writer = await PredictionsWriter.open(
    path,
    { ...about, scoreThreshold, created: Date.now() },
    (prediction) => known.add(prediction),
  );
  const left = list.images.filter(({ name }) => !known.isDone(name));
  const retried = known.failures;
  let before = list.images.length - left.length;
  let total = list.images.length;
  let [images, again, detections, synced] = [0, 0, 0, performance.now()];
  const started = performance.now();
  const shown = () => progress("detecting", before + images, Math.max(total, before + images));
  const work = { ...options, scoreThreshold, retryFailed, predictions: path };
  const heard = {
    onLength: (frames: number) => {
      total = frames;
    },
    onKnown: (frames: number) => {
      before += frames;
    },
  };
  shown();
  const batches =
    engine instanceof PredictProcesses ? engine.run(work, heard) : detectLeft(engine, list, left, known, work, heard);
  for await (const batch of batches) {
    await writer.appendEncoded(batch.messages);
    for (const [i, name] of batch.names.entries()) {
      if (retried.has(name)) again++;
      known.note(name, batch.errors[i] ?? undefined);
    }
    detections += batch.detections;
    images += batch.messages.length;
    shown();
    if (performance.now() - synced < SYNC_MS) continue;
    await writer.sync();
    synced = performance.now();
  }
  await writer.sync();
  const seconds = (performance.now() - started) / 1000;
  check(
    (signal?.aborted ?? false) || list.frames !== undefined || images === left.length,
    list.description,
    () => `it has changed meanwhile: ${images} of ${left.length} images were done; the same call goes on`,
    ErrorCode.io,
  );
  const interrupted = (signal?.aborted ?? false) && (list.frames !== undefined || images < left.length);
  const written: string[] = [];
  if (!interrupted) {
    const names = { coco: "results.json", jsonl: "predictions.jsonl", yolo: "labels" } as const;
    for (const format of formats) {
      written.push(await convertPredictions(path, format, join(out, names[format]), list));
    }
  }
  const failures = [...known.failures].map(([name, error]) => ({ name, error }));
  return { path, images, before, retried: again, detections, failures, seconds, interrupted, written };
}

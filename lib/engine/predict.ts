/** Detection on many images: reading, decoding and detecting overlap, and results come in the order of the images. */
import type { Pixels } from "../data";
import type { ImagePrediction } from "../formats";
import { check, DlfsError } from "../native";
import type { Engine, EngineResult } from "./engine";
import type { ListedImage } from "./image-list";

export interface PredictOptions {
  /** Detections below it are left out. Default: what the model's post-processing keeps. */
  scoreThreshold?: number;
  /** Files read ahead. Default: as many as four batches; of what comes one after the other, decoded, as one. */
  readAhead?: number;
  /** Batches given to the engine before the results of the first are taken. Default 4, of what comes decoded 2. */
  batchesAhead?: number;
  /** Ends the work behind the batch whose results are taken next; predict() returns then. */
  signal?: AbortSignal;
}

/** An image with what was found on it. */
export interface Predicted {
  readonly image: ListedImage;
  /** Its file, or pixels; null where it could not be read. */
  readonly content: Uint8Array | Pixels | null;
  readonly prediction: ImagePrediction;
}

/** An image with its file, its pixels, or why there is neither. */
interface Read {
  readonly image: ListedImage;
  readonly content: Uint8Array | Pixels | DlfsError;
}

/** What a failure of one image leaves of it; other errors end everything. */
function failed(error: unknown): DlfsError {
  if (error instanceof DlfsError) return error;
  throw error;
}

function predictionOf(image: ListedImage, result: EngineResult, unreadable: boolean): ImagePrediction {
  const { width, height, detections, error } = result;
  const n = detections.length;
  const [boxes, scores, labels] = [new Float32Array(4 * n), new Float32Array(n), new Uint32Array(n)];
  for (let i = 0; i < n; i++) {
    const { box, score, label } = detections[i] as EngineResult["detections"][0];
    for (let k = 0; k < 4; k++) boxes[4 * i + k] = box[k] as number;
    scores[i] = score;
    labels[i] = label;
  }
  const prediction: ImagePrediction = { name: image.name, width, height, boxes, scores, labels };
  if (image.imageId !== undefined) prediction.imageId = image.imageId;
  if (image.frame !== undefined) prediction.frame = image.frame;
  if (image.time !== undefined) prediction.time = image.time;
  if (error) prediction.error = error.message;
  if (unreadable) prediction.unreadable = true;
  return prediction;
}

/**
 * Detects on images, and yields batches of results in the order of the images. An image that cannot be read, or is damaged, has
 * a prediction with an error. What comes one after the other, a video's frames, is taken as far ahead as files are read. At most `readAhead` files and `batchesAhead` batches are in memory.
 */
export async function* predict(
  engine: Engine,
  images: Iterable<ListedImage> | AsyncIterable<ListedImage>,
  options: PredictOptions = {},
): AsyncGenerator<Predicted[]> {
  const { maxBatch } = engine;
  const streamed = Symbol.asyncIterator in images;
  const { readAhead = streamed ? maxBatch : 4 * maxBatch, batchesAhead = streamed ? 2 : 4 } = options;
  const { scoreThreshold, signal } = options;
  for (const [name, value] of Object.entries({ readAhead, batchesAhead })) {
    check(Number.isSafeInteger(value) && value > 0, "predict", () => `${name}: expected a number from 1, got ${value}`);
  }
  const waiting = streamed ? images[Symbol.asyncIterator]() : images[Symbol.iterator]();
  const reading: Promise<Read | null>[] = [];
  const detecting: Promise<Predicted[]>[] = [];
  let ended = false;
  const readOne = async (image: ListedImage): Promise<Read> => {
    const content = await image.read(signal).catch(failed);
    return { image, content };
  };
  /** Keeps `readAhead` files on their way. */
  const readMore = () => {
    while (!ended && reading.length < readAhead && !signal?.aborted) {
      const next = waiting.next();
      if (!(next instanceof Promise) && next.done) {
        ended = true;
        return;
      }
      // Of a stream, that there is no more is known when it is awaited.
      const read =
        next instanceof Promise ? next.then((one) => (one.done ? null : readOne(one.value))) : readOne(next.value);
      read.catch(() => undefined); // it is awaited with its batch, maybe after another has failed
      reading.push(read);
    }
  };
  const detect = async (batch: Read[]): Promise<Predicted[]> => {
    const contents: (Uint8Array | Pixels)[] = [];
    for (const { content } of batch) if (!(content instanceof DlfsError)) contents.push(content);
    const found = await engine.detect(contents, { scoreThreshold });
    let at = 0;
    return batch.map(({ image, content }): Predicted => {
      if (content instanceof DlfsError) {
        const lost: EngineResult = { width: 0, height: 0, detections: [], error: content };
        return { image, content: null, prediction: predictionOf(image, lost, true) };
      }
      return { image, content, prediction: predictionOf(image, found[at++] as EngineResult, false) };
    });
  };
  try {
    for (readMore(); reading.length > 0 && !signal?.aborted; readMore()) {
      const read = await Promise.allSettled(reading.splice(0, maxBatch));
      // Reads that the signal has ended are no failures: their images are left for another time.
      if (signal?.aborted) break;
      readMore();
      const broken = read.findIndex(({ status }) => status === "rejected");
      const whole = (broken < 0 ? read : read.slice(0, broken)) as PromiseFulfilledResult<Read | null>[];
      const batch = whole.flatMap(({ value }) => value ?? []);
      if (batch.length > 0) {
        const work = detect(batch);
        work.catch(() => undefined); // it is awaited below
        detecting.push(work);
      }
      if (broken >= 0) {
        // What came before it has its results.
        while (detecting.length > 0) yield await (detecting.shift() as Promise<Predicted[]>);
        throw (read[broken] as PromiseRejectedResult).reason;
      }
      if (batch.length === 0) break; // a stream has ended
      if (detecting.length >= batchesAhead) yield await (detecting.shift() as Promise<Predicted[]>);
    }
    while (detecting.length > 0) yield await (detecting.shift() as Promise<Predicted[]>);
  } finally {
    await Promise.allSettled([...detecting, ...reading, streamed && waiting.return?.()]);
  }
}

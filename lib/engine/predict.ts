/** Detection on many images: reading, decoding and detecting overlap, and results come in the order of the images. */
import type { ImagePrediction } from "../formats";
import { check, DlfsError } from "../native";
import type { Engine, EngineResult } from "./engine";
import type { ListedImage } from "./image-list";

export interface PredictOptions {
  /** Detections below it are left out. Default: what the model's post-processing keeps. */
  scoreThreshold?: number;
  /** Files read ahead. Default: as many as four batches. */
  readAhead?: number;
  /** Batches given to the engine before the results of the first are taken. Default 4. */
  batchesAhead?: number;
  /** Ends the work behind the batch whose results are taken next; predict() returns then. */
  signal?: AbortSignal;
}

/** An image with what was found on it. */
export interface Predicted {
  readonly image: ListedImage;
  /** Its file; null where it could not be read. */
  readonly bytes: Uint8Array | null;
  readonly prediction: ImagePrediction;
}

/** What a failure of one image leaves of it; other errors end everything. */
function failed(error: unknown): DlfsError {
  if (error instanceof DlfsError) return error;
  throw error;
}

function predictionOf(image: ListedImage, { width, height, detections, error }: EngineResult): ImagePrediction {
  return {
    ...{ name: image.name, width, height },
    ...(image.imageId !== undefined && { imageId: image.imageId }),
    boxes: Float32Array.from(detections.flatMap(({ box }) => box)),
    scores: Float32Array.from(detections, ({ score }) => score),
    labels: Uint32Array.from(detections, ({ label }) => label),
    ...(error && { error: error.message }),
  };
}

/**
 * Detects on images, and yields batches of results in the order of the images. An image that cannot be read, or is damaged, has
 * a prediction with an error. At most `readAhead` files and `batchesAhead` batches are in memory.
 */
export async function* predict(
  engine: Engine,
  images: Iterable<ListedImage>,
  options: PredictOptions = {},
): AsyncGenerator<Predicted[]> {
  const { maxBatch } = engine;
  const { readAhead = 4 * maxBatch, batchesAhead = 4, scoreThreshold, signal } = options;
  for (const [name, value] of Object.entries({ readAhead, batchesAhead })) {
    check(Number.isSafeInteger(value) && value > 0, "predict", () => `${name}: expected a number from 1, got ${value}`);
  }
  const waiting = images[Symbol.iterator]();
  const reading: { image: ListedImage; bytes: Promise<Uint8Array | DlfsError> }[] = [];
  const detecting: Promise<Predicted[]>[] = [];
  /** Keeps `readAhead` files on their way. */
  const readMore = () => {
    while (reading.length < readAhead && !signal?.aborted) {
      const next = waiting.next();
      if (next.done) return;
      const bytes = next.value.read(signal).catch(failed);
      bytes.catch(() => undefined); // it is awaited with its batch, maybe after another has failed
      reading.push({ image: next.value, bytes });
    }
  };
  const detect = async (batch: { image: ListedImage; bytes: Uint8Array | DlfsError }[]): Promise<Predicted[]> => {
    const read = batch.filter(({ bytes }) => bytes instanceof Uint8Array);
    const found = await engine.detect(
      read.map(({ bytes }) => bytes as Uint8Array),
      { scoreThreshold },
    );
    const results = new Map(read.map(({ image }, i) => [image, found[i] as EngineResult]));
    return batch.map(({ image, bytes }) => {
      const lost = (error: DlfsError): EngineResult => ({ width: 0, height: 0, detections: [], error });
      const result = results.get(image) ?? lost(bytes as DlfsError);
      return { image, bytes: bytes instanceof Uint8Array ? bytes : null, prediction: predictionOf(image, result) };
    });
  };
  try {
    for (readMore(); reading.length > 0 && !signal?.aborted; readMore()) {
      const next = reading.splice(0, maxBatch).map(async ({ image, bytes }) => ({ image, bytes: await bytes }));
      const read = await Promise.allSettled(next);
      // Reads that the signal has ended are no failures: their images are left for another time.
      if (signal?.aborted) break;
      readMore();
      const batch = read.map((one) => {
        if (one.status === "rejected") throw one.reason;
        return one.value;
      });
      const work = detect(batch);
      work.catch(() => undefined); // it is awaited below
      detecting.push(work);
      if (detecting.length >= batchesAhead) yield await (detecting.shift() as Promise<Predicted[]>);
    }
    while (detecting.length > 0) yield await (detecting.shift() as Promise<Predicted[]>);
  } finally {
    await Promise.allSettled([...detecting, ...reading.map(({ bytes }) => bytes)]);
  }
}

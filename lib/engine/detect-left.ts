/** What batch inference does on one device: the images that have no results yet, as messages of a predictions file. */
import { basename, join } from "node:path";
import { type ImagePrediction, type PredictionsHeader, predictionMessages } from "../formats";
import { versionsOf } from "../train";
import type { Engine } from "./engine";
import type { FrameRequest, ImageList, ListedImage } from "./image-list";
import { PictureDrawers } from "./picture-drawers";
import { type Predicted, type PredictOptions, predict } from "./predict";
import { pathInside, withoutExtension } from "./prediction-formats";

/** Threads that draw, at most. */
const MOST_DRAWERS = 8;

/** What a predictions file says of what has made it. */
export type AboutEngine = Pick<PredictionsHeader, "classes" | "model" | "iteration" | "versions">;

export function aboutEngine({ classes, path, iteration, device }: Engine): AboutEngine {
  return { classes: [...classes], model: basename(path), iteration, versions: versionsOf(device) };
}

/** Images that a predictions file has results of. */
export class KnownImages {
  /** Of those that failed, why; of those to be tried again and the others. */
  readonly #failures = new Map<string, { error: string; again: boolean }>();
  readonly #done = new Set<string>();

  /** @param retryFailed tries the damaged again, too, not only those that could not be read */
  constructor(private readonly retryFailed: boolean) {}

  /** Takes note of a prediction of the file, in their order. */
  add({ name, error, unreadable = false }: ImagePrediction): void {
    this.#done.add(name);
    if (error === undefined) this.#failures.delete(name);
    else this.#failures.set(name, { error, again: this.retryFailed || unreadable });
  }

  /** Takes note of an image that was just detected on. */
  note(name: string, error: string | undefined): void {
    if (error === undefined) this.#failures.delete(name);
    else this.#failures.set(name, { error, again: false });
  }

  /** Whether an image needs no work. */
  isDone(name: string): boolean {
    return this.#done.has(name) && !this.#failures.get(name)?.again;
  }

  /** Those that failed, and why. */
  get failures(): Map<string, string> {
    return new Map([...this.#failures].map(([name, { error }]) => [name, error]));
  }
}

/** What was found on some images. */
export interface DetectedBatch {
  /** Of each its message in a predictions file. */
  messages: Uint8Array[];
  names: string[];
  /** Why nothing was found; null where nothing went wrong. */
  errors: (string | null)[];
  /** Objects on all of them. */
  detections: number;
}

export interface DetectLeftOptions extends PredictOptions {
  /** The folder of the results. */
  out: string;
  pictures?: boolean;
  /** Of several processes, which images are this one's. */
  share?: FrameRequest["share"];
}

/** What is heard on the way of a video, whose frames are known as they come. */
export interface FramesHeard {
  onLength?: (frames: number) => void;
  /** So many frames that have results were passed over. */
  onKnown?: (frames: number) => void;
}

/** Detects on what has no results, in order. */
export async function* detectLeft(
  engine: Engine,
  list: ImageList,
  left: readonly ListedImage[],
  known: KnownImages,
  options: DetectLeftOptions,
  { onLength, onKnown }: FramesHeard = {},
): AsyncGenerator<DetectedBatch> {
  const { out, pictures = false, share, signal } = options;
  async function* framesLeft(frames: NonNullable<ImageList["frames"]>): AsyncGenerator<ListedImage> {
    for await (const frame of frames({ signal, share, onLength })) {
      if (known.isDone(frame.name)) onKnown?.(1);
      else yield frame;
    }
  }
  const images = list.frames ? framesLeft(list.frames) : left;
  // Reading and decoding have the other half of the processor.
  const threads = Math.max(1, Math.floor(navigator.hardwareConcurrency / 2 / (share?.count ?? 1)));
  await using drawers = pictures ? new PictureDrawers(engine, Math.min(threads, MOST_DRAWERS)) : null;
  for await (const batch of predict(engine, images, options)) {
    // An image with a prediction has its picture, also after a kill in between.
    if (drawers) await drawAll(drawers, batch, out);
    yield {
      messages: batch.map(({ prediction }) => predictionMessages.encode(prediction)),
      names: batch.map(({ prediction }) => prediction.name),
      errors: batch.map(({ prediction }) => prediction.error ?? null),
      detections: batch.reduce((sum, { prediction }) => sum + prediction.scores.length, 0),
    };
  }
}

/** Draws a batch's pictures; all are over before one that failed is reported. */
async function drawAll(drawers: PictureDrawers, batch: readonly Predicted[], out: string): Promise<void> {
  const drawn = batch.map(async ({ content, prediction }) => {
    if (content === null || prediction.error !== undefined) return;
    const name = `${withoutExtension(pathInside(prediction.name))}.jpg`;
    await drawers.draw(content, prediction, join(out, "pictures", name));
  });
  for (const one of await Promise.allSettled(drawn)) if (one.status === "rejected") throw one.reason;
}

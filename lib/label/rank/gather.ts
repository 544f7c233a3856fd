/** What models say of many images: read in batches, the next while one is detected on. */
import type { Pixels } from "../../data";
import { check, DlfsError } from "../../native/error";
import type { FoundBox } from "./boxes";
import { mirrored } from "./informativeness";
import type { Candidate } from "./rank-images";

/** An image that can be read. */
export interface ReadableImage {
  readonly name: string;
  read(signal?: AbortSignal): Promise<Uint8Array | Pixels>;
}

interface Found {
  readonly width: number;
  readonly height: number;
  readonly detections: readonly FoundBox[];
  readonly error: DlfsError | null;
}

/** What detects: an engine. */
export interface ImageJudge {
  readonly classes: readonly string[];
  /** The most images of one batch. */
  readonly maxBatch: number;
  readonly codec: { decode(bytes: Uint8Array): Pixels };
  detect(images: readonly (Uint8Array | Pixels)[], options: { scoreThreshold: number }): Promise<Found[]>;
  features(
    images: readonly (Uint8Array | Pixels)[],
  ): Promise<{ features: Float32Array | null; error: DlfsError | null }[]>;
}

export interface GatherOptions {
  /** The first one's detections and features count, the others' detections are compared with them. */
  engines: readonly [ImageJudge, ...ImageJudge[]];
  /** Boxes below it count for nothing. */
  scoreThreshold: number;
  /** Also detects on each image's mirror image. */
  mirror: boolean;
  /** Also computes features. */
  features: boolean;
  /** Hears how many images are done. */
  progress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

export interface GatheredImage extends Candidate {
  /** In pixels. */
  readonly width: number;
  readonly height: number;
  /** Its place in the list. */
  readonly place: number;
}

export interface Gathered {
  images: GatheredImage[];
  /** Images that could not be read or decoded, and why. */
  failures: { name: string; error: string }[];
}

/** Left and right changed. */
export function mirrorPixels({ width, height, data }: Pixels): Pixels {
  const out = new Uint8Array(data.length);
  for (let row = 0; row < height; row++) {
    for (let x = 0; x < width; x++) {
      const [from, to] = [3 * (row * width + x), 3 * (row * width + width - 1 - x)];
      out[to] = data[from]!;
      out[to + 1] = data[from + 1]!;
      out[to + 2] = data[from + 2]!;
    }
  }
  return { width, height, data: out };
}

/** @throws DlfsError naming the model whose classes are others than the first's */
export function checkSameClasses(
  engines: readonly { readonly classes: readonly string[]; readonly path: string }[],
): void {
  const [first] = engines;
  for (const { classes, path } of engines) {
    check(
      classes.join("\n") === first?.classes.join("\n"),
      path,
      () => `expected the classes of ${first?.path}, ${first?.classes.join(", ")}, got ${classes.join(", ")}`,
    );
  }
}

type Bytes = Uint8Array | Pixels;

/** A batch's images, or why one cannot be read. */
async function readBatch(images: readonly ReadableImage[], signal?: AbortSignal): Promise<(Bytes | DlfsError)[]> {
  return await Promise.all(
    images.map(async (image) => {
      try {
        return await image.read(signal);
      } catch (error) {
        if (error instanceof DlfsError) return error;
        throw error;
      }
    }),
  );
}

/**
 * Detects on images with all engines, and gathers what ranking needs. A bad image is among the failures.
 *
 * @throws the signal's reason when it is aborted
 */
export async function gatherCandidates(list: readonly ReadableImage[], options: GatherOptions): Promise<Gathered> {
  const { engines, progress, signal } = options;
  const [{ maxBatch }] = engines;
  const out: Gathered = { images: [], failures: [] };
  const next = (at: number) => {
    const reading = at < list.length ? readBatch(list.slice(at, at + maxBatch), signal) : null;
    reading?.catch(() => {}); // reported where it is awaited
    return reading;
  };
  let reading = next(0);
  for (let at = 0; reading; at += maxBatch) {
    const batch = await reading;
    signal?.throwIfAborted();
    reading = next(at + maxBatch);
    progress?.(at, list.length);
    await judge(batch, list, at, options, out);
  }
  progress?.(list.length, list.length);
  return out;
}

async function judge(
  batch: readonly (Bytes | DlfsError)[],
  list: readonly ReadableImage[],
  at: number,
  { engines, scoreThreshold, mirror, features: withFeatures }: GatherOptions,
  out: Gathered,
): Promise<void> {
  const fail = (i: number, error: DlfsError) => {
    out.failures.push({ name: (list[at + i] as ReadableImage).name, error: error.message });
  };
  const good: { place: number; image: Bytes; found: Found }[] = [];
  const [engine, ...committee] = engines;
  const readable = batch.flatMap((image, i) => {
    if (!(image instanceof DlfsError)) return [{ i, image }];
    fail(i, image);
    return [];
  });
  const found = await engine.detect(
    readable.map(({ image }) => image),
    { scoreThreshold },
  );
  for (const [k, { i, image }] of readable.entries()) {
    const one = found[k] as Found;
    if (one.error) fail(i, one.error);
    else good.push({ place: at + i, image, found: one });
  }
  const images = good.map(({ image }) => image);
  const others: FoundBox[][][] = good.map(() => []);
  for (const other of committee) {
    const results = await other.detect(images, { scoreThreshold });
    for (const [k, { detections }] of results.entries()) others[k]!.push([...detections]);
  }
  if (mirror) {
    const flipped = images.map((image) =>
      mirrorPixels(image instanceof Uint8Array ? engine.codec.decode(image) : image),
    );
    const results = await engine.detect(flipped, { scoreThreshold });
    for (const [k, { detections, width }] of results.entries()) others[k]!.push(mirrored(detections, width));
  }
  const features = withFeatures ? await engine.features(images) : [];
  for (const [k, { place, found: one }] of good.entries()) {
    const row = features[k]?.features;
    out.images.push({
      ...{ name: (list[place] as ReadableImage).name, place, width: one.width, height: one.height },
      ...{ found: one.detections, others: others[k] as FoundBox[][] },
      ...(row && { features: row }),
    });
  }
}

/** Features of images, those that cannot be read left out. */
export async function gatherFeatures(
  list: readonly ReadableImage[],
  engine: ImageJudge,
  options: Pick<GatherOptions, "progress" | "signal"> = {},
): Promise<Float32Array[]> {
  const rows: Float32Array[] = [];
  for (let at = 0; at < list.length; at += engine.maxBatch) {
    options.signal?.throwIfAborted();
    options.progress?.(at, list.length);
    const batch = await readBatch(list.slice(at, at + engine.maxBatch), options.signal);
    const images = batch.filter((image): image is Bytes => !(image instanceof DlfsError));
    for (const { features } of await engine.features(images)) if (features) rows.push(features);
  }
  options.progress?.(list.length, list.length);
  return rows;
}

import { randomUUID } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { check, ErrorCode } from "../native/error";
import { cacheFolder } from "./cache";
import { drawScene } from "./demo-scene";
import { SHAPES } from "./demo-shapes";
import { fileError, isMissing } from "./local-data-source";
import { type ProgressListener, showProgress, yieldToEventLoop } from "./progress";
import { CounterRandom } from "./random";

/** Raised with every change of what the generator draws. */
export const DEMO_VERSION = 2;

const STAMP = "demo.json";

export interface DemoOptions {
  /** Encodes (height, width, 3) RGB pixels as a JPEG of a quality of 1 to 100. */
  encode(pixels: Uint8Array, width: number, height: number, quality: number): Uint8Array;
  seed?: number;
  /** Images in train2017 and val2017. */
  train?: number;
  val?: number;
  /** Width and height of each image. */
  size?: number;
  progress?: ProgressListener;
  signal?: AbortSignal;
}

/** Where the demo data set is kept: a folder that need not exist. */
export function demoFolder(): string {
  return join(cacheFolder(), `demo-v${DEMO_VERSION}`);
}

/**
 * Makes the demo data set, unless it is there already: JPEGs of eight kinds of drawn shapes in COCO's layout
 * (annotations/instances_{train,val}2017.json, train2017/, val2017/). Each image depends on the seed, its split and its number
 * alone. The folder appears complete or not at all, and is replaced when it is of another version or other options; a folder
 * that something else made is left alone and is an error. Whether it had to be made.
 */
export async function generateDemo(dir: string, options: DemoOptions): Promise<boolean> {
  const { encode, seed = 1, train = 1200, val = 200, size = 192, progress = showProgress(), signal } = options;
  for (const [name, value, least] of [
    ["train", train, 1],
    ["val", val, 1],
    ["size", size, 64],
  ] as const) {
    check(
      Number.isSafeInteger(value) && value >= least,
      "generateDemo",
      () => `${name} must be an integer >= ${least}, got ${value}`,
    );
  }
  const folder = resolve(dir);
  const stamp = `${JSON.stringify({ dlfsDemo: DEMO_VERSION, seed, train, val, size })}\n`;
  if ((await readStamp(folder)) === stamp) return false;

  const partial = `${folder}.partial-${randomUUID()}`;
  try {
    await removeAbandoned(folder);
    await mkdir(join(partial, "annotations"), { recursive: true });
    const total = train + val;
    progress("drawing the demo data set", 0, total);
    for (const [split, first, count] of [
      ["train2017", 0, train],
      ["val2017", train, val],
    ] as const) {
      await mkdir(join(partial, split));
      const content = emptyAnnotations();
      for (let i = 0; i < count; i++) {
        signal?.throwIfAborted();
        const bytes = drawImage(content, { seed, split, id: first + i + 1, size, encode });
        await writeFile(join(partial, split, content.images[i]?.file_name as string), bytes);
        progress("drawing the demo data set", first + i + 1, total);
        await yieldToEventLoop();
      }
      await writeFile(join(partial, "annotations", `instances_${split}.json`), JSON.stringify(content));
    }
    await writeFile(join(partial, STAMP), stamp);
    await moveInto(partial, folder, stamp);
  } catch (error) {
    await rm(partial, { recursive: true, force: true }).catch(() => {}); // what failed first is what to report
    if (signal?.aborted) throw signal.reason;
    throw fileError("generateDemo", folder, error);
  }
  return true;
}

function emptyAnnotations() {
  return {
    info: { description: `dlfs demo data set, version ${DEMO_VERSION}`, version: String(DEMO_VERSION) },
    licenses: [],
    images: [] as { id: number; file_name: string; width: number; height: number }[],
    annotations: [] as {
      id: number;
      image_id: number;
      category_id: number;
      bbox: [number, number, number, number];
      area: number;
      iscrowd: 0;
    }[],
    categories: SHAPES.map(({ name }, i) => ({ id: i + 1, name, supercategory: "shape" })),
  };
}

interface ImageOptions {
  seed: number;
  split: string;
  id: number;
  size: number;
  encode: DemoOptions["encode"];
}

/** Draws the image of an id, adds what it shows to the annotations, and gives its JPEG. */
function drawImage(
  { images, annotations }: ReturnType<typeof emptyAnnotations>,
  { seed, split, id, size, encode }: ImageOptions,
): Uint8Array {
  // The splits' images are drawn from streams of their own: more of one does not change the other.
  const operation = split === "train2017" ? 0 : 1;
  const random = new CounterRandom({ seed, epoch: 0, image: images.length, operation });
  const { pixels, objects } = drawScene(size, random);
  const quality = 80 + random.integer(16);
  images.push({ id, file_name: `${String(id).padStart(12, "0")}.jpg`, width: size, height: size });
  for (const { shape, x, y, width, height, area } of objects) {
    annotations.push({
      // Unique over both splits: an image has at most 8 objects.
      id: 16 * id + annotationsOf(annotations, id),
      image_id: id,
      category_id: shape + 1,
      bbox: [x, y, width, height],
      area,
      iscrowd: 0,
    });
  }
  return encode(pixels, size, size, quality);
}

function annotationsOf(annotations: readonly { image_id: number }[], imageId: number): number {
  let count = 0;
  while (annotations[annotations.length - 1 - count]?.image_id === imageId) count++;
  return count;
}

async function readStamp(folder: string): Promise<string | null> {
  try {
    return await readFile(join(folder, STAMP), "utf8");
  } catch (error) {
    if (isMissing(error)) return null;
    throw fileError("generateDemo", join(folder, STAMP), error);
  }
}

/** Renames the finished folder into place, over an older demo but over nothing else. */
async function moveInto(partial: string, folder: string, stamp: string): Promise<void> {
  const present = await readdir(folder).catch((error) => {
    if (isMissing(error)) return null;
    throw error;
  });
  if (present && present.length > 0) {
    const old = await readStamp(folder);
    const ours = old?.includes("dlfsDemo") ?? false;
    check(ours, "generateDemo", () => `${folder} exists and was not made by generateDemo`, ErrorCode.io);
    const aside = `${folder}.partial-${randomUUID()}`;
    await rename(folder, aside);
    await rm(aside, { recursive: true, force: true });
  }
  try {
    await rename(partial, folder);
  } catch (error) {
    // Another process may have made the same folder in the meantime.
    if ((await readStamp(folder)) !== stamp) throw error;
    await rm(partial, { recursive: true, force: true });
  }
}

/** Removes what killed runs left behind: partial folders that nothing has been written to for an hour. */
async function removeAbandoned(folder: string): Promise<void> {
  const parent = dirname(folder);
  const names = await readdir(parent).catch(() => [] as string[]);
  for (const name of names) {
    if (!name.startsWith(`${basename(folder)}.partial-`)) continue;
    const path = join(parent, name);
    const newest = await Promise.all(
      [path, join(path, "train2017"), join(path, "val2017")].map((p) =>
        stat(p).then(
          (info) => info.mtimeMs,
          () => 0,
        ),
      ),
    );
    if (Date.now() - Math.max(...newest) > 3_600_000) await rm(path, { recursive: true, force: true });
  }
}

/** The JPEG files that `dlfs bench data` loads where it is given none. */
import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cacheFolder, type ImageCodec, type Pixels } from "../data";
import type { Precision } from "./measure";

/** What benches of images have in common. */
export interface ImageBenchSettings {
  /** A folder of JPEGs; default: drawn ones, made in the cache folder. */
  images?: string;
  /** How many of them are used at most, or drawn. */
  files: number;
  /** Images of a batch. */
  batch: number;
  /** Of the network inputs. */
  size: readonly [height: number, width: number];
  precision: Precision;
  /** Decoding threads; 0: as many as the device's decoder chooses. */
  threads: number;
  /** Per cent of the images that a GPU's JPEG engines decode; see DeviceBatchDecoderOptions. */
  hardware: number;
  repetitions: number;
}

/** Raised with every change of what is drawn. */
const VERSION = 1;

/** Different pictures; further files are copies of them, which decode as long and lie elsewhere in the page cache. */
export const PICTURES = 64;

export const PICTURE_SIZE: readonly [height: number, width: number] = [480, 640];
export const QUALITY = 90;

/** Where the files are, made when they are missing: 640x480 at quality 90, of about 110 KB each, as photographs have. */
export function benchImages(
  codec: Pick<ImageCodec, never> & { encode(pixels: Pixels, quality: number): Uint8Array },
  files: number,
): string {
  const folder = join(cacheFolder(), `bench-images-v${VERSION}-${files}`);
  if (existsSync(folder)) return folder;
  const partial = `${folder}.${process.pid}.partial`;
  mkdirSync(partial, { recursive: true });
  const encoded: Uint8Array[] = [];
  for (let i = 0; i < files; i++) {
    encoded[i % PICTURES] ??= codec.encode(drawPicture(i), QUALITY);
    writeFileSync(join(partial, `${String(i).padStart(6, "0")}.jpg`), encoded[i % PICTURES] as Uint8Array);
  }
  renameSync(partial, folder);
  return folder;
}

/**
 * Noise whose amplitude falls with its frequency, as in photographs: octaves of lattices between which values are interpolated,
 * brightness in all of them and colour in the coarse ones.
 */
export function drawPicture(seed: number): Pixels {
  const [height, width] = PICTURE_SIZE;
  let state = Math.imul(seed + 1, 2654435761) >>> 0;
  const random = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  const planes = [0, 1, 2].map(() => new Float32Array(width * height));
  for (let step = 160; step >= 1; step /= 2) {
    const cell = Math.max(1, Math.round(step));
    for (const plane of cell >= 10 ? planes : planes.slice(0, 1)) {
      addNoise(plane, cell, 9 + 1.2 * cell ** 0.75, random);
    }
  }
  const [light, red, blue] = planes as [Float32Array, Float32Array, Float32Array];
  const data = new Uint8ClampedArray(3 * width * height);
  for (let i = 0; i < light.length; i++) {
    const y = 120 + (light[i] as number);
    const [r, b] = [0.5 * (red[i] as number), 0.5 * (blue[i] as number)];
    data[3 * i] = y + r;
    data[3 * i + 1] = y - 0.5 * (r + b);
    data[3 * i + 2] = y + b;
  }
  return { width, height, data: new Uint8Array(data.buffer) };
}

/** Adds values of a lattice of `cell` pixels, from -amplitude to amplitude, linearly interpolated. */
function addNoise(plane: Float32Array, cell: number, amplitude: number, random: () => number): void {
  const [height, width] = PICTURE_SIZE;
  const columns = Math.ceil(width / cell) + 2;
  const lattice = Float32Array.from(
    { length: columns * (Math.ceil(height / cell) + 2) },
    () => 2 * amplitude * random(),
  );
  for (let y = 0; y < height; y++) {
    const row = Math.floor(y / cell) * columns;
    const v = (y % cell) / cell;
    for (let x = 0; x < width; x++) {
      const at = row + Math.floor(x / cell);
      const u = (x % cell) / cell;
      const top = (lattice[at] as number) * (1 - u) + (lattice[at + 1] as number) * u;
      const bottom = (lattice[at + columns] as number) * (1 - u) + (lattice[at + columns + 1] as number) * u;
      (plane[y * width + x] as number) += top * (1 - v) + bottom * v;
    }
  }
}

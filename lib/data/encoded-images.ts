/** What native decoding threads are given, and what they say of it. */
import { check, fromCString } from "../native";
import { type Device, PinnedBuffer, until } from "../tensor";
import type { DecodeFailure, EncodedImage } from "./codec";

/**
 * The share of JPEGs, in per cent, that a GPU's JPEG engines decode unless a decoder is told otherwise: all that they take. On an
 * H100 they were faster with next to no work for the processor than 16 threads with all of it (results/data-path.md).
 */
export const ENGINE_SHARE = 100;

/** Where images are, as dlfs_decoder_submit takes it. */
export interface StagedImages {
  sources: BigInt64Array;
  lengths: BigInt64Array;
  paths: Uint8Array;
  pathBytes: number;
}

/** Pinned memory for the images of one job at a time, as large as the largest job so far needed. */
export class ImageStaging implements Disposable {
  #buffer: PinnedBuffer | null = null;

  constructor(private readonly device: Device) {}

  /** Copies what is in memory to pinned memory, where native threads read it; files they read themselves. */
  stage(images: readonly EncodedImage[]): StagedImages {
    const offsets: number[] = [];
    const names: string[] = [];
    let [total, pathBytes] = [0, 0];
    for (const image of images) {
      if (typeof image === "string") {
        check(image !== "" && !image.includes("\0"), "decode", () => `${JSON.stringify(image)} is no path`);
        offsets.push(pathBytes);
        names.push(`${image}\0`);
        pathBytes += Buffer.byteLength(image) + 1;
      } else {
        offsets.push(total);
        total += Math.ceil(image.byteLength / 64) * 64;
      }
    }
    if (total > (this.#buffer?.byteLength ?? 0)) {
      this.#buffer?.dispose();
      this.#buffer = null;
      // Some room to spare, so that batches of varying size do not allocate again and again.
      this.#buffer = new PinnedBuffer(this.device, Math.ceil(total * 1.25));
    }
    const address = this.#buffer?.address ?? 0;
    const sources = new BigInt64Array(images.length);
    const lengths = new BigInt64Array(images.length);
    for (const [i, image] of images.entries()) {
      const offset = offsets[i] as number;
      if (typeof image !== "string" && image.byteLength > 0) this.#buffer?.bytes.set(image, offset);
      sources[i] = BigInt(typeof image === "string" ? offset : address + offset);
      lengths[i] = typeof image === "string" ? -1n : BigInt(image.byteLength);
    }
    const paths = new Uint8Array(Math.max(1, pathBytes));
    new TextEncoder().encodeInto(names.join(""), paths);
    return { sources, lengths, paths, pathBytes };
  }

  [Symbol.dispose](): void {
    this.#buffer?.dispose();
  }
}

/** Room for a path, which Linux limits to 4096 bytes, and for what is wrong with the file. */
const MESSAGE_BYTES = 5120;

/** Knows how long jobs take from those before, by how many images they have and by their bytes. */
export class JobTimes {
  /** Milliseconds for a byte, by the number of images. */
  readonly #known = new Map<number, number>();

  /** Milliseconds; 0 where nothing is known. */
  expected(images: number, bytes: number): number {
    return bytes * (this.#known.get(images) ?? 0);
  }

  /** The shortest counts, as others have waited for one before them; what takes longer than it did is believed by and by. */
  learn(images: number, bytes: number, milliseconds: number): void {
    const found = milliseconds / Math.max(1, bytes);
    const known = this.#known.get(images) ?? found;
    this.#known.set(images, found < known ? found : 0.9 * known + 0.1 * found);
  }
}

/**
 * Waits for a job of n images, releases it, and gives what failed.
 *
 * @param expected milliseconds that it will take, as far as is known
 */
export async function finishJob({ native }: Device, job: number, n: number, expected = 0): Promise<DecodeFailure[]> {
  try {
    await until(() => native.jobQuery(job) === 0, expected);
    const status = new Int32Array(n);
    native.jobResults(job, status);
    const text = new Uint8Array(MESSAGE_BYTES);
    return [...status].flatMap((code, index) => {
      if (code === 0) return [];
      native.jobMessage(job, text, text.byteLength, index);
      return [{ index, code, message: fromCString(text) }];
    });
  } finally {
    native.jobDestroy(job);
  }
}

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

/** Waits for a job of n images, releases it, and gives what failed. */
export async function finishJob({ native }: Device, job: number, n: number): Promise<DecodeFailure[]> {
  try {
    await until(() => native.jobQuery(job) === 0);
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

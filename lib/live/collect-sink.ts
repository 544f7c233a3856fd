/** What a bus says, kept in a folder with its images as files, ready to be labelled. */
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { LocalDataSource } from "../data";
import { decodeMessage, encodeMessage, makeFolder } from "../formats";
import type { LiveSink } from "./bus";
import { FileSink } from "./live-file";

export interface CollectOptions {
  /** The most bytes of the folder's images and messages; samples that come then are not kept, and counted. Default 1 GiB. */
  maxBytes?: number;
  /** Told once of each row of failures. Default: a warning on the console. */
  onError?: (error: Error) => void;
}

/**
 * Writes messages to FOLDER/live.dlvs, and the images of samples beside it, FOLDER/images/NAME, in which case the file has them
 * without their thumbnails. An image that is there already is not written again. What cannot be written, on a full disk say, is not
 * kept, and counted.
 */
export class CollectSink implements LiveSink {
  readonly name: string;
  #missed = 0;
  #failed = false;

  private constructor(
    private readonly source: LocalDataSource,
    private readonly file: FileSink,
    private readonly maxBytes: number,
    private bytes: number,
    private readonly onError: (error: Error) => void,
  ) {
    this.name = source.root;
  }

  /** @throws DlfsError where the folder cannot be made, or the file in it is damaged or another one */
  static async open(folder: string, options: CollectOptions = {}): Promise<CollectSink> {
    const { maxBytes = 2 ** 30, onError = ({ message }) => console.warn(`warning: ${message}`) } = options;
    await makeFolder(join(folder, "images"));
    const file = await FileSink.open(join(folder, "live.dlvs"), { onError });
    return new CollectSink(new LocalDataSource(folder), file, maxBytes, await bytesIn(folder), onError);
  }

  /** Samples that were not kept. */
  get missed(): number {
    return this.#missed;
  }

  async send(frames: readonly Uint8Array[]): Promise<void> {
    const kept: Uint8Array[] = [];
    for (const frame of frames) {
      const without = await this.#keepImage(frame);
      if (!without) continue;
      kept.push(without);
      this.bytes += without.length;
    }
    if (kept.length > 0) await this.file.send(kept);
  }

  async close(): Promise<void> {
    await this.file.close();
  }

  /** A message without its image, which is in a file of its own now; null for a sample that is not kept. */
  async #keepImage(frame: Uint8Array): Promise<Uint8Array | null> {
    const message = decodeMessage(frame, this.name);
    if (message?.type !== "sample") return frame;
    const { thumbnail, ...value } = message.value;
    if (!thumbnail) return frame;
    try {
      if (this.bytes + thumbnail.length > this.maxBytes) {
        throw new Error(`${this.name}: its limit of ${this.maxBytes} bytes is reached; images are not kept`);
      }
      const key = `images/${value.predictions.name}`;
      if (!(await this.source.stat(key))) {
        await this.source.write(key, thumbnail);
        this.bytes += thumbnail.length;
      }
      this.#failed = false;
      return encodeMessage({ type: "sample", value });
    } catch (error) {
      if (!this.#failed) this.onError(error as Error);
      this.#failed = true;
      this.#missed++;
      return null;
    }
  }
}

async function bytesIn(folder: string): Promise<number> {
  let bytes = 0;
  for (const name of await readdir(folder, { recursive: true })) {
    const found = await stat(join(folder, name)).catch(() => null); // removed meanwhile
    if (found?.isFile()) bytes += found.size;
  }
  return bytes;
}

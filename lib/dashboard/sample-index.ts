/** The samples of a live file: what a model made of images, found again without keeping their bytes. */
import { stat } from "node:fs/promises";
import type { SampleMessage } from "../formats";
import { fileError } from "../formats/atomic-file";
import { LiveFileReader } from "../live";
import { check, DlfsError, ErrorCode } from "../native/error";

interface SamplePlace {
  readonly iteration: number;
  readonly name: string;
  /** Of the message's frame in the file. */
  readonly position: number;
}

/** Where samples are in a live file that grows. */
export class SampleIndex {
  /** Names of the classes, by label, as the training said at its start. */
  classes: readonly string[] = [];
  #places: SamplePlace[] = [];
  #position = 0;
  #inode = 0;
  #reading: Promise<void> = Promise.resolve();

  constructor(readonly path: string) {}

  /** By their numbers. */
  get places(): readonly SamplePlace[] {
    return this.#places;
  }

  /** Another text, other samples; empty where there are none. */
  get version(): string {
    const last = this.#places.at(-1);
    return last ? `${this.#inode}-${this.#places.length}-${last.position}` : "";
  }

  /** Reads what has come since the last call. A file that is not there is empty. */
  async refresh(): Promise<void> {
    const reading = this.#reading.then(() => this.#readOn());
    this.#reading = reading.catch(() => undefined);
    await reading;
  }

  /** @throws DlfsError where there is no such sample, or the file is damaged there */
  async read(index: number): Promise<SampleMessage> {
    const place = this.#places[index];
    check(place !== undefined, this.path, () => `it has no sample ${index}`);
    await using reader = await LiveFileReader.open(this.path, place.position);
    for await (const message of reader.messages()) if (message.type === "sample") return message.value;
    throw new DlfsError(ErrorCode.io, this.path, `sample ${index} is there no more`);
  }

  async #readOn(): Promise<void> {
    try {
      const { ino, size } = await stat(this.path);
      if (ino !== this.#inode || size < this.#position) {
        [this.#inode, this.#position, this.#places] = [ino, 0, []];
      }
      if (size === this.#position) return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      throw fileError(this.path, "read the live file", error);
    }
    await using reader = await LiveFileReader.open(this.path, this.#position);
    for await (const message of reader.messages()) {
      const position = this.#position;
      this.#position = reader.position;
      if (message.type === "sample") {
        const { iteration, predictions } = message.value;
        this.#places.push({ iteration, name: predictions.name, position });
      } else if (message.type === "event" && message.value.kind === "started") this.classes = message.value.classes;
    }
    this.#position = reader.position;
  }
}

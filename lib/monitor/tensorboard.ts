/** Event files of TensorBoard: what `tensorboard --logdir runs` shows of a training. */
import { closeSync, fsyncSync, mkdirSync, openSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { fileError } from "../formats/atomic-file";
import { ProtoWriter } from "../formats/protobuf";
import { encodeTfRecord } from "../formats/tfrecord";

export interface TensorBoardOptions {
  /** Steps done, where a training goes on: what the files of its earlier part say of later ones is hidden. Default 0. */
  from?: number;
  /** Milliseconds since 1970-01-01 UTC. Default: `Date.now`. */
  clock?: () => number;
}

/** An encoded picture. */
export interface EncodedPicture {
  /** JPEG or PNG. */
  readonly bytes: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/** Intervals of a histogram. */
const BUCKETS = 64;

/** Files that this process has begun: their names must differ. */
let begun = 0;

/**
 * Appends to one event file (`events.out.tfevents.*`); each call is a record on the disk, so that a TensorBoard that is running shows
 * it. Names are grouped by what stands before their first slash. A folder may have several such files, one for each time that a
 * training went on.
 */
export class TensorBoardWriter implements Disposable {
  readonly path: string;
  readonly #clock: () => number;
  #fd: number | null;

  /** Makes the folder and a file in it. Throws DlfsError where that cannot be written. */
  constructor(folder: string, { from = 0, clock = Date.now }: TensorBoardOptions = {}) {
    this.#clock = clock;
    const seconds = Math.floor(clock() / 1000);
    this.path = join(folder, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}.${begun++}`);
    try {
      mkdirSync(folder, { recursive: true });
      this.#fd = openSync(this.path, "ax");
    } catch (error) {
      throw fileError(this.path, "create", error);
    }
    this.#event(0, (event) => event.text(3, "brain.Event:2"));
    // SessionLog with status START: at each but the first, TensorBoard drops what it has of this step and later ones.
    this.#event(from + 1, (event) => event.message(7, (log) => log.int(1, 1)));
  }

  /** Numbers by name, as curves over the steps. `step`, here and below: how many are done. */
  scalars(step: number, values: Readonly<Record<string, number>>): void {
    const entries = Object.entries(values);
    if (entries.length === 0) return;
    this.#event(step, (event) =>
      event.message(5, (summary) => {
        for (const [name, value] of entries) summary.message(1, (entry) => entry.text(1, name).float(2, value));
      }),
    );
  }

  image(step: number, name: string, { bytes, width, height }: EncodedPicture): void {
    this.#value(step, name, (entry) =>
      entry.message(4, (image) => image.int(1, height).int(2, width).int(3, 3).bytes(4, bytes)),
    );
  }

  /** The distribution of numbers, those that are not finite left out; nothing where no others are. */
  histogram(step: number, name: string, values: Float32Array): void {
    const found = histogramOf(values);
    if (!found) return;
    const { min, max, count, sum, squares, limits, counts } = found;
    this.#value(step, name, (entry) =>
      entry.message(5, (histogram) =>
        histogram
          .double(1, min)
          .double(2, max)
          .double(3, count)
          .double(4, sum)
          .double(5, squares)
          .doubles(6, limits)
          .doubles(7, counts),
      ),
    );
  }

  /** Text, shown as Markdown. */
  text(step: number, name: string, markdown: string): void {
    // A tensor of one string (DataType 7) for the plugin "text".
    this.#value(step, name, (entry) =>
      entry
        .message(8, (tensor) =>
          tensor
            .int(1, 7)
            .message(2, (shape) => shape.message(2, (size) => size.int(1, 1)))
            .text(8, markdown),
        )
        .message(9, (metadata) => metadata.message(1, (plugin) => plugin.text(1, "text"))),
    );
  }

  #value(step: number, name: string, build: (entry: ProtoWriter) => void): void {
    this.#event(step, (event) =>
      event.message(5, (summary) => summary.message(1, (entry) => build(entry.text(1, name)))),
    );
  }

  #event(step: number, build: (event: ProtoWriter) => void): void {
    const event = new ProtoWriter().double(1, this.#clock() / 1000).int(2, step);
    build(event);
    const record = encodeTfRecord(Buffer.concat(event.parts as Uint8Array[]));
    if (this.#fd === null) throw fileError(this.path, "write", new Error("it is closed"));
    try {
      for (let done = 0; done < record.length; ) done += writeSync(this.#fd, record, done, record.length - done);
    } catch (error) {
      throw fileError(this.path, "write", error);
    }
  }

  /** Makes what was written durable. */
  close(): void {
    if (this.#fd === null) return;
    const fd = this.#fd;
    this.#fd = null;
    try {
      fsyncSync(fd);
      closeSync(fd);
    } catch (error) {
      throw fileError(this.path, "close", error);
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

export interface Histogram {
  readonly min: number;
  readonly max: number;
  readonly count: number;
  readonly sum: number;
  readonly squares: number;
  /** Upper ends of the intervals; the last is `max`. */
  readonly limits: number[];
  readonly counts: number[];
}

/** Counts finite numbers in intervals of equal width between the least and the greatest; null where there are none. */
export function histogramOf(values: Float32Array): Histogram | null {
  let [min, max, count, sum, squares] = [Infinity, -Infinity, 0, 0, 0];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < min) min = value;
    if (value > max) max = value;
    sum += value;
    squares += value * value;
    count++;
  }
  if (count === 0) return null;
  if (min === max) return { min, max, count, sum, squares, limits: [max], counts: [count] };
  const counts = new Array<number>(BUCKETS).fill(0);
  const scale = BUCKETS / (max - min);
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    const bucket = Math.min(BUCKETS - 1, Math.floor((value - min) * scale));
    counts[bucket] = (counts[bucket] as number) + 1;
  }
  const limits = counts.map((_, i) => (i === BUCKETS - 1 ? max : min + ((i + 1) * (max - min)) / BUCKETS));
  return { min, max, count, sum, squares, limits, counts };
}

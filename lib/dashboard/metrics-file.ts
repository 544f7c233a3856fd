/** A metrics.jsonl as curves, read on as it grows. */
import { open, stat } from "node:fs/promises";
import { fileError } from "../formats/atomic-file";
import { type MetricsLine, parseMetrics } from "../monitor";
import { Curve } from "./curve";

const READ_BYTES = 1 << 20;
/** Numbers of a "train" line that are no losses. */
const OTHERS = new Set([
  ...["epoch", "learningRate", "gradNorm", "imagesPerSecond", "waitShare", "memory", "secondsLeft", "seconds"],
  ...["lossScale", "overflows", "loss"],
]);

/** The curves of one file. Their names are "train/loss", "evaluation/AP"; x is the number of steps done. */
export class MetricsFile {
  /** Changes when the file was replaced, so that curves begin anew. */
  generation = 0;
  /** When the first and the last line were written, in milliseconds since 1970. */
  started: number | null = null;
  written: number | null = null;
  iteration = 0;
  #curves = new Map<string, Curve>();
  /** The latest number of each curve whose latest line had it. */
  #evaluation: MetricsLine | null = null;
  #position = 0;
  #inode = 0;
  #rest = "";
  #decoder = new TextDecoder();
  #reading: Promise<void> = Promise.resolve();

  constructor(readonly path: string) {}

  get curves(): ReadonlyMap<string, Curve> {
    return this.#curves;
  }

  /** The last line about an evaluation. */
  get evaluation(): MetricsLine | null {
    return this.#evaluation;
  }

  /** Reads what has come since the last call. A file that is not there yet is empty. */
  async refresh(): Promise<void> {
    const reading = this.#reading.then(() => this.#readOn());
    this.#reading = reading.catch(() => undefined);
    await reading;
  }

  async #readOn(): Promise<void> {
    try {
      const { ino, size } = await stat(this.path);
      if (ino !== this.#inode || size < this.#position) this.#restart(ino);
      if (size === this.#position) return;
      await using file = await open(this.path, "r");
      const buffer = new Uint8Array(READ_BYTES);
      while (this.#position < size) {
        const { bytesRead } = await file.read(buffer, 0, READ_BYTES, this.#position);
        if (bytesRead === 0) break;
        this.#position += bytesRead;
        const text = this.#rest + this.#decoder.decode(buffer.subarray(0, bytesRead), { stream: true });
        const end = text.lastIndexOf("\n") + 1;
        this.#rest = text.slice(end);
        for (const line of parseMetrics(text.slice(0, end))) this.#take(line);
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      throw fileError(this.path, "read the metrics", error);
    }
  }

  #restart(inode: number): void {
    if (this.#inode !== 0) this.generation++;
    this.#inode = inode;
    this.#curves = new Map();
    this.#evaluation = this.started = this.written = null;
    [this.#position, this.#rest, this.iteration] = [0, "", 0];
    this.#decoder = new TextDecoder();
  }

  #take(line: MetricsLine): void {
    const { kind, iteration, time, ...values } = line;
    if (typeof kind !== "string" || typeof iteration !== "number") return;
    const done = kind === "train" ? iteration + 1 : iteration;
    this.iteration = done;
    if (typeof time === "number") {
      this.started ??= time;
      this.written = time;
    }
    let [loss, losses] = [0, 0];
    for (const [name, value] of Object.entries(values)) {
      if (typeof value !== "number") continue;
      this.#push(`${kind}/${name}`, done, value);
      if (OTHERS.has(name)) continue;
      loss += value;
      losses++;
    }
    if (losses > 0 && kind === "train" && values.loss === undefined) this.#push("train/loss", done, loss);
    if (kind === "evaluation") this.#evaluation = line;
  }

  #push(name: string, x: number, y: number): void {
    let curve = this.#curves.get(name);
    if (!curve) {
      curve = new Curve();
      this.#curves.set(name, curve);
    }
    curve.push(x, y);
  }
}

import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { fileError, makeFolder, writeFileAtomic } from "../formats/atomic-file";
import { check } from "../native/error";

/** One line of metrics.jsonl. Numbers that JSON lacks are written as "NaN", "Infinity" and "-Infinity". */
export interface MetricsLine {
  /** What happened: "train", "evaluation", ... */
  kind: string;
  iteration: number;
  /** Milliseconds since 1970-01-01 UTC; default: now. */
  time?: number;
  [name: string]: unknown;
}

export interface RunFolderOptions {
  /** Start of the folder's name; letters, digits, dot, dash and underscore. */
  name: string;
  /** Where runs lie. Default "runs" in the current folder. */
  root?: string;
  /** Lines for the end of README.txt, such as the command that continues this run. */
  notes?: (path: string) => string[];
  /** Milliseconds since 1970-01-01 UTC. Default: `Date.now`. */
  clock?: () => number;
}

const FILES = [
  ["config.json", "The resolved configuration: every option, also those left at their default."],
  ["dataset.json", "How many images and boxes there are, by split, class and size."],
  [
    "metrics.jsonl",
    "One JSON object per line, written as training goes: kind (train, epoch, evaluation, ...), iteration, time",
  ],
  ["", "(milliseconds since 1970 UTC) and numbers by name. A resumed run goes on in the same file, without the"],
  ["", "lines of steps that it does again. NaN and Infinity are written as text."],
  ["log.txt", "What was printed while it ran, each line with its time (UTC)."],
  ["checkpoints/", "checkpoint-<iteration>.dlck: weights, optimizer and all else that resuming needs. The newest few"],
  ["", "and the best one stay."],
  [
    "evaluations/",
    "evaluation-<iteration>.dlvs: what was found on each image, for dlfs dashboard. The newest ones stay.",
  ],
  ["pictures/", "Predictions beside ground truth, one picture per evaluation. Of the last evaluation, for a browser:"],
  ["", "confusion-matrix.svg (which class is taken for which, or missed), pr-curve.svg (precision over"],
  ["", "recall), f1-curve.svg (F1 over the score threshold, with the best threshold of each class)."],
  [
    "tensorboard/",
    "What TensorBoard shows, where it was asked for: tensorboard --logdir with this folder, or the one above.",
  ],
  ["summary.json", "The results; written when the run ends."],
] as const;

/** The folder of a training run: `<root>/<name>-<number>`, with a README.txt that explains its files. */
export class RunFolder {
  private readonly metrics: number;
  private readonly log: number;

  private constructor(
    /** Absolute. */
    readonly path: string,
    private readonly clock: () => number,
  ) {
    this.metrics = openForAppend(join(path, "metrics.jsonl"));
    this.log = openForAppend(join(path, "log.txt"));
  }

  /** Makes a new folder with the next free number; safe against another process that does the same. */
  static async create(options: RunFolderOptions): Promise<RunFolder> {
    const { name, root = "runs", clock = Date.now } = options;
    check(
      /^[A-Za-z0-9._-]+$/.test(name) && !/^\.+$/.test(name),
      "RunFolder.create",
      () => `name must be of letters, digits, ".", "-" and "_", got "${name}"`,
    );
    const parent = resolve(root);
    await makeFolder(parent);
    const path = makeNumbered(parent, name);
    await makeFolder(join(path, "checkpoints"));
    await makeFolder(join(path, "pictures"));
    const files = FILES.map(([file, text]) => `${file.padEnd(15)}${text}`).join("\n");
    const notes = (options.notes?.(path) ?? []).map((line) => `${line}\n`).join("");
    const started = new Date(clock()).toISOString();
    await writeFileAtomic(
      join(path, "README.txt"),
      `A training run of dlfs, started ${started}.\n\n${files}\n${notes && `\n${notes}`}`,
    );
    return new RunFolder(path, clock);
  }

  /**
   * Opens the folder of an earlier run, to go on in it.
   *
   * @param options.from steps that are done: metrics and evaluations of later ones, which the run repeats, are removed
   * @param options.evaluated whether the evaluation after those steps, if there is one, is done, too; default true
   */
  static open(
    path: string,
    { from, evaluated = true, clock = Date.now }: { from?: number; evaluated?: boolean; clock?: () => number } = {},
  ): RunFolder {
    const absolute = resolve(path);
    check(
      statSync(absolute, { throwIfNoEntry: false })?.isDirectory() === true,
      absolute,
      () => "it is no folder of a run",
    );
    if (from !== undefined) {
      dropMetrics(join(absolute, "metrics.jsonl"), from, evaluated);
      dropEvaluations(join(absolute, "evaluations"), evaluated ? from : from - 1);
    }
    return new RunFolder(absolute, clock);
  }

  get checkpointFolder(): string {
    return join(this.path, "checkpoints");
  }

  get picturesFolder(): string {
    return join(this.path, "pictures");
  }

  get evaluationsFolder(): string {
    return join(this.path, "evaluations");
  }

  /** Where what an evaluation found on each image belongs. */
  evaluationPath(iteration: number): string {
    return join(this.evaluationsFolder, `evaluation-${String(iteration).padStart(8, "0")}.dlvs`);
  }

  /** Where the picture of an evaluation belongs. */
  picturePath(iteration: number): string {
    return join(this.picturesFolder, `predictions-${String(iteration).padStart(8, "0")}.jpg`);
  }

  async writeConfig(config: unknown): Promise<void> {
    await writeFileAtomic(join(this.path, "config.json"), toJson(config, 2));
  }

  /** @param dataset what the data consist of: whatever JSON can hold */
  async writeDataset(dataset: unknown): Promise<void> {
    await writeFileAtomic(join(this.path, "dataset.json"), toJson(dataset));
  }

  /** @param summary the results: whatever JSON can hold */
  async writeSummary(summary: unknown): Promise<void> {
    await writeFileAtomic(join(this.path, "summary.json"), toJson(summary, 2));
  }

  /** Appends one line to metrics.jsonl. */
  appendMetrics({ kind, iteration, time, ...values }: MetricsLine): void {
    const line = toJson({ kind, iteration, time: time ?? this.clock(), ...values });
    this.append(this.metrics, "metrics.jsonl", line);
  }

  /** Appends text to log.txt, each line with the time in front. */
  appendLog(text: string): void {
    const time = new Date(this.clock()).toISOString();
    const lines = Bun.stripANSI(text)
      .split("\n")
      .map((line) => `${time} ${line}\n`);
    this.append(this.log, "log.txt", lines.join(""));
  }

  /** Makes what was appended durable and closes the files. */
  close(): void {
    for (const [fd, name] of [
      [this.metrics, "metrics.jsonl"],
      [this.log, "log.txt"],
    ] as const) {
      try {
        fsyncSync(fd);
        closeSync(fd);
      } catch (error) {
        throw fileError(join(this.path, name), "close", error);
      }
    }
  }

  private append(fd: number, name: string, text: string): void {
    const data = new TextEncoder().encode(text);
    try {
      for (let done = 0; done < data.length; ) done += writeSync(fd, data, done, data.length - done);
    } catch (error) {
      throw fileError(join(this.path, name), "write", error);
    }
  }
}

/** The lines of a metrics.jsonl, in order. A line that is no JSON object, such as one cut by a kill, is left out. */
export function readMetrics(path: string): MetricsLine[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw fileError(path, "read the metrics", error);
  }
  return parseMetrics(text);
}

/** Removes the lines of steps that are to be done again, and what a kill has cut. A train line of iteration i is of step i + 1. */
function dropMetrics(path: string, from: number, evaluated: boolean): void {
  if (!existsSync(path)) return;
  try {
    const lines = readFileSync(path, "utf8").split("\n");
    const kept = lines.filter((line) => {
      const [entry] = parseMetrics(line);
      const repeats = entry?.kind === "train" || (entry?.kind === "evaluation" && !evaluated);
      return entry !== undefined && (repeats ? entry.iteration < from : entry.iteration <= from);
    });
    if (kept.length === lines.length - 1) return;
    const temporary = `${path}.tmp`;
    writeFileSync(temporary, kept.map((line) => `${line}\n`).join(""));
    renameSync(temporary, path);
  } catch (error) {
    throw fileError(path, "remove metrics of steps to be repeated", error);
  }
}

/** The iteration of a file of `evaluations/`; null where it is none. */
export function evaluationOf(name: string): number | null {
  const digits = /^evaluation-(\d{8,15})\.dlvs$/.exec(name)?.[1];
  return digits === undefined ? null : Number(digits);
}

/** Removes what evaluations of later steps have found. */
function dropEvaluations(folder: string, last: number): void {
  if (!existsSync(folder)) return;
  try {
    for (const name of readdirSync(folder)) if ((evaluationOf(name) ?? 0) > last) rmSync(join(folder, name));
  } catch (error) {
    throw fileError(folder, "remove evaluations of steps to be repeated", error);
  }
}

/** The same for a piece of its text. */
export function parseMetrics(text: string): MetricsLine[] {
  return text.split("\n").flatMap((line) => {
    try {
      // To ask at every value takes ten times as long.
      const value: unknown = JSON.parse(line, /"(?:NaN|-?Infinity)"/.test(line) ? withNonFinite : undefined);
      return typeof value === "object" && value !== null && !Array.isArray(value) ? [value as MetricsLine] : [];
    } catch {
      return [];
    }
  });
}

const NON_FINITE = new Map<unknown, number>([
  ["NaN", NaN],
  ["Infinity", Infinity],
  ["-Infinity", -Infinity],
]);

const withNonFinite = (_: string, entry: unknown): unknown => NON_FINITE.get(entry) ?? entry;

/** JSON with numbers that it lacks as text, and a newline at the end. */
function toJson(value: unknown, indent?: number): string {
  const text = JSON.stringify(
    value,
    (_, entry: unknown) => (typeof entry === "number" && !Number.isFinite(entry) ? String(entry) : entry),
    indent,
  );
  return `${text}\n`;
}

function makeNumbered(parent: string, name: string): string {
  try {
    let number = 1;
    for (const entry of readdirSync(parent)) {
      const match = entry.startsWith(`${name}-`) && /^\d{1,9}$/.exec(entry.slice(name.length + 1));
      if (match) number = Math.max(number, Number(match[0]) + 1);
    }
    for (; ; number++) {
      const path = join(parent, `${name}-${number}`);
      try {
        mkdirSync(path);
        return path;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      }
    }
  } catch (error) {
    throw fileError(parent, `create a folder for the run "${name}"`, error);
  }
}

/** Opens for appending; a line that a kill has cut gets its end, so that it does not swallow the next one. */
function openForAppend(path: string): number {
  try {
    const fd = openSync(path, "a+");
    const { size } = fstatSync(fd);
    const last = new Uint8Array(1);
    if (size > 0 && readSync(fd, last, 0, 1, size - 1) === 1 && last[0] !== 10) writeSync(fd, "\n");
    return fd;
  } catch (error) {
    throw fileError(path, "open", error);
  }
}

/** Run folders as a dashboard shows them: found, and read on as they grow. */
import { open, readdir, readFile, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { fileError } from "../formats/atomic-file";
import { findLiveAddress } from "../live";
import { check, DlfsError } from "../native/error";
import { EvaluationIndex } from "./evaluation-index";
import { MetricsFile } from "./metrics-file";
import { RunImages } from "./run-images";
import { SampleIndex } from "./sample-index";

/** Where a file or folder is at: another text, another content. Of samples: how many there are, as others write to their file. */
export type RunVersions = Record<"metrics" | "log" | "samples" | "evaluations" | "pictures", string>;

/** What is said of a run in a list. */
export interface RunSummary {
  name: string;
  /** Milliseconds since 1970 of its first and its last line of metrics; null where there is none. */
  started: number | null;
  written: number | null;
  iteration: number;
  /** Steps that it is to have; null where that is not known. */
  iterations: number | null;
  /** Its results are there: it has come to its end. */
  done: boolean;
  /** It goes on, and can be told things. */
  live: boolean;
  generation: number;
  /** Names of its curves. */
  curves: string[];
  /** Of the last evaluation. */
  evaluation: Record<string, number> | null;
  samples: number;
  /** What of it cannot be read, and why. */
  problem?: string;
}

export interface LogPart {
  text: string;
  /** Bytes of the file before and up to the end of the text. */
  from: number;
  to: number;
}

/** A run's folder. */
export class RunView {
  readonly metrics: MetricsFile;
  readonly samples: SampleIndex;
  readonly evaluations: EvaluationIndex;
  readonly images: RunImages;

  constructor(
    readonly name: string,
    /** Absolute. */
    readonly path: string,
  ) {
    this.metrics = new MetricsFile(join(path, "metrics.jsonl"));
    this.samples = new SampleIndex(join(path, "live", "live.dlvs"));
    this.evaluations = new EvaluationIndex(join(path, "evaluations"), this.samples, () => this.classes());
    this.images = new RunImages(() => this.json("config.json"));
  }

  async versions(): Promise<RunVersions> {
    const of = async (...parts: string[]) => {
      const found = await stat(join(this.path, ...parts)).catch(() => null);
      return found ? `${found.ino}-${found.size}-${Math.floor(found.mtimeMs)}` : "";
    };
    const [metrics, log, evaluations, pictures] = await Promise.all([
      ...[of("metrics.jsonl"), of("log.txt"), of("evaluations"), of("pictures")],
    ]);
    // A file that is damaged is told of where its samples are asked for.
    await this.samples.refresh().catch(() => undefined);
    const { samples } = this;
    return { metrics, log, samples: samples.version, evaluations, pictures } as RunVersions;
  }

  async summary(): Promise<RunSummary> {
    const tries = await Promise.allSettled([this.metrics.refresh(), this.samples.refresh()]);
    const failed = tries.flatMap((one) => (one.status === "rejected" ? [one.reason as Error] : []));
    for (const error of failed) if (!(error instanceof DlfsError)) throw error;
    const { metrics, samples } = this;
    const config = await this.json("config.json");
    const iterations = config?.iterations;
    const evaluation = Object.entries(metrics.evaluation ?? {}).filter(([name]) => !["kind", "time"].includes(name));
    return {
      ...{ name: this.name, started: metrics.started, written: metrics.written, iteration: metrics.iteration },
      iterations: typeof iterations === "number" ? iterations : null,
      done: (await stat(join(this.path, "summary.json")).catch(() => null)) !== null,
      live: (await findLiveAddress(this.path).catch(() => null)) !== null,
      generation: metrics.generation,
      curves: [...metrics.curves.keys()].sort(),
      evaluation: metrics.evaluation ? (Object.fromEntries(evaluation) as Record<string, number>) : null,
      samples: samples.places.length,
      ...(failed.length > 0 && { problem: failed.map(({ message }) => message).join("; ") }),
    };
  }

  /** Names of the classes, by label; empty where that is not known. */
  async classes(): Promise<readonly string[]> {
    if (this.samples.classes.length > 0) return this.samples.classes;
    const { classes } = (await this.json("config.json")) ?? {};
    return Array.isArray(classes) && classes.every((name) => typeof name === "string") ? classes : [];
  }

  /** The end of the log, or the lines before byte `before`, of `bytes` at most; it begins with a whole line. */
  async log(bytes: number, before = Number.POSITIVE_INFINITY): Promise<LogPart> {
    const path = join(this.path, "log.txt");
    try {
      await using file = await open(path, "r");
      const to = Math.min(before, (await file.stat()).size);
      const start = Math.max(0, to - bytes);
      const buffer = new Uint8Array(to - start);
      const { bytesRead } = await file.read(buffer, 0, buffer.length, start);
      const found = buffer.subarray(0, bytesRead);
      const cut = start === 0 ? 0 : found.indexOf(10) + 1;
      return { text: new TextDecoder().decode(found.subarray(cut)), from: start + cut, to: start + bytesRead };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return { text: "", from: 0, to: 0 };
      throw fileError(path, "read the log", error);
    }
  }

  /** The files of pictures/, sorted: predictions of evaluations as JPEG, curves of the last one as SVG. */
  async pictures(): Promise<string[]> {
    const names = await readdir(join(this.path, "pictures")).catch(() => []);
    return names.filter(isPicture).sort();
  }

  /** A file of JSON that the run's folder has; null where it is not there, or not whole. */
  async json(name: "config.json" | "dataset.json" | "summary.json"): Promise<Record<string, unknown> | null> {
    try {
      return JSON.parse(await readFile(join(this.path, name), "utf8")) as Record<string, unknown>;
    } catch {
      return null;
    }
  }
}

/** Whether a name can be a picture's, and is no path. */
export const isPicture = (name: string): boolean => /^[A-Za-z0-9_][A-Za-z0-9._-]*\.(jpg|svg)$/.test(name);

/** The runs below some folders. */
export class RunList {
  readonly #roots: readonly string[];
  readonly #runs = new Map<string, RunView>();
  readonly #byPath = new Map<string, RunView>();

  /**
   * @param folders of runs, or folders that hold such
   * @throws DlfsError naming one that is no folder
   */
  private constructor(folders: readonly string[]) {
    this.#roots = folders.map((folder) => resolve(folder));
  }

  static async open(folders: readonly string[]): Promise<RunList> {
    check(folders.length > 0, "RunList", () => "expected a folder of runs");
    for (const folder of folders) {
      const found = await stat(folder).catch(() => null);
      check(found?.isDirectory() === true, folder, () => "it is no folder of runs");
    }
    const runs = new RunList(folders);
    await runs.refresh();
    return runs;
  }

  /** Looks for new runs; those that are gone are forgotten. */
  async refresh(): Promise<RunView[]> {
    const found = new Set<string>();
    for (const root of this.#roots) {
      if (await isRun(root)) found.add(root);
      const entries = await readdir(root, { withFileTypes: true }).catch(() => []);
      const folders = entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(root, name));
      const are = await Promise.all(folders.map(isRun));
      for (const [i, folder] of folders.entries()) if (are[i]) found.add(folder);
    }
    for (const [path, run] of this.#byPath) {
      if (found.has(path)) continue;
      this.#byPath.delete(path);
      this.#runs.delete(run.name);
    }
    for (const path of [...found].sort(byName)) if (!this.#byPath.has(path)) this.#add(path);
    return [...this.#runs.values()].sort((a, b) => byName(a.name, b.name));
  }

  /** The run of a name; undefined where there is none. */
  get(name: string): RunView | undefined {
    return this.#runs.get(name);
  }

  #add(path: string): void {
    const own = basename(path);
    let name = own;
    // Runs of several folders may be called the same.
    for (let i = 2; this.#runs.has(name); i++) name = `${own} (${i})`;
    const run = new RunView(name, path);
    this.#runs.set(name, run);
    this.#byPath.set(path, run);
  }
}

const byName = (a: string, b: string): number => a.localeCompare(b, "en", { numeric: true });

const isRun = async (folder: string): Promise<boolean> =>
  (await stat(join(folder, "metrics.jsonl")).catch(() => null))?.isFile() === true;

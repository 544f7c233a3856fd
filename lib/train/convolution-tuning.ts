/** How the entry points of training and inference plan convolutions: by what this machine has measured before, or measures now. */
import { join } from "node:path";
import { cacheFolder } from "../data";
import { convolutionTuning, PlanCache, type TuningProgress, tuneConvolutions } from "../graph";
import { formatDuration, type ProgressStream } from "../monitor";
import { check } from "../native";
import type { Device } from "../tensor";

export interface AutotuneOptions {
  /**
   * Milliseconds for timing the candidates of one convolution, 0 for none: heuristics choose then. Default: DLFS_TUNE_MS, else
   * what the device was given before, else 300 on a GPU and 0 on the CPU, whose heuristics are within a few per cent.
   */
  ms?: number;
  /** Where picks are kept between processes; null: nowhere. Default: plansFolder(). */
  folder?: string | null;
  /** Where progress is shown once it takes more than two seconds. Default: standard error. */
  stream?: ProgressStream;
}

/** Where picks are kept between processes: "plans" in dlfs's cache folder. */
export function plansFolder(): string {
  return join(cacheFolder(), "plans");
}

/** Milliseconds of tuning that go without a sign of life. */
const QUIET_MS = 2000;

function defaultMs(device: Device): number {
  const set = process.env.DLFS_TUNE_MS;
  if (set === undefined || set === "") return device.backend === "cuda" ? 300 : 0;
  const ms = Number(set);
  check(Number.isFinite(ms) && ms >= 0, "DLFS_TUNE_MS", () => `expected milliseconds from 0, got "${set}"`);
  return ms;
}

/**
 * From now on, convolutions of this device are planned by the picks in the cache folder; those that it lacks are tuned, which is
 * shown, and added to it. A device that has been told how to plan before is left as it is unless `ms` is given.
 */
export function autotune(device: Device, options: AutotuneOptions = {}): void {
  if (options.ms === undefined && convolutionTuning(device)) return;
  const { ms = defaultMs(device), folder = plansFolder(), stream = process.stderr } = options;
  check(Number.isFinite(ms) && ms >= 0, "autotune", () => `expected milliseconds from 0, got ${ms}`);
  tuneConvolutions(device, {
    ms,
    cache: ms > 0 && folder !== null ? new PlanCache(device, folder) : null,
    onProgress: showTuning(stream),
  });
}

/** Shows the progress of tuning that takes more than two seconds: one line rewritten on a terminal, one every five elsewhere. */
export function showTuning(
  stream: ProgressStream,
  clock: () => number = () => performance.now(),
): (progress: TuningProgress) => void {
  let started = 0;
  let drawn = Number.NEGATIVE_INFINITY;
  return ({ done, total, convolution }) => {
    const now = clock();
    if (done === 0) [started, drawn] = [now, Number.NEGATIVE_INFINITY];
    if (now - started < QUIET_MS) return;
    const finished = done === total;
    if (!finished && now - drawn < (stream.isTTY ? 100 : 5000)) return;
    drawn = now;
    const text = finished
      ? `tuned ${total} convolutions in ${formatDuration((now - started) / 1000)}`
      : `tuning convolutions ${done + 1}/${total}, ETA ${formatDuration(((total - done) * (now - started)) / done / 1000)}: ` +
        convolution;
    stream.write(
      stream.isTTY ? `\r${text.slice(0, (stream.columns ?? 80) - 1)}\x1b[K${finished ? "\n" : ""}` : `${text}\n`,
    );
  };
}

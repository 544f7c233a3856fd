/** What trials of a training have found, in lines for a terminal. */
import { existsSync, statfsSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { Dataset } from "../../data";
import { formatBytes } from "../../layers/summary";
import type { TrainConfig } from "../config/train-config";
import type { DryRun } from "../dry-run";
import { formatRate } from "../rate-picture";
import type { RatePoint, RateRangeResult } from "../rate-range";
import { evaluatedSplit } from "./data-feeds";

export const modelName = ({ model }: TrainConfig): string => model.name;

/** What a range test has found, in lines for a terminal. */
export function describeRange({ points, suggestion, ended }: RateRangeResult): string[] {
  const smallest = points.reduce((a, b) => (b.smoothed < a.smoothed ? b : a), points[0] as RatePoint);
  const last = points.at(-1);
  if (!last) return ["no step was done"];
  const how = { "last step": "the last step", diverged: "where the loss diverged", interrupted: "interrupted" }[ended];
  return [
    `${points.length} steps up to a rate of ${formatRate(last.rate)}, ${how}`,
    `the smoothed loss is smallest, ${smallest.smoothed.toPrecision(4)}, at ${formatRate(smallest.rate)}`,
    suggestion === null
      ? "no suggestion: the smoothed loss does not fall, or there were too few steps"
      : `suggested:  --lr ${formatRate(suggestion)}, where it falls fastest`,
  ];
}

/** What a training from `start` on would do, and whether the disk has room for what it writes. */
export function describePlan(
  config: TrainConfig,
  start: number,
  dataset: Dataset,
  { checkpointBytes }: DryRun,
): string[] {
  const { iterations, batch, accumulate, evaluateEvery, checkpointEvery, keep, out, overfit } = config;
  const images = overfit ?? dataset.train.usable;
  const times = (every: number) => Math.ceil((iterations - start) / every);
  const passes = (((iterations - start) * batch * accumulate) / images).toFixed(1);
  const folder = nearestFolder(resolve(out));
  const { bavail, bsize } = statfsSync(folder);
  const free = bavail * bsize;
  // One is written before another goes.
  const needed = (keep + 2) * checkpointBytes;
  const evaluations = evaluatedSplit(config) ? `evaluate ${times(evaluateEvery)} times` : "evaluate nothing";
  return [
    `it would train ${iterations - start} iterations (${passes} passes over ${images} images), ${evaluations}, ` +
      `and write ${times(checkpointEvery)} checkpoints below ${resolve(out)}`,
    ...(needed > free
      ? [`warning: those that stay take ${formatBytes(needed)}, ${folder} has ${formatBytes(free)} left`]
      : []),
    "nothing was written",
  ];
}

/** Of several ranks, which has the least memory left. */
export function describeLeft(left: readonly number[]): string[] {
  const least = Math.min(...left);
  return [`of ${left.length} ranks, rank ${left.indexOf(least)} has the least memory left: ${formatBytes(least)}`];
}

/** The folder itself, or the nearest above it that is there. */
function nearestFolder(path: string): string {
  return existsSync(path) ? path : nearestFolder(dirname(path));
}

/** Smith's learning-rate range test: the loss while the rate grows from step to step, and the rate at which it falls fastest. */
import type { BatchImages, DetectionLoader } from "../data";
import type { ProcessGroup } from "../distributed";
import type { DetectionModel } from "../models";
import { check } from "../native";
import { DataParallel } from "./data-parallel";
import { type FreezeRule, Freezing } from "./freezing";
import { keepWeights } from "./keep-weights";
import { SGD, type SGDOptions } from "./sgd";
import { type StepResult, TrainStep, type TrainStepOptions } from "./train-step";

/** How the rate grows, and how the loss is judged. */
export interface RateRange {
  /** The first and the last rate. Default 1e-6 and 10. */
  from?: number;
  to?: number;
  /** Steps from one to the other. Default 100. */
  steps?: number;
  /** How much of the smoothed loss stays at a step. Default 0.98, as fastai's and Lightning's. */
  smoothing?: number;
  /** The test ends where the smoothed loss is more than so many times the smallest. Default 4, as theirs. */
  divergence?: number;
}

export interface RateRangeOptions extends RateRange {
  model: DetectionModel;
  loader: DetectionLoader;
  decoder: BatchImages;
  optimizer: Omit<SGDOptions, "schedule" | "iterations">;
  freeze?: readonly FreezeRule[];
  accumulate?: number;
  recompute?: TrainStepOptions["recompute"];
  /** Ends the test early. */
  signal?: AbortSignal;
  /** Ranks that take each step together, each with a loader of its share of the images; all see the same losses. */
  group?: ProcessGroup;
  onStep?: (point: RatePoint, steps: number) => void;
}

/** A step of the test. */
export interface RatePoint {
  rate: number;
  /** The sum of all losses. */
  loss: number;
  /** The mean of the losses so far, later ones weighing more, without the bias of the first. */
  smoothed: number;
}

export interface RateRangeResult {
  points: RatePoint[];
  /** Where the smoothed loss falls fastest; null where it does not fall, or there are too few steps. */
  suggestion: number | null;
  /** Why it ended. */
  ended: "last step" | "diverged" | "interrupted";
}

/** What is left out at either end when the steepest descent is looked for: the smoothed loss has hardly begun, or is rising. */
const SKIPPED = { first: 10, last: 1 } as const;

/** The rates of a test: a geometric series. */
export function rangeRates({ from = 1e-6, to = 10, steps = 100 }: RateRange = {}): number[] {
  check(from > 0 && to > from && Number.isFinite(to), "rateRange", () => `expected 0 < from < to, got ${from}, ${to}`);
  check(Number.isSafeInteger(steps) && steps >= 2, "rateRange", () => `steps: expected an integer >= 2, got ${steps}`);
  return Array.from({ length: steps }, (_, i) => from * (to / from) ** (i / (steps - 1)));
}

/**
 * The rate of the steepest descent of the smoothed loss, by numpy.gradient over steps, which are evenly spaced in the rate's
 * logarithm: what Lightning's lr_find suggests. null where it does not fall.
 */
export function steepestRate(points: readonly RatePoint[]): number | null {
  const judged = points.slice(SKIPPED.first, -SKIPPED.last).filter(({ smoothed }) => Number.isFinite(smoothed));
  if (judged.length < 3) return null;
  const at = (i: number) => (judged[i] as RatePoint).smoothed;
  const last = judged.length - 1;
  const slopes = judged.map((_, i) => {
    if (i === 0) return at(1) - at(0);
    return i === last ? at(last) - at(last - 1) : (at(i + 1) - at(i - 1)) / 2;
  });
  const steepest = slopes.indexOf(Math.min(...slopes));
  return (slopes[steepest] as number) < 0 ? (judged[steepest] as RatePoint).rate : null;
}

/** Follows the losses of a test; says when it has diverged. */
export class RateJudge {
  readonly points: RatePoint[] = [];
  readonly #smoothing: number;
  readonly #divergence: number;
  #mean = 0;
  #smallest = Number.POSITIVE_INFINITY;

  constructor({ smoothing = 0.98, divergence = 4 }: RateRange = {}) {
    check(
      smoothing >= 0 && smoothing < 1,
      "rateRange",
      () => `smoothing: expected a number from 0 and below 1, got ${smoothing}`,
    );
    check(divergence > 1, "rateRange", () => `divergence: expected a number above 1, got ${divergence}`);
    this.#smoothing = smoothing;
    this.#divergence = divergence;
  }

  /** Takes a step's loss; returns false where there is no use in going on. */
  add(rate: number, loss: number): boolean {
    this.#mean = this.#smoothing * this.#mean + (1 - this.#smoothing) * loss;
    const smoothed = this.#mean / (1 - this.#smoothing ** (this.points.length + 1));
    this.points.push({ rate, loss, smoothed });
    if (!Number.isFinite(loss) || smoothed > this.#divergence * this.#smallest) return false;
    this.#smallest = Math.min(this.#smallest, smoothed);
    return true;
  }
}

/**
 * Trains while the rate grows from step to step (Smith, "Cyclical learning rates for training neural networks", WACV 2017), until the
 * loss diverges. The model's weights and statistics are as before when it ends.
 */
export async function findRate(options: RateRangeOptions): Promise<RateRangeResult> {
  const {
    model,
    loader,
    decoder,
    optimizer: settings,
    freeze,
    accumulate = 1,
    recompute,
    signal,
    onStep,
    group,
  } = options;
  const rates = rangeRates(options);
  const judge = new RateJudge(options);
  const restore = keepWeights(model);
  const { batchSize, height, width, maxBoxes } = loader;
  let diverged = false;
  // Of several ranks, each hears of a signal at another step.
  const stop = () => group?.requestStop();
  const goesOn = async (iteration: number) => (group ? await group.mayBegin(iteration) : !signal?.aborted);
  const take = (result: StepResult | null): void => {
    if (!result || diverged) return;
    const loss = Object.values(result.losses).reduce((sum, value) => sum + value, 0);
    diverged = !judge.add(rates[result.iteration] as number, loss) || result.failed;
    onStep?.(judge.points.at(-1) as RatePoint, rates.length);
  };
  signal?.addEventListener("abort", stop);
  if (signal?.aborted) stop();
  try {
    new Freezing(model, freeze).apply(0);
    using optimizer = new SGD(model, {
      ...settings,
      schedule: (iteration) => rates[iteration] as number,
      iterations: rates.length,
    });
    optimizer.selectTrained();
    const parallel = group && new DataParallel(model, group.communicator);
    const shape = { batchSize, height, width, maxBoxes };
    using step = new TrainStep(model, optimizer, { ...shape, recompute, accumulate, parallel });
    for (let i = 0; i < rates.length * accumulate && !diverged; i++) {
      if (i % accumulate === 0 && !(await goesOn(i / accumulate))) break;
      const batch = await loader.getBatch();
      const images = decoder.images(batch.slot, batch.size);
      if (group) group.phase = step.isReady(images) ? "steps" : "building";
      const submitted = await step.submit(images, batch).catch((error: unknown) => {
        batch.release();
        throw error;
      });
      submitted.copied.then(batch.release);
      take(submitted.finished);
    }
    for (const result of await step.drain()) take(result);
  } finally {
    signal?.removeEventListener("abort", stop);
    restore();
  }
  const { points } = judge;
  const ended = diverged ? "diverged" : points.length === rates.length ? "last step" : "interrupted";
  return { points, suggestion: steepestRate(points), ended };
}

/** What happened to a version of a model, counted as Triton Inference Server counts it. */
import type { BatchStatistics, FailureReason, HistogramData, ModelStatistics, Stage } from "./types";

export const stages: readonly Stage[] = ["transfer", "decode", "infer", "postprocess"];

/** In milliseconds. */
export type StageTimes = Readonly<Record<Stage, number>>;

const SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** Counts values by their size. */
export class Histogram {
  readonly #bounds: readonly number[];
  readonly #counts: number[];
  #sum = 0;
  #count = 0;

  /** @param bounds ascending */
  constructor(bounds: readonly number[]) {
    this.#bounds = bounds;
    this.#counts = new Array(bounds.length + 1).fill(0);
  }

  add(value: number): void {
    let place = 0;
    while (place < this.#bounds.length && value > (this.#bounds[place] as number)) place++;
    this.#counts[place] = (this.#counts[place] as number) + 1;
    this.#sum += value;
    this.#count++;
  }

  data(): HistogramData {
    return { bounds: this.#bounds, counts: [...this.#counts], sum: this.#sum, count: this.#count };
  }
}

const byStage = <T>(make: (stage: Stage) => T) =>
  Object.fromEntries(stages.map((stage) => [stage, make(stage)])) as Record<Stage, T>;

/** What is known only at the moment of asking. */
export type LiveStatistics = Pick<ModelStatistics, "queued" | "queuedBytes" | "running" | "engines">;

export class StatisticsRecorder {
  #lastInference = 0;
  #success = 0;
  #inferences = 0;
  #executions = 0;
  readonly #failures: Record<FailureReason, number> = { REJECTED: 0, CANCELED: 0, BACKEND: 0, OTHER: 0 };
  #failureSeconds = 0;
  readonly #requests = { total: 0, queue: 0, ...byStage(() => 0) };
  readonly #queueTimes = new Histogram(SECONDS);
  readonly #stageTimes = byStage(() => new Histogram(SECONDS));
  readonly #batchSizes: Histogram;
  readonly #batches = new Map<number, { executions: number; stages: Record<Stage, number> }>();

  constructor(
    readonly name: string,
    readonly version: string,
  ) {
    this.#batchSizes = new Histogram([1, 2, 4, 8, 16, 32, 64, 128]);
  }

  /** A batch came back; times in milliseconds. */
  batchDone(images: number, times: StageTimes): void {
    this.#inferences += images;
    this.#executions++;
    this.#batchSizes.add(images);
    let batch = this.#batches.get(images);
    if (!batch) {
      batch = { executions: 0, stages: byStage(() => 0) };
      this.#batches.set(images, batch);
    }
    batch.executions++;
    for (const stage of stages) {
      const seconds = times[stage] / 1000;
      batch.stages[stage] += seconds;
      this.#stageTimes[stage].add(seconds);
    }
  }

  /** A request was answered; `now` in milliseconds since 1970, the others' durations in milliseconds. */
  requestDone(now: number, total: number, queue: number, times: StageTimes): void {
    this.#lastInference = now;
    this.#success++;
    this.#requests.total += total / 1000;
    this.#requests.queue += queue / 1000;
    this.#queueTimes.add(queue / 1000);
    for (const stage of stages) this.#requests[stage] += times[stage] / 1000;
  }

  /** A request failed after so many milliseconds. */
  requestFailed(reason: FailureReason, total: number): void {
    this.#failures[reason]++;
    this.#failureSeconds += total / 1000;
  }

  snapshot(live: LiveStatistics): ModelStatistics {
    const batches = [...this.#batches].sort(([a], [b]) => a - b);
    return {
      ...{ name: this.name, version: this.version, lastInference: this.#lastInference },
      ...{ success: this.#success, inferences: this.#inferences, executions: this.#executions },
      ...{ failures: { ...this.#failures }, failureSeconds: this.#failureSeconds },
      ...{ requestSeconds: { ...this.#requests }, queueTimes: this.#queueTimes.data() },
      stageTimes: byStage((stage) => this.#stageTimes[stage].data()),
      batchSizes: this.#batchSizes.data(),
      batches: batches.map(
        ([size, batch]): BatchStatistics => ({ size, executions: batch.executions, stages: { ...batch.stages } }),
      ),
      ...live,
    };
  }
}

/** Batches that a rate is measured over, and how old they may be, in milliseconds. */
const RATE_BATCHES = 32;
const RATE_AGE = 30_000;
/** Seconds. */
const MOST_RETRY_AFTER = 60;

/** Measures how many images are answered in a second. */
export class RateMeter {
  readonly #answers: { time: number; images: number }[] = [];

  add(images: number, now: number): void {
    this.#answers.push({ time: now, images });
    while (this.#answers.length > RATE_BATCHES || now - (this.#answers[0]?.time ?? now) > RATE_AGE) {
      this.#answers.shift();
    }
  }

  /** Images in a second; 0 where that is not known. */
  rate(): number {
    const [first, last] = [this.#answers[0], this.#answers.at(-1)];
    if (!first || !last || last.time === first.time) return 0;
    const images = this.#answers.reduce((sum, answer) => sum + answer.images, 0) - first.images;
    return (images * 1000) / (last.time - first.time);
  }

  /** Whole seconds, 1 to 60, after which so many images will be done. */
  secondsFor(images: number): number {
    const rate = this.rate();
    return rate > 0 ? Math.min(MOST_RETRY_AFTER, Math.max(1, Math.ceil(images / rate))) : 1;
  }
}

import { type EpochRow, type MeterReading, ratesBetween } from "../monitor";
import type { StepResult } from "./train-step";

/** An epoch whose steps are enqueued, and whose last reports may be to come. */
interface EndingEpoch {
  /** Epochs that are complete. */
  readonly epoch: number;
  /** Steps done. */
  readonly iteration: number;
  readonly reading: MeterReading;
}

/** What a report knows of an epoch; the rest of a row is the display's. */
export type EpochReport = Omit<EpochRow, "memory" | "secondsLeft">;

/** Of what is finite: steps that loss scaling leaves out say nothing. NaN where nothing is. */
class Mean {
  #sum = 0;
  #count = 0;

  add(value: number): void {
    if (!Number.isFinite(value)) return;
    this.#sum += value;
    this.#count++;
  }

  get value(): number {
    return this.#sum / this.#count;
  }
}

/**
 * Gathers the reports of steps into those of epochs. Epochs that are over in no time are taken together, so that their rows can be
 * read.
 */
export class EpochReports {
  readonly #leastSeconds: number;
  readonly #ending: EndingEpoch[] = [];
  readonly #losses = new Map<string, Mean>();
  #norm = new Mean();
  #from: MeterReading | null = null;

  /** @param leastSeconds that a row covers; default 2 */
  constructor(leastSeconds = 2) {
    this.#leastSeconds = leastSeconds;
  }

  /** An epoch's last step has been enqueued. */
  end(epoch: number, iteration: number, reading: MeterReading): void {
    this.#ending.push({ epoch, iteration, reading });
  }

  /**
   * Takes a step's report.
   *
   * @returns the epoch's, where the step was its last one, and enough time has passed since the one before
   */
  add({ iteration, losses, gradNorm, rate }: StepResult): EpochReport | null {
    for (const [name, value] of Object.entries(losses)) {
      const mean = this.#losses.get(name) ?? new Mean();
      this.#losses.set(name, mean);
      mean.add(value);
    }
    if (gradNorm !== undefined) this.#norm.add(gradNorm);
    const [ending] = this.#ending;
    if (!ending || iteration + 1 < ending.iteration) return null;
    this.#ending.shift();
    const { seconds, imagesPerSecond, waitShare } = ratesBetween(this.#from, ending.reading);
    if (seconds < this.#leastSeconds) return null;
    const report = {
      ...{ epoch: ending.epoch, iteration: ending.iteration, learningRate: rate, seconds, imagesPerSecond, waitShare },
      losses: Object.fromEntries([...this.#losses].map(([name, { value }]) => [name, value])),
      ...(gradNorm !== undefined && { gradNorm: this.#norm.value }),
    };
    this.#from = ending.reading;
    this.#losses.clear();
    this.#norm = new Mean();
    return report;
  }
}

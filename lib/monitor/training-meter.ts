/** Counters at some time, to take differences from. */
export interface MeterReading {
  /** Seconds of training: without pauses, and from where the first step began to wait for data. */
  readonly seconds: number;
  readonly steps: number;
  readonly images: number;
  /** Seconds for which steps waited for data. */
  readonly waitSeconds: number;
}

/** How fast a stretch of training was. */
export interface MeterRates {
  readonly seconds: number;
  readonly imagesPerSecond: number;
  /** Share of the seconds in which it waited for data, from 0 to 1. */
  readonly waitShare: number;
}

/** Counts a training's steps, images and seconds. */
export class TrainingMeter {
  readonly #clock: () => number;
  #start: number | null = null;
  #pausedAt: number | null = null;
  #paused = 0;
  #steps = 0;
  #images = 0;
  #wait = 0;

  /** @param clock milliseconds from any starting point; default `performance.now` */
  constructor(clock: () => number = () => performance.now()) {
    this.#clock = clock;
  }

  step(images: number, waitSeconds: number): void {
    this.#start ??= this.#clock() - 1000 * waitSeconds;
    this.#steps++;
    this.#images += images;
    this.#wait += waitSeconds;
  }

  /** Stops the clock for work that is not training. */
  pause(): void {
    this.#pausedAt ??= this.#clock();
  }

  resume(): void {
    if (this.#pausedAt === null) return;
    if (this.#start !== null) this.#paused += this.#clock() - this.#pausedAt;
    this.#pausedAt = null;
  }

  read(): MeterReading {
    const now = this.#pausedAt ?? this.#clock();
    const seconds = this.#start === null ? 0 : (now - this.#start - this.#paused) / 1000;
    return { seconds, steps: this.#steps, images: this.#images, waitSeconds: this.#wait };
  }
}

/** What happened between two readings; rates are 0 where no time has passed. */
export function ratesBetween(from: MeterReading | null, to: MeterReading): MeterRates {
  const seconds = to.seconds - (from?.seconds ?? 0);
  const rate = (amount: number) => (seconds > 0 ? amount / seconds : 0);
  return {
    seconds,
    imagesPerSecond: rate(to.images - (from?.images ?? 0)),
    waitShare: Math.min(1, rate(to.waitSeconds - (from?.waitSeconds ?? 0))),
  };
}

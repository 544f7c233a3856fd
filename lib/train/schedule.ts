/**
 * Learning-rate strategies by iteration, with the values of torch.optim.lr_scheduler where the step is one iteration. A strategy is
 * a function, so that those below combine, and so that any other will do.
 */
import { check } from "../native";

/** A learning-rate strategy: the rate of each iteration, from 0. */
export type Schedule = (iteration: number) => number;

function checkCount(op: string, name: string, value: number, least = 1): void {
  check(
    Number.isSafeInteger(value) && value >= least,
    op,
    () => `${name}: expected an integer >= ${least}, got ${value}`,
  );
}

function checkNumber(op: string, name: string, value: number, good: boolean, expected: string): void {
  check(Number.isFinite(value) && good, op, () => `${name}: expected ${expected}, got ${value}`);
}

/** The same rate throughout. */
export function constantRate(rate: number): Schedule {
  return () => rate;
}

/** The rate, multiplied by gamma at each milestone (an iteration); torch's MultiStepLR. */
export function multiStep(rate: number, milestones: readonly number[], gamma = 0.1): Schedule {
  check(
    milestones.every((milestone, i) => i === 0 || milestone > (milestones[i - 1] as number)),
    "multiStep",
    () => `expected increasing milestones, got ${milestones.join(", ")}`,
  );
  return (iteration) => rate * gamma ** milestones.filter((milestone) => iteration >= milestone).length;
}

/** The rate, multiplied by gamma every `every` iterations; torch's StepLR. */
export function stepped(rate: number, every: number, gamma = 0.1): Schedule {
  checkCount("stepped", "every", every);
  return (iteration) => rate * gamma ** Math.floor(iteration / every);
}

/** The rate, multiplied by gamma each iteration; torch's ExponentialLR. */
export function exponential(rate: number, gamma: number): Schedule {
  checkNumber("exponential", "gamma", gamma, gamma > 0, "a number > 0");
  return (iteration) => rate * gamma ** iteration;
}

/** From the rate to 0 over `iterations` by a power of what is left of them; torch's PolynomialLR. Power 1 is a line. */
export function polynomial(rate: number, iterations: number, power = 1): Schedule {
  checkCount("polynomial", "iterations", iterations);
  checkNumber("polynomial", "power", power, power >= 0, "a number >= 0");
  return (iteration) => rate * (1 - Math.min(iteration, iterations) / iterations) ** power;
}

/** From the rate to `least` along half a cosine over `iterations`, and then `least`; torch's CosineAnnealingLR up to there. */
export function cosine(rate: number, iterations: number, least = 0): Schedule {
  checkCount("cosine", "iterations", iterations);
  return (iteration) => {
    const progress = Math.min(iteration, iterations) / iterations;
    return least + ((rate - least) * (1 + Math.cos(Math.PI * progress))) / 2;
  };
}

/**
 * Half cosines from the rate towards `least`, again and again: the first over `first` iterations, each other `factor` times as long
 * as the one before (Loshchilov and Hutter 2017, "SGDR"; torch's CosineAnnealingWarmRestarts).
 */
export function cosineRestarts(rate: number, first: number, factor = 1, least = 0): Schedule {
  checkCount("cosineRestarts", "first", first);
  checkCount("cosineRestarts", "factor", factor);
  return (iteration) => {
    // The length of all periods before one is a geometric sum; rounding may put the quotient just below a whole number.
    let [length, start] = [first, 0];
    if (factor === 1) {
      start = Math.floor(iteration / first) * first;
    } else {
      while (iteration >= start + length) {
        start += length;
        length *= factor;
      }
    }
    return least + ((rate - least) * (1 + Math.cos((Math.PI * (iteration - start)) / length))) / 2;
  };
}

export interface OneCycleOptions {
  /** Part of the iterations in which the rate rises. Default 0.3. */
  rise?: number;
  /** How it changes. Default "cosine". */
  anneal?: "cosine" | "linear";
  /** The first rate is the largest divided by this. Default 25. */
  divideFirst?: number;
  /** The last rate is the first divided by this. Default 10,000. */
  divideLast?: number;
  /** Down to the first rate as fast as up, and then to the last; else from the largest to the last at once. Default false. */
  threePhases?: boolean;
}

/**
 * Up to the largest rate and down to almost none, once (Smith and Topin 2018, "Super-Convergence"); torch's OneCycleLR with
 * cycle_momentum false.
 */
export function oneCycle(largest: number, iterations: number, options: OneCycleOptions = {}): Schedule {
  const { rise = 0.3, anneal = "cosine", divideFirst = 25, divideLast = 1e4, threePhases = false } = options;
  checkCount("oneCycle", "iterations", iterations, 2);
  checkNumber("oneCycle", "rise", rise, rise > 0 && rise < (threePhases ? 0.5 : 1), "a part of the whole");
  const first = largest / divideFirst;
  const last = first / divideLast;
  const top = rise * iterations - 1;
  const phases: [end: number, from: number, to: number][] = threePhases
    ? [
        [top, first, largest],
        [2 * rise * iterations - 2, largest, first],
        [iterations - 1, first, last],
      ]
    : [
        [top, first, largest],
        [iterations - 1, largest, last],
      ];
  return (iteration) => {
    let start = 0;
    for (const [i, [end, from, to]] of phases.entries()) {
      if (iteration <= end || i === phases.length - 1) {
        const progress = Math.min(1, (iteration - start) / (end - start));
        return anneal === "linear"
          ? from + (to - from) * progress
          : to + ((from - to) * (1 + Math.cos(Math.PI * progress))) / 2;
      }
      start = end;
    }
    return last;
  };
}

/**
 * Linear warm-up over the first `iterations` from `factor` times the strategy's rate, then the strategy; with factor 1 / 1000
 * and 500 iterations this is Detectron's. Over a constant rate, torch's LinearLR.
 */
export function warmup(schedule: Schedule, iterations: number, factor = 0.001): Schedule {
  checkNumber("warmup", "factor", factor, factor >= 0 && factor <= 1, "a number from 0 to 1");
  return (iteration) => {
    if (iteration >= iterations) return schedule(iteration);
    const progress = iteration / iterations;
    return schedule(iteration) * (factor * (1 - progress) + progress);
  };
}

/** Warm-up over the first `iterations` by the same factor each, from `factor` times the strategy's rate, then the strategy. */
export function exponentialWarmup(schedule: Schedule, iterations: number, factor = 0.001): Schedule {
  checkNumber("exponentialWarmup", "factor", factor, factor > 0 && factor <= 1, "a number above 0 and up to 1");
  return (iteration) =>
    iteration >= iterations ? schedule(iteration) : schedule(iteration) * factor ** (1 - iteration / iterations);
}

/**
 * One strategy after the other: each begins at an iteration, from its own 0; torch's SequentialLR. The first begins at 0.
 */
export function chained(parts: readonly (readonly [start: number, schedule: Schedule])[]): Schedule {
  check(
    parts.length > 0 &&
      parts[0]?.[0] === 0 &&
      parts.every(([start], i) => i === 0 || start > (parts[i - 1]?.[0] as number)),
    "chained",
    () =>
      `expected strategies that begin at 0 and at increasing iterations, got ${parts.map(([start]) => start).join(", ")}`,
  );
  return (iteration) => {
    const [start, schedule] = parts.findLast(([begin]) => iteration >= begin) as readonly [number, Schedule];
    return schedule(iteration - start);
  };
}

export interface PlateauOptions {
  /** Whether a smaller or a larger value is better. Default "larger", as of AP. */
  better?: "smaller" | "larger";
  /** What the rate is multiplied by. Default 0.1. */
  factor?: number;
  /** Values in a row without improvement that are put up with. Default 10. */
  patience?: number;
  /** How much better a value must be than the best: a part of that, or an amount. Default 1e-4. */
  threshold?: number;
  thresholdMode?: "relative" | "absolute";
  /** Values after a reduction that are not counted. Default 0. */
  cooldown?: number;
  /** The factor in all goes no lower. Default 0. */
  least?: number;
}

/** What ReduceOnPlateau goes on from. */
export interface PlateauState {
  best: number | null;
  bad: number;
  cooldown: number;
  factor: number;
}

/**
 * Reduces the rate when a value, such as the AP of each evaluation, has stopped getting better; torch's ReduceLROnPlateau. Its
 * factor multiplies a schedule's rates.
 */
export class ReduceOnPlateau {
  readonly #options: Required<PlateauOptions>;
  #state: PlateauState = { best: null, bad: 0, cooldown: 0, factor: 1 };

  constructor(options: PlateauOptions = {}) {
    this.#options = {
      ...{
        better: "larger",
        factor: 0.1,
        patience: 10,
        threshold: 1e-4,
        thresholdMode: "relative",
        cooldown: 0,
        least: 0,
      },
      ...options,
    };
    const { factor, patience, cooldown, threshold } = this.#options;
    checkNumber("ReduceOnPlateau", "factor", factor, factor > 0 && factor < 1, "a number between 0 and 1");
    checkNumber("ReduceOnPlateau", "threshold", threshold, threshold >= 0, "a number >= 0");
    checkCount("ReduceOnPlateau", "patience", patience, 0);
    checkCount("ReduceOnPlateau", "cooldown", cooldown, 0);
  }

  /** What the schedule's rates are multiplied by. */
  get factor(): number {
    return this.#state.factor;
  }

  /** Takes the next value; true where the factor has changed. A value that is no number is no improvement. */
  observe(value: number): boolean {
    const state = this.#state;
    const { factor, patience, cooldown, least } = this.#options;
    if (state.best === null ? !Number.isNaN(value) : this.#isBetter(value, state.best)) {
      state.best = value;
      state.bad = 0;
    } else {
      state.bad++;
    }
    if (state.cooldown > 0) {
      state.cooldown--;
      state.bad = 0;
    }
    if (state.bad <= patience) return false;
    state.cooldown = cooldown;
    state.bad = 0;
    const reduced = Math.max(state.factor * factor, least);
    const changed = reduced < state.factor;
    state.factor = Math.min(state.factor, reduced);
    return changed;
  }

  state(): PlateauState {
    return { ...this.#state };
  }

  restore(state: PlateauState): void {
    this.#state = { ...state };
  }

  #isBetter(value: number, best: number): boolean {
    const { better, threshold, thresholdMode } = this.#options;
    const sign = better === "smaller" ? -1 : 1;
    // As torch: a part of the best value itself, which of a negative one lies on the other side.
    const least = thresholdMode === "relative" ? best * (1 + sign * threshold) : best + sign * threshold;
    return better === "smaller" ? value < least : value > least;
  }
}

/** The rates of iterations 0 to length - 1, as the device's table. */
export function scheduleTable(schedule: Schedule, length: number): Float32Array {
  const table = new Float32Array(Math.max(1, length));
  for (let i = 0; i < table.length; ++i) {
    const rate = schedule(i);
    check(Number.isFinite(rate) && rate >= 0, "schedule", () => `expected a rate >= 0 for iteration ${i}, got ${rate}`);
    table[i] = rate;
  }
  return table;
}

/** Learning-rate strategies as plain data, and what they make. */
import {
  chained,
  constantRate,
  cosine,
  cosineRestarts,
  exponential,
  exponentialWarmup,
  multiStep,
  oneCycle,
  polynomial,
  type Schedule,
  stepped,
  warmup,
} from "../schedule";
import { choice, flag, integer, list, number, place, type ValueOf } from "./kinds";
import { byDefault, optional, required, type Settings, variants } from "./setting";

const length = optional(place(1), "iterations that it takes; a share of all below 1; default: to the end");
const least = byDefault(number({ from: 0 }), 0, "the rate that it falls to");
const gamma = (value: number) => byDefault(number({ above: 0 }), value, "what the rate is multiplied by");

const simple = {
  constant: {},
  multiStep: {
    milestones: byDefault(list(place(1)), [0.7, 0.9], "iterations, or shares of all, at which the rate is multiplied"),
    gamma: gamma(0.1),
  },
  step: { every: required(place(1), "iterations, or a share of all, after which it is multiplied"), gamma: gamma(0.1) },
  exponential: { gamma: required(number({ above: 0 }), "what the rate is multiplied by each iteration") },
  polynomial: { iterations: length, power: byDefault(number({ from: 0 }), 1, "of the part that is left; 1 is a line") },
  cosine: { iterations: length, least },
  cosineRestarts: {
    first: required(place(1), "iterations, or a share of all, of the first period"),
    factor: byDefault(integer(1), 1, "how many times as long as the one before each other period is"),
    least,
  },
  oneCycle: {
    iterations: length,
    rise: byDefault(number({ above: 0, below: 1 }), 0.3, "part of it in which the rate rises"),
    anneal: byDefault(choice(["cosine", "linear"]), "cosine", "how the rate changes"),
    divideFirst: byDefault(number({ above: 0 }), 25, "the first rate is the largest divided by this"),
    divideLast: byDefault(number({ above: 0 }), 1e4, "the last rate is the first divided by this"),
    threePhases: byDefault(flag, false, "down to the first rate as fast as up, and then to the last"),
  },
} satisfies Record<string, Settings>;

const partFields = {
  start: required(place(0), "the iteration, or share of all, at which it begins; 0 for the first"),
  rate: optional(number({ above: 0 }), "its learning rate; default: the training's"),
} satisfies Settings;

// Each kind with the fields that it has as a part; written out, since a mapped type would hide them.
const parts = variants(
  {
    constant: { ...simple.constant, ...partFields },
    multiStep: { ...simple.multiStep, ...partFields },
    step: { ...simple.step, ...partFields },
    exponential: { ...simple.exponential, ...partFields },
    polynomial: { ...simple.polynomial, ...partFields },
    cosine: { ...simple.cosine, ...partFields },
    cosineRestarts: { ...simple.cosineRestarts, ...partFields },
    oneCycle: { ...simple.oneCycle, ...partFields },
  },
  "multiStep",
);

/** Strategies by name: those of `schedule.ts`. */
export const scheduleKind = variants(
  {
    ...simple,
    chained: { parts: required(list(parts), "strategies that follow each other; places in one count from its start") },
  },
  "multiStep",
);

const warmupFields = {
  iterations: optional(place(1), "how long; a share of all below 1; default: 500, at most a tenth of all"),
  factor: byDefault(number({ above: 0, to: 1 }), 0.001, "part of the strategy's rate that it begins with"),
} satisfies Settings;

export const warmupKind = variants({ linear: warmupFields, exponential: warmupFields }, "linear");

export type ScheduleConfig = ValueOf<typeof scheduleKind>;
export type WarmupConfig = ValueOf<typeof warmupKind>;
type PartConfig = ValueOf<typeof parts>;

/** The iteration that a place is, of so many. */
export function iterationAt(at: number, iterations: number): number {
  return at < 1 && at > 0 ? Math.max(1, Math.round(at * iterations)) : at;
}

/** How long a warm-up takes where nothing says so. */
export function warmupLength({ iterations }: WarmupConfig, total: number): number {
  return iterations === undefined ? Math.min(500, Math.ceil(total / 10)) : iterationAt(iterations, total);
}

/**
 * The learning rate of each iteration.
 *
 * @param rate that the strategy begins with, or, in one cycle, reaches
 * @param iterations of the training: shares are of these
 */
export function makeSchedule(
  config: ScheduleConfig,
  warm: WarmupConfig | null,
  rate: number,
  iterations: number,
): Schedule {
  const schedule = config.kind === "chained" ? chain(config.parts, rate, iterations) : one(config, rate, iterations);
  if (!warm) return schedule;
  const around = warm.kind === "linear" ? warmup : exponentialWarmup;
  return around(schedule, warmupLength(warm, iterations), warm.factor);
}

function chain(configs: readonly PartConfig[], rate: number, iterations: number): Schedule {
  const starts = configs.map(({ start }) => iterationAt(start, iterations));
  return chained(
    configs.map((config, i) => {
      const start = starts[i] as number;
      const end = starts[i + 1] ?? Math.max(iterations, start + 1);
      return [start, one(config, config.rate ?? rate, end - start)] as const;
    }),
  );
}

function one(config: Exclude<ScheduleConfig, { kind: "chained" }>, rate: number, total: number): Schedule {
  const at = (where: number) => iterationAt(where, total);
  const span = (iterations: number | undefined) => (iterations === undefined ? total : at(iterations));
  switch (config.kind) {
    case "constant":
      return constantRate(rate);
    case "multiStep":
      // In a short training, two shares may be the same iteration: the rate falls once there.
      return multiStep(rate, [...new Set(config.milestones.map(at))], config.gamma);
    case "step":
      return stepped(rate, at(config.every), config.gamma);
    case "exponential":
      return exponential(rate, config.gamma);
    case "polynomial":
      return polynomial(rate, span(config.iterations), config.power);
    case "cosine":
      return cosine(rate, span(config.iterations), config.least);
    case "cosineRestarts":
      return cosineRestarts(rate, at(config.first), config.factor, config.least);
    case "oneCycle": {
      const { kind: _, iterations, ...options } = config;
      return oneCycle(rate, Math.max(2, span(iterations)), options);
    }
  }
}

import { check } from "../native";

/** A learning-rate strategy: the rate of each iteration, from 0. Any function will do. */
export type Schedule = (iteration: number) => number;

/** The same rate throughout. */
export function constantRate(rate: number): Schedule {
  return () => rate;
}

/** The rate, multiplied by gamma at each milestone (an iteration); torch.optim.lr_scheduler.MultiStepLR, by iteration. */
export function multiStep(rate: number, milestones: readonly number[], gamma = 0.1): Schedule {
  check(
    milestones.every((milestone, i) => i === 0 || milestone > (milestones[i - 1] as number)),
    "multiStep",
    () => `expected increasing milestones, got ${milestones.join(", ")}`,
  );
  return (iteration) => rate * gamma ** milestones.filter((milestone) => iteration >= milestone).length;
}

/**
 * Linear warm-up over the first `iterations` from `factor` times the strategy's rate, then the strategy; with factor 1 / 1000
 * and 500 iterations this is Detectron's.
 */
export function warmup(schedule: Schedule, iterations: number, factor = 0.001): Schedule {
  return (iteration) => {
    if (iteration >= iterations) return schedule(iteration);
    const progress = iteration / iterations;
    return schedule(iteration) * (factor * (1 - progress) + progress);
  };
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

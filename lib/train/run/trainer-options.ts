import type { DetectionModel } from "../../models";
import { ConfigError } from "../config/kinds";
import { iterationAt, makeSchedule } from "../config/schedule-settings";
import type { TrainConfig } from "../config/train-config";
import { describeNames, type FreezeRule, problemOf } from "../freezing";
import { type ParameterGroup, withoutDecay } from "../sgd";
import type { TrainerOptions } from "../trainer";

/** Raises what a group of parameters matches nothing, before anything is written. `at`: where the groups were given. */
export function checkGroups(model: DetectionModel, { groups }: TrainConfig, at: string): void {
  const names = [...model.namedParameters()].flatMap(([name, { requiresGrad }]) => (requiresGrad ? [name] : []));
  for (const [i, { match }] of groups.entries()) {
    if (names.some((name) => new RegExp(match).test(name))) continue;
    const shown = describeNames(names);
    throw new ConfigError(`${at}[${i}].match`, `/${match}/ matches no parameter that trains; they begin with ${shown}`);
  }
}

/** Raises what cannot be frozen, before anything is written. `at`: where that was given. */
export function checkFreeze(model: DetectionModel, config: TrainConfig, at: string): void {
  const problem = problemOf(model, freezeRules(config));
  if (problem) throw new ConfigError(`${at}[${problem.rule}]${problem.field}`, problem.message);
}

const freezeRules = ({ freeze, iterations }: TrainConfig): FreezeRule[] =>
  freeze.map(({ match, until }) => ({ match, ...(until !== undefined && { until: iterationAt(until, iterations) }) }));

/** What a configuration says to a Trainer. */
export function trainerOptions(
  config: TrainConfig,
): Omit<TrainerOptions, "model" | "loader" | "decoder" | "evaluator" | "checkpointFolder" | "observer" | "signal"> {
  const { iterations, learningRate, schedule, warmup, momentum, nesterov, weightDecay, groups, decayBiases } = config;
  const { clipNorm, clipValue, lossScaling, ema, plateau, accumulate, patience, evaluateEvery, checkpointEvery } =
    config;
  const named = groups.map(({ match, ...settings }): ParameterGroup => ({ match: new RegExp(match), ...settings }));
  return {
    optimizer: {
      schedule: makeSchedule(schedule, warmup, learningRate, iterations),
      ...{ momentum, nesterov, weightDecay, gradNorm: true },
      groups: [...named, ...(decayBiases ? [] : [withoutDecay])],
      ...(clipNorm !== null && { clipNorm }),
      ...(clipValue !== null && { clipValue }),
      ...(lossScaling !== undefined && { lossScaling: lossScaling ?? false }),
    },
    freeze: freezeRules(config),
    ...(ema && { ema }),
    ...(plateau && { plateau }),
    ...{ accumulate, patience, iterations, evaluateEvery, checkpointEvery, config },
    keep: { keepLast: config.keep, keepEvery: config.keepEvery },
    recompute: config.recompute,
    ranks: { checksumEvery: config.checksumEvery },
  };
}

import { join, resolve } from "node:path";
import { type ProcessGroup, ranksFromEnvironment, withRanks } from "../distributed";
import { ConfigError, checkContradictions, parseTrainArguments, stopOnSignals, Training } from "../train";
import { number, positiveInteger, UsageError } from "./arguments";
import { launchRanks, takeLaunchOptions } from "./launch";
import type { Verb } from "./main";

const help = `dlfs lr-find: a learning-rate range test (Smith 2017): trains while the rate grows from step to step, until the loss
diverges, and suggests the rate at which the smoothed loss falls fastest. No weight is kept.

Usage: dlfs lr-find [the options of dlfs train] [--from X] [--to X] [--steps N] [--report DIR]

  --from X            the first rate; default 1e-6
  --to X              the last rate; default 10
  --steps N           steps from one to the other; default 100
  --report DIR        where lr-find.svg (a plot) and lr-find.json (all steps) are written; default: lr-find below --out
  --gpus N            processes that take each step together, as dlfs train does; srun, mpirun and torchrun start it as well

All else is as of dlfs train: data, model, batch, precision, optimizer and augmentation are those of the training that the rate
is for; its schedule and warm-up are not used.`;

const OWN = ["from", "to", "steps", "report"] as const;

/** Takes the options of its own out of the arguments. */
function split(argv: readonly string[]) {
  const own: Partial<Record<(typeof OWN)[number], string>> = {};
  const rest: string[] = [];
  for (let i = 0; i < argv.length; i++) {
    const [, name, assigned] = /^--([a-z]+)(?:=([\s\S]*))?$/.exec(argv[i] as string) ?? [];
    const option = OWN.find((known) => known === name);
    if (option === undefined) {
      rest.push(argv[i] as string);
      continue;
    }
    const value = assigned ?? argv[++i];
    if (value === undefined) throw new UsageError(`--${option}: expected a value after it`);
    own[option] = value;
  }
  return { own, rest };
}

async function find(argv: readonly string[], group: ProcessGroup | undefined): Promise<number> {
  const { own, rest } = split(argv);
  const range = {
    ...(own.from !== undefined && { from: number("from", own.from) }),
    ...(own.to !== undefined && { to: number("to", own.to) }),
    ...(own.steps !== undefined && { steps: positiveInteger("steps", own.steps) }),
  };
  const args = parseTrainArguments(rest);
  if (args.resumed) throw new ConfigError("--resume", "a range test starts anew; --weights RUN takes a run's weights");
  checkContradictions(args);
  const writes = group?.isRoot ?? true;
  using stop = stopOnSignals(() => {
    if (writes) console.error("\nstopping after this step; again to stop at once");
  });
  const folder = resolve(own.report ?? join(args.settings.out ?? "runs", "lr-find"));
  const { result } = await Training.findRate(args, { ...range, signal: stop.signal, folder, group });
  if (result.ended === "interrupted") return stop.exitStatus;
  return result.suggestion === null && writes ? 1 : 0;
}

export const verb: Verb = {
  help,
  async run(argv) {
    try {
      const launched = takeLaunchOptions(argv);
      const ranks = ranksFromEnvironment();
      if (launched && !ranks) return await launchRanks(launched.values, [Bun.main, "lr-find", ...launched.rest]);
      const rest = launched?.rest ?? argv;
      return await withRanks({ arguments: rest }, (group) => find(rest, group));
    } catch (error) {
      throw error instanceof ConfigError
        ? new UsageError(`${error.message}\n\`dlfs lr-find --help\` and \`dlfs train --help\` list the options`)
        : error;
    }
  },
};

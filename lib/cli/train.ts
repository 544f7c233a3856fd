import { type ProcessGroup, ranksFromEnvironment, withRanks } from "../distributed";
import {
  ConfigError,
  checkContradictions,
  fetchResumed,
  parseTrainArguments,
  restartArguments,
  stopOnSignals,
  Training,
  trainHelp,
} from "../train";
import { UsageError } from "./arguments";
import { launchRanks, takeLaunchOptions } from "./launch";
import type { Verb } from "./main";

const help = trainHelp([
  "dlfs train: trains an object detector on a data set in COCO's layout.",
  "",
  "Usage: dlfs train [--config FILE] [--OPTION VALUE | SETTING=VALUE ...]",
  "       dlfs train --resume RUN [...]",
  "       dlfs train --gpus N [--max-restarts N] [--min-gpus N] [...]   N processes that train together: see dlfs launch",
]);

async function train(argv: string[], group: ProcessGroup | undefined): Promise<number> {
  const isRoot = group?.isRoot ?? true;
  const log = isRoot ? console.log : () => {};
  const reading = async () => parseTrainArguments((await restartArguments()) ?? (await fetchResumed(argv, log)));
  const args = await (group?.rootFirst("arguments", reading) ?? reading()); // what is fetched is there for the others
  checkContradictions(args);
  using stop = stopOnSignals(() => {
    if (isRoot) console.error("\nstopping after this step, with a checkpoint; again to stop at once");
  });
  if (args.dryRun) {
    const { result } = await Training.dryRun(args, { group });
    return result.failed ? 1 : 0;
  }
  await using training = await Training.prepare(args, { command: "dlfs train", signal: stop.signal, group });
  if (isRoot) console.log("training; Ctrl-C stops with a checkpoint");
  const outcome = await training.run();
  if (isRoot) for (const line of training.describe(outcome)) console.log(line);
  return outcome.interrupted ? stop.exitStatus : 0;
}

export const verb: Verb = {
  help,
  async run(argv) {
    try {
      const launched = takeLaunchOptions(argv);
      const ranks = ranksFromEnvironment();
      if (launched && !ranks) return await launchRanks(launched.values, [Bun.main, "train", ...launched.rest]);
      const rest = launched?.rest ?? argv;
      return await withRanks({ arguments: rest }, (group) => train(rest, group));
    } catch (error) {
      throw error instanceof ConfigError
        ? new UsageError(`${error.message}\n\`dlfs train --help\` lists the options`)
        : error;
    }
  },
};

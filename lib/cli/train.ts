import {
  ConfigError,
  checkContradictions,
  fetchResumed,
  parseTrainArguments,
  stopOnSignals,
  Training,
  trainHelp,
} from "../train";
import { UsageError } from "./arguments";
import type { Verb } from "./main";

const help = trainHelp([
  "dlfs train: trains an object detector on a data set in COCO's layout.",
  "",
  "Usage: dlfs train [--config FILE] [--OPTION VALUE | SETTING=VALUE ...]",
  "       dlfs train --resume RUN [...]",
]);

export const verb: Verb = {
  help,
  async run(argv) {
    try {
      const args = parseTrainArguments(await fetchResumed(argv));
      checkContradictions(args);
      using stop = stopOnSignals(() =>
        console.error("\nstopping after this step, with a checkpoint; again to stop at once"),
      );
      if (args.dryRun) {
        const { result } = await Training.dryRun(args, {});
        return result.failed ? 1 : 0;
      }
      await using training = await Training.prepare(args, { command: "dlfs train", signal: stop.signal });
      console.log("training; Ctrl-C stops with a checkpoint");
      const outcome = await training.run();
      for (const line of training.describe(outcome)) console.log(line);
      return outcome.interrupted ? stop.exitStatus : 0;
    } catch (error) {
      throw error instanceof ConfigError
        ? new UsageError(`${error.message}\n\`dlfs train --help\` lists the options`)
        : error;
    }
  },
};

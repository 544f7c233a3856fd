/**
 * Trains an object detector on a data set in COCO's layout, or on a small drawn one that comes with dlfs; `dlfs train` as a program
 * to start from. 02_define_model.ts and 04_fine_tune.ts put a Trainer together by hand.
 *
 *   bun run examples/train_coco.ts                        COCO 2017 in ~/datasets/coco, where that exists, else the demo
 *   bun run examples/train_coco.ts --data demo
 *   bun run examples/train_coco.ts --data DIR --train-split train --val-split val
 *   bun run examples/train_coco.ts --data gs://BUCKET/coco
 *   bun run examples/train_coco.ts --model retinanet_resnet50_fpn --backbone-weights resnet50.pth
 *   bun run examples/train_coco.ts --data DIR --records RECORDS
 *   bun run examples/train_coco.ts --config settings.yaml schedule.kind=cosine ema=0.9998
 *   bun run examples/train_coco.ts --resume runs/demo-1
 *   bun run dlfs launch --gpus 4 -- examples/train_coco.ts --data DIR
 */
import {
  ConfigError,
  DlfsError,
  type ProcessGroup,
  parseTrainArguments,
  restartArguments,
  stopOnSignals,
  Training,
  trainHelp,
  withRanks,
} from "dlfs";

/** Trains as the command line says, or as one of several ranks; the result is the exit status. */
async function main(group?: ProcessGroup): Promise<number> {
  // Settings come from files, SETTING=VALUE and options; what is wrong with them is said before anything is opened.
  const args = parseTrainArguments((await restartArguments()) ?? process.argv.slice(2));
  if (args.help) {
    console.log(trainHelp(["Trains an object detector on a data set in COCO's layout."]));
    return 0;
  }

  // Ctrl-C ends the training after the step under way, with a checkpoint to go on from.
  using stop = stopOnSignals(() =>
    console.error("\nstopping after this step, with a checkpoint; again to stop at once"),
  );

  // Reads and checks the data, makes the model and a folder for the run, or opens that of the run that goes on.
  await using training = await Training.prepare(args, {
    command: "bun run examples/train_coco.ts",
    signal: stop.signal,
    group,
  });
  const shows = group?.isRoot ?? true;
  if (shows) console.log("training; Ctrl-C stops with a checkpoint");

  // Steps, evaluations, checkpoints; pictures and metrics appear in the run's folder meanwhile.
  const outcome = await training.run();
  if (shows) for (const line of training.describe(outcome)) console.log(line);
  return outcome.interrupted ? stop.exitStatus : 0;
}

try {
  // Under dlfs launch, torchrun, srun or mpirun several processes train together.
  process.exitCode = await withRanks({}, main);
} catch (error) {
  if (!(error instanceof DlfsError)) throw error;
  const wrongCall = error instanceof ConfigError;
  console.error(wrongCall ? `train_coco: ${error.message}\nTry --help for the options.` : `error: ${error.message}`);
  process.exitCode = wrongCall ? 2 : 1;
}

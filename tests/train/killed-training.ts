/**
 * A training that goes on from its last checkpoint: DATASET RUN ITERATIONS between|beside [COUNT DELAY step|save]. After so many steps,
 * or when it begins to save for the so manieth time, and after so many milliseconds, a thread of its own kills it, whatever the
 * others are at. Prints the steps that it does. Evaluations come between
 * steps, or go on beside them.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import {
  CocoDataLoader,
  DeviceBatchDecoder,
  DeviceImageCodec,
  HorizontalFlip,
  loadDataset,
  Normalize,
  Resize,
} from "../../lib/data";
import { CheckpointStore, makeFolder } from "../../lib/formats";
import { CompactDetector } from "../../lib/models";
import { RunFolder } from "../../lib/monitor";
import { Stream } from "../../lib/tensor";
import { Evaluator, multiStep, Trainer, warmup } from "../../lib/train";
import { testDevice } from "../support/device";

const [folder = "", path = "", iterations = "", evaluations = "", count = "0", delay = "0", what = "step"] =
  process.argv.slice(2);
/** Set to 1 when the time of the one that kills begins. */
const begins = new Int32Array(new SharedArrayBuffer(4));
const killer = `
  addEventListener("message", ({ data: [begins, delay] }) => {
    Atomics.wait(begins, 0, 0);
    Atomics.wait(begins, 0, 1, delay);
    process.kill(process.pid, "SIGKILL");
  });
`;
let left = Number(count);
const happens = (event: string) => {
  if (event !== what || --left !== 0) return;
  Atomics.store(begins, 0, 1);
  Atomics.notify(begins, 0);
};
if (left > 0) {
  const worker = new Worker(URL.createObjectURL(new Blob([killer], { type: "application/typescript" })));
  worker.postMessage([begins, Number(delay)]);
}
const device = testDevice({ deterministic: true });
using dataset = await loadDataset(folder, {
  codec: new DeviceImageCodec(device),
  store: ":memory:",
  progress: () => {},
});
using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
model.to(device, { seed: 5 });
const preprocessing = [new HorizontalFlip(), new Resize(), new Normalize()];
const shape = { batchSize: 2, height: 64, width: 64, preprocessing };
using decoder = new DeviceBatchDecoder(device, shape);
using evalDecoder = new DeviceBatchDecoder(device, shape);
const { store, source } = dataset;
const common = { store, source, batchSize: 2, size: [64, 64] as const };
await using loader = new CocoDataLoader({ ...common, decoder, split: "train2017", seed: 3, preprocessing });
const plain = [new Resize(), new Normalize()];
const options = { ...common, decoder: evalDecoder, split: "val2017", shuffle: false, preprocessing: plain };
await using evalLoader = new CocoDataLoader(options);
const beside = evaluations === "beside";
using second = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
using stream = new Stream(device);
const own = beside ? { model: second.to(device), stream } : { model };
using evaluator = new Evaluator({ ...own, store, split: "val2017", loader: evalLoader, decoder: evalDecoder });

const checkpointFolder = join(path, "checkpoints");
if (!existsSync(path)) await makeFolder(path);
const latest = await new CheckpointStore(checkpointFolder).latest();
for (const error of latest?.damaged ?? []) console.log(`damaged: ${error.message}`);
const { iteration: from = 0, state } = latest?.checkpoint.metadata ?? {};
const run = RunFolder.open(path, { from, evaluated: state?.evaluation !== "due" });
using trainer = new Trainer({
  ...{ model, loader, decoder, evaluator, checkpointFolder },
  // Of fp16's loss scale, the scale and its counters go on, too.
  optimizer: { schedule: warmup(multiStep(0.01, [30]), 10), clipNorm: 10, lossScaling: { initial: 1024, interval: 7 } },
  ema: { decay: 0.9, warmup: 20 },
  iterations: Number(iterations),
  evaluateEvery: beside ? 4 : 20,
  checkpointEvery: 2,
  observer: {
    onStep: (iteration) => {
      console.log(`step ${iteration}`);
      happens("step");
    },
    onCheckpointStart: () => happens("save"),
    onResult: ({ iteration, losses, rate, gradNorm }) =>
      run.appendMetrics({ kind: "train", iteration, ...losses, rate, gradNorm }),
    onEvaluation: (iteration, { stats }) => run.appendMetrics({ kind: "evaluation", iteration, ...stats }),
  },
});
if (latest) {
  await trainer.resume(latest.checkpoint);
  await latest.checkpoint.close();
}
const outcome = await trainer.train();
run.close();
console.log(`done ${outcome.iteration}`);

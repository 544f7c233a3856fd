/**
 * One rank of data-parallel.test.ts, by the launcher's environment: OUT OPTIONS as JSON. Trains some steps on its share of
 * batches of noise; every rank writes its weights and last gradients to OUT.RANK, and prints its reports.
 */
import { deviceOfRank, ProcessGroup, ranksFromEnvironment } from "../../lib/distributed";
import { BatchNorm2d, FrozenBatchNorm2d, Layer, synchronizeBatchNorm } from "../../lib/layers";
import { CompactDetector } from "../../lib/models";
import { Device, Tensor } from "../../lib/tensor";
import { constantRate, DataParallel, SGD, type SGDOptions, type StepResult, TrainStep } from "../../lib/train";
import { Random } from "../support/random";

export interface ParallelOptions {
  norm: "frozen" | "sync" | "batch";
  steps: number;
  /** Images of all ranks together. */
  batch: number;
  accumulate?: number;
  optimizer?: Partial<SGDOptions>;
  bucketBytes?: number;
  /** A rank and a step before which its last parameter is not a number any more. */
  poison?: [rank: number, step: number];
  /** Of the images. Default 0. */
  seed?: number;
  /** The seed of each rank's weights is its own, which the broadcast must set right. */
  ownSeeds?: boolean;
}

const [out = "", json = "{}"] = process.argv.slice(2);
const options = JSON.parse(json) as ParallelOptions;
const ranks = ranksFromEnvironment()!;
const { rank, world } = ranks;
const group = await ProcessGroup.join({ ranks });
await group.run(async () => {
  using device = new Device({ ...deviceOfRank(ranks, process.env.DLFS_BACKEND ?? "cpu"), deterministic: true });
  const communicator = await group.connect(device);
  {
    using model = new CompactDetector({ classes: 2, width: 8, headConvs: 1 });
    if (options.norm === "frozen") replaceNorms(model);
    if (options.norm === "sync") synchronizeBatchNorm(model, communicator);
    model.to(device, { seed: options.ownSeeds ? 7 + rank : 7 });
    const parallel = new DataParallel(model, communicator, { bucketBytes: options.bucketBytes ?? 20_000 });
    parallel.broadcast([...model.stateDict().values()], "initial weights");
    model.refresh();
    const { steps, batch, accumulate = 1 } = options;
    const n = batch / world / accumulate;
    using optimizer = new SGD(model, { schedule: constantRate(0.05), iterations: steps, ...options.optimizer });
    using step = new TrainStep(model, optimizer, {
      batchSize: n,
      height: 64,
      width: 64,
      maxBoxes: 2,
      accumulate,
      parallel,
    });
    const reports: StepResult[] = [];
    for (let i = 0; i < steps; i++) {
      if (options.poison?.[0] === rank && options.poison[1] === i)
        model
          .parameters()
          .at(-1)!
          .tensor.write(new Float32Array(model.parameters().at(-1)!.size).fill(Number.NaN));
      for (let part = 0; part < accumulate; part++) {
        // Each step's images are cut like a loader's: parts of all ranks, and of those each rank's.
        const first = part * (batch / accumulate) + rank * n;
        const pixels = 64 * 64 * 3;
        const noise = new Random(`${options.seed ?? 0}, step ${i}`)
          .normal(batch * pixels)
          .slice(first * pixels, (first + n) * pixels);
        using images = Tensor.from(device, noise, [n, 64, 64, 3]);
        const box = (image: number) => [4 + 3 * (image % 5), 6, 30 + 5 * (image % 4), 40, 20, 20, 60, 60];
        const boxes = Float32Array.from(Array.from({ length: n }, (_, image) => box(first + image)).flat());
        const labels = Int32Array.from({ length: 2 * n }, (_, j) => j % 2);
        const counts = Int32Array.from({ length: n }, (_, image) => (first + image) % 3);
        await step.submit(images, { boxes, labels, counts });
        reports.push(...(await step.drain()));
      }
    }
    const values = (of: "tensor" | "grad") =>
      model.parameters().flatMap((parameter) => (parameter[of] ? [...(parameter[of].read() as Float32Array)] : []));
    const state = [...model.stateDict()].flatMap(([, tensor]) => [...(tensor.read() as Float32Array)]);
    await Bun.write(
      `${out}.${rank}`,
      JSON.stringify({ gradients: values("grad"), state, reports, buckets: parallel.buckets }),
    );
  }
  await group.disconnect();
});
process.exit(0);

/** Fixes all statistics: then each image's gradients are its own. */
function replaceNorms(layer: Layer): void {
  const frozen = (child: unknown) =>
    child instanceof BatchNorm2d
      ? new FrozenBatchNorm2d(child.channels)
      : child instanceof Layer && replaceNorms(child);
  for (const [name, child] of Object.entries(layer)) {
    if (Array.isArray(child)) for (const [i, each] of child.entries()) child[i] = frozen(each) || each;
    else Object.assign(layer, { [name]: frozen(child) || child });
  }
}

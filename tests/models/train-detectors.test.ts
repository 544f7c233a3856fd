/** Every kind of detector learns: from random weights, a few steps on a tiny data set lower its losses. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { CocoDataLoader, DeviceBatchDecoder, DeviceImageCodec, loadDataset, Normalize, Resize } from "../../lib/data";
import { type DetectionModel, FCOS, RetinaNet, SSDLite } from "../../lib/models";
import { Evaluator, SGD, TrainStep, warmup } from "../../lib/train";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

const device = testDevice();
const BATCH = 4;
const SIDE = 64;
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(device);
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

/** Sums of the losses of each step, and COCO's figures after the last. */
async function learn(model: DetectionModel, steps: number, rate: number) {
  using dataset = await loadDataset(folder, { codec: new DeviceImageCodec(device), store: ":memory:" });
  const preprocessing = [new Resize(), new Normalize(model.normalization)];
  using decoder = new DeviceBatchDecoder(device, { batchSize: BATCH, height: SIDE, width: SIDE, preprocessing });
  const options = { store: dataset.store, source: dataset.source, decoder, batchSize: BATCH, preprocessing };
  const size = [SIDE, SIDE] as const;
  const sums: number[] = [];
  {
    await using loader = new CocoDataLoader({ ...options, size, split: "train2017", seed: 3 });
    using optimizer = new SGD(model, { schedule: warmup(() => rate, 4), iterations: steps });
    const { maxBoxes } = loader;
    using step = new TrainStep(model, optimizer, { batchSize: BATCH, height: SIDE, width: SIDE, maxBoxes });
    while (step.iteration < steps) {
      const batch = await loader.getBatch();
      await step.submit(decoder.images(batch.slot), batch);
      for (const { losses } of await step.drain()) sums.push(Object.values(losses).reduce((a, b) => a + b));
      batch.release();
    }
  }
  await using loader = new CocoDataLoader({ ...options, size, split: "val2017", shuffle: false });
  using evaluator = new Evaluator({ model, store: dataset.store, split: "val2017", loader, decoder });
  return { sums, result: (await evaluator.evaluate()).result };
}

describe("a few steps of training lower the losses", () => {
  const models: [string, () => DetectionModel, steps: number, rate: number][] = [
    ["RetinaNet on MobileNetV2", () => new RetinaNet({ classes: 2, backbone: "mobilenet_v2" }), 16, 0.01],
    ["FCOS on MobileNetV2", () => new FCOS({ classes: 2, backbone: "mobilenet_v2" }), 20, 0.002],
    ["SSDLite", () => new SSDLite({ classes: 2, widthMultiplier: 0.5 }), 24, 0.01],
  ];
  test.each(models)(
    "%s",
    async (_, make, steps, rate) => {
      using model = make();
      model.to(device, { seed: 7 });
      const { sums, result } = await learn(model, steps, rate);
      expect(sums).toHaveLength(steps);
      const mean = (part: number[]) => part.reduce((a, b) => a + b) / part.length;
      expect(mean(sums.slice(-4))).toBeLessThan(0.8 * mean(sums.slice(0, 4)));
      expect(result.stats.AP50).toBeGreaterThanOrEqual(0);
    },
    60_000,
  );
});

/** Training from record files: the same loop, and of values the same weights as from images, also when resumed. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  CocoDataLoader,
  DeviceBatchDecoder,
  DeviceImageCodec,
  DeviceRecordReader,
  HorizontalFlip,
  loadDataset,
  Normalize,
  packRecords,
  RecordLoader,
  RecordSet,
  Resize,
  ScaleJitter,
} from "../../lib/data";
import { readCheckpoint } from "../../lib/formats";
import { CompactDetector } from "../../lib/models";
import { constantRate, Trainer, type TrainerOptions } from "../../lib/train";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

const device = testDevice({ deterministic: true });
const size = [64, 64] as const;
const preprocessing = [new Resize(), new Normalize()];
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(device);
  const codec = new DeviceImageCodec(device);
  using dataset = await loadDataset(folder, { codec, valSplit: null, store: ":memory:" });
  const { store, source } = dataset;
  await packRecords({
    ...{ store, source, split: "train2017", folder: join(folder, "records"), device, size, preprocessing },
    dtype: "f32",
  });
  await packRecords({
    ...{ store, source, split: "train2017", folder: join(folder, "pixels"), device, size, preprocessing },
  });
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

type Training = Pick<TrainerOptions, "iterations" | "checkpointFolder" | "checkpointEvery"> & { resume?: string };

async function train(data: Pick<TrainerOptions, "loader" | "decoder">, { resume, ...options }: Training) {
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 5 });
  using trainer = new Trainer({ model, ...data, ...options, optimizer: { schedule: constantRate(0.01) } });
  if (resume !== undefined) {
    await using checkpoint = await readCheckpoint(resume);
    await trainer.resume(checkpoint);
  }
  const outcome = await trainer.train();
  const weights = new Map([...model.namedState()].map(([name, { tensor }]) => [name, tensor.readBytes()]));
  return { outcome, weights };
}

async function fromRecords(options: Training) {
  const records = await RecordSet.open(join(folder, "records"));
  await using reader = new DeviceRecordReader(device, records, { batchSize: 2, workers: 1 });
  await using loader = new RecordLoader({ reader, batchSize: 2, seed: 3 });
  return await train({ loader, decoder: reader }, options);
}

/** From records of pixels, mirrored and scaled. */
async function fromPixels(options: Training) {
  const records = await RecordSet.open(join(folder, "pixels"));
  await using reader = new DeviceRecordReader(device, records, { batchSize: 2, workers: 1 });
  const augmentation = [new ScaleJitter(0.7, 1.4), new HorizontalFlip()];
  await using loader = new RecordLoader({ reader, batchSize: 2, seed: 3, augmentation });
  expect(loader.length).toBeGreaterThan(2);
  return await train({ loader, decoder: reader }, options);
}

async function fromImages(options: Training) {
  const codec = new DeviceImageCodec(device);
  using dataset = await loadDataset(folder, { codec, valSplit: null, store: ":memory:" });
  const { store, source } = dataset;
  using decoder = new DeviceBatchDecoder(device, { batchSize: 2, height: size[0], width: size[1], preprocessing });
  const common = { store, source, split: "train2017", batchSize: 2, size, preprocessing, seed: 3 };
  await using loader = new CocoDataLoader({ ...common, decoder });
  return await train({ loader, decoder }, options);
}

test("training from records of values gives the weights of training from images, and resumes in the middle of a pass", async () => {
  const direct = await fromImages({ iterations: 7 });
  const checkpointFolder = join(folder, "checkpoints");
  const whole = await fromRecords({ iterations: 7, checkpointFolder, checkpointEvery: 3 });
  expect(whole.weights).toEqual(direct.weights);
  const first = await fromRecords({ iterations: 3, checkpointFolder: join(folder, "early") });
  const resumed = await fromRecords({ iterations: 7, resume: first.outcome.checkpoint as string });
  expect(resumed.weights).toEqual(direct.weights);
}, 60_000);

test("training from records of pixels, augmented, gives the same weights when it is resumed in the middle of a pass", async () => {
  const whole = await fromPixels({ iterations: 5 });
  const first = await fromPixels({ iterations: 2, checkpointFolder: join(folder, "middle") });
  const resumed = await fromPixels({ iterations: 5, resume: first.outcome.checkpoint as string });
  expect(resumed.weights).toEqual(whole.weights);
}, 60_000);

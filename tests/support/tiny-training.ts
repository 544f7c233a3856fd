/** A training of a few steps on the data set of tiny-dataset.ts. */
import { expect } from "bun:test";
import {
  CocoDataLoader,
  type CocoDataLoaderOptions,
  DeviceBatchDecoder,
  DeviceImageCodec,
  HorizontalFlip,
  loadDataset,
  Normalize,
  Resize,
} from "../../lib/data";
import { readCheckpoint } from "../../lib/formats";
import { CompactDetector } from "../../lib/models";
import { DlfsError, ErrorCode } from "../../lib/native";
import { type Device, Stream } from "../../lib/tensor";
import { constantRate, Evaluator, Trainer, type TrainerOptions, type TrainingOutcome } from "../../lib/train";

export interface TinyOptions {
  iterations: number;
  /** A checkpoint to go on from. */
  resume?: string;
  /** "beside": with a model and a stream of its own. */
  evaluate?: boolean | "beside";
  more?: Partial<TrainerOptions>;
  /** Which call for a batch fails, from 0. */
  failAt?: number;
  loading?: Partial<CocoDataLoaderOptions>;
  /** The same of the images to evaluate on. */
  evaluation?: Partial<CocoDataLoaderOptions>;
}

export interface TinyResult {
  outcome: TrainingOutcome;
  /** The bytes of the model's parameters and statistics. */
  weights: Map<string, Uint8Array>;
}

/** Batches of 2 images of 64x64, mirrored at random, a learning rate of 0.01; the same results each time. */
export async function trainTiny(device: Device, folder: string, options: TinyOptions): Promise<TinyResult> {
  const { iterations, resume, evaluate = false, more, loading } = options;
  using dataset = await loadDataset(folder, { codec: new DeviceImageCodec(device), store: ":memory:" });
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 5 });
  const evaluation = [new Resize(), new Normalize()];
  const preprocessing = [new HorizontalFlip(), ...evaluation];
  const shared = { batchSize: 2, height: 64, width: 64, preprocessing };
  using decoder = new DeviceBatchDecoder(device, shared);
  const { store, source } = dataset;
  const common = { store, source, batchSize: 2, size: [64, 64] as const };
  await using loader = new CocoDataLoader({
    ...{ ...common, decoder, preprocessing, split: "train2017", seed: 3, onFailure: () => {} },
    ...loading,
  });
  const getBatch = loader.getBatch.bind(loader);
  let calls = 0;
  loader.getBatch = async () => {
    if (calls++ === options.failAt) throw new DlfsError(ErrorCode.io, "loader", "the cable is pulled");
    return await getBatch();
  };
  using evalDecoder = new DeviceBatchDecoder(device, shared);
  await using evalLoader = new CocoDataLoader({
    ...{ ...common, decoder: evalDecoder, preprocessing: evaluation, split: "val2017", shuffle: false },
    ...options.evaluation,
  });
  using second = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  using stream = new Stream(device);
  const own = evaluate === "beside" ? { model: second.to(device, { seed: 99 }), stream } : { model };
  const measured = { ...own, store, split: "val2017", loader: evalLoader, decoder: evalDecoder };
  using evaluator = evaluate ? new Evaluator(measured) : null;
  using trainer = new Trainer({
    ...{ model, loader, decoder, iterations, evaluator },
    optimizer: { schedule: constantRate(0.01) },
    ...more,
  });
  if (resume !== undefined) {
    await using checkpoint = await readCheckpoint(resume);
    await trainer.resume(checkpoint);
  }
  const outcome = await trainer.train();
  return { outcome, weights: new Map([...model.stateDict()].map(([name, tensor]) => [name, tensor.readBytes()])) };
}

/** The DlfsError that a promise is rejected with. */
export async function errorIn(work: Promise<unknown>): Promise<DlfsError> {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(DlfsError);
  return error as DlfsError;
}

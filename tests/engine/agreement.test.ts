/**
 * A served model scores what an evaluation measures: the same bytes at the same batch size and precision, scores within 2e-3 at
 * others, in every precision that the device has; and engines that share a device take nothing from each other.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  CocoDataLoader,
  DeviceBatchDecoder,
  DeviceImageCodec,
  loadDataset,
  Normalize,
  Resize,
  TRANSFORM_FLOATS,
} from "../../lib/data";
import { Engine, type EngineResult } from "../../lib/engine";
import { planImage } from "../../lib/engine/image-input";
import { type Precision, precisionPolicy, type QuantizedDType } from "../../lib/tensor";
import { calibrate, Evaluator, type ImageDetections, loadTrainedModel, measure, saveModel } from "../../lib/train";
import { missing, testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { saveTrained } from "../support/trained-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-agreement-"));
const device = testDevice({ deterministic: true });
const codec = new DeviceImageCodec(device);
const IMAGES = 8;
const data = await writeTinyDataset(device, IMAGES);
const dataset = await loadDataset(data, { codec, store: ":memory:", progress: () => {} });
afterAll(() => {
  dataset[Symbol.dispose]();
  for (const place of [folder, data]) rmSync(place, { recursive: true });
});

const model = {
  ...({ name: "compact", classes: 2, width: 4, headConvs: 1 } as const),
  // Weights at random: everything counts, so that there is something to compare.
  postprocess: { scoreThreshold: 0, topK: 50, maxDetections: 20 },
};
const size = [64, 64] as const;
const operations = [new Resize(), new Normalize()];
const path = join(folder, "a.dlfs");
const names = Array.from({ length: IMAGES }, (_, i) => `${i + 1}.jpg`);
const files = await Promise.all(names.map((name) => Bun.file(join(data, "val2017", name)).bytes()));
{
  const checkpoint = join(folder, "a.dlck");
  const preprocessing = operations.map((op) => op.toJSON());
  await saveTrained(checkpoint, model, 3, { model, classes: ["red", "green"], size, preprocessing });
  using trained = await loadTrainedModel(checkpoint, device);
  const [height, width] = size;
  using decoder = new DeviceBatchDecoder(device, { batchSize: IMAGES, height, width, preprocessing: operations });
  const transforms = new Float32Array(IMAGES * TRANSFORM_FLOATS);
  for (const [i, file] of files.entries()) planImage(file, codec, operations, size).writeTransform(transforms, i);
  await decoder.decode(0, files, transforms);
  const calibration = await calibrate(trained.model, [{ images: decoder.images(0), count: IMAGES }]);
  await saveModel(path, trained, { calibration });
}

interface Settings {
  precision: Precision;
  quantize?: QuantizedDType;
}

/** What the device lacks of it; null for nothing. */
function lacks({ precision, quantize }: Settings): string | null {
  const { dtype } = precisionPolicy(precision);
  return missing(device, "f32", [
    ...(dtype === "f32" ? [] : [`conv.${dtype}` as const]),
    ...(quantize ? [`conv.${quantize}` as const] : []),
  ]);
}

/** What an evaluation finds, and measures, in batches of a size. */
async function evaluate({ precision, quantize }: Settings, batchSize: number) {
  const { store, source } = dataset;
  using trained = await loadTrainedModel(path, device, { precision });
  const { dtype } = precisionPolicy(precision);
  const [height, width] = size;
  const shape = { batchSize, height, width, dtype };
  using decoder = new DeviceBatchDecoder(device, { ...shape, preprocessing: operations });
  const reading = { store, source, split: "val2017", decoder, size, batchSize, preprocessing: operations };
  await using loader = new CocoDataLoader({ ...reading, shuffle: false });
  const quantization = quantize && { dtype: quantize, table: trained.calibration! };
  using evaluator = new Evaluator({ model: trained.model, store, loader, decoder, split: "val2017", quantization });
  return await evaluator.evaluate();
}

/** An engine's answers as an evaluation has them. */
function asDetections(results: readonly EngineResult[]): ImageDetections[] {
  return results.map(({ detections, error }, i) => {
    expect(error).toBeNull();
    const fileName = names[i] as string;
    return { imageId: idOf.get(fileName) as number, fileName, detections };
  });
}

const idOf = new Map([...dataset.store.images("val2017")].map(({ fileName, id }) => [fileName, id]));
const sorted = (detections: readonly ImageDetections[]) => detections.toSorted((a, b) => a.imageId - b.imageId);
const scoresOf = (results: readonly EngineResult[]) =>
  results.flatMap(({ detections }) => detections.map(({ score }) => score));

const settings: Settings[] = [
  ...(["fp32", "bf16", "fp16"] as const).map((precision) => ({ precision })),
  ...(["f8", "i8"] as const).map((quantize) => ({ precision: "fp32" as const, quantize })),
  { precision: "fp16", quantize: "f8" },
];
const described = settings.map((one) => {
  const name = [one.precision, ...(one.quantize ? [`convolutions ${one.quantize}`] : [])].join(", ");
  return [lacks(one) === null ? name : `${name} (${lacks(one)})`, one] as const;
});

describe("a served model", () => {
  for (const [name, one] of described) {
    test.skipIf(lacks(one) !== null)(`scores what an evaluation measures: ${name}`, async () => {
      for (const batchSize of [8, 2]) {
        await using engine = await Engine.load(path, { ...one, device, batchSizes: [batchSize], warmUp: false });
        const found = asDetections(await engine.detect(files));
        const expected = await evaluate(one, batchSize);
        expect(found).toEqual(sorted(expected.detections));
        expect(scoresOf(await engine.detect(files)).length).toBeGreaterThan(IMAGES);
        expect(measure(dataset.store, "val2017", found).stats).toEqual(expected.result.stats);
      }
    });

    test.skipIf(lacks(one) !== null)(`gives scores within 2e-3 in batches of other sizes: ${name}`, async () => {
      await using engine = await Engine.load(path, { ...one, device, batchSizes: [1, 2, 4, 8], warmUp: false });
      const whole = scoresOf(await engine.detect(files));
      for (const size of [1, 2, 3, 5]) {
        const parts = Array.from({ length: Math.ceil(IMAGES / size) }, (_, i) => files.slice(i * size, (i + 1) * size));
        const found = scoresOf((await Promise.all(parts.map((part) => engine.detect(part)))).flat());
        expect(found.length).toBe(whole.length);
        const apart = found.map((score, i) => Math.abs(score - (whole[i] as number)));
        expect(Math.max(...apart)).toBeLessThan(2e-3);
      }
    });
  }
});

test("engines that share a device answer as each does alone, also while others come and go", async () => {
  const before = device.memory().allocated;
  const options = [
    { precision: "fp32", batchSizes: [8] },
    { precision: "fp32", batchSizes: [1, 2] },
    { precision: "fp32", quantize: "i8", batchSizes: [4] },
  ] as const;
  const alone: EngineResult[][] = [];
  for (const one of options) {
    await using engine = await Engine.load(path, { ...one, device });
    alone.push(await engine.detect(files));
  }
  expect(device.memory().allocated).toBe(before);

  const engines = await Promise.all(options.map((one) => Engine.load(path, { ...one, device })));
  for (let round = 0; round < 3; round++) {
    const answers = Promise.all(engines.map((engine) => engine.detect(files)));
    // Beside them one is loaded, used and disposed of.
    await using another = await Engine.load(path, { ...options[0], device });
    expect(await another.detect(files)).toEqual(alone[0]!);
    expect(await answers).toEqual(alone);
  }
  const [first, ...others] = engines;
  const last = Promise.all(others.map((engine) => engine.detect(files)));
  await first?.dispose();
  expect(await last).toEqual(alone.slice(1));
  await Promise.all(others.map((engine) => engine.dispose()));
  expect(device.memory().allocated).toBe(before);
});

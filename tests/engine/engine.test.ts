/** Engines: what they detect is what evaluations detect, whatever images come as, and a bad image is an error of its own. */
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
import { Engine, type EngineImage, type EngineResult } from "../../lib/engine";
import { planImage } from "../../lib/engine/image-input";
import { CompactDetector, type CompactDetectorOptions, octaveAnchors, registerModel } from "../../lib/models";
import { Tensor } from "../../lib/tensor";
import { calibrate, Evaluator, loadTrainedModel, saveModel, type TrainedModel } from "../../lib/train";
import { backend, testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { saveTrained } from "../support/trained-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-engine-"));
const device = testDevice();
const codec = new DeviceImageCodec(device);
const data = await writeTinyDataset(device);
afterAll(() => {
  rmSync(folder, { recursive: true });
  rmSync(data, { recursive: true });
});

const architecture = {
  ...({ name: "compact", classes: 2, width: 4, headConvs: 1 } as const),
  // Weights at random: everything counts, so that there is something to compare.
  postprocess: { scoreThreshold: 0, topK: 50, maxDetections: 20 },
};
const config = {
  model: architecture,
  classes: ["red", "green"],
  size: [64, 96],
  preprocessing: [new Resize().toJSON(), new Normalize().toJSON()],
  data,
  valSplit: "val2017",
};
const checkpoint = join(folder, "a.dlck");
await saveTrained(checkpoint, architecture, 3, config);
const path = join(folder, "a.dlfs");
{
  using trained = await loadTrainedModel(checkpoint, device);
  await saveModel(path, trained, { metrics: { AP: 0.5 } });
}

const files = await Promise.all(
  [1, 2, 3, 4, 5, 6, 7, 8].map((i) => Bun.file(join(data, "val2017", `${i}.jpg`)).bytes()),
);
const options = { device, precision: "fp32", batchSizes: [8], warmUp: false } as const;

function expectSame(found: EngineResult, expected: EngineResult, tolerance = 0): void {
  expect({ width: found.width, height: found.height }).toEqual({ width: expected.width, height: expected.height });
  expect(found.error).toBeNull();
  expect(found.detections.length).toBe(expected.detections.length);
  for (const [i, { box, score, label }] of found.detections.entries()) {
    const other = expected.detections[i]!;
    expect(Math.abs(score - other.score)).toBeLessThanOrEqual(tolerance);
    if (tolerance > 0) continue; // detections of nearly equal scores may change places
    expect({ box, label }).toEqual({ box: other.box, label: other.label });
  }
}

describe("Engine", () => {
  test("detects what an evaluation of the checkpoint detects, bit by bit", async () => {
    using dataset = await loadDataset(data, { codec, trainSplit: "train2017", valSplit: "val2017" });
    const { store, source } = dataset;
    using trained = await loadTrainedModel(checkpoint, device);
    const { model, preprocessing } = trained;
    const [height, width] = [64, 96];
    using decoder = new DeviceBatchDecoder(device, { batchSize: 8, height, width, preprocessing });
    await using loader = new CocoDataLoader({
      ...{ store, source, split: "val2017", size: [height, width], decoder, batchSize: 8, preprocessing },
      ...{ shuffle: false, lastBatch: "partial" },
    });
    using evaluator = new Evaluator({ model, store, loader, decoder, split: "val2017" });
    const expected = await evaluator.detect();
    expect(expected.length).toBe(8);

    await using engine = await Engine.load(path, options);
    const found = await engine.detect(files);
    for (const { fileName, detections } of expected) {
      const result = found[Number.parseInt(fileName, 10) - 1]!;
      expect(result).toEqual({ width: 64, height: 64, detections, error: null });
      expect(detections.length).toBeGreaterThan(5);
    }
  });

  test("knows what its file says", async () => {
    await using engine = await Engine.load(path, options);
    expect(engine).toMatchObject({ path, iteration: 7, size: [64, 96], maxBatch: 8, precision: "f32" });
    expect(engine.classes).toEqual(["red", "green"]);
    expect(engine.metrics).toEqual({ AP: 0.5 });
  });

  test("takes files, pixels and tensors, in any order and mixture; a bad image takes nothing from its neighbours", async () => {
    await using engine = await Engine.load(path, options);
    const [wide, tall] = [pixels(150, 70, 1), pixels(33, 201, 2)];
    using tensor = Tensor.empty(device, [tall.height, tall.width, 3], "u8");
    tensor.writeBytes(tall.data);
    const broken = files[0]!.slice(0, 300);
    const images: EngineImage[] = [wide, files[0]!, tensor, broken, files[1]!, new Uint8Array(0), tall];
    const found = await engine.detect(images);
    expect(found.map(({ width, height }) => [width, height])).toEqual(
      [[150, 70], [64, 64], [33, 201], null, [64, 64], [0, 0], [33, 201]].map(
        (size, i) => size ?? [found[i]!.width, found[i]!.height],
      ),
    );
    const alone = async (image: EngineImage) => await engine.detect(image);
    for (const i of [0, 1, 2, 4, 6]) expectSame(found[i]!, await alone(images[i]!));
    expectSame(found[2]!, found[6]!);
    for (const { detections, width, height } of [found[0]!, found[6]!]) {
      expect(detections.length).toBeGreaterThan(0);
      for (const { box } of detections) {
        const [x1, y1, x2, y2] = box;
        expect(x1 >= 0 && y1 >= 0 && x2 <= width && y2 <= height && x1 <= x2 && y1 <= y2).toBe(true);
      }
    }
    for (const i of [3, 5]) {
      expect(found[i]!.detections).toEqual([]);
      expect(found[i]!.error?.message).toBeString();
      await expect(alone(images[i]!)).rejects.toThrow(found[i]!.error!.message);
    }
    // The picture of a file and its pixels: on a GPU other decoders may differ by a level.
    expectSame(await alone(codec.decode(files[3]!)), await alone(files[3]!), backend === "cpu" ? 0 : 0.02);
  });

  test("spreads many images over batches, for several callers at a time, and runs small ones as the smallest that holds them", async () => {
    await using engine = await Engine.load(path, { ...options, batchSizes: [4, 1, 2] });
    expect(engine.batchSizes).toEqual([1, 2, 4]);
    await using whole = await Engine.load(path, options);
    const expected = await whole.detect(files);
    const many = [...files, ...files, files[2]!];
    const calls = await Promise.all([engine.detect(many), engine.detect(files.slice(0, 3)), engine.detect([])]);
    for (const [i, result] of calls[0].entries()) expectSame(result, expected[i === 16 ? 2 : i % 8]!, 2e-3);
    expect(calls[1].length).toBe(3);
    expect(calls[2]).toEqual([]);
  });

  test("leaves out what is below a score", async () => {
    await using engine = await Engine.load(path, options);
    const all = await engine.detect(files[0]!);
    const threshold = all.detections[4]!.score;
    const { detections } = await engine.detect(files[0]!, { scoreThreshold: threshold });
    expect(detections).toEqual(all.detections.filter(({ score }) => score >= threshold));
    expect(detections.length).toBeLessThan(all.detections.length);
  });

  test("says what is wrong with pixels", async () => {
    await using engine = await Engine.load(path, options);
    const cases: [EngineImage, string][] = [
      [{ width: 4, height: 4, data: new Uint8Array(47) }, "expected 4 x 4 x 3 bytes, got 47"],
      [{ width: 0, height: 4, data: new Uint8Array(0) }, "expected a width and a height in pixels, got 0 x 4"],
      ["photo.jpg" as never, "expected a file's bytes, pixels or a tensor"],
    ];
    for (const [image, message] of cases) await expect(engine.detect(image)).rejects.toThrow(message);
    using tensor = Tensor.zeros(device, [4, 4], "f32");
    await expect(engine.detect(tensor)).rejects.toThrow("expected a u8 tensor (height, width, 3), got f32 (4, 4)");
  });

  test("waits for what is under way when it is disposed of, and gives all memory back", async () => {
    const before = device.memory().allocated;
    const engine = await Engine.load(path, { ...options, warmUp: true, batchSizes: [1, 8] });
    expect(device.memory().allocated).toBeGreaterThan(before);
    const call = engine.detect([...files, pixels(20, 20, 3)]);
    const ended = engine.dispose();
    expect((await call).every(({ error }) => error === null)).toBe(true);
    await ended;
    expect(device.memory().allocated).toBe(before);
    await expect(engine.detect(files[0]!)).rejects.toThrow("used after dispose()");
    await engine.dispose();
  });

  test("has a device of its own where it is given none", async () => {
    await using engine = await Engine.load(path, { backend: device.backend, batchSizes: [1] });
    await using other = await Engine.load(path, {
      ...options,
      batchSizes: [1],
      precision: engine.precision === "f16" ? "fp16" : "fp32",
    });
    expect(engine.device).not.toBe(device);
    expectSame(await engine.detect(files[0]!), await other.detect(files[0]!));
  });

  test("computes convolutions in 8 bits with the calibration of its file", async () => {
    const saved = join(folder, "calibrated.dlfs");
    {
      using trained = await loadTrainedModel(path, device);
      const images = await imagesOf(trained);
      const calibration = await calibrate(trained.model, [{ images, count: 8 }]);
      images.dispose();
      await saveModel(saved, trained, { calibration });
    }
    await using exact = await Engine.load(saved, options);
    await using engine = await Engine.load(saved, { ...options, quantize: "i8" });
    expect(engine.precision).toBe("i8");
    const [found, expected] = [await engine.detect(files), await exact.detect(files)];
    const scores = (results: EngineResult[]) =>
      results.flatMap(({ detections }) => detections.map(({ score }) => score));
    const apart = scores(found).map((score, i) => Math.abs(score - scores(expected)[i]!));
    expect(Math.max(...apart)).toBeGreaterThan(0);
    expect(Math.max(...apart)).toBeLessThan(0.05);
  });

  test("refuses what a file or an option cannot give, and leaves nothing behind", async () => {
    const before = device.memory().allocated;
    const cases: [string, object, string][] = [
      [path, { quantize: "i8" }, `${path}: quantize: i8 needs a calibration, and the file has none`],
      [path, { batchSizes: [] }, "batchSizes: expected whole numbers from 1, got []"],
      [path, { batchSizes: [0.5] }, "batchSizes: expected whole numbers from 1, got [0.5]"],
      [path, { slots: 0 }, "slots: expected a number from 1, got 0"],
      [path, { size: [0, 64] }, "size: expected height and width in pixels, got [0,64]"],
      [join(folder, "none.dlfs"), {}, "none.dlfs: it does not exist"],
    ];
    for (const [file, wrong, message] of cases) {
      await expect(Engine.load(file, { ...options, ...wrong })).rejects.toThrow(message);
      expect(device.memory().allocated).toBe(before);
    }
  });

  test("makes architectures of the user's own, by the name that they were registered under", async () => {
    const own = { name: "tests-own", classes: 2, base: 24 };
    const saved = join(folder, "own.dlck");
    const make = ({ classes, base }: { classes: number; base?: unknown }) => {
      const anchors = octaveAnchors(base as number);
      const { postprocess } = architecture as Partial<CompactDetectorOptions>;
      return new CompactDetector({ classes, width: 4, headConvs: 1, anchors, postprocess });
    };
    {
      using _name = registerModel(own.name, make);
      await saveTrained(saved, own as never, 3, { ...config, model: own });
      await using engine = await Engine.load(saved, options);
      await using known = await Engine.load(path, options);
      expectSame(await engine.detect(files[0]!), await known.detect(files[0]!));
      expect(() => registerModel(own.name, make)).toThrow('name: expected one that is not taken, got "tests-own"');
      expect(() => registerModel("retinanet", make)).toThrow("not taken");
    }
    await expect(Engine.load(saved, options)).rejects.toThrow("config.model: name: expected one of compact, retinanet");
  });
});

/** The files as a batch of the model's inputs. */
async function imagesOf({ preprocessing }: TrainedModel): Promise<Tensor> {
  const [height, width] = [64, 96];
  using decoder = new DeviceBatchDecoder(device, { batchSize: 8, height, width, preprocessing });
  const transforms = new Float32Array(8 * TRANSFORM_FLOATS);
  for (let i = 0; i < 8; i++) planImage(files[i]!, codec, preprocessing, [height, width]).writeTransform(transforms, i);
  await decoder.decode(0, files, transforms);
  const images = Tensor.empty(device, [8, height, width, 3], "f32");
  images.copyFrom(decoder.images(0));
  device.stream.synchronize();
  return images;
}

/** A picture with some structure. */
function pixels(width: number, height: number, seed: number) {
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < data.length; i++) data[i] = (i * seed * 31 + ((i / 90) | 0) * 17) & 255;
  return { width, height, data };
}

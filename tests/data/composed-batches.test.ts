/** CocoDataLoader with operations that turn, recolour and combine images: what a training gets from them. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rm, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  augmentationPreset,
  CocoDataLoader,
  type CocoDataLoaderOptions,
  CopyPaste,
  type Dataset,
  DeviceBatchDecoder,
  DeviceCompositionDecoder,
  DeviceImageCodec,
  HorizontalFlip,
  loadDataset,
  MixUp,
  Mosaic,
  Normalize,
  type PreprocessOp,
  Resize,
  ScaleJitter,
} from "../../lib/data";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { failure } from "./fakes";

const device = testDevice();
const size = [64, 96] as const;
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(device);
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

const open = (): Promise<Dataset> =>
  loadDataset(folder, { codec: new DeviceImageCodec(device), store: ":memory:", progress: () => {} });

type Decoder = DeviceBatchDecoder | DeviceCompositionDecoder;

/** Batches of a loader, as bytes. */
async function batches(
  dataset: Dataset,
  operations: readonly PreprocessOp[],
  count: number,
  options: Partial<CocoDataLoaderOptions> = {},
  Kind: new (...args: ConstructorParameters<typeof DeviceCompositionDecoder>) => Decoder = DeviceCompositionDecoder,
) {
  const [height, width] = size;
  using decoder = new Kind(device, { batchSize: 3, height, width, preprocessing: operations });
  const { store, source } = dataset;
  const common = { store, source, split: "train2017", batchSize: 3, size, seed: 4, preprocessing: operations };
  await using loader = new CocoDataLoader({ ...common, decoder, ...options });
  const made = [];
  for (let i = 0; i < count; i++) {
    using batch = await loader.getBatch();
    const { epoch, images, n } = batch;
    const { maxBoxes } = loader;
    const boxes = Array.from({ length: n }, (_, k) => {
      const at = 4 * k * maxBoxes;
      return [...batch.boxes.subarray(at, at + 4 * (batch.counts[k] as number))];
    });
    const counts = [...batch.counts.subarray(0, n)];
    const pixels = decoder.images(batch.slot).readBytes();
    made.push({ epoch, images, boxes, counts, pixels, labels: batch.labels.slice(), state: loader.state() });
  }
  return { made, failures: loader.failures, maxBoxes: loader.maxBoxes };
}

describe("composed batches", () => {
  test("of one image each have the boxes and mappings that decoding image by image gives, and of a resize its pixels", async () => {
    using dataset = await open();
    const operations = [new HorizontalFlip(), new Resize({ antialias: true }), new ScaleJitter(), new Normalize()];
    const plain = [new Resize({ antialias: true }), new Normalize()];
    for (const list of [plain, operations]) {
      const composed = await batches(dataset, list, 3);
      const single = await batches(dataset, list, 3, {}, DeviceBatchDecoder);
      expect(composed.maxBoxes).toBe(single.maxBoxes);
      for (const [i, { pixels, boxes, labels, images }] of composed.made.entries()) {
        const other = single.made[i]!;
        expect(labels).toEqual(other.labels);
        for (const [k, values] of boxes.entries()) {
          expect(values.length).toBe(other.boxes[k]!.length);
          for (const [j, value] of values.entries()) expect(value).toBeCloseTo(other.boxes[k]![j]!, 3);
        }
        for (const [k, { toInput }] of images.entries()) {
          const expected = other.images[k]!.toInput!;
          for (const name of ["scaleX", "scaleY", "offsetX", "offsetY"] as const)
            expect(toInput![name]).toBeCloseTo(expected[name], 6);
        }
        if (list === operations) continue;
        const [values, expected] = [pixels, other.pixels].map((bytes) => new Float32Array(bytes.slice().buffer));
        // The fill colour is rounded otherwise.
        expect(Math.max(...values!.map((value, k) => Math.abs(value - expected![k]!)))).toBeLessThan(1e-6);
      }
    }
  });

  test("are the same whatever is prepared ahead, and after a restart in mid-epoch", async () => {
    using dataset = await open();
    const operations = augmentationPreset("yolo");
    const all = await batches(dataset, operations, 6, { prefetch: 1, concurrency: 1 });
    const again = await batches(dataset, operations, 6, { prefetch: 5, concurrency: 8 });
    expect(again.made.map(({ boxes }) => boxes)).toEqual(all.made.map(({ boxes }) => boxes));
    for (const [i, { pixels }] of again.made.entries()) expect(Buffer.compare(pixels, all.made[i]!.pixels)).toBe(0);

    const [height, width] = size;
    using decoder = new DeviceCompositionDecoder(device, { batchSize: 3, height, width, preprocessing: operations });
    const { store, source } = dataset;
    const common = { store, source, split: "train2017", batchSize: 3, size, seed: 4, preprocessing: operations };
    await using loader = new CocoDataLoader({ ...common, decoder });
    loader.restore(all.made[2]!.state);
    using batch = await loader.getBatch();
    expect(Buffer.compare(decoder.images(batch.slot).readBytes(), all.made[3]!.pixels)).toBe(0);
    expect([...batch.counts]).toEqual(all.made[3]!.counts);
  });

  test("have room for the boxes of all images that come together, and no mapping to one image", async () => {
    using dataset = await open();
    const plain = await batches(dataset, [new Resize()], 1);
    const most = plain.maxBoxes;
    const mosaic = [new Resize(), new Mosaic(), new Resize({ mode: "stretch" })];
    const composed = await batches(dataset, mosaic, 4);
    expect(composed.maxBoxes).toBe(4 * most);
    expect(Math.max(...composed.made.flatMap(({ counts }) => counts))).toBeGreaterThan(most);
    expect(composed.made[0]!.images.map(({ toInput }) => toInput)).toEqual([null, null, null]);
    const mixed = [new CopyPaste({ most: 2 }), new Resize(), new Mosaic(), new Resize(), new MixUp()];
    expect((await batches(dataset, mixed, 1)).maxBoxes).toBe(8 * (most + 2));
    const error = await failure(() => batches(dataset, mosaic, 1, { maxBoxes: most }));
    expect(error.message).toContain(`with others that are put together with it up to ${4 * most}`);
  });

  test("compose no images in the last epochs", async () => {
    using dataset = await open();
    const operations = [new Resize(), new Mosaic(), new Resize({ mode: "stretch" })];
    const { made } = await batches(dataset, operations, 4, { epochs: 2, closeLast: 1 });
    const alone = made.map(({ epoch, images }) => [epoch, images.every(({ toInput }) => toInput !== null)]);
    expect(new Set(alone.map(String))).toEqual(new Set(["0,false", "1,true"]));
  });

  test("are blank, without boxes, where an image of theirs cannot be read, which is named", async () => {
    using dataset = await open();
    const [first] = dataset.store.images("train2017", { usable: true });
    const path = join(folder, "train2017", first!.fileName);
    const bytes = await Bun.file(path).bytes();
    await unlink(path);
    try {
      const operations = [new Resize(), new Mosaic(), new Resize({ mode: "stretch" })];
      const names: string[] = [];
      const options = { onFailure: ({ fileName }: { fileName: string }) => names.push(fileName) };
      const { made, failures } = await batches(dataset, operations, 4, options);
      const blank = made.flatMap(({ counts, pixels }) => {
        const image = pixels.length / 3;
        return counts.map((count, i) => [count, new Set(pixels.subarray(i * image, (i + 1) * image)).size === 1]);
      });
      expect(blank.filter(([, empty]) => empty).length).toBeGreaterThan(0);
      expect(blank.filter(([, empty]) => !empty).length).toBeGreaterThan(0);
      for (const [count, empty] of blank) if (empty) expect(count).toBe(0);
      expect(names).toEqual([first!.fileName]);
      expect(failures[0]!.message).toContain(`${first!.fileName}: no such file`);
      const error = await failure(() => batches(dataset, operations, 4, { failures: "stop" }));
      expect(error.message).toContain(`${first!.fileName}: no such file`);
    } finally {
      await writeFile(path, bytes);
    }
  });

  test.each([
    ["image by image", DeviceBatchDecoder],
    ["composed", DeviceCompositionDecoder],
  ] as const)("of several sizes are those that a loader of each size makes: %s", async (_, Kind) => {
    using dataset = await open();
    const operations = [new HorizontalFlip(), new Resize(), new ScaleJitter(), new Normalize()];
    const sizes = [
      [64, 96],
      [64, 64],
      [32, 160],
    ] as const;
    const { store, source } = dataset;
    const load = async (size: readonly [number, number], several?: typeof sizes) => {
      const [height, width] = size;
      using decoder = new Kind(device, { batchSize: 3, height, width, preprocessing: operations });
      const common = { store, source, split: "train2017", batchSize: 3, size, seed: 4, preprocessing: operations };
      await using loader = new CocoDataLoader({ ...common, decoder, sizes: several });
      const found = [];
      for (let i = 0; i < 8; i++) {
        using batch = await loader.getBatch();
        const images = decoder.images(batch.slot, batch.size);
        expect(images.shape).toEqual([3, ...batch.size, 3]);
        found.push({ size: batch.size, boxes: batch.boxes.slice(), pixels: images.readBytes() });
      }
      return found;
    };
    const mixed = await load(sizes[0], sizes);
    expect(new Set(mixed.map(({ size }) => size.join())).size).toBe(3);
    for (const size of sizes) {
      const fixed = await load(size);
      for (const [i, batch] of mixed.entries()) {
        if (batch.size !== size) continue;
        expect(batch.boxes).toEqual(fixed[i]!.boxes);
        expect(Buffer.compare(batch.pixels, fixed[i]!.pixels)).toBe(0);
      }
    }
    const error = await failure(() => load([32, 32], sizes));
    expect(error.message).toContain("sizes: expected sizes of no more pixels than 32x32, got 64x96");
  });

  test("need a decoder that draws them", async () => {
    using dataset = await open();
    const operations = [new Resize(), new MixUp(), new Normalize()];
    const error = await failure(() => batches(dataset, operations, 1, {}, DeviceBatchDecoder));
    expect(error.message).toContain("mixUp: the decoder draws no compositions, expected a DeviceCompositionDecoder");
  });
});

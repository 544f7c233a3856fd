/** Record files: what they hold is what direct loading gives; damage, other versions and other packs are told apart. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFile, mkdir, mkdtemp, readdir, rm, stat, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  CocoDataLoader,
  type Dataset,
  type DetectionBatch,
  DeviceBatchDecoder,
  DeviceImageCodec,
  DeviceRecordReader,
  type DeviceRecordReaderOptions,
  HorizontalFlip,
  LocalDataSource,
  loadDataset,
  mapBoxesToImage,
  type NewImage,
  Normalize,
  type PackOptions,
  packRecords,
  RandomCrop,
  RecordLoader,
  type RecordLoaderOptions,
  RecordSet,
  Resize,
  ScaleJitter,
  ShardWindowSampler,
  SQLiteAnnStore,
} from "../../lib/data";
import { checksumOf } from "../../lib/formats/aligned-file";
import { RecordShard } from "../../lib/formats/record-shard";
import type { Tensor } from "../../lib/tensor";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { failure, inFolder, quiet } from "./fakes";

const device = testDevice();
const SIZE = [48, 64] as const;
const IMAGES = 40;
/** 16 records of 48x64 pixels a shard: three shards. */
const SHARD = 16 * 48 * 64 * 3;

let work: string;
let dataset: Dataset;
let packed: string;

beforeAll(async () => {
  const folder = await writeDataset();
  const codec = new DeviceImageCodec(device);
  dataset = await loadDataset(folder, { codec, valSplit: null, store: ":memory:", progress: quiet });
  work = await mkdtemp(join(tmpdir(), "dlfs-records-"));
  packed = join(work, "packed");
  await pack({ folder: packed });
});

afterAll(async () => {
  dataset[Symbol.dispose]();
  await rm(dataset.folder, { recursive: true, force: true });
  await rm(work, { recursive: true, force: true });
});

/** The eight images of the tiny data set, five times each. */
async function writeDataset(): Promise<string> {
  const folder = await writeTinyDataset(device, 8);
  const path = join(folder, "annotations", "instances_train2017.json");
  const json = await Bun.file(path).json();
  const { images, annotations } = structuredClone(json) as {
    images: { id: number }[];
    annotations: { image_id: number }[];
  };
  for (let id = 9; id <= IMAGES; id++) {
    const original = ((id - 1) % 8) + 1;
    await copyFile(join(folder, "train2017", `${original}.jpg`), join(folder, "train2017", `${id}.jpg`));
    json.images.push({ ...images[original - 1], id, file_name: `${id}.jpg` });
    for (const annotation of annotations.filter(({ image_id }) => image_id === original)) {
      json.annotations.push({ ...annotation, id: json.annotations.length + 1, image_id: id });
    }
  }
  await Bun.write(path, JSON.stringify(json));
  return folder;
}

function pack(options: Partial<PackOptions> & { folder: string }) {
  const { store, source } = dataset;
  const base = { store, source, split: "train2017", device, size: SIZE, shardBytes: SHARD, warn: quiet };
  return packRecords({ ...base, ...options });
}

interface Opened extends AsyncDisposable {
  reader: DeviceRecordReader;
  loader: RecordLoader;
}

async function open(
  folder: string,
  options: Partial<RecordLoaderOptions> = {},
  reading: Partial<DeviceRecordReaderOptions> = {},
): Promise<Opened> {
  const { batchSize = 8 } = options;
  const reader = new DeviceRecordReader(device, await RecordSet.open(folder), { batchSize, workers: 0, ...reading });
  try {
    const loader = new RecordLoader({ reader, batchSize, onFailure: quiet, ...options });
    const dispose = async (): Promise<void> => {
      await loader.dispose();
      await reader.dispose();
    };
    return { reader, loader, [Symbol.asyncDispose]: dispose };
  } catch (error) {
    await reader.dispose();
    throw error;
  }
}

/** A copy of the packed folder, to be spoilt. */
async function copyOf(folder: string): Promise<string> {
  const copy = join(folder, "copy");
  await mkdir(copy);
  for (const name of await readdir(packed)) await copyFile(join(packed, name), join(copy, name));
  return copy;
}

const shardPath = (folder: string, shard: number): string => join(folder, `shard-0000${shard}-of-00003.dlrec`);

async function patch(path: string, change: (bytes: Uint8Array, view: DataView) => void): Promise<void> {
  const bytes = await Bun.file(path).bytes();
  change(bytes, new DataView(bytes.buffer, bytes.byteOffset));
  await Bun.write(path, bytes);
}

/** What a batch says, but for its slot; releases it. */
function take(batch: DetectionBatch, images?: Tensor) {
  const { n, epoch, index } = batch;
  const pixels = images
    ? (images.read() as Float32Array).slice(0, (n * images.size) / (images.shape[0] as number))
    : null;
  const { counts, boxes, labels } = batch;
  const content = {
    ...{ n, epoch, index, images: [...batch.images], pixels },
    ...{ counts: counts.slice(), boxes: boxes.slice(), labels: labels.slice() },
  };
  batch.release();
  return content;
}

async function ids(loader: RecordLoader, batches: number): Promise<number[]> {
  const found: number[] = [];
  for (let i = 0; i < batches; i++) found.push(...take(await loader.getBatch()).images.map(({ sourceId }) => sourceId));
  return found;
}

/** Every batch of a pass, from records and from the images themselves. */
async function* besideDirect(folder: string) {
  await using records = await open(folder, { shuffle: false });
  const { preprocessing } = records.loader;
  const shape = { batchSize: 8, height: SIZE[0], width: SIZE[1] };
  using decoder = new DeviceBatchDecoder(device, { ...shape, preprocessing });
  const { store, source } = dataset;
  const common = { store, source, split: "train2017", batchSize: 8, size: SIZE, preprocessing, decoder };
  await using direct = new CocoDataLoader({ ...common, shuffle: false });
  expect(direct.length).toBe(records.loader.length);
  for await (const batch of records.loader) {
    const other = await direct.getBatch();
    const expected = take(other, decoder.images(other.slot));
    yield { found: take(batch, records.reader.images(batch.slot)), expected };
  }
}

describe("record files", () => {
  for (const padding of ["drawn", "stored"] as const) {
    test(`of pixels, padding ${padding}, give what direct loading gives, to the rounding of pixels`, async () => {
      const folder = padding === "drawn" ? packed : join(work, "stored");
      if (padding === "stored") await pack({ folder, padding });
      let batches = 0;
      for await (const { found, expected } of besideDirect(folder)) {
        const { pixels, ...rest } = found;
        const { pixels: direct, ...others } = expected;
        expect(rest).toEqual(others);
        let most = 0;
        for (const [i, value] of (pixels as Float32Array).entries()) {
          most = Math.max(most, Math.abs(value - (direct?.[i] as number)));
        }
        // Half a level of 255, over the smallest standard deviation.
        expect(most).toBeLessThan(0.51 / 255 / 0.224);
        batches++;
      }
      expect(batches).toBe(IMAGES / 8);
    });
  }

  test("of values give the very numbers of direct loading, and are not augmented", async () => {
    const folder = join(work, "values");
    await pack({ folder, dtype: "f32" });
    for await (const { found, expected } of besideDirect(folder)) expect(found).toEqual(expected);
    const error = await failure(() => open(folder, { augmentation: [new HorizontalFlip()] }));
    expect(error.message).toContain("augmentation needs records of u8");
    expect((await failure(() => open(folder, {}, { dtype: "bf16" }))).message).toContain(
      "are f32 and cannot be read as bf16",
    );
  });

  test("leave what surrounds a letterboxed image to the loader", async () => {
    const sizes = async (folder: string) => {
      const { shards } = await RecordSet.open(folder);
      return new Set(shards.flatMap(({ lengths }) => [...lengths]));
    };
    // Images of 64x64 are 48x48 in an input of 48x64.
    expect([...(await sizes(packed))]).toEqual([48 * 48 * 3]);
  });

  test("are copied by threads, mapped or read, with the same bytes", async () => {
    await using alone = await open(packed, { shuffle: false });
    for (const access of ["map", "read"] as const) {
      await using shared = await open(packed, { shuffle: false }, { workers: 2, access, verify: "always" });
      for (let i = 0; i < 5; i++) {
        const [a, b] = [await alone.loader.getBatch(), await shared.loader.getBatch()];
        expect(take(b, shared.reader.images(b.slot))).toEqual(take(a, alone.reader.images(a.slot)) as never);
      }
      expect(shared.loader.failures).toEqual([]);
      alone.loader.restore({ ...alone.loader.state(), epoch: 0, position: 0 });
    }
  });

  test("are augmented: boxes follow the pixels, and map back to the image", async () => {
    const flip = [new HorizontalFlip(1)];
    await using plain = await open(packed, { shuffle: false });
    await using mirrored = await open(packed, { shuffle: false, augmentation: flip });
    const [a, b] = [await plain.loader.getBatch(), await mirrored.loader.getBatch()];
    const [x, y] = [take(a, plain.reader.images(a.slot)), take(b, mirrored.reader.images(b.slot))];
    const [height, width] = SIZE;
    for (let i = 0; i < x.n; i++) {
      for (const row of [0, 20, height - 1]) {
        for (const column of [0, 9, 30, width - 1]) {
          const at = (c: number) => 3 * ((i * height + row) * width + c);
          const [p, q] = [at(column), at(width - 1 - column)];
          expect((y.pixels as Float32Array)[p]).toBeCloseTo((x.pixels as Float32Array)[q] as number, 4);
        }
      }
      const image = y.images[i] as (typeof y.images)[number];
      const [first] = dataset.store.annotationsOf(image.imageId);
      const box = y.boxes.slice(4 * i * mirrored.loader.maxBoxes, 4 * i * mirrored.loader.maxBoxes + 4);
      mapBoxesToImage(box, image.toInput!, image.width, image.height);
      const [bx, by, w, h] = first!.bbox;
      const clipped = [bx, by, Math.min(64, bx + w), Math.min(64, by + h)];
      for (const [k, value] of clipped.entries()) expect(box[k]).toBeCloseTo(value, 3);
    }
    // A crop needs a Resize behind it; with one the size is right again.
    const cut = new RandomCrop({ overlaps: [0] });
    await using cropped = await open(packed, {
      augmentation: [cut, new Resize({ mode: "stretch" }), new ScaleJitter()],
    });
    expect(take(await cropped.loader.getBatch()).n).toBe(8);
    await using wrong = await open(packed, { augmentation: [cut] });
    expect((await failure(() => wrong.loader.getBatch())).message).toContain("a Resize is needed");
  });

  test("come in an order that follows from seed and epoch, within windows of shards where asked", async () => {
    await using one = await open(packed, { seed: 3 });
    await using same = await open(packed, { seed: 3, prefetch: 1 });
    const first = await ids(one.loader, 10);
    expect(await ids(same.loader, 10)).toEqual(first);
    const [epoch0, epoch1] = [first.slice(0, IMAGES), first.slice(IMAGES)];
    const sorted = Array.from({ length: IMAGES }, (_, i) => i + 1);
    const ascending = (list: number[]) => list.toSorted((a, b) => a - b);
    expect(ascending(epoch0)).toEqual(sorted);
    expect(ascending(epoch1)).toEqual(sorted);
    expect(epoch0).not.toEqual(epoch1);
    const starts = Uint32Array.from([0, 16, 32, 40]);
    const order = [...new ShardWindowSampler({ starts }, 1).order({ length: IMAGES }, { seed: 3, epoch: 0 })];
    expect(ascending(order)).toEqual(sorted.map((i) => i - 1));
    const shards = order.map((i) => Math.floor(i / 16));
    expect(shards.filter((shard, i) => shard !== shards[i - 1])).toHaveLength(3);
    expect(order.slice(0, 8)).not.toEqual(ascending(order.slice(0, 8)));
    const sampler = new ShardWindowSampler(await RecordSet.open(packed), 2);
    await using windowed = await open(packed, { seed: 3, sampler });
    expect(ascending(await ids(windowed.loader, 5))).toEqual(sorted);
    expect(windowed.loader.state().sampler).toBe('{"name":"ShardWindowSampler","window":2}');
  });

  test("are divided among ranks, and a position is saved and restored in the middle of an epoch", async () => {
    const seen: number[] = [];
    for (const rank of [0, 1]) {
      await using part = await open(packed, { rank, ranks: 2, batchSize: 4, seed: 1 });
      expect(part.loader.length).toBe(5);
      seen.push(...(await ids(part.loader, 5)));
    }
    expect(new Set(seen).size).toBe(IMAGES);

    await using through = await open(packed, { seed: 9, augmentation: [new ScaleJitter()] });
    const content: unknown[] = [];
    let state = through.loader.state();
    for (let i = 0; i < 8; i++) {
      const batch = await through.loader.getBatch();
      if (i === 2) state = through.loader.stateAfter(batch);
      content.push(take(batch, through.reader.images(batch.slot)));
    }
    await using resumed = await open(packed, { seed: 9, augmentation: [new ScaleJitter()] });
    resumed.loader.restore(JSON.parse(JSON.stringify(state)));
    for (const expected of content.slice(3)) {
      const batch = await resumed.loader.getBatch();
      expect(take(batch, resumed.reader.images(batch.slot))).toEqual(expected as never);
    }
    const other = { ...state, data: "0" };
    expect((await failure(() => resumed.loader.restore(other))).message).toContain("data was 0, but this loader has");
  });

  test("name the images of another store by its own ids, which must have them and their classes", async () => {
    const images = dataset.store.images("train2017").map(({ sourceId, fileName, key, width, height }) => {
      return { sourceId, fileName, key, width, height };
    });
    const storeOf = (images: NewImage[], names = dataset.classes.names): SQLiteAnnStore => {
      const store = new SQLiteAnnStore();
      store.addCategories(names.map((name, i) => ({ id: i + 1, name, supercategory: null })));
      store.addImages("before", [{ ...(images[0] as NewImage), key: "other.jpg" }]);
      store.addImages("all", images.toReversed());
      return store;
    };
    using store = storeOf(images);
    const bySource = new Map(store.images("all").map(({ id, sourceId }) => [sourceId, id]));
    await using own = await open(packed, { shuffle: false, store, split: "all" });
    using batch = await own.loader.getBatch();
    for (const { imageId, sourceId } of batch.images) expect(imageId).toBe(bySource.get(sourceId) as number);
    expect(new Set(batch.images.map(({ imageId }) => imageId)).size).toBe(8);
    using fewer = storeOf(images.slice(1));
    expect((await failure(() => open(packed, { store: fewer, split: "all" }))).message).toMatch(
      /split "all" .* has no image 1 \(1\.jpg\)/,
    );
    using others = storeOf(images, ["a", "b"]);
    expect((await failure(() => open(packed, { store: others, split: "all" }))).message).toMatch(
      /have the classes .*, the store a, b/,
    );
  });

  test("that are damaged are skipped and counted, or end the loading, naming file and record", async () => {
    await inFolder(async (folder) => {
      const copy = await copyOf(folder);
      const path = shardPath(copy, 1);
      const { offsets } = await RecordShard.open(path);
      await patch(path, (bytes) => {
        const at = (offsets[2] as number) + 100;
        bytes[at] = (bytes[at] as number) ^ 1;
      });
      await using skipping = await open(copy, { shuffle: false });
      for (let i = 0; i < 5; i++) {
        const batch = await skipping.loader.getBatch();
        if (i === 2) {
          expect(batch.counts[2]).toBe(0);
          const values = skipping.reader.images(batch.slot).read();
          const middle = 3 * ((2 * SIZE[0] + 24) * SIZE[1] + 32);
          // The fill colour, rounded to whole levels.
          for (const c of [0, 1, 2]) expect(Math.abs(values[middle + c] as number)).toBeLessThan(0.01);
        }
        batch.release();
      }
      const [found] = skipping.loader.failures;
      expect(skipping.loader.failures).toHaveLength(1);
      expect(found).toMatchObject({ fileName: "19.jpg", count: 1 });
      expect(found?.message).toContain(`${path}: damaged: record 2 (19.jpg): its checksum is`);
      await using stopping = await open(copy, { shuffle: false, failures: "stop" });
      await ids(stopping.loader, 2);
      expect((await failure(() => stopping.loader.getBatch())).message).toContain(
        `${path}: damaged: record 2 (19.jpg)`,
      );
      await using trusting = await open(copy, { shuffle: false }, { verify: "never" });
      await ids(trusting.loader, 5);
      expect(trusting.loader.failures).toEqual([]);
    });
  });

  test("with shards that are damaged, cut off, of another version or byte order are refused by name", async () => {
    const cases: [string, (path: string) => Promise<unknown>][] = [
      ["damaged: file length: expected", (path) => stat(path).then(({ size }) => truncate(path, size - 10))],
      ["damaged: header: the file has 10 bytes", (path) => truncate(path, 10)],
      ["damaged: header: its checksum is", (path) => patch(path, (bytes) => bytes.fill(9, 40, 41))],
      ["damaged: index: its checksum is", (path) => patch(path, (bytes) => bytes.fill(77, bytes.length - 40))],
      ['damaged: magic: a record shard starts with "DLFSRECS"', (path) => patch(path, (bytes) => bytes.fill(65, 0, 8))],
      [
        "format version: a newer dlfs wrote version 2",
        (path) =>
          patch(path, (bytes, view) => {
            view.setUint32(8, 2, true);
            view.setBigUint64(56, checksumOf(bytes.subarray(0, 56)), true);
          }),
      ],
      [
        "byte order: expected little-endian numbers, got big-endian ones",
        (path) => patch(path, (_, view) => view.setUint32(8, 1, false)),
      ],
      ["damaged: index, shard: expected 1, got 0", (path) => copyFile(shardPath(packed, 0), path)],
      ["1 of 3 shards are missing", (path) => rm(path)],
    ];
    for (const [message, spoil] of cases) {
      await inFolder(async (folder) => {
        const copy = await copyOf(folder);
        await spoil(shardPath(copy, 1));
        const error = await failure(() => RecordSet.open(copy));
        expect(error.message).toContain(message);
        expect(error.message).toContain(message.includes("missing") ? "shard-00001" : shardPath(copy, 1));
      });
    }
  });

  test("are read no further than they reach where a shard is cut off after it was opened", async () => {
    await inFolder(async (folder) => {
      const copy = await copyOf(folder);
      await using opened = await open(copy, { shuffle: false }, { access: "read" });
      await truncate(shardPath(copy, 0), 20_000);
      await ids(opened.loader, 5);
      expect(opened.loader.failures.length).toBe(16);
      expect(opened.loader.failures[0]?.message).toContain("damaged: file length: expected");
    });
  });
});

describe("packing", () => {
  test("a second time writes only what is missing or damaged, with the same bytes", async () => {
    await inFolder(async (folder) => {
      const copy = await copyOf(folder);
      expect(await pack({ folder: copy })).toMatchObject({ written: 0, records: IMAGES, shards: 3 });
      await rm(shardPath(copy, 2));
      await truncate(shardPath(copy, 0), 1000);
      const warned: string[] = [];
      const again = await pack({ folder: copy, warn: (message) => warned.push(message) });
      expect(again).toMatchObject({ written: 2, rewritten: 1, records: IMAGES, images: 24 });
      expect(warned).toHaveLength(1);
      expect(warned[0]).toContain("shard-00000-of-00003.dlrec: damaged: file length");
      for (const name of await readdir(packed)) {
        expect(await Bun.file(join(copy, name)).bytes()).toEqual(await Bun.file(join(packed, name)).bytes());
      }
    });
  });

  test("that is stopped leaves whole shards, and goes on", async () => {
    await inFolder(async (folder) => {
      const stop = new AbortController();
      const progress = (label: string, done: number): void => {
        if (label === "packing images" && done >= 16) stop.abort(new Error("stopped"));
      };
      await expect(pack({ folder, signal: stop.signal, progress })).rejects.toThrow("stopped");
      expect((await readdir(folder)).sort()).toEqual(["records.json", "shard-00000-of-00003.dlrec"]);
      expect((await failure(() => RecordSet.open(folder))).message).toContain("run dlfs data pack again");
      expect(await pack({ folder })).toMatchObject({ written: 2, records: IMAGES, images: 24 });
      expect((await RecordSet.open(folder)).length).toBe(IMAGES);
    });
  });

  test("refuses a folder of other options or other data, naming the difference", async () => {
    const other = { folder: packed };
    const message = async (options: Partial<PackOptions>) =>
      (await failure(() => pack({ ...other, ...options }))).message;
    expect(await message({ size: [32, 64] })).toContain("size: asked for [32,64], it has [48,64]");
    const antialiased = [new Resize({ antialias: true }), new Normalize()];
    expect(await message({ preprocessing: antialiased })).toContain('"antialias":true');
    expect(await message({ padding: "stored" })).toContain('padding: asked for "stored", it has "drawn"');
    const normalize = new Normalize({ mean: [0, 0, 0], std: [1, 1, 1] });
    expect(await message({ preprocessing: [new Resize(), normalize] })).toContain("preprocessing: asked for");
    const [image] = dataset.store.images("train2017");
    const box = { imageId: image?.id as number, sourceId: 999, categoryId: 3, area: 1, isCrowd: false };
    await dataset.store.transaction(() => {
      dataset.store.addAnnotations([{ ...box, bbox: [1, 1, 5, 5] }]);
      return undefined;
    });
    expect(await message({})).toContain("data: the images or boxes of the split have changed");
    const added = dataset.store.annotationsOf(box.imageId).find(({ sourceId }) => sourceId === 999);
    dataset.store.deleteAnnotations([added?.id as number]);
    expect(await message({ preprocessing: [new Resize(), new HorizontalFlip()] })).toContain(
      "horizontalFlip is random",
    );
    await inFolder(async (folder) => {
      await copyFile(shardPath(packed, 0), shardPath(folder, 0));
      expect((await failure(() => pack({ folder }))).message).toContain("but no records.json");
    });
  });

  test("leaves out images that cannot be decoded and names them, or stops at the first", async () => {
    await inFolder(async (folder) => {
      const store = new SQLiteAnnStore();
      store.addCategories([{ id: 1, name: "a", supercategory: null }]);
      const jpeg = await Bun.file(join(dataset.folder, "train2017", "1.jpg")).bytes();
      store.addImages(
        "train",
        [0, 1, 2].map((i) => ({ sourceId: i, fileName: `${i}.jpg`, key: `${i}.jpg`, width: 64, height: 64 })),
      );
      for (const i of [0, 1, 2]) await Bun.write(join(folder, `${i}.jpg`), i === 1 ? jpeg.subarray(0, 200) : jpeg);
      const options = { store, source: new LocalDataSource(folder), split: "train", folder: join(folder, "out") };
      const stopped = await failure(() => pack({ ...options, failures: "stop" }));
      expect(stopped.message).toContain("1.jpg");
      expect(await readdir(options.folder)).toEqual(["records.json"]);
      expect(await pack(options)).toMatchObject({ records: 2, leftOut: 1 });
      const records = await RecordSet.open(options.folder);
      expect(records.shards[0]?.leftOut).toMatchObject([{ fileName: "1.jpg" }]);
      expect(records.shards[0]?.leftOut[0]?.reason).toContain("1.jpg");
      expect(records.info(1).fileName).toBe("2.jpg");
      expect(await pack(options)).toMatchObject({ written: 0, records: 2, leftOut: 1 });
    });
  });
});

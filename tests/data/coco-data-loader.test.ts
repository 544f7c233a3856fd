import { describe, expect, spyOn, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { AspectRatioBatches } from "../../lib/data/batch-sampler";
import { CocoDataLoader, type CocoDataLoaderOptions, type DetectionBatch } from "../../lib/data/coco-data-loader";
import { TRANSFORM_FLOATS } from "../../lib/data/image-plan";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { ClassBalancedSampler, RepeatFactorSampler, WeightedSampler } from "../../lib/data/sampler";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { HorizontalFlip, Normalize, RandomCrop, Resize, ScaleJitter } from "../../lib/data/transforms";
import { FakeDecoder, failure, inFolder } from "./fakes";

const COUNT = 10;

/** Ten images whose bytes are their number; image i has i % 4 boxes, and one crowd. */
async function prepare(folder: string): Promise<{ store: SQLiteAnnStore; source: LocalDataSource }> {
  const store = new SQLiteAnnStore();
  store.addCategories([
    { id: 10, name: "a", supercategory: null },
    { id: 30, name: "b", supercategory: null },
  ]);
  const ids = store.addImages(
    "train",
    Array.from({ length: COUNT }, (_, i) => {
      return { sourceId: 100 + i, fileName: `${i}.jpg`, key: `${i}.jpg`, width: 40 + i, height: 30 };
    }),
  );
  for (const [i, imageId] of ids.entries()) {
    const common = { imageId, area: 1, isCrowd: false };
    const boxes = Array.from({ length: i % 4 }, (_, k) => {
      return { ...common, sourceId: k, categoryId: k % 2 ? 30 : 10, bbox: [3 * k, 2 * k, 8 + i, 9] as const };
    });
    const crowd = { ...common, sourceId: 9, categoryId: 30, bbox: [0, 0, 40, 30] as const, isCrowd: true };
    store.addAnnotations([...boxes, crowd]);
    await Bun.write(join(folder, `${i}.jpg`), Uint8Array.from([i]));
  }
  return { store, source: new LocalDataSource(folder) };
}

const augmentation = [new ScaleJitter(), new RandomCrop(), new HorizontalFlip(), new Resize(), new Normalize()];

type Changes = Partial<CocoDataLoaderOptions>;

function make(data: { store: SQLiteAnnStore; source: LocalDataSource }, changes: Changes = {}) {
  const decoder = (changes.decoder as FakeDecoder | undefined) ?? new FakeDecoder(changes.batchSize ?? 4, 32, 48);
  const warned: string[] = [];
  const loader = new CocoDataLoader({
    ...data,
    split: "train",
    batchSize: 4,
    size: [32, 48],
    preprocessing: augmentation,
    seed: 5,
    onFailure: ({ message }) => warned.push(message),
    ...changes,
    decoder,
  });
  return { loader, decoder, warned };
}

/** Everything of a batch that must not depend on timing; releases it. */
function take(batch: DetectionBatch, decoder: FakeDecoder) {
  const { n, epoch, index, images } = batch;
  const call = decoder.calls.findLast(({ slot }) => slot === batch.slot);
  const content = {
    ...{ n, epoch, index, images },
    boxes: batch.boxes.slice(),
    labels: batch.labels.slice(),
    counts: batch.counts.slice(),
    bytes: call?.images.map((image) => image[0]),
    transforms: call?.transforms,
  };
  batch.release();
  return content;
}

async function collect(loader: CocoDataLoader, decoder: FakeDecoder, count: number) {
  const batches = [];
  for (let i = 0; i < count; i++) batches.push(take(await loader.getBatch(), decoder));
  return batches;
}

describe("CocoDataLoader", () => {
  test("pads boxes, leaves crowds out, maps category ids to classes, keeps images without boxes", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const { loader, decoder } = make(data, { shuffle: false, preprocessing: [new Resize({ mode: "stretch" })] });
      expect([loader.length, loader.maxBoxes, loader.images.length]).toEqual([3, 3, 10]);
      const batch = await loader.getBatch();
      expect([...batch.counts]).toEqual([0, 1, 2, 3]);
      expect([batch.boxes.length, batch.labels.length]).toEqual([4 * 3 * 4, 4 * 3]);
      expect([...batch.labels]).toEqual([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0]);
      const [sx, sy] = [48 / 42, 32 / 30];
      const expected = [0, 0, 10 * sx, 9 * sy, 3 * sx, 2 * sy, 13 * sx, 11 * sy, 0, 0, 0, 0].map(Math.fround);
      const found = [...batch.boxes.subarray(2 * 3 * 4, 3 * 3 * 4)];
      for (const [i, value] of expected.entries()) expect(found[i]).toBeCloseTo(value, 4);
      expect([...batch.boxes.subarray(0, 12)]).toEqual(Array(12).fill(0));
      expect(batch.images[2]).toMatchObject({ sourceId: 102, fileName: "2.jpg", width: 42, height: 30 });
      expect(batch.images[2]?.toInput?.scaleX).toBeCloseTo(sx, 10);
      const { bytes, transforms } = take(batch, decoder);
      expect(bytes).toEqual([0, 1, 2, 3]);
      expect(transforms?.length).toBe(4 * TRANSFORM_FLOATS);
      await loader.dispose();
    });
  });

  test("ends a pass with the images that are left, or leaves them out", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const { loader, decoder } = make(data, { shuffle: false });
      const batches = await collect(loader, decoder, 4);
      expect(batches.map(({ n, epoch, index }) => [n, epoch, index])).toEqual([
        [4, 0, 0],
        [4, 0, 1],
        [2, 0, 2],
        [4, 1, 0],
      ]);
      expect(batches.map(({ bytes }) => bytes)).toEqual([
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
        [0, 1, 2, 3],
      ]);
      // What earlier batches left in the arrays is gone.
      expect([...(batches[2]?.counts ?? [])].slice(2)).toEqual([0, 0]);
      await loader.dispose();

      const second = make(data, { shuffle: true });
      expect(second.loader.length).toBe(2);
      const passes = await collect(second.loader, second.decoder, 4);
      for (const pass of [passes.slice(0, 2), passes.slice(2)]) {
        const members = pass.flatMap(({ bytes }) => bytes as number[]);
        expect(new Set(members).size).toBe(8);
      }
      expect(passes.slice(0, 2).map((b) => b.bytes)).not.toEqual(passes.slice(2).map((b) => b.bytes));
      await second.loader.dispose();
    });
  });

  test("gives the same batches whatever is prepared ahead and in whichever order decoding ends", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const plain = make(data, { prefetch: 1, concurrency: 1, decoder: new FakeDecoder(4, 32, 48, 1) });
      const expected = await collect(plain.loader, plain.decoder, 7);
      await plain.loader.dispose();
      expect(expected.some(({ counts }) => counts.some((count) => count > 0))).toBe(true);

      // Later batches are done before earlier ones, and later files are read before earlier ones.
      const decoder = new FakeDecoder(4, 32, 48, 4, async (_, number) => {
        await Bun.sleep(number % 3 === 0 ? 12 : 1);
        return [];
      });
      const read = data.source.read.bind(data.source);
      let reads = 0;
      data.source.read = async (key, options) => {
        await Bun.sleep(4 - (reads++ % 5));
        return read(key, options);
      };
      const { loader } = make(data, { prefetch: 4, concurrency: 7, decoder });
      expect(await collect(loader, decoder, 7)).toEqual(expected);
      expect(decoder.mostBusy).toBeGreaterThan(1);
      await loader.dispose();
    });
  });

  test("augments an image differently in each epoch and for each seed", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const transformsOf = async (seed: number): Promise<Map<string, string>> => {
        const { loader, decoder } = make(data, { seed, batchSize: 5, decoder: new FakeDecoder(5, 32, 48) });
        const found = new Map<string, string>();
        for (const { epoch, bytes, transforms } of await collect(loader, decoder, 4)) {
          for (const [i, image] of (bytes as number[]).entries()) {
            found.set(`${epoch} ${image}`, String(transforms?.subarray(12 * i, 12 * i + 12)));
          }
        }
        await loader.dispose();
        return found;
      };
      const [a, b] = [await transformsOf(1), await transformsOf(2)];
      expect(a.size).toBe(20);
      expect(new Set(a.values()).size).toBe(20);
      for (const [key, transform] of a) expect(b.get(key)).not.toBe(transform);
      expect(await transformsOf(1)).toEqual(a);
    });
  });

  test("goes on exactly where a state was taken, however much was prepared", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const first = make(data, { prefetch: 3 });
      const before = await collect(first.loader, first.decoder, 3);
      const state = JSON.parse(JSON.stringify(first.loader.state()));
      expect(state).toEqual({
        ...{ epoch: 1, position: 1, seed: 5, shuffle: true, batchSize: 4, images: 10, dropLast: true },
        fingerprint: expect.stringMatching(/^[0-9a-f]{16}$/),
      });
      const after = await collect(first.loader, first.decoder, 4);
      first.loader.restore(state);
      expect(await collect(first.loader, first.decoder, 4)).toEqual(after);
      await first.loader.dispose();

      const second = make(data);
      second.loader.restore(state);
      expect(await collect(second.loader, second.decoder, 4)).toEqual(after);
      second.loader.restore({ ...state, epoch: 0, position: 0 });
      expect(await collect(second.loader, second.decoder, 3)).toEqual(before);
      const batch = await second.loader.getBatch();
      await second.loader.getBatch();
      expect(second.loader.stateAfter(batch)).toEqual({ ...state, epoch: 2, position: 0 });
      for (const change of [{ seed: 6 }, { batchSize: 2 }, { images: 11 }, { shuffle: false }]) {
        const name = Object.keys(change)[0] as string;
        expect(() => second.loader.restore({ ...state, ...change })).toThrow(`${name} was `);
      }
      expect(() => second.loader.restore({ ...state, position: 2 })).toThrow("there is no epoch 1, batch 2");
      await second.loader.dispose();
    });
  });

  const orders: [string, () => Changes][] = [
    ["shuffled", () => ({})],
    ["weighted", () => ({ sampler: new WeightedSampler({ weights: (i) => 1 + i, samples: 13 }), dropLast: false })],
    ["class-balanced", () => ({ sampler: new ClassBalancedSampler({ background: 0.2 }) })],
    ["repeated and grouped", () => ({ sampler: new RepeatFactorSampler({ threshold: 1 }), batchSampler })],
  ];
  const batchSampler = new AspectRatioBatches({ k: 0 });

  test.each(orders)(
    "goes on exactly in the middle of a pass, %s, with other reading and other batches ahead",
    async (_, changes) => {
      await inFolder(async (folder) => {
        const data = await prepare(folder);
        const whole = make(data, { ...changes(), prefetch: 2 });
        const expected = await collect(whole.loader, whole.decoder, 14);
        await whole.loader.dispose();
        for (const [at, prefetch, concurrency] of [
          [0, 5, 1],
          [1, 1, 9],
          [2, 6, 2],
          [5, 3, 16],
          [8, 2, 3],
        ] as const) {
          // Stopped with batches on their way and asked for.
          const slow = new FakeDecoder(4, 32, 48, 3, async (_call, number) => {
            await Bun.sleep((number * 7) % 5);
            return [];
          });
          const first = make(data, { ...changes(), prefetch: 7 - at > 1 ? 4 : 1, decoder: slow });
          expect(await collect(first.loader, slow, at)).toEqual(expected.slice(0, at));
          const state = JSON.stringify(first.loader.state());
          const unused = first.loader.getBatch().then(
            (batch) => batch.release(),
            () => {},
          );
          await first.loader.dispose();
          await unused;

          const decoder = new FakeDecoder(4, 32, 48, 1 + (at % 3));
          const second = make(data, { ...changes(), prefetch, concurrency, decoder });
          // Also in a loader that has prepared other batches.
          if (at % 2 === 0) (await second.loader.getBatch()).release();
          second.loader.restore(JSON.parse(state));
          expect(await collect(second.loader, decoder, 14 - at)).toEqual(expected.slice(at));
          await second.loader.dispose();
        }
      });
    },
  );

  test("augments an image that comes again in a pass in another way", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const sampler = new WeightedSampler({ weights: (i) => (i === 3 ? 1 : 0), samples: 8 });
      const { loader, decoder } = make(data, { sampler, preprocessing: [new ScaleJitter(), new Resize()] });
      expect([loader.length, loader.operations]).toEqual([2, loader.preprocessing]);
      const batches = await collect(loader, decoder, 2);
      expect(batches.flatMap(({ images }) => images.map(({ repeat }) => repeat))).toEqual([
        undefined,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
      ]);
      const drawn = batches.flatMap(({ transforms }) =>
        Array.from({ length: 4 }, (_, i) => String(transforms?.subarray(12 * i, 12 * i + 12))),
      );
      expect(new Set(drawn).size).toBe(8);
      await loader.dispose();
    });
  });

  test("ranks load the batches of one process between them, augmented alike", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const whole = make(data, { dropLast: false });
      const expected = await collect(whole.loader, whole.decoder, 6);
      const ranks = [0, 1].map((rank) => make(data, { batchSize: 2, rank, ranks: 2, dropLast: false }));
      const shares = await Promise.all(ranks.map(({ loader, decoder }) => collect(loader, decoder, 6)));
      for (const [k, batch] of expected.entries()) {
        const joined = shares.map((share) => share[k]);
        expect(joined.flatMap((share) => share?.bytes ?? [])).toEqual(batch.bytes ?? []);
        expect(joined.flatMap((share) => [...(share?.transforms ?? [])])).toEqual([...(batch.transforms ?? [])]);
        expect(joined.flatMap((share) => [...(share?.boxes ?? [])].slice(0, 4 * 3 * (share?.n ?? 0)))).toEqual(
          [...batch.boxes].slice(0, 4 * 3 * batch.n),
        );
      }
      for (const { loader } of ranks) expect(loader.state()).toEqual(whole.loader.state());
      for (const { loader } of [whole, ...ranks]) await loader.dispose();
    });
  });

  test("fails once too many images of those handed out were skipped, and names some", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      await rm(join(folder, "3.jpg"));
      await rm(join(folder, "7.jpg"));
      const { loader, decoder } = make(data, {
        shuffle: false,
        maxFailureShare: 0.15,
        decoder: new FakeDecoder(4, 32, 48),
      });
      // Batches of 4, 4 and 2: 100 images are complete with the 30th.
      await collect(loader, decoder, 29);
      for (const images of [100, 104]) {
        const skipped = images === 100 ? 20 : 21;
        expect((await failure(() => loader.getBatch())).message).toBe(
          `CocoDataLoader: ${skipped} of ${images} images could not be read or decoded: ${((100 * skipped) / images).toFixed(1)} %, ` +
            `more than maxFailureShare allows, 15 %; LocalDataSource.read: ${folder}/3.jpg: no such file; trained as an image ` +
            "without boxes; and 1 more file",
        );
      }
      await loader.dispose();
      const patient = make(data, { shuffle: false, maxFailureShare: 0.25 });
      await collect(patient.loader, patient.decoder, 40);
      expect(patient.loader.failures.map(({ count }) => count)).toEqual([14, 13]);
      await patient.loader.dispose();
    });
  });

  test("iterates to the end of a pass", async () => {
    await inFolder(async (folder) => {
      const { loader } = make(await prepare(folder), { shuffle: false });
      const seen: number[] = [];
      for await (const batch of loader) {
        seen.push(batch.index);
        batch.release();
      }
      (await loader.getBatch()).release();
      for await (const batch of loader) {
        seen.push(batch.index);
        batch.release();
      }
      expect(seen).toEqual([0, 1, 2, 1, 2]);
      expect(loader.state()).toMatchObject({ epoch: 2, position: 0 });
      await loader.dispose();
    });
  });

  test("uses a slot again only once it is released", async () => {
    await inFolder(async (folder) => {
      const decoder = new FakeDecoder(4, 32, 48, 2);
      const { loader } = make(await prepare(folder), { decoder, prefetch: 5 });
      const [a, b] = [await loader.getBatch(), await loader.getBatch()];
      expect([a.slot, b.slot].sort()).toEqual([0, 1]);
      const boxes = a.boxes.slice();
      let third: DetectionBatch | null = null;
      const pending = loader.getBatch().then((batch) => {
        third = batch;
      });
      await Bun.sleep(20);
      expect(third).toBeNull();
      expect(decoder.calls.length).toBe(2);
      expect(a.boxes).toEqual(boxes);
      b.release();
      b.release();
      await pending;
      expect((third as DetectionBatch | null)?.slot).toBe(b.slot);
      await Bun.sleep(10);
      // A second release of the same batch must not give away the slot of the one that has it now.
      expect(decoder.calls.length).toBe(3);
      await loader.dispose();
    });
  });

  test("measures the time spent waiting", async () => {
    await inFolder(async (folder) => {
      let clock = 0;
      const now = spyOn(performance, "now").mockImplementation(() => clock);
      const gates = Array.from({ length: 3 }, () => Promise.withResolvers<void>());
      // The first three batches get the slots in their order.
      const decoder = new FakeDecoder(4, 32, 48, 3, async ({ slot }) => {
        await gates[slot]?.promise;
        return [];
      });
      const { loader } = make(await prepare(folder), { decoder, prefetch: 1 });
      const first = loader.getBatch();
      clock += 500;
      gates[0]?.resolve();
      (await first).release();
      expect(loader.waitSeconds).toBe(0.5);
      // The second batch is ready long before it is asked for.
      gates[1]?.resolve();
      await Bun.sleep(5);
      clock += 1000;
      (await loader.getBatch()).release();
      expect(loader.waitSeconds).toBe(0.5);
      gates[2]?.resolve();
      await loader.dispose();
      now.mockRestore();
    });
  });

  test("trains on without the boxes of images that fail, and says so once", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      await rm(join(folder, "3.jpg"));
      const decoder = new FakeDecoder(4, 32, 48, 3, async ({ images }) =>
        images.flatMap((bytes, index) =>
          bytes.length === 0 || bytes[0] === 6 ? [{ index, message: "bad Huffman code" }] : [],
        ),
      );
      const { loader, warned } = make(data, { decoder, shuffle: false, preprocessing: [new Resize()] });
      const batches = await collect(loader, decoder, 6);
      expect(batches.map(({ counts }) => [...counts])).toEqual([
        [0, 1, 2, 0],
        [0, 1, 0, 3],
        [0, 1, 0, 0],
        [0, 1, 2, 0],
        [0, 1, 0, 3],
        [0, 1, 0, 0],
      ]);
      expect([...(batches[0]?.boxes.subarray(36) ?? [])]).toEqual(Array(12).fill(0));
      // In the order of the batches, whichever was decoded first.
      expect(warned).toEqual([
        `LocalDataSource.read: ${folder}/3.jpg: no such file; trained as an image without boxes`,
        `${folder}/6.jpg: bad Huffman code; trained as an image without boxes`,
      ]);
      await loader.dispose();
      // Batches that were only prepared do not count.
      expect(loader.failures.map(({ fileName, count }) => [fileName, count])).toEqual([
        ["3.jpg", 2],
        ["6.jpg", 2],
      ]);
    });
  });

  test("stops at the first image that fails where that is wanted, and can go on", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      await rm(join(folder, "3.jpg"));
      const decoder = new FakeDecoder(4, 32, 48, 2);
      const { loader, warned } = make(data, {
        decoder,
        shuffle: false,
        preprocessing: [new Resize()],
        failures: "stop",
      });
      const error = await failure(() => loader.getBatch());
      expect(error.message).toBe(`CocoDataLoader: LocalDataSource.read: ${folder}/3.jpg: no such file`);
      expect(warned).toEqual([]);
      // The slot is free again: the batches after it come.
      (await loader.getBatch()).release();
      (await loader.getBatch()).release();
      await failure(() => loader.getBatch());
      await loader.dispose();
    });
  });

  test("hands on what breaks the decoder or the source", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      let healthy = false;
      const decoder = new FakeDecoder(4, 32, 48, 1, async () => {
        if (!healthy) throw new Error("device lost");
        return [];
      });
      const { loader } = make(data, { decoder, prefetch: 1 });
      await expect(loader.getBatch()).rejects.toThrow("device lost");
      await Bun.sleep(10);
      // The slot of the batch that failed is not lost.
      healthy = true;
      loader.restore(loader.state());
      (await loader.getBatch()).release();
      await loader.dispose();
      data.source.read = () => Promise.reject(new TypeError("a bug"));
      const second = make(data);
      await expect(second.loader.getBatch()).rejects.toThrow("a bug");
      await second.loader.dispose();
    });
  });

  test("reads no more files at a time than allowed", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      let [now, most] = [0, 0];
      data.source.read = async () => {
        most = Math.max(most, ++now);
        await Bun.sleep(1);
        now--;
        return new Uint8Array(1);
      };
      const { loader, decoder } = make(data, { concurrency: 3, prefetch: 3 });
      await collect(loader, decoder, 4);
      expect(most).toBe(3);
      await loader.dispose();
    });
  });

  test("ends on dispose, whatever is under way", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const decoder = new FakeDecoder(4, 32, 48, 2, async () => {
        await Bun.sleep(20);
        return [];
      });
      const { loader } = make(data, { decoder, prefetch: 4 });
      const held = await loader.getBatch();
      const waiting = [loader.getBatch(), loader.getBatch(), loader.getBatch()];
      const settled = Promise.allSettled(waiting);
      await loader.dispose();
      expect(decoder.busy.size).toBe(0);
      const results = await settled;
      for (const result of results.filter((r) => r.status === "rejected")) {
        expect(String(result.reason)).toContain("the loader is disposed");
      }
      expect(results.at(-1)?.status).toBe("rejected");
      held.release();
      await expect(loader.getBatch()).rejects.toThrow("the loader is disposed");
      expect(() => loader.restore(loader.state())).toThrow("the loader is disposed");
      const calls = decoder.calls.length;
      await Bun.sleep(30);
      expect(decoder.calls.length).toBe(calls);
      await loader.dispose();
    });
  });

  test("drops what was prepared when it is set to another place", async () => {
    await inFolder(async (folder) => {
      const decoder = new FakeDecoder(4, 32, 48, 2, async () => {
        await Bun.sleep(5);
        return [];
      });
      const { loader } = make(await prepare(folder), { decoder, prefetch: 4, shuffle: false });
      const state = loader.state();
      for (let i = 0; i < 5; i++) {
        const batch = await loader.getBatch();
        expect([batch.epoch, batch.index]).toEqual([0, 0]);
        batch.release();
        await Bun.sleep(i);
        loader.restore(state);
      }
      expect((await collect(loader, decoder, 3)).map(({ index }) => index)).toEqual([0, 1, 2]);
      await loader.dispose();
    });
  });

  test("leaves out images with a problem, and clips boxes to their image", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const images = data.store.images("train");
      data.store.updateImages(images.slice(2).map(({ id }) => ({ id, problem: "empty file" })));
      const bbox = [30, 20, 100, 100] as const;
      const imageId = images[0]?.id as number;
      data.store.addAnnotations([{ sourceId: 1, imageId, categoryId: 10, bbox, area: 1, isCrowd: false }]);
      const options = { batchSize: 2, shuffle: false, size: [30, 40], preprocessing: [new Resize()] } as const;
      const { loader } = make(data, { ...options, decoder: new FakeDecoder(2, 30, 40) });
      expect([loader.images.length, loader.maxBoxes]).toEqual([2, 1]);
      const batch = await loader.getBatch();
      expect([...batch.boxes.subarray(0, 4)]).toEqual([30, 20, 40, 30]);
      await loader.dispose();
    });
  });

  test.each<[string, Changes, string]>([
    ["an unknown split", { split: "test" }, 'split "test" has no usable images'],
    ["no batch", { batchSize: 0 }, "batchSize must be an integer >= 1, got 0"],
    ["a batch that is no number", { batchSize: Number.NaN }, "batchSize must be an integer >= 1, got NaN"],
    ["a negative seed", { seed: -1 }, "seed must be an integer >= 0, got -1"],
    ["a share above 1", { maxFailureShare: 2 }, "maxFailureShare must be in [0, 1], got 2"],
    ["no prefetching", { prefetch: 0 }, "prefetch must be an integer >= 1, got 0"],
    [
      "another size than the decoder's",
      { size: [32, 32] },
      "the decoder's slots are 3 x 4 images of 32x48, expected at least 1 x 4 of 32x32",
    ],
    [
      "a larger batch than the decoder's",
      { batchSize: 8, decoder: new FakeDecoder(4, 32, 48) },
      "expected at least 1 x 8 of 32x48",
    ],
    ["too little room for boxes", { maxBoxes: 2 }, 'maxBoxes is 2, but an image of split "train" has 3 boxes'],
    ["no Resize", { preprocessing: [] }, "preprocessing has 0 Resize operations, expected one"],
    [
      "two Resizes",
      { preprocessing: [new Resize(), new Resize()] },
      "preprocessing has 2 Resize operations, expected one",
    ],
    [
      "two Normalizes",
      { preprocessing: [new Resize(), new Normalize(), new Normalize()] },
      "2 Normalize operations, expected one at most",
    ],
    [
      "fewer images than a batch",
      { batchSize: 16, decoder: new FakeDecoder(16, 32, 48) },
      'split "train": epoch 0 has 10 images, fewer than one batch of 16; choose a smaller batch',
    ],
  ])("refuses %s", async (_, changes, message) => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      expect((await failure(() => make(data, changes))).message).toContain(message);
    });
  });

  test("refuses an order of operations that ends with another size", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const { loader } = make(data, {
        preprocessing: [new Resize(), new RandomCrop({ overlaps: [0], maxScale: 0.9 })],
      });
      expect((await failure(() => loader.getBatch())).message).toContain(
        "operations that change the size belong before Resize",
      );
      await loader.dispose();
    });
  });

  test("refuses images whose size nobody knows", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      data.store.addImages("train", [{ sourceId: 1, fileName: "x.jpg", key: "x.jpg", width: null, height: null }]);
      expect((await failure(() => make(data))).message).toContain("x.jpg: size unknown, run checkImages first");
    });
  });
});

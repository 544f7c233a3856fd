/** Boxes and images that change while they are trained on: from which batch on, and the same batches when it is all done again. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { ImageRecord } from "../../lib/data/annotation-store";
import { CocoDataLoader, type CocoDataLoaderOptions, type DetectionBatch } from "../../lib/data/coco-data-loader";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { ClassBalancedSampler } from "../../lib/data/sampler";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { type ImageBoxes, type TargetChange, targetsOf } from "../../lib/data/targets";
import { HorizontalFlip, Normalize, Resize, ScaleJitter } from "../../lib/data/transforms";
import { FakeDecoder, inFolder } from "./fakes";

const COUNT = 12;
const BATCH = 4;

interface Data {
  store: SQLiteAnnStore;
  source: LocalDataSource;
  folder: string;
}

/** Twelve images of 64x48 with one box each, of class i % 2. */
async function prepare(folder: string): Promise<Data> {
  const store = new SQLiteAnnStore();
  store.addCategories([
    { id: 10, name: "a", supercategory: null },
    { id: 30, name: "b", supercategory: null },
  ]);
  for (let i = 0; i < COUNT; i++) await addImage({ store, folder }, i, [[i, i, 10, 10]]);
  return { store, source: new LocalDataSource(folder), folder };
}

async function addImage(
  { store, folder }: Pick<Data, "store" | "folder">,
  i: number,
  boxes: readonly (readonly [number, number, number, number])[],
): Promise<ImageRecord> {
  const key = `${i}.jpg`;
  await Bun.write(join(folder, key), Uint8Array.from([i]));
  const [id] = store.addImages("train", [{ sourceId: 100 + i, fileName: key, key, width: 64, height: 48 }]) as [number];
  const annotations = boxes.map((bbox, k) => {
    return { imageId: id, sourceId: 1000 * i + k, categoryId: i % 2 ? 30 : 10, bbox, area: 1, isCrowd: false };
  });
  store.addAnnotations(annotations);
  return store.image(id) as ImageRecord;
}

/** Without anything random, boxes of a batch are those of its images. */
const plain = [new Resize({ mode: "stretch" }), new Normalize()];
const random = [new ScaleJitter(), new HorizontalFlip(), new Resize(), new Normalize()];

function make(data: Data, options: Partial<CocoDataLoaderOptions> = {}): CocoDataLoader {
  const decoder = new FakeDecoder(BATCH, 48, 64);
  const { store, source } = data;
  const common = { store, source, split: "train", batchSize: BATCH, size: [48, 64] as const, prefetch: 2, seed: 5 };
  return new CocoDataLoader({ ...common, preprocessing: plain, boxesPerImage: 8, ...options, decoder });
}

function content(batch: DetectionBatch) {
  const { epoch, index } = batch;
  const images = batch.images.map(({ sourceId, repeat = 0 }, i) => {
    const count = batch.counts[i] as number;
    const start = i * (batch.labels.length / batch.counts.length);
    const boxes = [...batch.boxes.subarray(4 * start, 4 * (start + count))];
    return { id: sourceId - 100, repeat, boxes, labels: [...batch.labels.subarray(start, start + count)] };
  });
  batch.release();
  return { epoch, index, images };
}
type Content = ReturnType<typeof content>;

async function take(loader: CocoDataLoader, count: number): Promise<Content[]> {
  const batches = [];
  for (let i = 0; i < count; i++) batches.push(content(await loader.getBatch()));
  return batches;
}

const boxesOf = (...boxes: (readonly [number, number, number, number])[]): ImageBoxes => ({
  boxes: Float64Array.from(boxes.flat()),
  labels: new Int32Array(boxes.length).fill(1),
});
const imageOf = ({ store }: Data, i: number) => store.findImages({ split: "train" })[i] as ImageRecord;

/** Boxes of an image wherever it comes, by batch. */
const turnsOf = (batches: readonly Content[], id: number) =>
  batches.flatMap(({ epoch, index, images }) =>
    images.filter((image) => image.id === id).map(({ boxes, repeat }) => ({ epoch, index, repeat, boxes })),
  );

describe("a change of boxes", () => {
  test("counts from the first batch that was not prepared yet, and is no matter before", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      await using loader = make(data);
      const before = await take(loader, 2);
      const images = Array.from({ length: COUNT }, (_, i) => imageOf(data, i));
      const changes = images.map((image) => loader.change({ image, boxes: boxesOf([1, 2, 30, 40]) }));
      // Two batches are prepared ahead: batch 2 of pass 0, and batch 0 of pass 1.
      expect(new Set(changes.map(({ from }) => `${from.epoch}/${from.index}`))).toEqual(new Set(["1/1"]));
      const after = await take(loader, 8);
      for (const { epoch, index, images } of [...before, ...after]) {
        const changed = epoch > 1 || (epoch === 1 && index >= 1);
        for (const { id, boxes } of images)
          expect(boxes).toEqual(changed ? [1, 2, 30, 40] : [id, id, id + 10, id + 10]);
      }
    });
  });

  test("that takes all boxes away leaves an image without any", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      await using loader = make(data);
      loader.change({ image: imageOf(data, 3), boxes: boxesOf() });
      const turns = turnsOf(await take(loader, 6), 3);
      expect(turns.map(({ boxes }) => boxes.length)).toEqual([0, 0]);
    });
  });
});

describe("a new image", () => {
  test("comes in the passes whose order is not known yet, and at once where that is asked for", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      await using loader = make(data);
      const first = await take(loader, 1);
      const image = await addImage(data, 40, [[5, 6, 7, 8]]);
      const { seat, pass, before } = loader.change({ image, boxes: boxesOf([5, 6, 12, 14]), atOnce: true });
      expect(before).toBeNull();
      expect(seat).toEqual({ at: { epoch: 1, index: 0 }, slot: 0 });
      expect(pass).toBe(2);
      const batches = [...first, ...(await take(loader, 14))];
      const turns = turnsOf(batches, 40);
      expect(turns[0]).toEqual({ epoch: 1, index: 0, repeat: 1024, boxes: [5, 6, 12, 14] });
      // Of thirteen images, a pass of three batches has twelve.
      const later = turns.slice(1);
      expect(later.length).toBeGreaterThanOrEqual(2);
      for (const { epoch, repeat, boxes } of later) {
        expect(epoch).toBeGreaterThanOrEqual(2);
        expect({ repeat, boxes }).toEqual({ repeat: 0, boxes: [5, 6, 12, 14] });
      }
      expect(batches.every(({ images }) => images.length === BATCH)).toBe(true);
    });
  });

  test("leaves at least half of each batch to the others, however many come at once", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      await using loader = make(data);
      for (let i = 0; i < 9; i++) {
        const image = await addImage(data, 40 + i, [[0, 0, 5, 5]]);
        loader.change({ image, boxes: boxesOf([0, 0, 5, 5]), atOnce: true });
      }
      const batches = await take(loader, 8);
      const inserted = batches.map(({ images }) => images.filter(({ repeat }) => repeat >= 1024).map(({ id }) => id));
      expect(inserted.slice(0, 5)).toEqual([[40, 41], [42, 43], [44, 45], [46, 47], [48]]);
    });
  });
});

test("an image of weight 3 comes three times as often, one of weight 0.5 every other time", async () => {
  await inFolder(async (folder) => {
    const data = await prepare(folder);
    await using loader = make(data, { dropLast: false });
    const { boxes, labels } = boxesOf([1, 1, 9, 9]);
    loader.change({ image: imageOf(data, 2), boxes: { boxes, labels }, weight: 3 });
    loader.change({ image: imageOf(data, 5), boxes: { boxes, labels }, weight: 0.5 });
    const batches: Content[] = [];
    while (batches.length === 0 || batches.at(-1)!.epoch <= 60) batches.push(...(await take(loader, 1)));
    const counted = batches.filter(({ epoch }) => epoch >= 1 && epoch <= 60);
    const perPass = (id: number) => turnsOf(counted, id).length / 60;
    expect(perPass(2)).toBe(3);
    expect(perPass(7)).toBe(1);
    expect(perPass(5)).toBeGreaterThan(0.25);
    expect(perPass(5)).toBeLessThan(0.75);
    // Turns of one image in a pass are augmented each in its own way.
    const repeats = turnsOf(counted, 2)
      .filter(({ epoch }) => epoch === 1)
      .map(({ repeat }) => repeat);
    expect(repeats.sort()).toEqual([0, 1, 2]);
  });
});

describe("all of it again", () => {
  for (const [what, options] of [
    ["shuffled", {}],
    ["by a sampler that looks at labels", { sampler: new ClassBalancedSampler() }],
  ] as const) {
    test(`gives the same batches from the start, and from the middle, ${what}`, async () => {
      await inFolder(async (folder) => {
        const data = await prepare(folder);
        await using live = make(data, { ...options, preprocessing: random });
        const changes: TargetChange[] = [];
        const batches: Content[] = [];
        const states = [live.state()];
        const classes = data.store.classes();
        for (let step = 0; step < 30; step++) {
          if (step % 3 === 1) {
            // As a server would: into the store, then into the loader.
            const image = imageOf(data, step % COUNT);
            const bbox = [step, 2, 10, 12] as const;
            const [first] = data.store.annotationsOf(image.id);
            if (first) data.store.updateAnnotations([{ id: first.id, bbox, categoryId: 30 }]);
            const boxes = targetsOf(data.store.annotationsOf(image.id), image, (id) => classes.indexOf(id));
            changes.push(live.change({ image, boxes, atOnce: step % 2 === 0, weight: step > 15 ? 2 : 1 }));
          }
          if (step % 7 === 3) {
            const image = await addImage(data, 40 + step, [[step, 1, 8, 8]]);
            const boxes = targetsOf(data.store.annotationsOf(image.id), image, (id) => classes.indexOf(id));
            changes.push(live.change({ image, boxes, atOnce: step > 10 }));
          }
          batches.push(...(await take(live, 1)));
          states.push(live.state());
        }
        expect(changes.length).toBe(14);
        // The store has all changes by now; the loaders that come later go by what they are told.
        const kept = JSON.parse(JSON.stringify(changes), revive) as TargetChange[];
        await using again = make(data, { ...options, preprocessing: random, changes: kept });
        expect(await take(again, 30)).toEqual(batches);
        for (const at of [4, 13, 29]) {
          await using resumed = make(data, { ...options, preprocessing: random, changes: kept });
          resumed.restore(states[at]!);
          expect(await take(resumed, 30 - at)).toEqual(batches.slice(at));
        }
      });
    });
  }
});

/** Typed arrays, which JSON writes as objects. */
function revive(key: string, value: unknown): unknown {
  if (key === "boxes" && value && !("boxes" in (value as object))) return Float64Array.from(Object.values(value));
  return key === "labels" ? Int32Array.from(Object.values(value as object)) : value;
}

describe("refused, by the image's name, and nothing has changed", () => {
  for (const [what, change, expected] of [
    [
      "more boxes than there is room for",
      { boxes: boxesOf(...Array<[0, 0, 1, 1]>(9).fill([0, 0, 1, 1])) },
      "9 boxes, and",
    ],
    ["a weight of 0", { weight: 0 }, "weight: expected above 0, got 0"],
    ["an image whose size is not known", { unsized: true }, "its size is not known"],
  ] as const) {
    test(what, async () => {
      await inFolder(async (folder) => {
        const data = await prepare(folder);
        await using loader = make(data);
        const image = { ...imageOf(data, 0), ...("unsized" in change && { width: null }) };
        const wrong = { image, boxes: boxesOf([0, 0, 1, 1]), ...change };
        expect(() => loader.change(wrong)).toThrow(`change of 0.jpg: ${expected}`);
        expect(turnsOf(await take(loader, 3), 0)[0]!.boxes).toEqual([0, 0, 10, 10]);
      });
    });
  }
});

describe("ranks", () => {
  test("that take the first one's changes at the same step have the batches of one loader, each its share", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const ranks = [0, 1].map((rank) => make(data, { batchSize: BATCH / 2, rank, ranks: 2, preprocessing: random }));
      const [leader, follower] = ranks as [CocoDataLoader, CocoDataLoader];
      const found: Content[][] = [];
      const step = async () => found.push((await Promise.all(ranks.map((rank) => take(rank, 1)))).flat());
      const tell = (change: Parameters<CocoDataLoader["change"]>[0]) => {
        const taken = leader.change(change);
        follower.take(taken);
        return taken;
      };
      const changes: TargetChange[] = [];
      for (let i = 0; i < 3; i++) await step();
      changes.push(tell({ image: imageOf(data, 2), boxes: boxesOf([1, 2, 30, 40]), atOnce: true, weight: 3 }));
      const added = await addImage(data, COUNT, []);
      for (let i = 0; i < 2; i++) await step();
      changes.push(tell({ image: added, boxes: boxesOf([3, 4, 20, 30]), atOnce: true }));
      for (let i = 0; i < 13; i++) await step();
      const whole = await take(make(data, { changes, preprocessing: random }), found.length);
      const images = found.map((parts) => parts.flatMap((part) => part.images));
      expect(images).toEqual(whole.map((batch) => batch.images));
      expect(turnsOf(whole, COUNT).length).toBeGreaterThan(1);
      for (const rank of ranks) await rank.dispose();
    });
  });

  test("that have come further than the first one say so", async () => {
    await inFolder(async (folder) => {
      const data = await prepare(folder);
      const [leader, follower] = [0, 1].map((rank) => make(data, { batchSize: 2, rank, ranks: 2 }));
      await take(leader!, 1);
      await take(follower!, 2);
      const change = leader!.change({ image: imageOf(data, 2), boxes: boxesOf() });
      expect(() => follower!.take(change)).toThrow(
        "change of 2.jpg: it counts from epoch 1, batch 0 on, and this rank has prepared what is before epoch 1, batch 1",
      );
      for (const rank of [leader, follower]) await rank!.dispose();
    });
  });
});

import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { NewAnnotation } from "../../lib/data/annotation-store";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { failure, inFolder } from "./fakes";

function filled(path?: string): { store: SQLiteAnnStore; ids: number[] } {
  const store = new SQLiteAnnStore(path);
  store.addCategories([
    { id: 4, name: "cat", supercategory: null },
    { id: 2, name: "dog", supercategory: "pet" },
  ]);
  const image = (sourceId: number, width: number | null = 10) => {
    return { sourceId, fileName: `${sourceId}.jpg`, key: `train/${sourceId}.jpg`, width, height: width };
  };
  const ids = store.addImages("train", [image(30), image(10), image(20, null)]);
  const box = (imageId: number | undefined, categoryId: number, isCrowd = false): NewAnnotation => {
    return { sourceId: 1, imageId: imageId as number, categoryId, bbox: [1, 2, 3.5, 4], area: 14, isCrowd };
  };
  store.addAnnotations([box(ids[0], 2), box(ids[1], 4), box(ids[0], 4), box(ids[0], 2, true)]);
  return { store, ids };
}

describe("SQLiteAnnStore", () => {
  test("gives back what was put in, in order", () => {
    const { store, ids } = filled();
    expect(store.categories()).toEqual([
      { id: 2, name: "dog", supercategory: "pet" },
      { id: 4, name: "cat", supercategory: null },
    ]);
    expect(store.images("train").map((image) => image.sourceId)).toEqual([10, 20, 30]);
    expect(store.image(ids[2] as number)).toMatchObject({ sourceId: 20, split: "train", width: null, problem: null });
    expect(store.image(999)).toBeNull();
    expect(store.annotationsOf(ids[0] as number).map((a) => [a.categoryId, a.isCrowd])).toEqual([
      [2, false],
      [4, false],
      [2, true],
    ]);
    expect([...store.annotations("train")].map((a) => a.imageId)).toEqual([1, 0, 0, 0].map((i) => ids[i] as number));
    expect([...store.annotations("train")][0]).toMatchObject({ bbox: [1, 2, 3.5, 4], area: 14 });
    expect([...store.annotations("val")]).toEqual([]);
    expect(store.classCounts("train")).toEqual([1, 2]);
  });

  test("walks over the annotations twice at a time", () => {
    const { store } = filled();
    let pairs = 0;
    for (const _ of store.annotations("train")) for (const __ of store.annotations("train")) pairs++;
    expect(pairs).toBe(16);
    for (const _ of store.annotations("train")) break;
    store.deleteSplit("train");
    expect(store.splits()).toEqual([]);
  });

  test("gives the boxes of many images, repeated and unknown ones too, in the order asked for", () => {
    const store = new SQLiteAnnStore();
    store.addCategories([{ id: 1, name: "cat", supercategory: null }]);
    const names = Array.from({ length: 100 }, (_, i) => `${i}.jpg`);
    const images = names.map((name, i) => ({ sourceId: i, fileName: name, key: name, width: 10, height: 10 }));
    const ids = store.addImages("train", images);
    // Image i has i % 3 boxes, at x = i; added in another order than the images.
    const boxes = ids.toReversed().flatMap((imageId) => {
      const x = ids.indexOf(imageId);
      const box = { sourceId: 1, imageId, categoryId: 1, bbox: [x, 0, 1, 1] as const, area: 1, isCrowd: false };
      return Array(x % 3).fill(box) as NewAnnotation[];
    });
    store.addAnnotations(boxes);
    const asked = [70, 5, 5, 99, ...ids.keys(), 70];
    const found = store.annotationsOfBatch([...asked.map((i) => ids[i] as number), 12345]);
    expect(found.map((list) => list.map(({ bbox }) => bbox[0]))).toEqual([
      ...asked.map((i) => Array(i % 3).fill(i) as number[]),
      [],
    ]);
    expect(found[1]![0]).not.toBe(found[2]![0]);
    expect(store.annotationsOfBatch([])).toEqual([]);
  });

  test("counts usable images only", () => {
    const { store, ids } = filled();
    const counts = { images: 3, usable: 3, annotations: 4, crowds: 1, withoutBoxes: 1, maxBoxes: 2 };
    expect(store.counts("train")).toEqual(counts);
    store.updateImages([
      { id: ids[0] as number, problem: "empty file" },
      { id: ids[2] as number, width: 5, height: 6 },
    ]);
    expect(store.counts("train")).toEqual({ ...counts, usable: 2, annotations: 1, crowds: 0, maxBoxes: 1 });
    expect(store.images("train", { usable: true }).map((image) => [image.sourceId, image.width])).toEqual([
      [10, 10],
      [20, 5],
    ]);
    store.updateImages([{ id: ids[0] as number, problem: null }]);
    expect(store.counts("train")).toEqual(counts);
    expect(store.counts("val")).toMatchObject({ images: 0, usable: 0, maxBoxes: 0 });
    expect(() => store.updateImages([{ id: 99, problem: null }])).toThrow("no image has id 99");
  });

  test("deletes annotations with their images", () => {
    const { store, ids } = filled();
    store.deleteImages([ids[0] as number]);
    expect([...store.annotations("train")].length).toBe(1);
    store.deleteAnnotations([...store.annotations("train")].map((a) => a.id));
    expect(store.counts("train")).toMatchObject({ images: 2, annotations: 0 });
    store.clear();
    expect([store.splits(), store.categories()]).toEqual([[], []]);
  });

  test("adds all or nothing", async () => {
    const { store } = filled();
    const image = (sourceId: number, key: string) => ({ sourceId, fileName: key, key, width: 1, height: 1 });
    const twice = await failure(() => store.addImages("train", [image(50, "a"), image(51, "a")]));
    expect(twice.message).toContain("image 51 (a) of split train");
    const sameId = await failure(() => store.addImages("train", [image(60, "b"), image(10, "c")]));
    expect(sameId.message).toContain("image 10 (c)");
    expect(store.images("train").length).toBe(3);
    const box = { sourceId: 9, imageId: 12345, categoryId: 2, bbox: [0, 0, 1, 1] as const, area: 1, isCrowd: false };
    const orphan = await failure(() => store.addAnnotations([{ ...box, imageId: 1 }, box]));
    expect(orphan.message).toContain("annotation 9 of image 12345, category 2: FOREIGN KEY constraint failed");
    expect([...store.annotations("train")].length).toBe(4);
  });

  test("undoes transactions that fail, nested ones alone", () => {
    const { store } = filled();
    const boom = (): never => {
      throw new Error("boom");
    };
    expect(() =>
      store.transaction(() => {
        store.deleteSplit("train");
        boom();
      }),
    ).toThrow("boom");
    expect(store.splits()).toEqual(["train"]);
    store.transaction(() => {
      store.setMetadata("a", "1");
      expect(() =>
        store.transaction(() => {
          store.setMetadata("a", "2");
          boom();
        }),
      ).toThrow("boom");
    });
    expect(store.getMetadata("a")).toBe("1");
    expect(() => store.transaction(async () => {})).toThrow("must not be asynchronous");
  });

  test("keeps facts about files, imports and metadata over a clear", () => {
    const { store } = filled();
    const facts = {
      key: "train/1.jpg",
      size: 5_000_000_000,
      modified: 1_700_000_000_123,
      width: 4,
      height: 3,
      format: "jpeg",
      components: 1,
      bits: 8,
      process: 1,
      orientation: 6,
      problem: null,
    };
    store.saveFileFacts([facts, { ...facts, key: "other", problem: "empty file" }]);
    store.saveFileFacts([{ ...facts, width: 8 }]);
    store.setMetadata("name", "value");
    const record = { split: "train", source: "f.json", size: 3, modified: 4, importedAt: 5, problems: [] };
    store.recordImport(record);
    expect(store.imports()).toEqual([record]);
    store.clear();
    expect(store.fileFacts("train/1.jpg")).toEqual({ ...facts, width: 8 });
    expect(store.fileFacts("other")?.problem).toBe("empty file");
    expect(store.fileFacts("absent")).toBeNull();
    expect(store.getMetadata("name")).toBe("value");
    expect(store.getMetadata("absent")).toBeNull();
    expect(store.imports()).toEqual([]);
  });

  test("keeps everything in a file that two connections may use", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "store.sqlite");
      const { store } = filled(path);
      using second = new SQLiteAnnStore(path);
      second.setMetadata("from", "the other");
      expect(store.getMetadata("from")).toBe("the other");
      store.close();
      store.close();
      expect(second.images("train").length).toBe(3);
      expect(() => store.images("train")).toThrow("is closed");
    });
  });

  test("uses its indexes for the queries of a loader", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "store.sqlite");
      filled(path).store.close();
      const db = new Database(path);
      const plan = (sql: string): string => JSON.stringify(db.query(`EXPLAIN QUERY PLAN ${sql}`).all());
      expect(plan("SELECT * FROM annotations WHERE image_id = 1")).toContain("annotations_by_image");
      expect(plan("SELECT * FROM images WHERE split = 'a' ORDER BY source_id")).not.toContain("TEMP B-TREE");
      db.close();
    });
  });

  test("says which file cannot be opened, and why", async () => {
    await inFolder(async (folder) => {
      expect((await failure(() => new SQLiteAnnStore(join(folder, "no", "x.sqlite")))).message).toContain(
        `${folder}/no/x.sqlite: `,
      );
      const path = join(folder, "text.sqlite");
      await Bun.write(path, "this is no database, although it is long enough to look like one ".repeat(40));
      expect((await failure(() => new SQLiteAnnStore(path))).message).toContain(`${path}: file is not a database`);
      const newer = join(folder, "newer.sqlite");
      const db = new Database(newer);
      db.run("PRAGMA user_version = 99");
      db.close();
      expect((await failure(() => new SQLiteAnnStore(newer))).message).toContain("has schema version 99");
    });
  });
});

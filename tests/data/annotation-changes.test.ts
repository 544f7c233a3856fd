import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Attribution, NewAnnotation } from "../../lib/data/annotation-store";
import { seededFraction, splitOf } from "../../lib/data/split-hash";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { categoryKey } from "../../lib/data/sqlite-schema";
import { failure, inFolder } from "./fakes";

const ANNA: Attribution = { source: "human", author: "anna", time: 1000 };

/** Twelve images in a split, two categories, a box of category 1 in every third image. */
function filled(path?: string): { store: SQLiteAnnStore; ids: number[] } {
  const store = new SQLiteAnnStore(path);
  store.addCategories([
    { id: 1, name: "cat", supercategory: null },
    { id: 2, name: "dog", supercategory: null },
  ]);
  const ids = store.addImages(
    "all",
    Array.from({ length: 12 }, (_, i) => {
      return { sourceId: i + 1, fileName: `${i}.jpg`, key: `${i}.jpg`, width: 10 * (i + 1), height: 10 };
    }),
  );
  store.addAnnotations(ids.filter((_, i) => i % 3 === 0).map((id) => box(id)));
  return { store, ids };
}

function box(imageId: number, changes: Partial<NewAnnotation> = {}): NewAnnotation {
  return { sourceId: 1, imageId, categoryId: 1, bbox: [1, 2, 3, 4], area: 12, isCrowd: false, ...changes };
}

describe("boxes", () => {
  test("say who made them, when, and how sure a model was", () => {
    const { store, ids } = filled();
    const id = ids[1] as number;
    const model: Attribution = { source: "model", author: "run7", time: 5 };
    store.addAnnotations([box(id, { score: 0.75 }), box(id, { by: ANNA })], { by: model });
    expect(store.annotationsOf(id)).toMatchObject([
      { source: "model", author: "run7", modified: 5, score: 0.75 },
      { source: "human", author: "anna", modified: 1000, score: null },
    ]);
    const [first] = store.annotationsOf(id);
    store.updateAnnotations([{ id: first?.id as number, bbox: [0, 0, 5, 6], categoryId: 2, score: null }], ANNA);
    expect(store.annotationsOf(id)[0]).toMatchObject({
      categoryId: 2,
      bbox: [0, 0, 5, 6],
      area: 30,
      score: null,
      source: "human",
      author: "anna",
      modified: 1000,
    });
  });

  test("are added from many at once as from few, and the refused one is named", async () => {
    const { store, ids } = filled();
    const many = Array.from({ length: 1000 }, (_, i) => box(ids[i % 12] as number, { sourceId: i }));
    expect(store.addAnnotations(many)).toBe(1000);
    expect(store.counts("all").annotations).toBe(1004);
    const before = store.lastChange();
    many[500] = box(ids[0] as number, { sourceId: 500, categoryId: 77 });
    const error = await failure(() => store.addAnnotations(many));
    expect(error.message).toContain("annotation 500 of image 1, category 77: FOREIGN KEY constraint failed");
    expect([store.counts("all").annotations, store.lastChange()]).toEqual([1004, before]);
  });

  test("are there when an import builds its index at the end", () => {
    const { store, ids } = filled();
    store.addAnnotations(
      ids.map((id) => box(id, { categoryId: 2 })),
      { expected: 10_000_000 },
    );
    expect(store.checkIntegrity()).toEqual([]);
    expect(store.countImages({ categoryId: 2 })).toBe(12);
  });

  test("of a batch come image by image", () => {
    const { store, ids } = filled();
    const batch = store.annotationsOfBatch([ids[3] as number, ids[1] as number, 999, ids[0] as number]);
    expect(batch.map((list) => list.map((a) => a.imageId))).toEqual([[4], [], [], [1]]);
  });

  test("that are not there cannot be changed", async () => {
    const { store } = filled();
    expect((await failure(() => store.updateAnnotations([{ id: 999, area: 1 }]))).message).toContain(
      "no annotation has id 999",
    );
    const unknown = await failure(() => store.updateAnnotations([{ id: 1, categoryId: 55 }]));
    expect(unknown.message).toContain("annotation 1, category 55: FOREIGN KEY");
  });
});

describe("findImages", () => {
  test("combines split, tag, category, ids, problems and conditions, page by page", () => {
    const { store, ids } = filled();
    const found = (query: Parameters<SQLiteAnnStore["findImages"]>[0]): number[] =>
      store.findImages(query).map((image) => image.id);
    expect(found({ split: "all" })).toEqual(ids);
    expect(found({ split: "none" })).toEqual([]);
    expect(found({ categoryId: 1 })).toEqual([1, 4, 7, 10]);
    expect(found({ ids: [4, 6] })).toEqual([4, 5, 6]);
    expect(found({ where: "i.width > ? AND i.width < ?", parameters: [30, 60] })).toEqual([4, 5]);
    store.addTag("night", [4, 5, 7]);
    expect(found({ tag: "night", categoryId: 1 })).toEqual([4, 7]);
    store.updateImages([{ id: 4, problem: "empty file" }]);
    expect(found({ tag: "night", usable: true })).toEqual([5, 7]);
    expect(found({ usable: false })).toEqual([4]);
    expect(store.findImages({ split: "all" }, { after: 10, limit: 1 }).map((i) => i.id)).toEqual([11]);
    expect(store.countImages({ tag: "night" })).toBe(3);
  });

  test("uses an index for what batches and filters ask", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "store.sqlite");
      filled(path).store.close();
      using db = new Database(path);
      const plan = (sql: string): string => JSON.stringify(db.query(`EXPLAIN QUERY PLAN ${sql}`).all());
      expect(plan("SELECT x FROM annotations a WHERE a.image_id = 1 ORDER BY a.id")).not.toContain("TEMP B-TREE");
      const key = `${categoryKey("a.category_id", "a.image_id")} = ${categoryKey("1", "i.id")}`;
      const category = `EXISTS (SELECT 1 FROM annotations a WHERE ${key})`;
      expect(plan(`SELECT * FROM images i WHERE ${category}`)).toContain("annotations_by_category");
    });
  });

  test("names a condition that is no SQL", async () => {
    const { store } = filled();
    const error = await failure(() => store.findImages({ where: "i.size > 3" }));
    expect(error.message).toContain("no such column: i.size");
  });
});

describe("tags", () => {
  test("are counted, listed, taken off, and go with their image", async () => {
    const { store, ids } = filled();
    store.addTag("night", ids.slice(0, 3));
    store.addTag("night", ids.slice(2, 4));
    store.addTag("blurred", [ids[0] as number]);
    expect(store.tags()).toEqual([
      { tag: "blurred", images: 1 },
      { tag: "night", images: 4 },
    ]);
    expect(store.tagsOf(ids[0] as number)).toEqual(["blurred", "night"]);
    store.removeTag("night", ids);
    expect(store.tags()).toEqual([{ tag: "blurred", images: 1 }]);
    store.deleteImages([ids[0] as number]);
    expect(store.tags()).toEqual([]);
    expect((await failure(() => store.addTag("x", [999]))).message).toContain('tag "x" of image 999');
  });
});

describe("changesSince", () => {
  test("tells all that happened, with what was there before, once", () => {
    const { store, ids } = filled();
    const start = store.lastChange();
    const id = ids[0] as number;
    store.updateAnnotations([{ id: 1, area: 3 }], ANNA);
    store.deleteAnnotations([1], ANNA);
    store.updateImages([{ id, problem: "empty file" }], ANNA);
    store.addTag("night", [2, 3, 5], ANNA);
    store.deleteImages([id], ANNA);
    const changes = store.changesSince(start);
    expect(changes.map(({ entity, action, first, last }) => [entity, action, first, last])).toEqual([
      ["annotation", "change", 1, 1],
      ["annotation", "delete", 1, 1],
      ["image", "change", 1, 1],
      ["image", "change", 2, 3],
      ["image", "change", 5, 5],
      ["image", "delete", 1, 1],
    ]);
    expect(changes[0]).toMatchObject({
      time: 1000,
      source: "human",
      author: "anna",
      detail: { area: 12, categoryId: 1 },
    });
    expect(changes[1]?.detail).toMatchObject({ area: 3, bbox: [1, 2, 3, 4] });
    expect(changes[2]?.detail).toEqual({ width: 10, height: 10, problem: null });
    expect(changes.map((change) => change.number)).toEqual(changes.map((_, i) => start + 1 + i));
    expect(store.changesSince(start, 2).length).toBe(2);
    expect(store.changesSince(store.lastChange())).toEqual([]);
  });

  test("has one entry for all boxes of an import, and none of what was undone", () => {
    const { store, ids } = filled();
    expect(store.changesSince(0)).toMatchObject([
      { entity: "category", action: "add", first: 1, last: 1 },
      { entity: "category", action: "add", first: 2, last: 2 },
      { entity: "image", action: "add", first: 1, last: 12 },
      { entity: "annotation", action: "add", first: 1, last: 4, source: "imported" },
    ]);
    expect(() =>
      store.transaction(() => {
        store.addAnnotations([box(ids[0] as number)]);
        throw new Error("boom");
      }),
    ).toThrow("boom");
    expect(store.lastChange()).toBe(4);
  });

  test("never gives an id or a number twice", () => {
    const { store } = filled();
    const last = store.lastChange();
    store.clear();
    expect(store.lastChange()).toBeGreaterThan(last);
    store.addCategories([{ id: 1, name: "cat", supercategory: null }]);
    const [id] = store.addImages("all", [{ sourceId: 1, fileName: "a", key: "a", width: 1, height: 1 }]);
    expect(id).toBe(13);
    store.addAnnotations([box(13)]);
    expect(store.annotationsOf(13)[0]?.id).toBe(5);
  });
});

describe("assignSplits", () => {
  test("puts an image where its key and the seed say, whatever else there is", () => {
    const { store } = filled();
    const shares = { train: 8, val: 2 };
    const counts = store.assignSplits({ shares, seed: 7 });
    expect(counts).toEqual({ train: store.images("train").length, val: store.images("val").length });
    expect((counts.train as number) + (counts.val as number)).toBe(12);
    const val = store.images("val").map((image) => image.key);
    store.addImages("new", [{ sourceId: 99, fileName: "z.jpg", key: "z.jpg", width: 1, height: 1 }]);
    store.assignSplits({ shares, seed: 7 });
    expect(
      store
        .images("val")
        .map((image) => image.key)
        .filter((key) => key !== "z.jpg"),
    ).toEqual(val);
    expect(store.splits()).toEqual(["train", "val"]);
    const change = store.changesSince(0).find(({ entity }) => entity === "split");
    expect(change).toMatchObject({ action: "change", detail: { shares, seed: 7, from: null } });
  });

  test("keeps groups together and leaves other splits alone", async () => {
    const { store } = filled();
    store.addImages("test", [{ sourceId: 1, fileName: "t.jpg", key: "t.jpg", width: 1, height: 1 }]);
    const options = { shares: { train: 1, val: 1 }, seed: 3, from: "all" };
    store.assignSplits({ ...options, groupOf: () => "one video" });
    expect(store.splits().length).toBe(2);
    expect(store.images("test").length).toBe(1);
    expect((await failure(() => store.assignSplits({ ...options, from: "gone" }))).message).toContain(
      'has no images of split "gone"',
    );
  });

  test("gives shares their size, and moves little when they change", () => {
    const keys = Array.from({ length: 20_000 }, (_, i) => `images/${i}.jpg`);
    const [before, after] = [splitOf({ train: 0.8, val: 0.2 }, 1), splitOf({ train: 0.7, val: 0.3 }, 1)];
    const train = keys.filter((key) => before(key) === "train").length;
    expect(Math.abs(train / keys.length - 0.8)).toBeLessThan(0.01);
    const moved = keys.filter((key) => before(key) !== after(key));
    expect(Math.abs(moved.length / keys.length - 0.1)).toBeLessThan(0.01);
    expect(moved.every((key) => before(key) === "train")).toBe(true);
    // The same on every machine and in every version: SHA-256 of "1:images/0.jpg".
    const hex = new Bun.CryptoHasher("sha256").update("1:images/0.jpg").digest("hex").slice(0, 12);
    expect(seededFraction(1, "images/0.jpg")).toBe(Number.parseInt(hex, 16) / 2 ** 48);
    expect(() => splitOf({ train: -1 }, 1)).toThrow('split "train": expected a share >= 0, got -1');
    expect(() => splitOf({ train: 0 }, 1)).toThrow("expected shares of more than 0 in all");
  });
});

describe("checkIntegrity", () => {
  test("finds nothing in a sound store, and what was broken by hand", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "store.sqlite");
      const { store } = filled(path);
      expect(store.checkIntegrity()).toEqual([]);
      store.close();
      using db = new Database(path);
      db.run("PRAGMA foreign_keys = OFF");
      db.run("UPDATE annotations SET image_id = 999 WHERE id = 1");
      db.run("UPDATE annotations SET origin = 50 WHERE id = 2");
      db.run("DROP INDEX annotations_by_image");
      using broken = new SQLiteAnnStore(path);
      expect(broken.checkIntegrity()).toEqual([
        "annotations, row 1: what it refers to in images is missing",
        "annotations: 1 with an origin that is missing",
        "the index annotations_by_image is missing",
      ]);
    });
  });
});

describe("several processes", () => {
  const module = JSON.stringify(fileURLToPath(new URL("../../lib/data/sqlite-ann-store.ts", import.meta.url)));
  const run = (script: string) => {
    const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "inherit" });
    return new Response(child.stdout).text().then((text) => text.trim());
  };

  test("write in turns while others read, and every reader sees whole transactions and every change once", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "store.sqlite");
      filled(path).store.close();
      const open = `import { SQLiteAnnStore } from ${module}; using store = new SQLiteAnnStore(${JSON.stringify(path)});`;
      // A writer adds pairs: an odd number of boxes would be half a transaction.
      const writer = (author: string) => `${open}
        for (let i = 0; i < 40; i++) store.transaction(() => {
          const box = { sourceId: i, imageId: 2, categoryId: 2, bbox: [0, 0, 1, 1], area: 1, isCrowd: false };
          for (const _ of [1, 2]) store.addAnnotations([box], { by: { source: "human", author: "${author}" } });
        });`;
      const reader = `${open}
        let [since, boxes] = store.transaction(() => [store.lastChange(), store.annotationsOf(2).length]), odd = 0;
        const until = Date.now() + 20000;
        while (boxes < 160 && Date.now() < until) {
          if (store.annotationsOf(2).length % 2) odd++;
          for (const { number, first, last } of store.changesSince(since)) { since = number; boxes += last - first + 1; }
        }
        console.log(odd, boxes);`;
      const readers = [run(reader), run(reader)];
      await Promise.all([run(writer("a")), run(writer("b"))]);
      // A reader that starts in the middle counts what is there, then what is added: never more, never less.
      expect(await Promise.all(readers)).toEqual(["0 160", "0 160"]);
      using store = new SQLiteAnnStore(path);
      expect(store.annotationsOf(2).length).toBe(160);
      expect(store.checkIntegrity()).toEqual([]);
    });
  });

  test("lose nothing but the open transaction when a writer is killed", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "store.sqlite");
      filled(path).store.close();
      await run(`import { SQLiteAnnStore } from ${module}; const store = new SQLiteAnnStore(${JSON.stringify(path)});
        store.deleteAnnotations([1]);
        store.transaction(() => { store.deleteSplit("all"); process.kill(process.pid, "SIGKILL"); });`);
      using store = new SQLiteAnnStore(path);
      expect(store.counts("all")).toMatchObject({ images: 12, annotations: 3 });
      expect(store.checkIntegrity()).toEqual([]);
    });
  });
});

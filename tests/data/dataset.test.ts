import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cp, mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describeDataset, type LoadDatasetOptions, loadDataset } from "../../lib/data/dataset";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { FakeCodec, failure, fakeJpeg, inFolder, quiet } from "./fakes";

/** The cache folder of these tests: nothing may be written to the user's. */
let cache = "";
const { XDG_CACHE_HOME: before, DLFS_CACHE: chosen } = process.env;

beforeAll(async () => {
  cache = await mkdtemp(join(tmpdir(), "dlfs-cache-"));
  process.env.XDG_CACHE_HOME = cache;
  delete process.env.DLFS_CACHE;
});

afterAll(async () => {
  if (before === undefined) delete process.env.XDG_CACHE_HOME;
  else process.env.XDG_CACHE_HOME = before;
  if (chosen !== undefined) process.env.DLFS_CACHE = chosen;
  await rm(cache, { recursive: true, force: true });
});

function annotations(first: number, count: number, categories = ["cat", "dog"]) {
  const ids = Array.from({ length: count }, (_, i) => first + i);
  return {
    images: ids.map((id) => ({ id, file_name: `${id}.jpg`, width: 40, height: 30 })),
    annotations: ids.map((id) => ({ id, image_id: id, category_id: 1, bbox: [1, 2, 10, 10] })),
    categories: categories.map((name, i) => ({ id: i + 1, name })),
  };
}

const FILES = { train2017: annotations(1, 3), val2017: annotations(10, 2) };

/** Writes a data set; `imageFolder` says where the images of a split go. */
async function write(folder: string, files: Record<string, unknown> = FILES, imageFolder = (split: string) => split) {
  for (const [split, file] of Object.entries(files)) {
    await Bun.write(join(folder, "annotations", `instances_${split}.json`), JSON.stringify(file));
    for (const { file_name } of (file as typeof FILES.train2017).images) {
      await Bun.write(join(folder, imageFolder(split), file_name), fakeJpeg(40, 30));
    }
  }
}

function load(folder: string, changes: Partial<LoadDatasetOptions> = {}) {
  return loadDataset(folder, { codec: new FakeCodec(), progress: quiet, ...changes });
}

describe("loadDataset", () => {
  test.each([
    ["SPLIT/", (split: string) => split],
    ["images/SPLIT/", (split: string) => `images/${split}`],
    ["images/", () => "images"],
  ])("finds images in %s", async (_, imageFolder) => {
    await inFolder(async (folder) => {
      await write(folder, FILES, imageFolder);
      using dataset = await load(folder);
      expect(dataset.classes.names).toEqual(["cat", "dog"]);
      expect(dataset.train).toMatchObject({ images: 3, usable: 3, annotations: 3, maxBoxes: 1 });
      expect(dataset.val).toMatchObject({ images: 2, usable: 2 });
      const [image] = dataset.store.images("train2017");
      expect((await dataset.source.read(image?.key as string)).length).toBeGreaterThan(50);
      expect(describeDataset(dataset)).toEqual([
        "train2017: 3 images, 3 boxes, 2 classes",
        "val2017: 2 images, 2 boxes, 2 classes",
      ]);
    });
  });

  test("takes splits of other names, one split for both, and no validation split", async () => {
    await inFolder(async (folder) => {
      await write(folder, { a: FILES.train2017, b: FILES.val2017 }, () => "pictures");
      const imageFolder = "pictures";
      using both = await load(folder, { trainSplit: "a", valSplit: "b", imageFolder });
      expect([both.train.images, both.val?.images]).toEqual([3, 2]);
      using same = await load(folder, { trainSplit: "b", valSplit: "b", imageFolder });
      expect([same.train.images, same.val?.images]).toEqual([2, 2]);
      using alone = await load(folder, { trainSplit: "a", valSplit: null, imageFolder });
      expect(alone.val).toBeNull();
      expect(describeDataset(alone).length).toBe(1);
    });
  });

  test("lists what is left out, in every run", async () => {
    await inFolder(async (folder) => {
      const file = structuredClone(FILES.train2017);
      file.annotations[0]!.bbox = [1, 1, 0, 0];
      file.annotations.push({ id: 77, image_id: 2, category_id: 2, bbox: [35, 1, 10, 10] });
      delete (file.images[2] as Partial<(typeof file.images)[number]>).width;
      file.annotations[2]!.bbox = [500, 1, 2, 2];
      await write(folder, { ...FILES, train2017: file });
      await Bun.write(join(folder, "val2017/10.jpg"), "");
      const expected = [
        "train2017: 3 images, 2 without boxes, 2 boxes, 2 classes",
        "val2017: 1 image, 1 box, 2 classes",
        "1 box skipped: no area (annotations[0] of 1.jpg: [1, 1, 0, 0])",
        "1 box clipped: reaches outside the image (annotations[3] of 2.jpg: [35, 1, 10, 10])",
        "1 box skipped: lies outside the image (annotation 3 of 3.jpg: [500, 1, 2, 2])",
        "1 image skipped: empty file (10.jpg)",
      ];
      for (let run = 0; run < 2; run++) {
        using dataset = await load(folder);
        expect(describeDataset(dataset)).toEqual(expected);
      }
    });
  });

  test("imports again only what has changed, and then what it must agree with", async () => {
    await inFolder(async (folder) => {
      await write(folder);
      const imported: string[] = [];
      const progress = (label: string, done: number): void => {
        if (label.startsWith("reading") && done === 0) imported.push(label);
      };
      const codec = new FakeCodec();
      (await load(folder, { progress, codec }))[Symbol.dispose]();
      expect(imported.length).toBe(2);
      expect(codec.calls).toBe(5);
      (await load(folder, { progress, codec }))[Symbol.dispose]();
      expect(imported.length).toBe(2);
      expect(codec.calls).toBe(5);
      // Both files with other categories: no conflict with what is kept of the old ones.
      const changed = { train2017: annotations(1, 3, ["fox"]), val2017: annotations(10, 2, ["fox"]) };
      await write(folder, changed);
      using dataset = await load(folder, { progress, codec });
      expect(imported.length).toBe(4);
      expect(dataset.classes.names).toEqual(["fox"]);
      expect(dataset.store.imports().length).toBe(2);
    });
  });

  test("keeps what people have changed in a copy, where the annotation file is read again", async () => {
    await inFolder(async (folder) => {
      await write(folder);
      const said: string[] = [];
      const loadAgain = async () => {
        using dataset = await load(folder, { warn: (line) => said.push(line) });
        const [first] = dataset.store.images("train2017");
        return { store: dataset.store as SQLiteAnnStore, boxes: dataset.store.annotationsOf(first!.id) };
      };
      {
        using dataset = await load(folder);
        const [box] = dataset.store.annotationsOf(dataset.store.images("train2017")[0]!.id);
        dataset.store.updateAnnotations([{ id: box!.id, bbox: [5, 5, 9, 9] }], { source: "human", author: "ada" });
      }
      await write(folder, { train2017: annotations(1, 4), val2017: FILES.val2017 });
      expect((await loadAgain()).boxes).toMatchObject([{ bbox: [1, 2, 10, 10] }]);
      const [, copy] = /1 change of people .* is kept in (\S+\.sqlite):/.exec(said.join("\n")) ?? [];
      {
        using kept = new SQLiteAnnStore(copy as string);
        expect(kept.annotationsOf(kept.images("train2017")[0]!.id)).toMatchObject([
          { bbox: [5, 5, 9, 9], author: "ada" },
        ]);
      }
      // What is in the copy is not kept once more.
      await write(folder, { train2017: annotations(1, 5), val2017: FILES.val2017 });
      await loadAgain();
      expect(said.length).toBe(1);
    });
  });

  test("notices images that have moved", async () => {
    await inFolder(async (folder) => {
      await write(folder);
      (await load(folder))[Symbol.dispose]();
      await mkdir(join(folder, "images"));
      for (const split of ["train2017", "val2017"]) await rename(join(folder, split), join(folder, "images", split));
      using dataset = await load(folder);
      expect([dataset.train.usable, dataset.val?.usable]).toEqual([3, 2]);
    });
  });

  test("uses a store that is given, and leaves it open", async () => {
    await inFolder(async (folder) => {
      await write(folder);
      const store = new SQLiteAnnStore();
      store.addCategories([{ id: 1, name: "cat", supercategory: null }]);
      store.addImages("other", [{ sourceId: 1, fileName: "x", key: "x", width: 1, height: 1 }]);
      (await load(folder, { store }))[Symbol.dispose]();
      await write(folder, { ...FILES, train2017: annotations(1, 2) });
      using dataset = await load(folder, { store });
      expect(dataset.train.images).toBe(2);
      expect(store.splits()).toEqual(["other", "train2017", "val2017"]);
      const path = join(folder, "kept.sqlite");
      (await load(folder, { store: path }))[Symbol.dispose]();
      using kept = new SQLiteAnnStore(path);
      expect(kept.images("train2017").length).toBe(2);
    });
  });

  test("does without a cache folder that cannot be written", async () => {
    await inFolder(async (folder) => {
      await write(folder);
      await Bun.write(join(folder, "file"), "");
      process.env.XDG_CACHE_HOME = join(folder, "file");
      const warnings: string[] = [];
      try {
        using dataset = await load(folder, { warn: (message) => warnings.push(message) });
        expect(dataset.train.images).toBe(3);
      } finally {
        process.env.XDG_CACHE_HOME = cache;
      }
      expect(warnings.length).toBe(1);
      expect(warnings[0]).toStartWith("annotations are not kept between runs: ");
    });
  });

  test("writes nothing to the data set's folder", async () => {
    await inFolder(async (folder) => {
      await write(folder);
      const list = async () => (await Array.fromAsync(new Bun.Glob("**/*").scan({ cwd: folder, dot: true }))).sort();
      const files = await list();
      (await load(folder))[Symbol.dispose]();
      expect(await list()).toEqual(files);
    });
  });

  test("says what it looked for and where", async () => {
    await inFolder(async (folder) => {
      const message = async (changes = {}, at = folder) => (await failure(() => load(at, changes))).message;
      expect(await message({}, join(folder, "none"))).toBe(
        `loadDataset: ${folder}/none: no such folder; expected COCO's layout there: annotations/instances_train2017.json and ` +
          "the images in train2017/ or images/",
      );
      expect(await message()).toContain(
        `${folder}/annotations/instances_train2017.json: no such file; expected COCO's layout`,
      );
      await write(folder);
      expect(await message({ trainSplit: "train" })).toBe(
        `loadDataset: ${folder}/annotations/instances_train.json: no such file; the splits there are: train2017, val2017`,
      );
      await rm(join(folder, "val2017"), { recursive: true });
      const places = ["val2017", "images/val2017", "images"].map((name) => join(folder, name)).join(", ");
      expect(await message()).toBe(
        `loadDataset: no folder with the images of ${folder}/annotations/instances_val2017.json; looked for ${places}`,
      );
      await Bun.write(join(folder, "file"), "");
      expect(await message({}, join(folder, "file"))).toContain("no such folder");
    });
  });

  test("stops where nothing can be trained, with the reasons", async () => {
    await inFolder(async (folder) => {
      await write(folder);
      await rm(join(folder, "val2017/10.jpg"));
      await Bun.write(join(folder, "val2017/11.jpg"), "<html>");
      const error = await failure(() => load(folder));
      expect(error.message.split("\n  ")).toEqual([
        `${folder}/annotations/instances_val2017.json: none of its images can be used: 2 images in ${folder}/val2017`,
        `1 image skipped: no such file (${folder}/val2017/10.jpg)`,
        "1 image skipped: not a JPEG, PNG or WebP file but HTML (11.jpg)",
      ]);
    });
    await inFolder(async (folder) => {
      await write(folder, { ...FILES, train2017: { ...annotations(1, 2), annotations: [] } });
      expect((await failure(() => load(folder))).message).toContain("instances_train2017.json: no boxes to learn from");
    });
    await inFolder(async (folder) => {
      await write(folder);
      await Bun.write(join(folder, "annotations/instances_val2017.json"), '{"images": [{"id": 1,');
      expect((await failure(() => load(folder))).message).toContain(
        `${folder}/annotations/instances_val2017.json: images[0].id: not valid JSON at line 1`,
      );
    });
  });

  test("may be called by several processes at a time", async () => {
    await inFolder(async (folder) => {
      await write(folder);
      const stores = [1, 2].map(() => new SQLiteAnnStore(join(folder, "shared.sqlite")));
      const datasets = await Promise.all(stores.map((store) => load(folder, { store })));
      for (const { train, val } of datasets) expect([train.images, train.annotations, val?.images]).toEqual([3, 3, 2]);
      for (const store of stores) store.close();
    });
  });

  test("takes a copy of a data set for another one", async () => {
    await inFolder(async (folder) => {
      await write(join(folder, "a"));
      (await load(join(folder, "a")))[Symbol.dispose]();
      await cp(join(folder, "a"), join(folder, "b"), { recursive: true });
      await write(join(folder, "b"), { ...FILES, train2017: annotations(1, 1) });
      (await load(join(folder, "b")))[Symbol.dispose]();
      using dataset = await load(join(folder, "a"));
      expect(dataset.train.images).toBe(3);
    });
  });
});

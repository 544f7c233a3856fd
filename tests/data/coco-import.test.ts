import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { importCoco } from "../../lib/data/coco-import";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { failure, inFolder, quiet } from "./fakes";

interface File {
  images: Record<string, unknown>[];
  annotations: Record<string, unknown>[];
  categories: Record<string, unknown>[];
  [more: string]: unknown;
}

function sample(): File {
  return {
    info: { year: 2017, nested: { list: [1, [2, { three: "}" }]] } },
    licenses: [{ id: 1, name: "CC BY" }],
    annotations: [
      {
        id: 11,
        image_id: 7,
        category_id: 3,
        bbox: [1, 2, 30, 40],
        area: 700.5,
        iscrowd: 0,
        segmentation: [[1, 2, 3, 4]],
      },
      {
        id: 12,
        image_id: 7,
        category_id: 90,
        bbox: [5.25, 6, 10, 10],
        iscrowd: 1,
        segmentation: { counts: [1], size: [2] },
      },
      { id: 13, image_id: 5, category_id: 1, bbox: [0, 0, 64, 48] },
    ],
    images: [
      { id: 7, file_name: "b.jpg", width: 100, height: 80, license: 1 },
      { id: 5, file_name: "a.jpg", width: 64, height: 48 },
      { id: 9, file_name: "none.jpg", width: 10, height: 10 },
    ],
    categories: [
      { id: 90, name: "zebra", supercategory: "animal" },
      { id: 1, name: "person" },
      { id: 3, name: "car", supercategory: "vehicle" },
    ],
  };
}

const encode = (file: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(file));

async function load(change: (file: File) => void = () => {}) {
  const file = sample();
  change(file);
  const store = new SQLiteAnnStore();
  const report = await importCoco(store, encode(file), {
    split: "train",
    folder: "images",
    name: "x.json",
    progress: quiet,
  });
  return { store, report };
}

describe("importCoco", () => {
  test("brings in images, categories with gaps in their ids, boxes, areas and crowds", async () => {
    const { store, report } = await load();
    expect(report).toMatchObject({ split: "train", images: 3, annotations: 3, crowds: 1, categories: 3 });
    expect(report.problems.lines()).toEqual([]);
    expect(store.images("train")).toMatchObject([
      { sourceId: 5, fileName: "a.jpg", key: "images/a.jpg", width: 64, height: 48, problem: null },
      { sourceId: 7, fileName: "b.jpg", key: "images/b.jpg", width: 100, height: 80 },
      { sourceId: 9, fileName: "none.jpg" },
    ]);
    const classes = store.classes();
    expect(classes.names).toEqual(["person", "car", "zebra"]);
    expect([1, 3, 90].map((id) => classes.indexOf(id))).toEqual([0, 1, 2]);
    expect(() => classes.indexOf(2)).toThrow("no category has id 2");
    expect([...store.annotations("train")]).toMatchObject([
      { sourceId: 13, categoryId: 1, bbox: [0, 0, 64, 48], area: 64 * 48, isCrowd: false },
      { sourceId: 11, categoryId: 3, bbox: [1, 2, 30, 40], area: 700.5, isCrowd: false },
      { sourceId: 12, categoryId: 90, bbox: [5.25, 6, 10, 10], area: 100, isCrowd: true },
    ]);
    expect(store.counts("train")).toEqual({
      images: 3,
      usable: 3,
      annotations: 3,
      crowds: 1,
      withoutBoxes: 1,
      maxBoxes: 1,
    });
    expect(store.imports()).toMatchObject([{ split: "train", source: "x.json", modified: null, problems: [] }]);
  });

  test("reads a file, whatever the order of its parts, and records its size and time", async () => {
    await inFolder(async (folder) => {
      const { images, annotations, categories } = sample();
      const path = join(folder, "instances.json");
      await Bun.write(path, JSON.stringify({ categories, images, annotations }, null, 2));
      const store = new SQLiteAnnStore();
      await importCoco(store, path, { split: "val", progress: quiet });
      expect(store.images("val").map((image) => image.key)).toEqual(["a.jpg", "b.jpg", "none.jpg"]);
      const [record] = store.imports();
      expect(record).toMatchObject({ source: path, size: Bun.file(path).size, modified: Bun.file(path).lastModified });
    });
  });

  test("leaves out what can be left out, counts it and names it", async () => {
    const { store, report } = await load((file) => {
      file.annotations.push(
        { id: 20, image_id: 7, category_id: 1, bbox: [1, 1, 0, 5] },
        { id: 21, image_id: 7, category_id: 1, bbox: [1, 1, 5, -2] },
        { id: 22, image_id: 7, category_id: 1, bbox: [200, 1, 5, 5] },
        { id: 23, image_id: 7, category_id: 1, bbox: [-10, 1, 10, 5] },
        { id: 24, image_id: 7, category_id: 1, bbox: [90, 70, 20, 20] },
        { id: 25, image_id: 7, category_id: 1, bbox: [90, 70, 10.4, 10] },
        { id: 26, image_id: 99, category_id: 1, bbox: [1, 1, 5, 5] },
        { id: 27, image_id: 40, category_id: 1, bbox: [1, 1, 5, 5] },
        { id: 11, image_id: 7, category_id: 1, bbox: [1, 1, 5, 5] },
      );
      file.images.push(
        { id: 40, file_name: "./b.jpg", width: 100, height: 80 },
        { id: 41, file_name: "../secret.jpg" },
      );
    });
    expect(report.problems.lines()).toEqual([
      "1 image skipped: another image has the same file name (./b.jpg: id 40 skipped, id 7 used)",
      '1 image skipped: its file name leaves the folder with ".." ("../secret.jpg", id 41)',
      "2 boxes skipped: no area (annotations[3] of b.jpg: [1, 1, 0, 5], annotations[4] of b.jpg: [1, 1, 5, -2])",
      "2 boxes skipped: lies outside the image " +
        "(annotations[5] of b.jpg: [200, 1, 5, 5], annotations[6] of b.jpg: [-10, 1, 10, 5])",
      "1 box clipped: reaches outside the image (annotations[7] of b.jpg: [90, 70, 20, 20])",
      "1 box skipped: no image has its image_id (annotations[9], image_id 99)",
      "1 box skipped: its image is skipped (annotations[10], image_id 40)",
      "1 box kept: its id is not unique (annotations[11], id 11)",
    ]);
    expect(report.problems.count("box", "skipped")).toBe(6);
    expect(report.annotations).toBe(6);
    expect(store.imports()[0]?.problems).toEqual(report.problems.entries());
    // Evaluation gets the box as it was annotated.
    expect([...store.annotations("train")].find((a) => a.sourceId === 24)?.bbox).toEqual([90, 70, 20, 20]);
  });

  test("takes sizes that are not known", async () => {
    const { store } = await load((file) => {
      delete file.images[0]?.width;
      Object.assign(file.images[1] as object, { width: null, height: null });
      Object.assign(file.images[2] as object, { width: 0, height: 10 });
      file.annotations[0] = { ...file.annotations[0], bbox: [5000, 0, 1, 1] };
    });
    expect(store.images("train").map(({ width, height }) => [width, height])).toEqual([
      [null, null],
      [null, null],
      [null, null],
    ]);
    expect(store.counts("train").annotations).toBe(3);
  });

  const broken: [string, (file: File) => void, string][] = [
    ["no images", (f) => delete (f as Partial<File>).images, "images: missing, expected a list"],
    ["no annotations", (f) => delete (f as Partial<File>).annotations, "annotations: missing, expected a list"],
    ["no categories", (f) => delete (f as Partial<File>).categories, "categories: missing, expected a list"],
    ["an empty list of images", (f) => (f.images = []), "images: the list is empty"],
    ["an empty list of categories", (f) => (f.categories = []), "categories: the list is empty"],
    ["images of the wrong kind", (f) => (f.images = 3 as never), "images: expected a list, got 3"],
    ["an image of the wrong kind", (f) => (f.images[1] = "a" as never), 'images[1]: expected an object, got "a"'],
    ["an image without id", (f) => delete f.images[1]?.id, "images[1].id: missing"],
    ["an image without name", (f) => delete f.images[0]?.file_name, "images[0].file_name: missing"],
    [
      "an empty file name",
      (f) => (f.images[0]!.file_name = ""),
      "images[0].file_name: expected a file name, got an empty text",
    ],
    ["a width in words", (f) => (f.images[2]!.width = "wide"), 'images[2].width: expected an integer > 0, got "wide"'],
    ["a negative height", (f) => (f.images[2]!.height = -4), "images[2].height: expected an integer > 0, got -4"],
    ["an id in quotes", (f) => (f.images[0]!.id = "7"), 'images[0].id: expected an integer >= 0, got "7"'],
    ["a fraction as id", (f) => (f.images[0]!.id = 1.5), "images[0].id: expected an integer >= 0, got 1.5"],
    ["an image id twice", (f) => (f.images[2]!.id = 7), "images[2].id: 7 is images[0]'s already"],
    ["a category id twice", (f) => (f.categories[2]!.id = 90), "categories[2].id: 90 is categories[0]'s already"],
    ["a category without name", (f) => delete f.categories[0]?.name, "categories[0].name: missing"],
    ["an annotation without box", (f) => delete f.annotations[2]?.bbox, "annotations[2].bbox: missing"],
    ["an annotation without image", (f) => delete f.annotations[1]?.image_id, "annotations[1].image_id: missing"],
    [
      "an annotation without category",
      (f) => delete f.annotations[1]?.category_id,
      "annotations[1].category_id: missing",
    ],
    ["an annotation without id", (f) => delete f.annotations[1]?.id, "annotations[1].id: missing"],
    [
      "a box with text",
      (f) => (f.annotations[2]!.bbox = [1, 2, "x", 4]),
      'annotations[2].bbox[2]: expected a number >= 0, got "x"',
    ],
    [
      "a box with null",
      (f) => (f.annotations[2]!.bbox = [null, 2, 3, 4]),
      "annotations[2].bbox[0]: expected a number, got null",
    ],
    [
      "a box of three numbers",
      (f) => (f.annotations[0]!.bbox = [1, 2, 3]),
      "annotations[0].bbox: expected 4 numbers (x, y, width, height), got 3",
    ],
    [
      "an empty box",
      (f) => (f.annotations[0]!.bbox = []),
      "annotations[0].bbox: expected 4 numbers (x, y, width, height), got 0",
    ],
    ["an odd crowd", (f) => (f.annotations[0]!.iscrowd = 2), "annotations[0].iscrowd: expected 0 or 1, got 2"],
    [
      "an area in words",
      (f) => (f.annotations[0]!.area = "large"),
      'annotations[0].area: expected a number, got "large"',
    ],
    [
      "an unknown category",
      (f) => (f.annotations[1]!.category_id = 2),
      "annotations[1].category_id: no category has id 2",
    ],
    [
      "annotations of other images only",
      (f) => {
        for (const annotation of f.annotations) annotation.image_id = 1000;
      },
      "annotations[].image_id: none of the 3 annotations belongs to an image of the file, the first to 1000",
    ],
  ];

  test.each(broken)("stops at %s", async (_, change, message) => {
    const file = sample();
    change(file);
    const store = new SQLiteAnnStore();
    const options = { split: "train", name: "dir/x.json", progress: quiet };
    const error = await failure(() => importCoco(store, encode(file), options));
    expect(error.message).toBe(`dir/x.json: ${message}`);
    expect([store.splits(), store.categories(), store.imports()]).toEqual([[], [], []]);
  });

  test("stops at a file cut off at any byte, and says so", async () => {
    const bytes = encode(sample());
    for (let length = 1; length < bytes.length; length++) {
      const store = new SQLiteAnnStore();
      const options = { split: "train", name: "x.json", progress: quiet };
      const error = await failure(() => importCoco(store, bytes.subarray(0, length), options));
      expect(error.message).toMatch(
        /^x\.json: .*not valid JSON at line 1, column \d+: expected .*(the file ends|got "."|byte)/,
      );
      store.close();
    }
  });

  test("names the field in which a file ends", async () => {
    const text = JSON.stringify(sample());
    const bytes = new TextEncoder().encode(text.slice(0, text.indexOf("[5.25") + 3));
    const options = { split: "train", name: "x.json", progress: quiet };
    const error = await failure(() => importCoco(new SQLiteAnnStore(), bytes, options));
    expect(error.message).toContain("x.json: annotations[1].bbox[0]: not valid JSON at line 1");
    expect(error.message).toContain("the file ends, is it incomplete?");
  });

  test.each([
    ["", "x.json: the file is empty"],
    ["<html></html>", 'x.json: not valid JSON at line 1, column 1: expected a value, but got "<"'],
    ["[]", "x.json: expected an object, got a list"],
    ['{"images": [], "images": []}', "x.json: images: is there twice"],
  ])("stops at %p", async (text, message) => {
    const options = { split: "train", name: "x.json", progress: quiet };
    const error = await failure(() => importCoco(new SQLiteAnnStore(), new TextEncoder().encode(text), options));
    expect(error.message).toBe(message);
  });

  test("names a file that is not there", async () => {
    const options = { split: "train", progress: quiet };
    const error = await failure(() => importCoco(new SQLiteAnnStore(), "/nowhere/x.json", options));
    expect(error.message).toBe("importCoco: /nowhere/x.json: no such file");
  });

  test("refuses a second import of a split, and a category that has another name elsewhere", async () => {
    const { store } = await load();
    const again = await failure(() => importCoco(store, encode(sample()), { split: "train", progress: quiet }));
    expect(again.message).toContain('split "train" has images already');
    const other = sample();
    other.categories[1]!.name = "dog";
    const options = { split: "val", progress: quiet };
    const error = await failure(() => importCoco(store, encode(other), options));
    expect(error.message).toContain('category 1 is "dog", but the store :memory: has it as "person"');
    expect(store.splits()).toEqual(["train"]);
    // The same images again under another split are no conflict.
    await importCoco(store, encode(sample()), options);
    expect(store.counts("val").annotations).toBe(3);
    expect(store.counts("train").annotations).toBe(3);
  });

  test("lets timers run while it reads a large file", async () => {
    const file = sample();
    const outline = Array.from({ length: 400 }, (_, i) => i + 0.25);
    for (let i = 0; i < 9000; i++) {
      file.annotations.push({ id: 100 + i, image_id: 7, category_id: 1, bbox: [1, 1, 5, 5], segmentation: [outline] });
    }
    let ticks = 0;
    const timer = setInterval(() => ticks++, 0);
    const seen: number[] = [];
    const progress = (label: string, done: number): void => {
      if (label.startsWith("reading")) seen.push(done);
    };
    const report = await importCoco(new SQLiteAnnStore(), encode(file), { split: "train", progress });
    clearInterval(timer);
    expect(report.annotations).toBe(9003);
    expect(ticks).toBeGreaterThan(1);
    expect(seen.length).toBeGreaterThan(3);
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
  });
});

import { describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { CocoBox, ImageRecord } from "../../lib/data/annotation-store";
import { boxStats } from "../../lib/data/box-stats";
import { checkRows, type Finding } from "../../lib/data/check-rows";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { FakeCodec, fakeJpeg, inFolder, quiet } from "./fakes";

/** A store whose rows have one of each fault, and the folder with its files. */
async function faulty<T>(work: (store: SQLiteAnnStore, check: (fix?: boolean) => Promise<Checked>) => Promise<T>) {
  return inFolder(async (folder) => {
    using store = new SQLiteAnnStore();
    store.addCategories([{ id: 1, name: "cat", supercategory: null }]);
    const names = ["good", "missing", "cut", "size", "unknown", "twin", "text"];
    const ids = store.addImages(
      "train",
      names.map((name, i) => {
        const known = name !== "unknown";
        return { sourceId: i, fileName: name, key: name, width: known ? 40 : null, height: known ? 30 : null };
      }),
    );
    const files: Record<string, Uint8Array> = {
      good: fakeJpeg(40, 30),
      cut: fakeJpeg(40, 30, { data: 7 }).slice(0, -2),
      size: fakeJpeg(30, 40),
      unknown: fakeJpeg(40, 30, { data: 9 }),
      twin: fakeJpeg(40, 30),
      text: new TextEncoder().encode("<html></html>"),
    };
    for (const [name, bytes] of Object.entries(files)) writeFileSync(join(folder, name), bytes);
    const box = (place: number, bbox: readonly [number, number, number, number]) => {
      return { sourceId: 1, imageId: ids[place] as number, categoryId: 1, bbox, area: 4, isCrowd: false };
    };
    store.addAnnotations([
      box(0, [1, 1, 5, 5]),
      box(0, [1, 1, 0, 5]),
      box(0, [50, 1, 5, 5]),
      box(0, [-5, 20, 50, 20]),
      box(4, [100, 1, 2, 2]),
    ]);
    return await work(store, async (fix = false) => {
      const found: Finding[] = [];
      const options = { codec: new FakeCodec(), fix, onFinding: (f: Finding) => found.push(f), progress: quiet };
      return { found, report: await checkRows(store, new LocalDataSource(folder), options) };
    });
  });
}

interface Checked {
  found: Finding[];
  report: Awaited<ReturnType<typeof checkRows>>;
}

describe("checkRows", () => {
  test("finds every fault, names it, and changes nothing", async () => {
    await faulty(async (store, check) => {
      const before = store.lastChange();
      const { found, report } = await check();
      expect(found.map(({ key, annotationId, reason, fix }) => [key, annotationId, reason, fix])).toEqual([
        ["good", 2, "no area", "delete box"],
        ["good", 3, "lies outside the image", "delete box"],
        ["good", 4, "reaches outside the image", "clip box"],
        ["missing", null, "no such file", "leave out image"],
        ["cut", null, "truncated file", "leave out image"],
        ["size", null, "the file's size differs from the annotations'", "leave out image"],
        ["unknown", null, "its size is not known", "set size"],
        ["unknown", 5, "lies outside the image", "delete box"],
        ["twin", null, "the same picture as another image", "leave out image"],
        ["text", null, "not a JPEG, PNG or WebP file but HTML", "leave out image"],
      ]);
      expect(report).toMatchObject({ images: 7, boxes: 5, fixed: 0 });
      expect(report.problems.count()).toBe(10);
      expect(report.problems.lines()).toContain(
        "2 boxes skipped: lies outside the image (good, box 3: [50, 1, 5, 5] in 40x30, unknown, box 5: [100, 1, 2, 2] in 40x30)",
      );
      expect(store.lastChange()).toBe(before);
    });
  });

  test("sets right what can be, and the log keeps what was there", async () => {
    await faulty(async (store, check) => {
      const before = store.lastChange();
      expect((await check(true)).report.fixed).toBe(10);
      expect(store.images("train", { usable: true }).map(({ key, width }) => [key, width])).toEqual([
        ["good", 40],
        ["unknown", 40],
      ]);
      expect([...store.annotations("train")].map(({ id, bbox }) => [id, ...bbox])).toEqual([
        [1, 1, 1, 5, 5],
        [4, 0, 20, 40, 10],
      ]);
      const changes = store.changesSince(before);
      const deleted = changes.filter(({ entity, action }) => entity === "annotation" && action === "delete");
      expect(deleted.map(({ first }) => first)).toEqual([2, 3, 5]);
      expect(deleted[1]?.detail).toMatchObject({ bbox: [50, 1, 5, 5], categoryId: 1, imageId: 1 });
      expect(
        changes.find(({ entity, action }) => entity === "annotation" && action === "change")?.detail,
      ).toMatchObject({
        bbox: [-5, 20, 50, 20],
      });
      // What is set right is not found again; what cannot be is.
      const again = await check(true);
      expect(again.report.fixed).toBe(0);
      expect(again.found.map(({ key }) => key)).toEqual(["missing", "cut", "size", "twin", "text"]);
    });
  });

  test("uses an image again when its file is there again", async () => {
    await faulty(async (store, check) => {
      const [good] = store.images("train");
      store.updateImages([{ id: good?.id as number, problem: "no such file" }]);
      const { found } = await check(true);
      expect(found.find(({ fix }) => fix === "use image again")).toMatchObject({ key: "good", detail: "no such file" });
      expect(store.image(good?.id as number)?.problem).toBeNull();
    });
  });
});

describe("an image that EXIF data turns on its side", () => {
  // The upright picture has 40 x 30 pixels, the stored one 30 x 40: a box of it and where it lies upright.
  const stored = [2, 5, 10, 20] as const;
  const upright: Record<number, readonly number[]> = {
    5: [5, 2, 20, 10],
    6: [40 - 5 - 20, 2, 20, 10],
    7: [40 - 5 - 20, 30 - 2 - 10, 20, 10],
    8: [5, 30 - 2 - 10, 20, 10],
  };

  async function checked(orientation: number, size: readonly [number, number], boxes: readonly CocoBox[], fix = true) {
    return inFolder(async (folder) => {
      using store = new SQLiteAnnStore();
      store.addCategories([{ id: 1, name: "cat", supercategory: null }]);
      const image = { sourceId: 1, fileName: "a.jpg", key: "a.jpg", width: size[0], height: size[1] };
      const [imageId] = store.addImages("train", [image]) as [number];
      store.updateImages([{ id: imageId, problem: "the file's size differs from the annotations'" }]);
      const common = { sourceId: 1, imageId, categoryId: 1, area: 77, isCrowd: false };
      store.addAnnotations(boxes.map((bbox) => ({ ...common, bbox })));
      writeFileSync(join(folder, "a.jpg"), fakeJpeg(40, 30));
      const found: string[] = [];
      const onFinding = ({ detail, fix }: Finding) => found.push(`${fix}: ${detail}`);
      const options = { codec: new FakeCodec(orientation), fix, onFinding, progress: quiet };
      await checkRows(store, new LocalDataSource(folder), options);
      const { width, height, problem } = store.image(imageId) as ImageRecord;
      const rows = store.annotationsOf(imageId).map(({ bbox, area }) => [...bbox, area]);
      return { found, size: [width, height], problem, rows };
    });
  }

  test.each([5, 6, 7, 8])("gets the upright size, and its boxes are turned: orientation %d", async (orientation) => {
    const { found, size, problem, rows } = await checked(orientation, [30, 40], [stored]);
    expect(found).toEqual([
      `turn boxes: annotated as 30x40, the file is 40x30, swapped: the file has EXIF orientation ${orientation}`,
      "use image again: the file's size differs from the annotations'",
    ]);
    expect([size, problem]).toEqual([[40, 30], null]);
    expect(rows).toEqual([[...(upright[orientation] as number[]), 77]]);
  });

  test("keeps boxes that were drawn on the upright picture", async () => {
    const { found, size, rows } = await checked(
      6,
      [30, 40],
      [
        [2, 2, 5, 5],
        [25, 10, 15, 20],
      ],
    );
    expect(found[0]).toStartWith("set size: annotated as 30x40, ");
    expect(size).toEqual([40, 30]);
    expect(rows).toEqual([
      [2, 2, 5, 5, 77],
      [25, 10, 15, 20, 77],
    ]);
  });

  test("is left as it is without fix, and where the annotations have the upright size", async () => {
    const { found, size, rows } = await checked(6, [30, 40], [stored], false);
    expect([found.length, size, rows]).toEqual([2, [30, 40], [[...stored, 77]]]);
    expect(await checked(6, [40, 30], [stored])).toMatchObject({ size: [40, 30], rows: [[...stored, 77]] });
    // Neither the stored nor the upright size.
    expect((await checked(6, [31, 40], [stored])).found).toEqual([
      "leave out image: annotated as 31x40, the file is 40x30",
    ]);
  });
});

describe("boxStats", () => {
  test("measures usable images and boxes that are no crowds", () => {
    using store = new SQLiteAnnStore();
    store.addCategories([
      { id: 1, name: "cat", supercategory: null },
      { id: 2, name: "dog", supercategory: null },
    ]);
    const image = (sourceId: number, width: number) => {
      return { sourceId, fileName: `${sourceId}`, key: `${sourceId}`, width, height: 100 };
    };
    store.addImages("a", [image(1, 200), image(2, 200), image(3, 100), image(4, 100)]);
    store.updateImages([{ id: 4, problem: "empty file" }]);
    const box = (imageId: number, categoryId: number, width: number, height: number, isCrowd = false) => {
      const bbox = [0, 0, width, height] as const;
      return { sourceId: 1, imageId, categoryId, bbox, area: 1, isCrowd };
    };
    store.addAnnotations([
      box(1, 1, 20, 10),
      box(1, 1, 40, 40),
      box(1, 2, 100, 100),
      box(2, 1, 9, 9, true),
      box(4, 1, 5, 5),
    ]);
    const seen: number[][] = [];
    const stats = boxStats(store, { progress: quiet, onBox: (b, w, h) => seen.push([b[2], w as number, h as number]) });
    expect(stats).toMatchObject({
      images: 3,
      boxes: 3,
      crowds: 1,
      withoutBoxes: 2,
      areas: { small: 1, medium: 1, large: 1 },
      sizes: [
        { width: 200, height: 100, images: 2 },
        { width: 100, height: 100, images: 1 },
      ],
      categories: [
        { id: 1, name: "cat", boxes: 2, images: 1 },
        { id: 2, name: "dog", boxes: 1, images: 1 },
      ],
    });
    expect(stats.aspectRatios).toMatchObject({ count: 3, min: 1, median: 1, max: 2 });
    expect(stats.coverage).toMatchObject({ min: 1, median: 8, max: 50 });
    expect(stats.perImage).toMatchObject({ count: 3, min: 0, max: 3 });
    expect(seen).toEqual([
      [20, 200, 100],
      [40, 200, 100],
      [100, 200, 100],
    ]);
    expect(boxStats(store, { split: "none", progress: quiet }).images).toBe(0);
  });
});

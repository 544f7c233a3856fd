import { describe, expect, test } from "bun:test";
import { mkdir, utimes } from "node:fs/promises";
import { join } from "node:path";
import type { FileFacts } from "../../lib/data/annotation-store";
import { checkImages } from "../../lib/data/check-images";
import type { ImageCodec, ImageInfo } from "../../lib/data/codec";
import { hasEndOfImage, looksLike } from "../../lib/data/image-file";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { FakeCodec, failure, fakeJpeg, inFolder, quiet } from "./fakes";

interface Entry {
  name: string;
  /** The file's bytes; null: there is no file. */
  bytes: Uint8Array | null;
  /** The size in the annotations; null: not known. */
  size: readonly [width: number, height: number] | null;
  /** Expected: the reason, or null for an image that can be used. */
  problem: string | null;
}

const join2 = (...parts: (Uint8Array | number[])[]): Uint8Array => Uint8Array.from(parts.flatMap((part) => [...part]));
const good = fakeJpeg(40, 30);

const entries: Entry[] = [
  { name: "baseline.jpg", bytes: good, size: [40, 30], problem: null },
  { name: "progressive.jpg", bytes: fakeJpeg(40, 30, { frame: 0xc2 }), size: [40, 30], problem: null },
  { name: "gray.jpg", bytes: fakeJpeg(40, 30, { components: 1 }), size: [40, 30], problem: null },
  { name: "cmyk.jpg", bytes: fakeJpeg(40, 30, { components: 4 }), size: [40, 30], problem: null },
  { name: "one.jpg", bytes: fakeJpeg(1, 1), size: [1, 1], problem: null },
  { name: "exif.jpg", bytes: fakeJpeg(40, 30, { metadata: 40_000 }), size: [40, 30], problem: null },
  { name: "large.jpg", bytes: fakeJpeg(40, 30, { data: 60_000 }), size: [40, 30], problem: null },
  { name: "trailer.jpg", bytes: join2(good, [0, 0, 0, 1]), size: [40, 30], problem: null },
  { name: "trailer-large.jpg", bytes: join2(fakeJpeg(40, 30, { data: 60_000 }), [7]), size: [40, 30], problem: null },
  { name: "unknown-size.jpg", bytes: good, size: null, problem: null },
  { name: "missing.jpg", bytes: null, size: [40, 30], problem: "no such file" },
  { name: "empty.jpg", bytes: new Uint8Array(0), size: [40, 30], problem: "empty file" },
  {
    name: "gif.jpg",
    bytes: new TextEncoder().encode("GIF89a"),
    size: [40, 30],
    problem: "not a JPEG, PNG or WebP file but GIF",
  },
  {
    name: "text.jpg",
    bytes: new TextEncoder().encode("hello"),
    size: [40, 30],
    problem: "not a JPEG, PNG or WebP file",
  },
  { name: "byte.jpg", bytes: Uint8Array.from([0xff]), size: [40, 30], problem: "not a JPEG, PNG or WebP file" },
  { name: "cut.jpg", bytes: good.subarray(0, good.length - 8), size: [40, 30], problem: "truncated file" },
  {
    name: "cut-large.jpg",
    bytes: fakeJpeg(40, 30, { data: 60_000, metadata: 30_000 }).subarray(0, 70_000),
    size: [40, 30],
    problem: "truncated file",
  },
  { name: "cut-header.jpg", bytes: good.subarray(0, 9), size: [40, 30], problem: "damaged" },
  { name: "zero.jpg", bytes: fakeJpeg(0, 30), size: [40, 30], problem: "damaged" },
  { name: "huge.jpg", bytes: fakeJpeg(65500, 65500), size: [65500, 65500], problem: "more than 268435456 pixels" },
  { name: "claim.jpg", bytes: fakeJpeg(65500, 65500), size: null, problem: "more than 268435456 pixels" },
  {
    name: "other-size.jpg",
    bytes: good,
    size: [41, 30],
    problem: "the file's size differs from the annotations'",
  },
  { name: "turned.jpg", bytes: good, size: [30, 40], problem: "the file's size differs from the annotations'" },
  {
    name: "lossless.jpg",
    bytes: fakeJpeg(40, 30, { frame: 0xc3 }),
    size: [40, 30],
    problem: "lossless JPEG, which is not supported",
  },
  {
    name: "arithmetic.jpg",
    bytes: fakeJpeg(40, 30, { frame: 0xc9 }),
    size: [40, 30],
    problem: null,
  },
  {
    name: "deep.jpg",
    bytes: fakeJpeg(40, 30, { bits: 12 }),
    size: [40, 30],
    problem: "JPEG with samples of other than 8 bits",
  },
  {
    name: "two.jpg",
    bytes: fakeJpeg(40, 30, { components: 2 }),
    size: [40, 30],
    problem: "JPEG with an odd number of components",
  },
];

/** Files of the entries under `folder`, and a store that knows them. */
async function prepare(folder: string, list = entries): Promise<{ store: SQLiteAnnStore; source: LocalDataSource }> {
  const store = new SQLiteAnnStore();
  store.addImages(
    "train",
    list.map(({ name, size }, i) => {
      return {
        sourceId: i,
        fileName: name,
        key: `images/${name}`,
        width: size?.[0] ?? null,
        height: size?.[1] ?? null,
      };
    }),
  );
  await mkdir(join(folder, "images"));
  for (const { name, bytes } of list) if (bytes) await Bun.write(join(folder, "images", name), bytes);
  return { store, source: new LocalDataSource(folder) };
}

describe("checkImages", () => {
  test("tells what can be used from what cannot, and why", async () => {
    await inFolder(async (folder) => {
      const { store, source } = await prepare(folder);
      const report = await checkImages(store, source, { split: "train", codec: new FakeCodec(), progress: quiet });
      const found = store.images("train").map(({ fileName, problem }) => [fileName, problem]);
      expect(found).toEqual(entries.map(({ name, problem }) => [name, problem]));
      const usable = entries.filter((entry) => entry.problem === null).length;
      expect(report).toMatchObject({ images: entries.length, usable, cached: 0 });
      expect(report.problems.count("image", "skipped")).toBe(entries.length - usable);
      expect(store.images("train", { usable: true }).find((i) => i.fileName === "unknown-size.jpg")).toMatchObject({
        width: 40,
        height: 30,
      });
      const lines = report.problems.lines();
      expect(lines).toContain(`1 image skipped: no such file (${folder}/images/missing.jpg)`);
      expect(lines).toContain("2 images skipped: truncated file (cut.jpg, cut-large.jpg)");
      expect(lines).toContain(
        "2 images skipped: damaged (cut-header.jpg: jpeg: no frame before the end, zero.jpg: jpeg: size 0x30)",
      );
      expect(lines).toContain(
        "2 images skipped: the file's size differs from the annotations' (other-size.jpg: annotated as 41x30, the file is " +
          "40x30, turned.jpg: annotated as 30x40, the file is 40x30, turned?)",
      );
    });
  });

  test("names pictures that EXIF data turns, where that may be news to the annotations", async () => {
    const checked = async (orientation: number, size: Entry["size"]) =>
      await inFolder(async (folder) => {
        const { store, source } = await prepare(folder, [{ name: "a.jpg", bytes: good, size, problem: null }]);
        const options = { split: "train", codec: new FakeCodec(orientation), progress: quiet };
        const { problems, usable } = await checkImages(store, source, options);
        return [usable, ...problems.lines()];
      });
    const within =
      "1 image kept: EXIF data turns it without changing its size; its boxes are taken for those of the upright picture " +
      "(a.jpg: EXIF orientation 3)";
    expect(await checked(6, [40, 30])).toEqual([1]);
    expect(await checked(6, null)).toEqual([1]);
    expect(await checked(3, null)).toEqual([1]);
    expect(await checked(3, [40, 30])).toEqual([1, within]);
    expect(await checked(6, [30, 40])).toEqual([
      0,
      "1 image skipped: the file's size differs from the annotations' (a.jpg: annotated as 30x40, the file is 40x30, " +
        "swapped: the file has EXIF orientation 6)",
    ]);
  });

  test("reads a file again only when it has changed", async () => {
    await inFolder(async (folder) => {
      const { store, source } = await prepare(folder);
      const codec = new FakeCodec();
      const options = { split: "train", codec, progress: quiet };
      const first = await checkImages(store, source, options);
      const calls = codec.calls;
      const second = await checkImages(store, source, options);
      expect(codec.calls).toBe(calls);
      expect(second.cached).toBe(entries.filter((entry) => entry.bytes).length);
      expect(second.problems.entries()).toEqual(first.problems.entries());

      // Repaired, broken, and of the same size at another time.
      await Bun.write(join(folder, "images/empty.jpg"), good);
      await Bun.write(join(folder, "images/gray.jpg"), good.subarray(0, good.length - 2));
      await utimes(join(folder, "images/one.jpg"), new Date(), new Date(Date.now() + 60_000));
      const third = await checkImages(store, source, options);
      expect(third.cached).toBe(second.cached - 3);
      const problems = new Map(store.images("train").map(({ fileName, problem }) => [fileName, problem]));
      expect(problems.get("empty.jpg")).toBeNull();
      expect(problems.get("gray.jpg")).toBe("truncated file");
      expect(problems.get("one.jpg")).toBeNull();
    });
  });

  test("reads little of a sound file", async () => {
    await inFolder(async (folder) => {
      const { store, source } = await prepare(folder, [
        { name: "big.jpg", bytes: fakeJpeg(40, 30, { data: 500_000 }), size: [40, 30], problem: null },
      ]);
      let bytes = 0;
      const read = source.read.bind(source);
      source.read = async (key, options) => {
        const result = await read(key, options);
        bytes += result.length;
        return result;
      };
      await checkImages(store, source, { split: "train", codec: new FakeCodec(), progress: quiet });
      expect(bytes).toBeLessThan(20_000);
    });
  });

  test("takes boxes out that turn out to lie outside, and says so in later checks' place", async () => {
    await inFolder(async (folder) => {
      const { store, source } = await prepare(folder, [
        { name: "a.jpg", bytes: good, size: null, problem: null },
        { name: "b.jpg", bytes: good, size: [40, 30], problem: null },
      ]);
      store.addCategories([{ id: 1, name: "x", supercategory: null }]);
      const [a, b] = store.images("train").map((image) => image.id) as [number, number];
      const boxes = [
        [0, 0, 10, 10],
        [45, 0, 10, 10],
        [35, 0, 10, 10],
      ] as const;
      store.addAnnotations(
        [a, b].flatMap((imageId) =>
          boxes.map((bbox, i) => ({ sourceId: i, imageId, categoryId: 1, bbox, area: 1, isCrowd: false })),
        ),
      );
      const report = await checkImages(store, source, { split: "train", codec: new FakeCodec(), progress: quiet });
      expect(report.problems.lines()).toEqual([
        "1 box skipped: lies outside the image (annotation 1 of a.jpg: [45, 0, 10, 10])",
        "1 box clipped: reaches outside the image (annotation 2 of a.jpg: [35, 0, 10, 10])",
      ]);
      expect([store.annotationsOf(a).length, store.annotationsOf(b).length]).toEqual([2, 3]);
      expect(store.imports().at(-1)?.problems).toEqual(report.problems.entries());
      const again = await checkImages(store, source, { split: "train", codec: new FakeCodec(), progress: quiet });
      expect(again.problems.lines()).toEqual([]);
    });
  });

  test("does not remember a file that could not be read", async () => {
    await inFolder(async (folder) => {
      const { store, source } = await prepare(folder, [{ name: "a.jpg", bytes: good, size: [40, 30], problem: null }]);
      const options = { split: "train", codec: new FakeCodec(), progress: quiet };
      const read = source.read.bind(source);
      source.read = () => read("images/not-there.jpg");
      const report = await checkImages(store, source, options);
      expect(report.problems.lines()[0]).toStartWith("1 image skipped: cannot be read (a.jpg: LocalDataSource.read: ");
      source.read = read;
      expect(await checkImages(store, source, options)).toMatchObject({ usable: 1, cached: 0 });
    });
  });

  test("stops when told to, keeps what it has found, fails with what fails", async () => {
    await inFolder(async (folder) => {
      const list = Array.from({ length: 20 }, (_, i) => ({ ...(entries[0] as Entry), name: `${i}.jpg` }));
      const { store, source } = await prepare(folder, list);
      const stop = new AbortController();
      const reason = new Error("enough");
      const progress = (_: string, done: number): void => (done === 5 ? stop.abort(reason) : undefined);
      const options = { split: "train", codec: new FakeCodec(), concurrency: 1 };
      await expect(checkImages(store, source, { ...options, progress, signal: stop.signal })).rejects.toBe(reason);
      await Bun.sleep(20);
      expect((await checkImages(store, source, { ...options, progress: quiet })).cached).toBe(5);
      source.stat = (key) => Promise.reject(new TypeError(`no network for ${key}`));
      await expect(checkImages(store, source, { ...options, progress: quiet })).rejects.toThrow("no network for");
    });
  });

  test("takes another limit of pixels", async () => {
    await inFolder(async (folder) => {
      const { store, source } = await prepare(folder, entries.slice(0, 1));
      const options = { split: "train", codec: new FakeCodec(), progress: quiet };
      expect((await checkImages(store, source, { ...options, maxPixels: 1199 })).usable).toBe(0);
      expect((await checkImages(store, source, { ...options, maxPixels: 1200 })).usable).toBe(1);
    });
  });

  test("leaves out formats that this library was built without, and sides that it does not decode", async () => {
    await inFolder(async (folder) => {
      const { store, source } = await prepare(folder, [{ ...(entries[0] as Entry), size: null }]);
      const lines = async (codec: ImageCodec) => {
        const report = await checkImages(store, source, { split: "train", codec, progress: quiet });
        store.saveFileFacts([{ ...(store.fileFacts("images/baseline.jpg") as FileFacts), modified: 0 }]);
        return report.problems.lines();
      };
      class Wide extends FakeCodec {
        override info(bytes: Uint8Array): ImageInfo {
          return { ...super.info(bytes), width: 65536, height: 1 };
        }
      }
      expect(await lines(new Wide())).toEqual([
        "1 image skipped: more than 65535 pixels a side (baseline.jpg: 65536x1)",
      ]);
      const codec = new FakeCodec();
      expect(await lines({ formats: [], info: (bytes) => codec.info(bytes) })).toEqual([
        "1 image skipped: JPEG, which the native library was built without (baseline.jpg)",
      ]);
    });
  });
});

test("every cut of a JPEG lacks its end, thumbnails and stuffed bytes notwithstanding", () => {
  const bytes = fakeJpeg(40, 30, { metadata: 100 });
  expect(hasEndOfImage(bytes)).toBe(true);
  expect(hasEndOfImage(join2(bytes, [0, 1, 2]))).toBe(true);
  for (let length = 0; length < bytes.length; length++) expect(hasEndOfImage(bytes.subarray(0, length))).toBe(false);
  // Fill bytes before a marker are part of the format.
  expect(hasEndOfImage(join2(bytes.subarray(0, -2), [0xff, 0xff, 0xff, 0xd9]))).toBe(true);
});

test.each([
  ["\xff\xd8\xff\xe0", "JPEG"],
  ["GIF89a", "GIF"],
  ["RIFF....WEBPVP8 ", "WebP"],
  ["....ftypavif", "HEIF or AVIF"],
  ["version https://git-lfs", "a Git LFS pointer"],
  ["<!DOCTYPE html>", "HTML"],
  ["", null],
])("a file that starts with %p is %p", (start, kind) => {
  expect(looksLike(Uint8Array.from(start, (c) => c.charCodeAt(0)))).toBe(kind);
});

test("the failure of a helper is a failure", async () => {
  await expect(failure(() => {})).rejects.toThrow("nothing failed");
});

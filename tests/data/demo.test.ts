import { describe, expect, test } from "bun:test";
import { mkdir, readdir, rm, utimes } from "node:fs/promises";
import { join, relative } from "node:path";
import { cacheFolder } from "../../lib/data/cache";
import { importCoco } from "../../lib/data/coco-import";
import { type DemoOptions, demoFolder, generateDemo } from "../../lib/data/demo";
import { drawScene, type Scene } from "../../lib/data/demo-scene";
import { SHAPES } from "../../lib/data/demo-shapes";
import { CounterRandom } from "../../lib/data/random";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { failure, inFolder, quiet } from "./fakes";

const scene = (image: number, size = 96): Scene =>
  drawScene(size, new CounterRandom({ seed: 1, epoch: 0, image, operation: 0 }));

describe("drawScene", () => {
  test("draws up to eight objects of all classes and of very different sizes, with boxes inside the image", () => {
    const seen = new Map<number, number>();
    const sides: number[] = [];
    for (let image = 0; image < 80; image++) {
      const { objects, pixels } = scene(image);
      expect(pixels.length).toBe(96 * 96 * 3);
      expect(objects.length >= 1 && objects.length <= 8).toBe(true);
      for (const { shape, x, y, width, height, area } of objects) {
        seen.set(shape, (seen.get(shape) ?? 0) + 1);
        sides.push(Math.max(width, height));
        expect(x >= 0 && y >= 0 && x + width <= 96 && y + height <= 96).toBe(true);
        expect(area > 0 && area <= width * height).toBe(true);
      }
    }
    expect(SHAPES.length).toBeGreaterThanOrEqual(8);
    expect([...seen.keys()].sort()).toEqual(SHAPES.map((_, i) => i));
    for (const count of seen.values()) expect(count).toBeGreaterThan(10);
    sides.sort((a, b) => a - b);
    const percentile = (p: number): number => sides[Math.floor(p * sides.length)] as number;
    expect(percentile(0.95) / percentile(0.05)).toBeGreaterThan(2.2);
  });

  test("draws the same image for the same numbers, and another one for others", () => {
    expect(scene(3)).toEqual(scene(3));
    expect(scene(3).pixels).not.toEqual(scene(4).pixels);
  });

  test("hides no object by more than what is announced", () => {
    // A shape's share of its box is at least a quarter; of it, more than half must be seen.
    for (let image = 0; image < 40; image++) {
      for (const { area } of scene(image, 192).objects) expect(area).toBeGreaterThan(40);
    }
  });
});

describe("shapes", () => {
  test.each(SHAPES.map((shape) => [shape.name, shape] as const))(
    "%s: a distance, within a radius of about 1",
    (_, shape) => {
      let inside = 0;
      const step = 0.02;
      for (let y = -1.4; y <= 1.4; y += step) {
        for (let x = -1.4; x <= 1.4; x += step) {
          const distance = shape.distance(x, y);
          if (distance < 0) {
            inside++;
            expect(Math.hypot(x, y)).toBeLessThan(1.25);
          }
          // Near the outline a distance grows by no more than one goes.
          if (Math.abs(distance) < 0.05)
            expect(Math.abs(shape.distance(x + step, y) - distance)).toBeLessThan(1.01 * step);
        }
      }
      const area = inside * step * step;
      expect(area > 0.7 && area < 3.2).toBe(true);
    },
  );
});

describe("generateDemo", () => {
  const encode: DemoOptions["encode"] = (pixels, width, height, quality) => {
    return Uint8Array.from([width, height, quality, ...pixels.subarray(0, 200)]);
  };
  const options = { encode, train: 3, val: 2, size: 64, progress: quiet };
  const files = async (folder: string): Promise<string[]> =>
    (await Array.fromAsync(new Bun.Glob("**/*").scan({ cwd: folder, dot: true }))).sort();
  const contents = async (folder: string): Promise<string[]> => {
    const names = await files(folder);
    return Promise.all(names.map(async (name) => `${name} ${Bun.hash(await Bun.file(join(folder, name)).bytes())}`));
  };

  test("writes COCO's layout, which can be imported without a complaint", async () => {
    await inFolder(async (folder) => {
      const demo = join(folder, "cache/demo");
      expect(await generateDemo(demo, options)).toBe(true);
      expect(await files(demo)).toEqual([
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
        "demo.json",
        ...[1, 2, 3].map((id) => `train2017/${String(id).padStart(12, "0")}.jpg`),
        ...[4, 5].map((id) => `val2017/${String(id).padStart(12, "0")}.jpg`),
      ]);
      expect(await readdir(join(folder, "cache"))).toEqual(["demo"]);
      using store = new SQLiteAnnStore();
      const ids = new Set<number>();
      for (const split of ["train2017", "val2017"]) {
        const path = join(demo, "annotations", `instances_${split}.json`);
        const report = await importCoco(store, path, { split, progress: quiet });
        expect(report.problems.lines()).toEqual([]);
        for (const { sourceId } of store.annotations(split)) {
          expect(ids.has(sourceId)).toBe(false);
          ids.add(sourceId);
        }
      }
      expect(store.classes().names).toEqual(SHAPES.map((shape) => shape.name));
      expect(ids.size).toBeGreaterThan(5);
    });
  });

  test("makes the same bytes again, and nothing where they are there already", async () => {
    await inFolder(async (folder) => {
      await generateDemo(join(folder, "a"), options);
      await generateDemo(join(folder, "b"), options);
      expect(await contents(join(folder, "a"))).toEqual(await contents(join(folder, "b")));
      const unused = { ...options, encode: () => assertNever("nothing is to be drawn") };
      expect(await generateDemo(join(folder, "a"), unused)).toBe(false);
      // More training images change none of the validation images' pictures.
      await generateDemo(join(folder, "c"), { ...options, train: 5 });
      const picture = async (path: string) => Bun.file(join(folder, path)).bytes();
      expect(await picture("c/val2017/000000000006.jpg")).toEqual(await picture("a/val2017/000000000004.jpg"));
    });
  });

  test("replaces a demo of other options, and nothing that is not a demo", async () => {
    await inFolder(async (folder) => {
      const demo = join(folder, "demo");
      await generateDemo(demo, options);
      const before = await contents(demo);
      expect(await generateDemo(demo, { ...options, seed: 2 })).toBe(true);
      expect(await contents(demo)).not.toEqual(before);
      expect(await readdir(folder)).toEqual(["demo"]);

      const other = join(folder, "photos");
      await mkdir(other);
      await Bun.write(join(other, "mine.txt"), "precious");
      const error = await failure(() => generateDemo(other, options));
      expect(error.message).toContain(`${other} exists and was not made by generateDemo`);
      expect(await files(other)).toEqual(["mine.txt"]);
      expect((await readdir(folder)).sort()).toEqual(["demo", "photos"]);
      const empty = join(folder, "empty");
      await mkdir(empty);
      expect(await generateDemo(empty, options)).toBe(true);
    });
  });

  test("leaves nothing behind when it fails or is stopped, and clears up after runs that were killed", async () => {
    await inFolder(async (folder) => {
      const demo = join(folder, "demo");
      const failing = { ...options, encode: () => assertNever("out of memory") };
      await expect(generateDemo(demo, failing)).rejects.toThrow("out of memory");
      const reason = new Error("enough");
      await expect(generateDemo(demo, { ...options, signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
      expect(await readdir(folder)).toEqual([]);

      const hourAgo = new Date(Date.now() - 4_000_000);
      for (const name of ["demo.partial-old", "demo.partial-new"])
        await mkdir(join(folder, name, "train2017"), { recursive: true });
      for (const path of ["demo.partial-old/train2017", "demo.partial-old"])
        await utimes(join(folder, path), hourAgo, hourAgo);
      await generateDemo(demo, options);
      expect((await readdir(folder)).sort()).toEqual(["demo", "demo.partial-new"]);
      await rm(demo, { recursive: true });
      const both = await Promise.all([generateDemo(demo, options), generateDemo(demo, options)]);
      expect(both).toContain(true);
      expect((await files(demo)).length).toBe(8);
    });
  });

  test("names options that make no sense, and a place that cannot be written", async () => {
    await inFolder(async (folder) => {
      const demo = join(folder, "demo");
      expect((await failure(() => generateDemo(demo, { ...options, train: 0 }))).message).toContain(
        "train must be an integer >= 1, got 0",
      );
      expect((await failure(() => generateDemo(demo, { ...options, size: 8 }))).message).toContain(
        "size must be an integer >= 64, got 8",
      );
      await Bun.write(join(folder, "file"), "");
      expect((await failure(() => generateDemo(join(folder, "file/demo"), options))).message).toContain(
        "a part of the path is not a folder",
      );
    });
  });

  test("has a folder of its own for each version", () => {
    const folder = relative(cacheFolder(), demoFolder());
    expect(folder).toMatch(/^demo-v\d+$/);
  });
});

function assertNever(message: string): never {
  throw new Error(message);
}

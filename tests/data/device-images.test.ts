/** Real image files, sound and unsound, through the device's decoder: what is checked, loaded and drawn. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { checkImages } from "../../lib/data/check-images";
import { CocoDataLoader } from "../../lib/data/coco-data-loader";
import { DeviceBatchDecoder, DeviceImageCodec } from "../../lib/data/device-codec";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { HorizontalFlip, Resize, VerticalFlip } from "../../lib/data/transforms";
import { testDevice } from "../support/device";
import { imageCases } from "../support/image-cases";
import { inFolder, quiet } from "./fakes";

const device = testDevice();
const recorded = join(import.meta.dir, "jpegs");
const RED = [200, 40, 40];
const BLUE = [40, 60, 200];

interface Sample {
  name: string;
  /** Colours of the left and the right half. */
  left: number[];
  right: number[];
}

const sound: Sample[] = [
  { name: "baseline.jpg", left: RED, right: BLUE },
  { name: "progressive.jpg", left: RED, right: BLUE },
  { name: "rgb.jpg", left: RED, right: BLUE },
  { name: "gray.jpg", left: [60, 60, 60], right: [200, 200, 200] },
  { name: "one.jpg", left: RED, right: RED },
  { name: "arithmetic.jpg", left: RED, right: BLUE },
];
if (device.supports("jpeg.cmyk")) {
  sound.push({ name: "cmyk.jpg", left: RED, right: BLUE }, { name: "ycck.jpg", left: RED, right: BLUE });
}

/** A store and a folder with copies of recorded files, possibly changed, as split "all". */
async function prepare(folder: string, files: Record<string, Uint8Array>) {
  const store = new SQLiteAnnStore();
  store.addCategories([{ id: 1, name: "half", supercategory: null }]);
  const ids = store.addImages(
    "all",
    Object.keys(files).map((name, i) => ({ sourceId: i, fileName: name, key: name, width: null, height: null })),
  );
  const common = { sourceId: 1, categoryId: 1, bbox: [0, 0, 1, 1] as const, area: 1, isCrowd: false };
  store.addAnnotations(ids.map((imageId) => ({ ...common, imageId })));
  for (const [name, bytes] of Object.entries(files)) await Bun.write(join(folder, name), bytes);
  return { store, source: new LocalDataSource(folder) };
}

const read = (name: string): Promise<Uint8Array> => Bun.file(join(recorded, name)).bytes();

describe("images through the device", () => {
  test("that are JPEGs of every kind that is trained have their colours, in every corner that a plan puts them in", async () => {
    await inFolder(async (folder) => {
      const files: Record<string, Uint8Array> = {};
      for (const { name } of sound) files[name] = await read(name);
      const data = await prepare(folder, files);
      const checked = await checkImages(data.store, data.source, {
        split: "all",
        codec: new DeviceImageCodec(device),
        progress: quiet,
      });
      expect(checked.problems.lines()).toEqual([]);
      expect(checked.usable).toBe(sound.length);
      for (const mirrored of [0, 1]) {
        const flips = [new HorizontalFlip(mirrored), new VerticalFlip(mirrored)];
        const preprocessing = [...flips, new Resize({ mode: "stretch" })];
        const [height, width, batchSize] = [20, 40, sound.length];
        using decoder = new DeviceBatchDecoder(device, { batchSize, height, width, preprocessing });
        const options = { ...data, split: "all", batchSize, size: [height, width] as const, preprocessing, decoder };
        await using loader = new CocoDataLoader({ ...options, shuffle: false });
        using batch = await loader.getBatch();
        expect(loader.failures).toEqual([]);
        const images = decoder.images(batch.slot);
        const channels = images.shape[3] as number;
        const pixels = images.read();
        const at = (image: number, x: number, y: number): number[] => {
          const start = ((image * height + y) * width + x) * channels;
          return [0, 1, 2].map((k) => 255 * Number(pixels[start + k]));
        };
        for (const [i, { name, left, right }] of sound.entries()) {
          for (const y of [1, 18]) {
            for (const [x, color] of [
              [mirrored ? 36 : 3, left],
              [mirrored ? 3 : 36, right],
            ] as const) {
              const found = at(i, x, y);
              const off = Math.max(...found.map((value, k) => Math.abs(value - (color[k] as number))));
              // JPEG itself is off by a few units.
              expect(`${name} at ${x}, ${y}: ${off < 8 ? "right" : found}`).toBe(`${name} at ${x}, ${y}: right`);
            }
          }
        }
      }
    });
  });

  test("that cannot be trained are found before anything is decoded", async () => {
    await inFolder(async (folder) => {
      const baseline = await read("baseline.jpg");
      const claim = baseline.slice();
      const frame = claim.findIndex((byte, i) => byte === 0xff && claim[i + 1] === 0xc0);
      claim.set([0xff, 0xdc, 0xff, 0xdc], frame + 5);
      const data = await prepare(folder, {
        "good.jpg": baseline,
        "empty.jpg": new Uint8Array(0),
        "header.jpg": baseline.subarray(0, frame + 4),
        "huge.jpg": claim,
        "text.jpg": new TextEncoder().encode("no image"),
        "truncated.jpg": baseline.subarray(0, baseline.length - 20),
      });
      const codec = new DeviceImageCodec(device);
      await checkImages(data.store, data.source, { split: "all", codec, progress: quiet });
      expect(data.store.images("all").map(({ fileName, problem }) => [fileName, problem])).toEqual([
        ["good.jpg", null],
        ["empty.jpg", "empty file"],
        ["header.jpg", "damaged"],
        ["huge.jpg", "more than 268435456 pixels"],
        ["text.jpg", "not a JPEG, PNG or WebP file"],
        ["truncated.jpg", "truncated file"],
      ]);
    });
  });

  test("of other formats are checked and loaded as JPEGs are, whatever their files are called", async () => {
    await inFolder(async (folder) => {
      const recordedFiles = new Map(imageCases().map((golden) => [golden.name, golden]));
      const bytesOf = (name: string) => recordedFiles.get(name)?.array("bytes") as Uint8Array;
      const files: Record<string, Uint8Array> = {};
      const expected: [string, string | null][] = [];
      const add = (name: string, bytes: Uint8Array, problem: string | null) => {
        files[name] = bytes;
        expected.push([name, problem]);
      };
      for (const [format, name, turned] of [
        ["png", "PNG by Pillow", "PNG with orientation 5"],
        ["webp", "WebP lossless", "WebP with orientation 6"],
      ] as const) {
        const bytes = bytesOf(name);
        const without = `${format === "png" ? "PNG" : "WebP"}, which the native library was built without`;
        const problem = device.supports(`${format}.decode`) ? null : without;
        add(`a.${format}`, bytes, problem);
        add(`${format}.jpg`, bytes, problem);
        add(`turned.${format}`, bytesOf(turned), problem);
        add(`trailer.${format}`, Uint8Array.from([...bytes, 0, 1, 2]), problem);
        add(`cut.${format}`, bytes.subarray(0, bytes.length - 5), "truncated file");
        add(`header.${format}`, bytes.subarray(0, 20), "damaged");
      }
      const data = await prepare(folder, files);
      const codec = new DeviceImageCodec(device);
      const report = await checkImages(data.store, data.source, { split: "all", codec, progress: quiet });
      expect(data.store.images("all").map(({ fileName, problem }) => [fileName, problem])).toEqual(expected);
      if (report.usable < expected.filter(([name]) => !/^(cut|header)/.test(name)).length) return;
      const turned = data.store.images("all").find(({ fileName }) => fileName === "turned.png");
      expect(turned).toMatchObject({ width: 7, height: 13 });
      const preprocessing = [new Resize()];
      const options = { batchSize: report.usable, height: 20, width: 20, preprocessing };
      using decoder = new DeviceBatchDecoder(device, options);
      const size = [20, 20] as const;
      await using loader = new CocoDataLoader({ ...options, ...data, split: "all", size, decoder, shuffle: false });
      using batch = await loader.getBatch();
      expect(loader.failures).toEqual([]);
      const pixels = decoder.images(batch.slot).read();
      const image = pixels.length / report.usable;
      // The name makes no difference, nor do bytes behind the picture.
      const named = pixels.slice(0, image);
      expect(named.some((value) => Number(value) > 0.3)).toBe(true);
      expect(pixels.slice(image, 2 * image)).toEqual(named);
      expect(pixels.slice(3 * image, 4 * image)).toEqual(named);
    });
  });

  test("that fail only when they are decoded leave the others of their batch alone", async () => {
    await inFolder(async (folder) => {
      const baseline = await read("baseline.jpg");
      // The scan asks for Huffman tables that the file does not have: nothing to be seen in the frame's header.
      const hollow = baseline.slice();
      const scan = hollow.findIndex((byte, i) => byte === 0xff && hollow[i + 1] === 0xda);
      hollow[scan + 6] = 0x33;
      const data = await prepare(folder, { "a.jpg": baseline, "b.jpg": hollow, "c.jpg": baseline });
      const codec = new DeviceImageCodec(device);
      const report = await checkImages(data.store, data.source, { split: "all", codec, progress: quiet });
      expect(report.usable).toBe(3);
      const preprocessing = [new Resize()];
      const size = [16, 24] as const;
      using decoder = new DeviceBatchDecoder(device, { batchSize: 3, height: 16, width: 24, preprocessing });
      const warned: string[] = [];
      const options = { ...data, split: "all", batchSize: 3, size, preprocessing, decoder };
      await using loader = new CocoDataLoader({
        ...options,
        shuffle: false,
        onFailure: ({ fileName }) => warned.push(fileName),
      });
      for (let pass = 0; pass < 2; pass++) {
        using batch = await loader.getBatch();
        expect([...batch.counts]).toEqual([1, 0, 1]);
        const images = decoder.images(batch.slot);
        const pixels = images.read();
        const image = pixels.length / 3;
        expect(pixels.slice(0, image)).toEqual(pixels.slice(2 * image));
        expect(Number(pixels[0])).toBeGreaterThan(0.7);
        // The fill colour: black, without a Normalize.
        expect(pixels.slice(image, 2 * image).every((value) => value === 0)).toBe(true);
      }
      expect(warned).toEqual(["b.jpg"]);
      expect(loader.failures.map(({ fileName, count }) => [fileName, count])).toEqual([["b.jpg", expect.any(Number)]]);
    });
  });
});

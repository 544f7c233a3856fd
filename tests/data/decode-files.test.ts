/** Images that native threads read from files themselves: what they give, what is wrong with files, what loaders do then. */
import { describe, expect, test } from "bun:test";
import { mkdirSync, rmSync, symlinkSync, truncateSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CachedDataSource } from "../../lib/data/cached-data-source";
import { CocoDataLoader } from "../../lib/data/coco-data-loader";
import type { EncodedImage } from "../../lib/data/codec";
import { DeviceBatchDecoder, DeviceImageCodec } from "../../lib/data/device-codec";
import { finishJob, ImageStaging } from "../../lib/data/encoded-images";
import { startPlan, TRANSFORM_FLOATS, writeTransform } from "../../lib/data/image-plan";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { Normalize, Resize } from "../../lib/data/transforms";
import { ErrorCode } from "../../lib/native";
import { outHandle, Tensor } from "../../lib/tensor";
import { expectSameBytes } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { inFolder } from "./fakes";

const device = testDevice();
const codec = new DeviceImageCodec(device);
const recorded = join(import.meta.dir, "jpegs");
const names = ["baseline.jpg", "progressive.jpg", "gray.jpg", "one.jpg"];
const paths = names.map((name) => join(recorded, name));
const bytes = await Promise.all(paths.map((path) => Bun.file(path).bytes()));
const [height, width] = [20, 28];
const preprocessing = [new Resize(), new Normalize({ fill: [7, 9, 11] })];

/** Each image drawn over the whole input. */
function transformsOf(images: readonly Uint8Array[]): Float32Array {
  const transforms = new Float32Array(TRANSFORM_FLOATS * images.length);
  for (const [i, image] of images.entries()) {
    const info = codec.info(image);
    const plan = startPlan(info.width, info.height, width, height, new Float64Array(0), new Int32Array(0));
    writeTransform(transforms, i, { ...plan, target: { x: 0, y: 0, width, height } });
  }
  return transforms;
}

describe("a batch from files", () => {
  const transforms = transformsOf(bytes);
  const decoded = async (images: EncodedImage[], options = {}) => {
    const shape = { batchSize: images.length, height, width, slots: 1 };
    using decoder = new DeviceBatchDecoder(device, { ...shape, preprocessing, ...options });
    expect((await decoder.decode(0, images, transforms)).failures).toEqual([]);
    return decoder.images(0).readBytes();
  };

  test("is that from their bytes, also where some are in memory", async () => {
    const expected = await decoded(bytes);
    for (const threads of [1, 3]) {
      expectSameBytes(await decoded(paths, { threads }), expected, `${threads} threads`);
      const mixed = paths.map((path, i) => (i % 2 ? path : bytes[i]!));
      expectSameBytes(await decoded(mixed, { threads }), expected, `mixed, ${threads} threads`);
    }
  });

  test("whatever the share of a GPU's JPEG engines is, no more than two levels off on average", async () => {
    const levels = { dtype: "u8", preprocessing: [new Resize()] } as const;
    const expected = await decoded(bytes, levels);
    for (const hardware of [0, 50, 100]) {
      const found = await decoded(paths, { ...levels, hardware });
      const off = found.reduce((sum, value, i) => sum + Math.abs(value - expected[i]!), 0) / found.length;
      expect(off).toBeLessThan(hardware === 0 ? 1e-9 : 2);
      expectSameBytes(await decoded(bytes, { ...levels, hardware, threads: 3 }), found, `${hardware} % again`);
    }
    for (const hardware of [-1, 101]) {
      const options = { batchSize: 1, height, width, preprocessing, hardware };
      expect(errorOf(() => new DeviceBatchDecoder(device, options)).code).toBe(ErrorCode.argument);
    }
  });
});

describe("a share for a GPU's JPEG engines", () => {
  const [batchSize, slots, hardware] = [24, 3, 60];
  const images = Array.from({ length: batchSize }, (_, i): EncodedImage => (i % 3 ? paths : bytes)[i % paths.length]!);
  const transforms = transformsOf(images.map((_, i) => bytes[i % bytes.length]!));

  test("changes nothing about which images fail, and what they are named with", async () => {
    const baseline = bytes[0]!;
    const cut = [0.3, 0.5, 0.8, 0.97].map((part) => baseline.slice(0, Math.floor(part * baseline.length)));
    // With an end marker nothing but the length tells that something is missing: for libjpeg, and to keep it from engines.
    const ended = cut.map((part) => Uint8Array.from([...part, 0xff, 0xd9]));
    const bad = [...cut, ...ended];
    const found: unknown[] = [];
    for (const share of [0, 100]) {
      const shape = { batchSize: 2 * bad.length, height, width, slots: 1, preprocessing };
      using decoder = new DeviceBatchDecoder(device, { ...shape, hardware: share });
      const all = bad.flatMap((image): EncodedImage[] => [image, paths[0]!]);
      const { failures } = await decoder.decode(0, all, transformsOf(all.map(() => baseline)));
      const sure = device.backend === "cpu" ? bad : cut;
      const failed = sure.map((_, i) => ({
        index: 2 * i,
        code: ErrorCode.image,
        message: expect.stringMatching(/JPEG/),
      }));
      expect(failures).toEqual(expect.arrayContaining(failed));
      expect(failures.every(({ index }) => index % 2 === 0)).toBe(true);
      found.push(failures);
    }
    expect(found[1]).toEqual(found[0]);
  });

  test("gives the same pixels in every batch, whatever else is decoded at the time", async () => {
    const shape = { batchSize, height, width, slots, preprocessing, hardware };
    using decoder = new DeviceBatchDecoder(device, { ...shape, threads: 4 });
    const missing = join(recorded, "missing.jpg");
    const batches = Array.from({ length: slots }, (_, slot) =>
      images.map((image, i) => (i === slot ? missing : image)),
    );
    let first: Uint8Array[] | null = null;
    for (let round = 0; round < 3; round++) {
      const results = await Promise.all(batches.map((batch, slot) => decoder.decode(slot, batch, transforms)));
      expect(results.map(({ failures }) => failures.map(({ index }) => index))).toEqual(
        batches.map((_, slot) => [slot]),
      );
      const pixels = batches.map((_, slot) => decoder.images(slot).readBytes());
      first ??= pixels;
      for (const [slot, all] of pixels.entries()) expectSameBytes(all, first[slot]!, `round ${round}, slot ${slot}`);
    }
    const part = (slot: number, i: number) => {
      const all = first![slot]!;
      return all.subarray((all.length / batchSize) * i, (all.length / batchSize) * (i + 1));
    };
    // The same file, in memory or not, in another place and batch.
    for (const i of [4, 8, 12, 16, 20]) expectSameBytes(part(1, i), part(0, 4), `place ${i}`);
  });

  test("lets a decoder be disposed while it works", () => {
    const decoder = new DeviceBatchDecoder(device, { batchSize, height, width, slots, preprocessing, hardware });
    const running = [0, 1, 2].map((slot) => decoder.decode(slot, images, transforms));
    decoder.dispose();
    return Promise.allSettled(running);
  });
});

test("files that cannot be read or decoded are named with what is wrong; their neighbours are not affected", async () => {
  await inFolder(async (folder) => {
    const at = (name: string, content?: Uint8Array | string): string => {
      const path = join(folder, name);
      if (content !== undefined) writeFileSync(path, content);
      return path;
    };
    mkdirSync(at("folder.jpg"));
    symlinkSync(at("loop.jpg"), at("loop.jpg"));
    truncateSync(at("huge.jpg", ""), 2 ** 30 + 1);
    expect(Bun.spawnSync(["mkfifo", at("pipe.jpg")]).exitCode).toBe(0);
    const baseline = bytes[0] as Uint8Array;
    const bad: [path: string, code: number, message: string][] = [
      [at("missing.jpg"), ErrorCode.io, "no such file"],
      [at("folder.jpg"), ErrorCode.io, "is a folder, not a file"],
      [join(at("plain.jpg", "x"), "below.jpg"), ErrorCode.io, "a part of the path is not a folder"],
      [at("loop.jpg"), ErrorCode.io, "too many symbolic links"],
      [at("pipe.jpg"), ErrorCode.io, "is not a regular file"],
      [at("huge.jpg"), ErrorCode.io, "the file has 1073741825 bytes, more than the limit of 1073741824"],
      [at(`${"n".repeat(300)}.jpg`), ErrorCode.io, "the name is too long"],
      [at("empty.jpg", ""), ErrorCode.image, "the file is empty"],
      [at("text, with spaces and ü.jpg", "no image"), ErrorCode.image, "expected a JPEG, PNG or WebP file"],
      [at("cut.jpg", baseline.subarray(0, baseline.length - 20)), ErrorCode.image, "truncated"],
    ];
    // A file of the kernel's that is shorter than it says: as one that is cut while it is read.
    const short = "/sys/kernel/mm/transparent_hugepage/enabled";
    if (await Bun.file(short).exists()) bad.push([short, ErrorCode.io, "bytes while it was read"]);
    const images = bad.flatMap(([path]) => [paths[0]!, path]);
    const transforms = transformsOf(images.map(() => baseline));
    using decoder = new DeviceBatchDecoder(device, {
      batchSize: images.length,
      height,
      width,
      slots: 1,
      preprocessing,
    });
    const { failures } = await decoder.decode(0, images, transforms);
    expect(failures.map(({ index }) => index)).toEqual(bad.map((_, i) => 2 * i + 1));
    for (const [i, [path, code, message]] of bad.entries()) {
      expect(failures[i]!.code, path).toBe(code);
      expect(failures[i]!.message).toStartWith(`${path}: `);
      expect(failures[i]!.message).toContain(message);
    }
    const all = decoder.images(0).readBytes();
    const part = (i: number) => all.subarray((all.length / images.length) * i, (all.length / images.length) * (i + 1));
    for (const i of bad.keys()) {
      expectSameBytes(part(2 * i), part(0), `the image before ${bad[i]![0]}`);
      expectSameBytes(part(2 * i + 1), part(1), "the fill colour");
    }
    for (const path of ["", "a\0b"]) {
      await expect(decoder.decode(0, [path], transforms.slice(0, TRANSFORM_FLOATS))).rejects.toThrow("is no path");
    }
  });
});

describe("pixels of the images' own sizes", () => {
  /** Decodes to tensors of these sizes. */
  async function decodeAll(images: EncodedImage[], sizes: [height: number, width: number][]) {
    using resources = new DisposableStack();
    const out = outHandle();
    device.native.decoderCreate(device.handle, out.view, 2, 0);
    resources.defer(() => void device.native.decoderDestroy(out.value));
    const staging = resources.use(new ImageStaging(device));
    const pixels = sizes.map(([h, w]) => resources.use(Tensor.zeros(device, [h, w, 3], "u8")));
    device.stream.synchronize();
    const job = outHandle();
    const { sources, lengths, paths, pathBytes } = staging.stage(images);
    const addresses = BigInt64Array.from(pixels, ({ address }) => BigInt(address));
    const flat = Int32Array.from(sizes.flat());
    const { native } = device;
    native.decoderSubmitPixels(
      ...([out.value, job.view, addresses, sources, lengths, paths, flat, pathBytes, images.length] as const),
    );
    const failures = await finishJob(device, job.value, images.length);
    return { failures, pixels: pixels.map((tensor) => tensor.readBytes()) };
  }

  test("are those of decoding one by one, from bytes and from files in one job", async () => {
    const whole = bytes.map((image) => codec.decode(image));
    const sizes = whole.map((image): [number, number] => [image.height, image.width]);
    const { failures, pixels } = await decodeAll(
      paths.map((path, i) => (i % 2 ? bytes[i]! : path)),
      sizes,
    );
    expect(failures).toEqual([]);
    for (const [i, { data }] of whole.entries()) expectSameBytes(pixels[i]!, data, names[i]);
  });

  test("of another size than expected, or unreadable, are failures that leave the others alone", async () => {
    const { width: w, height: h, data } = codec.decode(bytes[0]!);
    const sizes: [number, number][] = [
      [h, w],
      [h, w + 1],
      [h, w],
      [h, w],
    ];
    const missing = join(recorded, "missing.jpg");
    const { failures, pixels } = await decodeAll([bytes[0]!, paths[0]!, missing, paths[0]!], sizes);
    expect(failures).toEqual([
      {
        index: 1,
        code: ErrorCode.image,
        message: `${paths[0]}: expected an image of ${w + 1} x ${h} pixels, got one of ${w} x ${h}`,
      },
      { index: 2, code: ErrorCode.io, message: `${missing}: no such file` },
    ]);
    expectSameBytes(pixels[0]!, data, "the first");
    expectSameBytes(pixels[3]!, data, "the last");
  });

  test("need sizes that an image can have", async () => {
    const found = decodeAll([bytes[0]!], [[1, 1]]);
    expect((await found).failures[0]!.message).toContain("got one of");
    using staging = new ImageStaging(device);
    const { sources, lengths, paths } = staging.stage([bytes[0]!]);
    const out = outHandle();
    device.native.decoderCreate(device.handle, out.view, 1, 0);
    for (const [address, size] of [
      [0n, [8, 8]],
      [64n, [0, 8]],
      [64n, [8, 70_000]],
    ] as const) {
      const job = outHandle();
      const target = BigInt64Array.of(address);
      const error = errorOf(() =>
        device.native.decoderSubmitPixels(
          ...([out.value, job.view, target, sources, lengths, paths, Int32Array.from(size), 0, 1] as const),
        ),
      );
      expect(error.code).toBe(ErrorCode.argument);
      expect(error.message).toContain("image 0: ");
    }
    device.native.decoderDestroy(out.value);
  });
});

describe("a loader of files", () => {
  /** A source that counts what is read through JavaScript. */
  class CountingSource extends LocalDataSource {
    reads: string[] = [];
    override read(...[key, options]: Parameters<LocalDataSource["read"]>) {
      this.reads.push(key);
      return super.read(key, options);
    }
  }

  function prepare(folder: string) {
    const store = new SQLiteAnnStore();
    store.addCategories([{ id: 1, name: "half", supercategory: null }]);
    const files = ["a.jpg", "b.jpg", "c.jpg"];
    const { width, height } = codec.info(bytes[0]!);
    const records = files.map((name, i) => ({ sourceId: i, fileName: name, key: name, width, height }));
    const ids = store.addImages("all", records);
    const common = { sourceId: 1, categoryId: 1, bbox: [0, 0, 4, 4] as const, area: 16, isCrowd: false };
    store.addAnnotations(ids.map((imageId) => ({ ...common, imageId })));
    for (const name of files) writeFileSync(join(folder, name), bytes[0]!);
    return { store, source: new CountingSource(folder), split: "all" };
  }

  const options = { batchSize: 3, size: [height, width] as const, preprocessing, shuffle: false, prefetch: 1 };
  const shape = { batchSize: 3, height, width, slots: 2, preprocessing };

  test("reads nothing itself", async () => {
    await inFolder(async (folder) => {
      const data = prepare(folder);
      using decoder = new DeviceBatchDecoder(device, shape);
      await using loader = new CocoDataLoader({ ...data, ...options, decoder });
      using batch = await loader.getBatch();
      expect([...batch.counts]).toEqual([1, 1, 1]);
      expect(data.source.reads).toEqual([]);
    });
  });

  test("skips and names a file that is gone, as if it had read it; or stops", async () => {
    await inFolder(async (folder) => {
      const data = prepare(folder);
      unlinkSync(join(folder, "b.jpg"));
      writeFileSync(join(folder, "c.jpg"), bytes[0]!.subarray(0, 200));
      using decoder = new DeviceBatchDecoder(device, shape);
      const all = { ...data, ...options, decoder };
      const warned: string[] = [];
      const onFailure = ({ message }: { message: string }) => warned.push(message);
      {
        await using loader = new CocoDataLoader({ ...all, onFailure });
        using batch = await loader.getBatch();
        expect([...batch.counts]).toEqual([1, 0, 0]);
      }
      expect(warned).toHaveLength(2);
      expect(warned[0]).toContain(`${join(folder, "b.jpg")}: no such file; trained as an image without boxes`);
      expect(warned[1]).toMatch(/c\.jpg: truncated JPEG.*; trained as an image without boxes$/);
      await using loader = new CocoDataLoader({ ...all, failures: "stop" });
      await expect(loader.getBatch()).rejects.toThrow("b.jpg: no such file");
    });
  });

  test("asks the source again where a copy of its cache has been removed", async () => {
    await inFolder(async (folder) => {
      const data = prepare(folder);
      const { source } = data;
      source.pathOf = () => null as unknown as string;
      const cached = new CachedDataSource(source, { folder: join(folder, "cache"), limit: 1 << 20 });
      for (const name of ["a.jpg", "b.jpg", "c.jpg"]) await cached.read(name);
      await cached.settled();
      expect(cached.pathOf("b.jpg")).not.toBeNull();
      const gone = join(folder, "cache", "removed meanwhile");
      const pathOf = cached.pathOf.bind(cached);
      cached.pathOf = (key) => (key === "b.jpg" ? gone : pathOf(key));
      source.reads = [];
      rmSync(pathOf("b.jpg") as string);
      using decoder = new DeviceBatchDecoder(device, shape);
      {
        await using loader = new CocoDataLoader({ ...data, ...options, source: cached, decoder });
        using batch = await loader.getBatch();
        expect([...batch.counts]).toEqual([1, 1, 1]);
        expect(loader.failures).toEqual([]);
        // The loader is at further batches already.
        expect([...new Set(source.reads)]).toEqual(["b.jpg"]);
        const all = decoder.images(batch.slot).readBytes();
        expectSameBytes(all.subarray(all.length / 3, (2 * all.length) / 3), all.subarray(0, all.length / 3), "b.jpg");
      }
      await cached.settled();
      const checked = new CachedDataSource(source, { folder: join(folder, "cache"), checkEachRead: true });
      expect(checked.pathOf("a.jpg")).toBeNull();
    });
  });
});

/** Model files: what was written comes back, and whatever is wrong with one is an error that names it. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isModelFile, ModelFile, type ModelFileMetadata, writeCheckpoint, writeModelFile } from "../../lib/formats";
import { DlfsError, ErrorCode } from "../../lib/native";
import { sampleMetadata, sampleTensors } from "./sample";

const folder = mkdtempSync(join(tmpdir(), "dlfs-model-file-"));
afterAll(() => rmSync(folder, { recursive: true }));

const metadata: ModelFileMetadata = {
  architecture: { name: "retinanet", classes: 2, anchors: { sizes: [[32, 40.5]] } },
  classes: ["cat", "Hund, groß"],
  size: [640, 480],
  preprocessing: [{ name: "resize" }, { name: "normalize", mean: [0.5, 0.5, 0.5] }],
  created: 1_700_000_000_123,
  versions: { dlfs: "0.1.0", bun: "1.4.5", backend: "cuda", libraries: { cudnn: "9.14.0" } },
  provenance: { iteration: "90000", data: "coco" },
  metrics: { AP: 0.42, APs: -1 },
  calibration: { method: "mse", images: 128, f8: { "": 2.5, "head.cls.0": 0.25 }, i8: { "": 2 } },
};
const least: ModelFileMetadata = {
  ...{ architecture: null, classes: [], size: [1, 1], preprocessing: [], created: 0, provenance: {}, metrics: {} },
  versions: { dlfs: "", bun: "", backend: "", libraries: {} },
};

const path = join(folder, "model.dlfs");
await writeModelFile(path, metadata, sampleTensors());
const intact = await Bun.file(path).bytes();

/** Opens and reads everything. */
async function readAll(bytes: Uint8Array) {
  await Bun.write(path, bytes);
  using file = await ModelFile.open(path);
  return { metadata: file.metadata, tensors: [...file.tensors.keys()].map((name) => file.read(name).slice()) };
}

async function errorOf(action: () => Promise<unknown>): Promise<DlfsError> {
  const error = await action().then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof DlfsError)) throw error ?? new Error("expected an error");
  return error;
}

describe("a model file", () => {
  test("gives back what was written; tensors are views of the mapped file", async () => {
    await Bun.write(path, intact);
    using file = await ModelFile.open(path);
    expect(file.metadata).toEqual(metadata);
    expect([...file.tensors.keys()]).toEqual(sampleTensors().map(({ name }) => name));
    for (const { name, dtype, shape, data } of sampleTensors()) {
      expect(file.tensors.get(name)).toMatchObject({ dtype, shape: [...shape], length: data.length });
      expect(file.tensors.get(name)!.offset % 64).toBe(0);
      expect(file.read(name)).toEqual(data);
    }
    file.verify();
    expect(() => file.read("none")).toThrow(`${path}: there is no tensor "none" among its 6`);
    file.close();
    expect(() => file.read("mask")).toThrow("used after close()");
  });

  test("gives back the least there can be", async () => {
    const small = join(folder, "least.dlfs");
    await writeModelFile(small, least, []);
    using file = await ModelFile.open(small);
    expect(file.metadata).toEqual(least);
    expect(file.tensors.size).toBe(0);
  });

  test("is told from other files by its first bytes", async () => {
    const other = join(folder, "a.dlck");
    await writeCheckpoint(other, sampleMetadata(), []);
    await Bun.write(path, intact);
    const found = await Promise.all([path, other, join(folder, "none"), folder].map(isModelFile));
    expect(found).toEqual([true, false, false, false]);
    expect((await errorOf(() => ModelFile.open(other))).message).toContain('a model file starts with "DLFSMODL"');
  });

  test("that cannot be written leaves what was there", async () => {
    await Bun.write(path, intact);
    const bad: [Partial<ModelFileMetadata>, string][] = [
      [{ size: [0, 640] }, "metadata.size: expected pixels, got 0x640"],
      [{ architecture: undefined }, "metadata.architecture: JSON cannot hold it"],
      [{ created: -1 }, "metadata.created: expected a whole number from 0, got -1"],
    ];
    for (const [wrong, message] of bad) {
      const error = await errorOf(() => writeModelFile(path, { ...metadata, ...wrong }, sampleTensors()));
      expect(error.message).toContain(`${path}: ${message}`);
    }
    const twice = [...sampleTensors(), sampleTensors()[0]!];
    const error = await errorOf(() => writeModelFile(path, metadata, twice));
    expect(error.message).toContain('tensor "model.conv1.weight": added twice');
    expect(await Bun.file(path).bytes()).toEqual(intact);
    expect(readdirSync(folder).filter((name) => name.startsWith("model."))).toEqual(["model.dlfs"]);
  });
});

describe("a damaged model file is an error that names it", () => {
  test("cut short at any byte", async () => {
    for (let length = intact.length - 1; length >= 0; length -= 7) {
      await Bun.write(path, intact);
      truncateSync(path, length);
      const error = await errorOf(() => ModelFile.open(path));
      expect(error.code).toBe(ErrorCode.io);
      expect(error.message).toStartWith(`${path}: damaged: `);
    }
  });

  test("any byte changed: an error, or in padding nothing", async () => {
    const right = await readAll(intact);
    let unnoticed = 0;
    for (let i = 0; i < intact.length; i++) {
      const bytes = intact.slice();
      bytes[i] = bytes[i]! ^ (1 << (i % 8));
      const found = await readAll(bytes).catch((error: unknown) => error);
      if (found instanceof DlfsError) {
        expect(found.message).toStartWith(`${path}: damaged: `);
        continue;
      }
      expect(found).toEqual(right);
      unnoticed++;
    }
    const used = sampleTensors().reduce((sum, { data }) => sum + data.length, 0);
    const index = Number(new DataView(intact.buffer).getBigUint64(16, true));
    expect(unnoticed).toBe(index - 64 - used);
  });

  test("one of a newer version is refused by its version", async () => {
    const bytes = intact.slice();
    const view = new DataView(bytes.buffer);
    view.setUint32(8, 2, true);
    view.setBigUint64(56, Bun.hash.xxHash64(bytes.subarray(0, 56), 0n), true);
    const error = await errorOf(() => readAll(bytes));
    expect(error.code).toBe(ErrorCode.unsupported);
    expect(error.message).toContain("a newer dlfs wrote version 2 of the model file format, this one reads up to 1");
  });
});

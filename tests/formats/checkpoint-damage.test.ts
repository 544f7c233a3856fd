import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Builder } from "flatbuffers";
import * as fb from "../../lib/formats/generated/checkpoint_generated";
import { readCheckpoint, writeCheckpoint } from "../../lib/formats/index";
import { DlfsError, ErrorCode } from "../../lib/native/error";
import { sampleMetadata, sampleTensors } from "./sample";

const folder = mkdtempSync(join(tmpdir(), "dlfs-damage-"));
afterAll(() => rmSync(folder, { recursive: true }));

const path = join(folder, "run.dlck");
await writeCheckpoint(path, sampleMetadata(), sampleTensors());
const intact = await Bun.file(path).bytes();

/** Opens and reads everything; the error of that, or undefined. Anything but a DlfsError about this file fails. */
async function errorOf(bytes: Uint8Array): Promise<DlfsError | undefined> {
  await Bun.write(path, bytes);
  let error: unknown;
  try {
    await using checkpoint = await readCheckpoint(path);
    await checkpoint.verify();
    return undefined;
  } catch (thrown) {
    error = thrown;
  }
  if (!(error instanceof DlfsError)) throw error;
  expect(error.message).toStartWith(`${path}: `);
  return error;
}

const u64 = (view: DataView, at: number, value: number | bigint) => view.setBigUint64(at, BigInt(value), true);

/** A copy with the checksums of index and header recomputed, as a hostile or buggy writer would leave them. */
function sealed(change: (bytes: Uint8Array, view: DataView) => void): Uint8Array {
  const bytes = intact.slice();
  const view = new DataView(bytes.buffer);
  change(bytes, view);
  const index = bytes.subarray(Number(view.getBigUint64(16, true)));
  u64(view, 32, Bun.hash.xxHash64(index, 0n));
  u64(view, 56, Bun.hash.xxHash64(bytes.subarray(0, 56), 0n));
  return bytes;
}

/** A whole file around an index made by hand. */
function fileOf(index: Uint8Array, sections = 4): Uint8Array {
  const start = 64 * (1 + sections);
  const bytes = new Uint8Array(start + index.length);
  bytes.set(intact.subarray(0, 16));
  bytes.set(index, start);
  const view = new DataView(bytes.buffer);
  u64(view, 16, start);
  u64(view, 24, index.length);
  u64(view, 32, Bun.hash.xxHash64(index, 0n));
  u64(view, 40, bytes.length);
  u64(view, 56, Bun.hash.xxHash64(bytes.subarray(0, 56), 0n));
  return bytes;
}

interface FakeTensor {
  name?: string;
  dtype?: number;
  shape?: bigint[];
  offset?: bigint;
  length?: bigint;
}

/** An index with these tensors and, where asked, broken metadata. */
function indexOf(tensors: FakeTensor[], metadata: { config?: string; iteration?: bigint } = {}): Uint8Array {
  const b = new Builder();
  const config = b.createString(metadata.config ?? "{}");
  const text = b.createString("x");
  const versions = fb.Versions.createVersions(b, text, text, text, fb.Versions.createLibrariesVector(b, []));
  const entries = tensors.map(({ name = "w", dtype = fb.DType.U8, shape = [4n], offset = 64n, length = 4n }) => {
    const nameAt = b.createString(name);
    const shapeAt = fb.Tensor.createShapeVector(b, shape);
    return fb.Tensor.createTensor(b, nameAt, dtype, shapeAt, offset, length, 0n);
  });
  const tensorsAt = fb.Checkpoint.createTensorsVector(b, entries);
  fb.Checkpoint.startCheckpoint(b);
  fb.Checkpoint.addIteration(b, metadata.iteration ?? 1n);
  fb.Checkpoint.addConfig(b, config);
  fb.Checkpoint.addVersions(b, versions);
  fb.Checkpoint.addTensors(b, tensorsAt);
  fb.Checkpoint.finishCheckpointBuffer(b, fb.Checkpoint.endCheckpoint(b));
  return b.asUint8Array().slice();
}

describe("a damaged checkpoint is an error that names the file", () => {
  test("the undamaged one is none", async () => {
    expect(await errorOf(intact)).toBeUndefined();
    expect(await errorOf(sealed(() => undefined))).toBeUndefined();
  });

  test("cut short at any byte", async () => {
    for (let length = intact.length - 1; length >= 0; length--) {
      await Bun.write(path, intact);
      truncateSync(path, length);
      const error = await readCheckpoint(path).then(
        () => undefined,
        (e: unknown) => e as DlfsError,
      );
      expect(error?.code).toBe(ErrorCode.io);
      expect(error?.message).toContain(
        length < 64
          ? `damaged: header: the file has ${length} bytes`
          : `damaged: file length: expected ${intact.length} bytes, the file has ${length}: it is truncated`,
      );
    }
  });

  test("any byte changed", async () => {
    for (let i = 0; i < intact.length; i++) {
      const bytes = intact.slice();
      bytes[i] = bytes[i]! ^ (1 << (i % 8));
      const error = await errorOf(bytes);
      expect(`byte ${i}: ${error?.code}`).toBe(`byte ${i}: ${ErrorCode.io}`);
    }
  });

  test("followed by other bytes", async () => {
    const error = await errorOf(Uint8Array.of(...intact, 0));
    expect(error?.message).toContain("it is followed by foreign bytes");
  });

  test("a changed tensor is named, and the others stay readable", async () => {
    const bytes = intact.slice();
    await Bun.write(path, intact);
    const bias = await readCheckpoint(path);
    const at = bias.tensors.get("model.conv1.bias")!.offset;
    await bias.close();
    bytes[at + 3]! ^= 16;
    expect((await errorOf(bytes))?.message).toMatch(
      /damaged: tensor "model\.conv1\.bias": its checksum is [0-9a-f]{16}, [0-9a-f]{16} was recorded$/,
    );
    await using checkpoint = await readCheckpoint(path);
    await expect(checkpoint.read("model.conv1.bias")).rejects.toThrow("checksum");
    expect(await checkpoint.read("mask")).toEqual(sampleTensors()[5]!.data);
  });

  test("a file of another kind, an empty file, a folder, no file", async () => {
    expect((await errorOf(new Uint8Array(0)))?.message).toContain("the file has 0 bytes");
    const text = new TextEncoder().encode("{}".padEnd(100));
    expect((await errorOf(text))?.message).toContain(
      'magic: a checkpoint starts with "DLFSCKPT", this file with "{}      "',
    );
    expect((await errorOf(new Uint8Array(100)))?.message).toContain("this file with bytes 0000000000000000");
    await expect(readCheckpoint(folder)).rejects.toThrow(`${folder}: a checkpoint is a file, this is none`);
    const missing = join(folder, "missing.dlck");
    await expect(readCheckpoint(missing)).rejects.toThrow(
      `${missing}: cannot open the checkpoint: no such file or folder`,
    );
  });

  test("a newer version is told from a damaged one", async () => {
    const error = await errorOf(sealed((_, view) => view.setUint32(8, 2, true)));
    expect(error?.code).toBe(ErrorCode.unsupported);
    expect(error?.message).toContain("a newer dlfs wrote version 2 of the checkpoint format, this one reads up to 1");
    expect((await errorOf(sealed((_, view) => view.setUint32(8, 0, true))))?.message).toContain("format version");
  });
});

describe("checksums that are right over claims that are not", () => {
  test.each([
    ["index offset", 16, 2n ** 63n, "index offset: 9223372036854775808 is beyond 2^53"],
    ["index offset", 16, 2n ** 50n, "index offset: expected a multiple of 64 in 64 .. "],
    ["index offset", 16, 65n, "index offset: expected a multiple of 64 in 64 .. "],
    ["index offset", 16, 0n, "index offset: expected a multiple of 64 in 64 .. "],
    ["index length", 24, 2n ** 52n, "index length: the index at "],
    ["index length", 24, 0n, "index length: the index at "],
    ["file length", 40, 2n ** 64n - 1n, "file length: 18446744073709551615 is beyond 2^53"],
  ])("%s", async (_, at, value, message) => {
    const bytes = intact.slice();
    const view = new DataView(bytes.buffer);
    u64(view, at, value);
    u64(view, 56, Bun.hash.xxHash64(bytes.subarray(0, 56), 0n));
    expect((await errorOf(bytes))?.message).toContain(`damaged: ${message}`);
  });

  test.each<[string, FakeTensor[], string]>([
    [
      "offset beyond the tensors",
      [{ offset: 2n ** 40n }],
      "4 bytes at 1099511627776 go beyond the end of the tensors at 320",
    ],
    ["offset in the header", [{ offset: 0n }], 'tensors[0] "w" offset: expected a multiple of 64 from 64, got 0'],
    ["offset not aligned", [{ offset: 65n }], 'tensors[0] "w" offset: expected a multiple of 64 from 64, got 65'],
    ["offset beyond 2^53", [{ offset: 2n ** 64n - 64n }], 'tensors[0] "w" offset: 18446744073709551552 is beyond 2^53'],
    ["end beyond the tensors", [{ shape: [300n], length: 300n }], "300 bytes at 64 go beyond the end of the tensors"],
    ["huge shape", [{ shape: [2n ** 52n, 2n ** 52n], length: 2n ** 52n }], "has Infinity bytes, got 4503599627370496"],
    ["length that is not the shape's", [{ shape: [5n] }], 'tensors[0] "w" length: u8 [5] has 5 bytes, got 4'],
    ["rank", [{ shape: new Array<bigint>(17).fill(1n), length: 1n }], "17 dimensions, at most 16 are possible"],
    ["dtype", [{ dtype: 99 }], 'tensors[0] "w" dtype: 99 is none of this version'],
    ["no dtype", [{ dtype: 0 }], 'tensors[0] "w" dtype: 0 is none of this version'],
    ["no name", [{ name: "" }], "tensors[0].name: it is empty"],
    ["same name", [{}, { offset: 128n }], '"w" occurs twice'],
    ["same place", [{}, { name: "v" }], 'tensor "v" offset: 64 overlaps "w" with 4 bytes at 64'],
    [
      "overlap",
      [
        { shape: [100n], length: 100n },
        { name: "v", offset: 128n },
      ],
      'offset: 128 overlaps "w" with 100 bytes at 64',
    ],
    ["order", [{ offset: 128n }, { name: "v" }], 'offset: 64 overlaps "w" with 4 bytes at 128'],
  ])("tensor: %s", async (_, tensors, message) => {
    const error = await errorOf(fileOf(indexOf(tensors)));
    expect(error?.code).toBe(ErrorCode.io);
    expect(error?.message).toContain("damaged: index, ");
    expect(error?.message).toContain(message);
  });

  test("bytes that belong to no tensor", async () => {
    const error = await errorOf(fileOf(indexOf([]), 2));
    expect(error?.message).toContain("damaged: padding before the index: 128 bytes at 64 belong to no tensor");
  });

  test("metadata", async () => {
    expect((await errorOf(fileOf(indexOf([], { config: "{" }))))?.message).toContain("damaged: index, config: ");
    const big = await errorOf(fileOf(indexOf([], { iteration: 2n ** 60n })));
    expect(big?.message).toContain("damaged: index, iteration: 1152921504606846976 is beyond 2^53");
  });

  test("a missing required field", async () => {
    const b = new Builder();
    // A table without any field.
    b.startObject(13);
    fb.Checkpoint.finishCheckpointBuffer(b, b.endObject());
    expect((await errorOf(fileOf(b.asUint8Array().slice())))?.message).toContain("index, config: it is missing");
  });

  test("no index, and one of another schema", async () => {
    expect((await errorOf(fileOf(new Uint8Array(0))))?.message).toContain("damaged: index, root: ");
    expect((await errorOf(fileOf(new Uint8Array(64))))?.message).toContain("it is no checkpoint index");
  });

  test("many entries that all point at one long string", async () => {
    const b = new Builder();
    const text = b.createString("x".repeat(100_000));
    const one = fb.KeyValue.createKeyValue(b, text, text);
    const picks = fb.Checkpoint.createConvPicksVector(b, new Array<number>(50_000).fill(one));
    const config = b.createString("{}");
    const short = b.createString("x");
    const versions = fb.Versions.createVersions(b, short, short, short, fb.Versions.createLibrariesVector(b, []));
    const tensors = fb.Checkpoint.createTensorsVector(b, []);
    fb.Checkpoint.startCheckpoint(b);
    fb.Checkpoint.addConfig(b, config);
    fb.Checkpoint.addVersions(b, versions);
    fb.Checkpoint.addConvPicks(b, picks);
    fb.Checkpoint.addTensors(b, tensors);
    fb.Checkpoint.finishCheckpointBuffer(b, fb.Checkpoint.endCheckpoint(b));
    // Ten gigabytes of text, were it believed.
    const error = await errorOf(fileOf(b.asUint8Array().slice()));
    expect(error?.message).toMatch(/damaged: index, conv_picks\[\d+\]\.(key|value): its parts claim far more than the/);
  });

  test("any byte of the index changed", async () => {
    const start = Number(new DataView(intact.buffer).getBigUint64(16, true));
    let errors = 0;
    for (let i = start; i < intact.length; i++) {
      for (const value of [0xff, intact[i]! ^ 1]) {
        if (await errorOf(sealed((bytes) => (bytes[i] = value)))) errors++;
      }
    }
    // A changed metric or name is a valid checkpoint, so not all of them fail.
    expect(errors).toBeGreaterThan((intact.length - start) / 2);
  });

  test("indexes of random words", async () => {
    let state = 12345;
    const random = (limit: number) => {
      state = (state * 48271) % 2147483647;
      return state % limit;
    };
    const index = intact.subarray(Number(new DataView(intact.buffer).getBigUint64(16, true)));
    for (let round = 0; round < 300; round++) {
      const bytes = index.slice();
      const view = new DataView(bytes.buffer);
      for (let i = 0; i < 1 + random(8); i++) {
        const value = [random(bytes.length), -random(bytes.length), 2 ** 31 - 1, -(2 ** 31), random(2 ** 30)][
          random(5)
        ]!;
        view.setInt32(random(bytes.length - 4), value, true);
      }
      await errorOf(fileOf(bytes, 10));
    }
  });
});

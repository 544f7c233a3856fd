import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CheckpointTensorData } from "../../lib/formats/index";
import { CheckpointWriter, readCheckpoint, writeCheckpoint } from "../../lib/formats/index";
import { DlfsError, ErrorCode } from "../../lib/native/error";
import { sampleMetadata, sampleTensors, smallMetadata } from "./sample";

const folder = mkdtempSync(join(tmpdir(), "dlfs-checkpoint-"));
afterAll(() => rmSync(folder, { recursive: true }));

describe("checkpoint", () => {
  test("gives back what was written", async () => {
    const path = join(folder, "all.dlck");
    await writeCheckpoint(path, sampleMetadata(), sampleTensors());
    await using checkpoint = await readCheckpoint(path);
    expect(checkpoint.metadata).toEqual(sampleMetadata());
    expect([...checkpoint.tensors.keys()]).toEqual(sampleTensors().map((tensor) => tensor.name));
    for (const { name, dtype, shape, data } of sampleTensors()) {
      const entry = checkpoint.tensors.get(name)!;
      expect({ dtype: entry.dtype, shape: entry.shape, length: entry.length }).toEqual({
        dtype,
        shape,
        length: data.length,
      });
      expect(entry.offset % 64).toBe(0);
      expect(await checkpoint.read(name)).toEqual(data);
    }
    await checkpoint.verify();
  });

  test("gives back the least there can be", async () => {
    const path = join(folder, "least.dlck");
    await writeCheckpoint(path, smallMetadata(0), []);
    await using checkpoint = await readCheckpoint(path);
    expect(checkpoint.metadata).toEqual(smallMetadata(0));
    expect(checkpoint.metadata.loader).toBeUndefined();
    expect(checkpoint.tensors.size).toBe(0);
    await checkpoint.verify();
  });

  test("reads the committed file of format version 1", async () => {
    // Written by record-checkpoint.ts when the version was made: the bytes must stay readable, and writing the same
    // content must give the same bytes.
    const committed = join(import.meta.dir, "checkpoint-v1.dlck");
    await using checkpoint = await readCheckpoint(committed);
    await checkpoint.verify();
    expect(checkpoint.metadata).toEqual(sampleMetadata());
    for (const { name, data } of sampleTensors()) expect(await checkpoint.read(name)).toEqual(data);
    const path = join(folder, "again.dlck");
    await writeCheckpoint(path, sampleMetadata(), sampleTensors());
    expect(await Bun.file(path).bytes()).toEqual(await Bun.file(committed).bytes());
  });

  test("reads into a buffer of the caller", async () => {
    const path = join(folder, "into.dlck");
    await writeCheckpoint(path, smallMetadata(1), sampleTensors());
    await using checkpoint = await readCheckpoint(path);
    const buffer = new Uint8Array(100).fill(170);
    const view = await checkpoint.read("mask", buffer);
    expect(view.buffer).toBe(buffer.buffer);
    expect(view).toEqual(sampleTensors()[5]!.data);
    expect(buffer[5]).toBe(170);
    await expect(checkpoint.read("mask", buffer.subarray(0, 4))).rejects.toThrow(
      'tensor "mask": has 5 bytes, the buffer for them has 4',
    );
    await expect(checkpoint.read("nothing")).rejects.toThrow('there is no tensor "nothing" among its 6');
  });

  test("takes tensors one at a time, from one buffer", async () => {
    const path = join(folder, "stream.dlck");
    const buffer = new Uint8Array(1000);
    async function* tensors(): AsyncGenerator<CheckpointTensorData> {
      for (let i = 0; i < 5; i++) {
        await Bun.sleep(0);
        buffer.fill(i);
        yield { name: `t${i}`, dtype: "u8", shape: [buffer.length], data: buffer };
      }
    }
    await writeCheckpoint(path, smallMetadata(1), tensors());
    await using checkpoint = await readCheckpoint(path);
    for (let i = 0; i < 5; i++) expect((await checkpoint.read(`t${i}`)).every((byte) => byte === i)).toBe(true);
  });

  test("checksums are the published xxHash64", async () => {
    const path = join(folder, "xxhash.dlck");
    const spam = new TextEncoder().encode("Nobody inspects the spammish repetition");
    await writeCheckpoint(path, smallMetadata(1), [
      { name: "empty", dtype: "u8", shape: [0], data: new Uint8Array(0) },
      { name: "text", dtype: "u8", shape: [spam.length], data: spam },
    ]);
    await using checkpoint = await readCheckpoint(path);
    expect(checkpoint.tensors.get("empty")!.checksum).toBe(0xef46db3751d8e999n);
    expect(checkpoint.tensors.get("text")!.checksum).toBe(0xfbcea83c8a378bf1n);
  });
});

describe("writing", () => {
  test("an error of the tensors leaves the old file, and nothing beside it", async () => {
    const own = mkdtempSync(join(folder, "error-"));
    const path = join(own, "run.dlck");
    await writeCheckpoint(path, smallMetadata(1), sampleTensors());
    const before = await Bun.file(path).bytes();
    async function* failing(): AsyncGenerator<CheckpointTensorData> {
      yield sampleTensors()[0]!;
      throw new Error("the device is gone");
    }
    await expect(writeCheckpoint(path, smallMetadata(2), failing())).rejects.toThrow("the device is gone");
    await writeCheckpoint(path, smallMetadata(2), failing()).catch(() => undefined);
    expect(await Bun.file(path).bytes()).toEqual(before);
    expect(readdirSync(own)).toEqual(["run.dlck"]);
  });

  test("abort removes the temporary file", async () => {
    const own = mkdtempSync(join(folder, "abort-"));
    const writer = await CheckpointWriter.create(join(own, "run.dlck"));
    await writer.add(sampleTensors()[0]!);
    expect(readdirSync(own)).toHaveLength(1);
    await writer.abort();
    expect(readdirSync(own)).toEqual([]);
  });

  const tensor: CheckpointTensorData = { name: "w", dtype: "f32", shape: [2], data: new Uint8Array(8) };
  test.each([
    [{ ...tensor, shape: [3] }, 'tensor "w": f32 [3] has 12 bytes, got 8'],
    [{ ...tensor, shape: [-2] }, 'tensor "w": shape [-2] must be of whole numbers from 0'],
    [{ ...tensor, shape: [2 ** 40, 2 ** 40] }, 'tensor "w": f32 [1099511627776, 1099511627776] has Infinity bytes'],
    [
      { ...tensor, shape: new Array<number>(17).fill(1) },
      'tensor "w": shape [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1] has more than 16 dimensions',
    ],
    [{ ...tensor, name: "" }, 'tensor "": its name is empty'],
    [{ ...tensor, dtype: "f64" as "f32" }, 'tensor "w": unknown dtype "f64"'],
  ])("refuses tensor %#", async (bad, message) => {
    const own = mkdtempSync(join(folder, "tensor-"));
    const path = join(own, "run.dlck");
    const error = await writeCheckpoint(path, smallMetadata(1), [bad]).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(DlfsError);
    expect((error as DlfsError).message).toContain(`${path}: ${message}`);
    expect(readdirSync(own)).toEqual([]);
  });

  test("refuses a name twice", async () => {
    const path = join(folder, "twice.dlck");
    await expect(writeCheckpoint(path, smallMetadata(1), [tensor, tensor])).rejects.toThrow('tensor "w": added twice');
  });

  test.each([
    [{ ...smallMetadata(1), iteration: -1 }, "metadata.iteration: expected a whole number from 0, got -1"],
    [{ ...smallMetadata(1), created: 0.5 }, "metadata.created: expected a whole number from 0, got 0.5"],
    [
      { ...smallMetadata(1), random: [{ name: "a", seed: 2 ** 53, counter: 0 }] },
      "metadata.random[0].seed: expected a whole number from 0, got 9007199254740992",
    ],
    [{ ...smallMetadata(1), config: undefined }, "metadata.config: JSON cannot hold it"],
  ])("refuses metadata %#", async (metadata, message) => {
    const own = mkdtempSync(join(folder, "metadata-"));
    await expect(writeCheckpoint(join(own, "run.dlck"), metadata, [])).rejects.toThrow(message);
    await writeCheckpoint(join(own, "run.dlck"), metadata, []).catch(() => undefined);
    expect(readdirSync(own)).toEqual([]);
  });

  test("a missing folder and a folder in the way are errors that name the path", async () => {
    const missing = join(folder, "missing", "run.dlck");
    await expect(writeCheckpoint(missing, smallMetadata(1), [])).rejects.toThrow(
      `${missing}: cannot create the file: no such file`,
    );
    const own = mkdtempSync(join(folder, "in-the-way-"));
    const occupied = mkdtempSync(join(own, "run-"));
    writeFileSync(join(occupied, "file"), "");
    const error = await writeCheckpoint(occupied, smallMetadata(1), []).catch((e: unknown) => e);
    expect((error as DlfsError).code).toBe(ErrorCode.io);
    expect((error as DlfsError).message).toContain(`${occupied}: cannot finish the file`);
    expect(readdirSync(own)).toHaveLength(1);
  });
});

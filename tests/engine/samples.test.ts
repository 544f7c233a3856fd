/** The committed files of format version 1 are read, and detected with, as they were written; those of newer versions are refused. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Engine } from "../../lib/engine";
import { ModelFile, PredictionsReader, PredictionsWriter, type StoredDType, writeModelFile } from "../../lib/formats";
import { type DlfsError, ErrorCode } from "../../lib/native";
import recorded from "../golden/formats/model-v1.json";
import { modelMetadata, picture, predictions, predictionsHeader } from "../golden/formats/sample";
import { testDevice } from "../support/device";
import { errorIn } from "../support/tiny-training";

const golden = (name: string) => join(import.meta.dir, "../golden/formats", name);
const folder = mkdtempSync(join(tmpdir(), "dlfs-samples-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** A copy of a file with another version in its header, whose checksum (of the bytes before it) is right again. */
async function withVersion(name: string, version: number, checksumAt: number): Promise<string> {
  const bytes = await Bun.file(golden(name)).bytes();
  const view = new DataView(bytes.buffer);
  view.setUint32(8, version, true);
  const hash = Bun.hash.xxHash64(bytes.subarray(0, checksumAt), 0n);
  if (checksumAt === 56) view.setBigUint64(56, hash, true);
  else view.setUint32(checksumAt, Number(hash & 0xffffffffn), true);
  const path = join(folder, name);
  await Bun.write(path, bytes);
  return path;
}

describe("a model file of version 1", () => {
  test("says what it said, and the same content gives the same bytes", async () => {
    using file = await ModelFile.open(golden("model-v1.dlfs"));
    file.verify();
    expect(file.metadata).toEqual(modelMetadata);
    const tensors = [...file.tensors].map(([name, { dtype, shape }]) => {
      return { name, dtype: dtype as StoredDType, shape: [...shape], data: file.read(name).slice() };
    });
    const again = join(folder, "again.dlfs");
    await writeModelFile(again, modelMetadata, tensors);
    expect(await Bun.file(again).bytes()).toEqual(await Bun.file(golden("model-v1.dlfs")).bytes());
  });

  test("detects what it detected", async () => {
    await using engine = await Engine.load(golden("model-v1.dlfs"), {
      ...{ device: testDevice(), precision: "fp32", batchSizes: [1] },
    });
    expect(engine).toMatchObject({ classes: modelMetadata.classes, iteration: 9000, size: [64, 96] });
    const { detections } = await engine.detect(picture());
    expect(detections).toHaveLength(recorded.length);
    for (const [i, { score }] of detections.entries()) expect(score).toBeCloseTo(recorded[i]!.score, 5);
    // Those of nearly equal scores may change places.
    for (const { box, label, score } of recorded) {
      const near = detections.filter((found) => found.label === label && Math.abs(found.score - score) < 1e-5);
      const off = near.map((found) => Math.max(...found.box.map((value, k) => Math.abs(value - box[k]!))));
      expect(Math.min(...off)).toBeLessThan(0.01);
    }
  });

  test("is refused by its version where that is newer", async () => {
    const path = await withVersion("model-v1.dlfs", 2, 56);
    const error = await errorIn(Engine.load(path, { device: testDevice() }));
    expect(error.code).toBe(ErrorCode.unsupported);
    expect(error.message).toStartWith(`${path}: format version: a newer dlfs wrote version 2 of the model file format`);
  });
});

describe("a predictions file of version 1", () => {
  test("says what it said, and the same content gives the same bytes", async () => {
    await using reader = await PredictionsReader.open(golden("predictions-v1.dlpr"));
    expect(await Array.fromAsync(reader.predictions())).toEqual(predictions);
    expect(reader.header).toEqual(predictionsHeader);
    const again = join(folder, "again.dlpr");
    {
      await using writer = await PredictionsWriter.open(again, predictionsHeader);
      await writer.append(predictions);
    }
    expect(await Bun.file(again).bytes()).toEqual(await Bun.file(golden("predictions-v1.dlpr")).bytes());
  });

  test("is neither read nor gone on with where its version is newer", async () => {
    const path = await withVersion("predictions-v1.dlpr", 2, 12);
    await using reader = await PredictionsReader.open(path);
    for (const action of [Array.fromAsync(reader.predictions()), PredictionsWriter.open(path, predictionsHeader)]) {
      const error = (await errorIn(action as Promise<unknown>)) as DlfsError;
      expect(error.code).toBe(ErrorCode.unsupported);
      expect(error.message).toStartWith(
        `${path}: format version: a newer dlfs wrote version 2 of the predictions file format`,
      );
    }
  });
});

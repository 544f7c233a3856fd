/** Predictions files: appended, readable while they grow, gone on with after a kill, and refused where they are damaged. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  decodeFrame,
  encodeFrame,
  type ImagePrediction,
  type PredictionsHeader,
  PredictionsReader,
  PredictionsWriter,
  predictionMessages,
} from "../../lib/formats";
import { DlfsError, ErrorCode } from "../../lib/native";

const folder = mkdtempSync(join(tmpdir(), "dlfs-predictions-"));
afterAll(() => rmSync(folder, { recursive: true }));

const header: PredictionsHeader = {
  ...{ classes: ["cat", "Hund, groß"], model: "model.dlfs", iteration: 9000, scoreThreshold: 0.3 },
  ...{ created: 1_700_000_000_123, versions: { dlfs: "0.1.0", bun: "1.4.5", backend: "cpu", libraries: { x: "1" } } },
};

/** Image `i`, with i % 4 detections. */
function prediction(i: number): ImagePrediction {
  const n = i % 4;
  return {
    ...{ name: `val/${i} ü.jpg`, width: 640, height: 427 + i },
    ...(i % 2 === 0 && { imageId: 2 ** 40 + i }),
    boxes: Float32Array.from({ length: 4 * n }, (_, k) => k + 0.5 * i),
    scores: Float32Array.from({ length: n }, (_, k) => 1 / (k + 1)),
    labels: Uint32Array.from({ length: n }, (_, k) => k % 2),
    ...(n === 0 && { error: "damaged: it ends after 300 bytes" }),
  };
}
const all = Array.from({ length: 9 }, (_, i) => prediction(i));

async function written(name: string, predictions = all): Promise<string> {
  const path = join(folder, name);
  await using writer = await PredictionsWriter.open(path, header);
  await writer.append(predictions.slice(0, 4));
  await writer.append(predictions.slice(4));
  await writer.sync();
  return path;
}

async function read(path: string) {
  await using reader = await PredictionsReader.open(path);
  const predictions = await Array.fromAsync(reader.predictions());
  return { predictions, header: reader.header, position: reader.position };
}

describe("a predictions file", () => {
  test("gives back what was written", async () => {
    const path = await written("all.dlpr");
    expect(await read(path)).toEqual({ predictions: all, header, position: statSync(path).size });
  });

  test("is read while it grows", async () => {
    const path = join(folder, "growing.dlpr");
    await using writer = await PredictionsWriter.open(path, header);
    await using reader = await PredictionsReader.open(path);
    for (const [i, one] of all.entries()) {
      await writer.append([one]);
      // Every other turn finds two.
      if (i % 2 === 1) expect(await Array.fromAsync(reader.predictions())).toEqual(all.slice(i - 1, i + 1));
    }
    expect(await Array.fromAsync(reader.predictions())).toEqual(all.slice(-1));
    expect(await Array.fromAsync(reader.predictions())).toEqual([]);
  });

  test("cut anywhere holds the whole predictions before the cut, and is gone on with from there", async () => {
    const path = await written("cut.dlpr");
    const intact = await Bun.file(path).bytes();
    const ends: number[] = [];
    for (let at = 16; at < intact.length; at = decodeFrame(intact, at, "test")!.next) ends.push(at);
    ends.push(intact.length);
    for (let length = 0; length <= intact.length; length += 3) {
      await Bun.write(path, intact);
      truncateSync(path, length);
      // The first frame is the header.
      const whole = Math.max(0, ends.filter((end) => end <= length).length - 2);
      const found: ImagePrediction[] = [];
      {
        await using writer = await PredictionsWriter.open(path, header, (one) => found.push(one));
        await writer.append(all.slice(found.length));
      }
      expect(found).toEqual(all.slice(0, whole));
      expect((await read(path)).predictions).toEqual(all);
    }
  });

  test("with any byte changed is an error that names it, or ends earlier", async () => {
    const path = await written("damaged.dlpr", all.slice(0, 3));
    const intact = await Bun.file(path).bytes();
    for (let i = 0; i < intact.length; i++) {
      const bytes = intact.slice();
      bytes[i] = bytes[i]! ^ (1 << (i % 8));
      await Bun.write(path, bytes);
      const found = await read(path).catch((error: unknown) => error);
      if (found instanceof DlfsError) expect(found.message).toStartWith(`${path}: `);
      else {
        const { predictions } = found as Awaited<ReturnType<typeof read>>;
        expect(predictions).toEqual(all.slice(0, predictions.length));
      }
    }
  });

  test("of another model, with other classes or a newer version is not written to", async () => {
    const path = await written("other.dlpr");
    const before = await Bun.file(path).bytes();
    const cases: [Partial<PredictionsHeader>, string][] = [
      [{ model: "b.dlfs" }, 'model: the file has predictions of "model.dlfs", these are of "b.dlfs"'],
      [{ iteration: 1 }, "iteration: the file has predictions of 9000, these are of 1"],
      [{ classes: ["cat"] }, "classes: the file has predictions of"],
      [{ scoreThreshold: 0.5 }, "scoreThreshold: "],
    ];
    for (const [other, message] of cases) {
      await expect(PredictionsWriter.open(path, { ...header, ...other })).rejects.toThrow(`${path}: ${message}`);
    }
    expect(await Bun.file(path).bytes()).toEqual(before);
    await using _same = await PredictionsWriter.open(path, { ...header, created: 5 });

    const newer = before.slice();
    newer[8] = 2;
    const sum = Number(Bun.hash.xxHash64(newer.subarray(0, 12), 0n) & 0xffffffffn);
    new DataView(newer.buffer).setUint32(12, sum, true);
    await Bun.write(path, newer);
    const error = await read(path).catch((thrown: DlfsError) => thrown);
    expect(error).toMatchObject({ code: ErrorCode.unsupported });
    expect((error as DlfsError).message).toContain("a newer dlfs wrote version 2 of the predictions file format");
    const foreign = join(folder, "photo.jpg");
    await Bun.write(foreign, "no predictions at all");
    await expect(read(foreign)).rejects.toThrow(`${foreign}: damaged: magic: a predictions file starts with`);
    await expect(read(join(folder, "none"))).rejects.toThrow("cannot open the predictions file");
  });

  test("passes over messages of other kinds", async () => {
    const path = await written("kinds.dlpr");
    const frame = encodeFrame({ kind: "XYZ1", message: Uint8Array.of(1, 2, 3) });
    await Bun.write(
      path,
      new Blob([
        await Bun.file(path).bytes(),
        frame,
        encodeFrame({ kind: "DLPI", message: predictionMessages.encode(all[5]!) }),
      ]),
    );
    expect((await read(path)).predictions).toEqual([...all, all[5]!]);
  });
});

test("a prediction that is made wrongly is an error that names the field", () => {
  const wrong = { ...prediction(3), labels: new Uint32Array(2) };
  expect(() => predictionMessages.decode(predictionMessages.encode(wrong), "stream")).toThrow(
    "stream: damaged: index, labels: expected 3 numbers for 3 scores, got 2",
  );
  const message = predictionMessages.encode(prediction(3));
  for (let length = 0; length < message.length; length++) {
    let found: ImagePrediction | undefined;
    try {
      found = predictionMessages.decode(message.slice(0, length), "stream");
    } catch (error) {
      expect(error).toBeInstanceOf(DlfsError);
    }
    // What is cut off may be padding.
    if (found) expect(found).toEqual(prediction(3));
  }
});

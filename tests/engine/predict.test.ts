/** Detection on many images: in their order, bounded, and stopped without an error or a lost batch. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DeviceImageCodec, Normalize, Resize } from "../../lib/data";
import { Engine, type ListedImage, predict } from "../../lib/engine";
import { testDevice } from "../support/device";
import { saveTrained } from "../support/trained-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-predict-"));
afterAll(() => rmSync(folder, { recursive: true }));
const device = testDevice();
const model = { name: "compact", classes: 2, width: 4, headConvs: 1 } as const;
const path = join(folder, "a.dlck");
const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
await saveTrained(path, model, 3, { model, classes: ["red", "green"], size: [64, 64], preprocessing });
const jpeg = new DeviceImageCodec(device).encode({ width: 40, height: 30, data: new Uint8Array(3600).fill(90) });
const load = () => Engine.load(path, { device, precision: "fp32", batchSizes: [2], warmUp: false });

test("stops without an error when it is asked to while files are being read, and gives the batches that were under way", async () => {
  const stop = new AbortController();
  // As sources do: a read that is aborted rejects with the signal's reason.
  const images = Array.from({ length: 12 }, (_, i): ListedImage => {
    const aborted = (signal: AbortSignal) =>
      new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    return { name: `${i}`, read: async (signal) => (i < 4 ? jpeg : await aborted(signal as AbortSignal)) };
  });
  await using engine = await load();
  const found: string[] = [];
  setTimeout(() => stop.abort(), 100);
  for await (const batch of predict(engine, images, { signal: stop.signal })) {
    found.push(...batch.map(({ prediction }) => prediction.name));
  }
  expect(found).toEqual(["0", "1", "2", "3"]);
});

test("an error that is none of an image ends it, also where other reads fail beside it", async () => {
  const read = async () => {
    throw new TypeError("a fault of the caller's code");
  };
  await using engine = await load();
  const images = Array.from({ length: 6 }, (_, i) => ({ name: `${i}`, read }));
  await expect(Array.fromAsync(predict(engine, images))).rejects.toThrow("a fault of the caller's code");
});

test("reads no more files ahead than it may", async () => {
  let [now, most] = [0, 0];
  const read = async () => {
    most = Math.max(most, ++now);
    await Bun.sleep(2);
    now--;
    return jpeg;
  };
  await using engine = await load();
  const images = Array.from({ length: 20 }, (_, i) => ({ name: `${i}`, read }));
  const batches = await Array.fromAsync(predict(engine, images, { readAhead: 3 }));
  expect(batches.flat().map(({ prediction }) => prediction.name)).toEqual(images.map(({ name }) => name));
  expect(most).toBe(3);
  await expect(Array.fromAsync(predict(engine, images, { readAhead: 0 }))).rejects.toThrow(
    "readAhead: expected a number from 1",
  );
});

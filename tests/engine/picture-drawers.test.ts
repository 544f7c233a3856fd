/** Pictures drawn by threads: what is drawn here, each by its own, errors alone, and small files that share memory with others. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DeviceImageCodec } from "../../lib/data";
import { drawPrediction, type Engine } from "../../lib/engine";
import { PictureDrawers } from "../../lib/engine/picture-drawers";
import type { ImagePrediction } from "../../lib/formats";
import { DlfsError } from "../../lib/native";
import { Device } from "../../lib/tensor";

const folder = mkdtempSync(join(tmpdir(), "dlfs-drawers-"));
const device = new Device({ backend: "cpu", threads: 1 }); // the threads' own, whatever the engine runs on
const codec = new DeviceImageCodec(device);
afterAll(() => {
  rmSync(folder, { recursive: true });
  device.dispose();
});

const engine = { codec, classes: ["red", "green"] } as unknown as Engine;
const picture = (i: number) => ({ width: 60 + i, height: 40, data: new Uint8Array(3 * (60 + i) * 40).fill(20 * i) });
const prediction = (i: number): ImagePrediction => ({
  ...{ name: `${i}.jpg`, width: 60 + i, height: 40 },
  boxes: Float32Array.of(5, 5, 30 + i, 30, 10, 12, 20, 35),
  scores: Float32Array.of(0.9, 0.5),
  labels: Uint32Array.of(i % 2, 1),
});

test("files and pixels become the pictures that are drawn here", async () => {
  const files = Array.from({ length: 7 }, (_, i) => codec.encode(picture(i)));
  // As small files are read: parts of one buffer.
  const shared = Buffer.concat(files);
  let end = 0;
  const parts = files.map(({ length }) => {
    end += length;
    return shared.subarray(end - length, end);
  });
  {
    await using drawers = new PictureDrawers(engine, 3);
    await Promise.all([
      ...parts.map((part, i) => drawers.draw(part, prediction(i), join(folder, "deep", `file-${i}.jpg`))),
      ...files.map((_, i) => drawers.draw(picture(i), prediction(i), join(folder, `pixels-${i}.jpg`))),
    ]);
  }
  for (const [i, file] of files.entries()) {
    const expected = drawPrediction(engine, file, prediction(i));
    expect(readFileSync(join(folder, "deep", `file-${i}.jpg`))).toEqual(Buffer.from(expected));
    const ofPixels = drawPrediction(engine, picture(i), prediction(i));
    expect(readFileSync(join(folder, `pixels-${i}.jpg`))).toEqual(Buffer.from(ofPixels));
  }
  expect(Buffer.concat(files)).toEqual(shared); // what others use is as it was
});

test("one that cannot be drawn or written is an error of its own", async () => {
  await using drawers = new PictureDrawers(engine, 2);
  writeFileSync(join(folder, "in-the-way"), "");
  const results = await Promise.allSettled([
    drawers.draw(picture(1), prediction(1), join(folder, "in-the-way", "a.jpg")),
    drawers.draw(new Uint8Array(100), prediction(1), join(folder, "b.jpg")),
    drawers.draw(picture(2), prediction(2), join(folder, "c.jpg")),
  ]);
  expect(results.map(({ status }) => status)).toEqual(["rejected", "rejected", "fulfilled"]);
  const [first, second] = results as PromiseRejectedResult[];
  expect(first?.reason).toBeInstanceOf(DlfsError);
  expect(first?.reason.message).toContain(join(folder, "in-the-way", "a.jpg"));
  expect(second?.reason).toBeInstanceOf(DlfsError);
});

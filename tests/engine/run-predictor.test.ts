/** What runs' newest weights make of images: loaded when they are needed, and again when there are newer ones. */
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Normalize, Resize } from "../../lib/data";
import { Engine, RunPredictor } from "../../lib/engine";
import { backend, testDevice } from "../support/device";
import { tinyJpeg } from "../support/tiny-model";
import { saveTrained } from "../support/trained-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-run-predictor-"));
afterAll(() => rmSync(folder, { recursive: true }));
const options = { backend: backend as "cpu", precision: "fp32", tuneMs: 0 } as const;

async function save(run: string, iteration: number): Promise<string> {
  const model = {
    ...({ name: "compact", classes: 2, width: 4, headConvs: 1 } as const),
    postprocess: { scoreThreshold: 0, topK: 50, maxDetections: 20 },
  };
  const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
  mkdirSync(join(folder, run, "checkpoints"), { recursive: true });
  const path = join(folder, run, "checkpoints", `checkpoint-${String(iteration).padStart(8, "0")}.dlck`);
  await saveTrained(path, model, iteration, { model, classes: ["a", "b"], size: [64, 96], preprocessing }, iteration);
  return path;
}

test("is what an engine finds, with the newest checkpoint, run by run", async () => {
  const image = tinyJpeg(90, 70, 3);
  await using predictor = new RunPredictor({ ...options, scoreThreshold: 0.01 });
  const first = await save("one", 5);
  await save("two", 8);
  const asked = await Promise.all(["one", "two", "one"].map((run) => predictor.predict(join(folder, run), image)));
  expect(asked.map(({ iteration }) => iteration)).toEqual([5, 8, 5]);
  await using engine = await Engine.load(first, { ...options, device: testDevice(), batchSizes: [1], warmUp: false });
  const { detections } = await engine.detect(image, { scoreThreshold: 0.01 });
  expect(detections.length).toBeGreaterThan(0);
  expect(asked[0]?.boxes).toEqual(detections);
  expect(asked[2]).toEqual(asked[0] as (typeof asked)[0]);
  await save("one", 6);
  expect((await predictor.predict(join(folder, "one"), image)).iteration).toBe(6);
});

test("a run without a checkpoint, and an image that is none, are named, and others go on", async () => {
  await using predictor = new RunPredictor(options);
  await save("good", 2);
  const run = join(folder, "good");
  mkdirSync(join(folder, "empty", "checkpoints"), { recursive: true });
  expect(predictor.predict(join(folder, "empty"), tinyJpeg(20, 20, 1))).rejects.toThrow("empty");
  expect(predictor.predict(run, new TextEncoder().encode("no image"))).rejects.toThrow();
  expect((await predictor.predict(run, tinyJpeg(20, 20, 1))).iteration).toBe(2);
});

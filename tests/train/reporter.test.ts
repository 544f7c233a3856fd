/** What an evaluation leaves in the run folder. */
import { afterAll, beforeAll, expect, spyOn, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { DeviceImageCodec, loadDataset } from "../../lib/data";
import { RunFolder, readMetrics } from "../../lib/monitor";
import { type ImageDetections, measure, Reporter, type StepResult } from "../../lib/train";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

const device = testDevice();
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(device, 4);
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

test("metrics say what share of the time training waited for data, evaluations apart", async () => {
  using dataset = await loadDataset(folder, { codec: new DeviceImageCodec(device), store: ":memory:" });
  const run = await RunFolder.create({ name: "waits", root: join(folder, "runs") });
  let clock = 5000;
  const now = spyOn(performance, "now").mockImplementation(() => clock);
  const reporter = new Reporter({
    ...{ run, dataset, codec: new DeviceImageCodec(device), iterations: 40, start: 0 },
    logEvery: 2,
  });
  const step = (iteration: number, seconds: number, waitSeconds: number): void => {
    clock += 1000 * seconds;
    reporter.onStep(iteration, 2, waitSeconds);
    const result = { iteration, losses: { loss: 1 }, rate: 0.1, failed: false };
    reporter.onResult(result as unknown as StepResult);
  };
  clock += 60_000; // planning, before the first step, is no waiting
  step(0, 0.5, 0.5);
  step(1, 2, 0.5);
  step(2, 2, 0.25);
  step(3, 1, 0);
  reporter.onEvaluationStart();
  clock += 30_000;
  const detections = dataset.store.images("val2017").map(({ id, fileName }) => {
    return { imageId: id, fileName, detections: [] };
  });
  await reporter.onEvaluation(4, measure(dataset.store, "val2017", detections), detections);
  step(4, 1, 1);
  reporter.finish();
  run.close();
  now.mockRestore();
  const lines = readMetrics(join(run.path, "metrics.jsonl")).filter(({ kind }) => kind === "train");
  expect(lines.map(({ iteration, waitShare }) => [iteration, waitShare])).toEqual([
    [0, 1],
    [2, 0.1875],
    [4, 0.5],
  ]);
});

test("an evaluation draws predictions, the confusion matrix and the curves, each over the one before", async () => {
  const codec = new DeviceImageCodec(device);
  using dataset = await loadDataset(folder, { codec, store: ":memory:" });
  const run = await RunFolder.create({ name: "tiny", root: join(folder, "runs") });
  const reporter = new Reporter({ run, dataset, codec, iterations: 10, start: 0 });
  const evaluate = async (iteration: number, found: (classIndex: number) => number) => {
    const detections = dataset.store.images("val2017", { usable: true }).map(({ id, fileName }): ImageDetections => {
      const objects = dataset.store.annotationsOf(id).map(({ bbox: [x, y, w, h], categoryId }) => ({
        box: [x, y, x + w, y + h] as [number, number, number, number],
        score: 0.75,
        label: found(dataset.classes.indexOf(categoryId)),
      }));
      return { imageId: id, fileName, detections: objects };
    });
    await reporter.onEvaluation(iteration, measure(dataset.store, "val2017", detections), detections);
  };
  const picture = (name: string) => readFileSync(join(run.path, "pictures", name), "utf8");
  const objects = dataset.store.annotations("val2017");
  const red = [...objects].filter(({ categoryId }) => categoryId === 3).length;

  await evaluate(5, () => 1);
  expect(picture("confusion-matrix.svg")).toContain(`<title>red taken for green: ${red} of ${red} (100.0 %)</title>`);

  await evaluate(10, (classIndex) => classIndex);
  reporter.finish();
  run.close();
  const matrix = picture("confusion-matrix.svg");
  expect(matrix).toContain(`<title>red taken for red: ${red} of ${red} (100.0 %)</title>`);
  expect(matrix).not.toContain("red taken for green");
  expect(picture("pr-curve.svg")).toContain(">green: 1.000</text>");
  expect(picture("f1-curve.svg")).toContain("best mean F1 1.000 at 0.750");
  for (const iteration of [5, 10]) expect(existsSync(run.picturePath(iteration))).toBe(true);
  expect(readMetrics(join(run.path, "metrics.jsonl")).map(({ kind }) => kind)).toEqual(["evaluation", "evaluation"]);
  const readme = readFileSync(join(run.path, "README.txt"), "utf8");
  for (const name of ["confusion-matrix.svg", "pr-curve.svg", "f1-curve.svg"]) expect(readme).toContain(name);
});

test("of a part of a split, only the images that were looked at count", async () => {
  using dataset = await loadDataset(folder, { codec: new DeviceImageCodec(device), store: ":memory:" });
  const { store, classes } = dataset;
  const right = (id: number) =>
    store.annotationsOf(id).map(({ bbox: [x, y, w, h], categoryId }) => ({
      ...{ box: [x, y, x + w, y + h] as [number, number, number, number], score: 0.75 },
      label: classes.indexOf(categoryId),
    }));
  const all = store.images("val2017", { usable: true });
  const some = all.slice(0, 2).map(({ id, fileName }) => ({ imageId: id, fileName, detections: right(id) }));
  expect(all.length).toBeGreaterThan(2);
  expect(measure(store, { split: "val2017", partial: true }, some).stats.AP).toBe(1);
  expect(measure(store, { split: "val2017" }, some).stats.AP).toBeLessThan(1);
});

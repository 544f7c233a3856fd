/** What an evaluation leaves in the run folder. */
import { afterAll, beforeAll, describe, expect, spyOn, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { DeviceImageCodec, loadDataset } from "../../lib/data";
import type { SampleMessage } from "../../lib/formats";
import { LiveFileReader } from "../../lib/live";
import { detectionLoss } from "../../lib/metrics";
import { type MetricsLine, RunFolder, readMetrics, TensorBoardWriter } from "../../lib/monitor";
import { type ImageDetections, measure, Reporter, type ReporterOptions, type StepResult } from "../../lib/train";
import { EvaluationFiles } from "../../lib/train/evaluation-files";
import type { EvaluatedClasses } from "../../lib/train/evaluation-report";
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
    reporter.onStep(iteration, 2, waitSeconds, 0);
    const result = { iteration, losses: { loss: 1 }, rate: 0.1, failed: false };
    reporter.onResult(result as unknown as StepResult);
  };
  clock += 60_000; // planning, before the first step, is no waiting
  step(0, 0.5, 0.5);
  step(1, 2, 0.5);
  step(2, 2, 0.25);
  step(3, 1, 0);
  reporter.onEvaluationStart(4, false);
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

/** A reporter whose output is kept, and the steps of a training that has no losses of its own. */
async function watch(name: string, path: string | null, options: Partial<ReporterOptions>) {
  const dataset = await loadDataset(folder, { codec: new DeviceImageCodec(device), store: ":memory:" });
  const run = path === null ? await RunFolder.create({ name, root: join(folder, "runs") }) : RunFolder.open(path);
  const printed: string[] = [];
  const stream = { write: (text: string) => void printed.push(text) };
  const codec = new DeviceImageCodec(device);
  const reporter = new Reporter({ ...{ run, dataset, codec, iterations: 100, start: 0, stream }, ...options });
  const result = (iteration: number, more: Partial<StepResult> = {}) =>
    reporter.onResult({ iteration, losses: { box: 0.5 }, rate: 0.1, failed: false, ...more });
  const lines = () => readMetrics(join(run.path, "metrics.jsonl"));
  return { reporter, run, dataset, printed, result, lines, [Symbol.dispose]: () => dataset[Symbol.dispose]() };
}

test("an epoch is a row of the table and a line of metrics, of its own steps, once their reports have come", async () => {
  let clock = 1000;
  const now = spyOn(performance, "now").mockImplementation(() => clock);
  using watched = await watch("epochs", null, { memory: () => 3 * 2 ** 30 });
  const { reporter, printed, result, lines } = watched;
  const step = (iteration: number, epoch: number, seconds: number) => {
    clock += 1000 * seconds;
    reporter.onStep(iteration, 4, seconds / 4, epoch);
  };
  for (const i of [0, 1, 2]) step(i, 0, 1);
  result(0, { losses: { box: 4 }, gradNorm: 1 });
  result(1, { losses: { box: 2 }, gradNorm: 4 });
  reporter.onEpochEnd(0, 3);
  step(3, 1, 5); // is not counted among the first epoch's images
  result(2, { losses: { box: Infinity }, gradNorm: NaN }); // a step that loss scaling has left out
  reporter.onEpochEnd(1, 4);
  step(4, 2, 0.5);
  result(3);
  reporter.onEpochEnd(2, 5);
  step(5, 3, 0.5);
  result(4); // an epoch of half a second waits for the next
  reporter.onEpochEnd(3, 6);
  result(5);
  reporter.finish();
  now.mockRestore();
  const rows = printed.filter((text) => /^ +\d+ +\d+ +[\d.]+ /.test(text));
  expect(printed.filter((text) => text.includes("gradient        lr"))).toHaveLength(1);
  expect(rows.map((row) => row.trim().split(/ +/).slice(0, 7))).toEqual([
    ["1", "3", "3", "2.5", "0.1", "5.3", "33%"],
    ["2", "4", "0.5", "NaN", "0.1", "0.8", "25%"],
  ]);
  expect(lines().filter(({ kind }) => kind === "epoch")).toMatchObject([
    { epoch: 1, iteration: 3, box: 3, gradNorm: 2.5, seconds: 2.25, imagesPerSecond: 5.3333, memory: 3 * 2 ** 30 },
    { epoch: 2, iteration: 4, box: 0.5, seconds: 5 },
  ]);
});

test("TensorBoard has the figures of metrics.jsonl, and the pictures", async () => {
  const tensorboard = new TensorBoardWriter(join(folder, "events"));
  using watched = await watch("events", null, { tensorboard, logEvery: 1 });
  const { reporter, dataset, result } = watched;
  result(0, { gradNorm: 2 });
  const detections = dataset.store.images("val2017").map(({ id, fileName }) => {
    return { imageId: id, fileName, detections: [] };
  });
  await reporter.onEvaluation(1, measure(dataset.store, "val2017", detections), detections);
  reporter.finish();
  const text = readFileSync(tensorboard.path, "latin1");
  for (const name of ["train/box", "train/gradNorm", "train/learningRate", "evaluation/AP50", "predictions", "JFIF"]) {
    expect(text).toContain(name);
  }
});

test("what cannot be written on a full disk is told of once, and training goes on", async () => {
  const path = join(folder, "full-1");
  mkdirSync(join(path, "pictures"), { recursive: true });
  for (const name of ["metrics.jsonl", "log.txt"]) symlinkSync("/dev/full", join(path, name));
  const events = join(folder, "full-events");
  const tensorboard = new TensorBoardWriter(events);
  using watched = await watch("full", path, { tensorboard, logEvery: 1 });
  const { reporter, printed, result } = watched;
  tensorboard.close(); // as good as full
  for (const iteration of [0, 1, 2]) result(iteration);
  reporter.print("a line");
  reporter.onCheckpoint("checkpoint");
  reporter.onCheckpointError(new Error("no space"), 3);
  reporter.finish();
  expect(printed.filter((text) => text.startsWith("warning: ") || text.includes("a line"))).toEqual([
    expect.stringMatching(/full-1\/metrics\.jsonl: cannot write: no space left .*; training goes on\n$/),
    expect.stringMatching(/full-events.*cannot write.*; training goes on\n$/),
    "a line\n",
    expect.stringMatching(/full-1\/log\.txt: cannot write: no space left .*; training goes on\n$/),
    "warning: no checkpoint of iteration 3: no space; training goes on\n",
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

describe("what an evaluation found on each image is kept", () => {
  const messages = async (path: string) => {
    await using reader = await LiveFileReader.open(path);
    const all: SampleMessage[] = [];
    for await (const { type, value } of reader.messages()) if (type === "sample") all.push(value);
    return all;
  };

  test("beside what is known, with its loss, images without detections too", async () => {
    using watched = await watch("kept", null, {});
    const { reporter, run, dataset } = watched;
    const [first, ...rest] = dataset.store.images("val2017", { usable: true });
    const found = [{ box: [1, 2, 30, 40] as [number, number, number, number], score: 0.5, label: 1 }];
    const detections = [{ imageId: first!.id, fileName: first!.fileName, detections: found }];
    await reporter.onEvaluation(7, measure(dataset.store, "val2017", detections), detections);
    reporter.finish();
    const kept = await messages(run.evaluationPath(7));
    expect(kept.map(({ predictions: { name, imageId } }) => [name, imageId])).toEqual(
      [first!, ...rest].map(({ key, id }) => [key, id]),
    );
    const { predictions, truth, loss, split, iteration } = kept[0]!;
    expect([[...predictions.boxes], [...predictions.scores], [...predictions.labels]]).toEqual([
      ...[[1, 2, 30, 40], [0.5], [1]],
    ]);
    const known = dataset.store.annotationsOf(first!.id);
    expect([...truth.ids]).toEqual(known.map(({ id }) => id));
    expect([...truth.boxes].slice(0, 2)).toEqual([...known[0]!.bbox].slice(0, 2));
    expect([split, iteration, loss]).toEqual(["val2017", 7, detectionLoss(predictions, truth)]);
    expect(kept.every((image) => image.loss! > 0)).toBe(true);
  });

  test("of the images that were looked at alone, where those are measured; the oldest go, the latest stays", async () => {
    using watched = await watch("some", null, {});
    const { run, dataset } = watched;
    const [first] = dataset.store.images("val2017", { usable: true });
    const detections = [{ imageId: first!.id, fileName: first!.fileName, detections: [] }];
    const split = { split: "val2017", partial: true };
    const files = (maxBytes: number) => new EvaluationFiles(run, dataset, split, maxBytes);
    await files(1e6).write(1, detections);
    expect(await messages(run.evaluationPath(1))).toHaveLength(1);
    await files(1e6).write(2, detections);
    const { size } = statSync(run.evaluationPath(1));
    await files(2 * size).write(3, detections);
    expect(readdirSync(run.evaluationsFolder)).toEqual(["evaluation-00000002.dlvs", "evaluation-00000003.dlvs"]);
    await files(1).write(4, detections);
    expect(readdirSync(run.evaluationsFolder)).toEqual(["evaluation-00000004.dlvs"]);
  });

  test("where it can be written; else training goes on, and says why", async () => {
    using watched = await watch("blocked", null, {});
    const { reporter, run, dataset, printed } = watched;
    writeFileSync(run.evaluationsFolder, "no folder");
    await reporter.onEvaluation(1, measure(dataset.store, "val2017", []), []);
    reporter.finish();
    expect(printed.filter((text) => text.startsWith("warning: "))).toEqual([
      expect.stringMatching(/blocked-1\/evaluations.*; training goes on\n$/),
    ]);
  });
});

test("those who listen are told of each class of an evaluation", async () => {
  const heard: [string, EvaluatedClasses | undefined][] = [];
  const also = {
    line: ({ kind }: MetricsLine, classes?: EvaluatedClasses) => void heard.push([kind, classes]),
    text: () => {},
  };
  using watched = await watch("told", null, { also });
  const { reporter, dataset, result } = watched;
  result(0);
  const detections = dataset.store.images("val2017", { usable: true }).map(({ id, fileName }): ImageDetections => {
    const objects = dataset.store.annotationsOf(id).map(({ bbox: [x, y, w, h] }) => {
      return { box: [x, y, x + w, y + h] as [number, number, number, number], score: 0.75, label: 0 };
    });
    return { imageId: id, fileName, detections: objects };
  });
  await reporter.onEvaluation(1, measure(dataset.store, "val2017", detections), detections);
  reporter.finish();
  expect(heard.map(([kind, classes]) => [kind, classes !== undefined])).toEqual([
    ["train", false],
    ["evaluation", true],
  ]);
  const { classes, confusion } = heard[1]![1]!;
  const [red, green] = classes.map(({ objects }) => objects) as [number, number];
  expect(classes.map(({ category, ap }) => [category, ap > 0])).toEqual([
    ["red", true],
    ["green", false],
  ]);
  expect([...confusion!]).toEqual([red, 0, 0, green, 0, 0, 0, 0, 0]);
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

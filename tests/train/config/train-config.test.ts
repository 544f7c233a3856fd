/** Configurations with their defaults, schedules of plain data, and the published schema. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  chained,
  checkContradictions,
  constantRate,
  cosine,
  cosineRestarts,
  exponential,
  exponentialWarmup,
  makeSchedule,
  multiStep,
  oneCycle,
  parseTrainArguments,
  polynomial,
  resolveConfig,
  type Schedule,
  scheduleTable,
  stepped,
  type TrainFacts,
  trainerOptions,
  trainHelp,
  trainSchema,
  trainSettings,
  warmup,
} from "../../../lib/train";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "dlfs-config-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

const facts: TrainFacts = { data: "/coco", backend: "cuda", bf16: true, images: 8000, classes: ["a", "b"] };
const resolve = (argv: string[], more: Partial<TrainFacts> = {}) =>
  resolveConfig(parseTrainArguments(argv), { ...facts, ...more });

describe("defaults", () => {
  test("follow from data and device", () => {
    expect(resolve([])).toMatchObject({
      ...{ iterations: 6000, batch: 16, size: [640, 640], precision: "bf16", learningRate: 0.02, clipNorm: null },
      ...{ evaluateEvery: 1200, checkpointEvery: 600, warmup: { kind: "linear", iterations: 500, factor: 0.001 } },
      ...{ ema: null, groups: [], momentum: 0.9, scaleJitter: true, model: { name: "compact", width: 48, classes: 2 } },
    });
    expect(resolve([], { data: "demo", backend: "cpu", bf16: false })).toMatchObject({
      ...{ iterations: 1500, batch: 8, size: [192, 192], precision: "fp32", learningRate: 0.04, scaleJitter: false },
      ...{ warmup: { iterations: 150 }, model: { width: 16, focal: { alpha: 0.5, gamma: 1.5 } } },
    });
    expect(resolve(["--model", "retinanet_resnet50_fpn", "--batch", "4", "--accumulate", "8"])).toMatchObject({
      ...{ learningRate: 0.02, clipNorm: 10, iterations: 3000 },
      model: { name: "retinanet", backbone: "resnet50", norm: "batch", trainableLayers: 5 },
    });
    expect(resolve(["--model", "retinanet_resnet50_fpn", "--weights", "w.pth"]).model).toMatchObject({
      ...{ norm: "frozen", trainableLayers: 3 },
    });
    expect(resolve(["--epochs", "3"]).iterations).toBe(1500);
    expect(resolve(["--schedule", "oneCycle"]).warmup).toBeNull();
    expect(resolve([], { packedSize: [96, 128] }).size).toEqual([96, 128]);
    expect(() => resolve(["--multi-scale", "704"])).toThrow("--multi-scale: expected at most 640, the smaller side");
  });

  test("stand in for what a run of an earlier version did not write down", () => {
    const run = join(folder, "run");
    mkdirSync(run);
    // As it was written before there were settings for these.
    const earlier = {
      ...{ data: "/coco", trainSplit: "train2017", valSplit: "val2017", iterations: 900, batch: 4, size: [64, 96] },
      ...{ precision: "f32", backend: "cpu", seed: 3, deterministic: true, recompute: 4096, learningRate: 0.5 },
      ...{ flip: "both", clipNorm: null, sampler: "shuffle", groupByAspect: false, scaleJitter: false, classes: ["a"] },
      ...{ preprocessing: [{ op: "resize" }], model: { name: "retinanet", backbone: "resnet18", classes: 1 } },
    };
    writeFileSync(join(run, "config.json"), JSON.stringify(earlier));
    const config = resolve(["--resume", run], { backend: "cpu", classes: ["a"] });
    expect(config).toMatchObject({ ...earlier, precision: "fp32" });
    expect(config).toMatchObject({ momentum: 0.9, ema: null, augment: "default", evaluateEvery: 180 });
    const rates = trainerOptions(config).optimizer.schedule;
    expect(scheduleTable(rates, 900)).toEqual(scheduleTable(warmup(multiStep(0.5, [630, 810]), 90), 900));
    const longer = resolve(["--resume", run, "--iterations", "1800", "--lr", "0.1"], {
      backend: "cpu",
      classes: ["a"],
    });
    expect([longer.iterations, longer.learningRate, longer.batch]).toEqual([1800, 0.1, 4]);
  });
});

test("precisions go by the names of policies and of dtypes, and loss scaling by its own settings", () => {
  const scalingOf = (...argv: string[]) => trainerOptions(resolve(argv)).optimizer.lossScaling;
  expect(["f16", "fp16", "tf32", "bf16"].map((name) => resolve(["--precision", name]).precision)).toEqual([
    ...(["fp16", "fp16", "tf32", "bf16"] as const),
  ]);
  expect(() => resolve(["--precision", "half"])).toThrow(
    "--precision: expected one of fp32, tf32, bf16, fp16, f32, f16",
  );
  expect(scalingOf("--precision", "fp16")).toBeUndefined(); // the optimizer's default
  expect(scalingOf("--loss-scaling", "none")).toBe(false);
  const rule = { initial: 1024, growth: 2, backoff: 0.5, interval: 2000, least: 1, patience: 20 };
  expect(scalingOf("lossScaling.initial=1024")).toEqual(rule);
});

test("a batch that memory decides scales the rate in proportion, a given one too", () => {
  const ratesOf = (...argv: string[]) => {
    const { batch, learningRate } = resolve(argv, { autoBatch: 64 });
    return [batch, learningRate];
  };
  expect(ratesOf("--batch", "auto")).toEqual([64, 0.08]);
  expect(ratesOf("--batch", "auto", "--lr", "0.01")).toEqual([64, 0.04]);
  expect(ratesOf("--batch", "auto", "--accumulate", "2", "--lr", "0.01")).toEqual([64, 0.08]);
  expect(ratesOf("--batch", "32", "--lr", "0.01")).toEqual([32, 0.01]);
  expect(resolve(["--batch", "auto", "--epochs", "4"], { autoBatch: 64 }).iterations).toBe(500);
  expect(() => resolve(["--batch", "0"])).toThrow("--batch: expected an integer from 1, or auto, got");
});

test("what is frozen is layers by their paths, or with the iteration, or share of all, that they train from", () => {
  const of = (...argv: string[]) => trainerOptions(resolve(["--iterations", "1000", ...argv])).freeze;
  expect(of()).toEqual([]);
  expect(of("--freeze", "stem,backbone.body.layer[12]")).toEqual([
    { match: "stem" },
    { match: "backbone.body.layer[12]" },
  ]);
  expect(of("freeze=[backbone.body, {match: fpn, until: 0.25}, {match: head, until: 40}]")).toEqual([
    { match: "backbone.body" },
    { match: "fpn", until: 250 },
    { match: "head", until: 40 },
  ]);
  expect(() => of("freeze=[{until: 40}]")).toThrow("freeze[0].match: expected layers' paths");
});

test("what a configuration says reaches the trainer", () => {
  const argv = ["momentum=0.8", "--nesterov", "weightDecay=0.001", "groups=[{match: ^a, rate: 0.1}]", "clipValue=0.5"];
  argv.push("--clip-norm", "3", "--ema", "0.9", "--plateau", "AP50", "--patience", "4", "--accumulate", "2");
  argv.push(
    "--keep",
    "5",
    "--keep-every",
    "1200",
    "--evaluate-every",
    "70",
    "--no-decay-biases",
    "--recompute",
    "1GiB",
  );
  const { optimizer, ...options } = trainerOptions(resolve(argv));
  expect(optimizer).toMatchObject({ momentum: 0.8, nesterov: true, weightDecay: 0.001, clipValue: 0.5, clipNorm: 3 });
  expect(optimizer.groups?.map(({ match, ...rest }) => [match instanceof RegExp && match.source, rest])).toEqual([
    ["^a", { rate: 0.1 }],
    [false, { weightDecay: 0 }],
  ]);
  expect(options).toMatchObject({
    ...{ ema: { decay: 0.9, warmup: 2000 }, patience: 4, accumulate: 2, evaluateEvery: 70, recompute: 2 ** 30 },
    ...{ plateau: { metric: "AP50", factor: 0.1, better: "larger" }, keep: { keepLast: 5, keepEvery: 1200 } },
  });
});

describe("schedules of plain data are those of the library", () => {
  const cases: [schedule: string, warm: string, expected: Schedule][] = [
    ["constant", "none", constantRate(0.4)],
    ["multiStep", "none", multiStep(0.4, [140, 180])],
    ["{kind: multiStep, milestones: [50, 0.5], gamma: 0.3}", "linear", warmup(multiStep(0.4, [50, 100], 0.3), 20)],
    ["{kind: step, every: 30}", "{iterations: 7, factor: 0.1}", warmup(stepped(0.4, 30), 7, 0.1)],
    ["{kind: exponential, gamma: 0.99}", "none", exponential(0.4, 0.99)],
    ["polynomial", "{kind: exponential, iterations: 0.05}", exponentialWarmup(polynomial(0.4, 200), 10)],
    ["{kind: cosine, iterations: 0.5, least: 0.01}", "none", cosine(0.4, 100, 0.01)],
    ["{kind: cosineRestarts, first: 25, factor: 2}", "none", cosineRestarts(0.4, 25, 2)],
    ["{kind: oneCycle, rise: 0.2, anneal: linear}", "none", oneCycle(0.4, 200, { rise: 0.2, anneal: "linear" })],
    [
      "{kind: chained, parts: [{start: 0, kind: constant}, {start: 0.25, kind: cosine, rate: 0.2}, {start: 150}]}",
      "none",
      chained([
        [0, constantRate(0.4)],
        [50, cosine(0.2, 100)],
        [150, multiStep(0.4, [35, 45])],
      ]),
    ],
  ];
  test.each(cases)("%s with warm-up %s", (schedule, warm, expected) => {
    const settings = parseTrainArguments(["--schedule", schedule, "--warmup", warm]).settings;
    const made = makeSchedule(settings.schedule!, settings.warmup!, 0.4, 200);
    expect(scheduleTable(made, 200)).toEqual(scheduleTable(expected, 200));
  });
});

test("the published schema is the table's, and the help has all of it", async () => {
  const path = fileURLToPath(new URL("../../../schemas/train.schema.json", import.meta.url));
  const published = await Bun.file(path).json();
  if (JSON.stringify(published) !== JSON.stringify(trainSchema())) {
    throw new Error("schemas/train.schema.json is out of date: bun run scripts/generate-schemas.ts");
  }
  const help = trainHelp([]);
  for (const [name, setting] of Object.entries(trainSettings)) {
    expect(published.properties[name].description).toStartWith(setting.help);
    const option = "option" in setting ? setting.option : name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
    expect(help).toMatch(new RegExp(`^ {2}--(no-)?${option}\\b`, "m"));
  }
  expect(Math.max(...help.split("\n").map((line) => line.length))).toBeLessThanOrEqual(124);
});

test("the configuration that a run saves, defaults and all, is taken by another one", () => {
  const config = resolveConfig(parseTrainArguments(["--data", "/coco"]), facts);
  const file = join(folder, "saved.json");
  writeFileSync(file, JSON.stringify(config));
  const again = parseTrainArguments(["--config", file]);
  checkContradictions(again);
  expect(resolveConfig(again, facts)).toEqual(config);
});

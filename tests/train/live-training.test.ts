/** A training that is corrected while it goes on: the same bytes when it is done again, and when it goes on from a checkpoint. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cp, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type ControlCommand, encodeMessage, type LabelMessage, type Message, readCheckpoint } from "../../lib/formats";
import { type Answer, askPredictions, type FoundBoxes, Journal, LiveFileReader } from "../../lib/live";
import { parseTrainArguments, type TrainerObserver, Training, type TrainingOutcome } from "../../lib/train";
import { testDevice } from "../support/device";
import { readEventFile } from "../support/event-file";
import { writeTinyDataset } from "../support/tiny-dataset";

let folder = "";
let runs = "";
const cache = process.env.DLFS_CACHE;

beforeAll(async () => {
  folder = await writeTinyDataset(testDevice(), 8);
  runs = join(folder, "runs");
  process.env.DLFS_CACHE = join(folder, "cache");
});
afterAll(async () => {
  if (cache === undefined) delete process.env.DLFS_CACHE;
  else process.env.DLFS_CACHE = cache;
  await rm(folder, { recursive: true, force: true });
});

const compact = '{"name":"compact","width":4,"headConvs":1}';
const settings = () => [
  ...["--data", folder, "--size", "64", "--batch", "2", "--iterations", "24", "--precision", "fp32", "--seed", "3"],
  ...["--checkpoint-every", "6", "--evaluate-every", "24", "--keep", "9", "--deterministic", "--out", runs],
  ...["--backend", testDevice().backend, `model=${compact}`, "logEvery=1"],
];

interface Trained {
  outcome: TrainingOutcome;
  /** The run's folder. */
  path: string;
  weights: Map<string, string>;
}

/** A training of 24 steps, told things by `tell` before some of them. */
async function train(
  argv: readonly string[],
  tell?: (iteration: number, url: string) => Promise<void> | undefined,
  iterations: number[] = [],
  lines: string[] = [],
): Promise<Trained> {
  let url = "";
  const log = (line: string) => {
    lines.push(line);
    url = /^live: (\S+)$/.exec(line)?.[1] ?? url;
  };
  const observer: TrainerObserver = {
    onStepStart: (iteration) => {
      iterations.push(iteration);
      return tell?.(iteration, url);
    },
  };
  await using training = await Training.prepare(parseTrainArguments([...argv]), {
    ...{ command: "dlfs train", log },
    observers: [observer],
  });
  const outcome = await training.run();
  await using checkpoint = await readCheckpoint(outcome.checkpoint as string);
  const weights = new Map<string, string>();
  for (const [name] of checkpoint.tensors) weights.set(name, Bun.hash(await checkpoint.read(name)).toString(16));
  return { outcome, path: training.runFolder.path, weights };
}

async function post(url: string, ...messages: Message[]): Promise<Answer[]> {
  const { origin, searchParams } = new URL(url);
  const headers = { Authorization: `Bearer ${searchParams.get("token")}` };
  const body = Buffer.concat(messages.map(encodeMessage));
  const answer = await fetch(`${origin}/messages`, { method: "POST", headers, body });
  return ((await answer.json()) as { answers: Answer[] }).answers;
}

const labels = (
  id: string,
  image: number,
  box: LabelMessage["edits"][0] | null,
  more: Partial<LabelMessage> = {},
): Message => ({
  type: "labels",
  value: { id, author: "ada", time: 1, image: `train2017/${image}.jpg`, edits: box ? [box] : [], ...more },
});
const control = (id: string, command: ControlCommand, value?: number): Message => ({
  type: "control",
  value: { id, author: "ada", time: 1, command, ...(value !== undefined && { value }) },
});

describe("a live training", () => {
  let frozen: Trained;
  let live: Trained;
  const answers: Answer[] = [];

  beforeAll(async () => {
    frozen = await train(settings());
    const waiting: Promise<unknown>[] = [];
    live = await train([...settings(), "--live", "--tensorboard"], (iteration, url) => {
      // Not waited for before the step: what is told comes in between later ones, whenever that is.
      const tell = (...messages: Message[]) =>
        waiting.push(post(url, ...messages).then((answer) => answers.push(...answer)));
      const category = (i: number) => (i % 2 ? "red" : "green");
      const add = (i: number) => ({ action: "add", category: category(i), box: [i, 3, i + 20, 30] }) as const;
      if (iteration === 3) tell(labels("a", 1, add(1)), labels("b", 2, null, { replace: true }));
      if (iteration === 7) tell(labels("c", 3, add(3), { atOnce: true, weight: 3 }), control("d", "learningRate", 0.5));
      if (iteration === 9) tell(labels("x", 99, add(3)));
      if (iteration === 14) tell(labels("e", 1, { action: "delete", annotationId: 1 }), control("f", "save"));
      // The steps are short: those that come later wait for what was told to have come.
      return iteration % 2 === 1 ? Bun.sleep(15) : undefined;
    });
    await Promise.all(waiting);
  });

  test("takes in what it is told, and learns something else by it", () => {
    expect(answers.filter(({ accepted }) => accepted).length).toBe(6);
    expect(answers.filter(({ accepted }) => !accepted)).toMatchObject([
      { reason: 'image: "train2017/99.jpg" is none of "train2017", and the message brings none' },
    ]);
    expect(live.weights).not.toEqual(frozen.weights);
    expect(live.outcome.iteration).toBe(24);
  });

  test("is done again to the byte by its journal", async () => {
    const again = await train([...settings(), "--replay", live.path]);
    expect(again.weights).toEqual(live.weights);
    const entries = await Journal.read(join(live.path, "live/journal.dlvs"));
    expect(entries.map(({ message }) => message)).toEqual(["a", "b", "c", "d", "e", "f"]);
    expect(await Journal.read(join(again.path, "live/journal.dlvs"))).toEqual(entries);
  });

  for (const iteration of [6, 12, 18]) {
    test(`that was killed goes on from step ${iteration} to the same bytes`, async () => {
      const copy = join(runs, `killed-${iteration}`);
      await cp(live.path, copy, { recursive: true });
      for (const name of await readdir(join(copy, "checkpoints"))) {
        if (Number(/\d+/.exec(name)?.[0]) > iteration) await rm(join(copy, "checkpoints", name));
      }
      const iterations: number[] = [];
      const resumed = await train(["--resume", copy], undefined, iterations);
      expect(iterations[0]).toBe(iteration);
      expect(resumed.weights).toEqual(live.weights);
    });
  }

  test("shows all figures in TensorBoard, beside histograms and pictures, and what it took in", () => {
    const [file, ...others] = [...new Bun.Glob("tensorboard/events.*").scanSync({ cwd: live.path, absolute: true })];
    expect(others).toEqual([]);
    const values = readEventFile(file!);
    const steps = (name: string) => values.filter((value) => value.name === name).map(({ step }) => step);
    expect(steps("train/learningRate")).toEqual(Array.from({ length: 24 }, (_, i) => i + 1));
    expect(steps("evaluation/AP")).toEqual([24]);
    expect(steps("predictions")).toEqual([24]);
    expect(values.some(({ name }) => name.startsWith("weights/"))).toBe(true);
    expect(values.filter(({ name }) => name === "live/accepted").at(-1)?.value).toBe(6);
    expect(values.at(-1)).toMatchObject({ name: "live/ended", value: "done" });
  });

  test("says all of it in its run folder", async () => {
    await using reader = await LiveFileReader.open(join(live.path, "live/live.dlvs"));
    const messages = await Array.fromAsync(reader.messages());
    const events = messages.flatMap(({ type, value }) => (type === "event" ? [value] : []));
    expect(events[0]).toMatchObject({ kind: "started", classes: ["red", "green"] });
    expect(events.at(-1)).toMatchObject({ kind: "ended", text: "done", iteration: 24 });
    const told = events.flatMap((event) => (event.kind === "accepted" || event.kind === "refused" ? [event.id] : []));
    expect(told.sort()).toEqual(["a", "b", "c", "d", "e", "f", "x"]);
    const steps = messages.flatMap(({ type, value }) => (type === "metrics" && value.what === "train" ? [value] : []));
    expect(steps.map(({ iteration }) => iteration)).toEqual(Array.from({ length: 24 }, (_, i) => i + 1));
    const evaluations = messages.flatMap(({ type, value }) =>
      type === "metrics" && value.what === "evaluation" ? [value] : [],
    );
    const { classes, confusion, values } = evaluations[0]!;
    expect(evaluations.map(({ iteration }) => iteration)).toEqual([24]);
    expect(classes!.map(({ category, ap50, precision }) => [category, ap50 >= 0, precision.length])).toEqual([
      ["red", true, 101],
      ["green", true, 101],
    ]);
    expect((classes![0]!.ap + classes![1]!.ap) / 2).toBeCloseTo(values.AP!, 12);
    // Each object is in its class's row, found or not.
    const rows = [0, 1].map((row) => [0, 1, 2].reduce((sum, column) => sum + confusion![3 * row + column]!, 0));
    expect(rows).toEqual(classes!.map(({ objects }) => objects));
    const samples = messages.flatMap(({ type, value }) => (type === "sample" ? [value] : []));
    expect(samples.length).toBe(8);
    expect(samples[0]!.thumbnail!.length).toBeGreaterThan(100);
    expect(samples[0]!.truth.labels.length).toBeGreaterThan(0);
    expect(samples.every(({ loss }) => loss! > 0)).toBe(true);
  });
});

test("what it makes of images is told between steps, with the weights that are evaluated, and changes nothing", async () => {
  const averaged = [...settings(), "--ema", "0.9"];
  const plain = await train(averaged);
  const asked: Promise<FoundBoxes>[] = [];
  const wrong: Promise<string>[] = [];
  const ask = (url: string, image: string) =>
    askPredictions({ url, token: new URL(url).searchParams.get("token") as string }, { image, split: "val2017" });
  const live = await train([...averaged, "--live"], (iteration, url) => {
    if (iteration % 6 === 3) asked.push(ask(url, `val2017/${1 + (iteration % 8)}.jpg`));
    if (iteration === 4) wrong.push(ask(url, "val2017/99.jpg").then(String, ({ message }: Error) => message));
    return Bun.sleep(15);
  });
  expect(live.weights).toEqual(plain.weights);
  const found = await Promise.all(asked);
  expect(found.map(({ iteration }) => iteration).every((at, i) => at > 6 * i + 3)).toBe(true);
  for (const { boxes } of found) {
    for (const { box, score } of boxes) expect(score > 0 && Math.max(...box) <= 64).toBe(true);
  }
  expect(await Promise.all(wrong)).toEqual([expect.stringContaining('the data set has no "val2017/99.jpg"')]);
});

test("what others have done to the data since is told of, and nothing is done again without saying so", async () => {
  const tellOne = (id: string, image: number) => (iteration: number, url: string) =>
    iteration === 3
      ? void post(url, labels(id, image, { action: "add", category: "red", box: [1, 1, 30, 30] }))
      : Bun.sleep(5);
  const first = await train([...settings(), "--live"], tellOne("first", 5));
  await train([...settings(), "--live"], tellOne("second", 6));
  await expect(train([...settings(), "--replay", first.path])).rejects.toThrow(
    new RegExp(`replay: the data set has been changed by others than ${first.path} since that began: 8 images with`),
  );
  await rm(join(first.path, "checkpoints", "checkpoint-00000024.dlck"));
  const lines: string[] = [];
  await train(["--resume", first.path], undefined, [], lines);
  const warning = `warning: the data set has been changed by others than ${first.path}`;
  expect(lines.filter((line) => line.startsWith(warning) && line.endsWith("again to the same bytes"))).toHaveLength(1);
});

test("a stop that it is told ends a training with its state saved, also while it pauses", async () => {
  const { outcome, path } = await train([...settings(), "--live"], (iteration, url) => {
    if (iteration !== 5) return undefined;
    void post(url, control("p", "pause")).then(() => post(url, control("s", "stop")));
    return Bun.sleep(30);
  });
  expect(outcome.interrupted).toBe(true);
  expect(outcome.iteration).toBeLessThan(24);
  const entries = await Journal.read(join(path, "live/journal.dlvs"));
  expect(entries.map(({ content }) => "command" in content && content.command)).toEqual(["pause", "stop"]);
});

describe("what cannot be had is said before anything is opened", () => {
  for (const [what, argv, expected] of [
    ["a port without --live", ["--live-port", "80"], "--live-port: needs --live or --dashboard"],
    ["a run without a journal", ["--replay", "nowhere"], "is no run that has a journal, and no journal"],
  ] as const) {
    test(what, () => {
      expect(train([...settings(), ...argv])).rejects.toThrow(expected);
    });
  }
});

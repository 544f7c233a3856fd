/** Evaluations of a copy of the weights while training goes on: the same figures, the same training, nothing lost by a stop. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { renameSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type CheckpointMetadata, CheckpointStore, readCheckpoint } from "../../lib/formats";
import type { CocoStats } from "../../lib/metrics";
import type { TrainerObserver } from "../../lib/train";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { errorIn, type TinyOptions, type TinyResult, trainTiny } from "../support/tiny-training";

const device = testDevice({ deterministic: true });
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(device);
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

interface Watched extends TinyResult {
  /** Figures, and the detections as text, by the steps done before. */
  found: Map<number, { stats: CocoStats; detections: string }>;
  /** What happened, in order. */
  notes: string[];
}

async function train(options: TinyOptions, more: TrainerObserver = {}): Promise<Watched> {
  const found: Watched["found"] = new Map();
  const notes: string[] = [];
  const observer: TrainerObserver = {
    onStepStart: (iteration) => void notes.push(`step ${iteration}`),
    onEvaluationStart: (iteration, overlaps) => void notes.push(`start ${iteration} ${overlaps}`),
    onEvaluation: (iteration, { stats }, detections) => {
      notes.push(`evaluation ${iteration}`);
      found.set(iteration, { stats, detections: JSON.stringify(detections) });
    },
  };
  const result = await trainTiny(device, folder, { ...options, more: { ...options.more, observer: [observer, more] } });
  return { ...result, found, notes };
}

function expectSameWeights(a: TinyResult, b: TinyResult): void {
  for (const [name, bytes] of a.weights) {
    expect(Buffer.compare(bytes, b.weights.get(name)!), `${name} differs`).toBe(0);
  }
}

/** What a checkpoint says of evaluations, without their times. */
function evaluationsOf({ history, best, state }: CheckpointMetadata) {
  const done = history.map(({ kind, iteration, epoch, values }) => ({ kind, iteration, epoch, values }));
  return { done, best, due: state.evaluation === "due" };
}

test.each([undefined, { decay: 0.9, warmup: 0 }])(
  "figures and weights are those of a training that waits, averages: %p",
  async (ema) => {
    // A large rate, so that the weights of another step would give other figures.
    const more = { evaluateEvery: 4, ema, optimizer: { schedule: () => 0.05 } };
    const waits = await train({ iterations: 14, evaluate: true, more });
    const beside = await train({ iterations: 14, evaluate: "beside", more });
    expect([...beside.found]).toEqual([...waits.found]);
    expect([...beside.found.keys()]).toEqual([4, 8, 12, 14]);
    expect(new Set([...waits.found.values()].map(({ detections }) => detections)).size).toBe(4);
    expect(beside.outcome.evaluation?.result.stats).toEqual(waits.outcome.evaluation!.result.stats);
    expectSameWeights(waits, beside);
    const at = (note: string) => beside.notes.indexOf(note);
    expect(at("start 4 true")).toBeGreaterThan(0);
    expect(at("step 4")).toBeLessThan(at("evaluation 4"));
    expect(waits.notes.indexOf("evaluation 4")).toBeLessThan(waits.notes.indexOf("step 4"));
  },
);

test("a checkpoint knows all evaluations before it, and one of its own state is done again where training goes on", async () => {
  const checkpointFolder = join(folder, "history");
  const more = { evaluateEvery: 4, checkpointEvery: 6, checkpointFolder, keep: { keepLast: 9 } };
  const whole = await train({ iterations: 26, evaluate: "beside", more });
  const seen = new Map<number, ReturnType<typeof evaluationsOf>>();
  for (const { path, iteration } of await new CheckpointStore(checkpointFolder).list()) {
    await using checkpoint = await readCheckpoint(path);
    seen.set(iteration, evaluationsOf(checkpoint.metadata));
  }
  const known = [...seen].map(([iteration, { done, due }]) => [iteration, done.map((entry) => entry.iteration), due]);
  expect(known).toEqual([
    [6, [4], false],
    [12, [4, 8], true],
    [18, [4, 8, 12, 16], false],
    [24, [4, 8, 12, 16, 20], true],
    [26, [4, 8, 12, 16, 20, 24, 26], false],
  ]);

  const again = { ...more, checkpointFolder: join(folder, "history-again") };
  const resume = join(checkpointFolder, "checkpoint-00000012.dlck");
  for (const evaluate of ["beside", true] as const) {
    const rest = await train({ iterations: 26, evaluate, resume, more: again });
    expect([...rest.found]).toEqual([...whole.found].filter(([iteration]) => iteration >= 12));
    expect(rest.notes[0]).toBe(`start 12 ${evaluate === "beside"}`);
    expectSameWeights(whole, rest);
    await using last = await readCheckpoint(rest.outcome.checkpoint!);
    expect(evaluationsOf(last.metadata)).toEqual(seen.get(26)!);
    await rm(again.checkpointFolder, { recursive: true });
  }
});

test("a training that is stopped does not wait for an evaluation, and says which it gave up", async () => {
  const stop = new AbortController();
  const more = { evaluateEvery: 4, checkpointFolder: join(folder, "stopped"), signal: stop.signal };
  const slow = { onStepStart: (iteration: number) => void (iteration === 4 && stop.abort()) };
  const stopped = await train({ iterations: 20, evaluate: "beside", more }, slow);
  expect(stopped.outcome).toMatchObject({ iteration: 5, interrupted: true, givenUp: 4, evaluation: null });
  await using checkpoint = await readCheckpoint(stopped.outcome.checkpoint!);
  expect(evaluationsOf(checkpoint.metadata)).toMatchObject({ done: [], due: false });

  // One of the very state that is saved is only put off.
  const early = new AbortController();
  const once = { ...more, checkpointFolder: join(folder, "put-off"), signal: early.signal };
  const put = await train(
    { iterations: 20, evaluate: "beside", more: once },
    { onEvaluationStart: () => early.abort() },
  );
  expect(put.outcome).toMatchObject({ iteration: 4, interrupted: true });
  expect(put.outcome.givenUp).toBeUndefined();
  const rest = await train({
    iterations: 6,
    evaluate: "beside",
    resume: put.outcome.checkpoint!,
    more: { evaluateEvery: 4 },
  });
  expect([...rest.found.keys()]).toEqual([4, 6]);
});

test("what goes wrong in it ends the training with the state of the last step saved", async () => {
  const [val, away] = [join(folder, "val2017"), join(folder, "val-away")];
  const more = { evaluateEvery: 4, checkpointFolder: join(folder, "broken") };
  const options = { iterations: 400, evaluate: "beside" as const, evaluation: { failures: "stop" as const }, more };
  const error = await errorIn(train(options, { onEvaluationStart: () => renameSync(val, away) }));
  renameSync(away, val);
  expect(error.message).toMatch(/: no such file.*; training stopped after iteration \d+, its state is saved in /);
});

test("plateau and patience cannot do with a result that comes later", async () => {
  for (const more of [{ plateau: {} }, { patience: 3 }]) {
    const error = await errorIn(train({ iterations: 4, evaluate: "beside", more }));
    expect(error.message).toStartWith("Trainer: plateau and patience need an evaluation's result before the next step");
  }
});

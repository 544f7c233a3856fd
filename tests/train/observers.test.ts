/** Users' code at each point of a training: when it is called, that it is waited for, and what its errors do. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { readCheckpoint } from "../../lib/formats";
import type { TrainerObserver } from "../../lib/train";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { errorIn, type TinyOptions, trainTiny } from "../support/tiny-training";

const device = testDevice({ deterministic: true });
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(device); // 8 images: 4 steps of 2 an epoch
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

const train = (options: TinyOptions) => trainTiny(device, folder, options);

/** Notes each call with its numbers. */
function listener(notes: string[]): TrainerObserver {
  const note =
    (name: string) =>
    (...args: unknown[]) => {
      const [first, second] = args;
      const shown = typeof first === "object" ? [(first as { iteration: number }).iteration] : [first, second];
      notes.push([name, ...shown.filter((value) => typeof value === "number")].join(" "));
    };
  return {
    onEpochStart: note("epoch start"),
    onEpochEnd: note("epoch end"),
    onStepStart: note("step start"),
    onStep: (iteration, images, wait, epoch) => {
      expect(wait).toBeGreaterThanOrEqual(0);
      notes.push(`step ${iteration} ${images} in ${epoch}`);
    },
    onResult: note("result"),
    onEvaluationStart: note("evaluation start"),
    onEvaluation: note("evaluation"),
    onCheckpointStart: note("checkpoint start"),
    onCheckpoint: (path, iteration) => void notes.push(`checkpoint ${path.slice(-6, -5)} ${iteration}`),
  };
}

test("each point is told in its order", async () => {
  const notes: string[] = [];
  const more = { evaluateEvery: 4, checkpointEvery: 5, checkpointFolder: join(folder, "order") };
  await train({ iterations: 6, evaluate: true, more: { ...more, observer: listener(notes) } });
  const without = (...names: string[]) => notes.filter((note) => !names.some((name) => note.startsWith(name)));
  // Reports and written checkpoints come when they come.
  expect(without("result", "checkpoint 5")).toEqual([
    ...["epoch start 0 0", "step start 0", "step 0 2 in 0", "step start 1", "step 1 2 in 0"],
    ...["step start 2", "step 2 2 in 0", "step start 3", "step 3 2 in 0", "epoch end 0 4"],
    ...["evaluation start 4", "evaluation 4"],
    ...["epoch start 1 4", "step start 4", "step 4 2 in 1", "checkpoint start 5", "step start 5", "step 5 2 in 1"],
    ...["evaluation start 6", "evaluation 6", "checkpoint start 6", "checkpoint 6 6"],
  ]);
  expect(notes.filter((note) => note.startsWith("result"))).toEqual([0, 1, 2, 3, 4, 5].map((i) => `result ${i}`));
  const at = (note: string) => notes.indexOf(note);
  expect(at("result 3")).toBeLessThan(at("evaluation start 4"));
  expect(at("checkpoint 5 5")).toBeGreaterThan(at("checkpoint start 5"));

  // Going on in the middle of an epoch begins the rest of it.
  const rest: string[] = [];
  const resume = join(folder, "order", "checkpoint-00000005.dlck");
  await train({ iterations: 6, resume, more: { observer: listener(rest) } });
  expect(rest.filter((note) => !note.startsWith("result"))).toEqual([
    "epoch start 1 5",
    "step start 5",
    "step 5 2 in 1",
  ]);
});

test("promises are waited for, observer after observer", async () => {
  let busy = 0;
  let calls = 0;
  const slow = async (): Promise<void> => {
    expect(++busy).toBe(1);
    await Bun.sleep(1);
    busy--;
    calls++;
  };
  const slowly: TrainerObserver = {
    ...{ onEpochStart: slow, onEpochEnd: slow, onStepStart: slow, onStep: slow, onResult: slow },
    ...{ onEvaluationStart: slow, onEvaluation: slow, onCheckpointStart: slow, onCheckpoint: slow },
  };
  const more = {
    observer: [slowly, { onStep: () => expect(busy).toBe(0) }, slowly],
    checkpointFolder: join(folder, "slow"),
  };
  await train({ iterations: 4, evaluate: true, more });
  // 4 steps, reports and starts of steps, and once each the rest.
  expect(calls).toBe(2 * (3 * 4 + 6));
});

test.each(["onStepStart", "onStep", "onResult", "onEpochEnd", "onEvaluationStart", "onEvaluation"] as const)(
  "what %s throws ends the training with its name, the state saved, and nothing lost",
  async (hook) => {
    class Watcher {}
    const checkpointFolder = join(folder, `broken-${hook}`);
    let calls = 0;
    const fail = async () => {
      if (++calls === (hook.startsWith("onE") ? 1 : 3)) throw new TypeError("it is broken");
    };
    const observer: TrainerObserver = Object.assign(new Watcher(), { [hook]: fail });
    const more = { observer, checkpointFolder, evaluateEvery: 4 };
    const error = await errorIn(train({ iterations: 6, evaluate: true, more }));
    expect(error.message).toMatch(
      new RegExp(`^${hook} of Watcher, iteration \\d: it is broken; training stopped after `),
    );
    expect(error.cause).toBeInstanceOf(TypeError);
    const [, done, path] = /iteration (\d), its state is saved in (.*)$/.exec(error.message) as RegExpExecArray;
    await using checkpoint = await readCheckpoint(path as string);
    expect(checkpoint.metadata.iteration).toBe(Number(done));

    const whole = await train({ iterations: 6 });
    const rest = await train({ iterations: 6, resume: path });
    for (const [name, bytes] of whole.weights) {
      expect(Buffer.compare(bytes, rest.weights.get(name)!), `${name} differs`).toBe(0);
    }
  },
);

test("what an observer throws at a checkpoint that was written behind the steps ends the training, too", async () => {
  const broken = { onCheckpoint: () => Promise.reject(new Error("no mail today")) };
  const more = { observer: broken, checkpointFolder: join(folder, "mail"), checkpointEvery: 1 };
  const error = await errorIn(train({ iterations: 300, more }));
  expect(error.message).toMatch(/^onCheckpoint of observer 1, iteration \d+: no mail today; training stopped after/);
  const start = { onCheckpointStart: () => Promise.reject(new Error("not now")) };
  const early = { observer: start, checkpointFolder: join(folder, "early"), checkpointEvery: 2 };
  // The state is saved without asking it again.
  expect((await errorIn(train({ iterations: 9, more: early }))).message).toMatch(
    /^onCheckpointStart of observer 1, iteration 2: not now; training stopped after iteration 2, its state is saved in /,
  );
});

/** What becomes of a training when something around it breaks: it goes on, or it ends with its state saved, and says which. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { renameSync, rmSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { readCheckpoint } from "../../lib/formats";
import { ErrorCode } from "../../lib/native";
import { Device, Tensor } from "../../lib/tensor";
import type { TrainerObserver } from "../../lib/train";
import { backend, testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { errorIn, trainTiny } from "../support/tiny-training";

const device = testDevice({ deterministic: true });
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(device);
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

const saved = /; training stopped after iteration (\d+), its state is saved in (.*)$/;

/** Runs something once, after so many steps. */
const after = (steps: number, work: () => void): TrainerObserver => ({
  onStep: (iteration) => void (iteration === steps - 1 && work()),
});

describe("images that are gone in the middle of an epoch", () => {
  const images = () => join(folder, "train2017");
  const away = () => join(folder, "away");

  test.each(["skip", "stop"] as const)(
    "all of them, with %s: the training ends, and goes on when they are back",
    async (failures) => {
      const checkpointFolder = join(folder, `gone-${failures}`);
      const observer = after(6, () => renameSync(images(), away()));
      const error = await errorIn(
        trainTiny(device, folder, { iterations: 100, loading: { failures }, more: { observer, checkpointFolder } }),
      );
      renameSync(away(), images());
      expect(error.message).toContain(
        failures === "skip"
          ? "CocoDataLoader: the last 16 images in a row could not be read or decoded; the last is "
          : ": no such file",
      );
      const [, done, path] = saved.exec(error.message) as RegExpExecArray;
      await using checkpoint = await readCheckpoint(path as string);
      expect(checkpoint.metadata.iteration).toBe(Number(done));
      const iterations = Number(done) + 3;
      const rest = await trainTiny(device, folder, { iterations, resume: path });
      expect(rest.outcome).toMatchObject({ iteration: iterations, interrupted: false });
    },
  );

  test("one of them: the training goes on and says which", async () => {
    const messages: string[] = [];
    const gone = join(folder, "train2017", "5.jpg");
    const kept = join(folder, "5.jpg");
    const observer = after(2, () => renameSync(gone, kept));
    const onFailure = ({ message }: { message: string }) => void messages.push(message);
    const { outcome } = await trainTiny(device, folder, { iterations: 24, loading: { onFailure }, more: { observer } });
    renameSync(kept, gone);
    expect(outcome.iteration).toBe(24);
    expect(messages).toEqual([expect.stringContaining("5.jpg: no such file")]);
  });

  test("those to evaluate on: the training ends with its state saved", async () => {
    const checkpointFolder = join(folder, "gone-val");
    const [val, elsewhere] = [join(folder, "val2017"), join(folder, "val-away")];
    const more = { checkpointFolder, evaluateEvery: 4, observer: after(3, () => renameSync(val, elsewhere)) };
    const options = { iterations: 100, evaluate: true, evaluation: { failures: "stop" as const }, more };
    const error = await errorIn(trainTiny(device, folder, options));
    renameSync(elsewhere, val);
    expect(error.message).toContain(": no such file");
    expect(saved.exec(error.message)?.[1]).toBe("4");
  });
});

describe("a place for checkpoints that is gone", () => {
  test("is told of, and training goes on to the next one", async () => {
    const checkpointFolder = join(folder, "lost");
    const errors: [number, string][] = [];
    // A mount that is lost leaves a path behind that nothing can be written to.
    const observer: TrainerObserver = {
      onStep: (iteration) => {
        if (iteration === 2) {
          rmSync(checkpointFolder, { recursive: true, force: true });
          writeFileSync(checkpointFolder, "");
        }
        if (iteration === 6) rmSync(checkpointFolder);
      },
      onCheckpointError: (error, iteration) => void errors.push([iteration, error.message]),
    };
    const more = { checkpointFolder, checkpointEvery: 2, observer };
    const { outcome } = await trainTiny(device, folder, { iterations: 9, more });
    expect(outcome).toMatchObject({ iteration: 9, checkpoint: join(checkpointFolder, "checkpoint-00000009.dlck") });
    expect(errors.map(([iteration]) => iteration)).toContain(4);
    expect(errors[0]?.[1]).toContain(checkpointFolder);
  });

  test("at the end is an error that names the last one", async () => {
    const checkpointFolder = join(folder, "lost-at-last");
    const elsewhere = join(folder, "lost-elsewhere");
    const observer: TrainerObserver = {
      onCheckpoint: (_, iteration) => {
        if (iteration !== 2) return;
        renameSync(checkpointFolder, elsewhere);
        writeFileSync(checkpointFolder, "");
      },
      onCheckpointError: () => {},
    };
    const more = { checkpointFolder, checkpointEvery: 2, observer };
    const { message } = await errorIn(trainTiny(device, folder, { iterations: 30, more }));
    expect(message).toContain(
      "; training stopped after iteration 30, its state could not be saved, the last checkpoint is " +
        join(checkpointFolder, "checkpoint-00000002.dlck"),
    );
  });
});

test("a batch that fails between those of one step leaves the state of the step before", async () => {
  const more = { accumulate: 2, optimizer: { schedule: (iteration: number) => 0.01 / (1 + iteration) } };
  const whole = await trainTiny(device, folder, { iterations: 6, more });
  const broken = { ...more, checkpointFolder: join(folder, "between") };
  const error = await errorIn(trainTiny(device, folder, { iterations: 6, failAt: 7, more: broken }));
  expect(error.message).toStartWith(
    "loader: the cable is pulled; training stopped after iteration 3, its state is saved",
  );
  const rest = await trainTiny(device, folder, { iterations: 6, resume: saved.exec(error.message)?.[2], more });
  for (const [name, bytes] of whole.weights) {
    if (/running_(mean|var)$/.test(name)) continue; // the batch before it has been seen twice
    expect(Buffer.compare(bytes, rest.weights.get(name)!), `${name} differs`).toBe(0);
  }
});

test("memory that somebody else has taken ends the training with its state saved", async () => {
  using small = new Device({ backend, deterministic: true, memoryLimit: 64 * 2 ** 20 });
  let held: Tensor | null = null;
  const observer: TrainerObserver = {
    onStep: () => {
      held ??= Tensor.empty(small, [small.memory().free - 1024], "u8");
    },
  };
  // An evaluation of averages needs room to exchange them with the weights.
  const more = { ema: { decay: 0.9 }, evaluateEvery: 5, checkpointFolder: join(folder, "memory") };
  const error = await errorIn(
    trainTiny(small, folder, { iterations: 40, evaluate: true, more: { ...more, observer } }),
  );
  (held as Tensor | null)?.dispose();
  expect(error.code).toBe(ErrorCode.memory);
  const [, done, path] = saved.exec(error.message) as RegExpExecArray;
  expect(done).toBe("5");
  const rest = await trainTiny(small, folder, { iterations: 10, evaluate: true, resume: path, more });
  expect(rest.outcome.iteration).toBe(10);
});

/** A training that is killed again and again, at any instant, ends with the bytes of one that was left alone. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { CheckpointStore } from "../../lib/formats";
import { readMetrics } from "../../lib/monitor";
import { testDevice } from "../support/device";
import { Random } from "../support/random";
import { writeTinyDataset } from "../support/tiny-dataset";

const ITERATIONS = 60;
const KILLS = 10;
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(testDevice());
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

const start = (run: string) =>
  Bun.spawn([process.execPath, join(import.meta.dir, "killed-training.ts"), folder, run, String(ITERATIONS)], {
    stdout: "pipe",
    stderr: "inherit",
  });

/** Runs it until it ends, or until it has trained some steps and `delay` milliseconds have passed: then it is killed. */
async function runFor(run: string, steps: number, delay: number): Promise<{ killed: boolean; steps: number }> {
  const child = start(run);
  let seen = 0;
  let rest = "";
  for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop() as string;
    for (const line of lines) {
      expect(line).toMatch(/^(step \d+|done 60)$/);
      if (!line.startsWith("step") || ++seen !== steps) continue;
      setTimeout(() => child.kill("SIGKILL"), delay);
    }
  }
  await child.exited;
  return { killed: child.signalCode === "SIGKILL", steps: seen };
}

async function stateOf(run: string) {
  const found = await new CheckpointStore(join(run, "checkpoints")).latest();
  await using checkpoint = found!.checkpoint;
  const { iteration, epoch, loader, history, best, state, config } = checkpoint.metadata;
  const tensors = new Map<string, string>();
  for (const name of checkpoint.tensors.keys()) {
    tensors.set(name, Bun.SHA256.hash(await checkpoint.read(name), "hex"));
  }
  const timeless = history.map(({ time: _, ...rest }) => rest);
  const metrics = readMetrics(join(run, "metrics.jsonl")).map(({ time: _, ...rest }) => rest);
  return { iteration, epoch, loader, history: timeless, best, state, config, tensors, metrics };
}

test("weights, metrics and all else are the same after ten kills", async () => {
  const whole = join(folder, "whole");
  expect(await runFor(whole, -1, 0)).toEqual({ killed: false, steps: ITERATIONS });
  const expected = await stateOf(whole);
  expect(expected.iteration).toBe(ITERATIONS);
  expect(expected.metrics.filter(({ kind }) => kind === "train")).toHaveLength(ITERATIONS);
  expect(expected.history).toHaveLength(3);

  const killed = join(folder, "killed");
  const random = new Random("kills");
  let kills = 0;
  let repeated = -ITERATIONS;
  for (let i = 0; i < KILLS; i++) {
    // Some steps on; then at once, or while what follows is computed, evaluated, or written.
    const found = await runFor(killed, 1 + Math.floor(5 * random.next()), Math.floor(30 * random.next()));
    if (found.killed) kills++;
    repeated += found.steps;
  }
  expect(kills).toBe(KILLS);
  const last = await runFor(killed, -1, 0);
  expect(last.killed).toBe(false);
  // Steps after the last checkpoint were done twice.
  expect(repeated + last.steps).toBeGreaterThan(0);
  expect(await stateOf(killed)).toEqual(expected);
}, 120_000);

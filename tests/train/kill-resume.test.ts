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
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(testDevice());
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

/** Runs it until it ends, or until it has done so many steps, or begun so many saves, and `delay` ms later: then it is killed. */
async function runFor(
  run: string,
  evaluations: string,
  count = 0,
  delay = 0,
  what: "step" | "save" = "step",
): Promise<{ killed: boolean; steps: number }> {
  const script = join(import.meta.dir, "killed-training.ts");
  const options = [folder, run, ITERATIONS, evaluations, count, delay, what].map(String);
  const child = Bun.spawn([process.execPath, script, ...options], { stdout: "pipe", stderr: "inherit" });
  const lines = (await new Response(child.stdout).text()).split("\n").filter((line) => line !== "");
  await child.exited;
  for (const line of lines) expect(line).toMatch(/^(step \d+|done 60)$/);
  return { killed: child.signalCode === "SIGKILL", steps: lines.filter((line) => line.startsWith("step")).length };
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
  // Results of evaluations beside the steps come when they come.
  metrics.sort((a, b) => a.iteration - b.iteration || a.kind.localeCompare(b.kind));
  return { iteration, epoch, loader, history: timeless, best, state, config, tensors, metrics };
}

test.each([
  ["between", 10, 3],
  ["beside", 6, 15],
] as const)(
  "weights, metrics and all else are the same with evaluations %s the steps after %d kills",
  async (evaluations, most, evaluated) => {
    const whole = join(folder, `whole-${evaluations}`);
    expect(await runFor(whole, evaluations)).toEqual({ killed: false, steps: ITERATIONS });
    const expected = await stateOf(whole);
    expect(expected.iteration).toBe(ITERATIONS);
    expect(expected.metrics.filter(({ kind }) => kind === "train")).toHaveLength(ITERATIONS);
    expect(expected.history).toHaveLength(evaluated);

    const killed = join(folder, `killed-${evaluations}`);
    const random = new Random("kills");
    let kills = 0;
    let repeated = -ITERATIONS;
    for (let i = 0; i < most; i++) {
      // Some steps on; then at once, or while what follows is computed, evaluated, or written. Every other time inside a save.
      const found =
        i % 2 === 0
          ? await runFor(killed, evaluations, random.integer(1, 5), random.integer(0, 20))
          : await runFor(killed, evaluations, random.integer(1, 3), random.integer(0, 8), "save");
      if (found.killed) kills++;
      repeated += found.steps;
    }
    expect(kills).toBe(most);
    const last = await runFor(killed, evaluations);
    expect(last.killed).toBe(false);
    // Steps after the last checkpoint were done twice.
    expect(repeated + last.steps).toBeGreaterThan(0);
    expect(await stateOf(killed)).toEqual(expected);
  },
  120_000,
);

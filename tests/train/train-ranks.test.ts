/** `dlfs train --gpus N` as a user runs it: metrics, a killed rank with a restart, a signal, another number of ranks. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { CheckpointStore } from "../../lib/formats";
import { readMetrics } from "../../lib/monitor";
import { missing, mostRanks, testDevice } from "../support/device";
import { runDlfs } from "../support/run-dlfs";
import { writeTinyDataset } from "../support/tiny-dataset";

const root = fileURLToPath(new URL("../../", import.meta.url));
const device = testDevice();
const reason = missing(device, "f32", ["collectives"]) ?? (mostRanks < 2 ? "one GPU has one rank" : null);
const data = await writeTinyDataset(device, 11);
const out = join(data, "runs");
afterAll(() => rmSync(data, { recursive: true, force: true }));

const dlfs = (args: string[], after?: string, act?: (launcher: number) => void) =>
  runDlfs(args, { cwd: data, after, act });

/** The process of a rank that a launcher has started. */
function processOf(launcher: number, rank: number): number {
  const children = readFileSync(`/proc/${launcher}/task/${launcher}/children`, "utf8").trim().split(" ").map(Number);
  return children.find((pid) => readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").includes(`RANK=${rank}`))!;
}

const train = (gpus: number, ...more: string[]) => [
  ...["train", "--gpus", String(gpus), "--data", data, "--out", out, "--batch", "4", "--size", "64", "--lr", "0.01"],
  ...["--sync-bn", "--checksum-every", "3", "--log-every", "1", ...more],
];

/** What `work` gives, and the run folder that it has made. */
async function withRun<T>(work: () => Promise<T>): Promise<[T, string]> {
  mkdirSync(out, { recursive: true });
  const before = readdirSync(out);
  const found = await work();
  return [found, join(out, readdirSync(out).find((name) => !before.includes(name)) ?? "none")];
}

/** Digests of all that a run's last checkpoint holds, and its metrics, without times and speeds. */
async function stateOf(run: string) {
  await using checkpoint = (await new CheckpointStore(join(run, "checkpoints")).latest())!.checkpoint;
  const { iteration, loader, best, state, history } = checkpoint.metadata;
  const tensors = new Map<string, string>();
  for (const name of checkpoint.tensors.keys()) {
    tensors.set(name, Bun.SHA256.hash(await checkpoint.read(name), "hex"));
  }
  const timeless = ["time", "imagesPerSecond", "waitShare", "memory", "secondsLeft"];
  const metrics = readMetrics(join(run, "metrics.jsonl"))
    .filter(({ kind }) => kind !== "epoch") // one that was interrupted has the means of its end
    .map((line) => Object.fromEntries(Object.entries(line).filter(([name]) => !timeless.includes(name))));
  return { iteration, loader, best, state, tensors, metrics, history: history.map(({ time: _, ...rest }) => rest) };
}

/** Iterations in a run's metrics, in the order they were written. */
function iterationsOf(stdout: string): number[] {
  const run = /run folder: (\S+)|--resume (\S+)/.exec(stdout)!;
  const lines = readFileSync(join(run[1] ?? run[2]!, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n");
  return lines.map((line) => JSON.parse(line)).flatMap(({ kind, iteration }) => (kind === "train" ? [iteration] : []));
}

describe.skipIf(reason !== null)(`ranks${reason ? ` (${reason})` : ""}`, () => {
  test("measure what one rank measures, to the last digit", async () => {
    const found = [];
    for (const world of [1, 2, 3].filter((some) => some <= mostRanks)) {
      const args = ["launch", "--gpus", String(world), "--", `${root}tests/train/evaluate-rank.ts`, data];
      const { exitCode, stdout, stderr } = await dlfs(args);
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
      found.push(JSON.parse(stdout));
    }
    expect(found[0].images).toBe(11);
    for (const other of found) expect(other).toEqual(found[0]);
  }, 60_000);

  test("train by one command, and only rank 0 writes", async () => {
    const { exitCode, stdout } = await dlfs(train(2, "--iterations", "6", "--evaluate-every", "3"));
    expect(exitCode).toBe(0);
    expect(stdout).toContain("ranks: 2, started by dlfs launch; 2 images of each batch on each");
    expect(stdout).toContain("trained 6 iterations");
    expect(stdout).not.toContain("[1]");
    expect(iterationsOf(stdout)).toEqual([0, 1, 2, 3, 4, 5]);
    expect(readdirSync(out)).toHaveLength(1);
  }, 60_000);

  test("go on from the last checkpoint after one was killed, also with fewer", async () => {
    // By the evaluation the third checkpoint at least is written, as each waits for the one before, however fast the steps are.
    const options = ["--iterations", "30", "--checkpoint-every", "5", "--evaluate-every", "20"];
    const { exitCode, stdout, stderr } = await dlfs(
      train(2, ...options, "--max-restarts", "1", "--min-gpus", "1"),
      "iteration 20: AP",
      (launcher) => process.kill(processOf(launcher, 1), "SIGKILL"),
    );
    expect(stderr).toMatch(/rank 1 \(process \d+ on .*\) ended (in step \d+|during \w+, step \d+), /);
    expect(stderr).toContain("restart 1 of 1, 1 rank");
    expect(stdout).toMatch(/resumed .* at iteration (5|10|15|20|25)/);
    expect(stdout).toContain("trained 30 iterations");
    expect(exitCode).toBe(0);
    expect(iterationsOf(stdout.slice(stdout.indexOf("trained 30")))).toEqual(Array.from({ length: 30 }, (_, i) => i));
  }, 120_000);

  test("end with the bytes of a training that was left alone, after kills of either rank", async () => {
    const options = ["--iterations", "26", "checkpointEvery=4", "evaluateEvery=9", "--deterministic", "--ema", "0.9"];
    const [whole, wholeRun] = await withRun(() => dlfs(train(2, ...options)));
    expect(whole.exitCode).toBe(0);
    const killed = (args: string[], after: string, rank: number) =>
      dlfs(args, after, (launcher) => process.kill(processOf(launcher, rank), "SIGKILL"));
    const [first, run] = await withRun(() => killed(train(2, ...options), "iteration 9: AP", 1));
    const resume = ["train", "--gpus", "2", "--resume", run];
    const second = await killed(resume, "iteration 18: AP", 0);
    expect([first.exitCode, second.exitCode]).not.toContain(0);
    const { exitCode, stdout } = await dlfs(resume);
    expect([exitCode, stdout]).toEqual([0, expect.stringContaining("trained 26 iterations")]);
    expect(await stateOf(run)).toEqual(await stateOf(wholeRun));
  }, 120_000);

  test("stop together after a signal, with a checkpoint that another number of them goes on from", async () => {
    const { exitCode, stdout } = await dlfs(
      train(2, "--iterations", "4000", "--evaluate-every", "4000", "--checkpoint-every", "4000"),
      "epoch  iteration",
      (launcher) => process.kill(launcher, "SIGTERM"),
    );
    expect(exitCode).toBe(143);
    const [, stopped] = /stopped at iteration (\d+) of 4000/.exec(stdout)!;
    const [, run] = /continue with: dlfs train --resume (\S+)/.exec(stdout)!;
    const more = String(Number(stopped) + 4);
    const again = await dlfs(["train", "--gpus", mostRanks > 2 ? "4" : "1", "--resume", run!, "--iterations", more]);
    expect(again.stdout).toContain(`at iteration ${stopped}`);
    expect(again.stdout).toContain(`trained ${more} iterations`);
    expect(again.exitCode).toBe(0);
  }, 120_000);

  test.skipIf(mostRanks < 3)(
    "that cannot share a batch do not start",
    async () => {
      const { exitCode, stderr } = await dlfs(train(3, "--iterations", "3"));
      expect(exitCode).toBe(2);
      expect(stderr).toContain("--batch: 3 ranks cannot share 4 images evenly");
    },
    60_000,
  );
});

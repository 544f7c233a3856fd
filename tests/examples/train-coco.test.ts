/** The example as a user runs it, in a process of its own: what it prints, how it ends, what it leaves behind. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { CheckpointStore } from "../../lib/formats";
import { readMetrics } from "../../lib/monitor";
import { loadTrainedModel } from "../../lib/train";
import { backend, testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

const root = fileURLToPath(new URL("../../", import.meta.url));
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(testDevice());
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

function start(...args: string[]) {
  return Bun.spawn([process.execPath, "run", "examples/train_coco.ts", ...args], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder },
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function run(...args: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  const child = start(...args);
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { exitCode: await child.exited, stdout, stderr };
}

const small = ["--size", "64", "--batch", "2"];

test("a run ends with its results, the run folder and the next command, and the folder explains itself", async () => {
  const out = join(folder, "runs");
  const { exitCode, stdout, stderr } = await run("--data", folder, ...small, "--iterations", "4", "--out", out);
  expect(stderr).toBe("");
  expect(exitCode).toBe(0);
  const lines = stdout.trimEnd().split("\n");
  expect(lines.slice(-5).join("\n")).toMatch(
    /^AP \d\.\d{3} {2}AP50 \d\.\d{3}[\s\S]*\nrun folder: .*\n.*\n.*--resume /m,
  );
  const runFolder = /run folder: (.*)/.exec(stdout)?.[1] as string;
  const config = JSON.parse(readFileSync(join(runFolder, "config.json"), "utf8"));
  expect(config).toMatchObject({ iterations: 4, batch: 2, size: [64, 64], seed: 0 });
  const kinds = readMetrics(join(runFolder, "metrics.jsonl")).map(({ kind }) => kind);
  expect(kinds).toContain("train");
  expect(kinds).toContain("evaluation");
  expect(existsSync(join(runFolder, "README.txt"))).toBe(true);
  expect(existsSync(join(runFolder, "pictures", "predictions-00000004.jpg"))).toBe(true);

  using trained = await loadTrainedModel(runFolder, testDevice());
  expect(trained).toMatchObject({ iteration: 4, config: { size: [64, 64] } });

  const longer = await run("--resume", runFolder, "--iterations", "6");
  expect(longer.stderr).toBe("");
  expect(longer.stdout).toContain("at iteration 4");
  expect(longer.stdout).toContain("trained 6 iterations");
});

test("SIGINT saves a checkpoint and exits with 130", async () => {
  const child = start("--data", folder, ...small, "--iterations", "100000", "--out", join(folder, "interrupted"));
  const reader = child.stdout.getReader();
  const decoder = new TextDecoder();
  let stdout = "";
  for (;;) {
    const { done, value } = await reader.read();
    stdout += decoder.decode(value, { stream: true });
    if (done || stdout.includes("training;")) break;
  }
  await Bun.sleep(300);
  child.kill("SIGINT");
  for (;;) {
    const { done, value } = await reader.read();
    stdout += decoder.decode(value, { stream: true });
    if (done) break;
  }
  expect(await child.exited).toBe(130);
  expect(stdout).toContain("continue with:");
  await using checkpoint = (await new CheckpointStore(
    join(folder, "interrupted", `${folder.split("/").pop()}-1`, "checkpoints"),
  ).latest())!.checkpoint;
  expect(checkpoint.metadata.iteration).toBeGreaterThan(0);
});

test("what cannot be trained on stops before the first step with an error that names it", async () => {
  const missing = await run("--data", join(folder, "nowhere"));
  expect(missing.exitCode).toBe(1);
  expect(missing.stderr).toContain(`${join(folder, "nowhere")}: no such folder`);
  const split = await run("--data", folder, "--train-split", "test");
  expect(split.exitCode).toBe(1);
  expect(split.stderr).toContain("instances_test.json: no such file; the splits there are: train2017, val2017");
  const size = await run("--size", "100");
  expect(size.exitCode).toBe(2);
  expect(size.stderr).toContain('--size: expected N or HxW, multiples of 32, got "100"');
  const unknown = await run("--epochs", "3");
  expect(unknown.exitCode).toBe(2);
  expect(unknown.stderr).toContain("--epochs");
  const help = await run("--help");
  expect(help.exitCode).toBe(0);
  for (const option of [
    "--data",
    "--train-split",
    "--val-split",
    "--iterations",
    "--batch",
    "--size",
    "--precision",
    "--backend",
    "--seed",
    "--flip",
    "--deterministic",
    "--out",
    "--resume",
  ]) {
    expect(help.stdout).toContain(option);
  }
});

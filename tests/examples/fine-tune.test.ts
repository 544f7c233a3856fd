/** The tutorial as a user runs it: from a classifier's weights to a detector's and back, each step with its result. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { readSafetensors } from "../../lib/formats";
import { modelFromConfig } from "../../lib/models";
import { saveTorchWeights } from "../../lib/train";
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

async function run(...args: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  const child = Bun.spawn([process.execPath, "run", "examples/04_fine_tune.ts", ...args], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache") },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { exitCode: await child.exited, stdout, stderr };
}

test("loads a backbone, trains, measures, writes weights and reads them back", async () => {
  const classifier = join(folder, "resnet18.safetensors");
  using detector = modelFromConfig({ name: "retinanet", backbone: "resnet18", classes: 1 });
  detector.to(testDevice());
  await saveTorchWeights(classifier, detector, { from: "backbone.body" });
  const { exitCode, stdout, stderr } = await run(
    ...["--data", folder, "--backbone-weights", classifier, "--iterations", "2", "--out", join(folder, "out")],
  );
  expect(stderr).toBe("");
  expect(exitCode).toBe(0);
  expect(stdout).toContain(`${classifier}: 100 loaded\n`);
  expect(stdout).toMatch(/^iteration 0: classification \d.*boxRegression \d/m);
  expect(stdout).toMatch(/^val2017: AP \d/m);
  expect(stdout).toMatch(
    /weights\.safetensors: the same detections\n.*detector\.onnx: the same detections\n\d+ detections on 8 /,
  );
  expect(stdout).toMatch(/^6 of another shape, which keep their values: scores\.0\.3\./m);

  using file = await readSafetensors(join(folder, "out", "weights.safetensors"));
  const stem = file.tensors.get("backbone.body.conv1.weight")!;
  expect(stem.shape).toEqual([64, 3, 7, 7]);
  // The stem is frozen: what went in comes out.
  using given = await readSafetensors(classifier);
  expect(stem.toFloat32()).toEqual(given.tensors.get("conv1.weight")!.toFloat32());
}, 120_000);

test("what is wrong with the command line or the files is said in one line", async () => {
  const none = join(folder, "none");
  const usage = "usage: bun run examples/04_fine_tune.ts";
  for (const [args, exitCode, message] of [
    [["--bogus"], 2, `Unknown option '--bogus'\n${usage}`],
    [["--data", none], 1, `error: loadDataset: ${none}: no such folder`],
    [["--data", folder, "--backbone-weights", none], 1, `error: ${none}: cannot open the file of weights`],
    [
      ["--data", folder, "--iterations", "many"],
      1,
      "error: SGD: expected a positive whole number of iterations, got NaN",
    ],
  ] as const) {
    const ended = await run(...args);
    expect([ended.exitCode, ended.stderr]).toEqual([exitCode, expect.stringContaining(message)]);
    expect(ended.stderr).not.toContain("04_fine_tune.ts:");
  }
  const help = await run("--help");
  expect([help.exitCode, help.stdout]).toEqual([0, expect.stringContaining(usage)]);
});

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

test("loads a backbone, trains, measures, writes weights and reads them back", async () => {
  const classifier = join(folder, "resnet18.safetensors");
  using detector = modelFromConfig({ name: "retinanet", backbone: "resnet18", classes: 1 });
  detector.to(testDevice());
  await saveTorchWeights(classifier, detector, { from: "backbone.body" });
  const child = Bun.spawn(
    [
      process.execPath,
      ...["run", "examples/04_fine_tune.ts", "--data", folder, "--backbone-weights", classifier],
      ...["--iterations", "2", "--out", join(folder, "out")],
    ],
    {
      cwd: root,
      env: { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache") },
      stdout: "pipe",
      stderr: "pipe",
    },
  );
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  expect(stderr).toBe("");
  expect(await child.exited).toBe(0);
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

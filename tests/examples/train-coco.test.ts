/** The example as a user runs it, in a process of its own: what it prints, how it ends, what it leaves behind. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { exportOnnx } from "../../lib/export";
import { CheckpointStore } from "../../lib/formats";
import { readMetrics } from "../../lib/monitor";
import { loadTrainedModel } from "../../lib/train";
import { backend, testDevice } from "../support/device";
import { objectServer } from "../support/object-server";
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
  return startWith({}, ...args);
}

function startWith(env: Record<string, string>, ...args: string[]) {
  return Bun.spawn([process.execPath, "run", "examples/train_coco.ts", ...args], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder, ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function run(...args: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  return await runWith({}, ...args);
}

async function runWith(env: Record<string, string>, ...args: string[]) {
  const child = startWith(env, ...args);
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { exitCode: await child.exited, stdout, stderr };
}

const small = ["--size", "64", "--batch", "2"];

test("a run ends with its results, the run folder and the next command, and the folder explains itself", async () => {
  const out = join(folder, "runs");
  const { exitCode, stdout, stderr } = await run(
    ...["--data", folder, ...small, "--iterations", "4", "--clip-norm", "2.5", "--out", out],
    ...["--sampler", "repeat-factor", "--repeat-threshold", "0.9", "--group-by-aspect"],
  );
  expect(stderr).toBe("");
  expect(exitCode).toBe(0);
  const lines = stdout.trimEnd().split("\n");
  expect(lines.slice(-5).join("\n")).toMatch(
    /^AP \d\.\d{3} {2}AP50 \d\.\d{3}[\s\S]*\nrun folder: .*\n.*\n.*--resume /m,
  );
  const runFolder = /run folder: (.*)/.exec(stdout)?.[1] as string;
  const config = JSON.parse(readFileSync(join(runFolder, "config.json"), "utf8"));
  expect(config).toMatchObject({ iterations: 4, batch: 2, size: [64, 64], seed: 0, clipNorm: 2.5 });
  expect(config).toMatchObject({ sampler: "repeat-factor", repeatThreshold: 0.9, groupByAspect: true });
  const records = readMetrics(join(runFolder, "metrics.jsonl"));
  const line = records.find(({ kind }) => kind === "train")!;
  expect(line.gradNorm).toBeGreaterThan(0);
  expect(line.waitShare).toBeGreaterThanOrEqual(0);
  const kinds = records.map(({ kind }) => kind);
  expect(kinds).toContain("train");
  expect(kinds).toContain("evaluation");
  expect(existsSync(join(runFolder, "README.txt"))).toBe(true);
  expect(existsSync(join(runFolder, "pictures", "predictions-00000004.jpg"))).toBe(true);

  using trained = await loadTrainedModel(runFolder, testDevice());
  expect(trained).toMatchObject({ iteration: 4, config: { size: [64, 64] } });

  const summary = readFileSync(join(runFolder, "summary.json"), "utf8");
  const done = await run("--resume", runFolder);
  const expected = "--resume: 4 of 4 iterations are done, --iterations with a larger number goes on";
  expect([done.exitCode, done.stderr]).toEqual([2, expect.stringContaining(expected)]);
  expect(readFileSync(join(runFolder, "summary.json"), "utf8")).toBe(summary);

  const longer = await run("--resume", runFolder, "--iterations", "6");
  expect(longer.stderr).toBe("");
  expect(longer.stdout).toContain("at iteration 4");
  expect(longer.stdout).toContain("trained 6 iterations");
  const configNow = () => JSON.parse(readFileSync(join(runFolder, "config.json"), "utf8"));
  expect(configNow().clipNorm).toBe(2.5);
  const loose = await run("--resume", runFolder, "--iterations", "7", "--clip-norm", "none", "--recompute", "all");
  expect(loose.stderr).toBe("");
  expect(configNow()).toMatchObject({ clipNorm: null, recompute: true });
});

test("training takes images from record files, evaluates on those, and goes on from its checkpoint", async () => {
  const records = join(folder, "records");
  const pack = async (split: string, ...options: string[]) => {
    const args = ["data", "pack", "--data", folder, "--split", split, "--out", join(records, split), ...options];
    const env = { ...process.env, DLFS_BACKEND: backend };
    const child = Bun.spawn([process.execPath, "run", "lib/cli/main.ts", ...args], { cwd: root, env, stdout: "pipe" });
    expect(await child.exited).toBe(0);
  };
  await pack("train2017", "--size", "64");
  const common = ["--data", folder, "--records", records, "--batch", "2", "--iterations", "3"];
  const first = await run(...common, "--out", join(folder, "half"));
  expect([first.exitCode, first.stderr]).toEqual([0, ""]);
  expect(first.stdout).toMatch(/val2017 is read from its images: there is no .*records.val2017/);
  // Ids in the store that these were packed from are others than in the training's, which has both splits.
  await pack("val2017", "--size", "64");
  const both = await run(...common, "--out", join(folder, "both"));
  expect([both.exitCode, both.stderr]).toEqual([0, ""]);
  expect(both.stdout).toMatch(/records: \d+ of train2017, \d+ of val2017 in /);
  const figures = ({ stdout }: { stdout: string }) => /^AP \d.*AR100.*$/m.exec(stdout)?.[0];
  expect(figures(both)).toBe(figures(first));
  const runFolder = /run folder: (.*)/.exec(both.stdout)?.[1] as string;
  const config = JSON.parse(readFileSync(join(runFolder, "config.json"), "utf8"));
  expect(config).toMatchObject({ records, size: [64, 64] });

  const longer = await run("--resume", runFolder, "--iterations", "5");
  expect([longer.exitCode, longer.stderr]).toEqual([0, ""]);
  expect(longer.stdout).toContain("trained 5 iterations");
  for (const [args, message] of [
    [["--size", "96"], "train2017 are 64x64, the network's input is 96x96"],
    [["--augment", "yolo"], "--augment: yolo needs the images as they were before they were resized"],
    [["--antialias"], "--antialias: how images are resized is what the records were packed with"],
  ] as const) {
    const wrong = await run(...common, ...args);
    expect([wrong.exitCode, wrong.stderr]).toEqual([2, expect.stringContaining(message)]);
  }
  const missing = await run("--data", folder, "--records", folder);
  expect([missing.exitCode, missing.stderr]).toEqual([
    1,
    expect.stringContaining("expected a folder of dlfs data pack"),
  ]);
}, 120_000);

test.each([
  ["SIGINT", 130],
  ["SIGTERM", 143],
  ["SIGHUP", 129],
] as const)("%s saves a checkpoint and exits with %d", async (signal, code) => {
  const child = start("--data", folder, ...small, "--iterations", "100000", "--out", join(folder, signal));
  const reader = child.stdout.getReader();
  const decoder = new TextDecoder();
  let stdout = "";
  for (;;) {
    const { done, value } = await reader.read();
    stdout += decoder.decode(value, { stream: true });
    if (done || stdout.includes("training;")) break;
  }
  await Bun.sleep(300);
  child.kill(signal);
  for (;;) {
    const { done, value } = await reader.read();
    stdout += decoder.decode(value, { stream: true });
    if (done) break;
  }
  expect(await child.exited).toBe(code);
  expect(stdout).toContain("continue with:");
  const interrupted = join(folder, signal, `${folder.split("/").pop()}-1`);
  expect(JSON.parse(readFileSync(join(interrupted, "config.json"), "utf8")).clipNorm).toBeNull();
  await using checkpoint = (await new CheckpointStore(join(interrupted, "checkpoints")).latest())!.checkpoint;
  expect(checkpoint.metadata.iteration).toBeGreaterThan(0);
});

test("another model trains, gives its weights away, and starts from weights", async () => {
  const model = ["--data", folder, ...small, "--model", "retinanet_resnet18_fpn", "--iterations", "1"];
  const weights = join(folder, "weights.safetensors");
  const first = await run(...model, "--out", join(folder, "named"), "--export-weights", weights);
  expect(first.stderr).toBe("");
  expect(first.exitCode).toBe(0);
  expect(first.stdout).toContain(`weights:    ${weights}`);
  const configOf = (number: number) => join(folder, "named", `${folder.split("/").pop()}-${number}`, "config.json");
  const { model: made, clipNorm } = JSON.parse(readFileSync(configOf(1), "utf8"));
  expect(clipNorm).toBe(10);
  expect(made).toEqual({
    name: "retinanet",
    backbone: "resnet18",
    norm: "batch",
    trainableLayers: 5,
    classes: 2,
  });

  const onnx = join(folder, "weights.onnx");
  {
    using trained = await loadTrainedModel(dirname(configOf(1)), testDevice());
    await exportOnnx(trained.model, onnx, { size: [64, 64], foldBatchNorm: false });
  }
  const given = ["--backbone-weights", weights, "--weights", onnx, "--trainable-layers", "1", "--lr", "0.001"];
  given.push("--box-loss", "giou", "--clip-norm", "0");
  const second = await run(...model, ...given, "--out", join(folder, "named"));
  expect(second.stderr).toBe("");
  expect(second.stdout).toContain(`${weights}: 100 loaded\n`);
  expect(second.stdout).toContain(`${onnx}: 136 loaded\n`);
  const { model: resolved, learningRate, clipNorm: off, ...rest } = JSON.parse(readFileSync(configOf(2), "utf8"));
  expect(resolved).toMatchObject({ norm: "frozen", trainableLayers: 1, boxLoss: { kind: "giou" } });
  expect([learningRate, off, rest.weights, rest.backboneWeights]).toEqual([0.001, null, onnx, weights]);
}, 120_000);

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
  const unknown = await run("--epoch", "3");
  expect(unknown.exitCode).toBe(2);
  expect(unknown.stderr).toContain("--epoch: unknown option; did you mean --epochs?");
  const damaged = join(folder, "damaged");
  mkdirSync(damaged);
  writeFileSync(join(damaged, "config.json"), '{"data": "de');
  for (const [args, message] of [
    [["--resume", folder], `--resume: ${folder} is no run folder: it has no config.json`],
    [["--resume", damaged], `--resume: ${join(damaged, "config.json")}: JSON Parse error`],
  ] as const) {
    const wrong = await run(...args);
    expect([wrong.exitCode, wrong.stderr]).toEqual([2, expect.stringContaining(message)]);
  }
  const weights = await run("--data", folder, "--weights", join(folder, "none.pth"));
  expect([weights.exitCode, weights.stderr]).toEqual([1, expect.stringContaining("none.pth")]);
  const help = await run("--help");
  expect(help.exitCode).toBe(0);
  expect(help.stdout).toContain("--data DIR");
});

test("a run reads its data from a bucket, finds it again when resumed, and skips what is gone", async () => {
  await using server = await objectServer();
  const files = new Bun.Glob("{annotations,train2017,val2017}/*");
  for await (const key of files.scan({ cwd: folder })) {
    server.put(`sets/tiny/${key}`, await Bun.file(join(folder, key)).bytes());
  }
  const bucket = { STORAGE_EMULATOR_HOST: server.address, DLFS_CACHE: join(folder, "bucket-cache") };
  const out = join(folder, "bucket-runs");
  const data = "gs://boxes/sets/tiny";
  const first = await runWith(bucket, "--data", data, ...small, "--iterations", "3", "--out", out);
  expect(first.stderr).toBe("");
  expect(first.exitCode).toBe(0);
  expect(first.stdout).toContain(`data: ${data}\n  train2017: 8 images, 12 boxes, 2 classes`);
  const runFolder = /run folder: (.*)/.exec(first.stdout)?.[1] as string;
  expect(JSON.parse(readFileSync(join(runFolder, "config.json"), "utf8")).data).toBe(data);
  server.log = [];
  const more = await runWith(bucket, "--resume", runFolder, "--iterations", "4");
  expect(more.stderr).toBe("");
  expect(more.stdout).toContain("trained 4 iterations");
  expect(server.log.filter((line) => line.includes("alt=media"))).toEqual([]);

  // Gone from the bucket after the check, and not in this cache.
  server.faults = [{ kind: 404, match: /train2017%2F5\.jpg\?alt=media/, times: 1000 }];
  const elsewhere = { ...bucket, DLFS_CACHE: join(folder, "other-cache") };
  const skipped = await runWith(elsewhere, "--data", data, ...small, "--iterations", "2", "--out", out);
  expect(skipped.stdout).toContain("1 image skipped: cannot be read (5.jpg: GcsDataSource.read: gs://boxes/sets/tiny/");
  const wrong = await run("--data", folder, "--on-bad-image", "ignore");
  expect([wrong.exitCode, wrong.stderr]).toEqual([
    2,
    expect.stringContaining("--on-bad-image: expected one of skip, stop"),
  ]);
});

/** `dlfs train` in a process of its own: settings from everywhere, echoed, saved, and used again. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { CheckpointStore } from "../../lib/formats";
import { readMetrics } from "../../lib/monitor";
import { backend, testDevice } from "../support/device";
import { BUCKET, objectServer } from "../support/object-server";
import { writeTinyDataset } from "../support/tiny-dataset";

const root = fileURLToPath(new URL("../../", import.meta.url));
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(testDevice());
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

let variables: Record<string, string> = {};

async function train(...args: string[]) {
  const child = Bun.spawn([process.execPath, "run", "lib/cli/main.ts", "train", ...args], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder, ...variables },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  const run = /run folder: (.*)/.exec(stdout)?.[1] as string;
  return { status: await child.exited, stdout, stderr, run };
}

const configOf = (run: string) => JSON.parse(readFileSync(join(run, "config.json"), "utf8"));
/** Digests of a run's last checkpoint's tensors. */
async function tensorsOf(run: string): Promise<Map<string, string>> {
  await using checkpoint = (await new CheckpointStore(join(run, "checkpoints")).latest())!.checkpoint;
  const digests = new Map<string, string>();
  for (const name of checkpoint.tensors.keys()) digests.set(name, Bun.SHA256.hash(await checkpoint.read(name), "hex"));
  return digests;
}

const ratesOf = (run: string) =>
  readMetrics(join(run, "metrics.jsonl")).flatMap(({ kind, learningRate }) => (kind === "train" ? [learningRate] : []));

test("a file and overrides train; what they became is printed, saved, in checkpoints, and trains the same again", async () => {
  const file = join(folder, "tiny.yaml");
  writeFileSync(
    file,
    `
data: ${folder}
out: ${join(folder, "runs")}
size: 64
batch: 2
iterations: 12
deterministic: true
learningRate: 0.01
schedule: {kind: polynomial, power: 2}
warmup: none
groups: [{match: "^stem", rate: 0.5}]
`,
  );
  const watched = ["--tensorboard", "--metrics-port", "0"];
  const first = await train(
    "--config",
    file,
    ...watched,
    "seed=4",
    "--ema",
    "0.9",
    "evaluateEvery=6",
    "--checkpoint-every",
    "4",
  );
  expect([first.status, first.stderr]).toEqual([0, ""]);
  expect(first.stdout).toContain(`settings: data=${folder} trainSplit=train2017`);
  expect(first.stdout).toMatch(/^metrics: http:\/\/127\.0\.0\.1:\d+\/metrics$/m);
  expect(first.stdout).toContain(`tensorboard: tensorboard --logdir ${first.run}\n`);
  const [events] = [...new Bun.Glob("tensorboard/events.out.tfevents.*").scanSync({ cwd: first.run })];
  const written = readFileSync(join(first.run, events as string), "latin1");
  for (const name of ["learningRate", "evaluation/AP", "weights/stem", "gradients/stem", "predictions"]) {
    expect(written).toContain(name);
  }
  expect(first.stdout).toContain(`go on:      dlfs train --resume ${first.run} --iterations 24`);
  expect(configOf(first.run)).toMatchObject({
    ...{ seed: 4, size: [64, 64], iterations: 12, ema: { decay: 0.9, warmup: 2000 }, warmup: null, momentum: 0.9 },
    schedule: { kind: "polynomial", power: 2 },
    groups: [{ match: "^stem", rate: 0.5 }],
  });
  expect(ratesOf(first.run)).toEqual([Math.fround(0.01), Math.fround(0.01 * (1 - 10 / 12) ** 2), expect.any(Number)]);
  const store = new CheckpointStore(join(first.run, "checkpoints"));
  expect((await store.list()).map(({ iteration }) => iteration)).toEqual([4, 8, 12]);
  const { checkpoint } = (await store.latest())!;
  expect(checkpoint.metadata.config as unknown).toEqual(configOf(first.run));
  expect(checkpoint.tensors.has("ema.step")).toBe(true);
  const weights = await checkpoint.read([...checkpoint.tensors.keys()].find((name) => name.startsWith("ema."))!);

  const again = await train("--config", join(first.run, "config.json"));
  expect([again.status, again.stderr]).toEqual([0, ""]);
  const second = (await new CheckpointStore(join(again.run, "checkpoints")).latest())!.checkpoint;
  expect(second.metadata.config as unknown).toEqual(configOf(first.run));
  const same = await second.read([...second.tensors.keys()].find((name) => name.startsWith("ema."))!);
  expect(same).toEqual(weights);
  await checkpoint.close();
  await second.close();

  const more = await train("--resume", first.run, "--iterations", "14", "--lr", "0.02");
  expect([more.status, more.stderr]).toEqual([0, ""]);
  expect(configOf(first.run)).toMatchObject({ iterations: 14, learningRate: 0.02, seed: 4 });
}, 60_000);

test("a dry run builds, steps and evaluates, says what that takes, and writes nothing", async () => {
  const out = join(folder, "dry");
  const shape = ["--data", folder, "--size", "64", "--batch", "2", "--out", out];
  const { status, stdout, stderr } = await train(...shape, "--dry-run", "--iterations", "40", "--accumulate", "2");
  expect([status, stderr]).toEqual([0, ""]);
  expect(stdout).toMatch(
    /^a step of 4 images with \d+ boxes each: \d+ ms, classification [\d.]+, boxRegression [\d.]+$/m,
  );
  expect(stdout).toMatch(/^an evaluation of 2 images: \d+ detections$/m);
  expect(stdout).toMatch(/^memory: [\d.]+ MiB of .*, [\d.]+ MiB of that for a step's activations; .* left$/m);
  expect(stdout).toMatch(
    /^it would train 40 iterations \(\d+\.\d passes over 8 images\), evaluate 1 times, and write 1 /m,
  );
  expect(existsSync(out)).toBe(false);
}, 60_000);

test("overfitting trains on the first images as they are, and evaluates on those", async () => {
  const out = join(folder, "overfit");
  const shape = ["--data", folder, "--size", "64", "--batch", "4", "--out", out, "--iterations", "6"];
  const { status, stdout, stderr, run } = await train(...shape, "--overfit", "3", "--epochs=2", "iterations=6");
  expect(stderr).toContain("--epochs: say either this or");
  expect([status, run]).toEqual([2, undefined as unknown as string]);
  const three = await train(...shape, "--overfit", "3");
  expect([three.status, three.stderr]).toEqual([0, ""]);
  expect(configOf(three.run)).toMatchObject({ overfit: 3, flip: "none", augment: "none", scaleJitter: false });
  const [evaluation] = readMetrics(join(three.run, "metrics.jsonl")).filter(({ kind }) => kind === "evaluation");
  expect(evaluation).toMatchObject({ iteration: 6 });
  const tooMany = await train(...shape, "--overfit", "9");
  expect(tooMany.stderr).toContain("--overfit: expected at most 8, the images that can be trained on, got 9");
  const flipped = await train(...shape, "--overfit", "3", "--flip", "both");
  expect(flipped.stderr).toContain("--flip: --overfit 3 trains on the first images as they are");
  expect(stdout).toBe("");
}, 60_000);

test("a batch by what memory has room for is tried, said and saved", async () => {
  const shape = ["--data", folder, "--size", "64", "--iterations", "2", "--lr", "0.01", "--out", join(folder, "auto")];
  const { status, stdout, stderr, run } = await train(...shape, "--batch", "auto", "--overfit", "6");
  expect([status, stderr]).toEqual([0, ""]);
  expect(stdout).toMatch(/^batch auto: 6 images of at most 6, .* left; learning rate 0.00375 \(tried 1, 2, 6\)$/m);
  expect(configOf(run)).toMatchObject({ batch: 6, learningRate: 0.00375 });
}, 60_000);

test.each(["--no-eval", "--val-split=none"])(
  "without a split to evaluate on, %s, the newest checkpoints stay and those of every Nth iteration",
  async (option) => {
    const data = await writeTinyDataset(testDevice());
    await rm(join(data, "val2017"), { recursive: true });
    await rm(join(data, "annotations", "instances_val2017.json"));
    const shape = ["--data", data, "--size", "64", "--batch", "2", "--out", join(data, "runs"), "--lr", "0.01", option];
    const plan = ["--iterations", "11", "checkpointEvery=2", "keep=2", "keepEvery=4", "--tensorboard"];
    const { status, stdout, stderr, run } = await train(...shape, ...plan);
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toContain("valSplit=none");
    expect(stdout).toContain("not evaluated: --val-split names the images to evaluate on");
    expect(stdout).not.toMatch(/AP|pictures:/);
    const iterationsOf = async (folder: string) =>
      (await new CheckpointStore(join(folder, "checkpoints")).list()).map(({ iteration }) => iteration);
    expect(await iterationsOf(run)).toEqual([4, 8, 10, 11]);
    expect(configOf(run)).toMatchObject({ valSplit: null });
    const [events] = [...new Bun.Glob("tensorboard/events.out.tfevents.*").scanSync({ cwd: run })];
    expect(readFileSync(join(run, "tensorboard", events!.replace("tensorboard/", "")), "latin1")).toContain(
      "weights/stem",
    );

    // It stays so where training goes on, and a split that is given then is evaluated on.
    const more = await train("--resume", run, "--iterations", "12");
    expect([more.status, more.stderr, await iterationsOf(run)]).toEqual([0, "", [4, 8, 11, 12]]);
    const then = await train("--resume", run, "--iterations", "13", "--val-split", "train2017");
    expect([then.status, then.stderr]).toEqual([0, ""]);
    expect(then.stdout).toMatch(/^iteration 13: AP /m);

    const dry = await train(...shape, "--dry-run", "--iterations", "40");
    expect(dry.stdout).toContain("no evaluation: there is nothing to evaluate on");
    expect(dry.stdout).toMatch(/^it would train 40 iterations .*, evaluate nothing, and write/m);
    for (const wrong of ["--patience=3", "--plateau=AP", "evaluateEvery=5", "--overlap-evaluation"]) {
      const refused = await train(...shape, wrong);
      const name = wrong.split("=")[0] as string;
      expect(refused.stderr).toContain(`${name}: needs evaluations, and ${option.split("=")[0]} leaves them out`);
      expect(refused.status).toBe(2);
    }
    await rm(data, { recursive: true });
  },
  60_000,
);

test("evaluations of a copy of the weights have the figures of those that training waits for", async () => {
  const shape = ["--data", folder, "--size", "64", "--batch", "2", "--iterations", "10", "evaluateEvery=4"];
  shape.push("--deterministic", "--ema", "0.9", "--lr", "0.05", "--out", join(folder, "overlap"));
  const evaluationsOf = async (...more: string[]) => {
    const { status, stderr, run } = await train(...shape, ...more);
    expect([status, stderr]).toEqual([0, ""]);
    const lines = readMetrics(join(run, "metrics.jsonl")).filter(({ kind }) => kind === "evaluation");
    return lines.map(({ time: _, ...figures }) => figures);
  };
  const waits = await evaluationsOf();
  expect(waits.map(({ iteration }) => iteration)).toEqual([4, 8, 10]);
  expect(await evaluationsOf("--overlap-evaluation")).toEqual(waits);
}, 60_000);

test("a disk that fills up is told of, training goes on, and the end names the last checkpoint", async () => {
  const out = join(folder, "small-disk");
  mkdirSync(out);
  const args = `--data "${folder}" --out "${out}" --size 64 --batch 2 --iterations 12 checkpointEvery=4 evaluateEvery=6`;
  const mount = `mount -t tmpfs -o size=12m none "${out}" && "${process.execPath}" run lib/cli/main.ts train ${args}`;
  const env = { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder };
  const inside = Bun.spawn(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount], {
    ...{ cwd: root, env, stdout: "pipe", stderr: "pipe" },
  });
  const [stdout, stderr] = await Promise.all([new Response(inside.stdout).text(), new Response(inside.stderr).text()]);
  if ((await inside.exited) !== 0 && /^(unshare|mount):/m.test(stderr)) {
    console.warn(`not tested, no file system of its own to be had: ${stderr.trim()}`);
    return;
  }
  // There is room for one checkpoint.
  expect(stdout).toMatch(
    /^warning: no checkpoint of iteration 8: .*checkpoint-00000008.dlck.*no space left.*; training goes on$/m,
  );
  expect(stdout).toMatch(/^iteration 12: AP /m);
  expect(stderr).toMatch(
    /training stopped after iteration 12, its state could not be saved, the last checkpoint is .*00000004/,
  );
  expect(inside.exitCode).toBe(1);
}, 60_000);

test("a training under nohup outlives its terminal", async () => {
  const args = ["--data", folder, "--out", join(folder, "nohup"), "--size", "64", "--batch", "2", "--iterations", "20"];
  const child = Bun.spawn(["nohup", process.execPath, "run", "lib/cli/main.ts", "train", ...args], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder },
    ...{ stdin: "ignore", stdout: "pipe", stderr: "ignore" },
  });
  const decoder = new TextDecoder();
  let stdout = "";
  for await (const part of child.stdout) {
    stdout += decoder.decode(part, { stream: true });
    if (stdout.includes("training;")) child.kill("SIGHUP");
  }
  expect([await child.exited, stdout]).toEqual([0, expect.stringContaining("trained 20 iterations")]);
});

test("a terminal that is gone ends nothing", async () => {
  const out = join(folder, "gone");
  const command = `exec "${process.execPath}" run lib/cli/main.ts train --data "${folder}" --out "${out}" --size 64 \
    --batch 2 --iterations 30 evaluateEvery=5 2>"${folder}/stderr" | head -1`;
  const env = { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder };
  const child = Bun.spawn(["bash", "-c", `set -o pipefail; ${command}`], { cwd: root, env, stdout: "pipe" });
  expect(await child.exited).toBe(0);
  expect(readFileSync(join(folder, "stderr"), "utf8")).toBe("");
  const [summary] = [...new Bun.Glob("*/summary.json").scanSync({ cwd: out })];
  expect(JSON.parse(readFileSync(join(out, summary as string), "utf8")).iterations).toBe(30);
});

test("a run goes on from its copy in a bucket as if it had not stopped, on a machine that has nothing of it", async () => {
  await using server = await objectServer();
  variables = { STORAGE_EMULATOR_HOST: server.address };
  try {
    const out = join(folder, "copied");
    // A rate that does not depend on how many iterations there are.
    const rate = ["--lr", "0.01", "--schedule", "constant", "--warmup", "none", "--deterministic"];
    const shape = ["--data", folder, "--size", "64", "--batch", "2", ...rate];
    const whole = await train(...shape, "--iterations", "6", "--out", `${out}-whole`);
    expect([whole.status, whole.stderr]).toEqual([0, ""]);
    const copied = ["--copy-to", `gs://${BUCKET}/runs/`, "--checkpoint-every", "2", "--keep", "1"];
    const first = await train(...shape, ...copied, "--iterations", "4", "--out", out);
    expect([first.status, first.stderr]).toEqual([0, ""]);
    const name = basename(first.run);
    expect([...server.objects.keys()].filter((key) => !key.includes("/part-")).sort()).toEqual([
      `runs/${name}/checkpoint-00000004.json`,
      `runs/${name}/config.json`,
      `runs/${name}/metrics.jsonl`,
    ]);
    await rm(first.run, { recursive: true });
    const place = `gs://${BUCKET}/runs/${name}/`;
    const second = await train("--resume", place, "--out", out, "--iterations", "6");
    expect([second.status, second.stderr]).toEqual([0, ""]);
    expect(second.stdout).toContain(`fetched the checkpoint of iteration 4 from gs://${BUCKET}/runs/${name} into`);
    expect(second.run).toBe(first.run);
    const kinds = readMetrics(join(second.run, "metrics.jsonl")).map(({ kind, iteration }) => `${kind} ${iteration}`);
    expect(kinds).toEqual(["train 0", "train 3", "evaluation 4", "train 5", "evaluation 6"]);
    expect(await tensorsOf(second.run)).toEqual(await tensorsOf(whole.run));
    expect([...server.objects.keys()]).toContain(`runs/${name}/checkpoint-00000006.json`);
    // What is here is as new: nothing is fetched.
    const third = await train(`--resume=${place}`, "--out", out, "--iterations", "7");
    expect(third.stdout).toContain("is as new as gs://");
    expect(third.status).toBe(0);
    const other = await train(...shape, "--copy-to", `gs://${BUCKET}/runs`, "--iterations", "2", "--out", `${out}-2`);
    expect([other.status, other.stderr.split("\n")[0]]).toEqual([
      2,
      `dlfs train: --copy-to: there are checkpoints of another run at ${place.slice(0, -1)}; choose another place or --out`,
    ]);
    const nothing = await train("--resume", `gs://${BUCKET}/runs/none`, "--out", out);
    expect(nothing.stderr).toContain(`--resume: there is no checkpoint at gs://${BUCKET}/runs/none`);
  } finally {
    variables = {};
  }
}, 120_000);

test("what is wrong with settings ends the command with 2 and points to the help", async () => {
  const wrong = await train("--iteratons", "4");
  expect(wrong.stderr).toBe(
    "dlfs train: --iteratons: unknown option; did you mean --iterations?\n`dlfs train --help` lists the options\n",
  );
  expect(wrong.status).toBe(2);
  const group = await train("--data", folder, "--out", join(folder, "none"), 'groups=[{match: "^hed"}]');
  expect(group.stderr).toContain("groups[0].match: /^hed/ matches no parameter that trains; they begin with ");
  expect([group.status, existsSync(join(folder, "none"))]).toEqual([2, false]);
  using taken = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  const none = ["--data", folder, "--out", join(folder, "none")];
  const port = await train(...none, "--batch", "2", "--size", "64", "--metrics-port", String(taken.port));
  expect(port.stderr).toContain(`metrics: cannot listen on 127.0.0.1:${taken.port}: `);
  expect([port.status, existsSync(join(folder, "none"))]).toEqual([1, false]);
  const large = await train(...none, "--batch", "16", "--size", "64");
  expect(large.stderr).toContain('CocoDataLoader: split "train2017": epoch 0 has 8 images, fewer than one batch of 16');
  expect([large.status, existsSync(join(folder, "none"))]).toEqual([1, false]);
  const data = await train("--data", join(folder, "nowhere"));
  expect([data.status, data.stderr]).toEqual([1, expect.stringContaining("no such folder")]);
});

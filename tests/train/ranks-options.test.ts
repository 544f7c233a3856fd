/** What a user tries before and beside a training, with two ranks: each gives what one rank gives. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { readMetrics } from "../../lib/monitor";
import { missing, mostRanks, testDevice } from "../support/device";
import { BUCKET, objectServer, S3_KEYS } from "../support/object-server";
import { type DlfsRun, runDlfs } from "../support/run-dlfs";
import { writeTinyDataset } from "../support/tiny-dataset";

const device = testDevice();
const reason = missing(device, "f32", ["collectives"]) ?? (mostRanks < 2 ? "one GPU has one rank" : null);
const data = await writeTinyDataset(device, 12);
const out = mkdtempSync(join(tmpdir(), "dlfs-ranks-options-"));
afterAll(() => {
  for (const folder of [data, out]) rmSync(folder, { recursive: true, force: true });
});

const shape = ["--data", data, "--out", out, "--batch", "4", "--size", "64", "--deterministic", "--log-every", "1"];
/** What makes two ranks' steps those of one, within rounding. */
const together = ["--sync-bn", "--flip", "none", "--augment", "none", "--lr", "0.01"];

async function train(world: number, args: string[], env?: Record<string, string>): Promise<DlfsRun & { run: string }> {
  const gpus = world === 1 ? [] : ["--gpus", String(world)];
  const found = await runDlfs(["train", ...gpus, ...args], { cwd: out, env });
  return { ...found, run: /run folder: (\S+)/.exec(found.stdout)?.[1] ?? "" };
}

/** Lines of a kind in a run's metrics. */
const metricsOf = (run: string, kind: string) =>
  readMetrics(join(run, "metrics.jsonl")).filter((line) => line.kind === kind);

describe.skipIf(reason !== null)(`two ranks${reason ? ` (${reason})` : ""}`, () => {
  test("evaluate beside their steps what they evaluate between them, and checkpoints know it", async () => {
    const options = [
      ...shape,
      ...together,
      "--iterations",
      "12",
      "evaluateEvery=3",
      "checkpointEvery=5",
      "--ema",
      "0.9",
    ];
    const [waits, beside] = [await train(2, options), await train(2, [...options, "--overlap-evaluation"])];
    for (const { exitCode, stderr } of [waits, beside])
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
    const figures = ({ run }: { run: string }) => metricsOf(run, "evaluation").map(({ time: _, ...line }) => line);
    expect(figures(waits).map(({ iteration }) => iteration)).toEqual([3, 6, 9, 12]);
    expect(figures(beside)).toEqual(figures(waits));
    // Training goes on from a checkpoint that was written while the ranks evaluated.
    const more = await train(2, [
      "--resume",
      join(beside.run, "checkpoints", "checkpoint-00000010.dlck"),
      "iterations=14",
    ]);
    expect(more.exitCode).toBe(0);
    expect(metricsOf(beside.run, "evaluation").map(({ iteration }) => iteration)).toEqual([3, 6, 9, 12, 14]);
  }, 60_000);

  test("that are stopped wait for no evaluation of each other", async () => {
    const options = [...shape, "--iterations", "4000", "evaluateEvery=2", "--overlap-evaluation"];
    const { exitCode, stdout } = await runDlfs(["train", "--gpus", "2", ...options], {
      cwd: out,
      after: "iteration 2: AP",
      act: (pid) => process.kill(pid, "SIGTERM"),
    });
    expect(exitCode).toBe(143);
    expect(stdout).toMatch(/stopped at iteration \d+ of 4000/);
  }, 60_000);

  test("find a batch together, which is a multiple of their number, and its rate", async () => {
    const options = [
      "--data",
      data,
      "--out",
      out,
      "--size",
      "64",
      "--iterations",
      "2",
      "--lr",
      "0.01",
      "--overfit",
      "11",
    ];
    const { exitCode, stdout, stderr, run } = await train(2, [...options, "--batch", "auto", "--sync-bn"]);
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
    expect(stdout).toMatch(
      /^batch auto: 8 images, on each of 2 ranks 4 images of at most 5, .* left; learning rate 0.005 \(tried 1, 2, 4\)$/m,
    );
    expect(stdout).toContain("ranks: 2, started by dlfs launch; 4 images of each batch on each");
    expect(JSON.parse(readFileSync(join(run, "config.json"), "utf8"))).toMatchObject({ batch: 8, learningRate: 0.005 });
  }, 60_000);

  test("try a training before it starts, and write nothing", async () => {
    const none = join(out, "none");
    const { exitCode, stdout, stderr } = await train(2, [...shape, "--out", none, "--dry-run", "--iterations", "40"]);
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
    expect(stdout).toMatch(/^a step of 4 images with \d+ boxes each: /m);
    expect(stdout).toMatch(/^of 2 ranks, rank [01] has the least memory left: /m);
    expect(stdout.match(/^it would train 40 iterations/gm)).toHaveLength(1);
    expect(existsSync(none)).toBe(false);
  }, 60_000);

  test("find the rate that one rank finds", async () => {
    const range = ["--from", "1e-5", "--to", "1e3", "--steps", "50"];
    const find = async (...gpus: string[]) => {
      const report = join(out, `rates-${gpus.length}`);
      const args = [
        ...shape.filter((option) => option !== "--log-every" && option !== "1"),
        "--report",
        report,
        ...range,
      ];
      const alike = ["--precision", "fp32", "--sync-bn", "--flip", "none", "--augment", "none"];
      const { exitCode, stdout } = await runDlfs(["lr-find", ...gpus, ...args, ...alike]);
      expect([exitCode, stdout]).toEqual([0, expect.stringContaining("suggested:  --lr ")]);
      return JSON.parse(readFileSync(join(report, "lr-find.json"), "utf8"));
    };
    const [one, two] = [await find(), await find("--gpus", "2")];
    expect(two.suggestion).toBeGreaterThan(0);
    // Later ones grow apart: batch statistics of a few cells make much of the last bits.
    for (const [i, { loss }] of one.points.slice(0, 5).entries()) expect(two.points[i].loss).toBeCloseTo(loss, 2);
    for (const { points } of [one, two]) expect(points.at(-1).smoothed).toBeGreaterThan(points[0].smoothed);
  }, 60_000);

  test("end early together, after evaluations that were no better than the best", async () => {
    // At a rate of nearly nothing no evaluation is better than the first.
    const options = [...shape, "--lr", "1e-12", "--iterations", "400", "evaluateEvery=2", "--patience", "2"];
    const { exitCode, stdout, stderr, run } = await train(2, options);
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
    expect(stdout).toContain("ended before 400: 2 evaluations were no better than the best");
    expect(metricsOf(run, "evaluation").map(({ iteration }) => iteration)).toEqual([2, 4, 6]);
  }, 60_000);

  test.each(["gs", "s3"])(
    "go on from their copy in a bucket, %s, on a machine that has nothing of it",
    async (scheme) => {
      await using server = await objectServer();
      const env: Record<string, string> =
        scheme === "gs"
          ? { STORAGE_EMULATOR_HOST: server.address }
          : {
              ...{ S3_ENDPOINT: server.address, AWS_REGION: "us-east-1" },
              ...{ AWS_ACCESS_KEY_ID: S3_KEYS.accessKeyId, AWS_SECRET_ACCESS_KEY: S3_KEYS.secretAccessKey },
            };
      const place = `${scheme}://${BUCKET}/runs`;
      const copied = ["--iterations", "4", "checkpointEvery=2", "--copy-to", place];
      const first = await train(2, [...shape, ...copied], env);
      expect({ exitCode: first.exitCode, stderr: first.stderr }).toEqual({ exitCode: 0, stderr: "" });
      rmSync(first.run, { recursive: true });
      const name = basename(first.run);
      const second = await train(2, ["--resume", `${place}/${name}`, "--out", out, "--iterations", "6"], env);
      expect({ exitCode: second.exitCode, stderr: second.stderr }).toEqual({ exitCode: 0, stderr: "" });
      expect(second.stdout.match(/fetched the checkpoint of iteration 4 from/g)).toHaveLength(1);
      expect(second.stdout).not.toContain("is as new as");
      expect(metricsOf(second.run, "train").map(({ iteration }) => iteration)).toEqual([0, 1, 2, 3, 4, 5]);
      expect([...server.objects.keys()]).toContain(`runs/${name}/checkpoint-00000006.json`);
    },
    60_000,
  );
});

import { afterAll, describe, expect, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { isAbsolute, join } from "node:path";
import { RunFolder, readMetrics } from "../../lib/monitor/index";

const root = mkdtempSync(join(tmpdir(), "dlfs-runs-"));
afterAll(() => rmSync(root, { recursive: true }));
const text = (run: RunFolder, name: string) => readFileSync(join(run.path, name), "utf8");

describe("RunFolder", () => {
  test("numbers its runs, past gaps and strangers", async () => {
    const own = join(root, "not", "yet", "there");
    const first = await RunFolder.create({ name: "demo", root: own });
    expect(first.path).toBe(join(own, "demo-1"));
    for (const name of ["demo-7", "demo-7b", "demo-x", "demolition-90", "other-30"]) mkdirSync(join(own, name));
    const second = await RunFolder.create({ name: "demo", root: own });
    expect(second.path).toBe(join(own, "demo-8"));
    expect(isAbsolute(second.path)).toBe(true);
    first.close();
    second.close();
  });

  test("runs that start at the same time get folders of their own", async () => {
    const runs = await Promise.all(Array.from({ length: 8 }, () => RunFolder.create({ name: "same", root })));
    expect(new Set(runs.map((run) => run.path)).size).toBe(8);
    for (const run of runs) run.close();
  });

  test("explains each file that it writes", async () => {
    const run = await RunFolder.create({
      name: "explained",
      root,
      notes: (path) => [`Go on: --resume ${path}`],
      clock: () => Date.UTC(2024, 4, 6, 7, 8, 9),
    });
    await run.writeConfig({ lr: 0.01, sizes: [1, 2], limit: Infinity });
    await run.writeSummary({ AP: 0.5, loss: NaN });
    run.appendLog("hello");
    run.appendMetrics({ kind: "train", iteration: 1 });
    writeFileSync(run.picturePath(1200), "");
    expect(run.picturePath(1200)).toEndWith("pictures/predictions-00001200.jpg");
    run.close();
    const readme = text(run, "README.txt");
    for (const name of readdirSync(run.path)) if (name !== "README.txt") expect(readme).toContain(`\n${name}`);
    expect(readme).toContain("started 2024-05-06T07:08:09.000Z");
    expect(readme).toEndWith(`\n\nGo on: --resume ${run.path}\n`);
    expect(existsSync(run.checkpointFolder)).toBe(true);
    expect(JSON.parse(text(run, "config.json"))).toEqual({ lr: 0.01, sizes: [1, 2], limit: "Infinity" });
    expect(JSON.parse(text(run, "summary.json"))).toEqual({ AP: 0.5, loss: "NaN" });
  });

  test("appends metrics as JSON lines and the log with times", async () => {
    let time = 1_700_000_000_000;
    const run = await RunFolder.create({ name: "lines", root, clock: () => time++ });
    run.appendMetrics({ kind: "train", iteration: 10, losses: { cls: 0.5, box: NaN }, learningRate: 0.01 });
    run.appendMetrics({ kind: "evaluation", iteration: 10, time: 5, AP: -Infinity });
    run.appendLog("one\ntwo \x1b[31mred\x1b[0m");
    run.close();
    expect(text(run, "metrics.jsonl")).toBe(
      '{"kind":"train","iteration":10,"time":1700000000001,"losses":{"cls":0.5,"box":"NaN"},"learningRate":0.01}\n' +
        '{"kind":"evaluation","iteration":10,"time":5,"AP":"-Infinity"}\n',
    );
    expect(text(run, "log.txt")).toBe("2023-11-14T22:13:20.002Z one\n2023-11-14T22:13:20.002Z two red\n");
    expect(readMetrics(join(run.path, "metrics.jsonl"))).toEqual([
      { kind: "train", iteration: 10, time: 1_700_000_000_001, losses: { cls: 0.5, box: NaN }, learningRate: 0.01 },
      { kind: "evaluation", iteration: 10, time: 5, AP: -Infinity },
    ]);
  });

  test("goes on after a kill in the middle of a line", async () => {
    const run = await RunFolder.create({ name: "killed", root });
    run.appendMetrics({ kind: "train", iteration: 1, time: 0 });
    run.close();
    appendFileSync(join(run.path, "metrics.jsonl"), '{"kind":"train","iter');
    const again = RunFolder.open(run.path);
    again.appendMetrics({ kind: "train", iteration: 2, time: 0 });
    again.close();
    expect(readMetrics(join(run.path, "metrics.jsonl")).map((line) => line.iteration)).toEqual([1, 2]);
    expect(text(run, "metrics.jsonl").split("\n")).toHaveLength(4);
  });

  test.each([
    [true, ["train 4", "epoch 4", "evaluation 4", "train 7", "epoch 8", "evaluation 8"]],
    [false, ["train 4", "epoch 4", "evaluation 4", "train 7", "epoch 8"]],
  ] as const)(
    "without what is done again from step 8 on, the evaluation after it done: %p",
    async (evaluated, kept) => {
      const run = await RunFolder.create({ name: "again", root });
      for (const entry of [
        "train 4",
        "epoch 4",
        "evaluation 4",
        "train 7",
        "epoch 8",
        "evaluation 8",
        "train 8",
        "epoch 9",
      ]) {
        const [kind, iteration] = entry.split(" ") as [string, string];
        run.appendMetrics({ kind, iteration: Number(iteration) });
      }
      run.close();
      RunFolder.open(run.path, { from: 8, evaluated }).close();
      const left = readMetrics(join(run.path, "metrics.jsonl"));
      expect(left.map(({ kind, iteration }) => `${kind} ${iteration}`)).toEqual([...kept]);
    },
  );

  test.each([
    [true, [4, 8]],
    [false, [4]],
  ] as const)(
    "without what evaluations of later steps found, the one after step 8 done: %p",
    async (evaluated, kept) => {
      const run = await RunFolder.create({ name: "again", root });
      run.close();
      mkdirSync(run.evaluationsFolder);
      for (const iteration of [4, 8, 12]) writeFileSync(run.evaluationPath(iteration), "");
      writeFileSync(join(run.evaluationsFolder, "notes.txt"), "");
      RunFolder.open(run.path, { from: 8, evaluated }).close();
      const names = kept.map((iteration) => `evaluation-0000000${iteration}.dlvs`);
      expect(readdirSync(run.evaluationsFolder).sort()).toEqual([...names, "notes.txt"]);
    },
  );

  test.each(["", "a/b", "..", "a b"])("refuses the name %p", async (name) => {
    await expect(RunFolder.create({ name, root })).rejects.toThrow(
      `name must be of letters, digits, ".", "-" and "_", got "${name}"`,
    );
  });

  test("errors name the path", async () => {
    const file = join(root, "file");
    writeFileSync(file, "");
    await expect(RunFolder.create({ name: "x", root: file })).rejects.toThrow(`${file}: cannot create the folder`);
    expect(() => RunFolder.open(file)).toThrow(`${file}: it is no folder of a run`);
    expect(() => readMetrics(join(root, "none"))).toThrow(
      `${join(root, "none")}: cannot read the metrics: no such file`,
    );
  });
});

/** Result files, and what counts as a change between two of them. */
import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type BenchRow,
  benchResult,
  besideTable,
  type CallTiming,
  chromeTrace,
  compareResults,
  comparisonTable,
  nmsCases,
  peerTable,
  profileSummary,
  profileTable,
  readBenchResult,
  resultTable,
  runOperationPeers,
  runPeers,
  timingOf,
  writeBenchResult,
} from "../../lib/bench";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const folder = mkdtempSync(join(tmpdir(), "dlfs-bench-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function row(name: string, ms: number, spread = 0): BenchRow {
  return { bench: "train", name, ms, low: ms - spread / 2, high: ms + spread / 2, repetitions: 15, runs: 1, warmUp: 5 };
}

const result = (rows: BenchRow[], settings = {}) =>
  benchResult(device, { command: "dlfs bench", settings, ceilings: {}, rows });

test("a timing is the median, between its quartiles", () => {
  expect(timingOf([5, 1, 4, 2, 3])).toEqual({ ms: 3, low: 2, high: 4, repetitions: 5, runs: 1 });
  expect(timingOf([7], 3)).toEqual({ ms: 7, low: 7, high: 7, repetitions: 1, runs: 3 });
});

describe("comparing", () => {
  test("marks what differs by more than 1 % and than the repetitions do", () => {
    const before = [
      row("steady", 100),
      row("slower", 100, 2),
      row("noisy", 100, 10),
      row("faster", 100),
      row("gone", 1),
    ];
    const now = [row("steady", 100.9), row("slower", 103), row("noisy", 108), row("faster", 90), row("new", 1)];
    const changes = compareResults(before, now);
    expect(changes.map(({ name, beyondNoise }) => [name, beyondNoise])).toEqual([
      ["steady", false],
      ["slower", true],
      ["noisy", false],
      ["faster", true],
    ]);
    expect(changes[3]?.change).toBeCloseTo(-0.1);
  });

  test("is a table that says what the two have not in common", () => {
    const text = comparisonTable(
      result([row("a", 10), row("gone", 1)], { batch: 1 }),
      result([row("a", 20), row("new", 1)], { batch: 2 }),
    ).join("\n");
    expect(text).toContain('not alike: settings was {"batch":1}, is {"batch":2}');
    expect(text).toMatch(/train {2}a +10\.000 +20\.000 +\+100\.0 % +SLOWER/);
    expect(text).toContain("only before: train: gone");
    expect(text).toContain("only now: train: new");
  });
});

describe("files", () => {
  test("come back as they were written, with what they were measured on", () => {
    const path = join(folder, "a.json");
    const made = result([row("a", 10)]);
    writeBenchResult(path, made);
    expect(readBenchResult(path)).toEqual(JSON.parse(JSON.stringify(made)));
    expect(made.device.name).toBe(device.info.name);
    expect(made.versions.bun).toBe(Bun.version);
  });

  test("that are none are errors that name them", () => {
    const other = join(folder, "other.json");
    writeFileSync(other, "[]");
    expect(errorOf(() => readBenchResult(other)).message).toContain('other.json: format: expected "dlfs-bench');
    expect(errorOf(() => readBenchResult(join(folder, "none.json"))).message).toContain("none.json: cannot be read");
    expect(errorOf(() => writeBenchResult(join(folder, "no/a.json"), result([]))).message).toContain(
      "cannot be written",
    );
  });
});

const calls: CallTiming[] = [
  {
    ...{ index: 0, direction: "forward", kind: "conv2d", path: "backbone.body.conv1", result: "f32 1x8x8x4" },
    ...times(2),
  },
  { ...{ index: 1, direction: "backward", kind: "add", path: "head.conv", result: "f32 1x8x8x4" }, ...times(3) },
  { ...{ index: 2, direction: "update", kind: "sgd", path: "", result: "" }, ...times(1) },
];

function times(ms: number) {
  return { ms, flops: 4e9, bytes: 2e6, floorMs: 1 };
}

test("a trace has a track for each direction, on which calls follow one another", () => {
  const { traceEvents } = chromeTrace(calls, "test") as { traceEvents: Record<string, unknown>[] };
  const complete = traceEvents.filter(({ ph }) => ph === "X");
  expect(complete.map(({ tid, ts, dur }) => [tid, ts, dur])).toEqual([
    [1, 0, 2000],
    [2, 2000, 3000],
    [3, 5000, 1000],
  ]);
  const names = traceEvents.filter(({ name }) => name === "thread_name").map(({ args }) => args);
  expect(names).toEqual([{ name: "forward" }, { name: "backward" }, { name: "update" }]);
});

test("tables of a profile are sorted by time and add up", () => {
  expect(profileTable(calls).map((line) => line.split(/\s+/)[1])).toEqual(["kind", "add", "conv2d", "sgd"]);
  const summary = profileSummary(calls);
  expect(summary[0]).toBe("calls timed one by one: 6.000 ms in all");
  expect(summary.join("\n")).toMatch(/backbone\.body +forward +1 +2\.000 +33 % +2\.00 +1\.000 +50 %/);
});

test("a table of results gives rates and shares", () => {
  const measured = { ...row("a", 10), images: 2, flops: 4e9, floorMs: 5, memoryBytes: 2 ** 30 };
  expect(resultTable([measured], { gflops: 800, gbytes: 1, how: "" })[1]).toMatch(
    /^a +10\.000 +10\.000 to 10\.000 +200\.0 +1\.00 +0\.400 +50 % +5\.000 +50 % +15$/,
  );
});

describe("peers", () => {
  const settings = {
    ...{ model: "retinanet_resnet50_fpn", batch: 4, size: [64, 96] as const, classes: 3 },
    ...{ precision: "f32" as const, repetitions: 2 },
  };

  /** A program in the place of Python. */
  function python(name: string, lines: string[]): string {
    const path = join(folder, name);
    writeFileSync(path, ["#!/bin/sh", ...lines, ""].join("\n"));
    chmodSync(path, 0o755);
    return path;
  }

  test("are read from the script's lines", async () => {
    const path = python("good", [
      'echo \'{"versions": {"PyTorch": "1"}}\'',
      "echo noise",
      'echo "{\\"name\\": \\"$*\\", \\"ms\\": 8, \\"low\\": 7, \\"high\\": 9, \\"repetitions\\": 2, \\"images\\": 4, \\"memoryBytes\\": 0}"',
      'echo \'{"failed": "infer: no"}\'',
    ]);
    const found = await runPeers(path, settings, ["train"]);
    expect(found.rows[0]?.name).toMatch(/--work train --batch 4 --size 64x96 .*--norm batch --trainable-layers 5/);
    const text = peerTable(found).join("\n");
    expect(text).toContain("PyTorch 1");
    expect(text).toMatch(/8\.000 +7\.000 to 9\.000 +500\.0/);
    expect(text).toContain("not measured: infer: no");
  });

  test("of single operations get their shapes and boxes, and stand beside our rows of the same names", async () => {
    const path = python("operations", [
      `echo '{"versions": {"PyTorch": "1"}}'`,
      `printf '{"name": "%s", "ms": 6, "low": 6, "high": 6, "repetitions": 3, "runs": 1}\\n' "$(cat | tr -d '"\\n')"`,
      `echo '{"name": "a forward", "ms": 6, "low": 6, "high": 6, "repetitions": 3, "runs": 1}'`,
      `echo '{"failed": "b: none"}'`,
    ]);
    const layers = [{ name: "a", torch: "nn.ReLU()", inputs: [[2, 3, 4]] }];
    const nms = nmsCases([[2, 80]]);
    const found = await runOperationPeers(path, { precision: "f16", batch: 8, layers, nms });
    expect(found.rows[0]?.name).toStartWith(
      "{precision:f16,batch:8,layers:[{name:a,torch:nn.ReLU(),inputs:[[2,3,4]]}],",
    );
    expect(found.rows[0]?.name).toMatch(/nms:\[{name:2 boxes, 80 classes, IoU 0\.5,threshold:0\.5,boxes:\[300,200,/);
    const text = besideTable([row("a forward", 2), row("c", 1)], found).join("\n");
    expect(text).toMatch(/^a forward +2\.000 +6\.000 +3\.00$/m);
    expect(text).toContain("not measured: b: none");
    expect(text).not.toContain("\nc ");
  });

  test("that cannot be measured are errors that say why", async () => {
    const message = async (path: string, other = {}) =>
      await runPeers(path, { ...settings, ...other }, ["train"]).then(
        () => "no error",
        (error: Error) => error.message,
      );
    expect(await message(python("bad", ["echo 'PyTorch finds no GPU' >&2", "exit 1"]))).toContain(
      "PyTorch finds no GPU",
    );
    expect(await message(join(folder, "missing"))).toContain("no such program");
    expect(await message("python3", { model: "compact" })).toContain("not compact");
  });
});

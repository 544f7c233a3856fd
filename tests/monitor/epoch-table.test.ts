/** The table of epochs, and the meter that its figures come from. */
import { describe, expect, test } from "bun:test";
import { type EpochRow, EpochTable, formatBytes, ratesBetween, TrainingMeter } from "../../lib/monitor";

const row: EpochRow = {
  ...{
    epoch: 1,
    iteration: 150,
    losses: { classification: 0.83123456, box: 12 },
    gradNorm: 3.2111,
    learningRate: 0.04,
  },
  ...{ imagesPerSecond: 811.6, waitShare: 0.034, memory: 4.2 * 2 ** 30, seconds: 62, secondsLeft: 3700 },
};

describe("the table", () => {
  test("has a heading and columns of fixed width", () => {
    const table = new EpochTable();
    expect(table.lines(row)).toEqual([
      " epoch  iteration  classification        box  gradient        lr   img/s  wait    memory      time       ETA",
      "     1        150          0.8312         12     3.211      0.04     812    3%   4.2 GiB      1:02   1:01:40",
    ]);
    const later = {
      ...row,
      epoch: 123,
      iteration: 100_000,
      learningRate: 1e-9,
      losses: { classification: NaN, box: 1e9 },
    };
    const [line, ...none] = table.lines({ ...later, secondsLeft: undefined });
    expect(none).toEqual([]);
    expect(line).toBe(
      "   123     100000             NaN    1.00e+9     3.211   1.00e-9     812    3%   4.2 GiB      1:02         -",
    );
  });

  test("repeats the heading now and then, and has only the columns that there are figures for", () => {
    const table = new EpochTable();
    const { gradNorm: _, memory: __, ...less } = row;
    const lines = Array.from({ length: 41 }, () => table.lines(less)).flat();
    expect(lines.flatMap((line, i) => (line.includes("epoch") ? [i] : []))).toEqual([0, 21, 42]);
    expect(lines[0]).not.toMatch(/gradient|memory/);
    expect(new Set(lines.map(({ length }) => length)).size).toBe(1);
  });
});

test("the meter counts from the first step's wait on, without pauses", () => {
  let now = 10_000;
  const meter = new TrainingMeter(() => now);
  meter.pause(); // an evaluation before the first step counts for nothing
  now += 5000;
  meter.resume();
  expect(meter.read()).toEqual({ seconds: 0, steps: 0, images: 0, waitSeconds: 0 });
  now += 500;
  meter.step(8, 0.5);
  const first = meter.read();
  expect(first).toEqual({ seconds: 0.5, steps: 1, images: 8, waitSeconds: 0.5 });
  now += 1500;
  meter.step(8, 0.25);
  meter.pause();
  meter.pause();
  now += 60_000;
  expect(meter.read().seconds).toBe(2);
  meter.resume();
  now += 500;
  const second = meter.read();
  expect(ratesBetween(first, second)).toEqual({ seconds: 2, imagesPerSecond: 4, waitShare: 0.125 });
  expect(ratesBetween(null, second)).toEqual({ seconds: 2.5, imagesPerSecond: 6.4, waitShare: 0.3 });
  expect(ratesBetween(second, second)).toEqual({ seconds: 0, imagesPerSecond: 0, waitShare: 0 });
});

test("bytes are MiB below a GiB", () => {
  expect([0, 138e6, 2 ** 30, 13.75 * 2 ** 30].map(formatBytes)).toEqual(["0 MiB", "132 MiB", "1.0 GiB", "13.8 GiB"]);
});

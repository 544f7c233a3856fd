/** Calibration: ranges from magnitudes, tables from images, and detectors that run with them. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CompactDetector } from "../../lib/models";
import { constants } from "../../lib/native";
import { Tensor } from "../../lib/tensor";
import { type CalibrationTable, calibrate, DetectStep, readCalibration, writeCalibration } from "../../lib/train";
import { rangeOf } from "../../lib/train/calibration";
import { missing, testDevice } from "../support/device";
import { Random } from "../support/random";

const device = testDevice();
const folder = mkdtempSync(join(tmpdir(), "dlfs-calibration-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Counts of magnitudes as dlfs_count_magnitudes makes them. */
function countsOf(values: ArrayLike<number>): Float64Array {
  const counts = new Float64Array(constants.MAGNITUDE_BINS);
  for (const bits of new Uint32Array(Float32Array.from(values).buffer)) counts[(bits & 0x7fffffff) >>> 18]!++;
  return counts;
}

describe("the range of values", () => {
  const normal = new Random("magnitudes").normal(100_000);
  const largest = normal.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

  test('by "max" is the largest magnitude, to the next of 32 steps an octave', () => {
    const range = rangeOf(countsOf(normal), "x", "i8", "max");
    expect(range).toBeGreaterThanOrEqual(largest);
    expect(range).toBeLessThan(largest * 1.04);
    expect(rangeOf(countsOf([0, 0]), "x", "f8", "max")).toBe(0);
  });

  test('by "percentile" leaves out that share of what is not 0', () => {
    const range = rangeOf(countsOf([...normal, ...new Float32Array(50_000)]), "x", "i8", "percentile", 95);
    expect(range).toBeGreaterThan(1.95);
    expect(range).toBeLessThan(2.05);
  });

  test('by "mse" clips a lone outlier in i8, and keeps it in f8, whose small numbers are as exact as the large ones', () => {
    const counts = countsOf([...normal, 40]);
    const range = rangeOf(counts, "x", "i8", "mse");
    expect(range).toBeGreaterThan(2.5);
    expect(range).toBeLessThan(30);
    expect(rangeOf(counts, "x", "f8", "mse")).toBeGreaterThan(38);
  });

  test("of values that are not finite is an error that names them", () => {
    const counts = countsOf([1, Number.POSITIVE_INFINITY]);
    expect(() => rangeOf(counts, "head.conv conv2d", "f8", "mse")).toThrow(
      'calibrate: "head.conv conv2d" has values that are not finite',
    );
  });
});

describe("a detector", () => {
  const size = { height: 64, width: 64 };
  const detector = () => {
    const postprocess = { scoreThreshold: 0, topK: 50, maxDetections: 20 };
    return new CompactDetector({ classes: 2, width: 16, headConvs: 1, postprocess }).to(device, { seed: 3 }).eval();
  };
  const pixels = (n: number) => new Random("pixels").normal(n * 64 * 64 * 3);

  test("has a range for every value it computes on images, whatever the batches", async () => {
    using model = detector();
    using images = Tensor.from(device, pixels(3), [3, 64, 64, 3]);
    using two = Tensor.from(device, pixels(3).subarray(0, 2 * 64 * 64 * 3), [2, 64, 64, 3]);
    using rest = Tensor.from(device, pixels(4).subarray(2 * 64 * 64 * 3), [2, 64, 64, 3]);
    const whole = await calibrate(model, [{ images, count: 3 }]);
    // of the second batch, the second image is not to be looked at
    const parts = await calibrate(model, [
      { images: two, count: 2 },
      { images: rest, count: 1 },
    ]);
    expect(whole).toMatchObject({ version: 1, method: "mse", images: 3 });
    expect(Object.keys(whole.ranges.i8)).toEqual(
      expect.arrayContaining(["input images", "stem.conv conv2d", "class_head.last conv2d 2"]),
    );
    expect(parts).toEqual(whole);
    for (const dtype of ["f8", "i8"] as const) {
      for (const range of Object.values(whole.ranges[dtype])) expect(range).toBeGreaterThan(0);
    }
  });

  test.each(["f8", "i8"] as const)("finds in %s what it finds in fp32", async (dtype) => {
    if (missing(device, "f32", [`conv.${dtype}`])) return;
    using model = detector();
    using images = Tensor.from(device, pixels(2), [2, 64, 64, 3]);
    const table = await calibrate(model, [{ images, count: 2 }], { method: "max" });
    using exact = new DetectStep(model, { batchSize: 2, ...size });
    using quantized = new DetectStep(model, { batchSize: 2, ...size, quantization: { dtype, table } });
    const scores = async (step: DetectStep) => (await step.run(images, 2)).flat().map(({ score }) => score);
    const [expected, actual] = [await scores(exact), await scores(quantized)];
    expect(actual.length).toBe(expected.length);
    expect(quantized.program.calls.some(({ kind }) => kind === "conv2d_scaled")).toBe(true);
    for (const [i, score] of actual.entries()) expect(Math.abs(score - expected[i]!)).toBeLessThan(0.02);
  });

  test("without images is an error", async () => {
    using model = detector();
    await expect(calibrate(model, [])).rejects.toThrow("calibrate: expected at least one image");
  });
});

test("a table is kept as JSON; what is wrong in a file is named", async () => {
  const path = join(folder, "calibration.json");
  const ranges = { f8: { "a conv2d": 2.5 }, i8: { "a conv2d": 2 } };
  const table: CalibrationTable = { version: 1, method: "max", images: 7, ranges };
  await writeCalibration(path, table);
  expect(await readCalibration(path)).toEqual(table);
  const cases: [content: string, message: string][] = [
    ["{", `${path}: no calibration can be read`],
    ['{"version": 2}', `${path}: version: expected 1`],
    ["null", `${path}: version: expected 1`],
    ['{"version": 1, "ranges": {"f8": {"a": -1}}}', `${path}: ranges.f8: expected numbers from 0 by value`],
    ['{"version": 1, "ranges": {"f8": {}}}', `${path}: ranges.i8: expected numbers from 0 by value`],
  ];
  for (const [content, message] of cases) {
    writeFileSync(path, content);
    await expect(readCalibration(path)).rejects.toThrow(message);
  }
});

/** Statistics: they count what Triton's count, in its own documentation's examples. */
import { describe, expect, test } from "bun:test";
import { Histogram, RateMeter, StatisticsRecorder } from "../../lib/service/statistics";

const live = { queued: [0], queuedBytes: 0, running: 0, engines: [] };
const times = { transfer: 1, decode: 2, infer: 3, postprocess: 4 };

/** Runs batches, each a list of the images of its requests. */
function countsOf(batches: readonly (readonly number[])[]) {
  const recorder = new StatisticsRecorder("m", "1");
  for (const requests of batches) {
    recorder.batchDone(
      requests.reduce((sum, images) => sum + images, 0),
      times,
    );
    for (const _ of requests) recorder.requestDone(5, 20, 10, times);
  }
  const { success, inferences, executions } = recorder.snapshot(live);
  return [success, inferences, executions];
}

test.each([
  ["a request of one image", [[1]], [1, 1, 1]],
  ["a request of eight images", [[8]], [1, 8, 1]],
  ["requests of one and eight images, not batched", [[1], [8]], [2, 9, 2]],
  ["two requests of one image, batched", [[1, 1]], [2, 2, 1]],
  ["requests of one and eight images, batched", [[1, 8]], [2, 9, 1]],
] as const)("Triton's example: %s", (_, batches, counts) => {
  expect(countsOf(batches)).toEqual([...counts]);
});

describe("StatisticsRecorder", () => {
  test("sums times of requests, each with its batch's, and times of batches by size", () => {
    const recorder = new StatisticsRecorder("m", "2");
    recorder.batchDone(2, times);
    recorder.requestDone(1000, 30, 20, times);
    recorder.requestDone(2000, 40, 30, times);
    recorder.batchDone(1, { ...times, infer: 8 });
    recorder.requestDone(3000, 20, 3, times);
    const found = recorder.snapshot({ ...live, queued: [3, 0], queuedBytes: 7, running: 1 });
    expect(found).toMatchObject({
      name: "m",
      version: "2",
      lastInference: 3000,
      queued: [3, 0],
      queuedBytes: 7,
      running: 1,
    });
    expect(found.requestSeconds.total).toBeCloseTo(0.09, 9);
    expect(found.requestSeconds.queue).toBeCloseTo(0.053, 9);
    expect(found.requestSeconds.infer).toBeCloseTo(0.009, 9);
    expect(found.queueTimes.count).toBe(3);
    expect(found.queueTimes.sum).toBeCloseTo(0.053, 9);
    expect(found.stageTimes.infer.count).toBe(2);
    expect(found.stageTimes.infer.sum).toBeCloseTo(0.011, 9);
    expect(found.batchSizes).toMatchObject({ counts: [1, 1, 0, 0, 0, 0, 0, 0, 0], sum: 3, count: 2 });
    expect(found.batches).toEqual([
      { size: 1, executions: 1, stages: { transfer: 0.001, decode: 0.002, infer: 0.008, postprocess: 0.004 } },
      { size: 2, executions: 1, stages: { transfer: 0.001, decode: 0.002, infer: 0.003, postprocess: 0.004 } },
    ]);
  });

  test("counts failures by reason, and gives what is no more changed", () => {
    const recorder = new StatisticsRecorder("m", "1");
    recorder.requestFailed("REJECTED", 10);
    const before = recorder.snapshot(live);
    recorder.requestFailed("REJECTED", 10);
    recorder.requestFailed("CANCELED", 5);
    recorder.batchDone(1, times);
    expect(before).toMatchObject({
      failures: { REJECTED: 1, CANCELED: 0, BACKEND: 0, OTHER: 0 },
      failureSeconds: 0.01,
    });
    expect(before.batches).toEqual([]);
    expect(before.batchSizes.count).toBe(0);
    expect(recorder.snapshot(live)).toMatchObject({ failures: { REJECTED: 2, CANCELED: 1 } });
    expect(recorder.snapshot(live).failureSeconds).toBeCloseTo(0.025, 9);
  });
});

test("a histogram's bounds belong to the lower bucket, and what is beyond all of them is counted", () => {
  const histogram = new Histogram([1, 2]);
  for (const value of [0, 1, 1.5, 2, 3]) histogram.add(value);
  expect(histogram.data()).toEqual({ bounds: [1, 2], counts: [2, 2, 1], sum: 7.5, count: 5 });
});

describe("RateMeter", () => {
  test("knows nothing of one batch, then how many images come in a second, from what is recent", () => {
    const meter = new RateMeter();
    expect(meter.secondsFor(100)).toBe(1);
    meter.add(8, 0);
    expect(meter.rate()).toBe(0);
    for (let i = 1; i <= 100; i++) meter.add(8, i * 100);
    expect(meter.rate()).toBe(80);
    expect(meter.secondsFor(100)).toBe(2);
    expect(meter.secondsFor(0)).toBe(1);
    expect(meter.secondsFor(1e6)).toBe(60);
    meter.add(8, 100_000);
    expect(meter.rate()).toBe(0);
  });
});

/** The learning-rate range test: its rule against Lightning's, and a real one, which leaves the model as it was. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { CocoDataLoader, DeviceBatchDecoder, DeviceImageCodec, loadDataset, Normalize, Resize } from "../../lib/data";
import { CompactDetector } from "../../lib/models";
import { findRate, RateJudge, type RateRangeOptions, rangeRates, ratePicture, steepestRate } from "../../lib/train";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { writeTinyDataset } from "../support/tiny-dataset";

const device = testDevice({ deterministic: true });
let folder = "";
beforeAll(async () => {
  folder = await writeTinyDataset(device);
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

describe("the rule", () => {
  const file = new URL("../golden/schedules/rate-range.json", import.meta.url);
  const { cases } = JSON.parse(readFileSync(file, "utf8")) as {
    cases: { losses: number[]; smoothed: number[]; suggestion: number | null }[];
  };

  test.each(cases.map((each, i) => [i, each] as const))(
    "is Lightning's (%i)",
    (_, { losses, smoothed, suggestion }) => {
      const rates = rangeRates({ steps: losses.length });
      const judge = new RateJudge();
      for (const [i, loss] of losses.entries()) if (!judge.add(rates[i]!, loss)) break;
      const found = judge.points.map((point) => point.smoothed);
      expectClose(found, smoothed, { rtol: 1e-12, atol: 0 }, "the smoothed loss");
      const rate = steepestRate(judge.points);
      if (suggestion === null) expect(rate).toBeNull();
      else expect(rate! / suggestion).toBeCloseTo(1, 9);
    },
  );

  test("suggests nothing where the loss does not fall, and ends where a loss is no number", () => {
    const judge = new RateJudge();
    for (const rate of rangeRates({ steps: 50 })) expect(judge.add(rate, 1 + rate)).toBe(true);
    expect(steepestRate(judge.points)).toBeNull();
    expect(new RateJudge().add(0.1, Number.NaN)).toBe(false);
  });

  test("grows from one rate to the other by the same factor", () => {
    const rates = rangeRates({ from: 0.001, to: 1, steps: 4 });
    expectClose(rates, [0.001, 0.01, 0.1, 1], { rtol: 1e-12, atol: 0 }, "rates");
    expect(errorOf(() => rangeRates({ from: 1, to: 1 })).message).toBe("rateRange: expected 0 < from < to, got 1, 1");
    expect(errorOf(() => rangeRates({ steps: 1 })).message).toBe("rateRange: steps: expected an integer >= 2, got 1");
    expect(errorOf(() => new RateJudge({ smoothing: 1 })).message).toContain("smoothing: expected a number from 0");
    expect(errorOf(() => new RateJudge({ divergence: 1 })).message).toContain("divergence: expected a number above 1");
  });
});

describe("a test of a model", () => {
  /** Runs a range test; what it found, whether the model is as it was, and what was told of it. */
  async function run(options: Partial<RateRangeOptions>) {
    using dataset = await loadDataset(folder, { codec: new DeviceImageCodec(device), store: ":memory:" });
    using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
    model.to(device, { seed: 5 });
    const preprocessing = [new Resize(), new Normalize()];
    using decoder = new DeviceBatchDecoder(device, { batchSize: 2, height: 64, width: 64, preprocessing });
    const { store, source } = dataset;
    const shape = { batchSize: 2, size: [64, 64] as const, preprocessing };
    await using loader = new CocoDataLoader({ store, source, decoder, ...shape, split: "train2017", seed: 3 });
    const bytes = () => [...model.stateDict().values()].map((tensor) => Buffer.from(tensor.readBytes()));
    const before = bytes();
    const told: number[] = [];
    const result = await findRate({
      ...{ model, loader, decoder, optimizer: { momentum: 0.9 } },
      onStep: ({ rate }, steps) => void told.push(rate / steps),
      ...options,
    });
    const trained = model.parameters().every(({ requiresGrad }) => requiresGrad);
    const same = bytes().every((each, i) => each.equals(before[i]!));
    return { ...result, same, trained, told };
  }

  test("ends where the loss diverges, suggests a rate from before, and changes nothing", async () => {
    const { points, ended, suggestion, same, trained, told } = await run({
      ...{ from: 1e-4, to: 1e4, steps: 60, freeze: [{ match: "stem" }] },
    });
    expect(ended).toBe("diverged");
    expect(points.length).toBeLessThan(60);
    expect(points.length).toBeGreaterThan(15);
    const rates = rangeRates({ from: 1e-4, to: 1e4, steps: 60 });
    expect(points.map(({ rate }) => rate)).toEqual(rates.slice(0, points.length));
    expect(told).toEqual(points.map(({ rate }) => rate / 60));
    expect(suggestion).toBeGreaterThan(1e-4);
    expect(suggestion).toBeLessThan(points.at(-1)!.rate);
    expect([same, trained]).toEqual([true, true]);
    const picture = ratePicture({ points, ended, suggestion }, "a test");
    expect(picture).toContain(`${points.length} steps, until the loss diverged`);
    expect(picture).toContain(`suggested: ${Number(suggestion!.toPrecision(3))}`);
    expect(picture).not.toContain("NaN");
  });

  test("goes to the last step, each of several batches, or ends when it is interrupted", async () => {
    const whole = await run({ from: 1e-6, to: 1e-3, steps: 6, accumulate: 2 });
    expect([whole.ended, whole.points.length, whole.suggestion, whole.same]).toEqual(["last step", 6, null, true]);
    const stop = new AbortController();
    const onStep = () => stop.abort();
    const part = await run({ from: 1e-6, to: 1e-3, steps: 30, signal: stop.signal, onStep });
    expect([part.ended, part.same]).toEqual(["interrupted", true]);
    expect(part.points.length).toBeLessThan(6);
  });
});

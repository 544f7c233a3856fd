/** Learning-rate strategies against PyTorch's rates over 1,000 iterations (tests/golden/schedules/record.py). */
import { describe, expect, test } from "bun:test";
import {
  chained,
  constantRate,
  cosine,
  cosineRestarts,
  exponential,
  exponentialWarmup,
  multiStep,
  oneCycle,
  polynomial,
  ReduceOnPlateau,
  type Schedule,
  scheduleTable,
  stepped,
  warmup,
} from "../../lib/train";
import golden from "../golden/schedules/schedules.json";

const decode = (text: string): Float64Array => new Float64Array(Uint8Array.fromBase64(text).buffer);

function expectRates(found: ArrayLike<number>, name: keyof typeof golden.rates): void {
  const expected = decode(golden.rates[name]);
  expect([found.length, expected.length]).toEqual([golden.iterations, golden.iterations]);
  for (const [i, rate] of expected.entries()) {
    const error = Math.abs((found[i] as number) - rate);
    // PyTorch computes most rates from the ones before, and its rounding errors add up.
    if (!(error <= 1e-9 * rate + 1e-12)) throw new Error(`${name}: iteration ${i}: expected ${rate}, got ${found[i]}`);
  }
}

describe("PyTorch's rates", () => {
  const cases: [keyof typeof golden.rates, Schedule][] = [
    ["constant", constantRate(0.02)],
    ["multiStep", multiStep(0.02, [300, 500, 900], 0.3)],
    ["stepped", stepped(0.02, 170, 0.5)],
    ["exponential", exponential(0.5, 0.995)],
    ["polynomial", polynomial(0.1, 800, 0.9)],
    ["cosine", cosine(0.1, 1000, 0.001)],
    ["cosineRestarts", cosineRestarts(0.1, 100, 2, 0.002)],
    ["cosineRestarts, equal", cosineRestarts(0.1, 90)],
    ["oneCycle", oneCycle(0.4, 1000)],
    [
      "oneCycle, linear, three phases",
      oneCycle(0.4, 1000, { rise: 0.25, anneal: "linear", divideFirst: 10, divideLast: 100, threePhases: true }),
    ],
    ["warmup", warmup(constantRate(0.02), 500)],
    ["exponentialWarmup", exponentialWarmup(constantRate(0.02), 200, 0.01)],
    [
      "chained",
      chained([
        [0, warmup(constantRate(0.02), 50, 0.1)],
        [100, cosine(0.02, 600, 0.001)],
        [700, exponential(0.02, 0.99)],
      ]),
    ],
  ];
  test.each(cases)("%s", (name, schedule) => {
    const rates = Array.from({ length: golden.iterations }, (_, i) => schedule(i));
    expectRates(rates, name);
    // Each rate by itself, whatever was asked before: a resumed run begins in the middle.
    for (const i of [999, 0, 500]) expect(schedule(i)).toBe(rates[i]!);
  });

  test.each([
    ["plateau", golden.metric, { factor: 0.5, patience: 20, threshold: 1e-3, cooldown: 10, least: 1e-3 }],
    [
      "plateau of a loss",
      golden.loss,
      { better: "smaller", factor: 0.3, patience: 15, threshold: 0.01, thresholdMode: "absolute" },
    ],
  ] as const)("%s, also when restored on the way", (name, values, options) => {
    let plateau = new ReduceOnPlateau(options);
    const rates = [...decode(values)].map((value, i) => {
      if (i % 7 === 3) {
        const state = JSON.parse(JSON.stringify(plateau.state()));
        plateau = new ReduceOnPlateau(options);
        plateau.restore(state);
      }
      const rate = 0.1 * plateau.factor;
      const before = plateau.factor;
      expect(plateau.observe(value)).toBe(plateau.factor !== before);
      return rate;
    });
    // PyTorch leaves out reductions of less than 1e-8.
    const settled = rates.findIndex((rate) => rate < 1e-7);
    const until = settled < 0 ? rates.length : settled;
    const expected = decode(golden.rates[name]);
    for (let i = 0; i < until; i++) expect(rates[i]!).toBeCloseTo(expected[i]!, 12);
    expect(until).toBeGreaterThan(300);
    expect(new Set(rates).size).toBeGreaterThan(3);
  });
});

test("a cosine stays where it ends, and one cycle too", () => {
  expect([1000, 5000].map(cosine(0.1, 1000, 0.01))).toEqual([0.01, 0.01]);
  expect(oneCycle(1, 100)(250)).toBeCloseTo(1 / 25 / 1e4, 15);
});

test("a table holds one rate an iteration and refuses rates that are no numbers", () => {
  expect([...scheduleTable((i) => i / 4, 3)]).toEqual([0, 0.25, 0.5]);
  expect(() => scheduleTable(() => Number.NaN, 2)).toThrow("schedule: expected a rate >= 0 for iteration 0, got NaN");
});

test.each([
  [() => multiStep(1, [5, 3]), "expected increasing milestones, got 5, 3"],
  [() => stepped(1, 0), "every: expected an integer >= 1, got 0"],
  [() => exponential(1, 0), "gamma: expected a number > 0, got 0"],
  [() => polynomial(1, 10, -1), "power: expected a number >= 0, got -1"],
  [() => cosine(1, 1.5), "iterations: expected an integer >= 1, got 1.5"],
  [() => cosineRestarts(1, 10, 0), "factor: expected an integer >= 1, got 0"],
  [() => oneCycle(1, 100, { rise: 1 }), "rise: expected a part of the whole, got 1"],
  [() => warmup(constantRate(1), 10, 2), "factor: expected a number from 0 to 1, got 2"],
  [() => exponentialWarmup(constantRate(1), 10, 0), "factor: expected a number above 0 and up to 1, got 0"],
  [() => chained([[5, constantRate(1)]]), "begin at 0 and at increasing iterations, got 5"],
  [() => new ReduceOnPlateau({ factor: 1 }), "factor: expected a number between 0 and 1, got 1"],
])("bad options are errors that name them (%#)", (make, message) => {
  expect(make as () => unknown).toThrow(message);
});

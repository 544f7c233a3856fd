import { expect, test } from "bun:test";
import { constantRate, multiStep, scheduleTable, warmup } from "../../lib/train";

test("multiStep multiplies by gamma from each milestone on, as torch's MultiStepLR", () => {
  const schedule = multiStep(0.1, [3, 5], 0.1);
  expect([0, 2, 3, 4, 5, 9].map(schedule)).toEqual([0.1, 0.1, 0.1 * 0.1, 0.1 * 0.1, 0.1 * 0.1 ** 2, 0.1 * 0.1 ** 2]);
});

test("warmup rises linearly from factor times the rate and then follows the strategy", () => {
  const schedule = warmup(constantRate(2), 4, 0.5);
  expect([0, 1, 2, 3, 4, 5].map(schedule)).toEqual([1, 1.25, 1.5, 1.75, 2, 2]);
});

test("a table holds one rate an iteration and refuses rates that are no numbers", () => {
  expect([...scheduleTable((i) => i / 4, 3)]).toEqual([0, 0.25, 0.5]);
  expect(() => scheduleTable(() => Number.NaN, 2)).toThrow("schedule: expected a rate >= 0 for iteration 0, got NaN");
  expect(() => multiStep(1, [5, 3])).toThrow("expected increasing milestones, got 5, 3");
});

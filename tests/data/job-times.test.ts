/** How long decoding jobs are expected to take: what those before took, by their images and bytes. */
import { expect, test } from "bun:test";
import { JobTimes } from "../../lib/data/encoded-images";

test("jobs are expected to take what others of as many images took for a byte; the shortest counts", () => {
  const times = new JobTimes();
  expect(times.expected(1, 1000)).toBe(0);
  times.learn(1, 1000, 8);
  times.learn(1, 2000, 4);
  expect(times.expected(1, 500)).toBe(1);
  expect(times.expected(2, 500)).toBe(0);
  // What takes longer from now on is believed by and by.
  for (let i = 0; i < 100; i++) times.learn(1, 1000, 5);
  expect(times.expected(1, 1000)).toBeCloseTo(5, 3);
  times.learn(3, 0, 7);
  expect(times.expected(3, 0)).toBe(0);
});

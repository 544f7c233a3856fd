import { expect, test } from "bun:test";
import { lossCurve, STEPS } from "../golden/loss-curve/curve";
import recorded from "../golden/loss-curve/curve.json";
import { testDevice } from "../support/device";

test("twenty fp32 steps on a stored batch give the losses that the CPU backend recorded, within 1e-3", async () => {
  const curve = await lossCurve(testDevice({ deterministic: true }));
  expect(curve).toHaveLength(STEPS);
  for (const [step, expected] of recorded.entries()) {
    for (const [name, value] of Object.entries(expected)) {
      const difference = Math.abs(curve[step]![name]! - value) / value;
      expect(difference, `step ${step}, ${name}: expected ${value}, got ${curve[step]![name]}`).toBeLessThan(1e-3);
    }
  }
});

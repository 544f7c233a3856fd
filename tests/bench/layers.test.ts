/**
 * Times each layer forward and backward at the shapes it has in a detector, as programs run it. `bun test tests/bench` runs it and
 * prints a table; nothing about time is asserted. What the columns count: lib/bench/layers.ts.
 */
import { test } from "bun:test";
import { layerBenches, layerLine, measureLayer, title } from "../../lib/bench";
import { missing, testDevice } from "../support/device";
import { describeBench } from "./requested";

const device = testDevice();
const batch = device.backend === "cuda" ? 16 : 1;

describeBench("layers", () => {
  for (const dtype of ["f32", "bf16"] as const) {
    const reason = missing(device, dtype, dtype === "bf16" ? ["conv.bf16"] : []);
    if (reason) {
      test.skip(`${dtype} (skipped: ${reason})`, () => {});
      continue;
    }
    test(`${dtype}: ceilings`, () => console.log(`${title(device, dtype)}\nlayers, batch of ${batch}`), 120_000);
    for (const bench of layerBenches) {
      const run = () => {
        for (const timing of measureLayer(device, bench, batch, dtype)) console.log(layerLine(device, dtype, timing));
      };
      test(`${dtype}: ${bench.name}`, run, 120_000);
    }
  }
});

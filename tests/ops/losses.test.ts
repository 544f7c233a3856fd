import { describe, expect, test } from "bun:test";
import { constants } from "../../lib/native";
import { outHandle, Tensor } from "../../lib/tensor";
import { testDevice } from "../support/device";
import { lossCases } from "./cases/losses";
import { describeCases } from "./check";

describeCases("detection losses", lossCases);

const device = testDevice();
const { native } = device;
const stream = device.stream.handle;
const { F32, CODER_LINEAR, BOX_LOSS_GIOU, BOX_LOSS_SMOOTH_L1 } = constants;

/** The arrays of a map of 3 anchors and `columns` values of each: gradient, values; cells, pitches, levels, images, per cell. */
const maps = (at: { gradient: number; values: number }) =>
  [BigInt64Array.of(BigInt(at.gradient)), BigInt64Array.of(BigInt(at.values))] as const;
const sizesOf = (columns: number) => [Int32Array.of(3), Int32Array.of(columns), 1, 1, 1] as const;

/** Runs a loss of 4 values for each of 3 anchors with these matches; returns the loss and the gradient. */
function lossOf(
  matches: number[],
  foreground: number,
  enqueue: (
    at: Record<"loss" | "gradient" | "values" | "boxes" | "matches" | "foreground" | "scratch", number>,
  ) => void,
): number[] {
  const bytes = outHandle();
  native.detectionLossWorkspace(device.handle, bytes.view, 1, 3, 4);
  const more = outHandle();
  native.crossEntropyLossWorkspace(device.handle, more.view, 1, 3, 1);
  using loss = Tensor.zeros(device, [1]);
  using gradient = Tensor.zeros(device, [3, 4]);
  using values = Tensor.from(device, [1, 2, 3, 4, 0.5, 0.25, 1, 2, 2, 1, 0.5, 1], [3, 4]);
  using boxes = Tensor.from(device, [0, 0, 8, 8, 0, 0, 8, 8, 0, 0, 8, 8], [3, 4]);
  using matched = Tensor.from(device, matches, [3], "i32");
  using count = Tensor.from(device, [foreground], [1], "i32");
  using scratch = Tensor.zeros(device, [Math.max(bytes.value, more.value)], "u8");
  enqueue({
    loss: loss.address,
    gradient: gradient.address,
    values: values.address,
    boxes: boxes.address,
    matches: matched.address,
    foreground: count.address,
    scratch: scratch.address,
  });
  return [...loss.read(), ...gradient.read()];
}

type Losses = [string, (matches: number[], maxBoxes: number) => number[]];
const losses: Losses[] = [
  [
    "focal loss",
    (matches, maxBoxes) =>
      lossOf(matches, 1, (at) => {
        const labels = maxBoxes > 0 ? at.foreground : null; // the label is 1
        const sizes = [...sizesOf(4), 4, maxBoxes, F32, 0.25, 2, 0, 1] as const;
        native.focalLoss(stream, at.loss, ...maps(at), at.matches, labels, at.foreground, null, at.scratch, ...sizes);
      }),
  ],
  [
    "box loss",
    (matches, maxBoxes) =>
      lossOf(matches, 1, (at) => {
        const truth = maxBoxes > 0 ? at.boxes : null;
        const rules = [maxBoxes, F32, BOX_LOSS_GIOU, CODER_LINEAR, 1, 1, 1, 1, 0, 0, 1] as const;
        const operands = [at.boxes, at.matches, truth, at.foreground, null, at.scratch] as const;
        native.boxLoss(stream, at.loss, ...maps(at), ...operands, ...sizesOf(4), ...rules);
      }),
  ],
  [
    "centre-ness loss",
    (matches, maxBoxes) =>
      lossOf(matches, 1, (at) => {
        const truth = maxBoxes > 0 ? at.boxes : null;
        const operands = [at.boxes, at.matches, truth, at.foreground, null, at.scratch] as const;
        native.centernessLoss(stream, at.loss, ...maps(at), ...operands, ...sizesOf(1), maxBoxes, F32, 0, 1);
      }),
  ],
];

describe("matches with boxes that are not there", () => {
  test.each(losses)("%s: they count as background", (_name, run) => {
    expect(run([0, 100_000_000, -1], 1)).toEqual(run([0, -1, -1], 1));
    expect(run([100_000_000, 0, -1], 0)).toEqual(run([-1, -1, -1], 0));
  });
});

test("a ratio of negatives that is infinite in fp32 takes none without foreground, else all", () => {
  const run = (matches: number[], foreground: number, ratio: number) =>
    lossOf(matches, foreground, (at) => {
      const sizes = [1, 3, 4, 1, F32, ratio, 1, 1] as const;
      const labels = at.foreground; // the label is 1
      native.crossEntropyLoss(
        stream,
        at.loss,
        at.gradient,
        at.values,
        at.matches,
        labels,
        at.foreground,
        null,
        at.scratch,
        ...sizes,
      );
    });
  expect(run([-1, -1, -2], 0, 1e39)).toEqual(new Array(13).fill(0));
  expect(run([0, -1, -1], 1, 1e39)).toEqual(run([0, -1, -1], 1, 100));
});

test("box weights mean nothing to the linear coder's losses", () => {
  for (const kind of [BOX_LOSS_SMOOTH_L1, BOX_LOSS_GIOU]) {
    const run = (weight: number) =>
      lossOf([0, 0, -1], 2, (at) => {
        const rules = [1, F32, kind, CODER_LINEAR, weight, weight, weight, weight, 0, 0, 1] as const;
        const operands = [at.boxes, at.matches, at.boxes, at.foreground, null, at.scratch] as const;
        native.boxLoss(stream, at.loss, ...maps(at), ...operands, ...sizesOf(4), ...rules);
      });
    expect(run(0)).toEqual(run(1));
  }
});

/** What the cases of detection losses share: matched anchors and the counts of them. */
import { constants } from "../../../lib/native";
import { outHandle } from "../../../lib/tensor";
import type { Random } from "../../support/random";
import type { Normalization } from "../reference/losses";
import type { CaseContext, Input } from "./case";
import type { MapOptions } from "./level-maps";

export const f32 = { kind: "f32" } as const;
export const i32 = { kind: "i32" } as const;

/** Maps are those of the predictions. */
export interface LossOptions extends MapOptions {
  n: number;
  anchors: number;
  maxBoxes: number;
  /** Images of this many boxes, in turn; default maxBoxes. */
  counts?: readonly number[];
  /** Share of the anchors that are foreground where an image has boxes; half of the others are background. Default 1/3. */
  foreground?: number;
  /** Share of the anchors that are ignored; default 1/3. */
  ignored?: number;
  normalization?: Normalization;
  gradFactor?: number;
  /** Multiplies the gradients too; on the device. */
  gradScale?: number;
  /** Without a gradient, as in validation. */
  lossOnly?: boolean;
}

export const normalizationCode = (normalization: Normalization = "image"): number =>
  normalization === "image" ? constants.LOSS_PER_IMAGE : constants.LOSS_WHOLE_BATCH;

/** Matches of all three kinds; no foreground where an image has no boxes. */
export function drawMatches(options: LossOptions): Input {
  const { n, anchors, maxBoxes, counts = [maxBoxes], foreground = 1 / 3, ignored = 1 / 3 } = options;
  const values = (random: Random) =>
    Int32Array.from({ length: n * anchors }, (_, i) => {
      const boxes = counts[Math.floor(i / anchors) % counts.length]!;
      const share = random.next();
      if (share < foreground) return boxes > 0 ? random.integer(0, boxes) : -1;
      return share < foreground + ignored ? -2 : -1;
    });
  return { shape: [n, anchors], ...i32, values };
}

export const foregroundOf = ({ n, anchors }: LossOptions): Input => ({
  shape: [n],
  ...i32,
  values: (_random, _size, { matches }) =>
    Array.from({ length: n }, (_, image) => {
      let count = 0;
      for (let a = image * anchors; a < (image + 1) * anchors; ++a) if (matches![a]! >= 0) ++count;
      return count;
    }),
});

/** The operand that multiplies the gradients, where there is one. */
export const gradScaleOf = ({ gradScale }: LossOptions): Record<string, Input> =>
  gradScale === undefined ? {} : { gradScale: { shape: [1], ...f32, values: () => [gradScale] } };

/** What the gradients are multiplied by in all. */
export const timesOf = ({ gradFactor = 1, gradScale = 1 }: LossOptions): number => gradFactor * gradScale;

/** The loss sums `terms` values of mixed size; its gradient's elements are single terms. */
export const lossTolerance = { rtol: 1e-5, atol: 1e-7 };

/** Scratch memory of the losses that only sum. */
export function sumWorkspace(c: CaseContext, n: number, anchors: number, classes: number): number | null {
  const bytes = outHandle();
  c.native.detectionLossWorkspace(c.device.handle, bytes.view, n, anchors, classes);
  return c.workspace(bytes.value);
}

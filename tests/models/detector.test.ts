/** What every anchor-based detector shares: its options reach the losses. */
import { describe, expect, test } from "bun:test";
import type { BoxLossOptions, Targets } from "../../lib/detection";
import { slice, type Value } from "../../lib/graph";
import { Detector, type HeadOutput } from "../../lib/models";
import { numbers, program } from "../graph/support";
import * as reference from "../ops/reference/losses";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";

/** The heads' maps are the image itself: a logit and four deltas in five channels. */
class Given extends Detector {
  heads(images: Value): HeadOutput[] {
    return [{ logits: slice(images, 3, 0, 1), deltas: slice(images, 3, 1, 4) }];
  }
}

describe("boxLoss", () => {
  // Anchors of 8 pixels at the corners of a square of one, all of which match one box.
  const anchors = [-4, -4, 4, 4, -3, -4, 5, 4, -4, -3, 4, 5, -3, -3, 5, 5];
  const truth = [-4, -4, 5, 4];
  const images = [0, 0.1, 0, 0.2, 0, 1, 0, 0.1, 0.1, 0, -1, 0, 0, 0.3, 0.1, 0, 0.2, 0.1, 0, -0.2];
  const deltas = images.filter((_, i) => i % 5 !== 0);

  const options: (BoxLossOptions | undefined)[] = [
    undefined,
    { kind: "smooth_l1", beta: 0.15 },
    { kind: "giou" },
    { kind: "ciou" },
  ];
  test.each(options.map((boxLoss) => [JSON.stringify(boxLoss), boxLoss] as const))("%s", (_, boxLoss) => {
    const model = new Given({
      classes: 1,
      anchors: { sizes: [[8]], aspectRatios: [1] },
      ...(boxLoss && { boxLoss }),
    });
    using made = program(
      testDevice(),
      {
        images: { shape: [1, 2, 2, 5], values: images },
        boxes: { shape: [1, 1, 4], values: truth },
        labels: { shape: [1, 1], values: [0], dtype: "i32" },
        counts: { shape: [1], values: [1], dtype: "i32" },
      },
      (v) => ({ loss: model.losses(v.images!, v as unknown as Targets).boxRegression }),
    );
    made.run();
    const { kind = "l1", beta = 0 } = boxLoss ?? {};
    const matched = { deltas, anchors, boxes: truth, matches: [0, 0, 0, 0], n: 1, maxBoxes: 1 };
    const shared = { coder: "centre", weights: [1, 1, 1, 1], normalization: "image" } as const;
    const expected = reference.boxLoss({ ...matched, ...shared, kind, beta });
    expect(expected.loss).toBeGreaterThan(0.01);
    expectClose(numbers(made.results.loss), [expected.loss], { rtol: 1e-5, atol: 1e-6 });
  });
});

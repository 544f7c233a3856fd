/** Whole calls: pixels or normalised images, batches that are not full, several in flight. */
import { afterAll, describe, expect, test } from "bun:test";
import { CompactDetector } from "../../lib/models";
import { Tensor } from "../../lib/tensor";
import { type Detection, DetectStep, powersOfTwo } from "../../lib/train";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const device = testDevice();
const [n, height, width] = [4, 32, 48];
const postprocess = { scoreThreshold: 0.001, topK: 20, nmsThreshold: 0.5, maxDetections: 8 };
const model = new CompactDetector({ classes: 3, width: 4, postprocess });
model.to(device, { seed: 3 });
const pixels = new Random("pixels").integers(n * height * width * 3, 0, 256);
const { mean, std } = model.normalization;
const bytes = Tensor.from(device, pixels, [n, height, width, 3], "u8");
const normalised = Tensor.from(
  device,
  Float32Array.from(pixels, (value, i) => (value / 255 - mean[i % 3]!) / std[i % 3]!),
  [n, height, width, 3],
);
const options = { batchSize: n, height, width };
afterAll(() => {
  for (const tensor of [bytes, normalised]) tensor.dispose();
  model.dispose();
});

const flat = (found: Detection[][]) =>
  found.map((image) => image.flatMap(({ box, score, label }) => [...box, score, label]));

function expectAlike(own: Detection[][], expected: Detection[][]): void {
  expect(own.map(({ length }) => length)).toEqual(expected.map(({ length }) => length));
  for (const [image, values] of flat(own).entries()) {
    expectClose(values, flat(expected)[image]!, { rtol: 1e-4, atol: 1e-4 }, `image ${image}`);
  }
}

describe("DetectStep", () => {
  test("pixels are normalised as the model says", async () => {
    using plain = new DetectStep(model, options);
    using own = new DetectStep(model, { ...options, images: "pixels" });
    const expected = await plain.run(normalised, n);
    expect(expected.every((image) => image.length > 2)).toBe(true);
    expectAlike(await own.run(bytes, n), expected);
  });

  test("a batch runs in the smallest program that holds it", async () => {
    using whole = new DetectStep(model, { ...options, images: "pixels" });
    using step = new DetectStep(model, { ...options, images: "pixels", buckets: powersOfTwo(n) });
    const expected = await whole.run(bytes, n);
    for (const count of [1, 3, 2, 4, 1]) expectAlike(await step.run(bytes, count), expected.slice(0, count));
    step.prepare();
    step.refresh();
    expectAlike(await step.run(bytes, 2), expected.slice(0, 2));
  });

  test("boxes are clipped to the sizes given", async () => {
    using step = new DetectStep(model, options);
    const sizes = Array.from({ length: n }, (_, i) => [20 + i, 30 + i] as const);
    for (const [i, image] of (await step.run(normalised, n, sizes)).entries()) {
      expect(image.length).toBeGreaterThan(2);
      for (const { box } of image) {
        expect(Math.max(box[0], box[2])).toBeLessThanOrEqual(30 + i);
        expect(Math.max(box[1], box[3])).toBeLessThanOrEqual(20 + i);
      }
    }
  });

  test("calls that are in flight together get their own answers", async () => {
    using step = new DetectStep(model, { ...options, images: "pixels", buckets: [1, n] });
    const [first, all] = [await step.run(bytes, 1), await step.run(bytes, n)];
    const answers = await Promise.all([1, n, 1, n, n, 1, 1].map((count) => step.run(bytes, count)));
    for (const answer of answers) expect(answer).toEqual(answer.length === 1 ? first : all);
  });

  test("what does not fit is named", async () => {
    expect(powersOfTwo(6)).toEqual([1, 2, 4, 6]);
    expect(errorOf(() => new DetectStep(model, { ...options, buckets: [1, 2] })).message).toContain(
      "expected buckets of positive sizes up to batchSize, 4, got 1, 2",
    );
    using step = new DetectStep(model, options);
    expect(step.run(normalised, n + 1)).rejects.toThrow("expected 1 to 4 images, got 5");
    expect(step.run(bytes, 1)).rejects.toThrow("expected f32 (1, 32, 48, 3), got u8 (1, 32, 48, 3)");
  });
});

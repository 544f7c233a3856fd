/** The Hopper convolution kernel in all its tile widths, not only where it is chosen; it runs on compute capability 9.0. */
import { describe, expect, test } from "bun:test";
import { ErrorCode } from "../../lib/native";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { type ConvShape, convForward, convShape, type Epilogue } from "./cases/conv";
import { convScaled } from "./cases/quantize";
import { checkResults } from "./check";

const square = (r: number): Partial<ConvShape> => ({ r, s: r, padding: [r >> 1, r >> 1] });

/** Sizes that tiles of 128 pixels, slices of 64 channels and tiles of output channels divide, and those that they do not. */
const shapes: [string, ConvShape][] = [
  ["1x1, one pixel more than a tile", convShape({ n: 1, h: 3, w: 43, c: 64, k: 64 })],
  ["1x1, 8 to 8 channels", convShape({ h: 5, w: 7, c: 8, k: 8 })],
  ["1x1, 136 to 264 channels", convShape({ h: 9, w: 16, c: 136, k: 264 })],
  ["1x1, stride 2", convShape({ h: 13, w: 18, c: 72, k: 136, stride: [2, 2] })],
  ["3x3", convShape({ n: 3, h: 11, w: 10, c: 64, k: 208, ...square(3) })],
  ["3x3, stride 2, odd sizes", convShape({ h: 15, w: 13, c: 40, k: 72, ...square(3), stride: [2, 2] })],
  [
    "3x3, stride 2x1, dilation 2x3",
    convShape({ h: 15, w: 17, c: 24, k: 16, ...square(3), stride: [2, 1], dilation: [2, 3] }),
  ],
  ["5x3 without padding", convShape({ h: 12, w: 9, c: 16, k: 24, r: 5, s: 3 })],
  ["3x3, more padding than the kernel reaches", convShape({ h: 4, w: 5, c: 8, k: 16, r: 3, s: 3, padding: [3, 2] })],
  ["tiles of several waves", convShape({ n: 9, h: 47, w: 49, c: 8, k: 136 })],
];

const epilogues: [string, Epilogue][] = [
  ["no epilogue", {}],
  ["bias and relu", { bias: true, activation: "relu" }],
  ["residual", { residual: true }],
  ["bias, residual and relu", { bias: true, residual: true, activation: "relu" }],
];

/** The tiles that are candidates for k output channels: not those that would be half empty. */
function tileWidths(k: number): number[] {
  return [64, ...(k > 64 ? [128] : []), ...(k > 128 ? [256] : []), ...(k === 208 ? [208] : [])];
}

/** In 8 bits, slices are of 128 channels; channels come in multiples of 16, in results of 16 bits of 8. */
const quantizedShapes: [string, ConvShape][] = [
  ["1x1, one pixel more than a tile", convShape({ n: 1, h: 3, w: 43, c: 128, k: 64 })],
  ["1x1, 16 to 16 channels", convShape({ h: 5, w: 7, c: 16, k: 16 })],
  ["1x1, 144 to 272 channels", convShape({ h: 9, w: 16, c: 144, k: 272 })],
  ["1x1, stride 2", convShape({ h: 13, w: 18, c: 80, k: 144, stride: [2, 2] })],
  ["3x3", convShape({ n: 3, h: 11, w: 10, c: 64, k: 208, ...square(3) })],
  ["3x3, 256 channels", convShape({ h: 9, w: 15, c: 256, k: 256, ...square(3) })],
  ["3x3, stride 2, odd sizes", convShape({ h: 15, w: 13, c: 48, k: 80, ...square(3), stride: [2, 2] })],
  ["tiles of several waves", convShape({ n: 9, h: 47, w: 49, c: 16, k: 144 })],
];

const device = testDevice();
const { computeCapability } = device.info;
if (computeCapability !== 90) {
  test.skip(`the Hopper kernel (skipped: compute capability ${computeCapability || "none"}, not 9.0)`, () => {});
} else {
  describe.each(["bf16", "f16"] as const)("%s", (dtype) => {
    for (const [name, shape] of shapes) {
      test.each(epilogues)(`${name}: %s`, (_, epilogue) => {
        for (const width of tileWidths(shape.k))
          checkResults(convForward(name, shape, epilogue, `sm90 ${width}`), dtype);
      });
    }
  });

  describe.each(["f8", "i8"] as const)("%s", (dtype) => {
    for (const [name, shape] of quantizedShapes) {
      test.each(epilogues)(`${name}: %s`, (_, epilogue) => {
        for (const width of tileWidths(shape.k)) {
          if (width !== 208) checkResults(convScaled(name, dtype, shape, epilogue, false, `sm90 ${width}`), "f32");
          checkResults(convScaled(name, dtype, shape, epilogue, true, `sm90 ${width}`), "f16");
        }
      });
    }

    test("40 channels of results in bf16", () => {
      const shape = convShape({ h: 9, w: 16, c: 64, k: 40, ...square(3) });
      checkResults(convScaled("40 channels", dtype, shape, { bias: true }, true, "sm90 64"), "bf16");
    });
  });

  test("a pick for what the kernel cannot compute is refused", () => {
    const shape = convShape({ h: 4, w: 4, c: 12, k: 16 });
    const error = errorOf(() => checkResults(convForward("12 channels", shape, {}, "sm90 64"), "bf16"));
    expect(error.code).toBe(ErrorCode.argument);
    expect(error.message).toContain("does not fit");
  });
}

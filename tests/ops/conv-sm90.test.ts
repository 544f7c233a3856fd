/** The Hopper convolution kernel in all its tile widths, not only where it is chosen; it runs on compute capability 9.0. */
import { describe, expect, test } from "bun:test";
import { ErrorCode } from "../../lib/native";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import type { OpCase } from "./cases/case";
import { type ConvShape, convForward, convShape, type Epilogue } from "./cases/conv";
import { convScaled } from "./cases/quantize";
import { checkAlgorithms, checkResults } from "./check";

const square = (r: number): Partial<ConvShape> => ({ r, s: r, padding: [r >> 1, r >> 1] });

/** Sizes that tiles of 128 pixels, slices of 64 channels and tiles of output channels divide, and those that they do not. */
const shapes: [string, ConvShape][] = [
  ["1x1, one pixel more than a tile", convShape({ n: 1, h: 3, w: 43, c: 64, k: 64 })],
  ["1x1, 8 to 8 channels", convShape({ h: 5, w: 7, c: 8, k: 8 })],
  ["1x1, stride 2", convShape({ h: 13, w: 18, c: 72, k: 136, stride: [2, 2] })],
  ["3x3", convShape({ n: 2, h: 8, w: 9, c: 64, k: 208, ...square(3) })],
  ["3x3, stride 2, odd sizes", convShape({ h: 15, w: 13, c: 40, k: 72, ...square(3), stride: [2, 2] })],
  [
    "3x3, stride 2x1, dilation 2x3",
    convShape({ h: 15, w: 17, c: 24, k: 16, ...square(3), stride: [2, 1], dilation: [2, 3] }),
  ],
  ["5x3 without padding", convShape({ h: 12, w: 9, c: 16, k: 24, r: 5, s: 3 })],
  ["3x3, more padding than the kernel reaches", convShape({ h: 4, w: 5, c: 8, k: 16, r: 3, s: 3, padding: [3, 2] })],
];

/** In 8 bits, slices are of 128 channels; channels come in multiples of 16, in results of 16 bits of 8. */
const quantizedShapes: [string, ConvShape][] = [
  ["1x1, one pixel more than a tile", convShape({ n: 1, h: 3, w: 43, c: 128, k: 64 })],
  ["1x1, 16 to 16 channels", convShape({ h: 5, w: 7, c: 16, k: 16 })],
  ["1x1, stride 2", convShape({ h: 13, w: 18, c: 80, k: 144, stride: [2, 2] })],
  ["3x3", convShape({ n: 2, h: 8, w: 9, c: 64, k: 208, ...square(3) })],
  ["3x3, 256 channels", convShape({ n: 1, h: 9, w: 15, c: 256, k: 256, ...square(3) })],
  ["3x3, stride 2, odd sizes", convShape({ h: 15, w: 13, c: 48, k: 80, ...square(3), stride: [2, 2] })],
];

/** More tiles than multiprocessors: 138 of 128 pixels by 64 channels, or as many of 128 pixels by 256. */
const manyTiles = convShape({ n: 8, h: 33, w: 33, c: 16, k: 80 });
const manyWideTiles = convShape({ n: 16, h: 33, w: 33, c: 16, k: 144 });

const everything: Epilogue = { bias: true, residual: true, activation: "relu" };
const allEpilogues: [string, Epilogue][] = [
  ["no epilogue", {}],
  ["bias and relu", { bias: true, activation: "relu" }],
  ["residual", { residual: true }],
  ["bias, residual and relu", everything],
];
const epilogues = allEpilogues.filter(([, epilogue]) => epilogue.bias === epilogue.residual);

type Widths = [number, ...number[]];

/** The tiles that are candidates for k output channels: not those that would be half empty; 208 for results of 16 bits. */
function tileWidths(k: number, has208 = true): Widths {
  return [64, ...(k > 64 ? [128] : []), ...(k > 128 ? [256] : []), ...(k === 208 && has208 ? [208] : [])];
}

/** One case for each width, by its pick. */
function withWidths([first, ...rest]: Widths, of: (pick: string) => OpCase): [OpCase, ...OpCase[]] {
  return [of(`sm90 ${first}`), ...rest.map((width) => of(`sm90 ${width}`))];
}

const device = testDevice();
const { computeCapability } = device.info;
if (computeCapability !== 90) {
  test.skip(`the Hopper kernel (skipped: compute capability ${computeCapability || "none"}, not 9.0)`, () => {});
} else {
  describe.each(["bf16", "f16"] as const)("%s", (dtype) => {
    const check = (name: string, shape: ConvShape, epilogue: Epilogue, widths = tileWidths(shape.k)) =>
      checkAlgorithms(
        withWidths(widths, (pick) => convForward(name, shape, epilogue, pick)),
        dtype,
      );
    const wide = convShape({ h: 9, w: 16, c: 136, k: 264 });
    test.each(allEpilogues)("1x1, 136 to 264 channels: %s", (name, epilogue) => check(name, wide, epilogue));
    for (const [name, shape] of shapes) {
      test.each(epilogues)(`${name}: %s`, (_, epilogue) => check(name, shape, epilogue));
    }
    test("tiles of several waves", () => check("several waves", manyTiles, everything, [64]));
  });

  test("tiles of 256 channels in several waves", () => {
    checkResults(convForward("several waves", manyWideTiles, everything, "sm90 256"), "f16");
  });

  describe.each(["f8", "i8"] as const)("%s", (dtype) => {
    const check = (name: string, shape: ConvShape, epilogue: Epilogue, isWide: boolean, widths?: Widths) =>
      checkAlgorithms(
        withWidths(widths ?? tileWidths(shape.k, isWide), (pick) =>
          convScaled(name, dtype, shape, epilogue, isWide, pick),
        ),
        isWide ? "f16" : "f32",
      );
    const wide = convShape({ h: 9, w: 16, c: 144, k: 272 });
    test.each(allEpilogues)("1x1, 144 to 272 channels: %s", (name, epilogue) => {
      check(name, wide, epilogue, false);
      check(name, wide, epilogue, true);
    });
    for (const [name, shape] of quantizedShapes) {
      test.each(epilogues)(`${name}: %s`, (_, epilogue) => check(name, shape, epilogue, false));
      test(`${name}: results in f16`, () => check(name, shape, everything, true));
    }
    test("tiles of several waves", () => check("several waves", manyTiles, everything, false, [64]));

    test("40 channels of results in bf16", () => {
      const shape = convShape({ h: 9, w: 16, c: 64, k: 40, ...square(3) });
      checkResults(convScaled("40 channels", dtype, shape, { bias: true }, true, "sm90 64"), "bf16");
    });
  });

  test("tiles of 256 channels of 8 bits in several waves", () => {
    checkResults(convScaled("several waves", "i8", manyWideTiles, everything, false, "sm90 256"), "f32");
  });

  test("a pick for what the kernel cannot compute is refused", () => {
    const shape = convShape({ h: 4, w: 4, c: 12, k: 16 });
    const error = errorOf(() => checkResults(convForward("12 channels", shape, {}, "sm90 64"), "bf16"));
    expect(error.code).toBe(ErrorCode.argument);
    expect(error.message).toContain("does not fit");
  });
}

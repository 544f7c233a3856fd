/** Convolutions that give the moments of their result, by parts that together are the result's. */
import { describe, expect, test } from "bun:test";
import { constants, cString, ErrorCode } from "../../lib/native";
import { dtypeCode, outHandle, Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";
import { type ConvShape, convShape } from "./cases/conv";
import { outputSize } from "./reference/conv";

const device = testDevice();
const { native, stream } = device;

const shapes: [string, ConvShape][] = [
  ["one row", convShape({ n: 1, h: 1, w: 1, c: 8, k: 8 })],
  ["fewer rows than parts", convShape({ n: 1, h: 1, w: 3, c: 16, k: 72 })],
  ["a row more than a tile", convShape({ n: 1, h: 3, w: 43, c: 64, k: 64 })],
  ["several tiles of rows and channels", convShape({ n: 3, h: 31, w: 33, c: 40, k: 264 })],
  ["many tiles for a part", convShape({ n: 5, h: 67, w: 65, c: 8, k: 136 })],
  ["stride 2", convShape({ h: 13, w: 18, c: 24, k: 128, stride: [2, 2] })],
];

function create(shape: ConvShape, dtype: "f32" | "bf16" | "f16", pick: string, flags: number = constants.CONV_MOMENTS) {
  const { n, h, w, c, k, r, s, stride, padding, dilation, groups } = shape;
  const sizes = [n, h, w, c, k, r, s, stride[0], stride[1], padding[0], padding[1]] as const;
  const out = outHandle();
  native.convCreate(
    device.handle,
    out.view,
    cString(pick),
    constants.CONV_FORWARD,
    dtypeCode(dtype),
    ...sizes,
    dilation[0],
    dilation[1],
    groups,
    flags,
    constants.ACT_NONE,
  );
  return out.value;
}

/** The Hopper kernel's tile widths where that is what runs; else what the backend chooses. */
const picks = device.backend === "cuda" ? ["", "sm90 64", "sm90 128", "sm90 256"] : [""];

describe.each(["f32", "bf16", "f16"] as const)("%s", (dtype) => {
  const reason = missing(device, "f32", [`conv.moments.${dtype}`]);
  if (reason) {
    test.skip(`moments (skipped: ${reason})`, () => {});
    return;
  }
  test.each(shapes)("%s", (name, shape) => {
    const [p, q] = outputSize(shape);
    const [rows, { k }] = [shape.n * p * q, shape];
    const random = new Random(name);
    using x = Tensor.from(
      device,
      random.normal(shape.n * shape.h * shape.w * shape.c, 3),
      [shape.n, shape.h, shape.w, shape.c],
      dtype,
    );
    using w = Tensor.from(device, random.normal(k * shape.c), [k, shape.c], dtype);
    for (const pick of picks) {
      if (pick && k <= Number(pick.slice(5)) / 2) continue; // half of the tile would be empty
      const conv = create(shape, dtype, pick);
      const bytes = outHandle();
      native.convWorkspace(conv, bytes.view);
      using workspace = Tensor.empty(device, [Math.max(1, bytes.value)], "u8");
      using y = Tensor.empty(device, [rows, k], dtype);
      const parts = device.info.units;
      using moments = Tensor.full(device, [(2 * k + 1) * parts], 1e30);
      native.convForwardMoments(
        stream.handle,
        conv,
        y.address,
        moments.address,
        x.address,
        w.address,
        bytes.value > 0 ? workspace.address : null,
      );
      const [values, got] = [y.read(), moments.read() as Float32Array];
      native.convDestroy(conv);
      const counts = got.subarray(2 * parts * k);
      expect(counts.reduce((sum, n) => sum + n, 0)).toBe(rows);
      const [mean, squares] = [new Float64Array(k), new Float64Array(k)];
      const [wantedMean, wantedSquares] = [new Float64Array(k), new Float64Array(k)];
      for (let c = 0; c < k; ++c) {
        for (let part = 0; part < parts; ++part) mean[c]! += (got[part * k + c]! * counts[part]!) / rows;
        for (let part = 0; part < parts; ++part) {
          squares[c]! += got[(parts + part) * k + c]! + counts[part]! * (got[part * k + c]! - mean[c]!) ** 2;
        }
        for (let row = 0; row < rows; ++row) wantedMean[c]! += values[row * k + c]! / rows;
        for (let row = 0; row < rows; ++row) wantedSquares[c]! += (values[row * k + c]! - wantedMean[c]!) ** 2;
      }
      expectClose(mean, wantedMean, { rtol: 1e-5, atol: 1e-4 });
      expectClose(squares, wantedSquares, { rtol: 1e-4, atol: 1e-4 });
    }
  });

  test("other kernels and numbers of channels are refused", () => {
    const refused = (shape: ConvShape, flags?: number) => errorOf(() => create(shape, dtype, "", flags)).code;
    expect(refused(convShape({ h: 4, w: 4, c: 8, k: 8, r: 3, s: 3 }))).toBe(ErrorCode.unsupported);
    expect(refused(convShape({ h: 4, w: 4, c: 12, k: 8 }))).toBe(ErrorCode.unsupported);
    const both = constants.CONV_MOMENTS | constants.CONV_BIAS;
    expect(refused(convShape({ h: 4, w: 4, c: 8, k: 8 }), both)).toBe(ErrorCode.argument);
  });
});

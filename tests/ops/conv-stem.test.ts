/** The choice of the kernels for few input channels, and addresses that their vectors and asynchronous copies do not suit. */
import { expect, test } from "bun:test";
import { constants, cString, ErrorCode, fromCString } from "../../lib/native";
import { type DType, dtypeCode, outHandle, Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { backend, missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";
import { type ConvShape, convShape } from "./cases/conv";
import * as reference from "./reference/conv";

const device = testDevice();
const { native } = device;

function create(shape: ConvShape, direction: number, dtype: DType, pick = ""): number {
  const { n, h, w, c, k, r, s, stride, padding, dilation, groups } = shape;
  const out = outHandle();
  const sizes = [n, h, w, c, k, r, s, ...stride, ...padding, ...dilation, groups] as const;
  native.convCreate(
    device.handle,
    out.view,
    cString(pick),
    direction,
    dtypeCode(dtype),
    ...sizes,
    0,
    constants.ACT_NONE,
  );
  return out.value;
}

function pickOf(shape: ConvShape, direction: number, dtype: DType, pick = ""): string {
  const conv = create(shape, direction, dtype, pick);
  const text = new Uint8Array(256);
  native.convPick(conv, text, text.byteLength);
  native.convDestroy(conv);
  return fromCString(text);
}

const stem = (c: number, kernel: number): ConvShape =>
  convShape({ h: 23, w: 37, c, k: 16, r: kernel, s: kernel, stride: [2, 2], padding: [kernel >> 1, kernel >> 1] });

if (backend !== "cuda" || missing(device, "bf16", ["conv.bf16"])) {
  test.skip("kernels for few input channels (skipped: no CUDA device of compute capability 8.0)", () => {});
} else {
  test("they are the choice for up to four channels, forward and for weights, in 16 bits", () => {
    const [forward, data, weight] = [0, 1, 2];
    for (const dtype of ["bf16", "f16"] as const) {
      for (const direction of [forward, weight]) {
        for (const c of [1, 2, 3, 4]) expect(pickOf(stem(c, 7), direction, dtype)).toBe("stem");
        expect(pickOf(stem(3, 7), direction, dtype, "stem")).toBe("stem");
      }
      expect(pickOf(stem(3, 7), data, dtype)).not.toBe("stem");
      expect(pickOf(stem(5, 3), forward, dtype)).not.toBe("stem");
    }
    expect(pickOf(stem(3, 7), forward, "f32")).not.toBe("stem");
    for (const [shape, direction] of [
      [stem(3, 7), data],
      [stem(5, 3), forward],
      [stem(3, 15), forward],
    ] as const)
      expect(errorOf(() => create(shape, direction, "bf16", "stem")).code).toBe(ErrorCode.argument);
  });

  test.each(["bf16", "f16"] as const)("%s operands at odd addresses", (dtype) => {
    const shape = stem(3, 7);
    const [p, q] = reference.outputSize(shape);
    const values = (name: string, count: number, kind: DType) =>
      Tensor.from(device, new Random(name).normal(count + 1, 0, 0.3), [count + 1], kind);
    using x = values("x", 2 * 23 * 37 * 3, dtype);
    using w = values("w", 16 * 49 * 3, dtype);
    using dy = values("dy", 2 * p * q * 16, dtype);
    using y = Tensor.zeros(device, [2 * p * q * 16 + 1], dtype);
    using dw = Tensor.zeros(device, [16 * 49 * 3]);
    const plans = [create(shape, 0, dtype), create(shape, 2, dtype)];
    const bytes = outHandle();
    native.convWorkspace(plans[1]!, bytes.view);
    using workspace = Tensor.zeros(device, [bytes.value], "u8");
    const stream = device.stream.handle;
    native.convForward(stream, plans[0]!, y.address + 2, x.address + 2, w.address + 2, null, null, null);
    native.convBackwardWeight(stream, plans[1]!, dw.address, x.address + 2, dy.address + 2, workspace.address);
    const of = (tensor: Tensor) => Float64Array.from(tensor.read()).subarray(1);
    const tolerance = { rtol: 2 ** -8, atol: 1e-3 };
    expectClose(of(y), reference.convForward(of(x), of(w), shape), tolerance, "y");
    expectClose(dw.read(), reference.convBackwardWeight(of(x), of(dy), shape), tolerance, "dw");
    for (const plan of plans) native.convDestroy(plan);
  });
}

import { describe, expect, test } from "bun:test";
import { ErrorCode } from "../../lib/native";
import {
  type DType,
  decodeElements,
  dtypeSize,
  Event,
  elementCount,
  encodeElements,
  parseDType,
  Stream,
  Tensor,
} from "../../lib/tensor";
import { fromBf16, fromF8, toBf16, toF8 } from "../../lib/tensor/dtype";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();

describe("conversion of elements", () => {
  const values = [0, 1, 2, 7, 100];
  test.each(["f32", "bf16", "f16", "i32", "u8", "i64", "i8"] as DType[])("%s holds small integers exactly", (dtype) => {
    const bytes = encodeElements(values, dtype);
    expect(bytes.byteLength).toBe(values.length * dtypeSize(dtype));
    expect(Array.from(decodeElements(Uint8Array.from(bytes), dtype))).toEqual(values);
  });

  test("bf16 rounds to nearest, ties to even, and keeps NaN and infinity", () => {
    const rounded = (value: number) => fromBf16(toBf16(value));
    expect(rounded(1 + 2 ** -8)).toBe(1);
    expect(rounded(1 + 3 * 2 ** -8)).toBe(1 + 2 ** -6);
    expect(rounded(-(1 + 2 ** -8 + 2 ** -16))).toBe(-(1 + 2 ** -7));
    expect(rounded(3.4028234663852886e38)).toBe(Number.POSITIVE_INFINITY);
    expect(rounded(Number.NEGATIVE_INFINITY)).toBe(Number.NEGATIVE_INFINITY);
    expect(rounded(Number.NaN)).toBeNaN();
    // a NaN whose payload lies in the lower half alone must not turn into infinity
    const payload = new Float32Array(Uint32Array.of(0x7f800001).buffer)[0]!;
    expect(rounded(payload)).toBeNaN();
  });

  test("f8 is E4M3: every pattern comes back, ties go to even, what is beyond 448 becomes 448", () => {
    for (let bits = 0; bits < 256; ++bits) {
      if ((bits & 0x7f) === 0x7f) expect(fromF8(bits)).toBeNaN();
      else expect(toF8(fromF8(bits))).toBe(bits);
    }
    // as torch.float8_e4m3fn rounds; what is too large for it becomes NaN there
    const rounded = (value: number) => fromF8(toF8(value));
    expect([0x08, 0x07, 0x01, 0x38, 0x7e].map(fromF8)).toEqual([2 ** -6, 7 * 2 ** -9, 2 ** -9, 1, 448]);
    expect([17, 19, 1.0625, 2 ** -10, 3 * 2 ** -10, -0.3].map(rounded)).toEqual([16, 20, 1, 0, 2 ** -8, -0.3125]);
    expect([1000, Number.NEGATIVE_INFINITY].map(rounded)).toEqual([448, -448]);
    expect(rounded(Number.NaN)).toBeNaN();
  });

  test("i8 keeps its sign", () => {
    const bytes = encodeElements([-128, -1, 0, 127], "i8");
    expect(Array.from(decodeElements(Uint8Array.from(bytes), "i8"))).toEqual([-128, -1, 0, 127]);
  });

  test("a name from outside is checked", () => {
    expect(parseDType("bf16", "option precision")).toBe("bf16");
    const error = errorOf(() => parseDType("fp32", "option precision"));
    expect(error.message).toBe(
      'option precision: expected a dtype of f32, bf16, f16, i32, u8, i64, f8, i8, got "fp32"',
    );
    expect(error.code).toBe(ErrorCode.dtype);
  });
});

describe("Tensor", () => {
  test.each(["f32", "i32", "u8", "i64"] as DType[])("%s values go to the device and come back", (dtype) => {
    using x = Tensor.from(device, [5, 0, 255, 17, 1, 2], [2, 3], dtype);
    expect(x.shape).toEqual([2, 3]);
    expect(x.byteLength).toBe(6 * dtypeSize(dtype));
    expect(Array.from(x.read())).toEqual([5, 0, 255, 17, 1, 2]);
  });

  test("full and zeros", () => {
    using full = Tensor.full(device, [3], -1.5);
    using zeros = Tensor.zeros(device, [2, 2], "i32");
    expect(Array.from(full.read())).toEqual([-1.5, -1.5, -1.5]);
    expect(Array.from(zeros.read())).toEqual([0, 0, 0, 0]);
  });

  test("write replaces the content, and checks the number of values", () => {
    using x = Tensor.zeros(device, [4]);
    x.write([1, 2, 3, 4]);
    expect(Array.from(x.read())).toEqual([1, 2, 3, 4]);
    const error = errorOf(() => x.write([1, 2, 3]));
    expect(error.message).toBe("Tensor.write: expected 4 values for shape (4), got 3");
    expect(error.code).toBe(ErrorCode.shape);
    expect(errorOf(() => x.writeBytes(new Uint8Array(15))).message).toBe(
      "Tensor.writeBytes: expected 16 bytes, got 15",
    );
    expect(Array.from(x.read())).toEqual([1, 2, 3, 4]);
  });

  test.each([[[0]], [[2, -1]], [[1.5]], [[Number.NaN]], [[2 ** 60]]])("shape %p is refused", (shape) => {
    expect(errorOf(() => Tensor.empty(device, shape)).code).toBe(ErrorCode.shape);
  });

  test("one that cannot be filled leaves no memory behind", () => {
    const before = device.memory().allocated;
    expect(errorOf(() => Tensor.from(device, [1, 2, 3], [2, 2])).code).toBe(ErrorCode.shape);
    expect(errorOf(() => Tensor.full(device, [2], Number.NaN)).code).toBe(ErrorCode.argument);
    expect(device.memory().allocated).toBe(before);
  });

  test("a scalar has shape () and one element", () => {
    using x = Tensor.from(device, [3], []);
    expect([x.size, elementCount(x.shape)]).toEqual([1, 1]);
    expect(x.read()[0]).toBe(3);
  });

  test("copyFrom copies on the device, equal shapes and dtypes only", () => {
    using a = Tensor.from(device, [1, 2, 3, 4], [2, 2]);
    using b = Tensor.zeros(device, [2, 2]);
    using c = Tensor.zeros(device, [4]);
    using d = Tensor.zeros(device, [2, 2], "i32");
    b.copyFrom(a);
    expect(Array.from(b.read())).toEqual([1, 2, 3, 4]);
    expect(errorOf(() => c.copyFrom(a)).message).toBe("Tensor.copyFrom: expected f32 (4), got f32 (2, 2)");
    expect(errorOf(() => d.copyFrom(a)).message).toBe("Tensor.copyFrom: expected i32 (2, 2), got f32 (2, 2)");
  });

  test("at() views memory that something else owns", () => {
    using owner = Tensor.from(device, [1, 2, 3, 4, 5, 6], [6]);
    const view = Tensor.at(device, owner.address + 8, [2], "f32");
    expect(Array.from(view.read())).toEqual([3, 4]);
    view.dispose();
    expect(owner.read()[5]).toBe(6);
  });

  test("the caller's array may change right after write", () => {
    const values = new Float32Array(500).fill(1);
    using x = Tensor.from(device, values, [500]);
    values.fill(2);
    expect(x.read()[499]).toBe(1);
  });

  test("small arrays survive the JIT: 20,000 writes and reads", () => {
    using x = Tensor.zeros(device, [4]);
    let wrong = 0;
    for (let i = 0; i < 20_000; ++i) {
      x.write([i, i + 1, i + 2, i + 3]);
      const got = x.read();
      if (got[0] !== i || got[3] !== i + 3) ++wrong;
    }
    expect(wrong).toBe(0);
  });

  test("readBytesAsync leaves the event loop alive", async () => {
    using x = Tensor.zeros(device, [1 << 20]);
    let ticks = 0;
    const timer = setInterval(() => ++ticks, 1);
    for (let i = 0; i < 40; ++i) device.native.fill(device.stream.handle, x.address, x.size, 0, i);
    const bytes = await x.readBytesAsync();
    await Bun.sleep(5);
    clearInterval(timer);
    expect(new Float32Array(bytes.buffer)[x.size - 1]).toBe(39);
    expect(ticks).toBeGreaterThan(0);
  });

  test("reading on another stream sees what that stream has written", () => {
    using stream = new Stream(device);
    using x = Tensor.zeros(device, [1000]);
    device.stream.synchronize();
    device.native.fill(stream.handle, x.address, 1000, 0, 7);
    expect(x.read(stream)[999]).toBe(7);
    using event = new Event(device);
    event.record(stream);
    event.synchronize();
  });
});

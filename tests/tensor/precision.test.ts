import { expect, test } from "bun:test";
import type { Value } from "../../lib/graph";
import { Conv2d, Model } from "../../lib/layers";
import { type Precision, precisionNames, precisionPolicy, precisionText, Tensor } from "../../lib/tensor";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const device = testDevice();

class Convolution extends Model {
  conv = new Conv2d(64, 64, 3, { padding: 1 });
  forward(x: Value): Value {
    return this.conv.forward(x);
  }
}

/** What a 3x3 convolution of 64 channels gives in a precision. */
function convolve(precision: Precision, tf32: boolean): Float32Array {
  const own = testDevice({ tf32, deterministic: true });
  using model = new Convolution().to(own, { precision, seed: 3 });
  model.eval();
  using x = Tensor.from(own, new Random("x").normal(2 * 16 * 16 * 64), [2, 16, 16, 64]);
  return (model.call(x) as Tensor).read() as Float32Array;
}

test("the names of a precision are one table", () => {
  expect(precisionNames.map((name) => precisionPolicy(name).name)).toEqual([
    ...(["fp32", "tf32", "bf16", "fp16"] as const),
    ...(["fp32", "fp16"] as const),
  ]);
  expect(precisionPolicy("f16")).toEqual({ name: "fp16", dtype: "f16", tf32: false, lossScaling: true });
  expect(errorOf(() => precisionPolicy("half" as Precision)).message).toBe(
    'precision: expected one of fp32, tf32, bf16, fp16, f32, f16, got "half"',
  );
  // Not a name, though every object has it.
  expect(errorOf(() => precisionPolicy("toString" as Precision)).message).toContain('got "toString"');
});

test("tf32 is a mode of the device, which a model in tf32 needs", () => {
  using model = new Convolution();
  expect(errorOf(() => model.to(device, { precision: "tf32" })).message).toBe(
    "Convolution: precision tf32 is a mode of the device: open it with { tf32: true }",
  );
});

test("tf32 rounds what is multiplied to 10 bits where the device has it, and is fp32, and says so, elsewhere", () => {
  const [fp32, tf32] = [convolve("fp32", false), convolve("tf32", true)];
  const own = testDevice({ tf32: true });
  if (!own.supports("tf32")) {
    expect(tf32).toEqual(fp32);
    expect(precisionText(precisionPolicy("tf32"), own)).toBe(`tf32 (fp32 here: ${own.info.name} has no TF32)`);
    return;
  }
  expect(precisionText(precisionPolicy("tf32"), own)).toBe("tf32");
  const largest = Math.max(...fp32.map(Math.abs));
  const difference = Math.max(...fp32.map((value, i) => Math.abs(value - tf32[i]!)));
  // Sums of 576 products with a relative error of 2^-11 each at most; in fp32 they agree to 1e-6.
  expect(difference).toBeLessThan(5e-3 * largest);
  expect(difference).toBeGreaterThan(1e-5 * largest);
});

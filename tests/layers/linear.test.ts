/** Linear: initial values, weights by torch's names, what it refuses. Its numbers are in golden.test.ts. */
import { expect, test } from "bun:test";
import { relu, type Value } from "../../lib/graph";
import { Linear, Model } from "../../lib/layers";
import { loadTorchWeights, torchWeights } from "../../lib/models";
import { ErrorCode } from "../../lib/native";
import { Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const device = testDevice();

class Classifier extends Model {
  hidden = new Linear(6, 4);
  fc = new Linear(4, 3, { bias: false });

  forward(x: Value): Value {
    return this.fc.forward(relu(this.hidden.forward(x)));
  }
}

test("starts as torch.nn.Linear does: uniform within 1 / sqrt(in features)", () => {
  class Wide extends Model {
    fc = new Linear(256, 100);
    forward(x: Value): Value {
      return this.fc.forward(x);
    }
  }
  using model = new Wide().to(device, { seed: 5 });
  for (const parameter of model.parameters()) {
    const values = Array.from(parameter.tensor.read());
    expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(1 / 16);
    expect(Math.max(...values)).toBeGreaterThan(0.9 / 16);
    expect(Math.min(...values)).toBeLessThan(-0.9 / 16);
  }
});

test("takes torch's weights by name, (out, in) as they are, and gives them back", () => {
  using model = new Classifier().to(device);
  const shapes = { "hidden.weight": [4, 6], "hidden.bias": [4], "fc.weight": [3, 4] };
  const given = new Map(
    Object.entries(shapes).map(([name, shape]) => [
      name,
      { shape, data: new Random(name).normal(shape.reduce((a, b) => a * b)) },
    ]),
  );
  loadTorchWeights(model, given);
  using x = Tensor.from(device, new Random("x").normal(12), [2, 6]);
  const [wide, bias, narrow] = ["hidden.weight", "hidden.bias", "fc.weight"].map((name) => given.get(name)!.data) as [
    Float32Array,
    Float32Array,
    Float32Array,
  ];
  const input = x.read();
  const expected = [0, 1].flatMap((row) => {
    const hidden = Array.from(bias, (b, k) =>
      Math.max(
        0,
        [0, 1, 2, 3, 4, 5].reduce((sum, c) => sum + input[row * 6 + c]! * wide[k * 6 + c]!, b),
      ),
    );
    return [0, 1, 2].map((k) => hidden.reduce((sum, h, c) => sum + h * narrow[k * 4 + c]!, 0));
  });
  const y = model.eval().call(x) as Tensor;
  expect(y.shape).toEqual([2, 3]);
  expectClose(y.read(), expected, { rtol: 1e-5, atol: 1e-5 });
  const back = torchWeights(model);
  for (const [name, shape] of Object.entries(shapes)) expect(back.get(name)!.shape).toEqual(shape);
  expectClose(back.get("fc.weight")!.data, narrow, { rtol: 1e-6, atol: 1e-6 });
});

test("names the layer whose input has another number of features", () => {
  using model = new Classifier().to(device);
  using x = Tensor.zeros(device, [2, 5]);
  const error = errorOf(() => model.call(x));
  expect(error.code).toBe(ErrorCode.shape);
  expect(error.message).toBe("hidden: expected a tensor of shape (..., 6), got (2, 5)");
});

test.each([
  [0, 3],
  [3, -1],
  [2.5, 3],
])("refuses %p features in and %p out", (inFeatures, outFeatures) => {
  expect(errorOf(() => new Linear(inFeatures, outFeatures)).message).toBe(
    `Linear: expected positive numbers of features, got ${inFeatures} in and ${outFeatures} out`,
  );
});

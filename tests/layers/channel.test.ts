/** Layers on channels: what they refuse, what they are called, what they cost. Their numbers are in golden.test.ts. */
import { describe, expect, test } from "bun:test";
import type { Value } from "../../lib/graph";
import {
  AdaptiveAvgPool2d,
  ChannelShuffle,
  Hardsigmoid,
  type Layer,
  Model,
  Multiply,
  Split,
  SqueezeExcitation,
} from "../../lib/layers";
import { ErrorCode } from "../../lib/native";
import { errorOf } from "../support/errors";

/** A model whose forward is a layer's. */
class Net<L extends Layer & { forward(...x: Value[]): unknown }> extends Model {
  constructor(readonly layer: L) {
    super();
  }
  forward(...x: Value[]): unknown {
    return this.layer.forward(...x);
  }
}

const trace = (layer: ConstructorParameters<typeof Net>[0], ...shapes: number[][]) => new Net(layer).summary(shapes);
const messageOf = (layer: ConstructorParameters<typeof Net>[0], ...shapes: number[][]) => {
  const error = errorOf(() => trace(layer, ...shapes));
  expect(error.code).toBe(ErrorCode.shape);
  return error.message;
};

test("the parts of Split", () => {
  const shapes = (sizes: number | number[], axis = 3) =>
    trace(new Split(sizes, axis), [2, 4, 4, 8]).outputs.map((shape) => shape[axis]);
  expect(shapes(3)).toEqual([3, 3, 2]);
  expect(shapes(4)).toEqual([4, 4]);
  expect(shapes([1, 7])).toEqual([1, 7]);
  expect(shapes(100)).toEqual([8]);
  expect(shapes(3, 1)).toEqual([3, 1]);
});

describe("sizes that do not fit are named", () => {
  test("of Split", () => {
    expect(messageOf(new Split([3, 4]), [2, 4, 4, 8])).toBe(
      "layer: expected sizes that add up to 8, axis 3 of (2, 4, 4, 8), got 3 + 4",
    );
  });
  test("of ChannelShuffle", () => {
    expect(messageOf(new ChannelShuffle(3), [2, 4, 4, 8])).toBe(
      "layer: expected channels divisible by 3 groups, got 8",
    );
  });
  test("of Multiply", () => {
    expect(messageOf(new Multiply(), [2, 4, 4, 8], [2, 1, 1, 4])).toBe(
      "layer: expected factors f32 (2, 1, 1, 8), got f32 (2, 1, 1, 4)",
    );
    expect(messageOf(new Multiply(), [2, 4, 4, 8], [2, 4, 1, 8])).toStartWith(
      "layer: expected two tensors of one shape and dtype, or channels' factors",
    );
  });
  test("of AdaptiveAvgPool2d", () => {
    expect(messageOf(new AdaptiveAvgPool2d(2), [1, 7, 8, 3])).toBe(
      "AdaptiveAvgPool2d: expected an image that 2x2 windows divide, got 7x8",
    );
  });
});

test("SqueezeExcitation has torchvision's names, and its cost is known", () => {
  const layer = new SqueezeExcitation(8, 2, { scaleActivation: new Hardsigmoid() });
  expect([...layer.namedState().keys()]).toEqual(["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
  const { total, uncounted } = trace(layer, [2, 5, 4, 8]);
  expect(uncounted).toEqual([]);
  // The mean, two products with biases, hardsigmoid, the scaling.
  expect(total.flops).toBe(2 * (20 * 8 + 2 * (2 * 8 + 1) + 8 * (2 * 2 + 1) + 2 * 8 + 20 * 8));
});

/** What the constructors of layers refuse, and what stands for what. */
import { describe, expect, test } from "bun:test";
import { trace, type Value } from "../../lib/graph";
import { Conv2d, ConvTranspose2d, GroupNorm, Layer, Split, Upsample } from "../../lib/layers";
import { errorOf } from "../support/errors";

describe("layers refuse", () => {
  const refused: [string, () => unknown, string][] = [
    ["a group count that does not divide", () => new GroupNorm(3, 8), "got 8 channels and 3 groups"],
    ["no groups", () => new GroupNorm(0, 8), "got 8 channels and 0 groups"],
    ["transposed groups that do not divide", () => new ConvTranspose2d(4, 6, 3, { groups: 4 }), "got 4 in and 6 out"],
    ["channels of 0", () => new Conv2d(0, 4, 3), "Conv2d: channels: expected whole numbers from 1, got 0 and 4"],
    ["half a kernel", () => new Conv2d(3, 4, [3, 1.5]), "Conv2d: kernel: expected whole numbers from 1, got 3 and 1.5"],
    ["a stride of 0", () => new ConvTranspose2d(3, 4, 2, { stride: 0 }), "ConvTranspose2d: stride: expected whole"],
    [
      "a negative padding",
      () => new Conv2d(3, 4, 3, { padding: -1 }),
      "padding: expected whole numbers from 0, got -1",
    ],
    ["a dilation of 0", () => new Conv2d(3, 4, 3, { dilation: [1, 0] }), "dilation: expected whole numbers from 1"],
    ["groups of 0", () => new Conv2d(3, 4, 3, { groups: 0 }), "groups: expected whole numbers from 1, got 0"],
    ["a scale of 0", () => new Upsample(0), "Upsample: expected a positive scale or size, got 0"],
    ["a size with a NaN", () => new Upsample({ size: [4, Number.NaN] }), "got 4,NaN"],
    ["an unknown mode", () => new Upsample({ scale: 2, mode: "cubic" as "bilinear" }), "got cubic"],
    ["aligned corners of nearest neighbours", () => new Upsample({ scale: 2, alignCorners: true }), "mode bilinear"],
  ];
  test.each(refused)("%s", (_name, make, message) => {
    expect(errorOf(make).message).toContain(message);
  });
});

test("what a layer finds wrong with its input names the layer", () => {
  class Block extends Layer {
    halves = new Split([2, 3]);
    up = new ConvTranspose2d(4, 4, 2, { outputPadding: 1 });

    forward(x: Value): Value[] {
      return x.shape[1] === 1 ? this.halves.forward(x) : [this.up.forward(x)];
    }
  }
  const messageFor = (height: number) => {
    const block = new Block();
    block.assignNames();
    return errorOf(() => trace({ x: { shape: [1, height, 4, 4], dtype: "f32" } }, ({ x }) => block.forward(x!)))
      .message;
  };
  expect(messageFor(1)).toStartWith("halves: expected sizes that add up to 4");
  expect(messageFor(2)).toStartWith("up: expected output padding");
});

test("Upsample of a number is a factor for nearest neighbours", () => {
  const kindsOf = (layer: Upsample) => {
    const { graph, result } = trace({ x: { shape: [1, 3, 4, 2], dtype: "f32" } }, ({ x }) => layer.forward(x!));
    return [graph.nodes.map(({ op }) => op.kind), result.shape];
  };
  expect(kindsOf(new Upsample(2))).toEqual([["upsample_nearest"], [1, 6, 8, 2]]);
  expect(kindsOf(new Upsample({ scale: 2, mode: "bilinear" }))).toEqual([["upsample_bilinear"], [1, 6, 8, 2]]);
});

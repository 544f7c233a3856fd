/** What the constructors of layers refuse, and what stands for what. */
import { describe, expect, test } from "bun:test";
import { trace } from "../../lib/graph";
import { ConvTranspose2d, GroupNorm, Upsample } from "../../lib/layers";
import { errorOf } from "../support/errors";

describe("layers refuse", () => {
  const refused: [string, () => unknown, string][] = [
    ["a group count that does not divide", () => new GroupNorm(3, 8), "got 8 channels and 3 groups"],
    ["no groups", () => new GroupNorm(0, 8), "got 8 channels and 0 groups"],
    ["transposed groups that do not divide", () => new ConvTranspose2d(4, 6, 3, { groups: 4 }), "got 4 in and 6 out"],
    ["a scale of 0", () => new Upsample(0), "Upsample: expected a positive scale or size, got 0"],
    ["a size with a NaN", () => new Upsample({ size: [4, Number.NaN] }), "got 4,NaN"],
    ["an unknown mode", () => new Upsample({ scale: 2, mode: "cubic" as "bilinear" }), "got cubic"],
    ["aligned corners of nearest neighbours", () => new Upsample({ scale: 2, alignCorners: true }), "mode bilinear"],
  ];
  test.each(refused)("%s", (_name, make, message) => {
    expect(errorOf(make).message).toContain(message);
  });
});

test("Upsample of a number is a factor for nearest neighbours", () => {
  const kindsOf = (layer: Upsample) => {
    const { graph, result } = trace({ x: { shape: [1, 3, 4, 2], dtype: "f32" } }, ({ x }) => layer.forward(x!));
    return [graph.nodes.map(({ op }) => op.kind), result.shape];
  };
  expect(kindsOf(new Upsample(2))).toEqual([["upsample_nearest"], [1, 6, 8, 2]]);
  expect(kindsOf(new Upsample({ scale: 2, mode: "bilinear" }))).toEqual([["upsample_bilinear"], [1, 6, 8, 2]]);
});

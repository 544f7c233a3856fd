import { describe, expect, test } from "bun:test";
import { constants, ErrorCode } from "../../lib/native";
import { dtypeCode, Tensor } from "../../lib/tensor";
import { expectSameBytes } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";
import { augmentCases } from "./cases/augment";
import { describeCases } from "./check";
import { type Layer, packLayer } from "./reference/augment";
import { packTransform } from "./reference/preprocess";

describeCases("augmentation", augmentCases);

const device = testDevice();
const { native } = device;
const stream = device.stream.handle;
const normalisation = Float32Array.of(0.485, 0.456, 0.406, 0.229, 0.224, 0.225, 124, 116, 104);
const [height, width] = [33, 45];
const [outHeight, outWidth] = [20, 24];
const picture = new Random("augment").integers(height * width * 3, 0, 256);

function augmentOne(layers: readonly number[][], change: { n?: number; flags?: number; sources?: bigint[] } = {}) {
  using pixels = Tensor.from(device, picture, [height, width, 3], "u8");
  using out = Tensor.empty(device, [outHeight, outWidth, 3]);
  native.augment(
    stream,
    out.address,
    BigInt64Array.from(change.sources ?? layers.map(() => BigInt(pixels.address))),
    Float64Array.from(layers.flat()),
    normalisation,
    change.n ?? 1,
    layers.length,
    outHeight,
    outWidth,
    3,
    dtypeCode("f32"),
    change.flags ?? 0,
  );
  return out.read() as Float32Array;
}

const layer: Layer = { source: { name: "picture", size: [height, width] }, region: [0, 0, outWidth, outHeight] };

describe("one layer that fills the output", () => {
  // Training and prediction may come through different entry points: the pixels must not depend on which.
  test.each([0, constants.LAYER_ANTIALIAS])("has the bytes of dlfs_preprocess (flags %d)", (antialias) => {
    const [a, e] = [width / outWidth, height / outHeight];
    const actual = augmentOne([packLayer({ ...layer, map: [a, 0, 0, 0, e, 0], antialias: antialias !== 0 })]);
    using pixels = Tensor.from(device, picture, [height, width, 3], "u8");
    using out = Tensor.empty(device, [outHeight, outWidth, 3]);
    native.preprocess(
      stream,
      out.address,
      BigInt64Array.of(BigInt(pixels.address)),
      Int32Array.of(height, width),
      Float32Array.from(packTransform({ crop: [0, 0, width, height], target: [0, 0, outWidth, outHeight] })),
      normalisation,
      1,
      outHeight,
      outWidth,
      3,
      dtypeCode("f32"),
      antialias ? constants.PREPROCESS_ANTIALIAS : 0,
    );
    expectSameBytes(new Uint8Array(actual.buffer), out.readBytes(), "the batch");
  });
});

describe("bad layers are argument errors that name the layer and the field", () => {
  const changed = (index: number, value: number): number[][] => {
    const numbers = packLayer(layer);
    numbers[index] = value;
    return [packLayer(layer), numbers];
  };
  test.each([
    [0, 1, "layer 1: expected an image from 0 to 0"],
    [0, 0.5, "layer 1: expected an image"],
    [0, Number.NaN, "layer 1: expected an image"],
    [1, 0, "layer 1: expected source height a whole number from 1 to 65535, got 0"],
    [2, 70000, "source width"],
    [3, 3 * width - 1, "row pitch"],
    [4, Number.NaN, "map a"],
    [9, Number.POSITIVE_INFINITY, "map f"],
    [12, Number.NaN, "crop x2"],
    [14, -1, "region x1"],
    [16, outWidth + 1, "region x2"],
    [17, 2.5, "region y2"],
    [20, Number.NaN, "matrix[2]"],
    [30, 1.5, "hue shift"],
    [31, -1, "saturation"],
    [36, 1.01, "opacity"],
    [37, -0.1, "picture weight"],
    [38, 2, "flags"],
    [39, 1, "unused"],
  ])("number %d = %d", (index, value, words) => {
    const error = errorOf(() => augmentOne(changed(index, value)));
    expect(error.code).toBe(ErrorCode.argument);
    expect(error.message).toContain(words);
  });

  test("images that descend", () => {
    const layers = [packLayer({ ...layer, image: 1 }), packLayer(layer)];
    expect(errorOf(() => augmentOne(layers, { n: 2 })).message).toContain("layer 1: expected an image from 1 to 1");
  });

  test("too many layers on an image", () => {
    const error = errorOf(() => augmentOne(Array(65).fill(packLayer(layer)), { n: 2 }));
    expect(error.message).toContain("image 0 has more than 64 layers");
  });

  test("a size without a source, and unknown flags", () => {
    expect(errorOf(() => augmentOne([packLayer(layer)], { sources: [0n] })).message).toContain("source height");
    expect(errorOf(() => augmentOne([packLayer(layer)], { flags: 1 })).message).toContain("flags 0x1");
  });
});

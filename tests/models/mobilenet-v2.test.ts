/** MobileNetV2 and its feature pyramid: torchvision's sizes, names, stages, freezing and logits. */
import { describe, expect, test } from "bun:test";
import { Program } from "../../lib/graph";
import type { Layer } from "../../lib/layers";
import {
  loadTorchWeights,
  MobileNetPyramid,
  MobileNetV2,
  MobileNetV2Features,
  RetinaNet,
  torchWeights,
} from "../../lib/models";
import { makeDivisible } from "../../lib/models/mobilenet-v2";
import { Tensor } from "../../lib/tensor";
import { fanInBound, generatedWeights, nhwcImages } from "../golden/detectors/network";
import golden from "../golden/mobilenet-v2/golden.json";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const count = (layer: Layer, trained = false) =>
  layer.parameters().reduce((sum, { size, requiresGrad }) => sum + (requiresGrad || !trained ? size : 0), 0);

describe("MobileNetV2Features", () => {
  test.each([
    [0.35, 396_128, [16, 8, 16, 24, 56, 1280]],
    [0.5, 687_680, [16, 16, 16, 32, 80, 1280]],
    [1, 2_223_872, [32, 24, 32, 64, 160, 1280]],
    [1.4, 4_315_776, [48, 32, 48, 88, 224, 1792]],
  ])("with width %d has torchvision's number of parameters and channels", (widthMultiplier, parameters, channels) => {
    const features = new MobileNetV2Features({ widthMultiplier });
    expect(count(features)).toBe(parameters);
    expect([...features.outChannels]).toEqual(channels);
  });

  test("channels are rounded as torchvision's _make_divisible, never down by more than 10 %", () => {
    expect([11.2, 33.6, 100, 4, 1.5, 12, 20, 89.6].map((c) => makeDivisible(c))).toEqual([
      16, 32, 104, 8, 8, 16, 24, 88,
    ]);
  });

  test("parameters have torchvision's names and shapes", () => {
    const state = new MobileNetV2Features().namedState();
    expect(state.get("0.0.weight")!.shape).toEqual([32, 3, 3, 3]);
    expect(state.get("1.conv.0.0.weight")!.shape).toEqual([32, 3, 3, 1]); // no expansion
    expect(state.get("1.conv.1.weight")!.shape).toEqual([16, 1, 1, 32]);
    expect(state.get("2.conv.1.0.weight")!.shape).toEqual([96, 3, 3, 1]);
    expect(state.get("17.conv.3.running_var")!.shape).toEqual([320]);
    expect(state.get("18.1.bias")!.shape).toEqual([1280]);
  });

  test("gives the maps of the stages asked for, and has no block after the last of them", () => {
    using model = new RetinaNet({
      classes: 1,
      backbone: new MobileNetPyramid({ returnedLayers: [1, 4], extra: "pool" }),
      anchors: { sizes: [[8], [16], [32]], aspectRatios: [1] },
    });
    model.to(device).eval();
    expect(model.namedState().has("backbone.body.14.conv.3.weight")).toBe(true);
    expect(model.namedState().has("backbone.body.15.conv.3.weight")).toBe(false);
    using program = new Program(device, { images: { shape: [1, 64, 96, 3], dtype: "f32" } }, ({ images }) =>
      Object.fromEntries(model.backbone.forward(images!).map((map, level) => [`${level}`, map])),
    );
    const shapes = ["0", "1", "2"].map((name) => program.results[name]!.shape);
    expect(shapes).toEqual([
      [1, 16, 24, 256],
      [1, 2, 3, 256],
      [1, 1, 2, 256],
    ]);
  });

  test("trainableLayers freezes whole stages, as torchvision's _mobilenet_extractor", () => {
    const trained = (trainableLayers: number) =>
      count(new MobileNetV2Features({ trainableLayers, returnedLayers: [2, 3, 4] }), true);
    expect([0, 1, 2, 3, 4, 5, 6].map(trained)).toEqual([0, 0, 155_264, 642_304, 682_000, 695_968, 697_792]);
  });

  test("what it cannot do is an error that says what is possible", () => {
    const message = (make: () => unknown) => errorOf(make).message;
    expect(message(() => new MobileNetV2Features({ trainableLayers: 7 }))).toBe(
      "MobileNetV2: expected trainableLayers from 0 to 6, got 7",
    );
    expect(message(() => new MobileNetV2Features({ returnedLayers: [3, 2] }))).toBe(
      "MobileNetV2: expected ascending returnedLayers from 0 to 5, got 3, 2",
    );
    expect(message(() => new MobileNetV2Features({ widthMultiplier: 0 }))).toBe(
      "MobileNetV2: expected a positive widthMultiplier, got 0",
    );
    expect(message(() => new RetinaNet({ classes: 1, backbone: "mobilenet_v3" as "mobilenet_v2" }))).toContain(
      "expected one of resnet18, resnet34, resnet50, resnet101, resnext50_32x4d, mobilenet_v2",
    );
  });
});

describe("MobileNetV2", () => {
  test("gives torchvision's logits", () => {
    const { n, height, width, ...options } = golden.case;
    using model = new MobileNetV2(options).to(device).eval();
    const weightRange = (name: string, shape: readonly number[]): [number, number] => {
      if (name.endsWith("running_var")) return [0.5, 1.5];
      if (name.endsWith("running_mean")) return [-0.2, 0.2];
      if (name.startsWith("classifier")) return [-0.05, 0.05];
      if (shape.length === 4) return [-fanInBound(shape), fanInBound(shape)];
      if (name.endsWith("weight")) return [0.3, 0.9];
      return name.split(".").at(-3) === "conv" ? [-0.1, 0.1] : [0, 3];
    };
    loadTorchWeights(model, generatedWeights(model, { weightRange }));
    using images = Tensor.from(device, nhwcImages({ n, height, width }), [n, height, width, 3]);
    const logits = model.call(images) as Tensor;
    expect(logits.shape).toEqual([n, options.classes]);
    const largest = Math.max(...golden.logits.map(Math.abs));
    expectClose(logits.read() as Float32Array, golden.logits, { rtol: 0, atol: 1e-5 * largest }, "logits");
  });

  test("has the parameters of torchvision's mobilenet_v2, and trains with dropout", () => {
    const model = new MobileNetV2();
    expect(count(model)).toBe(3_504_872);
    expect(model.namedParameters().get("classifier.1.weight")!.shape).toEqual([1000, 1280]);
    const summary = model.summary([[2, 64, 64, 3]]);
    expect(summary.outputs).toEqual([[2, 1000]]);
    expect(summary.uncounted).toEqual([]);
  });
});

describe("MobileNetPyramid", () => {
  test("with torchvision's stages and pooling has the parameters of mobilenet_backbone(fpn=True)", () => {
    const backbone = new MobileNetPyramid({
      norm: "frozen",
      returnedLayers: [4, 5],
      extra: "pool",
      trainableLayers: 2,
    });
    expect([count(backbone), count(backbone, true)]).toEqual([3_739_072, 3_212_672]);
  });

  test("takes a classifier's weights, whose features are its body", () => {
    using source = new RetinaNet({ classes: 1, backbone: "mobilenet_v2" }).to(device, { seed: 1 });
    using target = new RetinaNet({ classes: 2, backbone: "mobilenet_v2" }).to(device, { seed: 2 });
    const classifier = new Map(
      [...torchWeights(source, { from: "backbone.body" })].map(([name, weight]) => [`features.${name}`, weight]),
    );
    classifier.set("classifier.1.weight", { shape: [1], data: new Float32Array(1) });
    loadTorchWeights(target, classifier, { from: "features", into: "backbone.body" });
    expect(torchWeights(target, { from: "backbone.body" })).toEqual(torchWeights(source, { from: "backbone.body" }));
  });
});

test("summary() of RetinaNet on MobileNetV2 knows every operation", () => {
  const model = new RetinaNet({ classes: 91, backbone: "mobilenet_v2" });
  const summary = model.summary([[1, 320, 320, 3]]);
  expect(summary.uncounted).toEqual([]);
  expect(summary.total.trained).toBe(count(model));
  expect(summary.layers.find(({ path }) => path === "backbone.body.18.0")!.outputs).toEqual([[1, 10, 10, 1280]]);
});

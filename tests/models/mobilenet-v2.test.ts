/** MobileNetV2 and its feature pyramid: torchvision's sizes, names, stages and freezing. */
import { describe, expect, test } from "bun:test";
import { Program } from "../../lib/graph";
import type { Layer } from "../../lib/layers";
import { loadTorchWeights, MobileNetPyramid, MobileNetV2Features, RetinaNet, torchWeights } from "../../lib/models";
import { makeDivisible } from "../../lib/models/mobilenet-v2";
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

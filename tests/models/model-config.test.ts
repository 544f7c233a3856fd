/** Models made from plain data: the same model as by its class, and an error for every field that does not fit. */
import { describe, expect, test } from "bun:test";
import { trace, type Value } from "../../lib/graph";
import type { Layer } from "../../lib/layers";
import {
  CompactDetector,
  FCOS,
  type ModelConfig,
  modelFromConfig,
  octaveAnchors,
  RetinaNet,
  SSDLite,
} from "../../lib/models";
import { elementCount } from "../../lib/tensor";

const stateOf = (model: Layer) => [...model.namedState()].map(([name, { shape }]) => `${name} ${shape.join("x")}`);

describe("modelFromConfig", () => {
  test("makes a CompactDetector with its options, after a way through JSON", () => {
    const options = {
      classes: 5,
      width: 8,
      depths: [1, 2, 1, 1],
      pyramidChannels: 24,
      headConvs: 1,
      boxLoss: { kind: "smooth_l1", beta: 0.1 },
      focal: { alpha: 0.5, gamma: 1.5 },
      matcher: { high: 0.4, low: 0.3, allowLowQuality: true },
      postprocess: { scoreThreshold: 0.1, topK: 50, nmsThreshold: 0.4, maxDetections: 20 },
    } as const;
    const config: ModelConfig = { name: "compact", ...options, anchorBase: 16 };
    const model = modelFromConfig(JSON.parse(JSON.stringify(config)));
    expect(model).toBeInstanceOf(CompactDetector);
    expect((model as CompactDetector).detectorOptions).toEqual({ ...options, anchors: octaveAnchors(16) } as never);
    expect(stateOf(model)).toEqual(stateOf(new CompactDetector(options)));
  });

  test("makes a RetinaNet on the backbone it names", () => {
    const config: ModelConfig = { name: "retinanet", classes: 3, backbone: "resnet18", norm: "frozen", p6From: "c5" };
    const model = modelFromConfig(config);
    expect(model).toBeInstanceOf(RetinaNet);
    expect(stateOf(model)).toEqual(
      stateOf(new RetinaNet({ classes: 3, backbone: "resnet18", norm: "frozen", p6From: "c5" })),
    );
  });

  test("makes FCOS and SSDLite with their options, after a way through JSON", () => {
    const post = { scoreThreshold: 0.1, topK: 50, nmsThreshold: 0.4, maxDetections: 20, classAware: false } as const;
    const soft = { ...post, softNms: { kind: "gaussian", sigma: 0.4 } } as const;
    const fcos = { classes: 3, backbone: "resnet18", centerSamplingRadius: 2, postprocess: soft } as const;
    const point = modelFromConfig(JSON.parse(JSON.stringify({ name: "fcos", ...fcos }))) as FCOS;
    expect(point).toBeInstanceOf(FCOS);
    expect([point.centerSamplingRadius, point.postprocess]).toEqual([2, soft]);
    expect(stateOf(point)).toEqual(stateOf(new FCOS(fcos)));

    const ssdlite = { classes: 3, widthMultiplier: 0.5, extraChannels: [64], iouThreshold: 0.4, postprocess: post };
    const config = { name: "ssdlite", ...ssdlite, anchors: { aspectRatios: [[2], [2], [2]] } };
    const ssd = modelFromConfig(JSON.parse(JSON.stringify(config))) as SSDLite;
    expect(ssd).toBeInstanceOf(SSDLite);
    expect([ssd.iouThreshold, ssd.negativeRatio, ssd.postprocess]).toEqual([0.4, 3, post]);
    expect(stateOf(ssd)).toEqual(stateOf(new SSDLite({ ...ssdlite, anchors: config.anchors })));
  });

  test("keeps the other defaults where a configuration has a part of the post-processing's options", () => {
    const given = { classes: 2, postprocess: { maxDetections: 7 } };
    const compact = modelFromConfig({ name: "compact", ...given }) as CompactDetector;
    const fcos = modelFromConfig({ name: "fcos", backbone: "resnet18", ...given }) as FCOS;
    const ssd = modelFromConfig({ name: "ssdlite", widthMultiplier: 0.25, ...given }) as SSDLite;
    expect([compact.detectorOptions.postprocess, fcos.postprocess, ssd.postprocess]).toEqual([
      { scoreThreshold: 0.05, topK: 1000, nmsThreshold: 0.5, maxDetections: 7 },
      { scoreThreshold: 0.2, topK: 1000, nmsThreshold: 0.6, maxDetections: 7 },
      { scoreThreshold: 0.001, topK: 300, nmsThreshold: 0.55, maxDetections: 7 },
    ]);
  });

  test.each([
    { name: "compact", classes: 2 },
    { name: "retinanet", classes: 2, backbone: "resnet18" },
    { name: "fcos", classes: 2, backbone: "resnet18" },
    { name: "ssdlite", classes: 2, widthMultiplier: 0.25 },
  ] as ModelConfig[])("the maps of $name are all that forward joins", (config) => {
    const model = modelFromConfig(config);
    const spec = { images: { shape: [2, 320, 320, 3], dtype: "f32" as const } };
    const elements = (values: readonly Value[]) => values.reduce((sum, { shape }) => sum + elementCount(shape), 0);
    const { result } = trace(spec, ({ images }) => ({ joined: model.forward(images!), maps: model.maps(images!) }));
    expect(elements(result.maps)).toBe(elements(Object.values(result.joined)));
  });

  const compact = { name: "compact", classes: 2 };
  test.each<[string, unknown, string]>([
    ["no object", null, "name: expected one of compact, retinanet, fcos, ssdlite, got nothing"],
    ["an unknown model", { name: "toString", classes: 2 }, 'got "toString"'],
    ["no classes", { name: "compact" }, "classes: expected the number of classes"],
    ["no class at all", { ...compact, classes: 0 }, "classes: expected a whole number from 1, got 0"],
    ["a misspelt field", { ...compact, widht: 8 }, 'unknown field "widht"; known are name, classes'],
    ["another model's field", { ...compact, backbone: "resnet18" }, 'unknown field "backbone"'],
    ["a text for a number", { ...compact, width: "8" }, 'width: expected a whole number from 1, got "8"'],
    ["too few stages", { ...compact, depths: [1, 1] }, "depths: expected a list of 4, each a whole number"],
    [
      "a threshold beyond 1",
      { ...compact, matcher: { high: 1.5 } },
      "model.matcher: high: expected a number from 0 to 1",
    ],
    [
      "an unknown box loss",
      { ...compact, boxLoss: { kind: "huber" } },
      "model.boxLoss: kind: expected one of l1, smooth",
    ],
    ["an unknown backbone", { name: "retinanet", classes: 2, backbone: "vgg16" }, "backbone: expected one of resnet18"],
  ])("refuses %s, naming the field", (_, config, message) => {
    expect(() => modelFromConfig(config as ModelConfig, "run/config.json: model")).toThrow(message);
    expect(() => modelFromConfig(config as ModelConfig, "run/config.json: model")).toThrow(/^run\/config\.json: model/);
  });
});

/** SSDLite on MobileNetV2 against torchvision's classes (outputs, detections, losses, gradients, SGD steps); its names. */
import { describe, expect, test } from "bun:test";
import type { Layer } from "../../lib/layers";
import { SSDLite } from "../../lib/models";
import golden from "../golden/ssdlite/golden.json";
import { ssdLite } from "../golden/ssdlite/network";
import { goldenTests } from "../support/detector-golden";
import { errorOf } from "../support/errors";

const count = (layer: Layer) => layer.parameters().reduce((sum, { size }) => sum + size, 0);

describe("SSDLite computes what torchvision's classes compute", () => {
  goldenTests(ssdLite, golden);
});

describe("SSDLite", () => {
  test("has the names and shapes that torchvision's extractor and heads give", () => {
    const shapes = new Map([...new SSDLite({ classes: 90 }).namedState()].map(([name, { shape }]) => [name, shape]));
    expect(shapes.get("backbone.features.0.0.0.weight")).toEqual([32, 3, 3, 3]);
    expect(shapes.get("backbone.features.0.13.conv.3.running_mean")).toEqual([96]);
    expect(shapes.get("backbone.features.0.14.0.weight")).toEqual([576, 1, 1, 96]); // C4's expansion
    expect(shapes.get("backbone.features.1.0.1.0.weight")).toEqual([576, 3, 3, 1]); // the rest of the block
    expect(shapes.get("backbone.features.1.0.3.weight")).toEqual([160]);
    expect(shapes.get("backbone.features.1.4.0.weight")).toEqual([1280, 1, 1, 320]);
    expect(shapes.get("backbone.extra.3.1.0.weight")).toEqual([64, 3, 3, 1]);
    expect(shapes.get("head.classification_head.module_list.0.0.0.weight")).toEqual([576, 3, 3, 1]);
    expect(shapes.get("head.classification_head.module_list.1.1.weight")).toEqual([546, 1, 1, 1280]);
    expect(shapes.get("head.regression_head.module_list.5.1.bias")).toEqual([24]);
  });

  test("summary() knows every operation; 320 x 320 pixels have 3,234 default boxes", () => {
    const model = new SSDLite({ classes: 90 }).eval();
    const { outputs, uncounted, total } = model.summary([[1, 320, 320, 3]]);
    expect(outputs).toEqual([
      [1, 3234, 91],
      [1, 3234, 4],
    ]);
    expect(uncounted).toEqual([]);
    expect(total.trained).toBe(count(model));
  });

  test("images go in from -1 to 1", () => {
    const { mean, std } = new SSDLite({ classes: 1 }).normalization;
    expect([mean, std]).toEqual([
      [0.5, 0.5, 0.5],
      [0.5, 0.5, 0.5],
    ]);
  });

  test("default boxes must suit the levels", () => {
    const anchors = { aspectRatios: [[2], [2]] };
    expect(errorOf(() => new SSDLite({ classes: 1, anchors })).message).toContain("6 levels, got 2 levels");
    expect(() => new SSDLite({ classes: 1, anchors, extraChannels: [] })).not.toThrow();
  });
});

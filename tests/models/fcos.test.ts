/** FCOS against torchvision's (outputs, detections, losses, gradients, SGD steps); its names, sizes and options. */
import { describe, expect, test } from "bun:test";
import type { Layer } from "../../lib/layers";
import { FCOS } from "../../lib/models";
import golden from "../golden/fcos/golden.json";
import { fcos } from "../golden/fcos/network";
import { goldenTests } from "../support/detector-golden";
import { errorOf } from "../support/errors";

const count = (layer: Layer) => layer.parameters().reduce((sum, { size }) => sum + size, 0);

describe("FCOS computes what torchvision's computes", () => {
  goldenTests(fcos, golden);
});

describe("FCOS", () => {
  test("has torchvision's parameters: fcos_resnet50_fpn with 91 classes", () => {
    const model = new FCOS({ classes: 91, norm: "frozen" });
    expect(count(model)).toBe(32_269_600);
    const shapes = new Map([...model.namedState()].map(([name, { shape }]) => [name, shape]));
    expect(shapes.get("head.classification_head.conv.0.weight")).toEqual([256, 3, 3, 256]);
    expect(shapes.get("head.classification_head.conv.10.bias")).toEqual([256]); // the last group normalization
    expect(shapes.get("head.classification_head.cls_logits.weight")).toEqual([91, 3, 3, 256]);
    expect(shapes.get("head.regression_head.bbox_reg.bias")).toEqual([4]);
    expect(shapes.get("head.regression_head.bbox_ctrness.weight")).toEqual([1, 3, 3, 256]);
  });

  test("summary() knows every operation and gives the heads' rows of all points", () => {
    const model = new FCOS({ classes: 5, backbone: "resnet18" });
    const { outputs, uncounted, total } = model.summary([[2, 128, 128, 3]]);
    const points = 16 ** 2 + 8 ** 2 + 4 ** 2 + 2 ** 2 + 1;
    expect(outputs).toEqual([
      [2, points, 5],
      [2, points, 4],
      [2, points, 1],
    ]);
    expect(uncounted).toEqual([]);
    expect(total.trained).toBe(count(model));
  });

  test("a wrong number of strides or classes is an error", () => {
    const model = new FCOS({ classes: 1, backbone: "resnet18", strides: [8, 16] });
    expect(errorOf(() => model.summary([[1, 64, 64, 3]])).message).toContain("expected 2 feature maps, got 5");
    expect(errorOf(() => new FCOS({ classes: 0 })).message).toBe("FCOS: expected a positive number of classes, got 0");
  });
});

/** ResNets and RetinaNet: sizes, names, freezing, options. */
import { describe, expect, test } from "bun:test";
import { Program, type Value } from "../../lib/graph";
import { Conv2d, Layer } from "../../lib/layers";
import { ResNet, type ResNetName, RetinaNet, resNetNames } from "../../lib/models";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const count = (layer: Layer) => layer.parameters().reduce((sum, { size }) => sum + size, 0);

describe("ResNet", () => {
  // torchvision's documented sizes less the last layer's, (512 or 2048) x 1000 + 1000.
  const sizes: Record<ResNetName, number> = {
    resnet18: 11_689_512 - 513_000,
    resnet34: 21_797_672 - 513_000,
    resnet50: 25_557_032 - 2_049_000,
    resnet101: 44_549_160 - 2_049_000,
    resnext50_32x4d: 25_028_904 - 2_049_000,
  };

  test("every architecture has torchvision's number of parameters", () => {
    expect([...resNetNames].sort() as string[]).toEqual(Object.keys(sizes).sort());
    for (const name of resNetNames) expect(`${name}: ${count(new ResNet(name))}`).toBe(`${name}: ${sizes[name]}`);
  });

  test("the deepest and the grouped block have torchvision's names and shapes", () => {
    const deep = new ResNet("resnet101").namedState();
    expect(deep.get("layer3.22.conv3.weight")!.shape).toEqual([1024, 1, 1, 256]);
    expect(deep.get("layer4.0.downsample.1.running_mean")!.shape).toEqual([2048]);
    const grouped = new ResNet("resnext50_32x4d").namedState();
    expect(grouped.get("layer1.0.conv2.weight")!.shape).toEqual([128, 3, 3, 4]);
  });

  test("trainableLayers freezes from the stem up", () => {
    const trained = (trainableLayers: number) =>
      new Set(
        [...new ResNet("resnet18", { trainableLayers }).namedParameters()]
          .filter(([, parameter]) => parameter.requiresGrad)
          .map(([name]) => name.split(".")[0]),
      );
    expect([...trained(0)]).toEqual([]);
    expect([...trained(2)].sort()).toEqual(["layer3", "layer4"]);
    expect([...trained(5)].sort()).toEqual(["bn1", "conv1", "layer1", "layer2", "layer3", "layer4"]);
  });

  test("unknown names and layer counts are errors that say what is known", () => {
    expect(errorOf(() => new ResNet("resnet51" as ResNetName)).message).toBe(
      "ResNet: expected one of resnet18, resnet34, resnet50, resnet101, resnext50_32x4d, got resnet51",
    );
    expect(errorOf(() => new ResNet("resnet18", { trainableLayers: 6 })).message).toBe(
      "ResNet: expected trainableLayers from 0 to 5, got 6",
    );
  });
});

describe("RetinaNet", () => {
  test("has torchvision's parameters: retinanet_resnet50_fpn with 91 classes", () => {
    const model = new RetinaNet({ classes: 91 });
    expect(count(model)).toBe(34_014_999 + 2 * 26_560); // documented with frozen normalization; that has 26,560 channels
    const shapes = new Map([...model.namedState()].map(([name, { shape }]) => [name, shape]));
    expect(shapes.get("backbone.body.layer1.0.conv1.weight")).toEqual([64, 1, 1, 64]);
    expect(shapes.get("backbone.fpn.extra_blocks.p6.weight")).toEqual([256, 3, 3, 256]);
    expect(shapes.get("head.classification_head.conv.3.0.bias")).toEqual([256]);
    expect(shapes.get("head.classification_head.cls_logits.weight")).toEqual([819, 3, 3, 256]);
    expect(shapes.get("head.regression_head.bbox_reg.bias")).toEqual([36]);
    const v2 = new RetinaNet({ classes: 91, p6From: "c5" });
    expect(v2.namedState().get("backbone.fpn.extra_blocks.p6.weight")!.shape).toEqual([256, 3, 3, 2048]);
  });

  test("takes a backbone of one's own", () => {
    class Tiny extends Layer {
      readonly outChannels = 8;
      stem = new Conv2d(3, 8, 3, { stride: 8, padding: 1 });
      down = new Conv2d(8, 8, 3, { stride: 2, padding: 1 });
      forward(images: Value): Value[] {
        const p3 = this.stem.forward(images);
        return [p3, this.down.forward(p3)];
      }
    }
    const anchors = { sizes: [[16], [32]], aspectRatios: [1] };
    using model = new RetinaNet({ classes: 3, backbone: new Tiny(), anchors }).to(device);
    using program = new Program(device, { images: { shape: [1, 32, 40, 3], dtype: "f32" } }, ({ images }) =>
      model.eval().forward(images!),
    );
    expect(program.results.logits!.shape).toEqual([1, 4 * 5 + 2 * 3, 3]);
  });
});

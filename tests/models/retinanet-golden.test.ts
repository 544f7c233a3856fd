/** RetinaNets on every kind of backbone against torchvision's: outputs, detections, losses, gradients, SGD steps. */
import { describe } from "bun:test";
import backbones from "../golden/retinanet/backbones.json";
import golden from "../golden/retinanet/golden.json";
import { retinaNet } from "../golden/retinanet/network";
import { goldenTests } from "../support/detector-golden";

describe("RetinaNet computes what torchvision's computes", () => {
  goldenTests(retinaNet, golden);
  goldenTests(retinaNet, backbones);
});

import type { AnchorOptions } from "../detection";
import type { Init, Value } from "../graph";
import { Conv2d, Layer, ReLU, Sequential } from "../layers";
import { Detector, type DetectorOptions, type HeadOutput } from "./detector";
import { FeaturePyramid, LastLevelP6P7 } from "./fpn";
import { ResNet, type ResNetName, type ResNetOptions } from "./resnet";

/** A network from images (N, H, W, 3) to pyramid levels (N, h, w, outChannels), finest first. */
export type PyramidBackbone = Layer & { readonly outChannels: number; forward(images: Value): Value[] };

/** Three sizes an octave from 32 pixels on P3 to 512 on P7, ratios 1/2, 1, 2: torchvision's RetinaNet's, truncated as there. */
export const retinaNetAnchors: AnchorOptions = {
  sizes: [32, 64, 128, 256, 512].map((size) => [
    size,
    Math.trunc(size * 2 ** (1 / 3)),
    Math.trunc(size * 2 ** (2 / 3)),
  ]),
  aspectRatios: [0.5, 1, 2],
};

/** Channels of the pyramid on a ResNet. */
const PYRAMID_CHANNELS = 256;

/**
 * ResNet with a feature pyramid of P3 to P7 on C3 to C5: torchvision's backbone of retinanet_resnet50_fpn ("body.conv1.weight",
 * "fpn.inner_blocks.0.0.weight").
 */
export class ResNetPyramid extends Layer {
  readonly outChannels = PYRAMID_CHANNELS;
  readonly body: ResNet;
  readonly fpn: FeaturePyramid;

  /** @param p6From the map that P6 is computed from; torchvision's retinanet_resnet50_fpn has "p5", its v2 "c5" */
  constructor(architecture: ResNetName, options: ResNetOptions & { p6From?: "p5" | "c5" } = {}) {
    super();
    this.body = new ResNet(architecture, options);
    const [, c3, c4, c5] = this.body.outChannels;
    const last = new LastLevelP6P7(options.p6From === "c5" ? c5 : this.outChannels, this.outChannels);
    this.fpn = new FeaturePyramid([c3, c4, c5], this.outChannels, last);
  }

  forward(images: Value): Value[] {
    const [, c3, c4, c5] = this.body.forward(images);
    return this.fpn.forward([c3, c4, c5]);
  }
}

function headConv(inChannels: number, outChannels: number, bias = 0): Conv2d {
  const init = { weight: { kind: "normal", mean: 0, std: 0.01 }, bias: { kind: "constant", value: bias } } as const;
  return new Conv2d(inChannels, outChannels, 3, { padding: 1, init: init satisfies { weight: Init; bias: Init } });
}

/** Four 3x3 convolutions with ReLU, shared by all levels ("conv.0.0" to "conv.3.0"). */
function tower(channels: number): Sequential[] {
  return Array.from({ length: 4 }, () => new Sequential(headConv(channels, channels), new ReLU()));
}

class ClassificationHead extends Layer {
  readonly conv: Sequential[];
  readonly clsLogits: Conv2d;

  constructor(channels: number, perCell: number, classes: number) {
    super();
    this.conv = tower(channels);
    // The bias makes every anchor start with an object probability of 0.01 (Lin et al. 2017, section 4.1).
    this.clsLogits = headConv(channels, perCell * classes, -Math.log((1 - 0.01) / 0.01));
  }

  forward(x: Value): Value {
    return this.clsLogits.forward(this.conv.reduce((y, layer) => layer.forward(y), x));
  }
}

class RegressionHead extends Layer {
  readonly conv: Sequential[];
  readonly bboxReg: Conv2d;

  constructor(channels: number, perCell: number) {
    super();
    this.conv = tower(channels);
    this.bboxReg = headConv(channels, perCell * 4);
  }

  forward(x: Value): Value {
    return this.bboxReg.forward(this.conv.reduce((y, layer) => layer.forward(y), x));
  }
}

/** Both heads of RetinaNet, applied to every level with the same weights. */
class RetinaNetHead extends Layer {
  readonly classificationHead: ClassificationHead;
  readonly regressionHead: RegressionHead;

  constructor(channels: number, perCell: number, classes: number) {
    super();
    this.classificationHead = new ClassificationHead(channels, perCell, classes);
    this.regressionHead = new RegressionHead(channels, perCell);
  }

  forward(levels: readonly Value[]): HeadOutput[] {
    return levels.map((level) => ({
      logits: this.classificationHead.forward(level),
      deltas: this.regressionHead.forward(level),
    }));
  }
}

export interface RetinaNetOptions extends Omit<DetectorOptions, "anchors">, ResNetOptions {
  /** A ResNet by name, with a pyramid of P3 to P7; or a backbone of one's own. Default "resnet50". */
  readonly backbone?: ResNetName | PyramidBackbone;
  /** Where P6 comes from on a ResNet: "p5" (default) or "c5". */
  readonly p6From?: "p5" | "c5";
  /** Default retinaNetAnchors; one list of sizes for each level of the backbone. */
  readonly anchors?: AnchorOptions;
}

/**
 * RetinaNet (Lin et al. 2017) as torchvision's retinanet_resnet50_fpn: the same parameter names, anchors, matching, losses,
 * post-processing and initial distributions, so that weights go both ways (loadTorchWeights, torchWeights).
 *
 * `classes` is torchvision's num_classes: the number of logits an anchor has. torchvision's labels count from 1 and leave logit
 * 0 (its "background") without a positive; labels here are the same indices. To use a torchvision checkpoint with 91 classes,
 * construct with `classes: 91` and keep its labels; to train from scratch, `classes` is the number of object classes and labels
 * start at 0. Images are (N, H, W, 3), RGB in 0 to 1 less ImageNet's mean, divided by its standard deviation.
 */
export class RetinaNet extends Detector {
  readonly backbone: PyramidBackbone;
  readonly head: RetinaNetHead;

  constructor(options: RetinaNetOptions) {
    const { backbone = "resnet50", norm, normEps, trainableLayers, p6From, ...detector } = options;
    super({ anchors: retinaNetAnchors, ...detector });
    this.backbone =
      typeof backbone === "string" ? new ResNetPyramid(backbone, { norm, normEps, trainableLayers, p6From }) : backbone;
    this.head = new RetinaNetHead(this.backbone.outChannels, this.anchorGenerator.perCell, options.classes);
  }

  heads(images: Value): HeadOutput[] {
    return this.head.forward(this.backbone.forward(images));
  }
}

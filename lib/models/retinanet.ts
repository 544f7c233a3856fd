import type { AnchorOptions } from "../detection";
import type { Value } from "../graph";
import { type Conv2d, Layer, ReLU, Sequential } from "../layers";
import { headConv, RARE_OBJECT_BIAS } from "./blocks";
import { Detector, type DetectorOptions, type HeadOutput } from "./detector";
import { type BackboneName, type PyramidBackbone, type PyramidOptions, pyramidBackbone } from "./pyramid-backbone";

/** Three sizes an octave from 32 pixels on P3 to 512 on P7, ratios 1/2, 1, 2: torchvision's RetinaNet's, truncated as there. */
export const retinaNetAnchors: AnchorOptions = {
  sizes: [32, 64, 128, 256, 512].map((size) => [
    size,
    Math.trunc(size * 2 ** (1 / 3)),
    Math.trunc(size * 2 ** (2 / 3)),
  ]),
  aspectRatios: [0.5, 1, 2],
};

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
    this.clsLogits = headConv(channels, perCell * classes, RARE_OBJECT_BIAS);
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

export interface RetinaNetOptions extends Omit<DetectorOptions, "anchors">, PyramidOptions {
  /** A backbone by name, with a pyramid of P3 to P7; or one of one's own. Default "resnet50". */
  readonly backbone?: BackboneName | PyramidBackbone;
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
    const { backbone = "resnet50", norm, normEps, normMomentum, trainableLayers, p6From, ...detector } = options;
    super({ anchors: retinaNetAnchors, ...detector });
    const pyramid = { norm, normEps, normMomentum, trainableLayers, p6From };
    this.backbone = typeof backbone === "string" ? pyramidBackbone(backbone, pyramid) : backbone;
    this.head = new RetinaNetHead(this.backbone.outChannels, this.anchorGenerator.perCell, options.classes);
  }

  override featureMaps(images: Value): Value[] {
    return this.backbone.forward(images);
  }

  heads(images: Value): HeadOutput[] {
    return this.head.forward(this.backbone.forward(images));
  }
}

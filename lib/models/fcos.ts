import {
  AnchorGenerator,
  boxLoss,
  centernessLoss,
  type FocalLossOptions,
  focalLoss,
  matchPoints,
  type PointPostprocessOptions,
  postprocessPoints,
  type Targets,
} from "../detection";
import { relu, type Value } from "../graph";
import { type Conv2d, GroupNorm, Layer, ReLU, Sequential } from "../layers";
import { headConv, RARE_OBJECT_BIAS } from "./blocks";
import { anchorCounts, checkMaps, DetectionModel, joinLevels, mapsOf } from "./detection-model";
import { type BackboneName, type PyramidBackbone, type PyramidOptions, pyramidBackbone } from "./pyramid-backbone";

/** Groups of the heads' normalization. */
const NORM_GROUPS = 32;

/** Convolutions of each head before its last ones. */
const TOWER = 4;

/** 3x3 convolutions with group normalization and ReLU, shared by all levels ("conv.0", "conv.1", "conv.3", ...). */
function tower(channels: number): Sequential {
  const layers = Array.from({ length: TOWER }, () => [
    headConv(channels, channels),
    new GroupNorm(NORM_GROUPS, channels),
    new ReLU(),
  ]);
  return new Sequential(...layers.flat());
}

class ClassificationHead extends Layer {
  readonly conv: Sequential;
  readonly clsLogits: Conv2d;

  constructor(channels: number, classes: number) {
    super();
    this.conv = tower(channels);
    this.clsLogits = headConv(channels, classes, RARE_OBJECT_BIAS);
  }

  forward(x: Value): Value {
    return this.clsLogits.forward(this.conv.forward(x));
  }
}

/** Distances of a box's sides from the point, in anchor sides, and the centre-ness, on one branch. */
class RegressionHead extends Layer {
  readonly conv: Sequential;
  readonly bboxReg: Conv2d;
  readonly bboxCtrness: Conv2d;

  constructor(channels: number) {
    super();
    this.conv = tower(channels);
    this.bboxReg = headConv(channels, 4);
    this.bboxCtrness = headConv(channels, 1);
  }

  forward(x: Value): { deltas: Value; centerness: Value } {
    const features = this.conv.forward(x);
    return { deltas: relu(this.bboxReg.forward(features)), centerness: this.bboxCtrness.forward(features) };
  }
}

/** Both heads of FCOS, applied to every level with the same weights. */
class FCOSHead extends Layer {
  readonly classificationHead: ClassificationHead;
  readonly regressionHead: RegressionHead;

  constructor(channels: number, classes: number) {
    super();
    this.classificationHead = new ClassificationHead(channels, classes);
    this.regressionHead = new RegressionHead(channels);
  }

  forward(levels: readonly Value[]): { logits: Value; deltas: Value; centerness: Value }[] {
    return levels.map((level) => ({
      logits: this.classificationHead.forward(level),
      ...this.regressionHead.forward(level),
    }));
  }
}

export interface FCOSOptions extends PyramidOptions {
  /** Number of logits of a point; labels are 0 to classes - 1. */
  readonly classes: number;
  /** A backbone by name, with a pyramid of P3 to P7; or one of one's own. Default "resnet50". */
  readonly backbone?: BackboneName | PyramidBackbone;
  /** Side of each level's anchors in pixels, its stride; finest first. Default 8, 16, 32, 64, 128. */
  readonly strides?: readonly number[];
  /** How far from a box's centre its points may be along either axis, in strides. Default 1.5. */
  readonly centerSamplingRadius?: number;
  /** Focal loss; default alpha 0.25, gamma 2. */
  readonly focal?: Pick<FocalLossOptions, "alpha" | "gamma">;
  /** Where a field is missing: score 0.2, 1000 a level, NMS 0.6, 100 detections. */
  readonly postprocess?: Partial<PointPostprocessOptions>;
}

/**
 * FCOS (Tian et al. 2019, 2020) as torchvision's fcos_resnet50_fpn: the same parameter names, assignment of points, losses,
 * post-processing and initial distributions, so that weights go both ways (loadTorchWeights, torchWeights). A point of a level
 * is the centre of a square anchor as large as the level's stride; the box is its distances to the sides.
 *
 * `classes` is torchvision's num_classes, the number of logits; labels are indices of logits, as RetinaNet's here. Images are
 * (N, H, W, 3), RGB in 0 to 1 less ImageNet's mean, divided by its standard deviation.
 */
export class FCOS extends DetectionModel {
  readonly backbone: PyramidBackbone;
  readonly head: FCOSHead;
  readonly anchorGenerator: AnchorGenerator;
  readonly centerSamplingRadius: number;
  readonly focal: Pick<FocalLossOptions, "alpha" | "gamma">;
  readonly postprocess: PointPostprocessOptions;

  constructor(options: FCOSOptions) {
    super(options.classes);
    const { backbone = "resnet50", norm, normEps, normMomentum, trainableLayers, p6From } = options;
    const pyramid = { norm, normEps, normMomentum, trainableLayers, p6From };
    this.backbone = typeof backbone === "string" ? pyramidBackbone(backbone, pyramid) : backbone;
    this.head = new FCOSHead(this.backbone.outChannels, options.classes);
    const strides = options.strides ?? [8, 16, 32, 64, 128];
    this.anchorGenerator = new AnchorGenerator({ sizes: strides.map((stride) => [stride]), aspectRatios: [1] });
    this.centerSamplingRadius = options.centerSamplingRadius ?? 1.5;
    this.focal = options.focal ?? { alpha: 0.25, gamma: 2 };
    this.postprocess = {
      scoreThreshold: 0.2,
      topK: 1000,
      nmsThreshold: 0.6,
      maxDetections: 100,
      ...options.postprocess,
    };
  }

  override featureMaps(images: Value): Value[] {
    return this.backbone.forward(images);
  }

  /** Of all points: class logits (N, A, classes), distances in strides (N, A, 4), centre-ness logits (N, A, 1). */
  forward(images: Value): { logits: Value; deltas: Value; centerness: Value } {
    const { logits, deltas, centerness } = this.predict(images);
    return {
      logits: joinLevels(logits, this.classes),
      deltas: joinLevels(deltas, 4),
      centerness: joinLevels(centerness, 1),
    };
  }

  maps(images: Value): Value[] {
    const { logits, deltas, centerness } = this.predict(images);
    return [...logits, ...deltas, ...centerness];
  }

  /** Focal loss of the classes, GIoU loss of the boxes and cross-entropy of the centre-ness of the foreground points. */
  losses(images: Value, targets: Targets): { classification: Value; boxRegression: Value; centerness: Value } {
    const { logits, deltas, centerness, anchors } = this.predict(images);
    const levels = anchorCounts(logits, 1);
    const matched = matchPoints(anchors, targets, { radius: this.centerSamplingRadius, levels });
    return {
      classification: focalLoss(logits, matched, targets, { ...this.focal, normalization: "batch" }),
      boxRegression: boxLoss(deltas, anchors, matched, targets, {
        kind: "giou",
        coder: "linear",
        normalization: "batch",
      }),
      centerness: centernessLoss(centerness, anchors, matched, targets),
    };
  }

  detect(images: Value, imageSizes: Value): { detections: Value; counts: Value } {
    return postprocessPoints({ ...this.predict(images), imageSizes }, this.postprocess);
  }

  private predict(images: Value) {
    const maps = this.head.forward(this.backbone.forward(images));
    checkMaps(maps, { logits: this.classes, deltas: 4, centerness: 1 }, 1);
    const logits = mapsOf(maps, "logits");
    const anchors = this.anchorGenerator.forward(images, logits);
    return { logits, deltas: mapsOf(maps, "deltas"), centerness: mapsOf(maps, "centerness"), anchors };
  }
}

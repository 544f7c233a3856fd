import {
  boxLoss,
  crossEntropyLoss,
  DefaultBoxGenerator,
  type DefaultBoxOptions,
  matchAnchors,
  postprocessSoftmax,
  type SoftmaxPostprocessOptions,
  type Targets,
} from "../detection";
import type { Init, Value } from "../graph";
import { Conv2d, Layer, Sequential } from "../layers";
import { check } from "../native";
import { convNormReLU6, type MakeNorm, type NormOptions, normMaker } from "./blocks";
import { checkMaps, DetectionModel, joinLevels, mapsOf, type Normalization } from "./detection-model";
import { freezeStages, type InvertedResidual, type MobileNetV2Block, mobileNetV2Blocks } from "./mobilenet-v2";

/** Distribution of all weights, torchvision's _normal_init. */
const WEIGHT: Init = { kind: "normal", mean: 0, std: 0.03 };

/** Channels of the levels after the backbone's (Sandler et al. 2018, section 6.2; torchvision's SSDLiteFeatureExtractorMobileNet). */
const EXTRA_CHANNELS = [512, 256, 256, 128] as const;

/** Weights of the encoded coordinates x, y, width, height (Liu et al. 2016, its "variances" 0.1 and 0.2). */
const CODER_WEIGHTS = [10, 10, 5, 5] as const;

/** Layers in a row that are named by their position in another row, from `first` on: a slice of torch's Sequential. */
class SequentialSlice extends Sequential {
  constructor(
    readonly first: number,
    ...layers: Sequential["layers"]
  ) {
    super(...layers);
  }

  override namedChildren(): [string, Layer][] {
    return this.layers.map((layer, i) => [String(this.first + i), layer]);
  }
}

/** A level of half the resolution: a 1x1 convolution to half the channels, a depthwise one of stride 2, a 1x1 one. */
function extraBlock(inChannels: number, outChannels: number, norm: MakeNorm): Sequential {
  const middle = Math.floor(outChannels / 2);
  const options = { norm, init: { weight: WEIGHT } };
  return new Sequential(
    convNormReLU6(inChannels, middle, 1, options),
    convNormReLU6(middle, middle, 3, { ...options, stride: 2, groups: middle }),
    convNormReLU6(middle, outChannels, 1, options),
  );
}

/** The block of MobileNetV2 whose expansion is the first level: the last one that halves the resolution, C4. */
const SPLIT_BLOCK = 14;

/**
 * Where a parameter of MobileNetV2's features ("14.conv.1.0.weight") is in SSDLite's backbone.features ("1.0.1.0.weight"), whose
 * two parts end and begin within a block.
 */
export function splitFeatureName(name: string): string {
  const [block, ...rest] = name.split(".") as [string, ...string[]];
  const index = Number(block);
  if (index < SPLIT_BLOCK) return `0.${name}`;
  if (index > SPLIT_BLOCK) return `1.${index - SPLIT_BLOCK}.${rest.join(".")}`;
  const [, layer, ...parameter] = rest as [string, string, ...string[]];
  return layer === "0" ? `0.${SPLIT_BLOCK}.${parameter.join(".")}` : `1.0.${layer}.${parameter.join(".")}`;
}

/**
 * MobileNetV2 with further levels: the expansion of the last block that halves the resolution (stride 16), the last block
 * (stride 32), and `extra` ones. torchvision's ssdlite `_mobilenet_extractor` of a MobileNetV2, with its parameter names
 * ("features.0.0.0.weight", "features.1.0.1.0.weight", "extra.0.0.0.weight").
 */
class SSDLiteFeatures extends Layer {
  readonly features: readonly [Sequential, Sequential];
  readonly extra: Sequential[];
  /** Channels of the levels. */
  readonly outChannels: readonly number[];

  constructor(blocks: readonly MobileNetV2Block[], extraChannels: readonly number[], norm: MakeNorm) {
    super();
    const { layer } = blocks[SPLIT_BLOCK] as MobileNetV2Block & { layer: InvertedResidual };
    const [expansion, ...rest] = layer.conv.layers as [Sequential, ...Sequential["layers"]];
    const layersOf = (part: readonly MobileNetV2Block[]) => part.map((block) => block.layer);
    this.features = [
      new Sequential(...layersOf(blocks.slice(0, SPLIT_BLOCK)), expansion),
      new Sequential(new SequentialSlice(1, ...rest), ...layersOf(blocks.slice(SPLIT_BLOCK + 1))),
    ];
    const hidden = (expansion.layers[0] as Conv2d).outChannels;
    this.outChannels = [hidden, blocks.at(-1)!.outChannels, ...extraChannels];
    this.extra = extraChannels.map((channels, i) => extraBlock(this.outChannels[i + 1] as number, channels, norm));
  }

  forward(images: Value): Value[] {
    const maps: Value[] = [];
    let x = images;
    for (const part of [...this.features, ...this.extra]) {
      x = part.forward(x);
      maps.push(x);
    }
    return maps;
  }
}

/** For each level a depthwise 3x3 convolution and a 1x1 one to `columns` numbers of every box ("module_list.0.0.0.weight"). */
class ScoringHead extends Layer {
  readonly moduleList: Sequential[];

  constructor(channels: readonly number[], perCell: number, columns: number, norm: MakeNorm) {
    super();
    const init = { weight: WEIGHT, bias: { kind: "constant", value: 0 } } as const;
    this.moduleList = channels.map(
      (c) =>
        new Sequential(
          convNormReLU6(c, c, 3, { norm, groups: c, init: { weight: WEIGHT } }),
          new Conv2d(c, perCell * columns, 1, { init }),
        ),
    );
  }

  forward(maps: readonly Value[]): Value[] {
    return maps.map((map, level) => this.moduleList[level]!.forward(map));
  }
}

class SSDLiteHead extends Layer {
  readonly classificationHead: ScoringHead;
  readonly regressionHead: ScoringHead;

  constructor(channels: readonly number[], perCell: number, columns: number, norm: MakeNorm) {
    super();
    this.classificationHead = new ScoringHead(channels, perCell, columns, norm);
    this.regressionHead = new ScoringHead(channels, perCell, 4, norm);
  }

  forward(maps: readonly Value[]): { logits: Value; deltas: Value }[] {
    const deltas = this.regressionHead.forward(maps);
    return this.classificationHead.forward(maps).map((logits, level) => ({ logits, deltas: deltas[level] as Value }));
  }
}

export interface SSDLiteOptions extends NormOptions {
  /** Number of object classes; labels are 0 to classes - 1. */
  readonly classes: number;
  /** Multiplies the channels of MobileNetV2. Default 1. */
  readonly widthMultiplier?: number;
  /** How many of MobileNetV2's six stages train, counted from the deepest: 6 (default) is everything, 0 nothing. */
  readonly trainableLayers?: number;
  /** Channels of the levels after MobileNetV2's two. Default 512, 256, 256, 128. */
  readonly extraChannels?: readonly number[];
  /** The default boxes. Default: minRatio 0.2, maxRatio 0.95, aspect ratios 2 and 3 on every level. */
  readonly anchors?: DefaultBoxOptions;
  /** IoU from which a default box is foreground; the best one of every object is in any case. Default 0.5. */
  readonly iouThreshold?: number;
  /** Background boxes that count in the loss, for each foreground box. Default 3. */
  readonly negativeRatio?: number;
  /** Where a field is missing: score 0.001, 300 a class, NMS 0.55, 300 detections. */
  readonly postprocess?: Partial<SoftmaxPostprocessOptions>;
}

/**
 * SSDLite on MobileNetV2 (Sandler et al. 2018, section 6.2): SSD (Liu et al. 2016) whose heads and further levels are made of
 * depthwise-separable convolutions. As torchvision's ssdlite320_mobilenet_v3_large but for the backbone: parameter names,
 * default boxes, matching, losses, post-processing and initial distributions; the backbone's parameters have the names that
 * torchvision's extractor gives MobileNetV2's.
 *
 * Logits have classes + 1 columns, the background first (torchvision's num_classes counts it); label l is logit l + 1, that is
 * torchvision's label less 1. Images are (N, H, W, 3), RGB from -1 to 1, usually 320 x 320.
 */
export class SSDLite extends DetectionModel {
  override readonly normalization: Normalization = { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] };
  readonly backbone: SSDLiteFeatures;
  readonly head: SSDLiteHead;
  readonly anchorGenerator: DefaultBoxGenerator;
  readonly iouThreshold: number;
  readonly negativeRatio: number;
  readonly postprocess: SoftmaxPostprocessOptions;
  readonly #perCell: number;

  constructor(options: SSDLiteOptions) {
    super(options.classes);
    const { widthMultiplier, trainableLayers = 6, extraChannels = EXTRA_CHANNELS } = options;
    const normOptions = {
      norm: options.norm,
      normEps: options.normEps ?? 0.001,
      normMomentum: options.normMomentum ?? 0.03,
    };
    const norm = normMaker(normOptions);
    const blocks = mobileNetV2Blocks({ ...normOptions, widthMultiplier, weight: WEIGHT });
    freezeStages(blocks, trainableLayers);
    this.backbone = new SSDLiteFeatures(blocks, extraChannels, norm);
    const { outChannels } = this.backbone;
    const aspectRatios = outChannels.map(() => [2, 3]);
    this.anchorGenerator = new DefaultBoxGenerator(options.anchors ?? { aspectRatios, minRatio: 0.2, maxRatio: 0.95 });
    const { perCell } = this.anchorGenerator;
    check(
      perCell.length === outChannels.length && new Set(perCell).size === 1,
      "SSDLite",
      () => `expected equally many aspect ratios on each of ${outChannels.length} levels, got ${perCell.length} levels`,
    );
    this.#perCell = perCell[0] as number;
    this.head = new SSDLiteHead(outChannels, this.#perCell, options.classes + 1, norm);
    this.iouThreshold = options.iouThreshold ?? 0.5;
    this.negativeRatio = options.negativeRatio ?? 3;
    this.postprocess = {
      scoreThreshold: 0.001,
      topK: 300,
      nmsThreshold: 0.55,
      maxDetections: 300,
      ...options.postprocess,
    };
  }

  override featureMaps(images: Value): Value[] {
    return this.backbone.forward(images);
  }

  /** Of all default boxes: class logits (N, A, classes + 1), the background first, and box deltas (N, A, 4). */
  forward(images: Value): { logits: Value; deltas: Value } {
    const { logits, deltas } = this.predict(images);
    return { logits, deltas: joinLevels(deltas, 4) };
  }

  maps(images: Value): Value[] {
    const { logits, deltas } = this.predict(images);
    return [logits, ...deltas];
  }

  /** Cross-entropy with hard negative mining, and smooth L1 of the foreground boxes; both over the batch's foreground. */
  losses(images: Value, targets: Targets): { classification: Value; boxRegression: Value } {
    const { logits, deltas, anchors } = this.predict(images);
    const { iouThreshold, negativeRatio } = this;
    const matched = matchAnchors(anchors, targets, { high: iouThreshold, low: iouThreshold, bestAnchor: true });
    return {
      classification: crossEntropyLoss(logits, matched, targets, { negativeRatio }),
      boxRegression: boxLoss(deltas, anchors, matched, targets, {
        kind: "smooth_l1",
        weights: CODER_WEIGHTS,
        normalization: "batch",
      }),
    };
  }

  detect(images: Value, imageSizes: Value): { detections: Value; counts: Value } {
    const { logits, deltas, anchors } = this.predict(images);
    return postprocessSoftmax(
      { logits, deltas: joinLevels(deltas, 4), anchors, imageSizes },
      { weights: CODER_WEIGHTS, ...this.postprocess },
    );
  }

  /** The logits of all default boxes (N, A, classes + 1), which mining and softmax want together; the deltas of each level. */
  private predict(images: Value) {
    const maps = this.head.forward(this.backbone.forward(images));
    checkMaps(maps, { logits: this.classes + 1, deltas: 4 }, this.#perCell);
    const deltas = mapsOf(maps, "deltas");
    const logits = joinLevels(mapsOf(maps, "logits"), this.classes + 1);
    return { logits, deltas, anchors: this.anchorGenerator.forward(images, deltas) };
  }
}

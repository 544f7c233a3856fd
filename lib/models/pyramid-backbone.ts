/** Backbones with a feature pyramid, torchvision's backbone_utils: what RetinaNet and FCOS stand on. */
import type { Value } from "../graph";
import { Layer } from "../layers";
import { check } from "../native";
import type { NormOptions } from "./blocks";
import { FeaturePyramid, LastLevelMaxPool, LastLevelP6P7 } from "./fpn";
import { MobileNetV2Features, type MobileNetV2Options } from "./mobilenet-v2";
import { ResNet, type ResNetName, type ResNetOptions, resNetNames } from "./resnet";

/** A network from images (N, H, W, 3) to pyramid levels (N, h, w, outChannels), finest first. */
export type PyramidBackbone = Layer & { readonly outChannels: number; forward(images: Value): Value[] };

/** Channels of every level. */
const PYRAMID_CHANNELS = 256;

/** The map that P6 is computed from: torchvision's retinanet_resnet50_fpn has "p5", its v2 "c5". */
export type P6Source = "p5" | "c5";

/**
 * ResNet with a feature pyramid of P3 to P7 on C3 to C5: torchvision's backbone of retinanet_resnet50_fpn ("body.conv1.weight",
 * "fpn.inner_blocks.0.0.weight").
 */
export class ResNetPyramid extends Layer {
  readonly outChannels = PYRAMID_CHANNELS;
  readonly body: ResNet;
  readonly fpn: FeaturePyramid;

  constructor(architecture: ResNetName, options: ResNetOptions & { p6From?: P6Source } = {}) {
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

export interface MobileNetPyramidOptions extends MobileNetV2Options {
  /** How many of the six stages train, counted from the deepest: 6 (default) is everything, 0 nothing. */
  trainableLayers?: number;
  /**
   * The stages C0 to C5 (strides 2, 4, 8, 16, 32, 32) that the pyramid is built on, ascending. Default [2, 3, 5]: strides 8, 16
   * and 32, as on a ResNet. torchvision's mobilenet_backbone has [4, 5].
   */
  returnedLayers?: readonly number[];
  /** Further levels: P6 and P7 by convolutions (default), or one by taking every second cell, as torchvision's default. */
  extra?: "p6p7" | "pool";
  /** Where P6 comes from. Default "p5". */
  p6From?: P6Source;
}

/**
 * MobileNetV2 with a feature pyramid: torchvision's mobilenet_backbone("mobilenet_v2", fpn=True), with its parameter names
 * ("body.1.conv.0.0.weight", "fpn.inner_blocks.0.0.weight").
 */
export class MobileNetPyramid extends Layer {
  readonly outChannels = PYRAMID_CHANNELS;
  readonly body: MobileNetV2Features;
  readonly fpn: FeaturePyramid;

  constructor({ returnedLayers = [2, 3, 5], extra = "p6p7", p6From = "p5", ...options }: MobileNetPyramidOptions = {}) {
    super();
    this.body = new MobileNetV2Features({ ...options, returnedLayers });
    const { outChannels } = this.body;
    const last =
      extra === "pool"
        ? new LastLevelMaxPool()
        : new LastLevelP6P7(p6From === "c5" ? outChannels.at(-1)! : this.outChannels, this.outChannels);
    this.fpn = new FeaturePyramid(outChannels, this.outChannels, last);
  }

  forward(images: Value): Value[] {
    return this.fpn.forward(this.body.forward(images));
  }
}

/** Backbones by torchvision's names. */
export type BackboneName = ResNetName | "mobilenet_v2";

export const backboneNames: readonly BackboneName[] = [...resNetNames, "mobilenet_v2"];

export interface PyramidOptions extends NormOptions {
  /**
   * How many stages of the backbone train, counted from the deepest; the others are frozen. Default: all, which are 5 of a
   * ResNet and 6 of MobileNetV2.
   */
  readonly trainableLayers?: number;
  /** Where P6 comes from: "p5" (default) or "c5". */
  readonly p6From?: P6Source;
}

/** A named backbone with levels P3 to P7 (strides 8 to 128), 256 channels each. */
export function pyramidBackbone(name: BackboneName, options: PyramidOptions = {}): PyramidBackbone {
  check(
    backboneNames.includes(name),
    "backbone",
    () => `expected one of ${backboneNames.join(", ")}, or a layer, got ${name}`,
  );
  return name === "mobilenet_v2" ? new MobileNetPyramid(options) : new ResNetPyramid(name, options);
}

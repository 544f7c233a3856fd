import type { AnchorOptions } from "../detection";
import { add, relu, upsample, type Value } from "../graph";
import { BatchNorm2d, Conv2d, InputLayer, Layer } from "../layers";
import { conv, headConv, RARE_OBJECT_BIAS } from "./blocks";
import { Detector, type DetectorOptions, type HeadOutput } from "./detector";

/** Convolution without bias, batch normalization, ReLU. */
export class ConvNormReLU extends Layer {
  readonly conv: Conv2d;
  readonly norm: BatchNorm2d;

  constructor(inChannels: number, outChannels: number, kernel: number, stride = 1) {
    super();
    this.conv = conv(inChannels, outChannels, kernel, { stride });
    this.norm = new BatchNorm2d(outChannels);
  }

  forward(x: Value): Value {
    return relu(this.norm.forward(this.conv.forward(x)));
  }
}

/** Two 3x3 convolutions with a residual join; a 1x1 convolution fits the shortcut where shapes differ (He et al. 2016). */
export class BasicBlock extends Layer {
  readonly conv1: ConvNormReLU;
  readonly conv2: Conv2d;
  readonly norm2: BatchNorm2d;
  readonly shortcut: Conv2d | null;
  readonly shortcutNorm: BatchNorm2d | null;

  constructor(inChannels: number, outChannels: number, stride = 1) {
    super();
    this.conv1 = new ConvNormReLU(inChannels, outChannels, 3, stride);
    this.conv2 = conv(outChannels, outChannels, 3);
    this.norm2 = new BatchNorm2d(outChannels);
    const same = stride === 1 && inChannels === outChannels;
    this.shortcut = same ? null : conv(inChannels, outChannels, 1, { stride });
    this.shortcutNorm = same ? null : new BatchNorm2d(outChannels);
  }

  forward(x: Value): Value {
    const y = this.norm2.forward(this.conv2.forward(this.conv1.forward(x)));
    const z = this.shortcut && this.shortcutNorm ? this.shortcutNorm.forward(this.shortcut.forward(x)) : x;
    return relu(add(y, z));
  }
}

export interface CompactDetectorOptions extends Omit<DetectorOptions, "anchors"> {
  /** Channels of the stem; stages have 2, 4, 8 and 8 times as many. Default 16. */
  readonly width?: number;
  /** Residual blocks of each of the four stages. Default [1, 1, 1, 1]. */
  readonly depths?: readonly [number, number, number, number];
  /** Channels of the pyramid and the heads. Default 4 times width. */
  readonly pyramidChannels?: number;
  /** Convolutions of each head before its last. Default 2. */
  readonly headConvs?: number;
  /** Default: three sizes an octave from 24 pixels at stride 8, ratios 1/2, 1, 2. */
  readonly anchors?: AnchorOptions;
}

/** Sizes base, base 2^(1/3), base 2^(2/3) at strides 8, 16 and 32. */
export function octaveAnchors(base: number): AnchorOptions {
  const sizes = [1, 2, 4].map((level) => [0, 1, 2].map((third) => base * level * 2 ** (third / 3)));
  return { sizes, aspectRatios: [0.5, 1, 2] };
}

/**
 * A small one-stage detector for training from scratch: a residual backbone to stride 32, a three-level feature pyramid
 * (strides 8, 16, 32), and heads whose convolutions are shared by the levels while each level normalises for itself.
 */
export class CompactDetector extends Detector {
  readonly input = new InputLayer(3);
  readonly stem: ConvNormReLU;
  /** Strides 4, 8, 16, 32. */
  readonly stage1: BasicBlock[];
  readonly stage2: BasicBlock[];
  readonly stage3: BasicBlock[];
  readonly stage4: BasicBlock[];
  readonly lateral: Conv2d[];
  readonly smooth: ConvNormReLU[];
  readonly classHead: Head;
  readonly boxHead: Head;

  constructor(options: CompactDetectorOptions) {
    super({ anchors: octaveAnchors(24), ...options });
    const { width = 16, depths = [1, 1, 1, 1], headConvs = 2 } = options;
    const pyramid = options.pyramidChannels ?? 4 * width;
    const channels = [2 * width, 4 * width, 8 * width, 8 * width] as const;
    this.stem = new ConvNormReLU(3, width, 3, 2);
    const stage = (from: number, to: number, depth: number) =>
      Array.from({ length: depth }, (_, i) => new BasicBlock(i === 0 ? from : to, to, i === 0 ? 2 : 1));
    this.stage1 = stage(width, channels[0], depths[0]);
    this.stage2 = stage(channels[0], channels[1], depths[1]);
    this.stage3 = stage(channels[1], channels[2], depths[2]);
    this.stage4 = stage(channels[2], channels[3], depths[3]);
    this.lateral = [channels[1], channels[2], channels[3]].map((c) => new Conv2d(c, pyramid, 1));
    this.smooth = [0, 1, 2].map(() => new ConvNormReLU(pyramid, pyramid, 3));
    const { perCell } = this.anchorGenerator;
    this.classHead = new Head(pyramid, perCell * options.classes, headConvs, 3, RARE_OBJECT_BIAS);
    this.boxHead = new Head(pyramid, perCell * 4, headConvs, 3, 0);
  }

  /** The backbone's maps of strides 8, 16 and 32. */
  override featureMaps(images: Value): Value[] {
    const run = (blocks: BasicBlock[], x: Value) => blocks.reduce((y, block) => block.forward(y), x);
    const c2 = run(this.stage1, this.stem.forward(this.input.forward(images)));
    const c3 = run(this.stage2, c2);
    const c4 = run(this.stage3, c3);
    const c5 = run(this.stage4, c4);
    return [c3, c4, c5];
  }

  heads(images: Value): HeadOutput[] {
    const merged: Value[] = [];
    for (const [level, c] of this.featureMaps(images).entries())
      merged.push((this.lateral[level] as Conv2d).forward(c));
    for (let level = 1; level >= 0; --level) {
      const [, h, w] = merged[level]!.shape as [number, number, number];
      merged[level] = add(merged[level]!, upsample(merged[level + 1]!, { size: [h, w] }));
    }
    return merged.map((map, level) => {
      const features = (this.smooth[level] as ConvNormReLU).forward(map);
      return { logits: this.classHead.forward(features, level), deltas: this.boxHead.forward(features, level) };
    });
  }
}

/** Convolutions shared by all pyramid levels, each followed by the level's own normalization and ReLU; then a last one. */
class Head extends Layer {
  readonly convs: Conv2d[];
  /** norms[i * levels + level]. */
  readonly norms: BatchNorm2d[];
  readonly last: Conv2d;

  constructor(
    channels: number,
    outChannels: number,
    depth: number,
    readonly levels: number,
    bias: number,
  ) {
    super();
    this.convs = Array.from({ length: depth }, () => conv(channels, channels, 3));
    this.norms = Array.from({ length: depth * levels }, () => new BatchNorm2d(channels));
    this.last = headConv(channels, outChannels, bias);
  }

  forward(x: Value, level: number): Value {
    const y = this.convs.reduce(
      (z, conv, i) => relu((this.norms[i * this.levels + level] as BatchNorm2d).forward(conv.forward(z))),
      x,
    );
    return this.last.forward(y);
  }
}

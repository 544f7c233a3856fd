import { add, maxPool2d, relu, upsample, type Value } from "../graph";
import { Conv2d, type Conv2dOptions, Layer, Sequential } from "../layers";
import { check, ErrorCode } from "../native";

/** A convolution drawn as torch's kaiming_uniform_(a=1), that is with variance 1 / fan in, and a bias of 0. */
function conv(inChannels: number, outChannels: number, kernel: number, options: Conv2dOptions = {}): Conv2d {
  const bound = Math.sqrt(3 / (inChannels * kernel * kernel));
  return new Conv2d(inChannels, outChannels, kernel, {
    padding: (kernel - 1) / 2,
    init: { weight: { kind: "uniform", low: -bound, high: bound }, bias: { kind: "constant", value: 0 } },
    ...options,
  });
}

/** Two further pyramid levels by 3x3 convolutions of stride 2 (Lin et al. 2017, RetinaNet); torchvision's LastLevelP6P7. */
export class LastLevelP6P7 extends Layer {
  readonly p6: Conv2d;
  readonly p7: Conv2d;
  /** P6 is computed from P5 where the channels agree, else from C5. */
  readonly usesP5: boolean;

  constructor(inChannels: number, outChannels: number) {
    super();
    this.p6 = conv(inChannels, outChannels, 3, { stride: 2 });
    this.p7 = conv(outChannels, outChannels, 3, { stride: 2 });
    this.usesP5 = inChannels === outChannels;
  }

  forward(p5: Value, c5: Value): [p6: Value, p7: Value] {
    const p6 = this.p6.forward(this.usesP5 ? p5 : c5);
    return [p6, this.p7.forward(relu(p6))];
  }
}

/** A further pyramid level: every second cell of the last one, in both directions; torchvision's LastLevelMaxPool. */
export class LastLevelMaxPool extends Layer {
  forward(last: Value): [Value] {
    return [maxPool2d(last, 1, { stride: 2 })];
  }
}

/**
 * Feature pyramid network (Lin et al. 2017), torchvision's with its parameter names: 1x1 convolutions ("inner_blocks.0.0"),
 * added from the coarsest level down with nearest-neighbour upsampling to each finer map's size, then 3x3 convolutions
 * ("layer_blocks.0.0"); with `extraBlocks`, further levels ("extra_blocks.p6").
 */
export class FeaturePyramid extends Layer {
  readonly innerBlocks: Sequential[];
  readonly layerBlocks: Sequential[];

  /**
   * @param inChannels channels of the maps, finest first
   * @param outChannels channels of every level
   */
  constructor(
    readonly inChannels: readonly number[],
    readonly outChannels: number,
    readonly extraBlocks: LastLevelP6P7 | LastLevelMaxPool | null = null,
  ) {
    super();
    this.innerBlocks = inChannels.map((channels) => new Sequential(conv(channels, outChannels, 1)));
    this.layerBlocks = inChannels.map(() => new Sequential(conv(outChannels, outChannels, 3)));
  }

  /** The levels, finest first, of as many maps (N, h, w, C), finest first; the extra levels come last. */
  forward(maps: readonly Value[]): Value[] {
    check(
      maps.length === this.inChannels.length,
      "FeaturePyramid",
      () => `expected ${this.inChannels.length} feature maps, got ${maps.length}`,
      ErrorCode.shape,
    );
    const merged = maps.map((map, level) => this.innerBlocks[level]!.forward(map));
    for (let level = merged.length - 2; level >= 0; --level) {
      const [, h, w] = merged[level]!.shape as [number, number, number];
      merged[level] = add(merged[level]!, upsample(merged[level + 1]!, { size: [h, w] }));
    }
    const levels = merged.map((map, level) => this.layerBlocks[level]!.forward(map));
    const extra = this.extraBlocks ? this.extraBlocks.forward(levels.at(-1)!, maps.at(-1)!) : [];
    return [...levels, ...extra];
  }
}

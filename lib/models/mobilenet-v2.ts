import { add, type Init, reshape, type Value } from "../graph";
import { Dropout, GlobalAvgPool2d, Layer, Linear, Model, Sequential } from "../layers";
import { check, ErrorCode } from "../native";
import { conv, convNormReLU6, type MakeNorm, type NormOptions, normMaker } from "./blocks";

/** Expansion, channels, blocks and first stride of each group of inverted residuals (Sandler et al. 2018, table 2). */
const groups = [
  [1, 16, 1, 1],
  [6, 24, 2, 2],
  [6, 32, 3, 2],
  [6, 64, 4, 2],
  [6, 96, 3, 1],
  [6, 160, 3, 2],
  [6, 320, 1, 1],
] as const;

/** Channels of the first and the last convolution. */
const STEM = 32;
const LAST = 1280;

/** The stage that ends with the last convolution, C5. */
const LAST_STAGE = 5;

/** Channels are multiples of this. */
const DIVISOR = 8;

/**
 * The multiple of the divisor nearest to a number of channels, at least the divisor, and never less than 90 % of the number:
 * torchvision's _make_divisible.
 */
export function makeDivisible(channels: number, divisor = DIVISOR): number {
  const rounded = Math.max(divisor, Math.floor(Math.trunc(channels + divisor / 2) / divisor) * divisor);
  return rounded < 0.9 * channels ? rounded + divisor : rounded;
}

interface InvertedResidualOptions {
  stride: 1 | 2;
  /** Channels of the depthwise convolution over those of the input; 1 leaves the first convolution out. */
  expansion: number;
  norm: MakeNorm;
  /** Distribution of the convolutions' weights. Default: `conv`'s. */
  weight?: Init;
}

/**
 * A 1x1 convolution to more channels, a 3x3 depthwise one, and a 1x1 one to few channels without activation; a residual join
 * where shapes allow (Sandler et al. 2018). Names as torchvision.models.mobilenetv2.InvertedResidual: "conv.0.0.weight".
 */
export class InvertedResidual extends Layer {
  readonly conv: Sequential;
  readonly residual: boolean;

  constructor(
    readonly inChannels: number,
    readonly outChannels: number,
    { stride, expansion, norm, weight }: InvertedResidualOptions,
  ) {
    super();
    const hidden = Math.round(inChannels * expansion);
    const options = { norm, ...(weight && { init: { weight } }) };
    this.conv = new Sequential(
      ...(expansion === 1 ? [] : [convNormReLU6(inChannels, hidden, 1, options)]),
      convNormReLU6(hidden, hidden, 3, { ...options, stride, groups: hidden }),
      conv(hidden, outChannels, 1, weight && { init: { weight } }),
      norm(outChannels),
    );
    this.residual = stride === 1 && inChannels === outChannels;
  }

  forward(x: Value): Value {
    const y = this.conv.forward(x);
    return this.residual ? add(x, y) : y;
  }
}

/** A block of MobileNetV2 with what detectors choose by. */
export interface MobileNetV2Block {
  readonly layer: Sequential | InvertedResidual;
  readonly outChannels: number;
  /** Pixels of the image to a cell of its map. */
  readonly stride: number;
}

export interface MobileNetV2Options extends NormOptions {
  /** Multiplies the channels of all layers but the last, which has at least 1280. Default 1. */
  widthMultiplier?: number;
  /** Distribution of all convolutions' weights. Default: normal with variance 2 / fan out. */
  weight?: Init;
}

/** The 19 blocks of MobileNetV2 in order: a convolution, 17 inverted residuals, a 1x1 convolution. */
export function mobileNetV2Blocks({ widthMultiplier = 1, weight, ...options }: MobileNetV2Options = {}) {
  check(
    Number.isFinite(widthMultiplier) && widthMultiplier > 0,
    "MobileNetV2",
    () => `expected a positive widthMultiplier, got ${widthMultiplier}`,
  );
  const norm = normMaker(options);
  const layerOptions = { norm, ...(weight && { init: { weight } }) };
  let channels = makeDivisible(STEM * widthMultiplier);
  const blocks: MobileNetV2Block[] = [
    { layer: convNormReLU6(3, channels, 3, { ...layerOptions, stride: 2 }), outChannels: channels, stride: 2 },
  ];
  for (const [expansion, width, count, firstStride] of groups) {
    const outChannels = makeDivisible(width * widthMultiplier);
    for (let i = 0; i < count; ++i) {
      const stride = i === 0 ? firstStride : 1;
      const layer = new InvertedResidual(channels, outChannels, { stride, expansion, norm, weight });
      blocks.push({ layer, outChannels, stride: blocks.at(-1)!.stride * stride });
      channels = outChannels;
    }
  }
  const last = makeDivisible(LAST * Math.max(1, widthMultiplier));
  blocks.push({
    layer: convNormReLU6(channels, last, 1, layerOptions),
    outChannels: last,
    stride: blocks.at(-1)!.stride,
  });
  return blocks;
}

/**
 * The blocks whose maps torchvision calls C0 to C5: the first, those that halve the resolution, and the last; 0, 2, 4, 7, 14
 * and 18 at strides 2, 4, 8, 16, 32 and 32.
 */
export function stageIndices(blocks: readonly MobileNetV2Block[]): number[] {
  return blocks.flatMap(({ stride }, i) =>
    i === 0 || i === blocks.length - 1 || stride > blocks[i - 1]!.stride ? [i] : [],
  );
}

/**
 * Freezes the parameters of all blocks before the last `trainable` stages, as torchvision's _mobilenet_extractor: 6 trains
 * everything, 0 nothing. With batch normalization, running statistics still follow the data.
 */
export function freezeStages(blocks: readonly MobileNetV2Block[], trainable: number): void {
  const stages = stageIndices(blocks);
  check(
    Number.isInteger(trainable) && trainable >= 0 && trainable <= stages.length,
    "MobileNetV2",
    () => `expected trainableLayers from 0 to ${stages.length}, got ${trainable}`,
  );
  const first = trainable === 0 ? blocks.length : (stages[stages.length - trainable] as number);
  for (const { layer } of blocks.slice(0, first)) {
    for (const parameter of layer.parameters()) parameter.requiresGrad = false;
  }
}

export interface MobileNetV2FeaturesOptions extends MobileNetV2Options {
  /** How many of the six stages train, counted from the deepest: 6 (default) is everything, 0 nothing. */
  trainableLayers?: number;
  /** The stages, 0 to 5, whose maps forward() gives, in ascending order; later blocks are left out. Default all. */
  returnedLayers?: readonly number[];
}

/**
 * MobileNetV2 (Sandler et al. 2018) as a backbone: torchvision's `mobilenet_v2().features`, with its parameter names relative
 * to it ("0.0.weight", "1.conv.0.0.weight", "18.1.bias").
 */
export class MobileNetV2Features extends Layer {
  /** Channels of the maps that forward() gives. */
  readonly outChannels: readonly number[];
  readonly #layers: readonly (Sequential | InvertedResidual)[];
  readonly #returned: ReadonlySet<number>;

  constructor({ trainableLayers = 6, returnedLayers, ...options }: MobileNetV2FeaturesOptions = {}) {
    super();
    const blocks = mobileNetV2Blocks(options);
    const stages = stageIndices(blocks);
    const returned = returnedLayers ?? stages.keys().toArray();
    check(
      returned.length > 0 &&
        returned.every((stage, i) => stages[stage] !== undefined && (i === 0 || stage > returned[i - 1]!)),
      "MobileNetV2",
      () => `expected ascending returnedLayers from 0 to ${stages.length - 1}, got ${returned.join(", ")}`,
    );
    freezeStages(blocks, trainableLayers);
    const indices = returned.map((stage) => stages[stage] as number);
    this.outChannels = indices.map((index) => blocks[index]!.outChannels);
    this.#layers = blocks.slice(0, indices.at(-1)! + 1).map(({ layer }) => layer);
    this.#returned = new Set(indices);
  }

  /** Children are named by their position, as in torch. */
  override namedChildren(): [string, Layer][] {
    return this.#layers.map((layer, i) => [String(i), layer]);
  }

  /** The maps of the returned stages of images (N, H, W, 3), finest first. */
  forward(images: Value): Value[] {
    check(
      images.shape.length === 4 && images.shape[3] === 3,
      "MobileNetV2",
      () => `expected images (N, H, W, 3), got (${images.shape.join(", ")})`,
      ErrorCode.shape,
    );
    const maps: Value[] = [];
    let x = images;
    for (const [i, layer] of this.#layers.entries()) {
      x = layer.forward(x);
      if (this.#returned.has(i)) maps.push(x);
    }
    return maps;
  }
}

export interface MobileNetV2ClassifierOptions extends Omit<MobileNetV2FeaturesOptions, "returnedLayers"> {
  /** Number of logits. Default 1000, ImageNet's. */
  classes?: number;
  /** Probability of dropping a feature in training. Default 0.2. */
  dropout?: number;
}

/**
 * MobileNetV2 as a classifier, torchvision's mobilenet_v2 with its parameter names ("features.0.0.weight",
 * "classifier.1.weight"): what ImageNet's checkpoints are of.
 */
export class MobileNetV2 extends Model {
  readonly features: MobileNetV2Features;
  readonly classifier: Sequential;
  readonly #pool = new GlobalAvgPool2d();

  constructor({ classes = 1000, dropout = 0.2, ...options }: MobileNetV2ClassifierOptions = {}) {
    super();
    this.features = new MobileNetV2Features({ ...options, returnedLayers: [LAST_STAGE] });
    const init = {
      weight: { kind: "normal", mean: 0, std: 0.01 },
      bias: { kind: "constant", value: 0 },
    } as const;
    const [channels] = this.features.outChannels as [number];
    this.classifier = new Sequential(new Dropout(dropout), new Linear(channels, classes, { init }));
  }

  /** Logits (N, classes) of images (N, H, W, 3), RGB in 0 to 1 less ImageNet's mean, divided by its standard deviation. */
  forward(images: Value): Value {
    const [map] = this.features.forward(images) as [Value];
    const pooled = this.#pool.forward(map);
    const [n, , , channels] = pooled.shape as [number, number, number, number];
    return this.classifier.forward(reshape(pooled, [n, channels]));
  }
}

import { add, relu, type Value } from "../graph";
import { type Conv2d, Layer, MaxPool2d, Sequential } from "../layers";
import { check, ErrorCode } from "../native";
import { conv, type MakeNorm, type Norm, type NormOptions, normMaker } from "./blocks";

/** Blocks of each stage, the kind of block, and the groups and channels per group of its 3x3 convolution. */
const architectures = {
  resnet18: { bottleneck: false, depths: [2, 2, 2, 2], groups: 1, groupWidth: 64 },
  resnet34: { bottleneck: false, depths: [3, 4, 6, 3], groups: 1, groupWidth: 64 },
  resnet50: { bottleneck: true, depths: [3, 4, 6, 3], groups: 1, groupWidth: 64 },
  resnet101: { bottleneck: true, depths: [3, 4, 23, 3], groups: 1, groupWidth: 64 },
  resnext50_32x4d: { bottleneck: true, depths: [3, 4, 6, 3], groups: 32, groupWidth: 4 },
} as const;

export type ResNetName = keyof typeof architectures;

/** The architectures by torchvision's names. */
export const resNetNames = Object.keys(architectures) as ResNetName[];

export interface ResNetOptions extends NormOptions {
  /**
   * How many of layer4, layer3, layer2, layer1 and the stem train, counted from the deepest: 5 (default) is everything, 0
   * nothing. The other parameters are frozen; with "batch" their running statistics still follow the data, as in torchvision.
   */
  trainableLayers?: number;
}

/** A 1x1 convolution with normalization where the shortcut must change shape, else null. */
function shortcut(inChannels: number, outChannels: number, stride: number, norm: MakeNorm): Sequential | null {
  if (stride === 1 && inChannels === outChannels) return null;
  return new Sequential(conv(inChannels, outChannels, 1, { stride }), norm(outChannels));
}

interface BlockOptions {
  inChannels: number;
  /** Channels of the stage before expansion: 64, 128, 256, 512. */
  planes: number;
  stride: number;
  groups: number;
  groupWidth: number;
  norm: MakeNorm;
}

/** Two 3x3 convolutions with a residual join (He et al. 2016); names as torchvision.models.resnet.BasicBlock. */
export class BasicBlock extends Layer {
  readonly conv1: Conv2d;
  readonly bn1: Norm;
  readonly conv2: Conv2d;
  readonly bn2: Norm;
  readonly downsample: Sequential | null;

  constructor({ inChannels, planes, stride, norm }: BlockOptions) {
    super();
    this.conv1 = conv(inChannels, planes, 3, { stride });
    this.bn1 = norm(planes);
    this.conv2 = conv(planes, planes, 3);
    this.bn2 = norm(planes);
    this.downsample = shortcut(inChannels, planes, stride, norm);
  }

  forward(x: Value): Value {
    const y = relu(this.bn1.forward(this.conv1.forward(x)));
    const z = this.downsample ? this.downsample.forward(x) : x;
    return relu(add(this.bn2.forward(this.conv2.forward(y)), z));
  }
}

/**
 * 1x1, 3x3 and 1x1 convolutions with a residual join, 4 x planes channels out (He et al. 2016); with groups, ResNeXt's (Xie et
 * al. 2017). The 3x3 convolution has the stride, as torchvision.models.resnet.Bottleneck ("V1.5").
 */
export class Bottleneck extends Layer {
  static readonly expansion = 4;
  readonly conv1: Conv2d;
  readonly bn1: Norm;
  readonly conv2: Conv2d;
  readonly bn2: Norm;
  readonly conv3: Conv2d;
  readonly bn3: Norm;
  readonly downsample: Sequential | null;

  constructor({ inChannels, planes, stride, groups, groupWidth, norm }: BlockOptions) {
    super();
    const width = Math.floor((planes * groupWidth) / 64) * groups;
    const outChannels = planes * Bottleneck.expansion;
    this.conv1 = conv(inChannels, width, 1);
    this.bn1 = norm(width);
    this.conv2 = conv(width, width, 3, { stride, groups });
    this.bn2 = norm(width);
    this.conv3 = conv(width, outChannels, 1);
    this.bn3 = norm(outChannels);
    this.downsample = shortcut(inChannels, outChannels, stride, norm);
  }

  forward(x: Value): Value {
    const y = relu(this.bn1.forward(this.conv1.forward(x)));
    const w = relu(this.bn2.forward(this.conv2.forward(y)));
    const z = this.downsample ? this.downsample.forward(x) : x;
    return relu(add(this.bn3.forward(this.conv3.forward(w)), z));
  }
}

/**
 * ResNet and ResNeXt as a backbone, torchvision's up to the pooling: parameters have torchvision's names ("conv1.weight",
 * "layer1.0.bn2.bias", "layer2.0.downsample.0.weight").
 */
export class ResNet extends Layer {
  /** Channels of the four maps that forward() gives. */
  readonly outChannels: readonly [number, number, number, number];
  readonly conv1: Conv2d;
  readonly bn1: Norm;
  readonly maxpool = new MaxPool2d(3, { stride: 2, padding: 1 });
  readonly layer1: (BasicBlock | Bottleneck)[];
  readonly layer2: (BasicBlock | Bottleneck)[];
  readonly layer3: (BasicBlock | Bottleneck)[];
  readonly layer4: (BasicBlock | Bottleneck)[];

  constructor(
    readonly architecture: ResNetName,
    { trainableLayers = 5, ...options }: ResNetOptions = {},
  ) {
    super();
    check(
      Object.hasOwn(architectures, architecture),
      "ResNet",
      () => `expected one of ${resNetNames.join(", ")}, got ${architecture}`,
    );
    check(
      Number.isInteger(trainableLayers) && trainableLayers >= 0 && trainableLayers <= 5,
      "ResNet",
      () => `expected trainableLayers from 0 to 5, got ${trainableLayers}`,
    );
    const { bottleneck, depths, groups, groupWidth } = architectures[architecture];
    const makeNorm = normMaker(options);
    const Block = bottleneck ? Bottleneck : BasicBlock;
    const expansion = bottleneck ? Bottleneck.expansion : 1;
    const stage = (index: 0 | 1 | 2 | 3) =>
      Array.from({ length: depths[index] }, (_, i) => {
        const planes = 64 * 2 ** index;
        const before = index === 0 ? 64 : (planes / 2) * expansion;
        return new Block({
          inChannels: i === 0 ? before : planes * expansion,
          planes,
          stride: i === 0 && index > 0 ? 2 : 1,
          groups,
          groupWidth,
          norm: makeNorm,
        });
      });
    this.outChannels = [64 * expansion, 128 * expansion, 256 * expansion, 512 * expansion];
    this.conv1 = conv(3, 64, 7, { stride: 2 });
    this.bn1 = makeNorm(64);
    this.layer1 = stage(0);
    this.layer2 = stage(1);
    this.layer3 = stage(2);
    this.layer4 = stage(3);

    // torchvision trains the stem's convolution from 5 on and its normalization with it.
    const trained = [this.layer4, this.layer3, this.layer2, this.layer1, [this.conv1, this.bn1]];
    for (const layers of trained.slice(trainableLayers)) {
      for (const layer of layers) for (const parameter of layer.parameters()) parameter.requiresGrad = false;
    }
  }

  /** Maps at strides 4, 8, 16 and 32 (C2 to C5) of images (N, H, W, 3). */
  forward(images: Value): [c2: Value, c3: Value, c4: Value, c5: Value] {
    check(
      images.shape.length === 4 && images.shape[3] === 3,
      "ResNet",
      () => `expected images (N, H, W, 3), got (${images.shape.join(", ")})`,
      ErrorCode.shape,
    );
    const run = (blocks: (BasicBlock | Bottleneck)[], x: Value) => blocks.reduce((y, block) => block.forward(y), x);
    const stem = this.maxpool.forward(relu(this.bn1.forward(this.conv1.forward(images))));
    const c2 = run(this.layer1, stem);
    const c3 = run(this.layer2, c2);
    const c4 = run(this.layer3, c3);
    return [c2, c3, c4, run(this.layer4, c4)];
  }
}

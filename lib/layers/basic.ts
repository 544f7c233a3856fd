/** The layers of the library, one short class each; semantics and defaults are torch.nn's, on (N, H, W, C) batches. */
import {
  add,
  batchNorm,
  type ConvOptions,
  concat,
  conv2d,
  maxPool2d,
  Parameter,
  pair,
  type Size2,
  type UpsampleOptions,
  upsample,
  useParameter,
  type Value,
} from "../graph";
import { check, ErrorCode } from "../native";
import type { Communicator } from "../tensor";
import { Layer, type Unary } from "./layer";
import { convolutionParameters, type WeightOptions } from "./weight-and-bias";

/** Checks the channels and, where given, the size of a model's input: (N, height, width, channels). */
export class InputLayer extends Layer {
  constructor(
    readonly channels: number,
    readonly size?: readonly [height: number, width: number],
  ) {
    super();
  }

  forward(x: Value): Value {
    const [, h, w, c] = x.shape;
    const expected = ["N", this.size?.[0] ?? "any", this.size?.[1] ?? "any", this.channels];
    check(
      x.shape.length === 4 && c === this.channels && (!this.size || (h === this.size[0] && w === this.size[1])),
      "input",
      () => `expected (${expected.join(", ")}), got (${x.shape.join(", ")})`,
      ErrorCode.shape,
    );
    return x;
  }
}

/** Stride, padding, dilation and groups; the fan in is kernel area * in channels / groups. */
export interface Conv2dOptions extends ConvOptions, WeightOptions {}

/** 2-D convolution, weight (out, kernel height, kernel width, in / groups). */
export class Conv2d extends Layer {
  readonly weight: Parameter;
  readonly bias: Parameter | null;

  constructor(
    readonly inChannels: number,
    readonly outChannels: number,
    kernel: Size2,
    readonly options: Conv2dOptions = {},
  ) {
    super();
    const parameters = convolutionParameters("Conv2d", inChannels, outChannels, kernel, options);
    ({ weight: this.weight, bias: this.bias } = parameters);
  }

  forward(x: Value): Value {
    const bias = this.bias && useParameter(this.bias);
    return conv2d(x, useParameter(this.weight, x.dtype), bias, this.options);
  }
}

/** A depthwise convolution followed by a 1x1 one (Howard et al. 2017); options shape the depthwise part. */
export class SeparableConv2d extends Layer {
  readonly depthwise: Conv2d;
  readonly pointwise: Conv2d;

  constructor(inChannels: number, outChannels: number, kernel: Size2, options: Omit<Conv2dOptions, "groups"> = {}) {
    super();
    this.depthwise = new Conv2d(inChannels, inChannels, kernel, { ...options, groups: inChannels, bias: false });
    this.pointwise = new Conv2d(inChannels, outChannels, 1, { bias: options.bias ?? true });
  }

  forward(x: Value): Value {
    return this.pointwise.forward(this.depthwise.forward(x));
  }
}

export interface BatchNormOptions {
  /** Added to the variance. Default 1e-5. */
  eps?: number;
  /** Weight of the batch in the running statistics. Default 0.1. */
  momentum?: number;
}

/** Batch normalization over N, H, W, as torch.nn.BatchNorm2d: the batch's statistics in training, running ones else. */
export class BatchNorm2d extends Layer {
  readonly weight: Parameter;
  readonly bias: Parameter;
  readonly runningMean: Parameter;
  readonly runningVar: Parameter;
  /** Ranks whose rows the statistics of training are taken over, too; set by synchronizeBatchNorm. */
  communicator: Communicator | null = null;

  constructor(
    readonly channels: number,
    readonly options: BatchNormOptions = {},
  ) {
    super();
    const constant = (value: number) => ({ kind: "constant", value }) as const;
    this.weight = new Parameter([channels], constant(1));
    this.bias = new Parameter([channels], constant(0));
    this.runningMean = new Parameter([channels], constant(0), { buffer: true });
    this.runningVar = new Parameter([channels], constant(1), { buffer: true });
  }

  forward(x: Value): Value {
    const [weight, bias, mean, variance] = [this.weight, this.bias, this.runningMean, this.runningVar].map((p) =>
      useParameter(p),
    ) as [Value, Value, Value, Value];
    const communicator = this.communicator ?? undefined;
    return batchNorm(x, weight, bias, mean, variance, { training: this.training, communicator, ...this.options });
  }
}

/**
 * Lets all batch normalizations of a model take their statistics over all ranks' images, as torch.nn.SyncBatchNorm: R ranks with B
 * images each normalize as one with R B. Ranks must have equally large batches. Before programs are made of the model.
 */
export function synchronizeBatchNorm(model: Layer, communicator: Communicator): void {
  for (const [, layer] of model.namedLayers()) if (layer instanceof BatchNorm2d) layer.communicator = communicator;
}

/** Maximum over windows; the stride defaults to the kernel's size. */
export class MaxPool2d extends Layer {
  constructor(
    readonly kernel: Size2,
    readonly options: { stride?: Size2; padding?: Size2 } = {},
  ) {
    super();
  }

  forward(x: Value): Value {
    return maxPool2d(x, this.kernel, this.options);
  }
}

/** Resampling as torch.nn.Upsample, by a factor or to a size; a number alone is a factor for nearest neighbours. */
export class Upsample extends Layer {
  readonly options: UpsampleOptions;

  /** @throws DlfsError where neither scale nor size is positive, or alignCorners is asked of nearest neighbours */
  constructor(options: number | UpsampleOptions) {
    super();
    this.options = typeof options === "number" ? { scale: options } : options;
    const { mode = "nearest", alignCorners = false } = this.options;
    const to = "size" in this.options ? this.options.size : this.options.scale;
    check(
      pair(to).every((value) => Number.isFinite(value) && value > 0),
      "Upsample",
      () => `expected a positive scale or size, got ${String(to)}`,
    );
    check(
      mode === "nearest" || mode === "bilinear",
      "Upsample",
      () => `expected mode nearest or bilinear, got ${mode}`,
    );
    check(!alignCorners || mode === "bilinear", "Upsample", () => "expected mode bilinear with alignCorners");
  }

  forward(x: Value): Value {
    return upsample(x, this.options);
  }
}

/** The sum of two or more tensors of one shape: a residual join. */
export class Add extends Layer {
  forward(...inputs: Value[]): Value {
    return inputs.reduce((sum, x) => add(sum, x));
  }
}

/** Joins along an axis; by default the channels. */
export class Concat extends Layer {
  constructor(readonly axis = 3) {
    super();
  }

  forward(...inputs: Value[]): Value {
    return concat(inputs, this.axis);
  }
}

/** Layers applied one after the other. */
export class Sequential extends Layer {
  readonly layers: Unary[];

  constructor(...layers: Unary[]) {
    super();
    this.layers = layers;
  }

  /** Children are named by their position, as in torch: "stem.0.weight". */
  override namedChildren(): [string, Layer][] {
    return this.layers.map((layer, i) => [String(i), layer]);
  }

  forward(x: Value): Value {
    return this.layers.reduce((y, layer) => layer.forward(y), x);
  }
}

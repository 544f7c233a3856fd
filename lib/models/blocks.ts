/** What backbones and heads share: the choice of normalization, and convolutions drawn as torchvision draws them. */
import type { Init } from "../graph";
import { BatchNorm2d, Conv2d, type Conv2dOptions, FrozenBatchNorm2d, ReLU6, Sequential } from "../layers";

export interface NormOptions {
  /**
   * "batch" (default): BatchNorm2d, which trains with the batch's statistics. "frozen": FrozenBatchNorm2d, for pretrained
   * weights and small batches.
   */
  norm?: "batch" | "frozen";
  /** Added to the variance of normalization. Default 1e-5. */
  normEps?: number;
  /** Weight of the batch in the running statistics. Default 0.1. */
  normMomentum?: number;
}

export type Norm = BatchNorm2d | FrozenBatchNorm2d;
export type MakeNorm = (channels: number) => Norm;

/** A function that makes the normalization layers of a network. */
export function normMaker({ norm = "batch", normEps = 1e-5, normMomentum = 0.1 }: NormOptions = {}): MakeNorm {
  return (channels) =>
    norm === "frozen"
      ? new FrozenBatchNorm2d(channels, { eps: normEps })
      : new BatchNorm2d(channels, { eps: normEps, momentum: normMomentum });
}

/**
 * A square convolution without bias that keeps the size at stride 1, its weight drawn with variance 2 / fan out (He et al.
 * 2015): torch's kaiming_normal_(mode="fan_out"), which counts the fan out of grouped convolutions as if they had one group.
 */
export function conv(inChannels: number, outChannels: number, kernel: number, options: Conv2dOptions = {}): Conv2d {
  const weight: Init = { kind: "normal", mean: 0, std: Math.sqrt(2 / (outChannels * kernel * kernel)) };
  return new Conv2d(inChannels, outChannels, kernel, {
    padding: (kernel - 1) / 2,
    bias: false,
    init: { weight },
    ...options,
  });
}

/** Bias of class logits with which everything starts with an object probability of 0.01 (Lin et al. 2017, section 4.1). */
export const RARE_OBJECT_BIAS = -Math.log((1 - 0.01) / 0.01);

/** A 3x3 convolution of a detection head: weight normal with deviation 0.01, a constant bias. */
export function headConv(inChannels: number, outChannels: number, bias = 0): Conv2d {
  const weight: Init = { kind: "normal", mean: 0, std: 0.01 };
  return new Conv2d(inChannels, outChannels, 3, {
    padding: 1,
    init: { weight, bias: { kind: "constant", value: bias } },
  });
}

export interface ConvNormReLU6Options extends Omit<Conv2dOptions, "bias" | "padding"> {
  norm: MakeNorm;
}

/** Convolution, normalization and ReLU6 as torchvision's Conv2dNormActivation: "0.weight", "1.bias". */
export function convNormReLU6(
  inChannels: number,
  outChannels: number,
  kernel: number,
  { norm, ...options }: ConvNormReLU6Options,
): Sequential {
  return new Sequential(conv(inChannels, outChannels, kernel, options), norm(outChannels), new ReLU6());
}

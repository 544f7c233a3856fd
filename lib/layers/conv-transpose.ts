import {
  type ConvTransposeOptions,
  convTranspose2d,
  type Init,
  Parameter,
  pair,
  type Size2,
  useParameter,
  type Value,
} from "../graph";
import { check, ErrorCode } from "../native";
import { Layer } from "./layer";

export interface ConvTranspose2dOptions extends ConvTransposeOptions {
  /** Default true. */
  bias?: boolean;
  /** Initial values; default as torch.nn.ConvTranspose2d: uniform within 1 / sqrt(kernel area * out channels / groups). */
  init?: { weight?: Init; bias?: Init };
}

/**
 * 2-D transposed convolution, as torch.nn.ConvTranspose2d: rows become (H - 1) stride - 2 padding + dilation (kernel - 1) +
 * outputPadding + 1, columns likewise. weight (in, kernel height, kernel width, out / groups); state dicts of PyTorch have
 * (in, out / groups, kernel height, kernel width), which loadTorchWeights brings into this order.
 */
export class ConvTranspose2d extends Layer {
  readonly weight: Parameter;
  readonly bias: Parameter | null;

  constructor(
    readonly inChannels: number,
    readonly outChannels: number,
    kernel: Size2,
    readonly options: ConvTranspose2dOptions = {},
  ) {
    super();
    const [r, s] = pair(kernel);
    const groups = options.groups ?? 1;
    check(
      inChannels % groups === 0 && outChannels % groups === 0,
      "ConvTranspose2d",
      () => `expected channels divisible by ${groups} groups, got ${inChannels} in and ${outChannels} out`,
      ErrorCode.shape,
    );
    const perGroup = outChannels / groups;
    const bound = 1 / Math.sqrt(perGroup * r * s);
    const uniform: Init = { kind: "uniform", low: -bound, high: bound };
    this.weight = new Parameter([inChannels, r, s, perGroup], options.init?.weight ?? uniform);
    this.bias = (options.bias ?? true) ? new Parameter([outChannels], options.init?.bias ?? uniform) : null;
  }

  forward(x: Value): Value {
    const bias = this.bias && useParameter(this.bias);
    return convTranspose2d(x, useParameter(this.weight, x.dtype), bias, this.options);
  }
}

import {
  type ConvTransposeOptions,
  convTranspose2d,
  type Parameter,
  type Size2,
  useParameter,
  type Value,
} from "../graph";
import { Layer } from "./layer";
import { convolutionParameters, type WeightOptions } from "./weight-and-bias";

/** Stride, padding, dilation, groups and output padding; the fan in is torch's: kernel area * out channels / groups. */
export interface ConvTranspose2dOptions extends ConvTransposeOptions, WeightOptions {}

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
    const parameters = convolutionParameters("ConvTranspose2d", inChannels, outChannels, kernel, options);
    ({ weight: this.weight, bias: this.bias } = parameters);
  }

  forward(x: Value): Value {
    const bias = this.bias && useParameter(this.bias);
    return convTranspose2d(x, useParameter(this.weight, x.dtype), bias, this.options);
  }
}

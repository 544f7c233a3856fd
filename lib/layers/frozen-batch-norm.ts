import { batchNorm, Parameter, useParameter, type Value } from "../graph";
import { Layer } from "./layer";

/**
 * Batch normalization that never trains, as torchvision.ops.FrozenBatchNorm2d: a fixed affine map of each channel,
 * weight (x - mean) / sqrt(variance + eps) + bias, in training as in inference. All four vectors (channels) are buffers: they
 * are saved and loaded under BatchNorm2d's names, and no optimizer sees them.
 */
export class FrozenBatchNorm2d extends Layer {
  readonly weight: Parameter;
  readonly bias: Parameter;
  readonly runningMean: Parameter;
  readonly runningVar: Parameter;

  /** @param options eps is added to the variance; default 1e-5 */
  constructor(
    readonly channels: number,
    readonly options: { eps?: number } = {},
  ) {
    super();
    const buffer = (value: number) => new Parameter([channels], { kind: "constant", value }, { buffer: true });
    this.weight = buffer(1);
    this.bias = buffer(0);
    this.runningMean = buffer(0);
    this.runningVar = buffer(1);
  }

  forward(x: Value): Value {
    const [weight, bias, mean, variance] = [this.weight, this.bias, this.runningMean, this.runningVar].map((p) =>
      useParameter(p),
    ) as [Value, Value, Value, Value];
    return batchNorm(x, weight, bias, mean, variance, { training: false, eps: this.options.eps });
  }
}

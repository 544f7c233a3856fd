import { linear, type Parameter, useParameter, type Value } from "../graph";
import { check, ErrorCode } from "../native";
import { Layer } from "./layer";
import { type WeightOptions, weightAndBias } from "./weight-and-bias";

/** The fan in is the number of input features. */
export type LinearOptions = WeightOptions;

/** y = x w^T + b over the last axis of a tensor of any rank, as torch.nn.Linear; weight (out features, in features). */
export class Linear extends Layer {
  readonly weight: Parameter;
  readonly bias: Parameter | null;

  constructor(
    readonly inFeatures: number,
    readonly outFeatures: number,
    readonly options: LinearOptions = {},
  ) {
    super();
    check(
      [inFeatures, outFeatures].every((count) => Number.isSafeInteger(count) && count > 0),
      "Linear",
      () => `expected positive numbers of features, got ${inFeatures} in and ${outFeatures} out`,
      ErrorCode.shape,
    );
    const shape = [outFeatures, inFeatures];
    ({ weight: this.weight, bias: this.bias } = weightAndBias(shape, outFeatures, inFeatures, options));
  }

  /** x (..., in features) to (..., out features). */
  forward(x: Value): Value {
    return linear(x, useParameter(this.weight, x.dtype), this.bias && useParameter(this.bias));
  }
}

import { type Init, linear, Parameter, useParameter, type Value } from "../graph";
import { check, ErrorCode } from "../native";
import { Layer } from "./layer";

export interface LinearOptions {
  /** Default true. */
  bias?: boolean;
  /** Initial values; default as torch.nn.Linear: weight and bias uniform within 1 / sqrt(in features). */
  init?: { weight?: Init; bias?: Init };
}

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
    const bound = 1 / Math.sqrt(inFeatures);
    const uniform: Init = { kind: "uniform", low: -bound, high: bound };
    this.weight = new Parameter([outFeatures, inFeatures], options.init?.weight ?? uniform);
    this.bias = (options.bias ?? true) ? new Parameter([outFeatures], options.init?.bias ?? uniform) : null;
  }

  /** x (..., in features) to (..., out features). */
  forward(x: Value): Value {
    return linear(x, useParameter(this.weight, x.dtype), this.bias && useParameter(this.bias));
  }
}

import { groupNorm, Parameter, useParameter, type Value } from "../graph";
import { check, ErrorCode } from "../native";
import { Layer } from "./layer";

/**
 * Group normalization, as torch.nn.GroupNorm: each image's groups of channels / groups neighbouring channels get mean 0 and
 * variance 1, then each channel its weight and bias. The batch plays no part, so training and inference are the same.
 */
export class GroupNorm extends Layer {
  readonly weight: Parameter;
  readonly bias: Parameter;

  /** @param options eps is added to the variance; default 1e-5 */
  constructor(
    readonly groups: number,
    readonly channels: number,
    readonly options: { eps?: number } = {},
  ) {
    super();
    check(
      Number.isInteger(groups) && groups > 0 && channels % groups === 0,
      "GroupNorm",
      () => `expected channels divisible by a positive number of groups, got ${channels} channels and ${groups} groups`,
      ErrorCode.shape,
    );
    this.weight = new Parameter([channels], { kind: "constant", value: 1 });
    this.bias = new Parameter([channels], { kind: "constant", value: 0 });
  }

  forward(x: Value): Value {
    return groupNorm(x, useParameter(this.weight), useParameter(this.bias), this.groups, this.options);
  }
}

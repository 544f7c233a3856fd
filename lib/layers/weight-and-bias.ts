/** What the layers share that multiply by a weight and add a bias: convolutions and Linear. */
import { type Init, Parameter } from "../graph";
import { check, ErrorCode } from "../native";

/** Whether there is a bias, and what the training starts from. */
export interface WeightOptions {
  /** Default true. */
  bias?: boolean;
  /** Initial values; default as torch.nn's: weight and bias uniform within 1 / sqrt(fan in). */
  init?: { weight?: Init; bias?: Init };
}

/**
 * The parameters of a layer.
 *
 * @param shape of the weight
 * @param outputs length of the bias
 * @param fanIn torch.nn's default distribution follows from it; of a convolution, products that make an output
 */
export function weightAndBias(
  shape: readonly number[],
  outputs: number,
  fanIn: number,
  { bias = true, init = {} }: WeightOptions,
): { weight: Parameter; bias: Parameter | null } {
  const bound = 1 / Math.sqrt(fanIn);
  const uniform: Init = { kind: "uniform", low: -bound, high: bound };
  return {
    weight: new Parameter(shape, init.weight ?? uniform),
    bias: bias ? new Parameter([outputs], init.bias ?? uniform) : null,
  };
}

/** Checks that the groups of a convolution divide its channels. */
export function checkGroups(layer: string, groups: number, inChannels: number, outChannels: number): void {
  check(
    inChannels % groups === 0 && outChannels % groups === 0,
    layer,
    () => `expected channels divisible by ${groups} groups, got ${inChannels} in and ${outChannels} out`,
    ErrorCode.shape,
  );
}

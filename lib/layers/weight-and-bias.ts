/** What the layers share that multiply by a weight and add a bias: convolutions and Linear. */
import { type ConvOptions, type Init, Parameter, pair, type Size2 } from "../graph";
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

/**
 * The parameters of a convolution, whose sizes are checked: weight (out, kernel height, kernel width, in / groups), or, of a
 * transposed one, (in, kernel height, kernel width, out / groups).
 */
export function convolutionParameters(
  layer: "Conv2d" | "ConvTranspose2d",
  inChannels: number,
  outChannels: number,
  kernel: Size2,
  options: ConvOptions & WeightOptions,
): { weight: Parameter; bias: Parameter | null } {
  checkConvolution(layer, inChannels, outChannels, kernel, options);
  const [r, s] = pair(kernel);
  const [rows, columns] = layer === "Conv2d" ? [outChannels, inChannels] : [inChannels, outChannels];
  const perGroup = columns / (options.groups ?? 1);
  return weightAndBias([rows, r, s, perGroup], outChannels, perGroup * r * s, options);
}

/** Checks the sizes of a convolution, and that its groups divide its channels. */
function checkConvolution(
  layer: string,
  inChannels: number,
  outChannels: number,
  kernel: Size2,
  { stride = 1, padding = 0, dilation = 1, groups = 1 }: ConvOptions,
): void {
  const expect = (what: string, values: readonly number[], least: number) =>
    check(
      values.every((value) => Number.isSafeInteger(value) && value >= least),
      layer,
      () => `${what}: expected whole numbers from ${least}, got ${values.join(" and ")}`,
      ErrorCode.shape,
    );
  expect("channels", [inChannels, outChannels], 1);
  expect("kernel", pair(kernel), 1);
  expect("stride", pair(stride), 1);
  expect("padding", pair(padding), 0);
  expect("dilation", pair(dilation), 1);
  expect("groups", [groups], 1);
  check(
    inChannels % groups === 0 && outChannels % groups === 0,
    layer,
    () => `expected channels divisible by ${groups} groups, got ${inChannels} in and ${outChannels} out`,
    ErrorCode.shape,
  );
}

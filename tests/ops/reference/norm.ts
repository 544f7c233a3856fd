/** Batch normalization of x (rows, C), after torch.nn.BatchNorm2d, and group normalization, in float64. */
type Numbers = ArrayLike<number>;

export interface Statistics {
  mean: Float64Array;
  /** 1 / sqrt(biased variance + eps). */
  invstd: Float64Array;
  /** Variance over rows - 1. */
  unbiased: Float64Array;
}

export function statistics(x: Numbers, channels: number, eps: number): Statistics {
  const rows = x.length / channels;
  const mean = new Float64Array(channels);
  const square = new Float64Array(channels);
  for (let i = 0; i < x.length; ++i) mean[i % channels]! += (x[i] as number) / rows;
  for (let i = 0; i < x.length; ++i) square[i % channels]! += ((x[i] as number) - mean[i % channels]!) ** 2;
  return {
    mean,
    invstd: square.map((sum) => 1 / Math.sqrt(sum / rows + eps)),
    unbiased: square.map((sum) => sum / (rows - 1)),
  };
}

/** (x - mean) * invstd * weight + bias + residual, ReLU where asked. */
export function normalize(
  x: Numbers,
  mean: Numbers,
  invstd: Numbers,
  weight: Numbers,
  bias: Numbers,
  residual: Numbers | undefined,
  relu: boolean,
): Float64Array {
  const channels = weight.length;
  const y = new Float64Array(x.length);
  for (let i = 0; i < x.length; ++i) {
    const c = i % channels;
    const value = ((x[i] as number) - mean[c]!) * invstd[c]! * weight[c]! + bias[c]! + (residual?.[i] ?? 0);
    y[i] = relu ? Math.max(value, 0) : value;
  }
  return y;
}

/** Gradients of `normalize` with the batch's statistics; dy is masked where y <= 0 when y is given. */
export function normalizeBackward(
  dy: Numbers,
  x: Numbers,
  weight: Numbers,
  mean: Numbers,
  invstd: Numbers,
  y?: Numbers,
) {
  const channels = weight.length;
  const rows = x.length / channels;
  const masked = Float64Array.from({ length: x.length }, (_, i) => (y && y[i]! <= 0 ? 0 : dy[i]!));
  const dweight = new Float64Array(channels);
  const dbias = new Float64Array(channels);
  const hat = (i: number) => (x[i]! - mean[i % channels]!) * invstd[i % channels]!;
  for (let i = 0; i < x.length; ++i) {
    dbias[i % channels]! += masked[i]!;
    dweight[i % channels]! += masked[i]! * hat(i);
  }
  const dx = masked.map((g, i) => {
    const c = i % channels;
    return weight[c]! * invstd[c]! * (g - dbias[c]! / rows - (hat(i) * dweight[c]!) / rows);
  });
  return { dx, dweight, dbias, dresidual: masked };
}

export interface GroupShape {
  /** (N, H, W, C). */
  shape: readonly number[];
  groups: number;
}

/** Index of an element's group among all N * groups. */
function groupIndex({ shape, groups }: GroupShape): (i: number) => number {
  const channels = shape.at(-1)!;
  const image = shape.slice(1).reduce((a, b) => a * b);
  const width = channels / groups;
  return (i) => Math.floor(i / image) * groups + Math.floor((i % channels) / width);
}

/** Mean and 1 / sqrt(biased variance + eps) of each image's groups, (N, groups), after torch.nn.GroupNorm. */
export function groupStatistics(x: Numbers, of: GroupShape, eps: number): { mean: Float64Array; invstd: Float64Array } {
  const at = groupIndex(of);
  const sets = of.shape[0]! * of.groups;
  const count = x.length / sets;
  const [mean, square] = [new Float64Array(sets), new Float64Array(sets)];
  for (let i = 0; i < x.length; ++i) mean[at(i)]! += (x[i] as number) / count;
  for (let i = 0; i < x.length; ++i) square[at(i)]! += ((x[i] as number) - mean[at(i)]!) ** 2;
  return { mean, invstd: square.map((sum) => 1 / Math.sqrt(sum / count + eps)) };
}

/** (x - mean) * invstd * weight + bias, ReLU where asked. */
export function groupNormalize(
  x: Numbers,
  of: GroupShape,
  mean: Numbers,
  invstd: Numbers,
  weight: Numbers,
  bias: Numbers,
  relu: boolean,
): Float64Array {
  const at = groupIndex(of);
  return Float64Array.from({ length: x.length }, (_, i) => {
    const c = i % weight.length;
    const value = (x[i]! - mean[at(i)]!) * invstd[at(i)]! * weight[c]! + bias[c]!;
    return relu ? Math.max(value, 0) : value;
  });
}

/** Gradients of `groupNormalize` with the groups' own statistics; dy is masked where y <= 0 when y is given. */
export function groupNormalizeBackward(
  dy: Numbers,
  x: Numbers,
  of: GroupShape,
  weight: Numbers,
  mean: Numbers,
  invstd: Numbers,
  y?: Numbers,
) {
  const at = groupIndex(of);
  const [channels, sets] = [weight.length, mean.length];
  const count = x.length / sets;
  const masked = Float64Array.from({ length: x.length }, (_, i) => (y && y[i]! <= 0 ? 0 : dy[i]!));
  const hat = (i: number) => (x[i]! - mean[at(i)]!) * invstd[at(i)]!;
  const [dweight, dbias] = [new Float64Array(channels), new Float64Array(channels)];
  const [sum, product] = [new Float64Array(sets), new Float64Array(sets)];
  for (let i = 0; i < x.length; ++i) {
    const c = i % channels;
    dbias[c]! += masked[i]!;
    dweight[c]! += masked[i]! * hat(i);
    sum[at(i)]! += masked[i]! * weight[c]!;
    product[at(i)]! += masked[i]! * weight[c]! * hat(i);
  }
  const dx = masked.map(
    (g, i) => invstd[at(i)]! * (g * weight[i % channels]! - sum[at(i)]! / count - (hat(i) * product[at(i)]!) / count),
  );
  return { dx, dweight, dbias };
}

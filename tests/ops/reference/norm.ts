/** Batch normalization of x (rows, C) in float64, after torch.nn.BatchNorm2d. */
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

/** Activations and their derivatives in float64. */
export type ActivationName = "none" | "relu" | "sigmoid" | "silu";

export function sigmoid(x: number): number {
  // Either form overflows on one side only to the right limit, and neither cancels.
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

export function activate(x: number, activation: ActivationName): number {
  switch (activation) {
    case "none":
      return x;
    case "relu":
      return Number.isNaN(x) ? x : Math.max(x, 0);
    case "sigmoid":
      return sigmoid(x);
    case "silu":
      return x * sigmoid(x);
  }
}

/** The derivative by x, from x. */
export function slope(x: number, activation: ActivationName): number {
  const s = sigmoid(x);
  switch (activation) {
    case "none":
      return 1;
    case "relu":
      return x > 0 ? 1 : 0;
    case "sigmoid":
      return s * (1 - s);
    case "silu":
      return s === 0 ? 0 : s * (1 + x * (1 - s));
  }
}

export function map(values: ArrayLike<number>, f: (value: number, index: number) => number): Float64Array {
  const out = new Float64Array(values.length);
  for (let i = 0; i < values.length; ++i) out[i] = f(values[i] as number, i);
  return out;
}

/** The inner product. */
export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

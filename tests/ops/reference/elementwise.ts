/** Activations and their derivatives in float64. */
export const activationNames = [
  "none",
  "relu",
  "sigmoid",
  "silu",
  "relu6",
  "leaky_relu",
  "hardswish",
  "hardsigmoid",
] as const;
export type ActivationName = (typeof activationNames)[number];

export function sigmoid(x: number): number {
  // Either form overflows on one side only to the right limit, and neither cancels.
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

/** min(max(x, 0), 6); NaN stays. */
const clamp6 = (x: number): number => Math.min(Math.max(x, 0), 6);

/** @param leak the slope of leaky_relu for x <= 0 */
export function activate(x: number, activation: ActivationName, leak = 0.01): number {
  switch (activation) {
    case "none":
      return x;
    case "relu":
      return Number.isNaN(x) ? x : Math.max(x, 0);
    case "sigmoid":
      return sigmoid(x);
    case "silu":
      return x * sigmoid(x);
    case "relu6":
      return clamp6(x);
    case "leaky_relu":
      return x > 0 ? x : leak * x;
    case "hardswish":
      return x * (clamp6(x + 3) / 6);
    case "hardsigmoid":
      return clamp6(x + 3) / 6;
  }
}

/** The derivative by x, from x. */
export function slope(x: number, activation: ActivationName, leak = 0.01): number {
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
    case "relu6":
      return x > 0 && x < 6 ? 1 : 0;
    case "leaky_relu":
      return x > 0 ? 1 : leak;
    case "hardswish":
      return x <= -3 ? 0 : x >= 3 ? 1 : x / 3 + 0.5;
    case "hardsigmoid":
      return x > -3 && x < 3 ? 1 / 6 : 0;
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

/** Operations on channels, and transposition, in float64. */

/** x (rows, channels). */
export function softmax(x: ArrayLike<number>, channels: number): Float64Array {
  const y = new Float64Array(x.length);
  for (let row = 0; row < x.length; row += channels) {
    let largest = Number.NEGATIVE_INFINITY;
    for (let j = row; j < row + channels; ++j) largest = Math.max(largest, x[j]!);
    let sum = 0;
    for (let j = row; j < row + channels; ++j) sum += Math.exp(x[j]! - largest);
    for (let j = row; j < row + channels; ++j) y[j] = Math.exp(x[j]! - largest) / sum;
  }
  return y;
}

/** The gradient by x, from y. */
export function softmaxBackward(dy: ArrayLike<number>, y: ArrayLike<number>, channels: number): Float64Array {
  const dx = new Float64Array(y.length);
  for (let row = 0; row < y.length; row += channels) {
    let sum = 0;
    for (let j = row; j < row + channels; ++j) sum += dy[j]! * y[j]!;
    for (let j = row; j < row + channels; ++j) dx[j] = y[j]! * (dy[j]! - sum);
  }
  return dx;
}

/** Each of the matrices (rows, columns) of x to (columns, rows). */
export function transpose(x: ArrayLike<number>, rows: number, columns: number): Float64Array {
  const y = new Float64Array(x.length);
  for (let base = 0; base < x.length; base += rows * columns) {
    for (let i = 0; i < rows; ++i) {
      for (let j = 0; j < columns; ++j) y[base + j * rows + i] = x[base + i * columns + j]!;
    }
  }
  return y;
}

/** x (n, rows, channels) times s (n, channels). */
export function channelScale(x: ArrayLike<number>, s: ArrayLike<number>, rows: number, channels: number): Float64Array {
  return Float64Array.from(x, (value, i) => value * s[Math.floor(i / (rows * channels)) * channels + (i % channels)]!);
}

/** Sums over the rows of a * b, both (n, rows, channels). */
export function channelDot(a: ArrayLike<number>, b: ArrayLike<number>, rows: number, channels: number): Float64Array {
  const out = new Float64Array(a.length / rows);
  for (let i = 0; i < a.length; ++i)
    out[Math.floor(i / (rows * channels)) * channels + (i % channels)]! += a[i]! * b[i]!;
  return out;
}

/** Channel g (channels / groups) + j of x becomes channel j groups + g. */
export function channelShuffle(x: ArrayLike<number>, channels: number, groups: number): Float64Array {
  const y = new Float64Array(x.length);
  const each = channels / groups;
  for (let row = 0; row < x.length; row += channels) {
    for (let k = 0; k < channels; ++k) y[row + (k % each) * groups + Math.floor(k / each)] = x[row + k]!;
  }
  return y;
}

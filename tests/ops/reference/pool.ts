/** Pooling and upsampling of (N, H, W, C) in float64. */
type Numbers = ArrayLike<number>;

export interface PoolShape {
  n: number;
  h: number;
  w: number;
  c: number;
  kernel: readonly [number, number];
  stride: readonly [number, number];
  padding: readonly [number, number];
}

export function pooledSize({ h, w, kernel, stride, padding }: PoolShape): [number, number] {
  const size = (input: number, d: 0 | 1) => Math.floor((input + 2 * padding[d] - kernel[d]) / stride[d]) + 1;
  return [size(h, 0), size(w, 1)];
}

/** Calls `window` for each output element with the inputs inside the image: [index of x, position in the window]. */
function eachWindow(shape: PoolShape, window: (yi: number, inputs: [number, number][]) => void): void {
  const { n, h, w, c, kernel, stride, padding } = shape;
  const [p, q] = pooledSize(shape);
  for (let yi = 0; yi < n * p * q * c; ++yi) {
    const channel = yi % c;
    const column = Math.floor(yi / c) % q;
    const row = Math.floor(yi / (c * q)) % p;
    const image = Math.floor(yi / (c * q * p));
    const inputs: [number, number][] = [];
    for (let i = 0; i < kernel[0]; ++i) {
      for (let j = 0; j < kernel[1]; ++j) {
        const [y, x] = [row * stride[0] - padding[0] + i, column * stride[1] - padding[1] + j];
        if (y < 0 || y >= h || x < 0 || x >= w) continue;
        inputs.push([((image * h + y) * w + x) * c + channel, i * kernel[1] + j]);
      }
    }
    window(yi, inputs);
  }
}

export function maxPool(x: Numbers, shape: PoolShape): { y: Float64Array; index: Uint8Array } {
  const [p, q] = pooledSize(shape);
  const size = shape.n * p * q * shape.c;
  const [y, index] = [new Float64Array(size), new Uint8Array(size)];
  eachWindow(shape, (yi, inputs) => {
    let best = Number.NEGATIVE_INFINITY;
    let winner = inputs[0]![1];
    for (const [xi, position] of inputs) {
      const value = x[xi] as number;
      if (value > best || (Number.isNaN(value) && !Number.isNaN(best))) [best, winner] = [value, position];
    }
    y[yi] = best;
    index[yi] = winner;
  });
  return { y, index };
}

export function maxPoolBackward(dy: Numbers, index: Numbers, shape: PoolShape): Float64Array {
  const dx = new Float64Array(shape.n * shape.h * shape.w * shape.c);
  eachWindow(shape, (yi, inputs) => {
    for (const [xi, position] of inputs) if (position === index[yi]) dx[xi]! += dy[yi]!;
  });
  return dx;
}

export function avgPool(x: Numbers, shape: PoolShape, countPadding: boolean): Float64Array {
  const [p, q] = pooledSize(shape);
  const y = new Float64Array(shape.n * p * q * shape.c);
  eachWindow(shape, (yi, inputs) => {
    const divisor = countPadding ? shape.kernel[0] * shape.kernel[1] : inputs.length;
    for (const [xi] of inputs) y[yi]! += x[xi]! / divisor;
  });
  return y;
}

export function avgPoolBackward(dy: Numbers, shape: PoolShape, countPadding: boolean): Float64Array {
  const dx = new Float64Array(shape.n * shape.h * shape.w * shape.c);
  eachWindow(shape, (yi, inputs) => {
    const divisor = countPadding ? shape.kernel[0] * shape.kernel[1] : inputs.length;
    for (const [xi] of inputs) dx[xi]! += dy[yi]! / divisor;
  });
  return dx;
}

export interface ResizeShape {
  n: number;
  h: number;
  w: number;
  c: number;
  size: readonly [number, number];
}

/** Index of x behind each element of y (N, P, Q, C). */
function sources({ n, h, w, c, size: [p, q] }: ResizeShape): number[] {
  const out: number[] = [];
  for (let image = 0; image < n; ++image)
    for (let row = 0; row < p; ++row)
      for (let column = 0; column < q; ++column)
        for (let channel = 0; channel < c; ++channel)
          out.push(((image * h + Math.floor((row * h) / p)) * w + Math.floor((column * w) / q)) * c + channel);
  return out;
}

export function upsample(x: Numbers, shape: ResizeShape): Float64Array {
  return Float64Array.from(sources(shape), (i) => x[i] as number);
}

export function upsampleBackward(dy: Numbers, shape: ResizeShape): Float64Array {
  const dx = new Float64Array(shape.n * shape.h * shape.w * shape.c);
  for (const [i, source] of sources(shape).entries()) dx[source]! += dy[i]!;
  return dx;
}

export interface BilinearShape extends ResizeShape {
  alignCorners?: boolean;
  /** Factors of (height, width) that the size was rounded down from; 0: the ratio of the sizes. */
  scale?: readonly [number, number];
}

/** Of each output along an axis: the two inputs it mixes and how far it lies from the first to the second. */
function bilinearTaps(input: number, output: number, align: boolean, scale: number): [number, number, number][] {
  const step = align ? (output > 1 ? (input - 1) / (output - 1) : 0) : scale > 0 ? 1 / scale : input / output;
  return Array.from({ length: output }, (_, i) => {
    const at = align ? i * step : Math.max(0, (i + 0.5) * step - 0.5);
    const low = Math.min(Math.floor(at), input - 1);
    return [low, Math.min(low + 1, input - 1), Math.min(at - low, 1)];
  });
}

/** Calls `term` for each of the four inputs of every output element. */
function eachBilinear(shape: BilinearShape, term: (yi: number, xi: number, weight: number) => void): void {
  const { n, h, w, c, size, alignCorners = false, scale = [0, 0] } = shape;
  const [p, q] = size;
  const rows = bilinearTaps(h, p, alignCorners, scale[0]);
  const columns = bilinearTaps(w, q, alignCorners, scale[1]);
  for (let i = 0; i < n * p * q * c; ++i) {
    const [top, bottom, down] = rows[Math.floor(i / (c * q)) % p]!;
    const [left, right, across] = columns[Math.floor(i / c) % q]!;
    const at = (row: number, column: number) => ((Math.floor(i / (c * q * p)) * h + row) * w + column) * c + (i % c);
    term(i, at(top, left), (1 - down) * (1 - across));
    term(i, at(top, right), (1 - down) * across);
    term(i, at(bottom, left), down * (1 - across));
    term(i, at(bottom, right), down * across);
  }
}

export function bilinear(x: Numbers, shape: BilinearShape): Float64Array {
  const y = new Float64Array(shape.n * shape.size[0] * shape.size[1] * shape.c);
  eachBilinear(shape, (yi, xi, weight) => {
    y[yi]! += weight * x[xi]!;
  });
  return y;
}

export function bilinearBackward(dy: Numbers, shape: BilinearShape): Float64Array {
  const dx = new Float64Array(shape.n * shape.h * shape.w * shape.c);
  eachBilinear(shape, (yi, xi, weight) => {
    dx[xi]! += weight * dy[yi]!;
  });
  return dx;
}

/** Convolution in its three directions, term by term in float64. Activations (N, H, W, C), weights (K, R, S, C / groups). */

export interface ConvShape {
  n: number;
  h: number;
  w: number;
  c: number;
  k: number;
  r: number;
  s: number;
  stride: readonly [number, number];
  padding: readonly [number, number];
  dilation: readonly [number, number];
  groups: number;
}

type Numbers = ArrayLike<number>;

export function outputSize({ h, w, r, s, stride, padding, dilation }: ConvShape): [number, number] {
  const size = (input: number, kernel: number, d: 0 | 1) =>
    Math.floor((input + 2 * padding[d] - dilation[d] * (kernel - 1) - 1) / stride[d]) + 1;
  return [size(h, r, 0), size(w, s, 1)];
}

/** Calls `term` for each product: y[yi] += x[xi] * w[wi], with runs of `count` neighbouring x and w. */
function eachRun(shape: ConvShape, term: (yi: number, xi: number, wi: number, count: number) => void): void {
  const { n, h, w, c, k, r, s, stride, padding, dilation, groups } = shape;
  const [p, q] = outputSize(shape);
  const [cg, kg] = [c / groups, k / groups];
  for (let image = 0; image < n; ++image) {
    for (let row = 0; row < p; ++row) {
      for (let column = 0; column < q; ++column) {
        for (let i = 0; i < r; ++i) {
          const y = row * stride[0] - padding[0] + i * dilation[0];
          if (y < 0 || y >= h) continue;
          for (let j = 0; j < s; ++j) {
            const x = column * stride[1] - padding[1] + j * dilation[1];
            if (x < 0 || x >= w) continue;
            const pixel = ((image * h + y) * w + x) * c;
            for (let out = 0; out < k; ++out) {
              const yi = ((image * p + row) * q + column) * k + out;
              term(yi, pixel + Math.floor(out / kg) * cg, ((out * r + i) * s + j) * cg, cg);
            }
          }
        }
      }
    }
  }
}

export function convForward(x: Numbers, w: Numbers, shape: ConvShape): Float64Array {
  const [p, q] = outputSize(shape);
  const y = new Float64Array(shape.n * p * q * shape.k);
  eachRun(shape, (yi, xi, wi, count) => {
    let sum = 0;
    for (let i = 0; i < count; ++i) sum += (x[xi + i] as number) * (w[wi + i] as number);
    y[yi]! += sum;
  });
  return y;
}

export function convBackwardData(dy: Numbers, w: Numbers, shape: ConvShape): Float64Array {
  const dx = new Float64Array(shape.n * shape.h * shape.w * shape.c);
  eachRun(shape, (yi, xi, wi, count) => {
    const upstream = dy[yi] as number;
    for (let i = 0; i < count; ++i) dx[xi + i]! += upstream * (w[wi + i] as number);
  });
  return dx;
}

export function convBackwardWeight(x: Numbers, dy: Numbers, shape: ConvShape): Float64Array {
  const { k, r, s, c, groups } = shape;
  const dw = new Float64Array((k * r * s * c) / groups);
  eachRun(shape, (yi, xi, wi, count) => {
    const upstream = dy[yi] as number;
    for (let i = 0; i < count; ++i) dw[wi + i]! += upstream * (x[xi + i] as number);
  });
  return dw;
}

/** Sums of x (rows, C) over its rows. */
export function channelSum(x: Numbers, channels: number): Float64Array {
  const sum = new Float64Array(channels);
  for (let i = 0; i < x.length; ++i) sum[i % channels]! += x[i] as number;
  return sum;
}

/** A transposed convolution: x (N, H, W, C), w (C, R, S, K / groups). */
export interface ConvTransposeShape extends ConvShape {
  outputPadding: readonly [number, number];
}

export function transposedSize(shape: ConvTransposeShape): [number, number] {
  const { h, w, r, s, stride, padding, dilation, outputPadding } = shape;
  const size = (input: number, kernel: number, d: 0 | 1) =>
    (input - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel - 1) + outputPadding[d] + 1;
  return [size(h, r, 0), size(w, s, 1)];
}

/** Calls `term` for each product: y[yi] += x[xi] * w[wi], with runs of `count` neighbouring y and w. */
function eachScattered(
  shape: ConvTransposeShape,
  term: (yi: number, xi: number, wi: number, count: number) => void,
): void {
  const { n, h, w, c, k, r, s, stride, padding, dilation, groups } = shape;
  const [p, q] = transposedSize(shape);
  const [cg, kg] = [c / groups, k / groups];
  for (let xi = 0; xi < n * h * w * c; ++xi) {
    const channel = xi % c;
    const column = Math.floor(xi / c) % w;
    const row = Math.floor(xi / (c * w)) % h;
    const image = Math.floor(xi / (c * w * h));
    for (let i = 0; i < r; ++i) {
      for (let j = 0; j < s; ++j) {
        const [y, x] = [
          row * stride[0] - padding[0] + i * dilation[0],
          column * stride[1] - padding[1] + j * dilation[1],
        ];
        if (y < 0 || y >= p || x < 0 || x >= q) continue;
        term(((image * p + y) * q + x) * k + Math.floor(channel / cg) * kg, xi, ((channel * r + i) * s + j) * kg, kg);
      }
    }
  }
}

export function convTranspose(x: Numbers, w: Numbers, shape: ConvTransposeShape): Float64Array {
  const [p, q] = transposedSize(shape);
  const y = new Float64Array(shape.n * p * q * shape.k);
  eachScattered(shape, (yi, xi, wi, count) => {
    for (let i = 0; i < count; ++i) y[yi + i]! += x[xi]! * w[wi + i]!;
  });
  return y;
}

/** Gradients of x and w from that of the result. */
export function convTransposeBackward(
  dy: Numbers,
  x: Numbers,
  w: Numbers,
  shape: ConvTransposeShape,
): { dx: Float64Array; dw: Float64Array } {
  const [dx, dw] = [new Float64Array(x.length), new Float64Array(w.length)];
  eachScattered(shape, (yi, xi, wi, count) => {
    for (let i = 0; i < count; ++i) {
      dx[xi]! += dy[yi + i]! * w[wi + i]!;
      dw[wi + i]! += dy[yi + i]! * x[xi]!;
    }
  });
  return { dx, dw };
}

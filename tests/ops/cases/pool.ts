/** Pooling and upsampling, both directions. */
import { loadGolden } from "../../support/golden";
import type { Random } from "../../support/random";
import { dot } from "../reference/elementwise";
import * as reference from "../reference/pool";
import { bilinearBenches, bilinearCases } from "./bilinear";
import { type Input, type OpCase, recorded } from "./case";

export type PoolShape = reference.PoolShape;
type Drawn = (random: Random, size: number) => Float32Array;

const sizes = ({ n, h, w, c, kernel, stride, padding }: PoolShape) =>
  [n, h, w, c, ...kernel, ...stride, ...padding] as [
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
  ];

/** Different values, at least 2^-7 apart in magnitude terms that bf16 keeps apart, so that differences cross no tie. */
const distinct: Drawn = (random, size) => random.distinct(size, -3, 3);
/** Small integers: many ties. */
const tied: Drawn = (random, size) => Float32Array.from(random.integers(size, -1, 2));

export function maxPoolForward(name: string, shape: PoolShape, values: Drawn = distinct): OpCase {
  const [p, q] = reference.pooledSize(shape);
  const { n, h, w, c } = shape;
  return {
    op: "max_pool_forward",
    name,
    inputs: { x: { shape: [n, h, w, c], values } },
    outputs: {
      y: { shape: [n, p, q, c], tolerance: { rtol: 0, atol: 0 } },
      index: { shape: [n, p, q, c], kind: "u8" },
    },
    prepare(c) {
      const [y, index, x] = ["y", "index", "x"].map((operand) => c.address(operand));
      return () => void c.native.maxPoolForward(c.stream, y!, index!, x!, ...sizes(shape), c.dtype);
    },
    reference: ({ x }) => reference.maxPool(x!, shape),
  };
}

/** Inference: no index wanted. */
function withoutIndex(opCase: OpCase): OpCase {
  const { y } = opCase.outputs;
  return { ...opCase, name: `${opCase.name}, no index`, outputs: { y: y! } };
}

export function maxPoolBackward(name: string, shape: PoolShape, values: Drawn = distinct): OpCase {
  const [p, q] = reference.pooledSize(shape);
  const { n, h, w, c, kernel } = shape;
  const index: Input = {
    shape: [n, p, q, c],
    kind: "u8",
    values: (_random, _size, { x }) => reference.maxPool(x!, shape).index,
  };
  return {
    op: "max_pool_backward",
    name,
    inputs: { x: { shape: [n, h, w, c], values }, index, dy: { shape: [n, p, q, c] } },
    outputs: { dx: { shape: [n, h, w, c], terms: kernel[0] * kernel[1] } },
    prepare(c) {
      const [dx, dy, winners] = ["dx", "dy", "index"].map((operand) => c.address(operand));
      return () => void c.native.maxPoolBackward(c.stream, dx!, dy!, winners!, ...sizes(shape), c.dtype);
    },
    reference: ({ dy, index: winners }) => ({ dx: reference.maxPoolBackward(dy!, winners!, shape) }),
    // no derivative exists where two values tie
    gradients:
      values === distinct
        ? [{ output: "dx", of: "x", loss: ({ dy, x }) => dot(dy!, reference.maxPool(x!, shape).y) }]
        : undefined,
  };
}

export function avgPoolForward(name: string, shape: PoolShape, countPadding: boolean): OpCase {
  const [p, q] = reference.pooledSize(shape);
  const { n, h, w, c } = shape;
  return {
    op: "avg_pool_forward",
    name,
    inputs: { x: { shape: [n, h, w, c] } },
    outputs: { y: { shape: [n, p, q, c] } },
    prepare(c) {
      const [y, x] = ["y", "x"].map((operand) => c.address(operand));
      return () => void c.native.avgPoolForward(c.stream, y!, x!, ...sizes(shape), countPadding ? 1 : 0, c.dtype);
    },
    reference: ({ x }) => ({ y: reference.avgPool(x!, shape, countPadding) }),
  };
}

export function avgPoolBackward(name: string, shape: PoolShape, countPadding: boolean): OpCase {
  const [p, q] = reference.pooledSize(shape);
  const { n, h, w, c } = shape;
  return {
    op: "avg_pool_backward",
    name,
    inputs: { x: { shape: [n, h, w, c] }, dy: { shape: [n, p, q, c] } },
    outputs: { dx: { shape: [n, h, w, c] } },
    prepare(c) {
      const [dx, dy] = ["dx", "dy"].map((operand) => c.address(operand));
      return () => void c.native.avgPoolBackward(c.stream, dx!, dy!, ...sizes(shape), countPadding ? 1 : 0, c.dtype);
    },
    reference: ({ dy }) => ({ dx: reference.avgPoolBackward(dy!, shape, countPadding) }),
    gradients: [{ output: "dx", of: "x", loss: ({ dy, x }) => dot(dy!, reference.avgPool(x!, shape, countPadding)) }],
  };
}

export type ResizeShape = reference.ResizeShape;

export function upsampleForward(name: string, shape: ResizeShape): OpCase {
  const { n, h, w, c, size } = shape;
  return {
    op: "upsample_nearest_forward",
    name,
    inputs: { x: { shape: [n, h, w, c] } },
    outputs: { y: { shape: [n, ...size, c], tolerance: { rtol: 0, atol: 0 } } },
    prepare(context) {
      const [y, x] = ["y", "x"].map((operand) => context.address(operand));
      return () =>
        void context.native.upsampleNearestForward(context.stream, y!, x!, n, h, w, c, ...size, context.dtype);
    },
    reference: ({ x }) => ({ y: reference.upsample(x!, shape) }),
  };
}

export function upsampleBackward(name: string, shape: ResizeShape): OpCase {
  const { n, h, w, c, size } = shape;
  return {
    op: "upsample_nearest_backward",
    name,
    inputs: { x: { shape: [n, h, w, c] }, dy: { shape: [n, ...size, c] } },
    outputs: { dx: { shape: [n, h, w, c], terms: Math.ceil(size[0] / h) * Math.ceil(size[1] / w) } },
    prepare(context) {
      const [dx, dy] = ["dx", "dy"].map((operand) => context.address(operand));
      return () =>
        void context.native.upsampleNearestBackward(context.stream, dx!, dy!, n, h, w, c, ...size, context.dtype);
    },
    reference: ({ dy }) => ({ dx: reference.upsampleBackward(dy!, shape) }),
    gradients: [{ output: "dx", of: "x", loss: ({ dy, x }) => dot(dy!, reference.upsample(x!, shape)) }],
  };
}

const pool = (
  h: number,
  w: number,
  c: number,
  kernel: [number, number],
  stride: [number, number],
  padding: [number, number],
  n = 2,
): PoolShape => ({ n, h, w, c, kernel, stride, padding });

const shapes: [string, PoolShape][] = [
  ["3x3 stride 2 padding 1, odd size", pool(7, 9, 5, [3, 3], [2, 2], [1, 1])],
  ["3x3 stride 2 padding 1, even size", pool(8, 6, 16, [3, 3], [2, 2], [1, 1])],
  ["3x3 stride 2 padding 1x0", pool(8, 7, 12, [3, 3], [2, 2], [1, 0])],
  ["3x3 stride 2 (last row and column unread)", pool(8, 6, 8, [3, 3], [2, 2], [0, 0])],
  ["2x2", pool(6, 4, 3, [2, 2], [2, 2], [0, 0])],
  ["2x2 of an odd size (last row unread)", pool(5, 7, 8, [2, 2], [2, 2], [0, 0])],
  ["3x3 stride 1 (windows overlap)", pool(5, 5, 4, [3, 3], [1, 1], [1, 1])],
  ["5x5 stride 1 padding 2, as in SPPF", pool(6, 5, 8, [5, 5], [1, 1], [2, 2], 1)],
  ["3x2, stride 1x2, padding 1x0", pool(6, 7, 3, [3, 2], [1, 2], [1, 0])],
  ["1x1 stride 2, as in FPN's last level", pool(5, 6, 4, [1, 1], [2, 2], [0, 0])],
  ["2x2 stride 3 (gaps between windows)", pool(8, 8, 3, [2, 2], [3, 3], [0, 0], 1)],
  ["over the image", pool(7, 5, 27, [7, 5], [1, 1], [0, 0])],
  ["over the image, whole vectors of channels", pool(9, 10, 72, [9, 10], [9, 10], [0, 0], 3)],
  ["15x15 of 16x16 (225 positions)", pool(16, 16, 2, [15, 15], [1, 1], [7, 7], 1)],
];

const resizes: [string, ResizeShape][] = [
  ["x2", { n: 2, h: 3, w: 4, c: 8, size: [6, 8] }],
  ["x3 by x1", { n: 1, h: 3, w: 5, c: 3, size: [9, 5] }],
  ["5x4 to 7x9", { n: 2, h: 5, w: 4, c: 5, size: [7, 9] }],
  ["to 13x13 from 7x7", { n: 1, h: 7, w: 7, c: 16, size: [13, 13] }],
  ["one pixel to 4x3", { n: 2, h: 1, w: 1, c: 27, size: [4, 3] }],
  ["same size", { n: 1, h: 4, w: 3, c: 2, size: [4, 3] }],
  ["smaller, 7x6 to 3x4", { n: 1, h: 7, w: 6, c: 3, size: [3, 4] }],
];

interface GoldenParams {
  kernel: [number, number];
  stride: [number, number];
  padding: [number, number];
  countIncludePad?: boolean;
  size?: [number, number];
}

const goldenCases: OpCase[] = loadGolden<GoldenParams>("pool").flatMap((golden) => {
  const { name, params } = golden;
  const [n, h, w, c] = golden.shape("x") as [number, number, number, number];
  const shape = { n, h, w, c, ...params };
  const [x, y, dy, dx] = ["x", "y", "dy", "dx"].map((key) => golden.array(key));
  const inputs = { x: x!, dy: dy! };
  if (params.size) {
    const resize = { n, h, w, c, size: params.size };
    return [
      recorded(upsampleForward(name, resize), inputs, { y: y! }),
      recorded(upsampleBackward(name, resize), inputs, { dx: dx! }),
    ];
  }
  if (params.countIncludePad === undefined) {
    return [
      recorded(maxPoolForward(name, shape), inputs, { y: y! }),
      recorded(maxPoolBackward(name, shape), inputs, { dx: dx! }),
    ];
  }
  const count = params.countIncludePad;
  return [
    recorded(avgPoolForward(name, shape, count), inputs, { y: y! }),
    recorded(avgPoolBackward(name, shape, count), inputs, { dx: dx! }),
  ];
});

/** NaN wins, negative numbers beat the padding, and -infinity alone still has a winner inside the image. */
const special: Drawn = (random, size) => {
  const values = random.normal(size, -5, 1);
  for (let i = 0; i < size; i += 11) values[i] = Number.NaN;
  for (let i = 5; i < size; i += 3) values[i] = Number.NEGATIVE_INFINITY;
  return values;
};

export const poolCases: OpCase[] = [
  ...shapes.flatMap(([name, shape]) => [
    maxPoolForward(name, shape),
    withoutIndex(maxPoolForward(name, shape)),
    maxPoolForward(`${name}, ties`, shape, tied),
    maxPoolBackward(name, shape),
    maxPoolBackward(`${name}, ties`, shape, tied),
  ]),
  maxPoolForward("NaN and infinity", pool(9, 8, 3, [3, 3], [2, 2], [1, 1]), special),
  maxPoolForward("NaN and infinity, 16 channels", pool(9, 8, 16, [3, 3], [2, 2], [1, 1]), special),
  maxPoolForward("all -infinity", pool(4, 4, 2, [3, 3], [2, 2], [1, 1]), (_random, size) =>
    new Float32Array(size).fill(Number.NEGATIVE_INFINITY),
  ),
  ...shapes.flatMap(([name, shape]) =>
    [true, false].flatMap((count) => [
      avgPoolForward(`${name}, padding ${count ? "" : "not "}counted`, shape, count),
      avgPoolBackward(`${name}, padding ${count ? "" : "not "}counted`, shape, count),
    ]),
  ),
  ...resizes.flatMap(([name, shape]) => [upsampleForward(name, shape), upsampleBackward(name, shape)]),
  ...bilinearCases,
  ...goldenCases,
];

const stem = pool(160, 160, 64, [3, 3], [2, 2], [1, 1], 8);
const level: ResizeShape = { n: 8, h: 40, w: 40, c: 256, size: [80, 80] };
const wholeImages: [string, PoolShape][] = [
  ["over the image, 32x20x20x2048", pool(20, 20, 2048, [20, 20], [1, 1], [0, 0], 32)],
  ["over the image, 32x7x7x1280", pool(7, 7, 1280, [7, 7], [1, 1], [0, 0], 32)],
];
export const poolBenches: OpCase[] = [
  maxPoolForward("3x3 stride 2, 8x160x160x64", stem),
  maxPoolBackward("3x3 stride 2, 8x160x160x64", stem),
  avgPoolForward("3x3 stride 2, 8x160x160x64", stem, false),
  avgPoolBackward("3x3 stride 2, 8x160x160x64", stem, false),
  ...wholeImages.flatMap(([name, shape]) => [avgPoolForward(name, shape, true), avgPoolBackward(name, shape, true)]),
  upsampleForward("x2, 8x40x40x256", level),
  upsampleBackward("x2, 8x40x40x256", level),
  ...bilinearBenches,
];

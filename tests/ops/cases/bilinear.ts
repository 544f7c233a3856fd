/** Bilinear upsampling, both directions. */
import { loadGolden } from "../../support/golden";
import { dot } from "../reference/elementwise";
import * as reference from "../reference/pool";
import { type OpCase, recorded } from "./case";

export type BilinearShape = reference.BilinearShape;

function sizesOf({ n, h, w, c, size }: BilinearShape): [number, number, number, number, number, number] {
  return [n, h, w, c, ...size];
}

const alignOf = ({ alignCorners = false }: BilinearShape) => (alignCorners ? 1 : 0);

/** Coordinates are fp32: those of a side of 64 err by 64 * 2^-24, and so do the weights. */
const coordinates = ({ h, w }: BilinearShape) => Math.max(h, w);

export function bilinearForward(name: string, shape: BilinearShape): OpCase {
  const { n, h, w, c, size, scale = [0, 0] } = shape;
  return {
    op: "upsample_bilinear_forward",
    name,
    inputs: { x: { shape: [n, h, w, c] } },
    outputs: { y: { shape: [n, ...size, c], terms: 4 + coordinates(shape) } },
    prepare(context) {
      const [y, x] = ["y", "x"].map((operand) => context.address(operand));
      const [sizes, align] = [sizesOf(shape), alignOf(shape)];
      return () =>
        void context.native.upsampleBilinearForward(context.stream, y!, x!, ...sizes, align, context.dtype, ...scale);
    },
    reference: ({ x }) => ({ y: reference.bilinear(x!, shape) }),
  };
}

export function bilinearBackward(name: string, shape: BilinearShape): OpCase {
  const { n, h, w, c, size, scale = [0, 0] } = shape;
  const readers = 4 * Math.ceil(size[0] / h) * Math.ceil(size[1] / w);
  return {
    op: "upsample_bilinear_backward",
    name,
    inputs: { x: { shape: [n, h, w, c] }, dy: { shape: [n, ...size, c] } },
    outputs: { dx: { shape: [n, h, w, c], terms: readers + coordinates(shape) } },
    prepare(context) {
      const [dx, dy] = ["dx", "dy"].map((operand) => context.address(operand));
      const [sizes, align] = [sizesOf(shape), alignOf(shape)];
      return () =>
        void context.native.upsampleBilinearBackward(
          context.stream,
          dx!,
          dy!,
          ...sizes,
          align,
          context.dtype,
          ...scale,
        );
    },
    reference: ({ dy }) => ({ dx: reference.bilinearBackward(dy!, shape) }),
    gradients: [{ output: "dx", of: "x", loss: ({ dy, x }) => dot(dy!, reference.bilinear(x!, shape)) }],
  };
}

const shapes: [string, BilinearShape][] = [
  ["x2", { n: 2, h: 3, w: 4, c: 8, size: [6, 8] }],
  ["x3 by x1", { n: 1, h: 3, w: 5, c: 3, size: [9, 5] }],
  ["5x4 to 7x9", { n: 2, h: 5, w: 4, c: 5, size: [7, 9] }],
  ["13x13 to 64x50", { n: 1, h: 13, w: 13, c: 16, size: [64, 50] }],
  ["one pixel to 4x3", { n: 2, h: 1, w: 1, c: 27, size: [4, 3] }],
  ["one row to 5x7", { n: 1, h: 1, w: 4, c: 12, size: [5, 7] }],
  ["same size", { n: 1, h: 4, w: 3, c: 2, size: [4, 3] }],
  ["smaller, 7x6 to 3x4", { n: 1, h: 7, w: 6, c: 3, size: [3, 4] }],
  ["far smaller, 40x33 to 3x2 (most pixels unread)", { n: 1, h: 40, w: 33, c: 4, size: [3, 2] }],
  ["to one pixel", { n: 2, h: 5, w: 6, c: 8, size: [1, 1] }],
];

const scaled: [string, BilinearShape][] = [
  ["by 1.5 and 2.3, 5x7 to 7x16", { n: 1, h: 5, w: 7, c: 8, size: [7, 16], scale: [1.5, 2.3] }],
  ["by 0.4 and 0.7, 9x8 to 3x5", { n: 2, h: 9, w: 8, c: 3, size: [3, 5], scale: [0.4, 0.7] }],
];

const goldenCases: OpCase[] = loadGolden<Pick<BilinearShape, "size" | "alignCorners" | "scale">>("bilinear").flatMap(
  ({ name, params, shape, array }) => {
    const [n, h, w, c] = shape("x") as [number, number, number, number];
    const given = { n, h, w, c, ...params };
    const inputs = { x: array("x"), dy: array("dy") };
    return [
      recorded(bilinearForward(name, given), inputs, { y: array("y") }),
      recorded(bilinearBackward(name, given), inputs, { dx: array("dx") }),
    ];
  },
);

export const bilinearCases: OpCase[] = [
  ...shapes.flatMap(([name, shape]) =>
    [false, true].flatMap((alignCorners) => {
      const title = `${name}${alignCorners ? ", corners aligned" : ""}`;
      return [bilinearForward(title, { ...shape, alignCorners }), bilinearBackward(title, { ...shape, alignCorners })];
    }),
  ),
  ...scaled.flatMap(([name, shape]) => [bilinearForward(name, shape), bilinearBackward(name, shape)]),
  ...goldenCases,
];

const level: BilinearShape = { n: 8, h: 40, w: 40, c: 256, size: [80, 80] };
export const bilinearBenches: OpCase[] = [
  bilinearForward("x2, 8x40x40x256", level),
  bilinearBackward("x2, 8x40x40x256", level),
];

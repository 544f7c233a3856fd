/** Dropout, both directions. */
import { exact } from "../../support/compare";
import { dot, map } from "../reference/elementwise";
import { kept } from "../reference/philox";
import type { Numbers, OpCase } from "./case";

interface Draw {
  n: number;
  p: number;
  seed?: number;
  counter?: number;
}

const bytes = (n: number): number => Math.ceil(n / 8);

/** Bit i % 8 of byte i / 8; bits past the last element are 0. */
function maskOf(keep: readonly boolean[]): Float64Array {
  const mask = new Float64Array(bytes(keep.length));
  for (const [i, bit] of keep.entries()) mask[i >> 3]! += bit ? 1 << (i & 7) : 0;
  return mask;
}

const apply = (values: Numbers, mask: Numbers, p: number): Float64Array =>
  map(values, (value, i) => (((mask[i >> 3]! >> (i & 7)) & 1) === 1 ? value / (1 - p) : 0));

function dropoutForward(
  name: string,
  { n, p, seed = 7, counter = 0 }: Draw,
  { inPlace = false, masked = true } = {},
): OpCase {
  return {
    op: "dropout_forward",
    name,
    inputs: { x: { shape: [n] }, before: { shape: [1], kind: "f32", values: () => [counter] } },
    outputs: {
      y: { shape: [n], ...(inPlace && { inPlaceOf: "x" }) },
      counter: { shape: [1], kind: "f32", inPlaceOf: "before", tolerance: exact },
      ...(masked && { mask: { shape: [bytes(n)], kind: "u8" as const } }),
    },
    prepare(c) {
      const [y, mask, count, x] = ["y", "mask", "counter", "x"].map((operand) => c.address(operand));
      return () => void c.native.dropoutForward(c.stream, y!, mask!, count!, x!, n, c.dtype, p, seed);
    },
    reference({ x }) {
      const mask = maskOf(kept(n, seed, counter, p));
      return { y: apply(x!, mask, p), mask, counter: [(counter + 1) % 2 ** 24] };
    },
  };
}

function dropoutBackward(name: string, { n, p, seed = 7, counter = 0 }: Draw, inPlace = false): OpCase {
  return {
    op: "dropout_backward",
    name,
    inputs: {
      dy: { shape: [n] },
      x: { shape: [n] },
      mask: { shape: [bytes(n)], kind: "u8", values: () => maskOf(kept(n, seed, counter, p)) },
    },
    outputs: { dx: { shape: [n], ...(inPlace && { inPlaceOf: "dy" }) } },
    prepare(c) {
      const [dx, dy, mask] = ["dx", "dy", "mask"].map((operand) => c.address(operand));
      return () => void c.native.dropoutBackward(c.stream, dx!, dy!, mask!, n, c.dtype, p);
    },
    reference: ({ dy, mask }) => ({ dx: apply(dy!, mask!, p) }),
    gradients: [{ output: "dx", of: "x", loss: ({ dy, x, mask }) => dot(dy!, apply(x!, mask!, p)) }],
  };
}

/** Sizes around a byte of the mask and a block of threads. */
const sizes = [1, 4, 7, 8, 9, 64, 1027, 5000];

export const dropoutCases: OpCase[] = [
  ...sizes.flatMap((n) => [
    dropoutForward(`${n} elements`, { n, p: 0.5 }),
    dropoutBackward(`${n} elements`, { n, p: 0.5 }),
  ]),
  ...[0, 0.1, 0.9, 1 - 2 ** -40].flatMap((p) => [
    dropoutForward(`p = ${p}`, { n: 300, p }),
    dropoutBackward(`p = ${p}`, { n: 300, p }),
  ]),
  dropoutForward("of a later draw", { n: 200, p: 0.3, counter: 123456 }),
  dropoutForward("whose counter starts again", { n: 200, p: 0.3, counter: 2 ** 24 - 1 }),
  dropoutForward("of a large seed", { n: 200, p: 0.3, seed: Number.MAX_SAFE_INTEGER }),
  dropoutForward("in place", { n: 133, p: 0.4 }, { inPlace: true }),
  dropoutForward("without a mask", { n: 133, p: 0.4 }, { masked: false }),
  dropoutBackward("dx in dy's memory", { n: 133, p: 0.4 }, true),
];

const n = 8 * 80 * 80 * 256;
export const dropoutBenches: OpCase[] = [
  dropoutForward("8x80x80x256", { n, p: 0.5 }),
  dropoutBackward("8x80x80x256", { n, p: 0.5 }),
];

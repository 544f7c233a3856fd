/** Add, multiply, scale, cast, fill, copies and the finite check. */
import { type DType, decodeElements, dtypeCode, encodeElements } from "../../../lib/tensor";
import { exact } from "../../support/compare";
import type { Random } from "../../support/random";
import { type ActivationName, activate, map } from "../reference/elementwise";
import { activationCodes, fusedNames } from "./activation";
import type { Numbers, OpCase } from "./case";

/** Sizes around what vector registers and blocks of threads hold. */
const sizes = [1, 7, 64, 1027];

export function add(name: string, n: number, activation: ActivationName, inPlaceOf?: "a" | "b"): OpCase {
  return {
    op: "add",
    name,
    // ReLU6 clips some of these at 6.
    inputs: { a: { shape: [n], values: (random) => random.normal(n, 0, 3) }, b: { shape: [n] } },
    outputs: { y: { shape: [n], ...(inPlaceOf && { inPlaceOf }) } },
    prepare(c) {
      const [y, a, b] = ["y", "a", "b"].map((operand) => c.address(operand));
      return () => void c.native.add(c.stream, y!, a!, b!, n, c.dtype, activationCodes[activation]);
    },
    reference: ({ a, b }) => ({ y: map(a!, (value, i) => activate(value + b![i]!, activation)) }),
  };
}

function multiply(name: string, n: number, inPlaceOf?: "a" | "b"): OpCase {
  return {
    op: "multiply",
    name,
    inputs: { a: { shape: [n] }, b: { shape: [n] } },
    outputs: { y: { shape: [n], ...(inPlaceOf && { inPlaceOf }) } },
    prepare(c) {
      const [y, a, b] = ["y", "a", "b"].map((operand) => c.address(operand));
      return () => void c.native.multiply(c.stream, y!, a!, b!, n, c.dtype);
    },
    reference: ({ a, b }) => ({ y: map(a!, (value, i) => value * b![i]!) }),
  };
}

function scale(name: string, n: number, factor: number, onDevice: boolean, inPlace = false): OpCase {
  return {
    op: "scale",
    name,
    inputs: { x: { shape: [n] }, ...(onDevice && { s: { shape: [1], kind: "f32" as const, values: () => [-0.37] } }) },
    outputs: { y: { shape: [n], ...(inPlace && { inPlaceOf: "x" }) } },
    prepare(c) {
      const [y, x, s] = ["y", "x", "s"].map((operand) => c.address(operand));
      return () => void c.native.scale(c.stream, y!, x!, s!, n, c.dtype, factor);
    },
    reference: ({ x, s }) => ({ y: map(x!, (value) => value * factor * (s?.[0] ?? 1)) }),
  };
}

function cast(
  name: string,
  from: DType,
  to: DType,
  values: Numbers | ((random: Random) => Numbers),
  expected?: Numbers,
): OpCase {
  const drawn = typeof values === "function" ? values : () => values;
  const n = typeof values === "function" ? 1027 : values.length;
  return {
    op: "cast",
    name: `${from} to ${to}, ${name}`,
    dtypes: ["f32"],
    features: () => ([from, to].includes("f16") ? ["f16"] : []),
    inputs: { x: { shape: [n], kind: from, values: drawn } },
    outputs: { y: { shape: [n], kind: to, tolerance: exact } },
    prepare(c) {
      const [y, x] = ["y", "x"].map((operand) => c.address(operand));
      return () => void c.native.cast(c.stream, y!, x!, n, dtypeCode(to), dtypeCode(from));
    },
    reference: ({ x }) => ({
      y: expected ?? decodeElements(Uint8Array.from(encodeElements(roundFor(to, x!), to)), to),
    }),
  };
}

/** Integers come from the nearest one, the even one of two. */
function roundFor(to: DType, values: Numbers): Numbers {
  if (to !== "i32" && to !== "u8") return values;
  return map(values, (value) => {
    const low = Math.floor(value);
    const rest = value - low;
    return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
  });
}

function fill(dtype: DType, n: number, value: number): OpCase {
  return {
    op: "fill",
    name: `${n} elements ${dtype} of ${value}`,
    dtypes: ["f32"],
    features: () => (dtype === "f16" ? ["f16"] : []),
    inputs: {},
    outputs: { y: { shape: [n], kind: dtype, tolerance: exact } },
    prepare(c) {
      const y = c.address("y");
      return () => void c.native.fill(c.stream, y!, n, dtypeCode(dtype), value);
    },
    reference: () => ({
      y: decodeElements(Uint8Array.from(encodeElements(new Float64Array(n).fill(value), dtype)), dtype),
    }),
  };
}

/** Rows of bytes between buffers of other widths: what concat and slice are made of. */
function copy2d(name: string, rows: number, bytes: number, dstPitch: number, srcPitch: number): OpCase {
  const bytesOf = (random: Random, size: number) => random.integers(size, 0, 256);
  return {
    op: "copy_2d",
    name,
    dtypes: ["f32"],
    inputs: {
      src: { shape: [rows, srcPitch], kind: "u8", values: bytesOf },
      before: { shape: [rows, dstPitch], kind: "u8", values: bytesOf },
    },
    outputs: { dst: { shape: [rows, dstPitch], kind: "u8", inPlaceOf: "before" } },
    prepare(c) {
      const [dst, src] = ["dst", "src"].map((operand) => c.address(operand));
      return () => void c.native.copy2d(c.stream, dst!, src!, rows, bytes, dstPitch, srcPitch);
    },
    reference: ({ src, before }) => ({
      dst: map(before!, (value, i) =>
        i % dstPitch < bytes ? src![Math.floor(i / dstPitch) * srcPitch + (i % dstPitch)]! : value,
      ),
    }),
  };
}

function checkFinite(name: string, n: number, bad: [index: number, value: number] | null, before = 0): OpCase {
  return {
    op: "check_finite",
    name,
    inputs: {
      x: {
        shape: [n],
        values: (random, size) => {
          const values = random.normal(size, 0, 100);
          if (bad) values[bad[0]] = bad[1];
          return values;
        },
      },
      was: { shape: [1], kind: "i32", values: () => [before] },
    },
    outputs: { flag: { shape: [1], kind: "i32", inPlaceOf: "was" } },
    prepare(c) {
      const [flag, x] = ["flag", "x"].map((operand) => c.address(operand));
      return () => void c.native.checkFinite(c.stream, flag!, x!, n, c.dtype);
    },
    reference: () => ({ flag: [bad || before ? 1 : 0] }),
  };
}

const { NaN: nan, POSITIVE_INFINITY: infinity } = Number;
/** bf16 has 8 significant bits: between 1 and 2 its step is 2^-7, and at 256 it is 2. */
const toBf16: [number, number][] = [
  [1, 1],
  [1 + 2 ** -8, 1], // a tie, to the even neighbour below
  [1 + 3 * 2 ** -8, 1 + 2 ** -6], // a tie, to the even neighbour above
  [1 + 2 ** -8 + 2 ** -20, 1 + 2 ** -7], // just above a tie
  [1 + 2 ** -8 - 2 ** -20, 1], // just below
  [-(1 + 3 * 2 ** -8), -(1 + 2 ** -6)],
  [257, 256],
  [259, 260],
  [0, 0],
  [-0, -0],
  [nan, nan],
  [infinity, infinity],
  [-infinity, -infinity],
  [3.4028234663852886e38, infinity], // the largest fp32 is beyond the middle above the largest bf16
  [3.3895313892515355e38, 3.3895313892515355e38], // the largest bf16
  [2 ** -126, 2 ** -126],
  [2 ** -149, 0], // the smallest subnormal fp32
  [2 ** -133, 2 ** -133], // the smallest subnormal bf16
];
const toF16: [number, number][] = [
  [1 + 2 ** -11, 1],
  [1 + 3 * 2 ** -11, 1 + 2 ** -9],
  [65504, 65504],
  [65519.996, 65504],
  [65520, infinity],
  [2 ** -24, 2 ** -24],
  [2 ** -25, 0],
  [nan, nan],
  [-infinity, -infinity],
];
const toInteger: [number, number][] = [
  [0.5, 0],
  [1.5, 2],
  [2.5, 2],
  [2.4999998, 2],
  [254.5, 254],
  [0.49999997, 0],
];

const column = (table: [number, number][], i: 0 | 1) => table.map((row) => row[i]);

export const elementwiseCases: OpCase[] = [
  ...fusedNames.flatMap((activation) => [
    ...sizes.map((n) => add(`${activation} of ${n}`, n, activation)),
    add(`${activation}, in a's memory`, 100, activation, "a"),
    add(`${activation}, in b's memory`, 100, activation, "b"),
  ]),
  ...sizes.map((n) => multiply(`${n}`, n)),
  multiply("in a's memory", 100, "a"),
  multiply("in b's memory", 100, "b"),
  ...sizes.map((n) => scale(`${n} by 0.125`, n, 0.125, false)),
  scale("by a factor on the device too", 333, -3, true),
  scale("in place by a factor on the device", 333, 0.7, true, true),
  cast("random values", "f32", "bf16", (random) => random.normal(1027, 0, 100)),
  cast("random values", "bf16", "f32", (random) => random.normal(1027, 0, 100)),
  cast("random values", "f32", "f16", (random) => random.normal(1027, 0, 100)),
  cast("random values", "f16", "f32", (random) => random.normal(1027, 0, 100)),
  cast("random values", "f16", "bf16", (random) => random.normal(1027, 0, 100)),
  cast("random values", "bf16", "f16", (random) => random.normal(1027, 0, 100)),
  cast("ties, NaN, infinity, overflow", "f32", "bf16", column(toBf16, 0), column(toBf16, 1)),
  cast("ties, NaN, infinity, overflow", "f32", "f16", column(toF16, 0), column(toF16, 1)),
  cast(
    "all bytes",
    "u8",
    "f32",
    Array.from({ length: 256 }, (_, i) => i),
  ),
  cast(
    "all bytes",
    "u8",
    "bf16",
    Array.from({ length: 256 }, (_, i) => i),
  ),
  cast(
    "all bytes",
    "u8",
    "i32",
    Array.from({ length: 256 }, (_, i) => i),
  ),
  cast("random integers", "i32", "f32", (random) => random.integers(1027, -1000000, 1000000)),
  cast(
    "integers beyond 24 bits",
    "i32",
    "f32",
    [16777217, 16777219, -16777217, 2147483647],
    [16777216, 16777220, -16777216, 2147483648],
  ),
  cast("random integers", "i32", "bf16", (random) => random.integers(1027, -1000, 1000)),
  cast("ties to even", "f32", "i32", [...column(toInteger, 0), -0.5, -1.5, -2.5], [...column(toInteger, 1), 0, -2, -2]),
  cast("ties to even", "f32", "u8", column(toInteger, 0), column(toInteger, 1)),
  cast("random values", "f32", "i32", (random) => random.normal(1027, 0, 1e4)),
  cast("to itself", "f32", "f32", (random) => random.normal(1027)),
  fill("f32", 1000, 0.1),
  fill("f32", 1, -infinity),
  fill("bf16", 77, 1 / 3),
  fill("f16", 77, 1 / 3),
  fill("i32", 129, -7),
  copy2d("into wider rows", 5, 12, 40, 12),
  copy2d("out of wider rows", 4, 7, 7, 33),
  copy2d("odd bytes between odd widths", 9, 3, 5, 11),
  copy2d("one row", 1, 100, 128, 100),
  copy2d("packed", 6, 16, 16, 16),
  checkFinite("all finite", 1000, null),
  checkFinite("all finite, flag set before stays", 10, null, 1),
  checkFinite("NaN first", 999, [0, nan]),
  checkFinite("infinity last", 999, [998, infinity]),
  checkFinite("-infinity in the middle", 4097, [2049, -infinity]),
  checkFinite("one element", 1, [0, nan]),
];

const bench = 8 * 80 * 80 * 256;
export const elementwiseBenches: OpCase[] = [multiply("8x80x80x256", bench), add("relu, 8x80x80x256", bench, "relu")];

/** Softmax over channels, their scaling, sums and shuffling, and transposition. */
import { type DType, dtypeCode, outHandle } from "../../../lib/tensor";
import { exact } from "../../support/compare";
import { loadGolden } from "../../support/golden";
import * as reference from "../reference/channel";
import { dot } from "../reference/elementwise";
import { type Input, type OpCase, recorded } from "./case";

const wide: Input["values"] = (random, size) => random.normal(size, 0, 4);

function softmaxForward(
  name: string,
  rows: number,
  channels: number,
  { inPlace = false, values = wide }: { inPlace?: boolean; values?: Input["values"] } = {},
): OpCase {
  return {
    op: "softmax_forward",
    name,
    inputs: { x: { shape: [rows, channels], values } },
    outputs: { y: { shape: [rows, channels], ...(inPlace && { inPlaceOf: "x" }) } },
    prepare(c) {
      const [y, x] = ["y", "x"].map((operand) => c.address(operand));
      return () => void c.native.softmaxForward(c.stream, y!, x!, rows, channels, c.dtype);
    },
    reference: ({ x }) => ({ y: reference.softmax(x!, channels) }),
  };
}

function softmaxBackward(name: string, rows: number, channels: number, inPlace = false): OpCase {
  const shape = [rows, channels];
  return {
    op: "softmax_backward",
    name,
    inputs: {
      x: { shape, values: wide },
      y: { shape, values: (_random, _size, { x }) => reference.softmax(x!, channels) },
      dy: { shape },
    },
    outputs: { dx: { shape, terms: channels, ...(inPlace && { inPlaceOf: "dy" }) } },
    prepare(c) {
      const [dx, dy, y] = ["dx", "dy", "y"].map((operand) => c.address(operand));
      return () => void c.native.softmaxBackward(c.stream, dx!, dy!, y!, rows, channels, c.dtype);
    },
    reference: ({ dy, y }) => ({ dx: reference.softmaxBackward(dy!, y!, channels) }),
    gradients: [{ output: "dx", of: "x", loss: ({ dy, x }) => dot(dy!, reference.softmax(x!, channels)) }],
  };
}

function transpose(name: string, n: number, rows: number, columns: number, kind: DType | "x" = "x"): OpCase {
  return {
    op: "transpose",
    name: kind === "x" ? name : `${name}, ${kind}`,
    ...(kind !== "x" && { dtypes: ["f32"] as const }),
    inputs: {
      src: {
        shape: [n, rows, columns],
        kind,
        ...(kind === "i32" && { values: (random, size) => random.integers(size, -1e9, 1e9) }),
      },
    },
    outputs: { dst: { shape: [n, columns, rows], kind, tolerance: exact } },
    prepare(c) {
      const [dst, src] = ["dst", "src"].map((operand) => c.address(operand));
      const dtype = kind === "x" ? c.dtype : dtypeCode(kind);
      return () => void c.native.transpose(c.stream, dst!, src!, n, rows, columns, dtype);
    },
    reference: ({ src }) => ({ dst: reference.transpose(src!, rows, columns) }),
  };
}

type Images = [n: number, rows: number, channels: number];

function channelScale(name: string, [n, rows, channels]: Images, inPlace = false): OpCase {
  const shape = [n, rows, channels];
  return {
    op: "channel_scale",
    name,
    inputs: { x: { shape }, s: { shape: [n, channels] } },
    outputs: { y: { shape, ...(inPlace && { inPlaceOf: "x" }) } },
    prepare(c) {
      const [y, x, s] = ["y", "x", "s"].map((operand) => c.address(operand));
      return () => void c.native.channelScale(c.stream, y!, x!, s!, n, rows, channels, c.dtype);
    },
    reference: ({ x, s }) => ({ y: reference.channelScale(x!, s!, rows, channels) }),
  };
}

/** The gradient of the factors: a is what flows in, b the images. */
function channelDot(name: string, [n, rows, channels]: Images): OpCase {
  const shape = [n, rows, channels];
  return {
    op: "channel_dot",
    name,
    inputs: { a: { shape }, b: { shape }, s: { shape: [n, channels] } },
    outputs: { out: { shape: [n, channels], terms: rows } },
    prepare(c) {
      const bytes = outHandle();
      c.native.channelDotWorkspace(c.device.handle, bytes.view, n, rows, channels, c.dtype);
      const [out, a, b, workspace] = [c.address("out"), c.address("a"), c.address("b"), c.workspace(bytes.value)];
      return () => void c.native.channelDot(c.stream, out!, a!, b!, workspace, n, rows, channels, c.dtype);
    },
    reference: ({ a, b }) => ({ out: reference.channelDot(a!, b!, rows, channels) }),
    gradients: [
      { output: "out", of: "s", loss: ({ a, b, s }) => dot(a!, reference.channelScale(b!, s!, rows, channels)) },
    ],
  };
}

function channelShuffle(name: string, rows: number, channels: number, groups: number): OpCase {
  return {
    op: "channel_shuffle",
    name,
    inputs: { x: { shape: [rows, channels] } },
    outputs: { y: { shape: [rows, channels], tolerance: exact } },
    prepare(c) {
      const [y, x] = ["y", "x"].map((operand) => c.address(operand));
      return () => void c.native.channelShuffle(c.stream, y!, x!, rows, channels, groups, c.dtype);
    },
    reference: ({ x }) => ({ y: reference.channelShuffle(x!, channels, groups) }),
  };
}

const softmaxGolden: OpCase[] = loadGolden("softmax").flatMap((golden) => {
  const [rows, channels] = golden.shape("x") as [number, number];
  const [x, y, dy, dx] = ["x", "y", "dy", "dx"].map((key) => golden.array(key));
  const { name } = golden;
  return [
    recorded(softmaxForward(name, rows, channels), { x: x! }, { y: y! }),
    recorded(softmaxBackward(name, rows, channels), { x: x!, y: y!, dy: dy! }, { dx: dx! }),
  ];
});

const channelGolden: OpCase[] = loadGolden<{ groups?: number }>("channel").flatMap(({ name, params, array, shape }) => {
  const [n, h, w, c] = shape("x") as [number, number, number, number];
  const x = array("x");
  if (params.groups) return [recorded(channelShuffle(name, n * h * w, c, params.groups), { x }, { y: array("y") })];
  const images: Images = [n, h * w, c];
  return [
    recorded(channelScale(name, images), { x, s: array("s") }, { y: array("y") }),
    recorded(channelScale(`${name}, dx`, images), { x: array("dy"), s: array("s") }, { y: array("dx") }),
    recorded(channelDot(`${name}, ds`, images), { a: array("dy"), b: x, s: array("s") }, { out: array("ds") }),
  ];
});

const infinity = Number.POSITIVE_INFINITY;
/** Rows and channels around what vectors, groups of lanes and registers hold. */
const rowShapes: [number, number][] = [
  [1, 1],
  [5, 2],
  [7, 3],
  [33, 8],
  [19, 21],
  [130, 64],
  [9, 91],
  [3, 513],
  [2, 4096],
];
const matrices: [string, [number, number, number]][] = [
  ["one element", [1, 1, 1]],
  ["rows to columns", [3, 1, 70]],
  ["columns to rows", [3, 70, 1]],
  ["one tile", [1, 32, 32]],
  ["parts of tiles", [2, 33, 31]],
  ["box deltas", [2, 300, 4]],
  ["scores of classes", [3, 100, 91]],
];

/** Few and many images, rows within and beyond what one block of threads adds up, channels of all vector widths. */
const imageShapes: Images[] = [
  [1, 1, 1],
  [3, 5, 7],
  [2, 49, 64],
  [5, 33, 100],
  [2, 1, 8],
  [1, 700, 24],
  [2, 5000, 3],
  [1, 3000, 16],
];
const shuffles: [rows: number, channels: number, groups: number][] = [
  [5, 8, 2],
  [3, 12, 3],
  [7, 24, 8],
  [4, 58, 2],
  [9, 15, 5],
  [2, 6, 1],
  [2, 6, 6],
  [33, 256, 4],
];

export const channelCases: OpCase[] = [
  ...rowShapes.flatMap(([rows, channels]) => [
    softmaxForward(`${rows}x${channels}`, rows, channels),
    softmaxBackward(`${rows}x${channels}`, rows, channels),
  ]),
  softmaxForward("in place", 50, 12, { inPlace: true }),
  softmaxBackward("dx in dy's memory", 50, 12, true),
  softmaxForward("large values", 2, 4, { values: () => [1000, 999, -1000, 0, -300, -301, -3000, -310] }),
  softmaxForward("-infinity has probability 0", 2, 3, { values: () => [-infinity, 1, 2, 0, -infinity, -infinity] }),
  softmaxForward("a row of -infinity, or with NaN, is NaN", 3, 2, {
    values: () => [-infinity, -infinity, Number.NaN, 1, 0, 0],
  }),
  ...matrices.flatMap(([name, sizes]) => [transpose(name, ...sizes), transpose(name, ...sizes, "i32")]),
  ...imageShapes.flatMap((sizes) => [channelScale(sizes.join("x"), sizes), channelDot(sizes.join("x"), sizes)]),
  channelScale("in place", [2, 9, 12], true),
  ...shuffles.map(([rows, channels, groups]) =>
    channelShuffle(`${rows}x${channels} in ${groups} groups`, rows, channels, groups),
  ),
  ...softmaxGolden,
  ...channelGolden,
];

const scores = [32 * 3234, 91] as const;
export const channelBenches: OpCase[] = [
  softmaxForward("32x3234 anchors, 91 classes", ...scores),
  softmaxBackward("32x3234 anchors, 91 classes", ...scores),
  softmaxForward("8x80x80x256", 8 * 80 * 80, 256),
  transpose("32x3234x91", 32, 3234, 91),
  transpose("8x6400x256", 8, 6400, 256),
  channelScale("32x56x56x72", [32, 56 * 56, 72]),
  channelDot("32x56x56x72", [32, 56 * 56, 72]),
  channelDot("8x7x7x960", [8, 7 * 7, 960]),
  channelShuffle("32x28x28x116 in 2 groups", 32 * 28 * 28, 116, 2),
];

/** Anchors, IoU, box coding, matching. */
import { constants } from "../../../lib/native";
import { outHandle } from "../../../lib/tensor";
import { loadGolden } from "../../support/golden";
import type { Random } from "../../support/random";
import * as reference from "../reference/boxes";
import { type Input, type OpCase, recorded } from "./case";

export type Weights = reference.Weights;
export const unit: Weights = [1, 1, 1, 1];
export const fasterRcnn: Weights = [10, 10, 5, 5];
const f32 = { kind: "f32" } as const;
const i32 = { kind: "i32" } as const;
const fp32Only: Pick<OpCase, "dtypes"> = { dtypes: ["f32"] };

/** Coordinates up to 500 carry errors of 2^-24 relative; sizes and centres are a few operations on them. */
const coordinates = { rtol: 3e-6, atol: 1e-4 };

export function anchorGrid(
  name: string,
  feature: [number, number],
  stride: [number, number],
  cell: Input["values"],
  anchorsPerCell: number,
): OpCase {
  return {
    op: "anchor_grid",
    name,
    ...fp32Only,
    inputs: { cell: { shape: [anchorsPerCell, 4], ...f32, ...(cell && { values: cell }) } },
    outputs: { anchors: { shape: [feature[0] * feature[1] * anchorsPerCell, 4], ...f32 } },
    prepare(c) {
      const [anchors, cells] = ["anchors", "cell"].map((operand) => c.address(operand));
      return () => void c.native.anchorGrid(c.stream, anchors!, cells!, ...feature, anchorsPerCell, ...stride);
    },
    reference: (inputs) => ({ anchors: reference.anchorGrid(inputs.cell!, feature, stride) }),
  };
}

export const boxesOf =
  (size = 100): Input["values"] =>
  (random: Random, n: number) =>
    random.boxes(n / 4, size);

export function boxIou(name: string, a: number, b: number): OpCase {
  return {
    op: "box_iou",
    name,
    ...fp32Only,
    inputs: { a: { shape: [a, 4], ...f32, values: boxesOf() }, b: { shape: [b, 4], ...f32, values: boxesOf() } },
    outputs: { iou: { shape: [a, b], ...f32, tolerance: { rtol: 1e-5, atol: 1e-6 } } },
    prepare(c) {
      const [iou, left, right] = ["iou", "a", "b"].map((operand) => c.address(operand));
      return () => void c.native.boxIou(c.stream, iou!, left!, right!, a, b);
    },
    reference: (inputs) => ({ iou: reference.iouMatrix(inputs.a!, inputs.b!) }),
  };
}

export function boxEncode(name: string, count: number, weights: Weights): OpCase {
  return {
    op: "box_encode",
    name,
    ...fp32Only,
    inputs: {
      boxes: { shape: [count, 4], ...f32, values: boxesOf() },
      anchors: { shape: [count, 4], ...f32, values: boxesOf() },
    },
    outputs: { deltas: { shape: [count, 4], ...f32, tolerance: { rtol: 1e-5, atol: 1e-5 * weights[0] } } },
    prepare(c) {
      const [deltas, boxes, anchors] = ["deltas", "boxes", "anchors"].map((operand) => c.address(operand));
      return () => void c.native.boxEncode(c.stream, deltas!, boxes!, anchors!, count, ...weights);
    },
    reference: (inputs) => ({ deltas: reference.encode(inputs.boxes!, inputs.anchors!, weights) }),
  };
}

export function boxDecode(name: string, count: number, weights: Weights, values?: Input["values"]): OpCase {
  return {
    op: "box_decode",
    name,
    ...fp32Only,
    inputs: {
      deltas: { shape: [count, 4], ...f32, ...(values && { values }) },
      anchors: { shape: [count, 4], ...f32, values: boxesOf() },
    },
    outputs: { boxes: { shape: [count, 4], ...f32, tolerance: coordinates } },
    prepare(c) {
      const [boxes, deltas, anchors] = ["boxes", "deltas", "anchors"].map((operand) => c.address(operand));
      return () => void c.native.boxDecode(c.stream, boxes!, deltas!, anchors!, count, ...weights);
    },
    reference: (inputs) => ({ boxes: reference.decode(inputs.deltas!, inputs.anchors!, weights) }),
  };
}

interface MatchOptions {
  /** Real boxes of each image. */
  counts: readonly number[];
  maxBoxes: number;
  anchors: number;
  high: number;
  low: number;
  matching: reference.Matching;
}

const matchings = {
  thresholds: constants.MATCH_THRESHOLDS,
  lowQuality: constants.MATCH_LOW_QUALITY,
  bestAnchor: constants.MATCH_BEST_ANCHOR,
} as const;

/** Anchors of two sizes on a grid, as many as wanted. */
function gridAnchors(_random: Random, n: number): Float32Array {
  const out = new Float32Array(n);
  for (let i = 0; i < n / 4; ++i) {
    const [x, y, half] = [((i >> 1) % 12) * 8, Math.floor(i / 24) * 8, i % 2 === 0 ? 8 : 15];
    out.set([x - half, y - half, x + half, y + half], i * 4);
  }
  return out;
}

export function matchAnchors(
  name: string,
  { counts, maxBoxes, anchors, high, low, matching }: MatchOptions,
  boxes?: Input["values"],
): OpCase {
  const n = counts.length;
  return {
    op: "match_anchors",
    name,
    ...fp32Only,
    inputs: {
      anchors: { shape: [anchors, 4], ...f32, values: gridAnchors },
      boxes: { shape: [n, maxBoxes, 4], ...f32, values: boxes ?? boxesOf(96) },
      counts: { shape: [n], ...i32, values: () => counts },
    },
    outputs: { matches: { shape: [n, anchors], ...i32 }, foreground: { shape: [n], ...i32 } },
    prepare(c) {
      const bytes = outHandle();
      c.native.matchAnchorsWorkspace(c.device.handle, bytes.view, n, anchors, maxBoxes);
      const scratch = c.workspace(bytes.value);
      const [matches, foreground, grid, real, counted] = ["matches", "foreground", "anchors", "boxes", "counts"].map(
        (operand) => c.address(operand),
      );
      return () =>
        void c.native.matchAnchors(
          c.stream,
          matches!,
          foreground!,
          grid!,
          real!,
          counted!,
          scratch,
          n,
          anchors,
          maxBoxes,
          high,
          low,
          matchings[matching],
        );
    },
    reference(inputs) {
      const matches = counts.flatMap((count, image) => {
        const real = Array.from(inputs.boxes!).slice(image * maxBoxes * 4, (image * maxBoxes + count) * 4);
        return Array.from(reference.match(inputs.anchors!, real, high, low, matching));
      });
      return { matches, foreground: foregroundOf(matches, n) };
    },
  };
}

/** Anchors of FCOS for square images, sides equal to the strides, levels one after the other; cut to as many as wanted. */
function pointAnchors(_random: Random, n: number): Float32Array {
  const [extent, sizes] = n > 4 * 336 ? [640, [8, 16, 32, 64, 128]] : [128, [8, 16, 32]];
  const anchors = sizes.flatMap((size) => {
    const row = extent / size;
    return Array.from({ length: row * row }, (_, i) => {
      const [x, y] = [(i % row) * size, Math.floor(i / row) * size];
      return [x - size / 2, y - size / 2, x + size / 2, y + size / 2];
    });
  });
  return Float32Array.from(anchors.flat().slice(0, n));
}

export function matchPoints(
  name: string,
  options: { counts: readonly number[]; maxBoxes: number; anchors: number } & reference.PointLevels,
  boxes?: Input["values"],
): OpCase {
  const { counts, maxBoxes, anchors, first, last, radius } = options;
  const n = counts.length;
  return {
    op: "match_points",
    name,
    ...fp32Only,
    inputs: {
      anchors: { shape: [anchors, 4], ...f32, values: pointAnchors },
      boxes: { shape: [n, maxBoxes, 4], ...f32, values: boxes ?? boxesOf(128) },
      counts: { shape: [n], ...i32, values: () => counts },
    },
    outputs: { matches: { shape: [n, anchors], ...i32 }, foreground: { shape: [n], ...i32 } },
    prepare(c) {
      const [matches, foreground, grid, real, counted] = ["matches", "foreground", "anchors", "boxes", "counts"].map(
        (operand) => c.address(operand),
      );
      const sizes = [n, anchors, maxBoxes, first, last, radius] as const;
      return () => void c.native.matchPoints(c.stream, matches!, foreground!, grid!, real!, counted!, ...sizes);
    },
    reference(inputs) {
      const matches = counts.flatMap((count, image) => {
        const real = Array.from(inputs.boxes!).slice(image * maxBoxes * 4, (image * maxBoxes + count) * 4);
        return Array.from(reference.matchPoints(inputs.anchors!, real, options));
      });
      return { matches, foreground: foregroundOf(matches, n) };
    },
  };
}

/** Matches of n images that are no background. */
function foregroundOf(matches: readonly number[], n: number): number[] {
  const row = matches.length / n;
  return Array.from({ length: n }, (_, i) => matches.slice(i * row, (i + 1) * row).filter((m) => m >= 0).length);
}

/** Two equal boxes, a small one that ties between anchors, one on an anchor, one far outside. */
const trickyBoxes: Input["values"] = (random, n) => {
  const boxes = random.boxes(n / 4, 96);
  boxes.set(boxes.slice(0, 4), 4);
  boxes.set([19, 19, 21, 21], 8);
  boxes.set([8, 8, 24, 24], 12);
  boxes.set([1000, 1000, 1010, 1010], 16);
  return boxes;
};

const retinanet = { high: 0.5, low: 0.4, matching: "lowQuality" } as const;
const ssd = { high: 0.5, low: 0.5, matching: "bestAnchor" } as const;

const goldenAnchors = loadGolden<{ feature: [number, number]; stride: [number, number] }>("anchors").map((golden) => {
  const cell = golden.array("cell");
  const { feature, stride } = golden.params;
  return recorded(
    anchorGrid(golden.name, feature, stride, () => cell, cell.length / 4),
    {},
    { anchors: golden.array("anchors") },
  );
});

const goldenBoxes = loadGolden<{ weights?: [number, number, number, number] }>("boxes").flatMap((golden) => {
  const { weights } = golden.params;
  const array = (key: string) => golden.array(key);
  if (!weights) {
    return [
      recorded(
        boxIou(golden.name, golden.shape("a")[0]!, golden.shape("b")[0]!),
        { a: array("a"), b: array("b") },
        { iou: array("iou") },
      ),
    ];
  }
  const count = golden.shape("anchors")[0]!;
  return [
    recorded(
      boxEncode(golden.name, count, weights),
      { boxes: array("boxes"), anchors: array("anchors") },
      { deltas: array("encoded") },
    ),
    recorded(
      boxDecode(golden.name, count, weights),
      { deltas: array("deltas"), anchors: array("anchors") },
      { boxes: array("decoded") },
      coordinates,
    ),
  ];
});

const goldenMatches = loadGolden<{ high: number; low: number; allowLowQuality: boolean }>("matching").map((golden) => {
  const boxes = golden.shape("boxes")[0]!;
  const { high, low, allowLowQuality } = golden.params;
  const matching = allowLowQuality ? "lowQuality" : "thresholds";
  const options = {
    counts: [boxes],
    maxBoxes: boxes,
    anchors: golden.shape("anchors")[0]!,
    high,
    low,
    matching,
  } as const;
  const inputs = { anchors: golden.array("anchors"), boxes: golden.array("boxes") };
  return recorded(matchAnchors(golden.name, options), inputs, { matches: golden.array("matches") });
});

/** SSD's and FCOS's matches. */
const goldenDetectors = loadGolden<{ task: string; threshold: number; radius: number; first: number; last: number }>(
  "detection",
).flatMap((golden) => {
  if (!golden.has("matches")) return [];
  const { task, threshold, first, last, radius } = golden.params;
  const boxes = golden.shape("boxes")[0]!;
  const sizes = { counts: [boxes], maxBoxes: boxes, anchors: golden.shape("anchors")[0]! };
  const opCase =
    task === "points"
      ? matchPoints(golden.name, { ...sizes, first, last, radius })
      : matchAnchors(golden.name, { ...sizes, ...ssd, high: threshold, low: threshold });
  const inputs = { anchors: golden.array("anchors"), boxes: golden.array("boxes") };
  return [recorded(opCase, inputs, { matches: golden.array("matches") })];
});

export const boxCases: OpCase[] = [
  anchorGrid("9 anchors a cell", [5, 7], [8, 16], (random, n) => random.uniform(n, -40, 40), 9),
  anchorGrid("1 cell", [1, 1], [64, 64], (random, n) => random.uniform(n, -40, 40), 3),
  anchorGrid("fractional stride", [3, 4], [7.5, 10.25], (random, n) => random.uniform(n, -40, 40), 2),
  boxIou("17 by 9", 17, 9),
  boxIou("1 by 1", 1, 1),
  boxIou("300 by 65", 300, 65),
  boxEncode("unit weights", 133, unit),
  boxEncode("other weights", 10, fasterRcnn),
  boxDecode("unit weights", 133, unit),
  boxDecode("other weights", 10, fasterRcnn),
  boxDecode("beyond the clip", 8, unit, (random, n) => random.uniform(n, 3, 9)),
  matchAnchors("several images, one without boxes", {
    ...retinanet,
    counts: [7, 0, 12, 1],
    maxBoxes: 12,
    anchors: 288,
  }),
  matchAnchors("no boxes at all", { ...retinanet, counts: [0, 0], maxBoxes: 5, anchors: 100 }),
  matchAnchors(
    "equal boxes, ties of low quality, a box outside",
    { ...retinanet, counts: [8], maxBoxes: 8, anchors: 288 },
    trickyBoxes,
  ),
  matchAnchors(
    "ties, low quality not allowed",
    { ...retinanet, matching: "thresholds", counts: [8], maxBoxes: 8, anchors: 288 },
    trickyBoxes,
  ),
  matchAnchors("one threshold", {
    high: 0.5,
    low: 0.5,
    matching: "thresholds",
    counts: [6, 6],
    maxBoxes: 6,
    anchors: 289,
  }),
  matchAnchors("wide ignored band", {
    high: 0.9,
    low: 0.05,
    matching: "lowQuality",
    counts: [9],
    maxBoxes: 10,
    anchors: 33,
  }),
  matchAnchors("best anchors, several images, one without boxes", {
    ...ssd,
    counts: [7, 0, 12, 1],
    maxBoxes: 12,
    anchors: 288,
  }),
  matchAnchors(
    "best anchors: equal boxes, ties, a box outside",
    { ...ssd, counts: [8], maxBoxes: 8, anchors: 288 },
    trickyBoxes,
  ),
  matchAnchors("best anchors, all boxes share one", { ...ssd, counts: [5], maxBoxes: 9, anchors: 1 }),
  matchAnchors("best anchors, no boxes at all", { ...ssd, counts: [0, 0], maxBoxes: 0, anchors: 100 }),
  // more anchors than are searched at a time, with an ignored band
  matchAnchors("best anchors, 300 boxes, 9000 anchors", {
    ...ssd,
    high: 0.6,
    low: 0.3,
    counts: [300],
    maxBoxes: 300,
    anchors: 9000,
  }),
  matchPoints("several images, one without boxes", {
    counts: [9, 0, 30, 1],
    maxBoxes: 30,
    anchors: 336,
    first: 256,
    last: 16,
    radius: 1.5,
  }),
  matchPoints("no boxes at all", { counts: [0, 0], maxBoxes: 0, anchors: 64, first: 64, last: 64, radius: 1.5 }),
  matchPoints(
    "boxes of equal areas, of no area, larger than can be told apart, that touch points",
    { counts: [30], maxBoxes: 30, anchors: 336, first: 256, last: 16, radius: 2 },
    (random, n) => {
      const boxes = random.boxes(n / 4, 128);
      boxes.set(boxes.slice(0, 8), 8);
      boxes.set([40, 40, 40, 80], 16);
      boxes.set([-5000, -5000, 5128, 5128], 20);
      boxes.set([-4000, -4000, 4128, 4128], 24);
      boxes.set([48, 48, 112, 112], 28);
      return boxes;
    },
  ),
  matchPoints("one level, 300 boxes", {
    counts: [300],
    maxBoxes: 300,
    anchors: 256,
    first: 256,
    last: 256,
    radius: 1.5,
  }),
  matchAnchors("1 anchor", { ...retinanet, counts: [2, 2], maxBoxes: 2, anchors: 1 }),
  matchAnchors("100 boxes", { ...retinanet, counts: [100, 63], maxBoxes: 100, anchors: 2400 }),
  ...goldenAnchors,
  ...goldenBoxes,
  ...goldenMatches,
  ...goldenDetectors,
];

export const boxBenches: OpCase[] = [
  matchAnchors("SSD: 32 images of 50 boxes, 8732 anchors", {
    ...ssd,
    counts: Array(32).fill(50),
    maxBoxes: 50,
    anchors: 8732,
  }),
  matchPoints(
    "8 images of 50 boxes, 8525 points (640x640)",
    { counts: Array(8).fill(50), maxBoxes: 50, anchors: 8525, first: 6400, last: 25, radius: 1.5 },
    boxesOf(640),
  ),
  matchAnchors("4 images of 50 boxes, 76725 anchors", {
    ...retinanet,
    counts: [50, 50, 50, 50],
    maxBoxes: 50,
    anchors: 76725,
  }),
];

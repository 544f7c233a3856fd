/** Anchors, IoU, box coding, matching. */
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
  allowLowQuality: boolean;
}

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
  { counts, maxBoxes, anchors, high, low, allowLowQuality }: MatchOptions,
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
          allowLowQuality ? 1 : 0,
        );
    },
    reference(inputs) {
      const matches = counts.flatMap((count, image) => {
        const real = Array.from(inputs.boxes!).slice(image * maxBoxes * 4, (image * maxBoxes + count) * 4);
        return Array.from(reference.match(inputs.anchors!, real, high, low, allowLowQuality));
      });
      const foreground = counts.map(
        (_, i) => matches.slice(i * anchors, (i + 1) * anchors).filter((m) => m >= 0).length,
      );
      return { matches, foreground };
    },
  };
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

const retinanet = { high: 0.5, low: 0.4, allowLowQuality: true };

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
  const options = { counts: [boxes], maxBoxes: boxes, anchors: golden.shape("anchors")[0]!, ...golden.params };
  const inputs = { anchors: golden.array("anchors"), boxes: golden.array("boxes") };
  return recorded(matchAnchors(golden.name, options), inputs, { matches: golden.array("matches") });
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
    { ...retinanet, allowLowQuality: false, counts: [8], maxBoxes: 8, anchors: 288 },
    trickyBoxes,
  ),
  matchAnchors("one threshold", {
    high: 0.5,
    low: 0.5,
    allowLowQuality: false,
    counts: [6, 6],
    maxBoxes: 6,
    anchors: 289,
  }),
  matchAnchors("wide ignored band", {
    high: 0.9,
    low: 0.05,
    allowLowQuality: true,
    counts: [9],
    maxBoxes: 10,
    anchors: 33,
  }),
  matchAnchors("1 anchor", { ...retinanet, counts: [2, 2], maxBoxes: 2, anchors: 1 }),
  matchAnchors("100 boxes", { ...retinanet, counts: [100, 63], maxBoxes: 100, anchors: 2400 }),
  ...goldenAnchors,
  ...goldenBoxes,
  ...goldenMatches,
];

export const boxBenches: OpCase[] = [
  matchAnchors("4 images of 50 boxes, 76725 anchors", {
    ...retinanet,
    counts: [50, 50, 50, 50],
    maxBoxes: 50,
    anchors: 76725,
  }),
];

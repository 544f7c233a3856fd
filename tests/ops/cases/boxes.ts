/** Anchors, IoU, box coding, matching and detection losses. */
import { outHandle } from "../../../lib/tensor";
import { loadGolden } from "../../support/golden";
import type { Random } from "../../support/random";
import * as reference from "../reference/boxes";
import { type Arrays, type Input, type OpCase, recorded } from "./case";

type Weights = reference.Weights;
const unit: Weights = [1, 1, 1, 1];
const fasterRcnn: Weights = [10, 10, 5, 5];
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

const boxesOf =
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

interface LossOptions {
  n: number;
  anchors: number;
  maxBoxes: number;
  /** Images of this many boxes, in turn; default maxBoxes. */
  counts?: readonly number[];
  gradFactor?: number;
  /** Without a gradient, as in validation. */
  lossOnly?: boolean;
}

/** Matches with a third of each of foreground, background and ignored anchors; none where an image has no boxes. */
function drawMatches({ n, anchors, maxBoxes, counts = [maxBoxes] }: LossOptions): Input {
  const values = (random: Random) =>
    Int32Array.from({ length: n * anchors }, (_, i) => {
      const boxes = counts[Math.floor(i / anchors) % counts.length]!;
      const kind = random.integer(0, 3);
      return kind === 0 && boxes > 0 ? random.integer(0, boxes) : kind === 1 ? -2 : -1;
    });
  return { shape: [n, anchors], ...i32, values };
}

const foregroundOf = ({ n, anchors }: LossOptions): Input => ({
  shape: [n],
  ...i32,
  values: (_random, _size, { matches }) =>
    Array.from(
      { length: n },
      (_, image) =>
        Array.from({ length: anchors }, (_, a) => matches![image * anchors + a]!).filter((m) => m >= 0).length,
    ),
});

/** The loss sums `terms` values of mixed size; its gradient's elements are single terms. */
const lossTolerance = { rtol: 1e-5, atol: 1e-7 };

export function focalLoss(
  name: string,
  options: LossOptions & { classes: number; alpha?: number; gamma?: number; deviation?: number },
): OpCase {
  const {
    n,
    anchors,
    maxBoxes,
    classes,
    alpha = 0.25,
    gamma = 2,
    gradFactor = 1,
    lossOnly = false,
    deviation = 3,
  } = options;
  const shared = { n, anchors, classes, maxBoxes, alpha, gamma };
  const compute = ({ logits, matches, labels }: Arrays) =>
    reference.focalLoss({ logits: logits!, matches: matches!, labels: labels!, ...shared });
  return {
    op: "focal_loss",
    name,
    inputs: {
      logits: { shape: [n, anchors, classes], values: (random, size) => random.normal(size, -1, deviation) },
      matches: drawMatches(options),
      labels: { shape: [n, maxBoxes], ...i32, values: (random, size) => random.integers(size, 0, classes) },
      foreground: foregroundOf(options),
    },
    outputs: {
      loss: { shape: [1], ...f32, tolerance: lossTolerance },
      ...(!lossOnly && { dlogits: { shape: [n, anchors, classes] } }),
    },
    prepare(c) {
      const bytes = outHandle();
      c.native.detectionLossWorkspace(c.device.handle, bytes.view, n, anchors, classes);
      const scratch = c.workspace(bytes.value);
      const [loss, dlogits, logits, matches, labels, foreground] = [
        "loss",
        "dlogits",
        "logits",
        "matches",
        "labels",
        "foreground",
      ].map((operand) => c.address(operand));
      return () =>
        void c.native.focalLoss(
          c.stream,
          loss!,
          dlogits!,
          logits!,
          matches!,
          labels!,
          foreground!,
          scratch,
          n,
          anchors,
          classes,
          maxBoxes,
          c.dtype,
          alpha,
          gamma,
          gradFactor,
        );
    },
    reference(inputs) {
      const { loss, dlogits } = compute(inputs);
      return { loss: [loss], dlogits: dlogits.map((value) => value * gradFactor) };
    },
    gradients: lossOnly
      ? undefined
      : [{ output: "dlogits", of: "logits", loss: (inputs) => gradFactor * compute(inputs).loss }],
  };
}

export function boxLoss(name: string, options: LossOptions & { weights?: Weights; beta?: number }): OpCase {
  const { n, anchors, maxBoxes, weights = unit, beta = 0, gradFactor = 1, lossOnly = false } = options;
  const compute = ({ deltas, anchors: grid, matches, boxes }: Arrays) =>
    reference.boxLoss({
      deltas: deltas!,
      anchors: grid!,
      matches: matches!,
      boxes: boxes!,
      n,
      maxBoxes,
      weights,
      beta,
    });
  return {
    op: "box_loss",
    name,
    inputs: {
      deltas: { shape: [n, anchors, 4] },
      anchors: { shape: [anchors, 4], ...f32, values: boxesOf() },
      matches: drawMatches(options),
      boxes: { shape: [n, maxBoxes, 4], ...f32, values: boxesOf() },
      foreground: foregroundOf(options),
    },
    outputs: {
      loss: { shape: [1], ...f32, tolerance: lossTolerance },
      ...(!lossOnly && { ddeltas: { shape: [n, anchors, 4] } }),
    },
    prepare(c) {
      const bytes = outHandle();
      c.native.detectionLossWorkspace(c.device.handle, bytes.view, n, anchors, 1);
      const scratch = c.workspace(bytes.value);
      const [loss, ddeltas, deltas, grid, matches, boxes, foreground] = [
        "loss",
        "ddeltas",
        "deltas",
        "anchors",
        "matches",
        "boxes",
        "foreground",
      ].map((operand) => c.address(operand));
      return () =>
        void c.native.boxLoss(
          c.stream,
          loss!,
          ddeltas!,
          deltas!,
          grid!,
          matches!,
          boxes!,
          foreground!,
          scratch,
          n,
          anchors,
          maxBoxes,
          c.dtype,
          ...weights,
          beta,
          gradFactor,
        );
    },
    reference(inputs) {
      const { loss, ddeltas } = compute(inputs);
      return { loss: [loss], ddeltas: ddeltas.map((value) => value * gradFactor) };
    },
    gradients: lossOnly
      ? undefined
      : [{ output: "ddeltas", of: "deltas", loss: (inputs) => gradFactor * compute(inputs).loss }],
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

const goldenLosses = loadGolden<{ alpha: number; gamma: number; beta: number }>("losses").flatMap((golden) => {
  if (golden.has("x")) return [];
  const { alpha, gamma, beta } = golden.params;
  const [n, anchors] = golden.shape("matches") as [number, number];
  const options = { n, anchors, maxBoxes: golden.shape("labels")[1]! };
  const foreground = Int32Array.from(
    { length: n },
    (_, i) =>
      golden
        .array("matches")
        .slice(i * anchors, (i + 1) * anchors)
        .filter((m) => m >= 0).length,
  );
  const inputs: Arrays = {
    foreground,
    ...Object.fromEntries(
      ["anchors", "boxes", "labels", "matches", "logits", "deltas"]
        .filter((key) => golden.has(key))
        .map((key) => [key, golden.array(key)]),
    ),
  };
  if (golden.has("logits")) {
    const classes = golden.shape("logits")[2]!;
    return [
      recorded(focalLoss(golden.name, { ...options, classes, alpha, gamma }), inputs, {
        loss: golden.array("loss"),
        dlogits: golden.array("dlogits"),
      }),
    ];
  }
  return [
    recorded(boxLoss(golden.name, { ...options, beta }), inputs, {
      loss: golden.array("loss"),
      ddeltas: golden.array("ddeltas"),
    }),
  ];
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
  focalLoss("5 classes", { n: 3, anchors: 50, classes: 5, maxBoxes: 4, counts: [4, 2] }),
  focalLoss("1 class", { n: 2, anchors: 33, classes: 1, maxBoxes: 3 }),
  focalLoss("91 classes", { n: 1, anchors: 130, classes: 91, maxBoxes: 7 }),
  focalLoss("no boxes", { n: 2, anchors: 40, classes: 3, maxBoxes: 2, counts: [0] }),
  focalLoss("gradient times 0.125", { n: 2, anchors: 20, classes: 4, maxBoxes: 2, gradFactor: 0.125 }),
  focalLoss("no alpha, gamma 1.5", { n: 2, anchors: 20, classes: 4, maxBoxes: 2, alpha: -1, gamma: 1.5 }),
  focalLoss("gamma 0 (cross entropy)", { n: 2, anchors: 20, classes: 4, maxBoxes: 2, alpha: 0.5, gamma: 0 }),
  focalLoss("logits up to 100", { n: 1, anchors: 60, classes: 4, maxBoxes: 2, deviation: 40 }),
  focalLoss("loss only", { n: 2, anchors: 50, classes: 5, maxBoxes: 4, lossOnly: true }),
  focalLoss("thousands of anchors", { n: 2, anchors: 3001, classes: 7, maxBoxes: 20 }),
  boxLoss("L1", { n: 3, anchors: 50, maxBoxes: 4, counts: [4, 0, 2] }),
  boxLoss("smooth L1, beta 1/9", { n: 2, anchors: 40, maxBoxes: 5, beta: 1 / 9 }),
  boxLoss("smooth L1, beta 2, weights", { n: 2, anchors: 40, maxBoxes: 5, beta: 2, weights: fasterRcnn }),
  boxLoss("gradient times 3", { n: 1, anchors: 40, maxBoxes: 5, gradFactor: 3 }),
  boxLoss("no boxes", { n: 2, anchors: 10, maxBoxes: 2, counts: [0] }),
  boxLoss("loss only", { n: 2, anchors: 40, maxBoxes: 5, lossOnly: true }),
  boxLoss("thousands of anchors", { n: 2, anchors: 3001, maxBoxes: 20, beta: 0.1 }),
  ...goldenAnchors,
  ...goldenBoxes,
  ...goldenMatches,
  ...goldenLosses,
];

/** RetinaNet at 640x640: 76,725 anchors, 91 classes. */
const retina: LossOptions = { n: 4, anchors: 76725, maxBoxes: 50 };
export const boxBenches: OpCase[] = [
  { ...focalLoss("4x76725x91", { ...retina, classes: 91 }) },
  { ...boxLoss("4x76725", retina) },
  matchAnchors("4 images of 50 boxes, 76725 anchors", {
    ...retinanet,
    counts: [50, 50, 50, 50],
    maxBoxes: 50,
    anchors: 76725,
  }),
];

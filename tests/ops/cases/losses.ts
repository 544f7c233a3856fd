/** Detection losses with their gradients. */
import { outHandle } from "../../../lib/tensor";
import { loadGolden } from "../../support/golden";
import type { Random } from "../../support/random";
import * as reference from "../reference/boxes";
import { boxesOf, fasterRcnn, unit, type Weights } from "./boxes";
import { type Arrays, type Input, type OpCase, recorded } from "./case";

const f32 = { kind: "f32" } as const;
const i32 = { kind: "i32" } as const;

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

export const lossCases: OpCase[] = [
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
  ...goldenLosses,
];

/** RetinaNet at 640x640: 76,725 anchors, 91 classes. */
const retina: LossOptions = { n: 4, anchors: 76725, maxBoxes: 50 };
export const lossBenches: OpCase[] = [focalLoss("4x76725x91", { ...retina, classes: 91 }), boxLoss("4x76725", retina)];

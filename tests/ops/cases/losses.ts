/** Detection losses: the list of cases, with those recorded from torchvision, and the benchmarks. */
import { backend } from "../../support/device";
import { type GoldenCase, loadGolden } from "../../support/golden";
import type { BoxLossKind, Coder, Normalization } from "../reference/losses";
import { boxLoss, centernessLoss } from "./anchor-losses";
import { fasterRcnn, unit, type Weights } from "./boxes";
import { type Arrays, type OpCase, recorded } from "./case";
import { crossEntropyLoss, focalLoss } from "./class-losses";
import type { LossOptions } from "./loss-inputs";

/** The operands that recorded cases store, with the counts that follow from the matches. */
function recordedInputs(golden: GoldenCase<unknown>): { inputs: Arrays; options: LossOptions } {
  const [n, anchors] = golden.shape("matches") as [number, number];
  const matches = golden.array("matches");
  const foreground = Int32Array.from(
    { length: n },
    (_, i) => matches.slice(i * anchors, (i + 1) * anchors).filter((m) => m >= 0).length,
  );
  const names = ["anchors", "boxes", "labels", "matches", "logits", "deltas"].filter((key) => golden.has(key));
  return {
    inputs: { foreground, ...Object.fromEntries(names.map((key) => [key, golden.array(key)])) },
    options: { n, anchors, maxBoxes: golden.shape("labels")[1]! },
  };
}

/** RetinaNet's losses, by record.py. */
const retinaNet = loadGolden<{ alpha: number; gamma: number; beta: number }>("losses").flatMap((golden) => {
  if (golden.has("x")) return [];
  const { alpha, gamma, beta } = golden.params;
  const { inputs, options } = recordedInputs(golden);
  if (golden.has("logits")) {
    const classes = golden.shape("logits")[2]!;
    const outputs = { loss: golden.array("loss"), dlogits: golden.array("dlogits") };
    return [recorded(focalLoss(golden.name, { ...options, classes, alpha, gamma }), inputs, outputs)];
  }
  const outputs = { loss: golden.array("loss"), ddeltas: golden.array("ddeltas") };
  return [recorded(boxLoss(golden.name, { ...options, kind: "smooth_l1", beta }), inputs, outputs)];
});

type Recorded = { normalization: Normalization } & (
  | { loss: "focal"; alpha: number; gamma: number }
  | { loss: "cross entropy"; ratio: number }
  | { loss: "box"; kind: BoxLossKind; coder: Coder; beta?: number; weights?: Weights }
  | { loss: "centerness" }
);

/** torchvision's own arithmetic is fp32. */
const margin = { rtol: 1e-4, atol: 1e-6 };

/** Losses of torchvision's RetinaNet, FCOS and SSD, by record_losses.py. */
const others = loadGolden<Recorded>("detection-losses").map((golden) => {
  const { params, name } = golden;
  const { inputs, options } = recordedInputs(golden);
  const shared = { ...options, normalization: params.normalization };
  const loss = golden.array("loss");
  if (params.loss === "box") {
    const { kind, coder, weights = unit } = params;
    const beta = kind === "smooth_l1" ? (params.beta ?? 1) : 0;
    const outputs = { loss, ddeltas: golden.array("ddeltas") };
    return recorded(boxLoss(name, { ...shared, kind, coder, weights, beta }), inputs, outputs, margin);
  }
  const outputs = { loss, dlogits: golden.array("dlogits") };
  if (params.loss === "centerness") return recorded(centernessLoss(name, shared), inputs, outputs, margin);
  const classes = golden.shape("logits")[2]!;
  if (params.loss === "cross entropy") {
    const negativeRatio = params.ratio;
    return recorded(crossEntropyLoss(name, { ...shared, classes, negativeRatio }), inputs, outputs, margin);
  }
  const { alpha, gamma } = params;
  return recorded(focalLoss(name, { ...shared, classes, alpha, gamma }), inputs, outputs);
});

const boxes: LossOptions = { n: 3, anchors: 50, maxBoxes: 4, counts: [4, 0, 2] };

/** Three levels, whose padded maps of 4 x 5 classes or 4 boxes are read 16 bytes at a time. */
const pyramid: LossOptions = {
  n: 2,
  anchors: 4 * 45,
  maxBoxes: 4,
  counts: [4, 2],
  cells: [32, 9, 4],
  perCell: 4,
  foreground: 0.1,
  ignored: 0.1,
};

const classes: LossOptions = { n: 3, anchors: 60, maxBoxes: 4, counts: [4, 0, 2], ignored: 0.1, foreground: 0.2 };

export const lossCases: OpCase[] = [
  focalLoss("5 classes", { n: 3, anchors: 50, classes: 5, maxBoxes: 4, counts: [4, 2] }),
  focalLoss("1 class", { n: 2, anchors: 33, classes: 1, maxBoxes: 3 }),
  focalLoss("91 classes", { n: 1, anchors: 130, classes: 91, maxBoxes: 7 }),
  focalLoss("no boxes", { n: 2, anchors: 40, classes: 3, maxBoxes: 2, counts: [0] }),
  focalLoss("no boxes, whole batch", {
    n: 2,
    anchors: 40,
    classes: 3,
    maxBoxes: 2,
    counts: [0],
    normalization: "batch",
  }),
  focalLoss("all ignored", { n: 2, anchors: 40, classes: 3, maxBoxes: 2, foreground: 0, ignored: 1 }),
  focalLoss("whole batch", { n: 3, anchors: 50, classes: 5, maxBoxes: 4, counts: [4, 0, 2], normalization: "batch" }),
  focalLoss("gradient times 0.125", { n: 2, anchors: 20, classes: 4, maxBoxes: 2, gradFactor: 0.125 }),
  focalLoss("gradient times 0.125, and times 1000 on the device", {
    n: 2,
    anchors: 20,
    classes: 4,
    maxBoxes: 2,
    gradFactor: 0.125,
    gradScale: 1000,
  }),
  focalLoss("padded level maps, gradient times 3 on the device", { ...pyramid, classes: 5, padding: 4, gradScale: 3 }),
  focalLoss("no alpha, gamma 1.5", { n: 2, anchors: 20, classes: 4, maxBoxes: 2, alpha: -1, gamma: 1.5 }),
  focalLoss("gamma 0", { n: 2, anchors: 20, classes: 4, maxBoxes: 2, alpha: 0.5, gamma: 0 }),
  focalLoss("binary cross-entropy", { n: 2, anchors: 20, classes: 4, maxBoxes: 2, alpha: -1, gamma: 0, deviation: 20 }),
  focalLoss("logits up to 100", { n: 1, anchors: 60, classes: 4, maxBoxes: 2, deviation: 40 }),
  focalLoss("loss only", { n: 2, anchors: 50, classes: 5, maxBoxes: 4, lossOnly: true }),
  focalLoss("thousands of anchors", { n: 2, anchors: 3001, classes: 7, maxBoxes: 20 }),
  focalLoss("hundreds of images, whole batch", { n: 300, anchors: 7, classes: 2, maxBoxes: 2, normalization: "batch" }),
  focalLoss("level maps", { ...pyramid, classes: 5 }),
  focalLoss("padded level maps", { ...pyramid, classes: 5, padding: 4 }),
  focalLoss("padded level maps, few of other than background", {
    ...pyramid,
    classes: 5,
    padding: 4,
    foreground: 0.01,
    ignored: 0.01,
  }),
  focalLoss("padded level maps, gamma 1, whole batch", {
    ...pyramid,
    classes: 6,
    padding: 8,
    gamma: 1,
    normalization: "batch",
  }),
  focalLoss("padded level maps of 1 class, large logits", { ...pyramid, classes: 1, padding: 4, deviation: 40 }),
  focalLoss("level maps with more anchors in a cell than a block", {
    n: 2,
    anchors: 300 * 3,
    maxBoxes: 3,
    classes: 2,
    cells: [2, 1],
    perCell: 300,
  }),
  focalLoss("padded level maps, loss only", { ...pyramid, classes: 5, padding: 4, lossOnly: true }),
  boxLoss("L1", boxes),
  boxLoss("level maps", { ...pyramid, kind: "giou" }),
  boxLoss("padded level maps", { ...pyramid, padding: 4, kind: "smooth_l1", beta: 0.5 }),
  boxLoss("level maps with padding that is not aligned", { ...pyramid, padding: 3 }),
  boxLoss("smooth L1, beta 1/9", { n: 2, anchors: 40, maxBoxes: 5, kind: "smooth_l1", beta: 1 / 9 }),
  boxLoss("smooth L1, beta 2, weights", { ...boxes, kind: "smooth_l1", beta: 2, weights: fasterRcnn }),
  boxLoss("smooth L1, linear, whole batch", {
    ...boxes,
    kind: "smooth_l1",
    beta: 1,
    coder: "linear",
    normalization: "batch",
  }),
  ...(["iou", "giou", "diou", "ciou"] as const).flatMap((kind) => [
    boxLoss(kind, { ...boxes, kind }),
    boxLoss(`${kind}, weights, whole batch`, { ...boxes, kind, weights: fasterRcnn, normalization: "batch" }),
    boxLoss(`${kind}, linear`, { ...boxes, kind, coder: "linear", gradFactor: 3 }),
  ]),
  boxLoss("gradient times 3", { n: 1, anchors: 40, maxBoxes: 5, gradFactor: 3 }),
  boxLoss("GIoU, gradient times 3, and times 0.01 on the device", {
    ...boxes,
    kind: "giou",
    gradFactor: 3,
    gradScale: 0.01,
  }),
  boxLoss("no boxes", { n: 2, anchors: 10, maxBoxes: 2, counts: [0] }),
  boxLoss("no boxes, GIoU, whole batch", {
    n: 2,
    anchors: 10,
    maxBoxes: 2,
    counts: [0],
    kind: "giou",
    normalization: "batch",
  }),
  boxLoss("all ignored, CIoU", { n: 2, anchors: 10, maxBoxes: 2, foreground: 0, ignored: 1, kind: "ciou" }),
  boxLoss("loss only", { n: 2, anchors: 40, maxBoxes: 5, lossOnly: true }),
  boxLoss("GIoU, loss only", { n: 2, anchors: 40, maxBoxes: 5, kind: "giou", lossOnly: true }),
  boxLoss("thousands of anchors", { n: 2, anchors: 3001, maxBoxes: 20, kind: "smooth_l1", beta: 0.1 }),
  boxLoss("CIoU, thousands of anchors", { n: 2, anchors: 3001, maxBoxes: 20, kind: "ciou", foreground: 0.02 }),
  crossEntropyLoss("6 classes", { ...classes, classes: 6, negativeRatio: 3 }),
  crossEntropyLoss("91 classes", { ...classes, classes: 91, negativeRatio: 0.3, normalization: "image" }),
  crossEntropyLoss("2 classes", { ...classes, classes: 2, negativeRatio: 0.5 }),
  crossEntropyLoss("no negatives", { ...classes, classes: 6, negativeRatio: 0 }),
  crossEntropyLoss("all anchors", { ...classes, classes: 33, negativeRatio: -1 }),
  crossEntropyLoss("all anchors, per image", { ...classes, classes: 7, negativeRatio: -1, normalization: "image" }),
  crossEntropyLoss("more negatives than there are", { ...classes, classes: 6, negativeRatio: 1e9 }),
  crossEntropyLoss("equal losses", { ...classes, anchors: 700, classes: 2, negativeRatio: 0.4, tied: true }),
  crossEntropyLoss("all losses equal", {
    ...classes,
    anchors: 3000,
    classes: 5,
    negativeRatio: 0.7,
    deviation: 0,
    tied: true,
  }),
  crossEntropyLoss("no boxes", { n: 2, anchors: 40, classes: 4, maxBoxes: 2, counts: [0], negativeRatio: 3 }),
  crossEntropyLoss("no boxes, all anchors", {
    n: 2,
    anchors: 40,
    classes: 4,
    maxBoxes: 2,
    counts: [0],
    negativeRatio: -1,
  }),
  crossEntropyLoss("all ignored", {
    n: 2,
    anchors: 40,
    classes: 4,
    maxBoxes: 2,
    foreground: 0,
    ignored: 1,
    negativeRatio: 3,
  }),
  crossEntropyLoss("logits up to 200", { ...classes, classes: 6, negativeRatio: 1, deviation: 60 }),
  crossEntropyLoss("gradient times 0.25", { ...classes, classes: 6, negativeRatio: 2, gradFactor: 0.25 }),
  crossEntropyLoss("gradient times 512 on the device", { ...classes, classes: 6, negativeRatio: 2, gradScale: 512 }),
  crossEntropyLoss("all anchors, gradient times 512 on the device", {
    ...classes,
    classes: 6,
    negativeRatio: -1,
    gradScale: 512,
  }),
  crossEntropyLoss("loss only", { ...classes, classes: 6, negativeRatio: 0.5, lossOnly: true }),
  crossEntropyLoss("loss only, all anchors", { ...classes, classes: 6, negativeRatio: -1, lossOnly: true }),
  crossEntropyLoss("thousands of anchors", {
    ...classes,
    anchors: 9001,
    classes: 21,
    negativeRatio: 3,
    foreground: 0.02,
  }),
  crossEntropyLoss("rows longer than a tile's", { ...classes, anchors: 9, classes: 1501, negativeRatio: 0.5 }),
  centernessLoss("per batch", boxes),
  centernessLoss("per image", { ...boxes, normalization: "image" }),
  centernessLoss("no boxes", { n: 2, anchors: 10, maxBoxes: 2, counts: [0] }),
  centernessLoss("gradient times 3", { ...boxes, gradFactor: 3 }),
  centernessLoss("gradient times 3, and times 7 on the device", { ...boxes, gradFactor: 3, gradScale: 7 }),
  centernessLoss("level maps", pyramid),
  centernessLoss("padded level maps", { ...pyramid, padding: 4 }),
  centernessLoss("loss only", { ...boxes, lossOnly: true }),
  centernessLoss("thousands of anchors", { n: 2, anchors: 3001, maxBoxes: 20 }),
  ...retinaNet,
  ...others,
];

/** RetinaNet at 640x640: 76,725 anchors, of which some 150 an image are foreground. */
const size: LossOptions = {
  n: backend === "cuda" ? 32 : 2,
  anchors: 76725,
  maxBoxes: 50,
  foreground: 0.002,
  ignored: 0.002,
};
const sizeName = `${size.n}x${size.anchors}`;
/** As its heads give them, with channels padded to multiples of 8. */
const maps = { cells: [80, 40, 20, 10, 5].map((side) => side * side), perCell: 9 };

export const lossBenches: OpCase[] = [
  focalLoss(`${sizeName}x91`, { ...size, classes: 91 }),
  focalLoss(`${sizeName}x91, level maps`, { ...size, ...maps, classes: 91, padding: 5 }),
  boxLoss(`L1 ${sizeName}`, size),
  boxLoss(`L1 ${sizeName}, level maps`, { ...size, ...maps, padding: 4 }),
  boxLoss(`GIoU ${sizeName}`, { ...size, kind: "giou" }),
  boxLoss(`CIoU ${sizeName}`, { ...size, kind: "ciou" }),
  crossEntropyLoss(`${sizeName}x91, hard negatives`, { ...size, classes: 91, negativeRatio: 3 }),
  crossEntropyLoss(`${sizeName}x91, all anchors`, { ...size, classes: 91, negativeRatio: -1 }),
  centernessLoss(sizeName, size),
];

/** How the operations of lib/detection are written in ONNX: anchors as constants, candidates, suppression. */
import type { Node, Value } from "../graph";
import { DlfsError, ErrorCode } from "../native";
import { elementCount } from "../tensor";
import type { GraphBuilder } from "./builder";
import { type Rule, sliceOf } from "./rules";

/** Scores of what is no candidate, and a bound between them and all others. */
const NO_SCORE = -1e30;
const ANY_SCORE = -1e29;

/** Widths and heights grow by 1000 / 16 at most, as in torchvision's BoxCoder. */
const LARGEST_GROWTH = Math.log(1000 / 16);

interface Level {
  readonly height: number;
  readonly width: number;
  readonly strideH: number;
  readonly strideW: number;
}

/** The anchors of all levels, which depend on the image's size alone. */
const anchorGrid: Rule = (b, node) => {
  const { levels } = node.attrs as { levels: readonly Level[] };
  const anchors: number[] = [];
  for (const [level, { height, width, strideH, strideW }] of levels.entries()) {
    const source = node.inputs[level]!.node;
    if (source?.op.kind !== "constant") {
      throw new DlfsError(ErrorCode.unsupported, b.path || "anchors", "computed cell anchors cannot be exported");
    }
    const { values: cells } = source.attrs as { values: ArrayLike<number> };
    for (let y = 0; y < height; ++y) {
      for (let x = 0; x < width; ++x) {
        for (let i = 0; i < cells.length; ++i) {
          const shift = Math.fround(i % 2 === 0 ? x * strideW : y * strideH);
          anchors.push(Math.fround(shift + Math.fround(cells[i]!)));
        }
      }
    }
  }
  b.output(node.outputs[0]!, b.floats(anchors, [anchors.length / 4, 4]));
};

/** Numbers of the last dimension of x (N, K, columns) from `start`. */
const columns = (b: GraphBuilder, x: string, start: number, count: number) => sliceOf(b, x, 2, start, count);

/** x with a dimension of size 1 at `axis`. */
const unsqueeze = (b: GraphBuilder, x: string, axis: number) => b.add("Unsqueeze", [x, b.ints([axis])]);

/** Rows of x (N, A, columns) by index (N, K): (N, K, columns). */
function gatherRows(b: GraphBuilder, x: string, index: string): string {
  return b.add("GatherND", [x, unsqueeze(b, index, 2)], { batch_dims: { int: 1 } });
}

/** Widths and heights, and centres, of anchors (N, K, 4): (N, K, 2) each. */
function sizesAndCentres(b: GraphBuilder, anchors: string): [sizes: string, centres: string] {
  const [low, high] = [columns(b, anchors, 0, 2), columns(b, anchors, 2, 2)];
  const sizes = b.add("Sub", [high, low]);
  return [sizes, b.add("Add", [low, b.add("Mul", [sizes, b.floats(0.5)])])];
}

/** torchvision's BoxCoder.decode_single: boxes (N, K, 4) from deltas and anchors (N, K, 4). */
function decodeBoxes(b: GraphBuilder, deltas: string, anchors: string, weights: readonly number[]): string {
  const [size, centre] = sizesAndCentres(b, anchors);
  const weighted = (start: number) => {
    const pair = weights.slice(start, start + 2);
    const part = columns(b, deltas, start, 2);
    return pair.every((weight) => weight === 1) ? part : b.add("Div", [part, b.floats(pair)]);
  };
  const moved = b.add("Add", [b.add("Mul", [weighted(0), size]), centre]);
  const growth = b.add("Exp", [b.add("Min", [weighted(2), b.floats(LARGEST_GROWTH)])]);
  const half = b.add("Mul", [b.add("Mul", [growth, size]), b.floats(0.5)]);
  return b.add("Concat", [b.add("Sub", [moved, half]), b.add("Add", [moved, half])], { axis: { int: 2 } });
}

/** torchvision's BoxLinearCoder.decode_single: the deltas are the sides' distances from the centre, in sizes of the anchor. */
function decodeDistances(b: GraphBuilder, deltas: string, anchors: string): string {
  const [size, centre] = sizesAndCentres(b, anchors);
  const distance = (start: number) => b.add("Mul", [columns(b, deltas, start, 2), size]);
  const sides = [b.add("Sub", [centre, distance(0)]), b.add("Add", [centre, distance(2)])];
  return b.add("Concat", sides, { axis: { int: 2 } });
}

/** Boxes (N, K, 4) clipped to sizes (N, 2), height and width. */
function clipBoxes(b: GraphBuilder, boxes: string, sizes: string): string {
  const limits = unsqueeze(b, b.add("Gather", [sizes, b.ints([1, 0, 1, 0])], { axis: { int: 1 } }), 1);
  return b.add("Min", [b.add("Max", [boxes, b.floats(0)]), limits]);
}

interface SelectionAttrs {
  readonly scoreThreshold: number;
  readonly topK: number;
  readonly weights: readonly number[];
}

interface LevelAttrs extends SelectionAttrs {
  readonly layout: { readonly levels: number; readonly columns: number };
  readonly points: boolean;
  readonly coder: "centre" | "linear";
}

/**
 * Boxes, scores and labels of the candidates that have been chosen. Those at or below the threshold keep their places with the
 * class -1.
 *
 * @param chosen their scores (N, K), anchors (N, K), classes (N, K) or (1, K), and the deltas of all anchors (N, A, 4)
 */
function candidates(
  b: GraphBuilder,
  node: Node,
  chosen: { scores: string; deltas: string; index: string; labels: string },
  classes: number,
  coder: LevelAttrs["coder"],
): void {
  const { scores, deltas, index, labels } = chosen;
  const [anchors, sizes] = node.inputs.slice(-2) as [Value, Value];
  const { scoreThreshold, weights } = node.attrs as SelectionAttrs;
  const [own, from] = [gatherRows(b, deltas, index), b.add("Gather", [b.input(anchors), index])];
  const decoded = coder === "centre" ? decodeBoxes(b, own, from, weights) : decodeDistances(b, own, from);
  const passes = b.add("Greater", [scores, b.floats(scoreThreshold)]);
  const [boxesOut, scoresOut, labelsOut] = node.outputs as [Value, Value, Value];
  b.output(boxesOut, clipBoxes(b, decoded, b.input(sizes)));
  b.output(scoresOut, scores);
  b.output(labelsOut, b.add("Where", [passes, labels, b.ints(-1)]));
  b.classCounts.set(labelsOut, classes);
}

/** sqrt(sigmoid(logits) * sigmoid(centerness)), logits (N, A, classes) and centerness (N, A, 1). */
function pointScores(b: GraphBuilder, logits: string, centerness: string): string {
  const [own, centre] = [logits, centerness].map((x) => b.add("Sigmoid", [x]));
  return b.add("Sqrt", [b.add("Mul", [own!, centre!])]);
}

/** On each level the best scores of all classes together. */
const selectCandidates: Rule = (b, node) => {
  const { layout, topK, points, coder } = node.attrs as LevelAttrs;
  const { levels, columns: classes } = layout;
  const best: string[] = [];
  const anchorsOf: string[] = [];
  const classesOf: string[] = [];
  const deltasOf: string[] = [];
  let first = 0;
  for (let level = 0; level < levels; ++level) {
    const map = (head: number) => node.inputs[head * levels + level] as Value;
    const count = elementCount(map(0).shape.slice(1)) / classes;
    const rows = (head: number, numbers: number) => b.add("Reshape", [b.input(map(head)), b.ints([0, count, numbers])]);
    const scores = points ? pointScores(b, rows(0, classes), rows(2, 1)) : b.input(map(0));
    const flat = b.add("Reshape", [scores, b.ints([0, count * classes])]);
    const kept = Math.min(topK, count * classes);
    // The best logits have the best sigmoids.
    const [values, index] = b.addMany("TopK", [flat, b.ints([kept])], 2, { axis: { int: 1 } }) as [string, string];
    best.push(values);
    anchorsOf.push(b.add("Add", [b.add("Div", [index, b.ints(classes)]), b.ints(first)]));
    classesOf.push(b.add("Mod", [index, b.ints(classes)]));
    deltasOf.push(rows(1, 4));
    first += count;
  }
  const join = (parts: string[]) => (parts.length === 1 ? parts[0]! : b.add("Concat", parts, { axis: { int: 1 } }));
  const scores = points ? join(best) : b.add("Sigmoid", [join(best)]);
  const chosen = { scores, deltas: join(deltasOf), index: join(anchorsOf), labels: join(classesOf) };
  candidates(b, node, chosen, classes, coder);
};

/** Of each class but the first, the background, its best scores: (N, 1 + classes, A). */
const selectClassCandidates: Rule = (b, node) => {
  const { topK } = node.attrs as SelectionAttrs;
  const [input] = node.inputs as [Value];
  const [, rows, anchors] = input.shape as [number, number, number];
  const [classes, kept] = [rows - 1, Math.min(topK, anchors)];
  const foreground = sliceOf(b, b.input(input), 1, 1, classes);
  const [values, index] = b.addMany("TopK", [foreground, b.ints([kept])], 2, { axis: { int: 2 } }) as [string, string];
  const flat = (x: string) => b.add("Reshape", [x, b.ints([0, classes * kept])]);
  const numbers = b.ints(Array.from({ length: classes * kept }, (_, i) => Math.floor(i / kept)));
  const deltas = b.input(node.inputs[1] as Value);
  const chosen = { scores: flat(values), deltas, index: flat(index), labels: unsqueeze(b, numbers, 0) };
  candidates(b, node, chosen, classes, "centre");
};

interface SuppressionAttrs {
  readonly nmsThreshold: number;
  readonly maxDetections: number;
  readonly classAware: boolean;
}

/** Suppression within each class, or of all together, then the best of all classes in order, padded with zeros. */
const suppress: Rule = (b, node) => {
  const { nmsThreshold, maxDetections, classAware } = node.attrs as SuppressionAttrs;
  const [boxesIn, scoresIn, labelsIn] = node.inputs as [Value, Value, Value];
  const [boxes, scores, labels] = [b.input(boxesIn), b.input(scoresIn), b.input(labelsIn)];
  const classes = b.classCounts.get(labelsIn);
  if (classes === undefined) {
    throw new DlfsError(
      ErrorCode.unsupported,
      b.path || "nms",
      "suppression of boxes whose classes were not selected here",
    );
  }
  // (N, classes, K): each candidate's score in the row of its class; or (N, 1, K).
  const rows = unsqueeze(b, b.ints(Array.from({ length: classes }, (_, i) => i)), 1);
  const label3d = unsqueeze(b, labels, 1);
  const own = classAware ? b.add("Equal", [label3d, rows]) : b.add("Greater", [label3d, b.ints(-1)]);
  const byClass = b.add("Where", [own, unsqueeze(b, scores, 1), b.floats(NO_SCORE)]);
  const limits = [b.ints([maxDetections]), b.floats([nmsThreshold]), b.floats([ANY_SCORE])];
  const selected = b.add("NonMaxSuppression", [boxes, byClass, ...limits]);
  // Image and candidate of each kept box; what is not among them is left out of the order by score.
  const places = b.add("Gather", [selected, b.ints([0, 2])], { axis: { int: 1 } });
  const zeros = b.add("ConstantOfShape", [b.add("Shape", [scores])]);
  const ones = b.add("Add", [b.add("GatherND", [zeros, places]), b.floats(1)]);
  const kept = b.add("Greater", [b.add("ScatterND", [zeros, places, ones]), b.floats(0.5)]);
  const ranked = b.add("Where", [kept, scores, b.floats(NO_SCORE)]);
  const most = Math.min(maxDetections, scoresIn.shape[1]!);
  const [values, index] = b.addMany("TopK", [ranked, b.ints([most])], 2, { axis: { int: 1 } }) as [string, string];
  const valid = b.add("Greater", [values, b.floats(ANY_SCORE)]);
  const chosenLabels = b.add("GatherElements", [labels, index], { axis: { int: 1 } });
  const label = b.add("Cast", [unsqueeze(b, chosenLabels, 2)], { to: { int: 1 } });
  const all = b.add("Concat", [gatherRows(b, boxes, index), unsqueeze(b, values, 2), label], { axis: { int: 2 } });
  let detections = b.add("Where", [unsqueeze(b, valid, 2), all, b.floats(0)]);
  if (most < maxDetections) {
    detections = b.add("Pad", [detections, b.ints([0, 0, 0, 0, maxDetections - most, 0])]);
  }
  const counted = b.add("Cast", [valid], { to: { int: 6 } });
  b.output(node.outputs[0]!, detections);
  b.output(node.outputs[2]!, b.add("ReduceSum", [counted, b.ints([1])], { keepdims: { int: 0 } }));
};

const softSuppress: Rule = (b) => {
  const message =
    "soft suppression cannot be exported, ONNX has no operator for it: " +
    "export without post-processing, or a model with hard suppression";
  throw new DlfsError(ErrorCode.unsupported, b.path || "soft_nms", message);
};

export const detectionRules: Readonly<Record<string, Rule>> = {
  anchor_grid: anchorGrid,
  nms: suppress,
  select_candidates: selectCandidates,
  select_class_candidates: selectClassCandidates,
  soft_nms: softSuppress,
};

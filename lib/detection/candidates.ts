/** Selection of the best candidates for suppression: their boxes (N, K, 4), scores (N, K) and labels (N, K), -1 for none. */
import {
  applyOp,
  expectActivation,
  expectShape,
  type Node,
  type Op,
  type Spec,
  scratchMemory,
  type Value,
} from "../graph";
import { constants } from "../native";
import { align, type Device, dtypeCode, dtypeSize } from "../tensor";
import type { BoxCoder, BoxCoderWeights } from "./losses";

export interface Candidates {
  /** (N, K, 4) fp32, clipped to the image. */
  readonly boxes: Value;
  /** (N, K) fp32. */
  readonly scores: Value;
  /** (N, K) int32, -1 where there is no candidate. */
  readonly labels: Value;
}

interface SelectionAttrs {
  readonly scoreThreshold: number;
  readonly topK: number;
  readonly weights: BoxCoderWeights;
}

/** Specs of K candidates of each of n images. */
function candidateSpecs(n: number, k: number): Spec[] {
  return [
    { shape: [n, k, 4], dtype: "f32" },
    { shape: [n, k], dtype: "f32" },
    { shape: [n, k], dtype: "i32" },
  ];
}

function expectOperands([, deltas, anchors, sizes]: readonly Spec[], n: number, a: number): void {
  expectActivation(deltas!, "box deltas");
  expectShape(
    deltas!.shape.join() === `${n},${a},4`,
    () => `box deltas should have shape (${n}, ${a}, 4), got (${deltas!.shape.join(", ")})`,
  );
  expectShape(
    anchors!.shape.join() === `${a},4`,
    () => `anchors should have shape (${a}, 4), got (${anchors!.shape.join(", ")})`,
  );
  expectShape(
    sizes!.shape.join() === `${n},2`,
    () => `image sizes should have shape (${n}, 2), got (${sizes!.shape.join(", ")})`,
  );
}

function topkScratch(device: Device, rows: number, length: number, k: number): number {
  return scratchMemory((out) => device.native.topkWorkspace(device.handle, out, rows, length, k)).workspace;
}

interface LevelAttrs extends SelectionAttrs {
  /** Anchors of each level. */
  readonly levels: readonly number[];
  /** Scores are the sigmoids of the first input, or the input itself. */
  readonly scores: "sigmoid" | "values";
  readonly coder: BoxCoder;
}

/** Candidates that level `anchors` contributes: at most topK. */
function kept(anchors: number, classes: number, topK: number): number {
  return Math.min(topK, anchors * classes);
}

const selectByLevel: Op<LevelAttrs> = {
  kind: "select_candidates",
  infer(inputs, { levels, topK }) {
    const [logits] = inputs;
    expectActivation(logits!, "class scores");
    expectShape(
      logits!.shape.length === 3,
      () => `class scores should have shape (N, A, classes), got (${logits!.shape.join(", ")})`,
    );
    const [n, a, classes] = logits!.shape as [number, number, number];
    expectOperands(inputs, n, a);
    const total = levels.reduce((sum, count) => sum + count, 0);
    expectShape(total === a, () => `the levels have ${total} anchors, the logits ${a}`);
    return candidateSpecs(
      n,
      levels.reduce((sum, count) => sum + kept(count, classes, topK), 0),
    );
  },
  prepare(device: Device, { inputs: [logits], outputs: [, scores], attrs }: Node<LevelAttrs>) {
    const [n, , classes] = logits!.shape as [number, number, number];
    const sizes = attrs.levels.map((count) =>
      topkScratch(device, n, count * classes, kept(count, classes, attrs.topK)),
    );
    // The chosen indices come first, the selection's own scratch memory behind them.
    return { workspace: align(scores!.shape[0]! * scores!.shape[1]! * 4) + Math.max(...sizes) };
  },
  emit(e, { inputs: [logits, deltas, anchors, sizes], outputs: [boxes, scores, labels], attrs }) {
    const [n, a, classes] = logits!.shape as [number, number, number];
    const row = scores!.shape[1]!;
    const [dtype, deltaType] = [dtypeCode(logits!.dtype), dtypeCode(deltas!.dtype)];
    const [bytes, deltaBytes] = [dtypeSize(logits!.dtype), dtypeSize(deltas!.dtype)];
    const [boxDst, scoreDst, labelDst] = [e.address(boxes!), e.address(scores!), e.address(labels!)];
    const [x, d, anchorSrc, imageSizes] = [
      e.address(logits!),
      e.address(deltas!),
      e.address(anchors!),
      e.address(sizes!),
    ];
    const indices = e.workspace!;
    const scratch = indices + align(n * row * 4);
    const { scoreThreshold, topK, weights } = attrs;
    const kind = attrs.scores === "sigmoid" ? constants.SCORES_SIGMOID : constants.SCORES_VALUES;
    const coder = attrs.coder === "linear" ? constants.CODER_LINEAR : constants.CODER_CENTRE;
    let [anchor, column] = [0, 0];
    for (const count of attrs.levels) {
      const k = kept(count, classes, topK);
      const [levelLogits, levelDeltas] = [x + anchor * classes * bytes, d + anchor * 4 * deltaBytes];
      const levelAnchors = anchorSrc + anchor * 16;
      const [scoreAt, indexAt, boxAt, labelAt] = [
        scoreDst + column * 4,
        indices + column * 4,
        boxDst + column * 16,
        labelDst + column * 4,
      ];
      const [rows, strides] = [[n, count * classes, a * classes] as const, [n, k, row, a * 4] as const];
      e.call(() =>
        e.native.topk(e.stream, scoreAt, indexAt, levelLogits, scratch, ...rows, k, row, dtype, kind, scoreThreshold),
      );
      e.call(() =>
        e.native.decodeCandidates(
          e.stream,
          boxAt,
          labelAt,
          indexAt,
          levelDeltas,
          levelAnchors,
          imageSizes,
          ...strides,
          classes,
          0,
          coder,
          deltaType,
          ...weights,
        ),
      );
      anchor += count;
      column += k;
    }
  },
};

/** On each level the topK scores above the threshold, of all classes together: scores (N, A, classes). */
export function selectFromLevels(
  [scores, deltas, anchors, imageSizes]: readonly [Value, Value, Value, Value],
  attrs: LevelAttrs,
): Candidates {
  const [boxes, best, labels] = applyOp(selectByLevel, [scores, deltas, anchors, imageSizes], attrs) as [
    Value,
    Value,
    Value,
  ];
  return { boxes, scores: best, labels };
}

const selectByClass: Op<SelectionAttrs> = {
  kind: "select_class_candidates",
  infer(inputs, { topK }) {
    const [scores] = inputs;
    expectActivation(scores!, "class scores");
    expectShape(
      scores!.shape.length === 3 && scores!.shape[1]! > 1,
      () => `class scores should have shape (N, 1 + classes, A), got (${scores!.shape.join(", ")})`,
    );
    const [n, rows, a] = scores!.shape as [number, number, number];
    expectOperands(inputs, n, a);
    return candidateSpecs(n, (rows - 1) * kept(a, 1, topK));
  },
  prepare(device: Device, { inputs: [input], outputs: [, scores], attrs }: Node<SelectionAttrs>) {
    const [, rows, a] = input!.shape as [number, number, number];
    const scratch = topkScratch(device, rows - 1, a, kept(a, 1, attrs.topK));
    return { workspace: align(scores!.shape[0]! * scores!.shape[1]! * 4) + scratch };
  },
  emit(e, { inputs: [input, deltas, anchors, sizes], outputs: [boxes, scores, labels], attrs }) {
    const [n, rows, a] = input!.shape as [number, number, number];
    const [classes, row, perClass] = [rows - 1, scores!.shape[1]!, kept(a, 1, attrs.topK)];
    const [dtype, bytes, deltaType] = [dtypeCode(input!.dtype), dtypeSize(input!.dtype), dtypeCode(deltas!.dtype)];
    const [boxDst, scoreDst, labelDst] = [e.address(boxes!), e.address(scores!), e.address(labels!)];
    const [x, d, anchorSrc, imageSizes] = [
      e.address(input!),
      e.address(deltas!),
      e.address(anchors!),
      e.address(sizes!),
    ];
    const indices = e.workspace!;
    const scratch = indices + align(n * row * 4);
    const { scoreThreshold, weights } = attrs;
    for (let image = 0; image < n; ++image) {
      // the classes' rows of this image, without the background's
      const src = x + (image * rows + 1) * a * bytes;
      const [scoreAt, indexAt] = [scoreDst + image * row * 4, indices + image * row * 4];
      const k = [perClass, perClass, dtype, constants.SCORES_VALUES, scoreThreshold] as const;
      e.call(() => e.native.topk(e.stream, scoreAt, indexAt, src, scratch, classes, a, a, ...k));
    }
    const layout = [n, row, row, a * 4, classes, perClass, constants.CODER_CENTRE, deltaType] as const;
    e.call(() =>
      e.native.decodeCandidates(e.stream, boxDst, labelDst, indices, d, anchorSrc, imageSizes, ...layout, ...weights),
    );
  },
};

/** Of each class the topK scores above the threshold: scores (N, 1 + classes, A), of which the background's are left out. */
export function selectFromClasses(
  [scores, deltas, anchors, imageSizes]: readonly [Value, Value, Value, Value],
  attrs: SelectionAttrs,
): Candidates {
  const [boxes, best, labels] = applyOp(selectByClass, [scores, deltas, anchors, imageSizes], attrs) as [
    Value,
    Value,
    Value,
  ];
  return { boxes, scores: best, labels };
}

const scorePoints: Op = {
  kind: "point_scores",
  infer([logits, centerness]) {
    expectActivation(logits!, "logits");
    expectShape(
      logits!.shape.length === 3,
      () => `logits should have shape (N, A, classes), got (${logits!.shape.join(", ")})`,
    );
    const [n, a] = logits!.shape;
    expectShape(
      centerness!.dtype === logits!.dtype && [`${n},${a}`, `${n},${a},1`].includes(centerness!.shape.join()),
      () =>
        `centerness should be ${logits!.dtype} (${n}, ${a}), got ${centerness!.dtype} (${centerness!.shape.join(", ")})`,
    );
    return [{ shape: logits!.shape, dtype: "f32" }];
  },
  emit(e, { inputs: [logits, centerness], outputs: [scores] }) {
    const [dst, x, c] = [e.address(scores!), e.address(logits!), e.address(centerness!)];
    const [n, a, classes] = logits!.shape as [number, number, number];
    const dtype = dtypeCode(logits!.dtype);
    e.call(() => e.native.pointScores(e.stream, dst, x, c, n, a, classes, dtype));
  },
};

/** sqrt(sigmoid(logits) * sigmoid(centerness)) (N, A, classes) fp32, of logits (N, A, classes) and (N, A) or (N, A, 1). */
export function pointScores(logits: Value, centerness: Value): Value {
  return applyOp(scorePoints, [logits, centerness], {})[0] as Value;
}

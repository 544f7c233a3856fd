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
import { check, constants } from "../native";
import { align, type Device, dtypeCode, dtypeSize } from "../tensor";
import { cellCounts, expectMaps, type LevelLayout, type LevelMaps, layoutOf, listOf, mapArrays } from "./levels";
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

/** Checks the anchors and the sizes of n images. */
function expectAnchors(anchors: Spec, sizes: Spec, n: number, a: number): void {
  expectShape(
    anchors.shape.join() === `${a},4`,
    () => `anchors should have shape (${a}, 4), got (${anchors.shape.join(", ")})`,
  );
  expectShape(
    sizes.shape.join() === `${n},2`,
    () => `image sizes should have shape (${n}, 2), got (${sizes.shape.join(", ")})`,
  );
}

function expectOperands([, deltas, anchors, sizes]: readonly Spec[], n: number, a: number): void {
  expectActivation(deltas!, "box deltas");
  expectShape(
    deltas!.shape.join() === `${n},${a},4`,
    () => `box deltas should have shape (${n}, ${a}, 4), got (${deltas!.shape.join(", ")})`,
  );
  expectAnchors(anchors!, sizes!, n, a);
}

function topkScratch(device: Device, rows: number, length: number, k: number): number {
  return scratchMemory((out) => device.native.topkWorkspace(device.handle, out, rows, length, k)).workspace;
}

interface LevelAttrs extends SelectionAttrs {
  /** Of the class logits. */
  readonly layout: LevelLayout;
  /** Scores take a centre-ness in. */
  readonly points: boolean;
  readonly coder: BoxCoder;
}

/** Candidates that so many anchors of a level contribute: at most topK. */
function kept(anchors: number, classes: number, topK: number): number {
  return Math.min(topK, anchors * classes);
}

/** Inputs by name: the maps of the class logits, the deltas and, for points, the centre-ness; anchors and image sizes. */
function levelInputs<T>(inputs: readonly T[], { layout: { levels }, points }: LevelAttrs) {
  const maps = (head: number) => inputs.slice(head * levels, (head + 1) * levels);
  const [anchors, sizes] = inputs.slice(-2) as [T, T];
  return { logits: maps(0), deltas: maps(1), centerness: points ? maps(2) : [], anchors, sizes };
}

const selectByLevel: Op<LevelAttrs> = {
  kind: "select_candidates",
  padded: ({ inputs }) => inputs.slice(0, -2).map((_, slot) => slot),
  infer(inputs, attrs) {
    const { logits, deltas, centerness, anchors, sizes } = levelInputs(inputs, attrs);
    const { layout, topK, points } = attrs;
    const a = expectMaps(logits, layout, "logits", "classes");
    const [{ shape, dtype }] = logits as [Spec];
    const alike = (maps: readonly Spec[], columns: number, what: string) => {
      const count = expectMaps(maps, { ...layout, columns }, what, `${columns}`);
      const [{ shape: own, dtype: type }] = maps as [Spec];
      expectShape(
        count === a && own[0] === shape[0] && type === dtype,
        () => `expected ${what} ${dtype} of ${shape[0]} images and ${a} anchors, got ${type}, ${own[0]} and ${count}`,
      );
    };
    alike(deltas, 4, "box deltas");
    if (points) alike(centerness, 1, "centre-ness");
    expectAnchors(anchors, sizes, shape[0]!, a);
    const row = cellCounts(logits).reduce((sum, cells) => sum + kept(cells * layout.perCell, layout.columns, topK), 0);
    return candidateSpecs(shape[0]!, row);
  },
  prepare(device, { inputs, attrs }) {
    const { logits } = levelInputs(inputs, attrs);
    const { levels, perCell, columns } = attrs.layout;
    const [cells, n] = [Int32Array.from(cellCounts(logits)), logits[0]!.shape[0]!];
    const sizes = [levels, n, perCell, columns, attrs.topK] as const;
    return scratchMemory((out) => device.native.selectCandidatesWorkspace(device.handle, out, cells, ...sizes));
  },
  emit(e, { inputs, outputs, attrs }) {
    const { logits, deltas, centerness, anchors, sizes } = levelInputs(inputs, attrs);
    const { layout, scoreThreshold, topK, weights, coder } = attrs;
    const [boxes, scores, labels] = outputs.map((value) => e.address(value)) as [number, number, number];
    const [scored, moved] = [mapArrays(e, logits), mapArrays(e, deltas)];
    const none = { addresses: new BigInt64Array(layout.levels), pitches: new Int32Array(layout.levels) };
    const centre = attrs.points ? mapArrays(e, centerness) : none;
    const maps = [scored.addresses, centre.addresses, moved.addresses] as const;
    const operands = [e.address(anchors), e.address(sizes), e.workspace] as const;
    const shapes = [scored.cells, scored.pitches, centre.pitches, moved.pitches] as const;
    const counts = [layout.levels, logits[0]!.shape[0]!, layout.perCell, layout.columns, topK] as const;
    const code = coder === "linear" ? constants.CODER_LINEAR : constants.CODER_CENTRE;
    const rules = [code, dtypeCode(logits[0]!.dtype), scoreThreshold, ...weights] as const;
    e.call(() =>
      e.native.selectCandidates(e.stream, boxes, scores, labels, ...maps, ...operands, ...shapes, ...counts, ...rules),
    );
  },
};

export interface LevelSelection extends SelectionAttrs {
  readonly coder: BoxCoder;
}

/** What the selection on each level reads. */
export interface LevelHeads {
  /** (N, h, w, perCell * classes) of each level, or (N, A, classes) of its anchors. */
  readonly logits: LevelMaps;
  /** (N, h, w, perCell * 4) of each level, or (N, A, 4). */
  readonly deltas: LevelMaps;
  /** (N, h, w, perCell) of each level, or (N, A, 1); scores are then sqrt(sigmoid(logit) * sigmoid(centre-ness)), as FCOS's. */
  readonly centerness?: LevelMaps | undefined;
  /** (A, 4) */
  readonly anchors: Value;
  /** (N, 2) fp32: height, width in pixels of the network's input, which boxes are clipped to. */
  readonly imageSizes: Value;
}

/** On each level the topK scores above the threshold, of all classes together. */
export function selectFromLevels(
  { logits, deltas, centerness, anchors, imageSizes }: LevelHeads,
  selection: LevelSelection,
): Candidates {
  const maps = listOf(logits);
  const heads = [maps, listOf(deltas), ...(centerness ? [listOf(centerness)] : [])];
  check(
    heads.every(({ length }) => length === maps.length),
    "selectFromLevels",
    () => `expected as many levels of each head, got ${heads.map(({ length }) => length).join(", ")}`,
  );
  const attrs: LevelAttrs = {
    ...selection,
    layout: layoutOf(maps, anchors.shape[0] ?? 1),
    points: centerness !== undefined,
  };
  const found = applyOp(selectByLevel, [...heads.flat(), anchors, imageSizes], attrs);
  const [boxes, scores, labels] = found as [Value, Value, Value];
  return { boxes, scores, labels };
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

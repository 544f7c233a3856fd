/** Top-k, candidate decoding, non-maximum suppression, detections. */
import { constants } from "../../../lib/native";
import { outHandle } from "../../../lib/tensor";
import { backend } from "../../support/device";
import { loadGolden } from "../../support/golden";
import type { Random } from "../../support/random";
import * as reference from "../reference/postprocess";
import { type Input, type OpCase, recorded } from "./case";
import { LevelMaps, type MapOptions } from "./level-maps";
import { nms, softNms } from "./suppression";

const f32 = { kind: "f32" } as const;
const i32 = { kind: "i32" } as const;
const fp32Only: Pick<OpCase, "dtypes"> = { dtypes: ["f32"] };

interface TopkOptions {
  n: number;
  m: number;
  k: number;
  threshold: number;
  /** What scores are; default sigmoids. */
  kind?: "sigmoid" | "values";
  /** Elements between rows; default packed. */
  logitsStride?: number;
  rowStride?: number;
  values?: Input["values"];
}

/** Logits of few different values: most candidates tie. */
const tied = (random: Random, size: number) => Float32Array.from(random.integers(size, -4, 5), (v) => v / 2);

/** Result elements between rows belong to other levels and keep what they hold: result arrays start with a pattern. */
const background =
  (value: number): Input["values"] =>
  (_random, size) =>
    new Float32Array(size).fill(value);

export function topk(
  name: string,
  { n, m, k, threshold, kind = "sigmoid", logitsStride = m, rowStride = k, values }: TopkOptions,
): OpCase {
  return {
    op: "topk",
    name,
    inputs: {
      logits: { shape: [n, logitsStride], values: values ?? ((random, size) => random.distinct(size, -8, 4)) },
      oldScores: { shape: [n, rowStride], ...f32, values: background(-7) },
      oldIndex: { shape: [n, rowStride], ...i32, values: background(-7) },
    },
    outputs: {
      scores: { shape: [n, rowStride], ...f32, inPlaceOf: "oldScores" },
      index: { shape: [n, rowStride], ...i32, inPlaceOf: "oldIndex" },
    },
    prepare(c) {
      const bytes = outHandle();
      c.native.topkWorkspace(c.device.handle, bytes.view, n, m, k);
      const scratch = c.workspace(bytes.value);
      const [scores, index, logits] = ["scores", "index", "logits"].map((operand) => c.address(operand));
      return () =>
        void c.native.topk(
          c.stream,
          scores!,
          index!,
          logits!,
          scratch,
          n,
          m,
          logitsStride,
          k,
          rowStride,
          c.dtype,
          kind === "sigmoid" ? constants.SCORES_SIGMOID : constants.SCORES_VALUES,
          threshold,
        );
    },
    reference({ logits, oldScores, oldIndex }) {
      const [scores, index] = [Float64Array.from(oldScores!), Int32Array.from(oldIndex!)];
      for (let row = 0; row < n; ++row) {
        const best = reference.topk(
          Array.from(logits!).slice(row * logitsStride, row * logitsStride + m),
          k,
          threshold,
          kind,
        );
        scores.set(best.scores, row * rowStride);
        index.set(best.index, row * rowStride);
      }
      return { scores, index };
    },
  };
}

interface CandidateOptions {
  n: number;
  k: number;
  anchors: number;
  classes: number;
  rowStride?: number;
  deltasStride?: number;
  /** Candidates of each class; default 0, candidates of all classes mixed. */
  perClass?: number;
  /** Default "centre". */
  coder?: "centre" | "linear";
  weights?: readonly [number, number, number, number];
}

export function decodeCandidates(name: string, options: CandidateOptions): OpCase {
  const {
    n,
    k,
    anchors,
    classes,
    rowStride = k,
    deltasStride = anchors * 4,
    perClass = 0,
    coder = "centre",
    weights = [1, 1, 1, 1] as const,
  } = options;
  const indices = perClass > 0 ? anchors : anchors * classes;
  const sizes = Array.from({ length: n }, (_, i) => [60 + 10 * i, 90 - 5 * i]);
  return {
    op: "decode_candidates",
    name,
    inputs: {
      index: {
        shape: [n, rowStride],
        ...i32,
        values: (random, size) => random.integers(size, 0, indices).map((v, i) => (i % rowStride > k - 3 ? -1 : v)),
      },
      deltas: { shape: [n, deltasStride], values: (random, size) => random.normal(size, 0, 0.7) },
      anchors: { shape: [anchors, 4], ...f32, values: (random, size) => random.boxes(size / 4, 100) },
      imageSizes: { shape: [n, 2], ...f32, values: () => sizes.flat() },
      oldBoxes: { shape: [n, rowStride, 4], ...f32, values: background(-7) },
      oldLabels: { shape: [n, rowStride], ...i32, values: background(-7) },
    },
    outputs: {
      boxes: { shape: [n, rowStride, 4], ...f32, inPlaceOf: "oldBoxes", tolerance: { rtol: 3e-6, atol: 1e-4 } },
      labels: { shape: [n, rowStride], ...i32, inPlaceOf: "oldLabels" },
    },
    prepare(c) {
      const [boxes, labels, index, deltas, grid, images] = [
        "boxes",
        "labels",
        "index",
        "deltas",
        "anchors",
        "imageSizes",
      ].map((operand) => c.address(operand));
      return () =>
        void c.native.decodeCandidates(
          c.stream,
          boxes!,
          labels!,
          index!,
          deltas!,
          grid!,
          images!,
          n,
          k,
          rowStride,
          deltasStride,
          classes,
          perClass,
          coder === "linear" ? constants.CODER_LINEAR : constants.CODER_CENTRE,
          c.dtype,
          ...weights,
        );
    },
    reference({ index, deltas, anchors: grid, imageSizes, oldBoxes, oldLabels }) {
      const [boxes, labels] = [Float64Array.from(oldBoxes!), Int32Array.from(oldLabels!)];
      for (let row = 0; row < n; ++row) {
        const own = Array.from(deltas!).slice(row * deltasStride, row * deltasStride + anchors * 4);
        for (let i = row * rowStride; i < row * rowStride + k; ++i) {
          const { box, label } = reference.candidate(
            i - row * rowStride,
            index![i]!,
            own,
            grid!,
            { classes, perClass, coder, weights },
            [imageSizes![2 * row]!, imageSizes![2 * row + 1]!],
          );
          boxes.set(box, i * 4);
          labels[i] = label;
        }
      }
      return { boxes, labels };
    },
  };
}

interface SelectOptions extends MapOptions {
  n: number;
  anchors: number;
  classes: number;
  k: number;
  threshold: number;
  /** FCOS's scores. */
  points?: boolean;
  coder?: "centre" | "linear";
  weights?: readonly [number, number, number, number];
  values?: NonNullable<Input["values"]>;
}

export function selectCandidates(name: string, options: SelectOptions): OpCase {
  const { n, anchors, classes, k, threshold, points = false, coder = "centre", weights = [1, 1, 1, 1] } = options;
  const [logits, deltas] = [new LevelMaps(n, anchors, classes, options), new LevelMaps(n, anchors, 4, options)];
  const centerness = new LevelMaps(n, anchors, 1, options);
  const { cells, perCell } = logits;
  const kept = cells.map((count) => Math.min(k, count * perCell * classes));
  const row = kept.reduce((sum, count) => sum + count, 0);
  const sizes = Array.from({ length: n }, (_, i) => [60 + 10 * i, 90 - 5 * i]);
  return {
    op: "select_candidates",
    name,
    inputs: {
      logits: logits.input(options.values ?? ((random, size) => random.distinct(size, -8, 4))),
      ...(points && { centerness: centerness.input((random, size) => random.normal(size, 0, 3)) }),
      deltas: deltas.input((random, size) => random.normal(size, 0, 0.7)),
      anchors: { shape: [anchors, 4], ...f32, values: (random, size) => random.boxes(size / 4, 100) },
      imageSizes: { shape: [n, 2], ...f32, values: () => sizes.flat() },
    },
    outputs: {
      boxes: { shape: [n, row, 4], ...f32, tolerance: { rtol: 3e-6, atol: 1e-4 } },
      scores: { shape: [n, row], ...f32 },
      labels: { shape: [n, row], ...i32 },
    },
    prepare(c) {
      const bytes = outHandle();
      const [scored, centre, moved] = [
        logits.arrays(c, "logits"),
        centerness.arrays(c, "centerness"),
        deltas.arrays(c, "deltas"),
      ];
      const counts = [cells.length, n, perCell, classes, k] as const;
      c.native.selectCandidatesWorkspace(c.device.handle, bytes.view, scored.cells, ...counts);
      const scratch = c.workspace(bytes.value);
      const operands = ["boxes", "scores", "labels", "anchors", "imageSizes"].map((operand) => c.address(operand));
      const [boxes, scores, labels, grid, images] = operands as number[];
      const code = coder === "linear" ? constants.CODER_LINEAR : constants.CODER_CENTRE;
      return () =>
        void c.native.selectCandidates(
          c.stream,
          boxes!,
          scores!,
          labels!,
          scored.at,
          centre.at,
          moved.at,
          grid!,
          images!,
          scratch,
          scored.cells,
          scored.pitches,
          centre.pitches,
          moved.pitches,
          ...counts,
          code,
          c.dtype,
          threshold,
          ...weights,
        );
    },
    reference(inputs) {
      const rows = logits.toRows(inputs.logits!);
      const scored = points ? reference.pointScores(rows, centerness.toRows(inputs.centerness!), classes) : rows;
      const moved = deltas.toRows(inputs.deltas!);
      const grid = Float64Array.from(inputs.anchors!);
      const [boxes, scores] = [new Float64Array(n * row * 4), new Float64Array(n * row)];
      const labels = new Int32Array(n * row);
      let out = 0;
      for (let image = 0; image < n; ++image) {
        let first = image * anchors;
        const last = [inputs.imageSizes![2 * image]!, inputs.imageSizes![2 * image + 1]!] as const;
        for (const [level, count] of cells.entries()) {
          const part = scored.slice(first * classes, (first + count * perCell) * classes);
          const best = reference.topk(part, kept[level]!, threshold, points ? "values" : "sigmoid");
          const start = first - image * anchors;
          const end = 4 * count * perCell;
          const [own, boxesOfLevel] = [moved.slice(4 * first, 4 * first + end), grid.slice(4 * start, 4 * start + end)];
          const layout = { classes, perClass: 0, coder, weights };
          for (const [i, index] of best.index.entries()) {
            const found = reference.candidate(i, index, own, boxesOfLevel, layout, last);
            boxes.set(found.box, 4 * out);
            scores[out] = best.scores[i]!;
            labels[out++] = found.label;
          }
          first += count * perCell;
        }
      }
      return { boxes, scores, labels };
    },
  };
}

function gatherDetections(name: string, n: number, k: number, maxOut: number, kept: number, ownScores = false): OpCase {
  return {
    op: "gather_detections",
    name,
    ...fp32Only,
    inputs: {
      boxes: { shape: [n, k, 4], ...f32, values: (random, size) => random.boxes(size / 4, 100) },
      scores: { shape: [n, k], ...f32 },
      labels: { shape: [n, k], ...i32, values: (random, size) => random.integers(size, 0, 90) },
      keep: {
        shape: [n, maxOut],
        ...i32,
        values: (random, size) => random.integers(size, 0, k).map((v, i) => (i % maxOut < kept ? v : -1)),
      },
      ...(ownScores && { keepScores: { shape: [n, maxOut], ...f32 } }),
    },
    outputs: { detections: { shape: [n, maxOut, 6], ...f32, tolerance: { rtol: 0, atol: 0 } } },
    prepare(c) {
      const [detections, boxes, scores, labels, keep] = ["detections", "boxes", "scores", "labels", "keep"].map(
        (operand) => c.address(operand),
      );
      const own = c.address("keepScores");
      return () =>
        void c.native.gatherDetections(c.stream, detections!, boxes!, scores!, labels!, keep!, own, n, k, maxOut);
    },
    reference({ boxes, scores, labels, keep, keepScores }) {
      const detections = Array.from(keep!).flatMap((i, slot) => {
        const at = Math.floor(slot / maxOut) * k + i;
        return i < 0
          ? [0, 0, 0, 0, 0, 0]
          : [
              ...Array.from({ length: 4 }, (_, d) => boxes![at * 4 + d]!),
              keepScores ? keepScores[slot]! : scores![at]!,
              labels![at]!,
            ];
      });
      return { detections };
    },
  };
}

/** Boxes of a few sizes at a few places, many of them equal, some without area. */
const repeated: Input["values"] = (random, size) => {
  const out = new Float32Array(size);
  for (let i = 0; i < size / 4; ++i) {
    const [x, y, side] = [random.integer(0, 4) * 8, random.integer(0, 4) * 8, [0, 8, 16][random.integer(0, 3)]!];
    out.set([x, y, x + side, y + side], i * 4);
  }
  return out;
};
/** Squares of 10 pixels in a row, each overlapping the next by 6: by index, every second one survives a threshold of 0.3. */
const chain: Input["values"] = (_random, size) =>
  Float32Array.from({ length: size }, (_, i) => 4 * (i >> 2) * ((i & 1) ^ 1) + (i & 2 ? 10 : 0));
/** Squares that do not meet, 100 in a row. */
const apart: Input["values"] = (_random, size) =>
  Float32Array.from({ length: size }, (_, i) => {
    const box = i >> 2;
    return 12 * (i & 1 ? Math.floor(box / 100) : box % 100) + (i & 2 ? 10 : 0);
  });
const tiedScores: Input["values"] = (random, size) => Float32Array.from(random.integers(size, 1, 6), (v) => v / 8);

const goldenCases = loadGolden<{ threshold: number }>("nms").map((golden) => {
  const k = golden.array("scores").length;
  const kept = golden.array("keep");
  const opCase = nms(golden.name, { n: 1, k, maxOut: k, threshold: golden.params.threshold });
  const keep = Int32Array.from({ length: k }, (_, i) => kept[i] ?? -1);
  return recorded(
    opCase,
    { boxes: golden.array("boxes"), scores: golden.array("scores"), labels: golden.array("labels") },
    { keep, counts: [kept.length] },
  );
});

const goldenCoders = loadGolden("detection").flatMap((golden) => {
  if (!golden.has("decoded")) return [];
  const count = golden.shape("anchors")[0]!;
  const options = { n: 1, k: count, anchors: count, classes: 1, coder: "linear" } as const;
  const opCase = decodeCandidates(golden.name, options);
  // images large enough for nothing to be clipped at the far side; torchvision clips elsewhere
  const boxes = golden.array("decoded").map((v) => Math.max(v, 0));
  const inputs = {
    index: Int32Array.from({ length: count }, (_, i) => i),
    deltas: golden.array("deltas"),
    anchors: golden.array("anchors"),
    imageSizes: [1e4, 1e4],
  };
  return [recorded(opCase, inputs, { boxes }, { rtol: 1e-5, atol: 1e-4 })];
});

interface SoftNmsParams {
  kind: "linear" | "gaussian";
  threshold: number;
  sigma: number;
  least: number;
}

const goldenSoftNms = loadGolden<SoftNmsParams>("detection").flatMap((golden) => {
  if (!golden.has("keepScores")) return [];
  const { kind, threshold: iouThreshold, sigma, least: minScore } = golden.params;
  const k = golden.array("scores").length;
  const [kept, scores] = [golden.array("keep"), golden.array("keepScores")];
  const opCase = softNms(golden.name, { n: 1, k, maxOut: k, kind, iouThreshold, sigma, minScore });
  const outputs = {
    keep: Int32Array.from({ length: k }, (_, i) => kept[i] ?? -1),
    counts: [kept.length],
    keepScores: Float32Array.from({ length: k }, (_, i) => scores[i] ?? 0),
  };
  const inputs = { boxes: golden.array("boxes"), scores: golden.array("scores"), labels: golden.array("labels") };
  return [recorded(opCase, inputs, outputs)];
});

/** Three levels of 4 anchors and 5 classes. */
const pyramid = { n: 2, anchors: 4 * 45, classes: 5, cells: [32, 9, 4], perCell: 4 } as const;

export const postprocessCases: OpCase[] = [
  topk("10 of 1000", { n: 2, m: 1000, k: 10, threshold: 0.05 }),
  topk("1 of 1", { n: 1, m: 1, k: 1, threshold: 0.0001 }),
  topk("fewer above the threshold than k", { n: 3, m: 200, k: 150, threshold: 0.5 }),
  topk("none above the threshold", { n: 2, m: 100, k: 5, threshold: 0.999 }),
  topk("k larger than the row", { n: 2, m: 30, k: 100, threshold: 0.01 }),
  topk("all of the row", { n: 1, m: 64, k: 64, threshold: 0 }),
  topk("ties, lower index first", { n: 2, m: 500, k: 40, threshold: 0.2, values: tied }),
  topk("all equal", { n: 2, m: 700, k: 33, threshold: 0.2, values: background(0.5) }),
  topk("a score equal to the threshold is left out", { n: 1, m: 300, k: 300, threshold: 0.5, values: tied }),
  topk("strided rows", { n: 3, m: 90, logitsStride: 137, k: 12, rowStride: 31, threshold: 0.05 }),
  topk("strided rows, ties", { n: 2, m: 400, logitsStride: 401, k: 50, rowStride: 120, threshold: 0.1, values: tied }),
  topk("1000 of 40000", {
    n: 2,
    m: 40000,
    k: 1000,
    threshold: 0.05,
    values: (random, size) => random.distinct(size, -12, 6),
  }),
  topk("1000 of 100001, ties", { n: 1, m: 100001, k: 1000, threshold: 0.05, values: tied }),
  topk("1000 of 100001, most above the threshold", {
    n: 1,
    m: 100001,
    k: 1000,
    threshold: 0.05,
    values: (random, size) => random.distinct(size, -4, 4),
  }),
  topk("all equal, more than are buffered", { n: 2, m: 70000, k: 33, threshold: 0.2, values: background(0.5) }),
  topk("row of the length of a chunk", { n: 1, m: 32768, k: 7, threshold: 0.05 }),
  topk("values: 10 of 1000", { n: 2, m: 1000, k: 10, threshold: 0.05, kind: "values" }),
  topk("values of both signs, threshold below 0", { n: 2, m: 300, k: 200, threshold: -2, kind: "values" }),
  topk("values: ties, one equal to the threshold", {
    n: 2,
    m: 500,
    k: 400,
    threshold: -1,
    kind: "values",
    values: tied,
  }),
  topk("values beyond scores, NaN and infinity", {
    n: 2,
    m: 64,
    k: 20,
    threshold: 1,
    kind: "values",
    values: (random, size) => {
      const values = random.distinct(size, -3000, 3000);
      values.set([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY], 5);
      return values;
    },
  }),
  topk("values: 50 of 40000 of both signs", {
    n: 1,
    m: 40000,
    k: 50,
    threshold: -100,
    kind: "values",
    values: (random, size) => random.distinct(size, -50, -2),
  }),
  topk("values: 5000 of 40000", { n: 1, m: 40000, k: 5000, threshold: 0, kind: "values" }),
  selectCandidates("one level", { n: 2, anchors: 40, classes: 4, k: 12, threshold: 0.05 }),
  selectCandidates("three levels, fewer above the threshold than k", { ...pyramid, k: 30, threshold: 0.3 }),
  selectCandidates("padded levels", { ...pyramid, k: 30, threshold: 0.05, padding: 4, weights: [10, 10, 5, 5] }),
  selectCandidates("padded levels, k larger than a level", { ...pyramid, k: 90, threshold: 0.001, padding: 4 }),
  selectCandidates("padding that is not aligned", { ...pyramid, k: 20, threshold: 0.05, padding: 3 }),
  selectCandidates("none above the threshold", { ...pyramid, k: 5, threshold: 0.999 }),
  selectCandidates("ties, lower index first", { ...pyramid, k: 40, threshold: 0.2, padding: 4, values: tied }),
  selectCandidates("points", {
    ...pyramid,
    perCell: 1,
    anchors: 45,
    points: true,
    k: 20,
    threshold: 0.2,
    coder: "linear",
  }),
  selectCandidates("points, padded, several anchors", { ...pyramid, padding: 4, points: true, k: 20, threshold: 0.1 }),
  selectCandidates("5000 of 40,000 and more than are buffered", {
    n: 2,
    anchors: 10300,
    classes: 4,
    cells: [10000, 300],
    perCell: 1,
    padding: 4,
    k: 5000,
    threshold: 0.001,
    values: (random, size) => random.distinct(size, -6, 6),
  }),
  decodeCandidates("packed rows", { n: 2, k: 20, anchors: 15, classes: 4 }),
  decodeCandidates("strided rows", { n: 3, k: 11, anchors: 9, classes: 7, rowStride: 40, deltasStride: 52 }),
  decodeCandidates("1 class, other weights", { n: 1, k: 30, anchors: 30, classes: 1, weights: [10, 10, 5, 5] }),
  decodeCandidates("linear coder", { n: 2, k: 25, anchors: 40, classes: 3, coder: "linear" }),
  decodeCandidates("candidates of each class", { n: 2, k: 20, anchors: 15, classes: 4, perClass: 5 }),
  decodeCandidates("candidates of the first classes, strided rows", {
    n: 3,
    k: 14,
    anchors: 9,
    classes: 5,
    perClass: 7,
    rowStride: 40,
    deltasStride: 52,
    weights: [10, 10, 5, 5],
  }),
  nms("4 classes", { n: 2, k: 100, maxOut: 100, threshold: 0.5 }),
  nms("fewer wanted than kept", { n: 3, k: 200, maxOut: 10, threshold: 0.5 }),
  nms("more wanted than there are", { n: 1, k: 20, maxOut: 50, threshold: 0.5 }),
  nms("not class-aware", { n: 2, k: 150, maxOut: 100, threshold: 0.3, classAware: false }),
  nms("1 candidate", { n: 2, k: 1, maxOut: 1, threshold: 0.5, labels: background(0) }),
  nms("all left out", { n: 2, k: 33, maxOut: 10, threshold: 0.5, labels: background(-1) }),
  nms("tied scores and equal boxes", { n: 2, k: 120, maxOut: 60, threshold: 0.5, boxes: repeated, scores: tiedScores }),
  nms("IoU equal to the threshold is kept", {
    n: 1,
    k: 64,
    maxOut: 64,
    threshold: 0.25,
    boxes: repeated,
    scores: tiedScores,
    classes: 1,
  }),
  nms("threshold 0", { n: 1, k: 80, maxOut: 80, threshold: 0, extent: 200 }),
  nms("threshold 1 keeps all", { n: 1, k: 40, maxOut: 40, threshold: 1, labels: background(2) }),
  nms("2000 candidates that overlap much", { n: 1, k: 2000, maxOut: 300, threshold: 0.6, extent: 100, classes: 3 }),
  nms("4097 candidates that overlap little", {
    n: 1,
    k: 4097,
    maxOut: 1000,
    threshold: 0.5,
    extent: 3000,
    classes: 80,
  }),
  nms("700 classes, also of large numbers", {
    n: 2,
    k: 5000,
    maxOut: 3000,
    threshold: 0.3,
    extent: 100,
    labels: (random, size) => random.integers(size, 0, 700).map((v) => (v % 5 === 0 ? 2 ** 31 - 1 - v : v)),
  }),
  nms("candidates in some images only", {
    n: 4,
    k: 700,
    maxOut: 300,
    threshold: 0.5,
    labels: (random, size) => random.integers(size, 0, 3).map((v, i) => (Math.floor(i / 700) % 2 === 0 ? -1 : v)),
  }),
  nms("a chain, each suppressing the next", {
    n: 1,
    k: 1500,
    maxOut: 1500,
    threshold: 0.3,
    boxes: chain,
    scores: (_random, size) => Float32Array.from({ length: size }, (_, i) => 1 - i / size),
    labels: background(3),
  }),
  nms("1 class, all kept", { n: 2, k: 1500, maxOut: 1500, threshold: 0, boxes: apart, labels: background(7) }),
  nms("1 class, equal scores, all kept, few wanted", {
    n: 2,
    k: 9000,
    maxOut: 400,
    threshold: 0.5,
    boxes: apart,
    scores: background(0.25),
    labels: background(0),
  }),
  nms("1 class, one box for all", { n: 1, k: 3000, maxOut: 10, threshold: 0.5, boxes: background(0), classes: 1 }),
  nms("1 class, scores of both signs", {
    n: 1,
    k: 3000,
    maxOut: 3000,
    threshold: 0.4,
    extent: 120,
    classes: 1,
    scores: (random, size) => random.distinct(size, -8, 4),
  }),
  nms("70000 candidates of 1 class", { n: 1, k: 70000, maxOut: 500, threshold: 0.5, extent: 640, classes: 1 }),
  nms("8000 candidates, 20 classes, all survivors wanted", {
    n: 1,
    k: 8000,
    maxOut: 8000,
    threshold: 0.5,
    extent: 640,
    classes: 20,
  }),
  // as many as SSD300 has with 90 classes, and far more than are sorted or compared at a time
  nms("36000 candidates", { n: 2, k: 36000, maxOut: 200, threshold: 0.45, extent: 300, classes: 90 }),
  nms("36000 candidates, not class-aware, most left out", {
    n: 1,
    k: 36000,
    maxOut: 300,
    threshold: 0.5,
    extent: 300,
    classAware: false,
    labels: (random, size) => random.integers(size, -30, 3),
  }),
  nms("100000 candidates", { n: 1, k: 100000, maxOut: 300, threshold: 0.5, extent: 640, classes: 80 }),
  nms("100000 candidates, not class-aware", {
    n: 1,
    k: 100000,
    maxOut: 100,
    threshold: 0.5,
    extent: 640,
    classAware: false,
  }),
  softNms("4 classes", { n: 2, k: 100, maxOut: 100 }),
  softNms("4 classes", { n: 2, k: 100, maxOut: 100, kind: "linear" }),
  softNms("fewer wanted than there are", { n: 3, k: 200, maxOut: 10, sigma: 0.1 }),
  softNms("fewer wanted than there are", { n: 3, k: 200, maxOut: 10, kind: "linear", iouThreshold: 0.1 }),
  softNms("more wanted than there are", { n: 1, k: 20, maxOut: 50 }),
  softNms("not class-aware", { n: 2, k: 150, maxOut: 120, classAware: false }),
  softNms("not class-aware", { n: 2, k: 150, maxOut: 120, classAware: false, kind: "linear" }),
  softNms("1 candidate", { n: 2, k: 1, maxOut: 1, labels: background(0) }),
  softNms("all left out", { n: 2, k: 33, maxOut: 10, labels: background(-1) }),
  softNms("a high least score", { n: 2, k: 90, maxOut: 90, minScore: 0.4, classAware: false }),
  softNms("least score 0 keeps all but equal boxes", {
    n: 1,
    k: 64,
    maxOut: 64,
    kind: "linear",
    iouThreshold: 0,
    minScore: 0,
    boxes: repeated,
    scores: tiedScores,
  }),
  softNms("tied scores and equal boxes", {
    n: 2,
    k: 120,
    maxOut: 60,
    kind: "linear",
    boxes: repeated,
    scores: tiedScores,
  }),
  softNms("3000 candidates", { n: 2, k: 3000, maxOut: 100, extent: 200, classes: 3 }),
  softNms("3000 candidates", { n: 2, k: 3000, maxOut: 100, extent: 200, classes: 3, kind: "linear" }),
  gatherDetections("scores of their own", 3, 40, 10, 6, true),
  gatherDetections("some kept", 3, 40, 10, 6),
  gatherDetections("all kept", 1, 40, 25, 25),
  gatherDetections("none kept", 2, 5, 4, 0),
  ...goldenCases,
  ...goldenCoders,
  ...goldenSoftNms,
];

export const postprocessBenches: OpCase[] = [
  topk("1000 of 8 x 873,600 (640x640, stride 8, 91 classes)", {
    n: 8,
    m: 873600,
    k: 1000,
    threshold: 0.05,
    values: (random, size) => random.normal(size, -5, 1.5),
  }),
  ...[-5, -3].map((mean) =>
    selectCandidates(`1000 a level, RetinaNet's at 640x640, logits of mean ${mean}`, {
      n: backend === "cuda" ? 32 : 2,
      anchors: 76725,
      classes: 91,
      cells: [80, 40, 20, 10, 5].map((side) => side * side),
      perCell: 9,
      padding: 5,
      k: 1000,
      threshold: 0.05,
      values: (random, size) => random.normal(size, mean, 1.5),
    }),
  ),
  ...[1000, 5000, 100000].map((k) =>
    nms(`${k} candidates, 80 classes`, { n: 1, k, maxOut: 1000, threshold: 0.5, classes: 80, extent: 640 }),
  ),
  nms("100000 candidates, 80 classes, all survivors wanted", {
    n: 1,
    k: 100000,
    maxOut: 100000,
    threshold: 0.5,
    classes: 80,
    extent: 640,
  }),
  nms("100000 candidates, 1 class", { n: 1, k: 100000, maxOut: 1000, threshold: 0.5, classes: 1, extent: 640 }),
  softNms("5000 candidates, 80 classes", { n: 1, k: 5000, maxOut: 300, classes: 80, extent: 640 }),
  softNms("8 images of 1000 candidates, 80 classes", {
    n: 8,
    k: 1000,
    maxOut: 100,
    kind: "linear",
    classes: 80,
    extent: 640,
  }),
  nms("8 images of 5000 candidates, 91 classes", {
    n: 8,
    k: 5000,
    maxOut: 300,
    threshold: 0.5,
    classes: 91,
    extent: 640,
  }),
];

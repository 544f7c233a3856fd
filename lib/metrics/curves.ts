import { check } from "../native/error";
import { CurveAccumulator, createCurves } from "./coco-accumulate";
import { matchByCategory } from "./coco-data";
import type { CocoEvaluator } from "./coco-eval";
import { GroupMatcher, type MatchTable } from "./coco-match";
import { defaultCocoParams, resolveCocoParams } from "./coco-params";
import { linspace, pairwiseSum, stableSortDescending } from "./numeric";

export interface CurveOptions {
  /** IoU from which a detection is right. Default 0.5. */
  iouThreshold?: number;
  /** Most detections counted per image and category. Default 100, as COCO's. */
  maxDets?: number;
}

/** Precision and recall when only detections with this score or a higher one are kept. */
export interface OperatingPoint {
  threshold: number;
  precision: number;
  recall: number;
  /** Harmonic mean of precision and recall. */
  f1: number;
}

/** The curves of one category. */
export interface CategoryCurve {
  categoryId: number;
  /** Objects that count: crowds do not. */
  positives: number;
  /** (n) the different scores of its detections, falling. */
  thresholds: Float64Array;
  /** (n) at each threshold; nothing is smoothed. */
  precision: Float64Array;
  recall: Float64Array;
  f1: Float64Array;
  /** (101) the highest precision at recall 0, 0.01, ... 1 or above, as COCO's evaluation reads it. */
  interpolated: Float64Array;
  /** Mean of `interpolated`: COCO's AP of this category at this IoU. -1 without objects. */
  AP: number;
  /** Where F1 is highest, the highest threshold of equals; null without objects or detections. */
  best: OperatingPoint | null;
}

export interface DetectionCurves {
  iouThreshold: number;
  /** In the order of the category ids. */
  categories: CategoryCurve[];
  /** Means over the categories with objects. */
  mean: {
    /** (101) 0, 0.01, ... 1. */
    recallLevels: Float64Array;
    /** (101) precision at the recall levels. */
    interpolated: Float64Array;
    /** Mean of the categories' AP; -1 without objects. */
    AP: number;
    /** (1001) 0 to 1, or to the lowest and highest score where these lie outside. */
    thresholds: Float64Array;
    /** (1001) F1 at one threshold for all categories. */
    f1: Float64Array;
    /** Where the mean F1 is highest: the threshold to use for all categories; null without objects or detections. */
    best: OperatingPoint | null;
  };
}

/**
 * Precision, recall and F1 over the score threshold, per category and on average. Matching is COCO's: detections choose in
 * order of score, those on crowds are left out.
 */
export function detectionCurves(evaluator: CocoEvaluator, options: CurveOptions = {}): DetectionCurves {
  const { iouThreshold = 0.5, maxDets = 100 } = options;
  check(
    iouThreshold >= 0 && iouThreshold <= 1,
    "detectionCurves",
    () => `iouThreshold must be in 0 .. 1, got ${iouThreshold}`,
  );
  const params = resolveCocoParams({
    iouThresholds: Float64Array.of(iouThreshold),
    maxDets: [maxDets],
    areaRanges: defaultCocoParams().areaRanges.slice(0, 1),
  });
  const data = evaluator.data();
  const K = data.categories.length;
  const coco = createCurves(params, K);
  const accumulator = new CurveAccumulator(params, coco);
  const categories: CategoryCurve[] = [];
  matchByCategory(data, new GroupMatcher(params), maxDets, (k, table) => {
    accumulator.accumulate(k, table);
    const R = coco.counts.R;
    const interpolated = Float64Array.from({ length: R }, (_, r) => Math.max(0, coco.precision[r * K + k]!));
    const positives = table.positives[0]!;
    categories.push({
      categoryId: data.categories[k]!,
      positives,
      ...walk(table, positives),
      interpolated,
      AP: positives === 0 ? -1 : pairwiseSum(interpolated, 0, R) / R,
    });
  });
  return { iouThreshold, categories, mean: meanOf(categories, params.recallThresholds) };
}

type Walk = Pick<CategoryCurve, "thresholds" | "precision" | "recall" | "f1" | "best">;

/** Counts right and wrong detections from the best score down; one point for each different score. */
function walk(table: MatchTable, positives: number): Walk {
  const n = table.count;
  const order = Int32Array.from({ length: n }, (_, i) => i);
  stableSortDescending(order, table.scores, 0, n, new Int32Array(n));
  const points: OperatingPoint[] = [];
  let best: OperatingPoint | null = null;
  let right = 0;
  let wrong = 0;
  for (let i = 0; i < n; i++) {
    const row = order[i]!;
    if ((table.ignored[row]! & 1) === 0) {
      if ((table.matched[row]! & 1) !== 0) right++;
      else wrong++;
    }
    const threshold = table.scores[row]!;
    if (right + wrong === 0 || (i + 1 < n && table.scores[order[i + 1]!] === threshold)) continue;
    const point = {
      threshold,
      precision: right / (right + wrong),
      recall: positives === 0 ? 0 : right / positives,
      f1: (2 * right) / (right + wrong + positives),
    };
    points.push(point);
    if (positives > 0 && (best === null || point.f1 > best.f1)) best = point;
  }
  const column = (name: keyof OperatingPoint) => Float64Array.from(points, (point) => point[name]);
  return {
    thresholds: column("threshold"),
    precision: column("precision"),
    recall: column("recall"),
    f1: column("f1"),
    best,
  };
}

const GRID = 1001;

function meanOf(categories: readonly CategoryCurve[], recallLevels: Float64Array): DetectionCurves["mean"] {
  const counted = categories.filter(({ positives }) => positives > 0);
  const n = counted.length;
  const average = (of: (curve: CategoryCurve) => number) => counted.reduce((sum, curve) => sum + of(curve), 0) / n;
  let low = 0;
  let high = 1;
  for (const { thresholds } of counted) {
    if (thresholds.length === 0) continue;
    low = Math.min(low, thresholds[thresholds.length - 1]!);
    high = Math.max(high, thresholds[0]!);
  }
  const thresholds = linspace(low, high, GRID);
  const f1 = new Float64Array(GRID);
  let best: OperatingPoint | null = null;
  // From the highest threshold down, each curve's last point at or above it is what holds there.
  const places = counted.map(() => -1);
  for (let i = GRID - 1; i >= 0 && n > 0; i--) {
    const threshold = thresholds[i]!;
    for (const [c, curve] of counted.entries()) {
      while (curve.thresholds[places[c]! + 1]! >= threshold) places[c]!++;
    }
    const at = (name: "precision" | "recall" | "f1") =>
      counted.reduce((sum, curve, c) => sum + (places[c]! < 0 ? 0 : curve[name][places[c]!]!), 0) / n;
    f1[i] = at("f1");
    if (f1[i]! > (best?.f1 ?? 0)) best = { threshold, precision: at("precision"), recall: at("recall"), f1: f1[i]! };
  }
  return {
    recallLevels,
    interpolated: Float64Array.from(recallLevels, (_, r) => (n === 0 ? 0 : average((c) => c.interpolated[r]!))),
    AP: n === 0 ? -1 : average(({ AP }) => AP),
    thresholds,
    f1,
    best,
  };
}

import { check } from "../native/error";
import { boxIou } from "./box-overlap";
import { type CocoData, groupByImage } from "./coco-data";
import type { CocoEvaluator } from "./coco-eval";
import { stableSortDescending } from "./numeric";

/** The kinds of errors, in the order of the paper. */
export const errorTypes = ["classification", "localization", "both", "duplicate", "background", "missed"] as const;
export type ErrorType = (typeof errorTypes)[number];

export interface ErrorAnalysisOptions {
  /** IoU from which a detection is right. Default 0.5. */
  foreground?: number;
  /** Below this IoU a detection is on background. Default 0.1. */
  background?: number;
  /** Most detections of an image, of all categories together. Default 100. */
  maxDets?: number;
}

/** How much AP each kind of error costs. */
export interface ErrorAnalysis {
  /** Mean AP at the foreground threshold, 0 to 1; as TIDE computes it. */
  AP: number;
  /** How many errors there are of each kind. */
  counts: Record<ErrorType, number>;
  /** What the mean AP would gain if all errors of one kind were corrected, and no other; at least 0. */
  dAP: Record<ErrorType, number>;
}

/** A detection among its category's, sorted by score to get the AP. */
interface Point {
  category: number;
  score: number;
  right: boolean;
}

/** A wrong or ignored detection, or a missed object, and what becomes of it when its kind is corrected. */
interface Fault {
  type: ErrorType;
  /** The point that it is without correction; null for an ignored detection and a missed object. */
  point: Point | null;
  /** The object that the correction makes it find; null: it disappears. */
  object: number | null;
  detection: number;
}

/**
 * Error types in the sense of TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors"),
 * in the steps of its reference implementation, tidecv. With IoU to objects of the same class `s` and of other classes `o`:
 *
 * - localization: background <= s <= foreground. Corrected: it finds its object.
 * - classification: o >= foreground. Corrected: it finds that object, in its class.
 * - duplicate: s >= foreground, but the object was found by a better detection. Corrected: it disappears.
 * - background: no object reaches an IoU above `background`. Corrected: it disappears.
 * - both: all else; wrong in class and place. Corrected: it disappears.
 * - missed: an object that was not found and that no localization or classification error would find. Corrected: it does
 *   not count.
 *
 * Of several detections whose correction finds the same object, the best by score finds it and the others disappear; if it
 * was found already, all disappear. Detections within a crowd of their class count as neither right nor wrong, but are
 * classified like the others.
 *
 * Unlike in tidecv, a category without objects has no part in the mean, as in COCO's figures.
 */
export function analyzeErrors(evaluator: CocoEvaluator, options: ErrorAnalysisOptions = {}): ErrorAnalysis {
  const { foreground = 0.5, background = 0.1, maxDets = 100 } = options;
  const op = "analyzeErrors";
  check(
    background >= 0 && background <= foreground && foreground <= 1,
    op,
    () => `expected 0 <= background <= foreground <= 1, got ${background} and ${foreground}`,
  );
  check(Number.isInteger(maxDets) && maxDets > 0, op, () => `maxDets must be a positive integer, got ${maxDets}`);
  const data = evaluator.data();
  const found = findFaults(data, foreground, background, maxDets);
  const AP = meanAp(found.points, found.positives);
  const counts = Object.fromEntries(errorTypes.map((type) => [type, 0])) as Record<ErrorType, number>;
  for (const { type } of found.faults) counts[type]++;
  const dAP = Object.fromEntries(
    errorTypes.map((type) => [type, Math.max(0, correct(data, found, type) - AP)]),
  ) as Record<ErrorType, number>;
  return { AP, counts, dAP };
}

interface Faults {
  /** All detections that count, image by image, best first. */
  points: Point[];
  faults: Fault[];
  /** (K) objects of each category. */
  positives: Int32Array;
  /** Which detection finds an object when errors are corrected. */
  finder: Map<number, number>;
}

function findFaults(data: CocoData, foreground: number, background: number, maxDets: number): Faults {
  const { truth, detections } = data;
  const truthRows = groupByImage(data, "truth");
  const detectionRows = groupByImage(data, "detections");
  const scratch = new Int32Array(detectionRows.order.length);
  const result: Faults = {
    points: [],
    faults: [],
    positives: new Int32Array(data.categories.length),
    finder: new Map(),
  };
  for (let image = 0; image < data.images.length; image++) {
    const all = truthRows.order.subarray(truthRows.starts[image], truthRows.starts[image + 1]);
    const objects = all.filter((row) => truth.crowd[row] === 0);
    const crowds = all.filter((row) => truth.crowd[row] !== 0);
    const [start, end] = [detectionRows.starts[image]!, detectionRows.starts[image + 1]!];
    stableSortDescending(detectionRows.order, detections.scores, start, end, scratch);
    const rows = detectionRows.order.subarray(start, Math.min(end, start + maxDets));
    for (const object of objects) result.positives[truth.category[object]!]!++;

    const used = new Set<number>();
    const finds = new Set<number>();
    for (const detection of rows) {
      const [object, iou] = highest(data, detection, objects, (o, same) => same && !used.has(o));
      if (object === null || iou < foreground) continue;
      used.add(object);
      finds.add(detection);
    }
    const corrected = new Set<number>();
    for (const detection of rows) {
      const right = finds.has(detection);
      const category = detections.category[detection]!;
      const ignored =
        !right &&
        crowds.some(
          (crowd) =>
            truth.category[crowd] === category &&
            boxIou(detections.boxes, detection, truth.boxes, crowd, true) > foreground,
        );
      const point = ignored ? null : { category, score: detections.scores[detection]!, right };
      if (point) result.points.push(point);
      if (right) continue;
      const { type, object } = classify(data, detection, objects, used, foreground, background);
      if (object !== null && !used.has(object)) {
        corrected.add(object);
        // Detections come best first.
        if (!result.finder.has(object)) result.finder.set(object, detection);
      }
      result.faults.push({ type, point, object, detection });
    }
    for (const object of objects) {
      if (used.has(object) || corrected.has(object)) continue;
      result.faults.push({ type: "missed", point: null, object, detection: -1 });
    }
  }
  return result;
}

/** The kind of a detection that found nothing, and the object that it should have found. */
function classify(
  data: CocoData,
  detection: number,
  objects: Int32Array,
  used: ReadonlySet<number>,
  foreground: number,
  background: number,
): { type: ErrorType; object: number | null } {
  const [own, ownIou] = highest(data, detection, objects, (_, same) => same);
  if (own !== null && ownIou >= background && ownIou <= foreground) return { type: "localization", object: own };
  const [other, otherIou] = highest(data, detection, objects, (_, same) => !same);
  if (other !== null && otherIou >= foreground) return { type: "classification", object: other };
  const [, usedIou] = highest(data, detection, objects, (o, same) => same && used.has(o));
  if (usedIou > 0 && usedIou >= foreground) return { type: "duplicate", object: null };
  return { type: Math.max(ownIou, otherIou) <= background ? "background" : "both", object: null };
}

/** The object of highest IoU among those that `allowed` accepts, the first of equals, and that IoU; null and 0: none. */
function highest(
  { truth, detections }: CocoData,
  detection: number,
  objects: Int32Array,
  allowed: (object: number, sameCategory: boolean) => boolean,
): [number | null, number] {
  let best: number | null = null;
  let bestIou = 0;
  for (const object of objects) {
    if (!allowed(object, truth.category[object] === detections.category[detection])) continue;
    const iou = boxIou(detections.boxes, detection, truth.boxes, object);
    if (best === null || iou > bestIou) [best, bestIou] = [object, iou];
  }
  return [best, bestIou];
}

/** The mean AP with all errors of one kind corrected. */
function correct(data: CocoData, { points, faults, positives, finder }: Faults, type: ErrorType): number {
  const left = positives.slice();
  // Faults before what is right: the order in which tidecv breaks ties of the score.
  const kept: Point[] = [];
  for (const fault of faults) {
    if (fault.type !== type) {
      if (fault.point) kept.push(fault.point);
    } else if (type === "missed") {
      left[data.truth.category[fault.object!]!]!--;
    } else if (fault.object !== null && finder.get(fault.object) === fault.detection) {
      const score = data.detections.scores[fault.detection]!;
      kept.push({ category: data.truth.category[fault.object]!, score, right: true });
    }
  }
  return meanAp([...kept, ...points.filter(({ right }) => right)], left, positives);
}

/** Mean over the categories with objects of the precision at 101 recall levels; 0 without any. */
function meanAp(points: readonly Point[], positives: Int32Array, before = positives): number {
  const byCategory = Array.from(positives, (): Point[] => []);
  for (const point of points) byCategory[point.category]!.push(point);
  let sum = 0;
  let categories = 0;
  for (const [k, list] of byCategory.entries()) {
    // A category all of whose objects were corrected away has nothing left to measure, unless it has wrong detections.
    if (before[k] === 0 || (positives[k] === 0 && list.length === 0)) continue;
    categories++;
    if (positives[k]! > 0) sum += averagePrecision(list, positives[k]!);
  }
  return categories === 0 ? 0 : sum / categories;
}

function averagePrecision(points: Point[], positives: number): number {
  points.sort((a, b) => b.score - a.score);
  const recall: number[] = [];
  const precision: number[] = [];
  let right = 0;
  for (const [i, point] of points.entries()) {
    if (point.right) right++;
    recall.push(right / positives);
    precision.push(right / (i + 1));
  }
  for (let i = precision.length - 1; i > 0; i--) precision[i - 1] = Math.max(precision[i - 1]!, precision[i]!);
  let sum = 0;
  for (let level = 0, i = 0; level <= 100; level++) {
    while (i < recall.length && recall[i]! < level / 100) i++;
    sum += precision[i] ?? 0;
  }
  return sum / 101;
}

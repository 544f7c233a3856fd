import { check } from "../native/error";
import { boxIou } from "./box-overlap";
import { groupByImage } from "./coco-data";
import type { CocoEvaluator } from "./coco-eval";

export interface ConfusionOptions {
  /** Detections need a score above this. Default 0.25. */
  scoreThreshold?: number;
  /** A detection and an object belong together from an IoU above this. Default 0.45. */
  iouThreshold?: number;
  /** Told of all that is counted: row, column, and the image's place among the evaluator's, ascending by id. */
  onCount?: (row: number, column: number, image: number) => void;
}

/** Which class objects have and which they are taken for. */
export interface ConfusionMatrix {
  /** Ids behind the rows and columns, ascending; background comes after the last. */
  categoryIds: readonly number[];
  /** K + 1. */
  size: number;
  /**
   * (K + 1, K + 1) rows: the object's class; columns: the detection's. The last column counts objects that were not
   * found, the last row detections without an object.
   */
  counts: Int32Array;
  scoreThreshold: number;
  iouThreshold: number;
}

/**
 * Confusion matrix of detections, by the rule of Ultralytics' `ConfusionMatrix`: classes play no part in who belongs to
 * whom. Of all pairs above the IoU threshold, from the highest IoU down, each detection keeps its best object and then each
 * object its best detection; what is left over on either side meets background. Equal IoUs go to the earlier detection and
 * the earlier object. Rows are the truth, as scikit-learn and torchmetrics have them (Ultralytics draws them as columns).
 *
 * Crowds are no objects. A detection that is left over and lies within a crowd (intersection over its own area above the
 * IoU threshold) is not counted.
 */
export function confusionMatrix(evaluator: CocoEvaluator, options: ConfusionOptions = {}): ConfusionMatrix {
  const { scoreThreshold = 0.25, iouThreshold = 0.45, onCount } = options;
  const op = "confusionMatrix";
  check(iouThreshold >= 0 && iouThreshold < 1, op, () => `iouThreshold must be in 0 .. 1, got ${iouThreshold}`);
  check(Number.isFinite(scoreThreshold), op, () => `scoreThreshold must be finite, got ${scoreThreshold}`);
  const data = evaluator.data();
  const { truth, detections } = data;
  const background = data.categories.length;
  const size = background + 1;
  const counts = new Int32Array(size * size);
  const truthRows = groupByImage(data, "truth");
  const detectionRows = groupByImage(data, "detections");
  const count = (row: number, column: number, image: number) => {
    counts[row * size + column]!++;
    onCount?.(row, column, image);
  };
  for (let image = 0; image < data.images.length; image++) {
    const all = truthRows.order.subarray(truthRows.starts[image], truthRows.starts[image + 1]);
    const objects = all.filter((row) => truth.crowd[row] === 0);
    const crowds = all.filter((row) => truth.crowd[row] !== 0);
    const found = detectionRows.order
      .subarray(detectionRows.starts[image], detectionRows.starts[image + 1])
      .filter((row) => detections.scores[row]! > scoreThreshold);
    const objectOf = pair(found, objects, (d, g) => boxIou(detections.boxes, d, truth.boxes, g), iouThreshold);
    const missed = new Set(objects);
    for (const detection of found) {
      const object = objectOf.get(detection);
      const predicted = detections.category[detection]!;
      if (object !== undefined) {
        missed.delete(object);
        count(truth.category[object]!, predicted, image);
      } else if (!crowds.some((g) => boxIou(detections.boxes, detection, truth.boxes, g, true) > iouThreshold)) {
        count(background, predicted, image);
      }
    }
    for (const object of missed) count(truth.category[object]!, background, image);
  }
  return { categoryIds: [...data.categories], size, counts, scoreThreshold, iouThreshold };
}

/** The object of each detection that has one. */
function pair(
  detections: Int32Array,
  objects: Int32Array,
  iouOf: (detection: number, object: number) => number,
  threshold: number,
): Map<number, number> {
  const candidates: { detection: number; object: number; iou: number }[] = [];
  for (const detection of detections) {
    let best: { detection: number; object: number; iou: number } | null = null;
    for (const object of objects) {
      const iou = iouOf(detection, object);
      if (iou > threshold && (best === null || iou > best.iou)) best = { detection, object, iou };
    }
    if (best) candidates.push(best);
  }
  const taken = new Set<number>();
  const objectOf = new Map<number, number>();
  for (const { detection, object } of candidates.sort((a, b) => b.iou - a.iou)) {
    if (taken.has(object)) continue;
    taken.add(object);
    objectOf.set(detection, object);
  }
  return objectOf;
}

import { boxIou } from "./box-overlap";

/** Boxes of one image: (n, 4) x1, y1, x2, y2 in pixels, and what each of them is. */
export interface LossBoxes {
  boxes: ArrayLike<number>;
  /** Class indices. */
  labels: ArrayLike<number>;
}

/** From here on a detection is of an object, as COCO's AP50 has it. */
const SAME_IOU = 0.5;
/** Scores count as no surer than this: a logarithm of 0 would be all that is seen. */
const [LEAST, MOST] = [0.01, 0.99];

/**
 * How wrong the detections on an image are, in one number, 0 being right: what a loss is to training, of what a model gives at
 * the end. Each detection, by falling score, takes the free object of its class that it overlaps most, from an IoU of 0.5 on. The
 * sum of
 *
 * - binary cross-entropies of the scores, those that took an object being right: -ln s, and -ln (1 - s) of the others
 * - -ln 0.01 for each object that was not taken, as if it had been found with that score, below which none is given
 * - 1 - IoU of those that took one (the IoU loss of Yu et al. 2016, "UnitBox", in its linear form)
 *
 * is divided by the number of objects, 1 at least, as detectors' losses are. Scores count as 0.01 to 0.99. Crowds are no
 * objects, and what lies within one, with half of its area or more, and took none does not count.
 *
 * @param found with scores, in any order
 */
export function detectionLoss(
  found: LossBoxes & { scores: ArrayLike<number> },
  truth: LossBoxes & { crowd: ArrayLike<number> },
): number {
  const [foundBoxes, truthBoxes] = [cornersToSizes(found.boxes), cornersToSizes(truth.boxes)];
  const rows = Array.from({ length: truth.labels.length }, (_, i) => i);
  const crowds = rows.filter((row) => truth.crowd[row]);
  const objects = rows.filter((row) => !truth.crowd[row]);
  const free = new Set(objects);
  const order = Array.from({ length: found.scores.length }, (_, i) => i);
  order.sort((a, b) => (found.scores[b] as number) - (found.scores[a] as number));
  let loss = 0;
  for (const row of order) {
    const score = Math.min(MOST, Math.max(LEAST, found.scores[row] as number));
    let [best, bestIou] = [-1, 0];
    for (const object of free) {
      if (truth.labels[object] !== found.labels[row]) continue;
      const iou = boxIou(foundBoxes, row, truthBoxes, object);
      if (iou >= SAME_IOU && iou > bestIou) [best, bestIou] = [object, iou];
    }
    if (free.delete(best)) loss += 1 - bestIou - Math.log(score);
    else if (!crowds.some((crowd) => boxIou(foundBoxes, row, truthBoxes, crowd, true) >= SAME_IOU)) {
      loss -= Math.log(1 - score);
    }
  }
  return (loss - free.size * Math.log(LEAST)) / Math.max(1, objects.length);
}

function cornersToSizes(boxes: ArrayLike<number>): Float64Array {
  const sizes = Float64Array.from(boxes);
  for (let i = 0; i < sizes.length; i += 4) {
    sizes[i + 2]! -= sizes[i]!;
    sizes[i + 3]! -= sizes[i + 1]!;
  }
  return sizes;
}

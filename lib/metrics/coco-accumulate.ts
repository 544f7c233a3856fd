import type { MatchTable } from "./coco-match";
import type { CocoParams } from "./coco-params";
import { stableSortDescending } from "./numeric";

/** `np.spacing(1)`, pycocotools' guard against 0 / 0. */
const EPSILON = 2 ** -52;

/**
 * Precision, recall and scores in pycocotools' layout and meaning; -1 where a category has no object that counts.
 * Sizes: T IoU thresholds, R recall thresholds, K categories, A area ranges, M detection limits.
 */
export interface CocoCurves {
  counts: { T: number; R: number; K: number; A: number; M: number };
  /** (T, R, K, A, M) highest precision at this recall or above; 0 for a recall that is not reached. */
  precision: Float64Array;
  /** (T, K, A, M) recall of all detections together. */
  recall: Float64Array;
  /** (T, R, K, A, M) score of the detection at which the recall is reached; 0 where it is not. */
  scores: Float64Array;
}

export function createCurves(params: CocoParams, categories: number): CocoCurves {
  const T = params.iouThresholds.length;
  const R = params.recallThresholds.length;
  const A = params.areaRanges.length;
  const M = params.maxDets.length;
  return {
    counts: { T, R, K: categories, A, M },
    precision: new Float64Array(T * R * categories * A * M).fill(-1),
    recall: new Float64Array(T * categories * A * M).fill(-1),
    scores: new Float64Array(T * R * categories * A * M).fill(-1),
  };
}

/** Turns the matches of one category into its curves. Keeps its buffers from category to category. */
export class CurveAccumulator {
  private order = new Int32Array(0);
  private scratch = new Int32Array(0);
  private kept = new Int32Array(0);
  private recall = new Float64Array(0);
  private precision = new Float64Array(0);

  constructor(
    private readonly params: CocoParams,
    private readonly curves: CocoCurves,
  ) {}

  /** @param k the category's place among the sorted category ids */
  accumulate(k: number, table: MatchTable): void {
    const n = table.count;
    this.reserve(n);
    for (let i = 0; i < n; i++) this.order[i] = i;
    // One sort serves every detection limit: leaving rows out of a stable order leaves a stable order.
    stableSortDescending(this.order, table.scores, 0, n, this.scratch);
    for (let m = 0; m < this.params.maxDets.length; m++) {
      const limit = this.params.maxDets[m]!;
      let nKept = 0;
      for (let i = 0; i < n; i++) {
        const index = this.order[i]!;
        if (table.ranks[index]! < limit) this.kept[nKept++] = index;
      }
      for (let a = 0; a < this.params.areaRanges.length; a++) {
        if (table.positives[a] === 0) continue;
        for (let t = 0; t < this.params.iouThresholds.length; t++) this.curve(t, k, a, m, nKept, table);
      }
    }
  }

  private reserve(n: number): void {
    if (n <= this.order.length) return;
    this.order = new Int32Array(n);
    this.scratch = new Int32Array(n);
    this.kept = new Int32Array(n);
    this.recall = new Float64Array(n);
    this.precision = new Float64Array(n);
  }

  private curve(t: number, k: number, a: number, m: number, nKept: number, table: MatchTable): void {
    const { recall, precision, kept, curves } = this;
    const { R, K, A, M } = curves.counts;
    const base = a * table.capacity;
    const bit = 1 << t;
    const positives = table.positives[a]!;
    let truePositives = 0;
    let falsePositives = 0;
    for (let i = 0; i < nKept; i++) {
      const row = base + kept[i]!;
      if ((table.ignored[row]! & bit) === 0) {
        if ((table.matched[row]! & bit) !== 0) truePositives++;
        else falsePositives++;
      }
      recall[i] = truePositives / positives;
      precision[i] = truePositives / (falsePositives + truePositives + EPSILON);
    }
    for (let i = nKept - 1; i > 0; i--) {
      if (precision[i]! > precision[i - 1]!) precision[i - 1] = precision[i]!;
    }
    curves.recall[((t * K + k) * A + a) * M + m] = nKept > 0 ? recall[nKept - 1]! : 0;
    for (let r = 0, i = 0; r < R; r++) {
      const threshold = this.params.recallThresholds[r]!;
      while (i < nKept && recall[i]! < threshold) i++;
      const out = (((t * R + r) * K + k) * A + a) * M + m;
      curves.precision[out] = i < nKept ? precision[i]! : 0;
      curves.scores[out] = i < nKept ? table.scores[kept[i]!]! : 0;
    }
  }
}

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
  /** Of each threshold, true and false positives so far; the latter without those that are wrong at every threshold. */
  private readonly hits: Int32Array;
  private readonly wrong: Int32Array;
  /** (T, positives) place among `kept`, and precision, of each true positive. */
  private hitPlaces = new Int32Array(0);
  private hitPrecisions = new Float64Array(0);

  constructor(
    private readonly params: CocoParams,
    private readonly curves: CocoCurves,
  ) {
    this.hits = new Int32Array(curves.counts.T);
    this.wrong = new Int32Array(curves.counts.T);
  }

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
        this.walk(k, a, m, nKept, table);
      }
    }
  }

  private reserve(n: number): void {
    if (n <= this.order.length) return;
    this.order = new Int32Array(n);
    this.scratch = new Int32Array(n);
    this.kept = new Int32Array(n);
  }

  /**
   * The curves of all thresholds from one walk over the detections by falling score. Recall, and the highest precision
   * from some place on, change at true positives only, so that only these are written down; a detection that is wrong at
   * every threshold, as most are, costs one step for all of them.
   */
  private walk(k: number, a: number, m: number, nKept: number, table: MatchTable): void {
    const { kept, wrong, hits } = this;
    const { T } = this.curves.counts;
    const base = a * table.capacity;
    const positives = table.positives[a]!;
    if (this.hitPlaces.length < T * positives) {
      this.hitPlaces = new Int32Array(T * positives);
      this.hitPrecisions = new Float64Array(T * positives);
    }
    const { hitPlaces, hitPrecisions } = this;
    const every = T === 32 ? -1 : (1 << T) - 1;
    wrong.fill(0);
    hits.fill(0);
    let wrongEverywhere = 0;
    for (let i = 0; i < nKept; i++) {
      const row = base + kept[i]!;
      const counted = ~table.ignored[row]! & every;
      const matched = table.matched[row]! & counted;
      if (matched === 0 && counted === every) {
        wrongEverywhere++;
        continue;
      }
      for (let t = 0; t < T; t++) {
        if ((counted & (1 << t)) === 0) continue;
        if ((matched & (1 << t)) === 0) {
          wrong[t]!++;
          continue;
        }
        const hit = hits[t]!++;
        hitPlaces[t * positives + hit] = i;
        hitPrecisions[t * positives + hit] = (hit + 1) / (wrongEverywhere + wrong[t]! + (hit + 1) + EPSILON);
      }
    }
    for (let t = 0; t < T; t++) this.read(t, k, a, m, nKept, table);
  }

  /** Reads precision and score at the recall levels. The precision is the highest at this recall or above. */
  private read(t: number, k: number, a: number, m: number, nKept: number, table: MatchTable): void {
    const { kept, hitPlaces, hitPrecisions, curves } = this;
    const { R, K, A, M } = curves.counts;
    const positives = table.positives[a]!;
    const first = t * positives;
    const n = this.hits[t]!;
    for (let i = first + n - 1; i > first; i--) {
      if (hitPrecisions[i]! > hitPrecisions[i - 1]!) hitPrecisions[i - 1] = hitPrecisions[i]!;
    }
    curves.recall[((t * K + k) * A + a) * M + m] = n / positives;
    for (let r = 0, hit = 0; r < R; r++) {
      const threshold = this.params.recallThresholds[r]!;
      const out = (((t * R + r) * K + k) * A + a) * M + m;
      if (threshold <= 0) {
        // Reached by the best detection, right or wrong.
        curves.precision[out] = n > 0 ? hitPrecisions[first]! : 0;
        curves.scores[out] = nKept > 0 ? table.scores[kept[0]!]! : 0;
        continue;
      }
      while (hit < n && (hit + 1) / positives < threshold) hit++;
      curves.precision[out] = hit < n ? hitPrecisions[first + hit]! : 0;
      curves.scores[out] = hit < n ? table.scores[kept[hitPlaces[first + hit]!]!]! : 0;
    }
  }
}

import type { CocoParams } from "./coco-params";

/** The boxes of one side, detections or ground truth, as columns. */
export interface BoxColumns {
  /** (n, 4) [x, y, width, height] in pixels. */
  boxes: Float64Array;
  /** (n) square pixels. */
  areas: Float64Array;
}

export interface GroundTruthColumns extends BoxColumns {
  /** (n) 1 for crowd regions. */
  crowd: Uint8Array;
  /** (n) 0 where a match must be recorded as none: see `CocoEvaluatorOptions.trustZeroIds`. */
  counts: Uint8Array;
}

/**
 * Matching results of all detections of one category. Detection `d` and area range `a` are at `a * capacity + d`; bit t
 * of a word stands for IoU threshold t.
 */
export class MatchTable {
  count = 0;
  capacity = 0;
  scores = new Float64Array(0);
  /** Place of the detection in its image's and category's list by score, 0 first. */
  ranks = new Int32Array(0);
  matched = new Uint32Array(0);
  ignored = new Uint32Array(0);
  /** (areas) ground truth objects that count, that is, that are not ignored. */
  readonly positives: Int32Array;

  constructor(readonly areas: number) {
    this.positives = new Int32Array(areas);
  }

  /** Empties the table and makes room for `capacity` detections. */
  reset(capacity: number): void {
    if (capacity > this.capacity) {
      this.capacity = capacity;
      this.scores = new Float64Array(capacity);
      this.ranks = new Int32Array(capacity);
      this.matched = new Uint32Array(capacity * this.areas);
      this.ignored = new Uint32Array(capacity * this.areas);
    }
    this.count = 0;
    this.positives.fill(0);
  }
}

/**
 * Matches detections to ground truth within one image and category as pycocotools' `evaluateImg` does:
 *
 * - Detections choose in order of falling score. Each takes the free object of highest IoU at or above the threshold,
 *   the later one of equals, objects that count before ignored ones (crowds, and areas outside the range).
 * - A crowd may be taken many times, and its IoU is the intersection over the detection's own area.
 * - A detection on an ignored object is ignored, and so is one without a match whose area is outside the range.
 */
export class GroupMatcher {
  private iou = new Float64Array(64);
  private order = new Int32Array(16);
  private taken = new Uint8Array(16);
  private readonly thresholds: Float64Array;
  private readonly lowest: number;

  constructor(private readonly params: CocoParams) {
    this.thresholds = params.iouThresholds.map((threshold) => Math.min(threshold, 1 - 1e-10));
    this.lowest = this.thresholds.reduce((lowest, threshold) => Math.min(lowest, threshold));
  }

  /** How many area ranges it matches for. */
  get areas(): number {
    return this.params.areaRanges.length;
  }

  /**
   * @param truthIndices rows of `truth` in this group, in the order in which they were added
   * @param detectionIndices rows of `detections` in this group, highest score first, already cut to the largest maxDets
   * @param table receives one row per detection, and the counted objects
   */
  match(
    truth: GroundTruthColumns,
    truthIndices: Int32Array,
    detections: BoxColumns,
    scores: Float64Array,
    detectionIndices: Int32Array,
    table: MatchTable,
  ): void {
    const nTruth = truthIndices.length;
    const nDetections = detectionIndices.length;
    const first = table.count;
    for (let d = 0; d < nDetections; d++) {
      table.scores[first + d] = scores[detectionIndices[d]!]!;
      table.ranks[first + d] = d;
    }
    table.count += nDetections;
    this.reserve(nTruth, nDetections);
    // Most pairs of an image and a category have no object, or none that any detection comes near to.
    const near = nTruth > 0 && nDetections > 0 && this.computeIou(truth, truthIndices, detections, detectionIndices);

    const { areaRanges } = this.params;
    for (let a = 0; a < areaRanges.length; a++) {
      const { min, max } = areaRanges[a]!;
      const counted = nTruth > 0 ? this.orderTruth(truth, truthIndices, min, max) : 0;
      table.positives[a]! += counted;
      const base = a * table.capacity + first;
      table.matched.fill(0, base, base + nDetections);
      table.ignored.fill(0, base, base + nDetections);
      for (let t = 0; near && t < this.thresholds.length; t++) {
        this.matchAt(t, counted, truth, truthIndices, nDetections, table, base);
      }
      for (let d = 0; d < nDetections; d++) {
        const area = detections.areas[detectionIndices[d]!]!;
        if (area < min || area > max) table.ignored[base + d] = table.ignored[base + d]! | ~table.matched[base + d]!;
      }
    }
  }

  private reserve(nTruth: number, nDetections: number): void {
    if (this.iou.length < nTruth * nDetections) this.iou = new Float64Array(2 * nTruth * nDetections);
    if (this.order.length < nTruth) {
      this.order = new Int32Array(2 * nTruth);
      this.taken = new Uint8Array(2 * nTruth);
    }
  }

  /** IoU (nDetections, nTruth), in the operations of pycocotools' `bbIou`. True if one reaches the lowest threshold. */
  private computeIou(
    truth: GroundTruthColumns,
    truthIndices: Int32Array,
    detections: BoxColumns,
    detectionIndices: Int32Array,
  ): boolean {
    const { iou, lowest } = this;
    let near = lowest <= 0;
    let out = 0;
    for (const detection of detectionIndices) {
      const dx = detections.boxes[4 * detection]!;
      const dy = detections.boxes[4 * detection + 1]!;
      const dw = detections.boxes[4 * detection + 2]!;
      const dh = detections.boxes[4 * detection + 3]!;
      const detectionArea = dw * dh;
      for (const object of truthIndices) {
        const gx = truth.boxes[4 * object]!;
        const gy = truth.boxes[4 * object + 1]!;
        const gw = truth.boxes[4 * object + 2]!;
        const gh = truth.boxes[4 * object + 3]!;
        const w = Math.min(dw + dx, gw + gx) - Math.max(dx, gx);
        const h = Math.min(dh + dy, gh + gy) - Math.max(dy, gy);
        if (w <= 0 || h <= 0) {
          iou[out++] = 0;
          continue;
        }
        const intersection = w * h;
        const union = truth.crowd[object] ? detectionArea : detectionArea + gw * gh - intersection;
        const value = intersection / union;
        if (value >= lowest) near = true;
        iou[out++] = value;
      }
    }
    return near;
  }

  /** Fills `order` with places in `truthIndices`, those that count first; returns how many count. */
  private orderTruth(truth: GroundTruthColumns, truthIndices: Int32Array, min: number, max: number): number {
    let counted = 0;
    for (let pass = 0, next = 0; pass < 2; pass++) {
      for (let g = 0; g < truthIndices.length; g++) {
        const object = truthIndices[g]!;
        const area = truth.areas[object]!;
        const ignored = truth.crowd[object] !== 0 || area < min || area > max;
        if (ignored === (pass === 1)) this.order[next++] = g;
      }
      if (pass === 0) counted = next;
    }
    return counted;
  }

  private matchAt(
    t: number,
    counted: number,
    truth: GroundTruthColumns,
    truthIndices: Int32Array,
    nDetections: number,
    table: MatchTable,
    base: number,
  ): void {
    const nTruth = truthIndices.length;
    const { iou, order, taken } = this;
    const bit = 1 << t;
    taken.fill(0, 0, nTruth);
    for (let d = 0; d < nDetections; d++) {
      let best = this.thresholds[t]!;
      let match = -1;
      for (let g = 0; g < nTruth; g++) {
        const place = order[g]!;
        if (taken[place] && !truth.crowd[truthIndices[place]!]) continue;
        // Ignored objects come last: they are no choice once an object that counts is held.
        if (g >= counted && match >= 0 && match < counted) break;
        const value = iou[d * nTruth + place]!;
        if (value < best) continue;
        best = value;
        match = g;
      }
      if (match < 0) continue;
      const place = order[match]!;
      taken[place] = 1;
      if (truth.counts[truthIndices[place]!]) table.matched[base + d] = table.matched[base + d]! | bit;
      if (match >= counted) table.ignored[base + d] = table.ignored[base + d]! | bit;
    }
  }
}

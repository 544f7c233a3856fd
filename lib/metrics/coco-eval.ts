/**
 * COCO's bounding-box evaluation, equal to pycocotools' `COCOeval(..., "bbox")` to the last digit: float64 throughout,
 * the same order of every sum and every sort. The rules are documented where they are applied: matching in
 * `coco-match.ts`, curves in `coco-accumulate.ts`, means in `coco-summary.ts`.
 */
import { check } from "../native/error";
import type { CocoCurves } from "./coco-accumulate";
import { CurveAccumulator, createCurves } from "./coco-accumulate";
import type { GroundTruthColumns } from "./coco-match";
import { GroupMatcher, MatchTable } from "./coco-match";
import type { CocoDetection, CocoGroundTruth, CocoParams } from "./coco-params";
import { resolveCocoParams } from "./coco-params";
import type { CocoCategoryStats, CocoStats } from "./coco-summary";
import { computeCategoryStats, computeStats, formatSummary } from "./coco-summary";
import { Float64Column, groupByBucket, stableSortDescending } from "./numeric";

export interface CocoEvaluatorOptions extends Partial<CocoParams> {
  /**
   * Ids of the categories to measure; objects and detections of others are left out. Default: those that occur.
   * A category without objects has figures of -1 and no part in the means.
   */
  categories?: readonly (number | { id: number })[];
  /**
   * Ids of the images to measure. A detection on another image is an error, ground truth of another image is left out.
   * Default: those that occur, which gives the same figures as naming images without objects and detections too.
   */
  images?: readonly (number | { id: number })[];
  /**
   * pycocotools writes down a match as the id of the object and then takes an id of 0 for "no match": the detection of
   * an object whose id is 0 counts as wrong. By default that is reproduced for ground truth that carries ids, so that
   * the figures agree. true: such a detection counts as the match that it is.
   */
  trustZeroIds?: boolean;
}

export interface CocoResult extends CocoCurves {
  stats: CocoStats;
  /** By category id, in ascending order. */
  perCategory: Map<number, CocoCategoryStats>;
  params: CocoParams;
  /** Ids behind the K axis of the curves, ascending. */
  categoryIds: number[];
  /** pycocotools' table of the twelve figures, without a newline at the end. */
  summarize(): string;
}

/** The place in the sorted id list of each value of `ids`; -1 for an id that is not listed. */
function placesOf(ids: Float64Array, sortedIds: readonly number[]): Int32Array {
  const places = new Map<number, number>();
  for (const [place, id] of sortedIds.entries()) places.set(id, place);
  const out = new Int32Array(ids.length);
  for (let i = 0; i < ids.length; i++) out[i] = places.get(ids[i]!) ?? -1;
  return out;
}

function sortedUnique(ids: Iterable<number>): number[] {
  return [...new Set(ids)].sort((a, b) => a - b);
}

/** Rows grouped by category and, inside, ordered by image and then by the order of adding. */
function groupRows(
  categoryIds: Float64Array,
  imageIds: Float64Array,
  categories: readonly number[],
  images: readonly number[],
): { order: Int32Array; starts: Int32Array; image: Int32Array } {
  const category = placesOf(categoryIds, categories);
  const image = placesOf(imageIds, images);
  const listed = new Int32Array(category.length);
  let count = 0;
  for (let i = 0; i < category.length; i++) if (category[i]! >= 0 && image[i]! >= 0) listed[count++] = i;
  const byImage = groupByBucket(image, images.length, listed.subarray(0, count));
  return { ...groupByBucket(category, categories.length, byImage.order), image };
}

/**
 * Collects ground truth and detections, then evaluates them.
 *
 * The order in which detections of one image and category are added matters only among equal scores: the earlier one
 * chooses first. Objects matter by their order only among equal IoU: the later one is taken.
 */
export class CocoEvaluator {
  readonly params: CocoParams;
  private readonly categories: number[] | undefined;
  private readonly images: number[] | undefined;
  private readonly imageSet: Set<number> | undefined;
  private readonly trustZeroIds: boolean;

  private readonly truth = {
    image: new Float64Column(),
    category: new Float64Column(),
    boxes: new Float64Column(),
    area: new Float64Column(),
    crowd: new Float64Column(),
    counts: new Float64Column(),
  };
  private readonly detected = {
    image: new Float64Column(),
    category: new Float64Column(),
    boxes: new Float64Column(),
    area: new Float64Column(),
    score: new Float64Column(),
  };

  constructor(options: CocoEvaluatorOptions = {}) {
    const { categories, images, trustZeroIds, ...params } = options;
    this.params = resolveCocoParams(params);
    const idOf = (entry: number | { id: number }) => (typeof entry === "number" ? entry : entry.id);
    this.categories = categories && sortedUnique(categories.map(idOf));
    this.images = images && sortedUnique(images.map(idOf));
    this.imageSet = this.images && new Set(this.images);
    this.trustZeroIds = trustZeroIds ?? false;
  }

  get groundTruthCount(): number {
    return this.truth.image.length;
  }

  get detectionCount(): number {
    return this.detected.image.length;
  }

  addGroundTruth(objects: Iterable<CocoGroundTruth>): void {
    const { truth } = this;
    for (const object of objects) {
      const where = () => `CocoEvaluator.addGroundTruth, object ${truth.image.length}`;
      checkIds(object.imageId, object.categoryId, where);
      checkBox(object.bbox, where);
      const area = object.area ?? object.bbox[2]! * object.bbox[3]!;
      if (!Number.isFinite(area)) check(false, where(), () => `area must be finite, got ${area}`);
      truth.image.push(object.imageId);
      truth.category.push(object.categoryId);
      for (let i = 0; i < 4; i++) truth.boxes.push(object.bbox[i]!);
      truth.area.push(area);
      truth.crowd.push(object.iscrowd ? 1 : 0);
      truth.counts.push(object.id === 0 && !this.trustZeroIds ? 0 : 1);
    }
  }

  addDetections(detections: Iterable<CocoDetection>): void {
    for (const { imageId, categoryId, bbox, score } of detections) {
      this.addDetection(imageId, categoryId, bbox, score);
    }
  }

  /** One detection without an object around it; `bbox` is [x, y, width, height] in pixels, from `offset` on. */
  addDetection(imageId: number, categoryId: number, bbox: ArrayLike<number>, score: number, offset = 0): void {
    const { detected } = this;
    const where = () => `CocoEvaluator.addDetection, detection ${detected.image.length}`;
    checkIds(imageId, categoryId, where);
    checkBox(bbox, where, offset);
    if (!Number.isFinite(score)) check(false, where(), () => `score must be finite, got ${score}`);
    if (this.imageSet && !this.imageSet.has(imageId)) {
      check(false, where(), () => `image ${imageId} is not among the ${this.imageSet!.size} images to evaluate`);
    }
    detected.image.push(imageId);
    detected.category.push(categoryId);
    for (let i = 0; i < 4; i++) detected.boxes.push(bbox[offset + i]!);
    detected.area.push(bbox[offset + 2]! * bbox[offset + 3]!);
    detected.score.push(score);
  }

  /** Forgets the detections and keeps the ground truth, for the next evaluation of the same images. */
  clearDetections(): void {
    for (const column of Object.values(this.detected)) column.clear();
  }

  /** Evaluates what has been added so far; may be called again after more. */
  evaluate(): CocoResult {
    const truth = {
      image: this.truth.image.view(),
      category: this.truth.category.view(),
    };
    const detected = {
      image: this.detected.image.view(),
      category: this.detected.category.view(),
    };
    const scores = this.detected.score.view();
    const categories = this.categories ?? sortedUnique([...truth.category, ...detected.category]);
    const images = this.images ?? sortedUnique([...truth.image, ...detected.image]);
    const truthRows = groupRows(truth.category, truth.image, categories, images);
    const detectionRows = groupRows(detected.category, detected.image, categories, images);

    const truthColumns: GroundTruthColumns = {
      boxes: this.truth.boxes.view(),
      areas: this.truth.area.view(),
      crowd: Uint8Array.from(this.truth.crowd.view()),
      counts: Uint8Array.from(this.truth.counts.view()),
    };
    const detectionColumns = { boxes: this.detected.boxes.view(), areas: this.detected.area.view() };
    const curves = createCurves(this.params, categories.length);
    const accumulator = new CurveAccumulator(this.params, curves);
    const matcher = new GroupMatcher(this.params);
    const table = new MatchTable(this.params.areaRanges.length);
    const maxDets = this.params.maxDets[this.params.maxDets.length - 1]!;
    const scratch = new Int32Array(detectionRows.order.length);

    for (let k = 0; k < categories.length; k++) {
      const truthEnd = truthRows.starts[k + 1]!;
      const detectionEnd = detectionRows.starts[k + 1]!;
      let g = truthRows.starts[k]!;
      let d = detectionRows.starts[k]!;
      table.reset(detectionEnd - d);
      while (g < truthEnd || d < detectionEnd) {
        const truthImage = g < truthEnd ? truthRows.image[truthRows.order[g]!]! : Infinity;
        const detectionImage = d < detectionEnd ? detectionRows.image[detectionRows.order[d]!]! : Infinity;
        const image = Math.min(truthImage, detectionImage);
        const g0 = g;
        const d0 = d;
        while (g < truthEnd && truthRows.image[truthRows.order[g]!] === image) g++;
        while (d < detectionEnd && detectionRows.image[detectionRows.order[d]!] === image) d++;
        stableSortDescending(detectionRows.order, scores, d0, d, scratch);
        matcher.match(
          truthColumns,
          truthRows.order.subarray(g0, g),
          detectionColumns,
          scores,
          detectionRows.order.subarray(d0, Math.min(d, d0 + maxDets)),
          table,
        );
      }
      accumulator.accumulate(k, table);
    }

    const { params } = this;
    const stats = computeStats(params, curves);
    const perCategory = new Map(categories.map((id, k) => [id, computeCategoryStats(params, curves, k)]));
    return {
      ...curves,
      stats,
      perCategory,
      params,
      categoryIds: categories,
      summarize: () => formatSummary(params, stats),
    };
  }
}

/** Evaluates in one call. @see CocoEvaluator */
export function evaluateCoco(
  groundTruth: Iterable<CocoGroundTruth>,
  detections: Iterable<CocoDetection>,
  options: CocoEvaluatorOptions = {},
): CocoResult {
  const evaluator = new CocoEvaluator(options);
  evaluator.addGroundTruth(groundTruth);
  evaluator.addDetections(detections);
  return evaluator.evaluate();
}

function checkIds(imageId: number, categoryId: number, where: () => string): void {
  if (!Number.isSafeInteger(imageId)) check(false, where(), () => `imageId must be an integer, got ${imageId}`);
  if (!Number.isSafeInteger(categoryId)) {
    check(false, where(), () => `categoryId must be an integer, got ${categoryId}`);
  }
}

function checkBox(bbox: ArrayLike<number>, where: () => string, offset = 0): void {
  for (let i = 0; i < 4; i++) {
    if (Number.isFinite(bbox[offset + i])) continue;
    check(false, where(), () => {
      const values = Array.from({ length: 4 }, (_, j) => String(bbox[offset + j]));
      return `bbox must be four finite numbers [x, y, width, height], got [${values.join(", ")}]`;
    });
  }
}

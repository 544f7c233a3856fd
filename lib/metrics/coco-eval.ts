/**
 * COCO's bounding-box evaluation, equal to pycocotools' `COCOeval(..., "bbox")` to the last digit: float64 throughout,
 * the same order of every sum and every sort. The rules are documented where they are applied: matching in
 * `coco-match.ts`, curves in `coco-accumulate.ts`, means in `coco-summary.ts`.
 */
import { check, DlfsError, ErrorCode } from "../native/error";
import type { CocoCurves } from "./coco-accumulate";
import { CurveAccumulator, createCurves } from "./coco-accumulate";
import { type CocoData, matchByCategory, placesOf, sortedUnique } from "./coco-data";
import { GroupMatcher } from "./coco-match";
import type { CocoDetection, CocoGroundTruth, CocoParams } from "./coco-params";
import { resolveCocoParams } from "./coco-params";
import type { CocoCategoryStats, CocoStats } from "./coco-summary";
import { computeCategoryStats, computeStats, formatSummary } from "./coco-summary";
import { Float64Column } from "./numeric";

export interface CocoEvaluatorOptions extends Partial<CocoParams> {
  /**
   * Ids of the categories to measure. A detection of another category is an error, objects of others are left out.
   * Default: those that occur.
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
  private readonly categorySet: Set<number> | undefined;
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
    this.categorySet = this.categories && new Set(this.categories);
    this.trustZeroIds = trustZeroIds ?? false;
  }

  get groundTruthCount(): number {
    return this.truth.image.length;
  }

  get detectionCount(): number {
    return this.detected.image.length;
  }

  /**
   * Boxes and areas must be finite and not negative. Where one of them is not, the error says which object, and none of
   * what comes after it is added.
   */
  addGroundTruth(objects: Iterable<CocoGroundTruth>): void {
    const { truth } = this;
    for (const object of objects) {
      const { imageId, categoryId, bbox } = object;
      const area = object.area ?? bbox[2]! * bbox[3]!;
      if (!areIds(imageId, categoryId) || !isBox(bbox, 0) || !(area >= 0 && area < Infinity)) {
        refuse(
          `CocoEvaluator.addGroundTruth, object ${truth.image.length}`,
          imageId,
          categoryId,
          bbox,
          0,
          "area",
          area,
        );
      }
      truth.image.push(imageId);
      truth.category.push(categoryId);
      for (let i = 0; i < 4; i++) truth.boxes.push(bbox[i]!);
      truth.area.push(area);
      truth.crowd.push(object.iscrowd ? 1 : 0);
      truth.counts.push(object.id === 0 && !this.trustZeroIds ? 0 : 1);
    }
  }

  /** @see addDetection */
  addDetections(detections: Iterable<CocoDetection>): void {
    for (const { imageId, categoryId, bbox, score } of detections) {
      this.addDetection(imageId, categoryId, bbox, score);
    }
  }

  /**
   * One detection without an object around it; `bbox` is [x, y, width, height] in pixels, from `offset` on.
   *
   * @throws DlfsError that names the detection: an id that is no integer, or not on the list of images or categories that
   * was given; a score or a box that is not finite; a negative width or height
   */
  addDetection(imageId: number, categoryId: number, bbox: ArrayLike<number>, score: number, offset = 0): void {
    const { detected, imageSet, categorySet } = this;
    if (!areIds(imageId, categoryId) || !isBox(bbox, offset) || !Number.isFinite(score)) {
      refuse(this.nextDetection(), imageId, categoryId, bbox, offset, "score", score);
    }
    if (imageSet && !imageSet.has(imageId)) {
      const message = () => `image ${imageId} is not among the ${imageSet.size} images to evaluate`;
      check(false, this.nextDetection(), message);
    }
    if (categorySet && !categorySet.has(categoryId)) {
      const message = () => `category ${categoryId} is not among the ${categorySet.size} categories to evaluate`;
      check(false, this.nextDetection(), message);
    }
    detected.image.push(imageId);
    detected.category.push(categoryId);
    for (let i = 0; i < 4; i++) detected.boxes.push(bbox[offset + i]!);
    detected.area.push(bbox[offset + 2]! * bbox[offset + 3]!);
    detected.score.push(score);
  }

  private nextDetection(): string {
    return `CocoEvaluator.addDetection, detection ${this.detected.image.length}`;
  }

  /** Forgets the detections and keeps the ground truth, for the next evaluation of the same images. */
  clearDetections(): void {
    for (const column of Object.values(this.detected)) column.clear();
  }

  /** What has been added so far, as columns for other measures; later additions do not show in it. */
  data(): CocoData {
    const truthCategory = this.truth.category.view();
    const truthImage = this.truth.image.view();
    const category = this.detected.category.view();
    const image = this.detected.image.view();
    const categories = this.categories ?? sortedUnique([...truthCategory, ...category]);
    const images = this.images ?? sortedUnique([...truthImage, ...image]);
    return {
      categories,
      images,
      truth: {
        boxes: this.truth.boxes.view(),
        areas: this.truth.area.view(),
        crowd: Uint8Array.from(this.truth.crowd.view()),
        counts: Uint8Array.from(this.truth.counts.view()),
        category: placesOf(truthCategory, categories),
        image: placesOf(truthImage, images),
      },
      detections: {
        boxes: this.detected.boxes.view(),
        areas: this.detected.area.view(),
        scores: this.detected.score.view(),
        category: placesOf(category, categories),
        image: placesOf(image, images),
      },
    };
  }

  /** Evaluates what has been added so far; may be called again after more. */
  evaluate(): CocoResult {
    const data = this.data();
    const { categories } = data;
    const curves = createCurves(this.params, categories.length);
    const accumulator = new CurveAccumulator(this.params, curves);
    const maxDets = this.params.maxDets[this.params.maxDets.length - 1]!;
    matchByCategory(data, new GroupMatcher(this.params), maxDets, (k, table) => accumulator.accumulate(k, table));

    const { params } = this;
    const stats = computeStats(params, curves);
    const perCategory = new Map(categories.map((id, k) => [id, computeCategoryStats(params, curves, k)]));
    return {
      ...curves,
      stats,
      perCategory,
      params,
      categoryIds: [...categories],
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

function areIds(imageId: number, categoryId: number): boolean {
  return Number.isSafeInteger(imageId) && Number.isSafeInteger(categoryId);
}

/** Four finite numbers, no negative size. */
function isBox(bbox: ArrayLike<number>, offset: number): boolean {
  const w = bbox[offset + 2]!;
  const h = bbox[offset + 3]!;
  return Number.isFinite(bbox[offset]) && Number.isFinite(bbox[offset + 1]) && w >= 0 && h >= 0 && w + h < Infinity;
}

/** Throws what is wrong with a row that was found to be wrong; the messages are out of the way of those that are not. */
function refuse(
  where: string,
  imageId: number,
  categoryId: number,
  bbox: ArrayLike<number>,
  offset: number,
  name: "score" | "area",
  value: number,
): never {
  check(Number.isSafeInteger(imageId), where, () => `imageId must be an integer, got ${imageId}`);
  check(Number.isSafeInteger(categoryId), where, () => `categoryId must be an integer, got ${categoryId}`);
  const box = () => `[${Array.from({ length: 4 }, (_, i) => String(bbox[offset + i])).join(", ")}]`;
  const finite = [0, 1, 2, 3].every((i) => Number.isFinite(bbox[offset + i]));
  check(finite, where, () => `bbox must be four finite numbers [x, y, width, height], got ${box()}`);
  check(isBox(bbox, offset), where, () => `bbox must have a width and a height of at least 0, got ${box()}`);
  check(Number.isFinite(value), where, () => `${name} must be finite, got ${value}`);
  throw new DlfsError(ErrorCode.argument, where, `${name} must not be negative, got ${value}`);
}

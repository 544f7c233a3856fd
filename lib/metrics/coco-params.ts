import { check } from "../native/error";
import { linspace } from "./numeric";

/** One ground-truth object, in the terms of COCO's annotations. */
export interface CocoGroundTruth {
  imageId: number;
  categoryId: number;
  /** [x, y, width, height] in pixels, x and y of the top left corner. */
  bbox: ArrayLike<number>;
  /** The annotation's own area in square pixels (of its segmentation, in COCO); sets the size class. Default: w * h. */
  area?: number;
  /** A region that covers many objects: detections on it are neither right nor wrong. */
  iscrowd?: boolean | number;
  /**
   * The annotation's id in its file; see `CocoEvaluatorOptions.trustZeroIds` for what an id of 0 does. Leave it out and
   * it plays no role.
   */
  id?: number;
}

/** One detected object. */
export interface CocoDetection {
  imageId: number;
  categoryId: number;
  /** [x, y, width, height] in pixels, x and y of the top left corner. */
  bbox: ArrayLike<number>;
  score: number;
}

/** A size class: objects with `min <= area <= max`, in square pixels, both ends included. */
export interface AreaRange {
  label: string;
  min: number;
  max: number;
}

/** What is measured. `defaultCocoParams()` gives COCO's own values, which its published figures stand for. */
export interface CocoParams {
  /** IoU from which a detection matches; at most 32. Default 0.5, 0.55, ... 0.95. */
  iouThresholds: Float64Array;
  /** Recall levels at which precision is read. Default 0, 0.01, ... 1. */
  recallThresholds: Float64Array;
  /** Most detections counted per image and category, ascending. Default [1, 10, 100]. */
  maxDets: readonly number[];
  /** Default all, small (to 32²), medium (32² to 96²), large (from 96²). */
  areaRanges: readonly AreaRange[];
}

export function defaultCocoParams(): CocoParams {
  return {
    iouThresholds: linspace(0.5, 0.95, 10),
    recallThresholds: linspace(0, 1, 101),
    maxDets: [1, 10, 100],
    areaRanges: [
      { label: "all", min: 0, max: 1e10 },
      { label: "small", min: 0, max: 1024 },
      { label: "medium", min: 1024, max: 9216 },
      { label: "large", min: 9216, max: 1e10 },
    ],
  };
}

/** Completes `params` with COCO's values and refuses what cannot be evaluated. */
export function resolveCocoParams(params: Partial<CocoParams> = {}): CocoParams {
  const resolved = { ...defaultCocoParams(), ...params };
  const { iouThresholds, recallThresholds, maxDets, areaRanges } = resolved;
  const op = "CocoEvaluator";
  check(
    iouThresholds.length >= 1 && iouThresholds.length <= 32 && iouThresholds.every((t) => t >= 0 && t <= 1),
    op,
    () => `iouThresholds must hold 1 to 32 values in 0 .. 1, got [${iouThresholds.join(", ")}]`,
  );
  check(
    recallThresholds.length >= 1 && isAscending(recallThresholds),
    op,
    () => `recallThresholds must be ascending and not empty, got ${recallThresholds.length} values`,
  );
  check(
    maxDets.length >= 1 && isAscending(maxDets) && maxDets.every((m) => Number.isInteger(m) && m >= 1),
    op,
    () => `maxDets must be ascending integers from 1, got [${maxDets.join(", ")}]`,
  );
  check(
    areaRanges.length >= 1 && areaRanges.every((range) => range.min <= range.max),
    op,
    () => `areaRanges must be ranges with min <= max, got ${JSON.stringify(areaRanges)}`,
  );
  return resolved;
}

function isAscending(values: ArrayLike<number>): boolean {
  for (let i = 1; i < values.length; i++) if (!(values[i]! > values[i - 1]!)) return false;
  return true;
}

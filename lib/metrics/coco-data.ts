import type { GroundTruthColumns } from "./coco-match";
import { type GroupMatcher, MatchTable } from "./coco-match";
import { groupByBucket, stableSortDescending } from "./numeric";

/** What a `CocoEvaluator` has collected, as columns; `category` and `image` are places in the lists, -1: not measured. */
export interface CocoData {
  /** Ascending. */
  categories: readonly number[];
  /** Ascending. */
  images: readonly number[];
  truth: GroundTruthColumns & { category: Int32Array; image: Int32Array };
  detections: {
    boxes: Float64Array;
    areas: Float64Array;
    scores: Float64Array;
    category: Int32Array;
    image: Int32Array;
  };
}

/** The place in the sorted id list of each value of `ids`; -1 for an id that is not listed. */
export function placesOf(ids: Float64Array, sortedIds: readonly number[]): Int32Array {
  const places = new Map<number, number>();
  for (const [place, id] of sortedIds.entries()) places.set(id, place);
  const out = new Int32Array(ids.length);
  for (let i = 0; i < ids.length; i++) out[i] = places.get(ids[i]!) ?? -1;
  return out;
}

export function sortedUnique(ids: Iterable<number>): number[] {
  return [...new Set(ids)].sort((a, b) => a - b);
}

export interface RowGroups {
  /** Row numbers, group by group. */
  order: Int32Array;
  /** Group g is `order[starts[g] .. starts[g + 1])`. */
  starts: Int32Array;
}

/** Rows of each image, in the order of adding; rows that are not measured are in none. */
export function groupByImage(data: CocoData, side: "truth" | "detections"): RowGroups {
  return groupByBucket(data[side].image, data.images.length, measuredRows(data[side]));
}

/** Rows grouped by category and, inside, ordered by image and then by the order of adding. */
function groupByCategory(data: CocoData, side: "truth" | "detections"): RowGroups {
  const byImage = groupByImage(data, side);
  return groupByBucket(data[side].category, data.categories.length, byImage.order);
}

function measuredRows({ category, image }: { category: Int32Array; image: Int32Array }): Int32Array {
  const rows = new Int32Array(category.length);
  let count = 0;
  for (let i = 0; i < category.length; i++) if (category[i]! >= 0 && image[i]! >= 0) rows[count++] = i;
  return rows.subarray(0, count);
}

/**
 * Matches category by category, image by image, with the best `maxDets` detections of each image and category.
 *
 * @param visit called with the place of each category and its matches, which the next category overwrites
 */
export function matchByCategory(
  data: CocoData,
  matcher: GroupMatcher,
  maxDets: number,
  visit: (k: number, table: MatchTable) => void,
): void {
  const { truth, detections } = data;
  const truthRows = groupByCategory(data, "truth");
  const detectionRows = groupByCategory(data, "detections");
  const table = new MatchTable(matcher.areas);
  const scratch = new Int32Array(detectionRows.order.length);
  for (let k = 0; k < data.categories.length; k++) {
    const truthEnd = truthRows.starts[k + 1]!;
    const detectionEnd = detectionRows.starts[k + 1]!;
    let g = truthRows.starts[k]!;
    let d = detectionRows.starts[k]!;
    table.reset(detectionEnd - d);
    while (g < truthEnd || d < detectionEnd) {
      const truthImage = g < truthEnd ? truth.image[truthRows.order[g]!]! : Infinity;
      const detectionImage = d < detectionEnd ? detections.image[detectionRows.order[d]!]! : Infinity;
      const image = Math.min(truthImage, detectionImage);
      const g0 = g;
      const d0 = d;
      while (g < truthEnd && truth.image[truthRows.order[g]!] === image) g++;
      while (d < detectionEnd && detections.image[detectionRows.order[d]!] === image) d++;
      stableSortDescending(detectionRows.order, detections.scores, d0, d, scratch);
      matcher.match(
        truth,
        truthRows.order.subarray(g0, g),
        detections,
        detections.scores,
        detectionRows.order.subarray(d0, Math.min(d, d0 + maxDets)),
        table,
      );
    }
    visit(k, table);
  }
}

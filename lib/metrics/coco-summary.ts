import type { CocoCurves } from "./coco-accumulate";
import type { CocoParams } from "./coco-params";
import { formatFixed3, pairwiseSum } from "./numeric";

/** COCO's twelve figures, each 0 to 1, or -1 where there is no object to measure. */
export interface CocoStats {
  /** Mean over IoU 0.5 to 0.95, recall and categories: COCO's main figure. */
  AP: number;
  AP50: number;
  AP75: number;
  APs: number;
  APm: number;
  APl: number;
  /** Mean recall with at most 1, 10, 100 detections per image and category (the three values of `maxDets`). */
  AR1: number;
  AR10: number;
  AR100: number;
  ARs: number;
  ARm: number;
  ARl: number;
}

/** The figures of one category, -1 where it has no object that counts. */
export interface CocoCategoryStats {
  AP: number;
  AP50: number;
  AR100: number;
}

interface Selection {
  kind: "precision" | "recall";
  /** One IoU threshold; undefined: all. */
  iou?: number;
  area: string;
  /** Place in `maxDets`; one that does not exist gives -1. */
  m: number;
  /** One category's place; undefined: all. */
  k?: number;
}

/**
 * Mean of the selected entries above -1, or -1 when there is none. The values are gathered in the order T, R, K, in
 * which pycocotools' `s[s > -1]` lists them, and added as NumPy adds them.
 */
function meanOf(params: CocoParams, curves: CocoCurves, selection: Selection): number {
  const { T, R, K, A, M } = curves.counts;
  const a = params.areaRanges.findIndex((range) => range.label === selection.area);
  if (a < 0 || selection.m >= M) return -1;
  const source = selection.kind === "precision" ? curves.precision : curves.recall;
  const recalls = selection.kind === "precision" ? R : 1;
  const values = new Float64Array(T * recalls * K);
  let count = 0;
  for (let t = 0; t < T; t++) {
    if (selection.iou !== undefined && params.iouThresholds[t] !== selection.iou) continue;
    for (let r = 0; r < recalls; r++) {
      for (let k = selection.k ?? 0; k < (selection.k === undefined ? K : selection.k + 1); k++) {
        const value = source[(((t * recalls + r) * K + k) * A + a) * M + selection.m]!;
        if (value > -1) values[count++] = value;
      }
    }
  }
  return count === 0 ? -1 : pairwiseSum(values, 0, count) / count;
}

interface Row extends Selection {
  name: keyof CocoStats;
}

/** The twelve figures in pycocotools' order. */
function rows(params: CocoParams): Row[] {
  const last = params.maxDets.length - 1;
  const precision = { kind: "precision", area: "all", m: last } as const;
  const recall = { kind: "recall", area: "all", m: last } as const;
  return [
    { ...precision, name: "AP" },
    { ...precision, name: "AP50", iou: 0.5 },
    { ...precision, name: "AP75", iou: 0.75 },
    { ...precision, name: "APs", area: "small" },
    { ...precision, name: "APm", area: "medium" },
    { ...precision, name: "APl", area: "large" },
    { ...recall, name: "AR1", m: 0 },
    { ...recall, name: "AR10", m: 1 },
    { ...recall, name: "AR100", m: 2 },
    { ...recall, name: "ARs", area: "small" },
    { ...recall, name: "ARm", area: "medium" },
    { ...recall, name: "ARl", area: "large" },
  ];
}

export function computeStats(params: CocoParams, curves: CocoCurves): CocoStats {
  const stats: Partial<CocoStats> = {};
  for (const row of rows(params)) stats[row.name] = meanOf(params, curves, row);
  return stats as CocoStats;
}

export function computeCategoryStats(params: CocoParams, curves: CocoCurves, k: number): CocoCategoryStats {
  const m = params.maxDets.length - 1;
  return {
    AP: meanOf(params, curves, { kind: "precision", area: "all", m, k }),
    AP50: meanOf(params, curves, { kind: "precision", area: "all", m, k, iou: 0.5 }),
    AR100: meanOf(params, curves, { kind: "recall", area: "all", m, k }),
  };
}

/** The table that pycocotools' `summarize()` prints: twelve lines, no newline at the end. */
export function formatSummary(params: CocoParams, stats: CocoStats): string {
  const thresholds = params.iouThresholds;
  const all = `${thresholds[0]!.toFixed(2)}:${thresholds[thresholds.length - 1]!.toFixed(2)}`;
  return rows(params)
    .map((row) => {
      const title = (row.kind === "precision" ? "Average Precision" : "Average Recall").padEnd(18);
      const type = row.kind === "precision" ? "(AP)" : "(AR)";
      const iou = (row.iou === undefined ? all : row.iou.toFixed(2)).padEnd(9);
      const limit = String(params.maxDets[row.m] ?? "-").padStart(3);
      const value = formatFixed3(stats[row.name]);
      return ` ${title} ${type} @[ IoU=${iou} | area=${row.area.padStart(6)} | maxDets=${limit} ] = ${value}`;
    })
    .join("\n");
}

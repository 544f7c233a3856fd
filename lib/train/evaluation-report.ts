/** What an evaluation leaves behind: tables as text, pictures and files. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type Category, formatCocoResults, type ResultRow } from "../data";
import { type MetricsMessage, writeFileAtomic } from "../formats";
import {
  analyzeErrors,
  type CocoEvaluator,
  type CocoResult,
  confusionMatrix,
  confusionMatrixSvg,
  type DetectionCurves,
  detectionCurves,
  type ErrorAnalysis,
  errorTypes,
  f1CurveSvg,
  prCurveSvg,
} from "../metrics";
import type { ModelEvaluation } from "./evaluate";

/** Detections measured against annotations. */
export interface Evaluation {
  readonly evaluator: CocoEvaluator;
  readonly result: CocoResult;
  readonly categories: readonly Category[];
  /** How many images were measured. */
  readonly images: number;
}

/**
 * Draws the confusion matrix and the curves of detections: confusion-matrix.svg, pr-curve.svg, f1-curve.svg.
 *
 * @param names of the categories by ascending id
 */
export async function writeMetricPictures(
  folder: string,
  evaluator: CocoEvaluator,
  names: readonly string[],
  curves: DetectionCurves = detectionCurves(evaluator),
): Promise<void> {
  const pictures = {
    "confusion-matrix.svg": confusionMatrixSvg(confusionMatrix(evaluator), names),
    "pr-curve.svg": prCurveSvg(curves, names),
    "f1-curve.svg": f1CurveSvg(curves, names),
  };
  for (const [name, svg] of Object.entries(pictures)) await writeFileAtomic(join(folder, name), svg);
}

/** A confusion matrix of more classes than this is not sent along: it would be larger than all else of an evaluation. */
const MAX_CONFUSED = 255;

/** What is said of an evaluation's classes to those who listen. */
export type EvaluatedClasses = Required<Pick<MetricsMessage, "classes">> & Pick<MetricsMessage, "confusion">;

/**
 * What MetricsMessage has of classes.
 *
 * @param names of the categories by ascending id
 */
export function evaluatedClasses(
  evaluator: CocoEvaluator,
  { perCategory }: CocoResult,
  curves: DetectionCurves,
  names: readonly string[],
): EvaluatedClasses {
  const known = (value: number | undefined): number => (value === undefined || value < 0 ? Number.NaN : value);
  const classes = curves.categories.map(({ categoryId, positives, interpolated }, i) => {
    const { AP, AP50 } = perCategory.get(categoryId) ?? {};
    const precision = Float32Array.from(positives > 0 ? interpolated : []);
    return { category: names[i] as string, objects: positives, ap: known(AP), ap50: known(AP50), precision };
  });
  if (classes.length > MAX_CONFUSED) return { classes };
  return { classes, confusion: Uint32Array.from(confusionMatrix(evaluator, { iouThreshold: 0.5 }).counts) };
}

/** The measures of an evaluation beside the twelve figures. */
export interface EvaluationReport {
  readonly evaluation: Evaluation;
  readonly curves: DetectionCurves;
  readonly errors: ErrorAnalysis;
}

export function reportOf(evaluation: Evaluation): EvaluationReport {
  const { evaluator } = evaluation;
  return { evaluation, curves: detectionCurves(evaluator), errors: analyzeErrors(evaluator) };
}

/** One row for each class, by category id. */
function classRows({ evaluation, curves }: EvaluationReport) {
  const names = new Map(evaluation.categories.map(({ id, name }) => [id, name]));
  return curves.categories.map(({ categoryId, positives, best }) => ({
    id: categoryId,
    name: names.get(categoryId) ?? String(categoryId),
    objects: positives,
    ...evaluation.result.perCategory.get(categoryId)!,
    best,
  }));
}

/**
 * pycocotools' twelve lines, a table of the classes (objects, AP, AP50, AR100, the threshold of the best F1 with precision and
 * recall there), and what each kind of error costs, as lines of text.
 */
export function formatReport(report: EvaluationReport): string[] {
  const { evaluation, curves, errors } = report;
  const figure = (value: number | undefined) => (value === undefined || value < 0 ? "-" : value.toFixed(3)).padStart(9);
  const rows = classRows(report);
  const width = Math.max(5, ...rows.map(({ name }) => name.length));
  const columns = ["AP", "AP50", "AR100", "best F1", "at score", "precision", "recall"];
  const overall = curves.mean.best;
  const cost = errorTypes.map((type) => `${type} ${errors.dAP[type].toFixed(3)}`).join("  ");
  return [
    evaluation.result.summarize(),
    "",
    `${"class".padEnd(width)}  objects${columns.map((name) => name.padStart(10)).join("")}`,
    ...rows.map(({ name, objects, AP, AP50, AR100, best }) => {
      const figures = [AP, AP50, AR100, best?.f1, best?.threshold, best?.precision, best?.recall];
      return `${name.padEnd(width)}  ${String(objects).padStart(7)} ${figures.map(figure).join(" ")}`;
    }),
    "",
    ...(overall
      ? [`best F1 with one threshold for all: ${overall.f1.toFixed(3)} at ${overall.threshold.toFixed(3)}`]
      : []),
    `AP50 lost to errors: ${cost}`,
  ];
}

/** AP, AP50 and AP75 of a model in its precision and in 8 bits, with the differences in points, as lines of text. */
export function formatQuantized({ precision, result, quantized }: ModelEvaluation): string[] {
  if (quantized.length === 0) return [];
  const figures = ({ stats: { AP, AP50, AP75 } }: CocoResult) =>
    [AP, AP50, AP75].map((value) => value.toFixed(4).padStart(8)).join("");
  return [
    "",
    `${"".padEnd(5)}      AP    AP50    AP75`,
    `${precision.padEnd(5)}${figures(result)}`,
    ...quantized.map(({ dtype, result: other }) => {
      const points = 100 * (other.stats.AP - result.stats.AP);
      return `${dtype.padEnd(5)}${figures(other)}   AP ${points < 0 ? "" : "+"}${points.toFixed(2)} points`;
    }),
  ];
}

/**
 * Writes a report into a folder: metrics.json (the figures, by class too, and the errors), confusion-matrix.svg, pr-curve.svg,
 * f1-curve.svg and, where detections are given, detections.json in COCO's results format.
 *
 * @throws DlfsError of code `io` where writing fails
 */
export async function writeReport(
  folder: string,
  report: EvaluationReport,
  detections?: readonly ResultRow[],
): Promise<void> {
  const { evaluation, curves, errors } = report;
  await mkdir(folder, { recursive: true });
  const names = [...evaluation.categories].sort((a, b) => a.id - b.id).map(({ name }) => name);
  await writeMetricPictures(folder, evaluation.evaluator, names, curves);
  const metrics = {
    images: evaluation.images,
    stats: evaluation.result.stats,
    classes: classRows(report),
    best: curves.mean.best,
    errors,
  };
  await writeFileAtomic(join(folder, "metrics.json"), `${JSON.stringify(metrics, null, 2)}\n`);
  if (detections) await writeFileAtomic(join(folder, "detections.json"), formatCocoResults(detections));
}

import { check } from "../native/error";
import type { ConfusionMatrix } from "./confusion-matrix";
import type { CategoryCurve, DetectionCurves, OperatingPoint } from "./curves";
import {
  colors,
  coordinate,
  document,
  escapeText,
  type Line,
  lineChart,
  lineColor,
  PALETTE_SIZE,
  shorten,
  text,
} from "./svg";

/** Names of all categories, in the order of their ids. */
function checkNames(names: readonly string[], count: number, op: string): void {
  check(names.length === count, op, () => `expected the names of ${count} categories, got ${names.length}`);
}

/**
 * A confusion matrix as an SVG picture. Colours show each cell's share of its row, that is, of the objects of one class;
 * numbers, where there is room, are counts. Every cell says what it is when pointed at.
 *
 * @param names of the categories, in the order of the matrix
 */
export function confusionMatrixSvg(matrix: ConfusionMatrix, names: readonly string[]): string {
  checkNames(names, matrix.size - 1, "confusionMatrixSvg");
  const { size, counts } = matrix;
  const labels = [...names, "background"];
  const cell = size <= 12 ? 56 : size <= 30 ? 34 : 12;
  const fontSize = cell >= 34 ? 12 : 9;
  const shown = labels.map((label) => shorten(label, 20));
  const margin = 12 + Math.max(...shown.map((label) => label.length)) * fontSize * 0.6;
  const [left, top] = [44 + margin, 76];
  const side = size * cell;
  const parts = [
    text(20, 30, "Confusion matrix", { size: 17, bold: true }),
    text(20, 50, `score above ${matrix.scoreThreshold}, IoU above ${matrix.iouThreshold}; colour: share of the row`, {
      color: colors.muted,
    }),
    `<rect x="${coordinate(left)}" y="${top}" width="${side}" height="${side}" fill="#f8fafc"/>`,
  ];
  for (let row = 0; row < size; row++) {
    const values = counts.subarray(row * size, (row + 1) * size);
    const total = values.reduce((sum, count) => sum + count, 0);
    const y = top + row * cell;
    parts.push(text(left - 8, y + cell / 2 + fontSize * 0.35, shown[row]!, { size: fontSize, anchor: "end" }));
    for (const [column, count] of values.entries()) {
      if (count === 0) continue;
      const share = count / total;
      const x = left + column * cell;
      const says = `${labels[row]} taken for ${labels[column]}: ${count} of ${total} (${(100 * share).toFixed(1)} %)`;
      parts.push(
        `<rect x="${coordinate(x)}" y="${y}" width="${cell}" height="${cell}" fill="${shade(share)}">` +
          `<title>${escapeText(says)}</title></rect>`,
      );
      if (cell < 34) continue;
      const color = share > 0.25 ? "#ffffff" : colors.ink;
      const digits = String(count).length;
      const numberSize = Math.min(cell >= 56 ? 14 : 11, (cell - 4) / (0.62 * digits));
      const middle = { size: Math.round(10 * numberSize) / 10, anchor: "middle", color } as const;
      parts.push(text(x + cell / 2, y + cell / 2 + (cell >= 56 ? 0 : numberSize * 0.35), String(count), middle));
      if (cell >= 56) parts.push(text(x + cell / 2, y + cell / 2 + 15, percent(share), { ...middle, size: 10 }));
    }
  }
  const lines: string[] = [];
  for (let i = 0; i <= size; i++) {
    lines.push(`M${coordinate(left)} ${top + i * cell}h${side}M${coordinate(left + i * cell)} ${top}v${side}`);
  }
  const frame = top + (size - 1) * cell;
  parts.push(
    `<path d="${lines.join("")}" stroke="${colors.grid}" fill="none"/>`,
    // Background is no class: a line sets it apart.
    `<path d="M${coordinate(left)} ${frame}h${side}M${coordinate(left + side - cell)} ${top}v${side}" stroke="${colors.muted}"/>`,
  );
  for (const [column, label] of shown.entries()) {
    const x = left + (column + 0.5) * cell + fontSize * 0.35;
    parts.push(text(x, top + side + 8, label, { size: fontSize, anchor: "end", rotate: -90 }));
  }
  parts.push(
    text(22, top + side / 2, "object", { anchor: "middle", rotate: -90, bold: true }),
    text(left + side / 2, top + side + margin + 20, "detected as", { anchor: "middle", bold: true }),
  );
  return document(Math.max(left + side + 24, 470), top + side + margin + 36, "Confusion matrix", parts);
}

/** White to dark blue. */
function shade(share: number): string {
  const mix = (from: number, to: number) => Math.round(from + (to - from) * Math.sqrt(share));
  return `rgb(${mix(248, 23)},${mix(250, 63)},${mix(252, 148)})`;
}

function percent(share: number): string {
  const value = 100 * share;
  return value > 0 && value < 1 ? "< 1 %" : `${value.toFixed(0)} %`;
}

/**
 * Precision over recall, per category and their mean, as an SVG picture. The curves are COCO's: at each recall, the highest
 * precision there or further right. With more than ten categories the single ones are grey, and say their names when
 * pointed at.
 *
 * @param names of the categories, in the order of the curves
 */
export function prCurveSvg(curves: DetectionCurves, names: readonly string[]): string {
  const { mean, iouThreshold } = curves;
  const { recallLevels, interpolated, AP } = mean;
  const points = (values: Float64Array) =>
    Array.from(recallLevels, (recall, r): [number, number] => [recall, values[r]!]);
  return chartOf(curves, names, "prCurveSvg", {
    title: "Precision and recall",
    subtitle: `IoU ${iouThreshold}; AP ${number(AP)}, the mean of the categories`,
    xLabel: "recall",
    yLabel: "precision",
    x: [0, 1],
    line: (curve) => ({ points: points(curve.interpolated) }),
    mean: { points: points(interpolated), mark: undefined },
    figure: ({ AP: value }) => value,
    meanText: `mean: AP ${number(AP)}`,
    figureText: ({ AP: value }) => number(value),
  });
}

/**
 * F1 over the score threshold, per category and their mean, with dots where it is highest, as an SVG picture.
 *
 * @param names of the categories, in the order of the curves
 */
export function f1CurveSvg(curves: DetectionCurves, names: readonly string[]): string {
  const { mean, iouThreshold } = curves;
  const { thresholds, f1, best } = mean;
  const ends = [thresholds[0]!, thresholds[thresholds.length - 1]!] as const;
  const dot = (point: OperatingPoint | null) => point && ([point.threshold, point.f1] as const);
  return chartOf(curves, names, "f1CurveSvg", {
    title: "F1 over the score threshold",
    subtitle: best
      ? `IoU ${iouThreshold}; best mean F1 ${number(best.f1)} at ${number(best.threshold)}: precision ${number(best.precision)}, recall ${number(best.recall)}`
      : `IoU ${iouThreshold}; nothing was found`,
    xLabel: "score threshold",
    yLabel: "F1",
    x: ends,
    line: (curve) => ({ points: steps(curve, thresholds), mark: dot(curve.best) ?? undefined }),
    mean: {
      points: Array.from(thresholds, (threshold, i): [number, number] => [threshold, f1[i]!]),
      mark: dot(best) ?? undefined,
    },
    figure: (curve) => curve.best?.f1 ?? 0,
    meanText: best ? `mean: ${number(best.f1)} at ${number(best.threshold)}` : "mean: 0",
    figureText: (curve) => (curve.best ? `${number(curve.best.f1)} at ${number(curve.best.threshold)}` : "0"),
  });
}

/** F1 of one category at thresholds a hundredth of the axis apart and at its best. */
function steps(curve: CategoryCurve, thresholds: Float64Array): [number, number][] {
  const points: [number, number][] = [];
  let place = -1;
  for (let i = thresholds.length - 1; i >= 0; i -= 5) {
    while (curve.thresholds[place + 1]! >= thresholds[i]!) place++;
    points.push([thresholds[i]!, place < 0 ? 0 : curve.f1[place]!]);
  }
  if (curve.best) points.push([curve.best.threshold, curve.best.f1]);
  return points.sort((a, b) => a[0] - b[0]);
}

interface ChartText {
  title: string;
  subtitle: string;
  xLabel: string;
  yLabel: string;
  x: readonly [number, number];
  line(curve: CategoryCurve): Pick<Line, "points" | "mark">;
  mean: Pick<Line, "points" | "mark">;
  /** What the legend is sorted by. */
  figure(curve: CategoryCurve): number;
  meanText: string;
  figureText(curve: CategoryCurve): string;
}

/** One chart with a line for each category that has objects, and the mean on top. */
function chartOf(curves: DetectionCurves, names: readonly string[], op: string, chart: ChartText): string {
  checkNames(names, curves.categories.length, op);
  const counted = curves.categories
    .map((curve, k) => ({ curve, name: names[k]! }))
    .filter(({ curve }) => curve.positives > 0);
  const few = counted.length <= PALETTE_SIZE;
  const label = ({ curve, name }: (typeof counted)[number]) => `${shorten(name, 16)}: ${chart.figureText(curve)}`;
  const lines = counted.map((entry, i): Line => {
    const { points, mark } = chart.line(entry.curve);
    const color = few ? lineColor(i) : colors.faint;
    return { name: label(entry), points, color, width: few ? 1.5 : 1, ...(few && mark ? { mark } : {}) };
  });
  if (counted.length !== 1) lines.push({ name: chart.meanText, ...chart.mean, color: colors.accent, width: 3 });
  const legend: { text: string; color: string | null; bold?: boolean }[] = [];
  if (counted.length !== 1) legend.push({ text: chart.meanText, color: colors.accent, bold: true });
  if (few) legend.push(...counted.map((entry, i) => ({ text: label(entry), color: lineColor(i) })));
  else {
    const sorted = [...counted].sort((a, b) => chart.figure(b.curve) - chart.figure(a.curve));
    legend.push({ text: `${counted.length} categories`, color: colors.faint });
    legend.push({ text: "", color: null }, { text: "best", color: null, bold: true });
    legend.push(...sorted.slice(0, 5).map((entry) => ({ text: label(entry), color: null })));
    legend.push({ text: "", color: null }, { text: "worst", color: null, bold: true });
    legend.push(...sorted.slice(-5).map((entry) => ({ text: label(entry), color: null })));
  }
  const { title, subtitle, xLabel, yLabel, x } = chart;
  return lineChart({ title, subtitle, xLabel, yLabel, x, lines, legend });
}

function number(value: number): string {
  return value < 0 ? "-" : value.toFixed(3);
}

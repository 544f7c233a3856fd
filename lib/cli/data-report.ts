/** How `dlfs data stats` prints its figures. */
import type { BoxStats, Spread } from "../data";

const LISTED = 10;

/** Lines with sizes, boxes, classes and, where there are IoUs of a model's anchors, their coverage. */
export function statsLines(stats: BoxStats, anchors: { name: string; ious: readonly number[] } | null): string[] {
  const { images, boxes, crowds, withoutBoxes, sizes, areas, categories } = stats;
  const percent = (part: number, all: number): string => `${all === 0 ? 0 : ((100 * part) / all).toFixed(1)} %`;
  const spread = (name: string, { min, p05, p25, median, p75, p95, max }: Spread): string => {
    const values = [min, p05, p25, median, p75, p95, max].map((v) => number(v).padStart(9)).join("");
    return `${name.padEnd(26)}${values}`;
  };
  const lines = [
    `${images} images, ${withoutBoxes} without boxes; ${boxes} boxes and ${crowds} crowds; ${categories.length} classes`,
    "",
    `${"".padEnd(26)}${["least", "5 %", "25 %", "median", "75 %", "95 %", "most"].map((t) => t.padStart(9)).join("")}`,
    spread("boxes an image", stats.perImage),
    spread("box side (root of area)", stats.sides),
    spread("box area, % of the image", stats.coverage),
    spread("aspect ratio (w / h)", stats.aspectRatios),
    "",
    `areas: ${areas.small} small (${percent(areas.small, boxes)}), ${areas.medium} medium ` +
      `(${percent(areas.medium, boxes)}), ${areas.large} large (${percent(areas.large, boxes)}); limits 32x32 and 96x96`,
    `image sizes: ${sizes
      .slice(0, LISTED)
      .map(({ width, height, images: n }) => `${width}x${height} (${n})`)
      .join(", ")}${sizes.length > LISTED ? `, and ${sizes.length - LISTED} more` : ""}`,
    "",
    `${"class".padEnd(30)}${"boxes".padStart(10)}${"images".padStart(10)}`,
  ];
  for (const { id, name, boxes: n, images: of } of [...categories].sort((a, b) => b.boxes - a.boxes)) {
    lines.push(`${`${name} (${id})`.padEnd(30)}${String(n).padStart(10)}${String(of).padStart(10)}`);
  }
  if (anchors) lines.push("", ...coverageLines(anchors.name, anchors.ious));
  return lines;
}

function coverageLines(name: string, ious: readonly number[]): string[] {
  const share = (test: (iou: number) => boolean): string =>
    `${ious.length === 0 ? 0 : ((100 * ious.filter(test).length) / ious.length).toFixed(1)} %`;
  const mean = ious.reduce((sum, iou) => sum + iou, 0) / Math.max(1, ious.length);
  const bins = Array.from(
    { length: 10 },
    (_, i) => ious.filter((iou) => Math.min(9, Math.floor(iou * 10)) === i).length,
  );
  const most = Math.max(1, ...bins);
  return [
    `anchors of ${name}: the best IoU of each box, mean ${mean.toFixed(3)}`,
    `  at least 0.5: ${share((iou) => iou >= 0.5)}   below 0.4: ${share((iou) => iou < 0.4)}`,
    ...bins.map((count, i) => {
      const bar = "#".repeat(Math.ceil((40 * count) / most));
      return `  ${(i / 10).toFixed(1)} to ${((i + 1) / 10).toFixed(1)}  ${String(count).padStart(9)}  ${bar}`.trimEnd();
    }),
  ];
}

function number(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** What simulate-labeling.ts found, as a figure. */
import { colors, type Line, lineChart, lineColor } from "../../lib/metrics/svg";

/** AP by the number of labelled images: of each order the mean in bold, and each seed's in the same colour. */
export function labelingPicture(
  title: string,
  counts: readonly number[],
  /** By order: of each seed the AP after each round. */
  values: ReadonlyMap<string, readonly (readonly number[])[]>,
): string {
  const all = [...values.values()].flat(2);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const room = 0.05 * Math.max(high - low, 0.01);
  const points = (ap: readonly number[]) => ap.map((y, i) => [counts[i] as number, y] as const);
  const mean = (seeds: readonly (readonly number[])[]) =>
    counts.map((_, i) => seeds.reduce((sum, ap) => sum + (ap[i] as number), 0) / seeds.length);
  const named = [...values].map(([name, seeds], i) => ({
    ...{ name, seeds, color: name === "random" ? colors.muted : lineColor(i - 1) },
  }));
  const lines = [
    ...named.flatMap(({ name, seeds, color }) =>
      seeds.map((ap, seed): Line => ({ name: `${name}, seed ${seed}`, points: points(ap), color, width: 0.8 })),
    ),
    ...named.map(({ name, seeds, color }): Line => ({ name, points: points(mean(seeds)), color, width: 3 })),
  ];
  return lineChart({
    title,
    subtitle: `means of ${named[0]?.seeds.length ?? 0} seeds in bold, each seed beside them`,
    ...{ xLabel: "labelled images", yLabel: "AP on the validation split", lines },
    x: [counts[0] ?? 0, counts.at(-1) ?? 1],
    y: [Math.max(0, low - room), high + room],
    legend: named.map(({ name, color }) => ({ text: name, color, bold: true })),
  });
}

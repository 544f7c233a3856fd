import { colors, type Line, lineChart } from "../metrics/svg";
import type { RateRangeResult } from "./rate-range";

const ENDS = {
  "last step": "to the last step",
  diverged: "until the loss diverged",
  interrupted: "until it was interrupted",
} as const;

/** A rate in few digits, "0.00525". */
export const formatRate = (rate: number): string => String(Number(rate.toPrecision(3)));

/** The losses of a range test over the rates, with the suggestion, as SVG. */
export function ratePicture({ points, suggestion, ended }: RateRangeResult, title: string): string {
  const finite = points.filter(({ loss, smoothed }) => Number.isFinite(loss) && Number.isFinite(smoothed));
  const smoothed = finite.map((point): [number, number] => [point.rate, point.smoothed]);
  const heights = smoothed.map(([, loss]) => loss);
  // Room for single losses around the smoothed ones; what rises at the end does not flatten all before.
  const [low, high] = [Math.min(...heights), heights[0] ?? 1];
  const room = 0.25 * Math.max(high - low, 1e-3 * high);
  const at = finite.find(({ rate }) => rate === suggestion);
  const lines: Line[] = [
    {
      name: "loss of a step",
      points: finite.map(({ rate, loss }) => [rate, loss]),
      color: colors.faint,
      width: 1,
    },
    {
      ...{ name: "smoothed", points: smoothed, color: colors.accent, width: 2.5 },
      ...(at && { mark: [at.rate, at.smoothed] as const }),
    },
  ];
  return lineChart({
    title,
    subtitle: `${points.length} steps, ${ENDS[ended]}`,
    ...{ xLabel: "learning rate", yLabel: "loss", logX: true, lines },
    x: [finite[0]?.rate ?? 1e-6, finite.at(-1)?.rate ?? 1],
    y: [Math.max(0, low - room), high + 2 * room],
    legend: [
      { text: "smoothed loss", color: colors.accent, bold: true },
      { text: "loss of a step", color: colors.faint },
      {
        text: suggestion === null ? "no suggestion: it does not fall" : `suggested: ${formatRate(suggestion)}`,
        color: null,
      },
    ],
  });
}

/** Colours, text and line charts for the pictures of metrics: SVG written by hand, readable without a script or a font file. */

export const colors = {
  ink: "#1f2933",
  muted: "#7b8794",
  grid: "#e4e7eb",
  faint: "#cbd2d9",
  accent: "#1d4ed8",
} as const;

/** Ten colours that stay apart from each other on white, also for most colour-blind readers (Tableau 10). */
const PALETTE = [
  "#4e79a7",
  "#f28e2b",
  "#e15759",
  "#76b7b2",
  "#59a14f",
  "#edc948",
  "#b07aa1",
  "#ff9da7",
  "#9c755f",
  "#bab0ac",
];

export const PALETTE_SIZE = PALETTE.length;

export function lineColor(index: number): string {
  return PALETTE[index % PALETTE.length]!;
}

/** Text as SVG holds it: markup is escaped, and control characters, which XML has no place for, become spaces. */
export function escapeText(text: string): string {
  const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;" };
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replace(/[&<>"']/g, (c) => entities[c]!).replace(/[\x00-\x1f\x7f\ufffe\uffff]|\p{Surrogate}/gu, " ");
}

/** At most `length` characters, the last one "…" where some are left out. */
export function shorten(text: string, length: number): string {
  const characters = [...text];
  return characters.length <= length ? text : `${characters.slice(0, length - 1).join("")}…`;
}

/** A coordinate with at most two decimals. */
export function coordinate(value: number): string {
  return String(Math.round(value * 100) / 100);
}

export interface TextOptions {
  size?: number;
  color?: string;
  anchor?: "start" | "middle" | "end";
  bold?: boolean;
  /** Degrees, about the point; -90 reads upwards. */
  rotate?: number;
}

/** A line of text with its baseline at y. */
export function text(x: number, y: number, content: string, options: TextOptions = {}): string {
  const { size = 12, color = colors.ink, anchor = "start", bold = false, rotate } = options;
  const at = `x="${coordinate(x)}" y="${coordinate(y)}"`;
  const turn = rotate === undefined ? "" : ` transform="rotate(${rotate} ${coordinate(x)} ${coordinate(y)})"`;
  const weight = bold ? ' font-weight="600"' : "";
  return `<text ${at} font-size="${size}" fill="${color}" text-anchor="${anchor}"${weight}${turn}>${escapeText(content)}</text>`;
}

/** A whole picture on white. */
export function document(width: number, height: number, title: string, parts: readonly string[]): string {
  const size = `width="${Math.ceil(width)}" height="${Math.ceil(height)}" viewBox="0 0 ${Math.ceil(width)} ${Math.ceil(height)}"`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif">`,
    `<title>${escapeText(title)}</title>`,
    `<rect width="100%" height="100%" fill="#ffffff"/>`,
    ...parts,
    "</svg>",
    "",
  ].join("\n");
}

export interface Line {
  name: string;
  points: readonly (readonly [x: number, y: number])[];
  color: string;
  width: number;
  /** A dot on the line. */
  mark?: readonly [x: number, y: number];
}

export interface Chart {
  title: string;
  subtitle: string;
  xLabel: string;
  yLabel: string;
  /** Left and right end of the x axis. */
  x: readonly [number, number];
  /** Whether it is divided by the logarithm. Default false. */
  logX?: boolean;
  /** Lower and upper end of the y axis; what is beyond is cut off. Default 0 and 1. */
  y?: readonly [number, number];
  /** Drawn in this order, the last on top. */
  lines: readonly Line[];
  /** Lines beside the plot, with the colour of a line before each; null: none. */
  legend: readonly { text: string; color: string | null; bold?: boolean }[];
}

const PLOT = { left: 64, top: 68, width: 520, height: 400 } as const;

/** Where an axis has marks, and what is written there: six evenly spread, or the powers of ten. */
function marks([low, high]: readonly [number, number], log: boolean, write: (value: number) => string) {
  if (!log) {
    return Array.from({ length: 6 }, (_, i) => low + ((high - low) * i) / 5).map((at) => ({ at, label: write(at) }));
  }
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const powers = Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => 10 ** (first + i));
  return powers.map((at) => ({ at, label: at >= 1e-3 && at < 1e4 ? String(at) : `1e${Math.round(Math.log10(at))}` }));
}

/** A line chart. */
export function lineChart(chart: Chart): string {
  const { left, top, width, height } = PLOT;
  const { logX = false, y: ends = [0, 1] } = chart;
  const along = (x: number) => (logX ? Math.log10(x) : x);
  const [low, high] = chart.x.map(along) as [number, number];
  const [bottom, ceiling] = ends;
  const px = (x: number) => left + (width * (along(x) - low)) / (high - low);
  const py = (y: number) => top + height * (1 - (Math.min(Math.max(y, bottom), ceiling) - bottom) / (ceiling - bottom));
  const parts = [
    text(left, 30, chart.title, { size: 17, bold: true }),
    text(left, 50, chart.subtitle, { color: colors.muted }),
  ];
  const unit = bottom === 0 && ceiling === 1;
  for (const { at, label } of marks(ends, false, (value) => (unit ? value.toFixed(1) : tick(value)))) {
    const y = coordinate(py(at));
    parts.push(
      `<path d="M${left} ${y}H${left + width}" stroke="${colors.grid}"/>`,
      text(left - 8, py(at) + 4, label, { anchor: "end", color: colors.muted }),
    );
  }
  for (const { at, label } of marks(chart.x, logX, tick)) {
    const x = coordinate(px(at));
    parts.push(
      `<path d="M${x} ${top}V${top + height}" stroke="${colors.grid}"/>`,
      text(px(at), top + height + 18, label, { anchor: "middle", color: colors.muted }),
    );
  }
  parts.push(
    text(left + width / 2, top + height + 42, chart.xLabel, { anchor: "middle" }),
    text(20, top + height / 2, chart.yLabel, { anchor: "middle", rotate: -90 }),
  );
  for (const { name, points, color, width: stroke, mark } of chart.lines) {
    const path = points.map(([x, y]) => `${coordinate(px(x))},${coordinate(py(y))}`).join(" ");
    parts.push(
      `<polyline points="${path}" fill="none" stroke="${color}" stroke-width="${stroke}" stroke-linejoin="round">` +
        `<title>${escapeText(name)}</title></polyline>`,
    );
    if (mark) {
      const at = `cx="${coordinate(px(mark[0]))}" cy="${coordinate(py(mark[1]))}"`;
      parts.push(`<circle ${at} r="4.5" fill="${color}" stroke="#ffffff" stroke-width="1.5"/>`);
    }
  }
  let y = top + 10;
  for (const { text: content, color, bold } of chart.legend) {
    if (color) {
      const at = `M${left + width + 24} ${y - 4}h18`;
      parts.push(`<path d="${at}" stroke="${color}" stroke-width="${bold ? 3 : 2}"/>`);
    }
    parts.push(text(left + width + (color ? 50 : 24), y, content, { bold: bold ?? false }));
    y += 20;
  }
  const total = Math.max(top + height + 58, y + 8);
  return document(left + width + 260, total, chart.title, parts);
}

function tick(value: number): string {
  return String(Number(value.toFixed(2)));
}

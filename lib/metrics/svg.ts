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
  /** Left and right end of the x axis; y goes from 0 to 1. */
  x: readonly [number, number];
  /** Drawn in this order, the last on top. */
  lines: readonly Line[];
  /** Lines beside the plot, with the colour of a line before each; null: none. */
  legend: readonly { text: string; color: string | null; bold?: boolean }[];
}

const PLOT = { left: 64, top: 68, width: 520, height: 400 } as const;

/** A line chart with y from 0 to 1. */
export function lineChart(chart: Chart): string {
  const { left, top, width, height } = PLOT;
  const [low, high] = chart.x;
  const px = (x: number) => left + (width * (x - low)) / (high - low);
  const py = (y: number) => top + height * (1 - y);
  const parts = [
    text(left, 30, chart.title, { size: 17, bold: true }),
    text(left, 50, chart.subtitle, { color: colors.muted }),
  ];
  for (let step = 0; step <= 5; step++) {
    const [x, y] = [left + (width * step) / 5, top + (height * step) / 5];
    parts.push(
      `<path d="M${left} ${y}H${left + width}M${x} ${top}V${top + height}" stroke="${colors.grid}"/>`,
      text(left - 8, y + 4, (1 - step / 5).toFixed(1), { anchor: "end", color: colors.muted }),
      text(x, top + height + 18, tick(low + ((high - low) * step) / 5), { anchor: "middle", color: colors.muted }),
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

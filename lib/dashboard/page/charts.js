// Charts of curves: one for each figure, one line in it for each run, all with the same range of steps.
import uPlot from "./uplot.js";

/** What is shown: the first of the names that a run has. A panel more is one line more. */
export const PANELS = [
  { id: "loss", title: "loss", names: ["train/loss"] },
  { id: "ap", title: "mAP", names: ["evaluation/AP"], lowest: 0 },
  { id: "ap50", title: "AP at IoU 0.5", names: ["evaluation/AP50"], lowest: 0 },
  { id: "rate", title: "learning rate", names: ["train/learningRate"] },
  { id: "throughput", title: "images per second", names: ["train/imagesPerSecond"], lowest: 0 },
  { id: "wait", title: "share of time waiting for data", names: ["train/waitShare"], lowest: 0 },
];

const LIGHT = ["#2b5fc7", "#c2410c", "#15803d", "#a21caf", "#0e7490", "#854d0e", "#be123c", "#4d7c0f"];
const DARK = ["#7aa5fa", "#fb923c", "#4ade80", "#e879f9", "#22d3ee", "#facc15", "#fb7185", "#a3e635"];
const dark = matchMedia("(prefers-color-scheme: dark)");
/** Distinguishable without colours, too. */
const DASHES = [[], [8, 4], [2, 4], [12, 4, 2, 4]];

export const colorOf = (place) => (dark.matches ? DARK : LIGHT)[place % LIGHT.length];
const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function figure(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(5)));
}

/** A chart of one panel. */
export class Chart {
  #plot = null;
  #key = "";
  #panel;
  #box;
  #host;
  #summary;
  #onRange;

  /** @param onRange told of the range that a user chose; null: all */
  constructor(panel, onRange) {
    this.#panel = panel;
    this.#onRange = onRange;
    this.#box = document.createElement("figure");
    this.#box.id = `chart-${panel.id}`;
    this.#host = document.createElement("div");
    this.#host.className = "plot";
    this.#host.tabIndex = 0;
    this.#host.setAttribute("role", "img");
    this.#host.addEventListener("keydown", (event) => this.#press(event));
    const caption = document.createElement("figcaption");
    this.#summary = document.createElement("span");
    caption.append(Object.assign(document.createElement("b"), { textContent: panel.title }), " ", this.#summary);
    this.#box.append(caption, this.#host);
  }

  get element() {
    return this.#box;
  }

  /** Pixels that a curve may use. */
  get width() {
    return Math.max(200, this.#host.clientWidth);
  }

  /** @param lines [{ run, place, curve }], of runs that have the figure */
  show(lines, { smooth, logScale, range }) {
    this.#box.hidden = lines.length === 0;
    if (lines.length === 0) return;
    const tables = [];
    const series = [{ label: "step" }];
    for (const { run, place, curve } of lines) {
      const stroke = colorOf(place);
      const dash = DASHES[Math.floor(place / LIGHT.length) % DASHES.length];
      const points = { show: curve.x.length < 60, size: 5 };
      if (smooth > 0) {
        tables.push([curve.x, curve.y]);
        series.push({ ...{ label: `${run} (each)`, stroke, alpha: 0.25, width: 1, points: { show: false } } });
      }
      const shown = smooth > 0 ? curve.smooth : curve;
      tables.push([shown.x, shown.y]);
      series.push({ ...{ label: run, stroke, dash, width: 2, points, value: (_, value) => figure(value) } });
    }
    // Curves of one x column each are joined: where one has no point, its line goes on.
    const joined = uPlot.join(tables);
    for (const s of series) s.spanGaps = true;
    const log = logScale && this.#panel.id === "loss";
    const key = JSON.stringify([series.map(({ label, stroke }) => [label, stroke]), log, dark.matches, smooth > 0]);
    if (key !== this.#key) {
      this.#plot?.destroy();
      this.#plot = new uPlot(this.#options(series, log), joined, this.#host);
      this.#key = key;
    } else this.#plot.setData(joined, false);
    const [from, to] = range;
    this.#plot.batch(() => {
      this.#plot.setScale("x", { min: from, max: to > from ? to : from + 1 });
    });
    const last = lines.map(({ run, curve }) => `${run} ${figure(curve.y.at(-1))}`);
    this.#summary.textContent = lines.length === 1 ? figure(lines[0].curve.y.at(-1)) : "";
    this.#host.setAttribute("aria-label", `${this.#panel.title}: ${last.join(", ")}`);
    this.#host.dataset.points = String(lines.reduce((sum, { curve }) => sum + curve.x.length, 0));
  }

  resize() {
    this.#plot?.setSize({ width: this.width, height: 200 });
  }

  #options(series, log) {
    const axis = { stroke: theme("--dim"), grid: { stroke: theme("--line"), width: 1 }, ticks: { show: false } };
    const { lowest } = this.#panel;
    const y = log
      ? { distr: 3 }
      : { range: (_, low, high) => padded(lowest === undefined ? low : Math.min(lowest, low ?? lowest), high) };
    return {
      ...{ width: this.width, height: 200, series, scales: { x: { time: false }, y } },
      axes: [axis, { ...axis, size: 64, values: (_, ticks) => ticks.map(figure) }],
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false, setScale: false } },
      hooks: {
        setSelect: [
          (plot) => {
            const { left, width } = plot.select;
            if (width < 4) return;
            this.#onRange([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
            plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          },
        ],
      },
    };
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.#plot) return;
    const { min, max } = this.#plot.scales.x;
    const size = max - min;
    const moves = {
      "+": () => [min + size / 4, max - size / 4],
      "-": () => [Math.max(0, min - size / 2), max + size / 2],
      ArrowLeft: () => (min - size / 4 < 0 ? [0, size] : [min - size / 4, max - size / 4]),
      ArrowRight: () => [min + size / 4, max + size / 4],
      0: () => null,
    };
    const move = moves[event.key === "=" ? "+" : event.key];
    if (!move) return;
    event.preventDefault();
    this.#onRange(move());
  }
}

function padded(low, high) {
  if (low === null || high === null || low === undefined) return [0, 1];
  if (low === high) return low === 0 ? [0, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * low)];
  const room = 0.05 * (high - low);
  return [low === 0 ? 0 : low - room, high + room];
}

/** Told when light turns dark. */
export const onTheme = (listener) => dark.addEventListener("change", listener);

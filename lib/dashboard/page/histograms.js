// Which classes there are and how they are found, as a table; and how large boxes are.
import { Cursor, element, svg } from "./dom.js";
import { text } from "./pr.js";

/** The columns of classes: a heading, and the figure that it is sorted by. */
const COLUMNS = [
  { id: "name", title: "class", of: ({ name }) => name },
  { id: "trained", title: "in training", of: ({ trained }) => trained, bar: true },
  { id: "known", title: "known", of: ({ known }) => known, bar: true },
  { id: "found", title: "found", of: ({ found }) => found, bar: true },
  { id: "ap", title: "AP", of: ({ ap }) => ap },
  { id: "f1", title: "best F1, at score", of: ({ best }) => best?.f1 },
];

export class ClassTable {
  #host;
  #onClass;
  #rows = [];
  #sort = { id: "known", down: true };
  #chosen = "";

  /** @param onClass told of the label of a class that is chosen */
  constructor(host, onClass) {
    this.#host = host;
    this.#onClass = onClass;
  }

  /** @param rows [{ label, name, trained, known, found, ap, best }], trained null where that is not known */
  show(rows, chosen) {
    this.#rows = rows;
    this.#chosen = chosen;
    this.#draw();
  }

  #draw() {
    const focused = document.activeElement?.dataset?.key;
    const columns = COLUMNS.filter(({ id }) => id !== "trained" || this.#rows.some(({ trained }) => trained !== null));
    const { id, down } = this.#sort;
    const { of } = COLUMNS.find((column) => column.id === id);
    const value = (row) => of(row) ?? -1;
    const order = (a, b) => (typeof value(a) === "string" ? value(a).localeCompare(value(b)) : value(a) - value(b));
    const rows = this.#rows.toSorted((a, b) => (down ? order(b, a) : order(a, b)) || a.label - b.label);
    const most = new Map(
      columns.map((column) => [column.id, Math.max(1, ...rows.map((row) => (column.bar ? column.of(row) : 0)))]),
    );
    const head = columns.map((column) => {
      const sorted = column.id === id ? (down ? "descending" : "ascending") : "none";
      const button = element("button", { type: "button", textContent: column.title });
      button.dataset.key = `sort ${column.id}`;
      button.addEventListener("click", () => {
        this.#sort = { id: column.id, down: column.id === id ? !down : column.id !== "name" };
        this.#draw();
      });
      return element("th", { scope: "col", "aria-sort": sorted }, button);
    });
    const body = rows.map((row) => {
      const button = element("button", { type: "button", textContent: row.name });
      button.dataset.key = `class ${row.label}`;
      button.setAttribute("aria-pressed", String(this.#chosen === String(row.label)));
      button.addEventListener("click", () =>
        this.#onClass(this.#chosen === String(row.label) ? "" : String(row.label)),
      );
      const cells = columns.slice(1).map((column) => cell(column, row, most.get(column.id)));
      return element("tr", {}, element("th", { scope: "row" }, button), ...cells);
    });
    this.#host.replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
    if (focused) this.#host.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }
}

function cell({ id, of, bar }, row, most) {
  if (id === "f1") {
    const { best } = row;
    return element("td", { textContent: best ? `${best.f1.toFixed(3)} at ${best.score.toFixed(2)}` : "-" });
  }
  const value = of(row);
  if (!bar) return element("td", { textContent: value < 0 ? "-" : value.toFixed(3) });
  const made = element("td", { class: "bar" }, element("span", { textContent: String(value) }));
  made.style.setProperty("--share", `${(100 * value) / most}%`);
  return made;
}

const [LEFT, TOP, WIDTH, HEIGHT] = [44, 8, 400, 200];

/** Shares of boxes by their size: bars for what is found, lines for what is known and what is trained on. */
export class SizeHistogram {
  #chart = svg("svg", { viewBox: `0 0 ${LEFT + WIDTH + 20} ${TOP + HEIGHT + 40}`, class: "chart" });
  #marks = svg("g");
  #cursor;
  #bins = 0;

  constructor(host, told) {
    host.replaceChildren(this.#chart);
    this.#cursor = new Cursor(this.#chart, told);
    this.#chart.setAttribute("aria-label", "sizes of boxes");
    this.#chart.addEventListener("pointermove", (event) => {
      const { left, width } = this.#chart.getBoundingClientRect();
      const at = ((event.clientX - left) * (LEFT + WIDTH + 20)) / width - LEFT;
      if (this.#bins > 0 && at >= 0 && at < WIDTH) this.#cursor.move(Math.floor((at * this.#bins) / WIDTH));
    });
  }

  /** @param sides [{ name, counts, kind: "bars" or "line ..." }] */
  show(edges, sides) {
    this.#bins = edges.length - 1;
    const step = WIDTH / this.#bins;
    const shares = sides.map(({ counts }) => {
      const total = counts.reduce((sum, count) => sum + count, 0);
      return counts.map((count) => (total === 0 ? 0 : count / total));
    });
    const most = Math.max(0.01, ...shares.flat());
    const y = (share) => TOP + HEIGHT * (1 - share / most);
    const axis = edges.flatMap((edge, i) => (i % 2 ? [] : [text(LEFT + i * step, TOP + HEIGHT + 16, "middle", edge)]));
    const ticks = [0, 0.5, 1].flatMap((part) => [
      svg("line", { class: "tick", x1: LEFT, x2: LEFT + WIDTH, y1: y(part * most), y2: y(part * most) }),
      text(LEFT - 6, y(part * most) + 4, "end", `${(100 * part * most).toFixed(0)} %`),
    ]);
    const drawn = sides.flatMap(({ kind }, s) => {
      if (kind === "bars") {
        return shares[s].map((share, i) =>
          svg("rect", {
            class: kind,
            x: LEFT + i * step + 1,
            width: step - 2,
            y: y(share),
            height: Math.max(0, TOP + HEIGHT - y(share)),
          }),
        );
      }
      const corners = shares[s].flatMap((share, i) => [0, 1].map((end) => `${LEFT + (i + end) * step},${y(share)}`));
      return [svg("polyline", { class: kind, fill: "none", points: corners.join(" ") })];
    });
    const mark = svg("rect", { class: "cursor", y: TOP, height: HEIGHT, width: step });
    this.#marks.replaceChildren(...ticks, ...axis, ...drawn, mark);
    this.#chart.replaceChildren(
      this.#marks,
      text(LEFT + WIDTH / 2, TOP + HEIGHT + 34, "middle", "side of a square of the same area, pixels"),
    );
    const describe = (i) => {
      const ends =
        i === 0 ? `below ${edges[1]}` : i === this.#bins - 1 ? `from ${edges[i]}` : `${edges[i]} to ${edges[i + 1]}`;
      const parts = sides.map(({ name, counts }, s) => `${name} ${counts[i]} (${(100 * shares[s][i]).toFixed(1)} %)`);
      return `${ends} pixels: ${parts.join(", ")}`;
    };
    const show = (i) => mark.setAttribute("x", String(LEFT + i * step));
    this.#cursor.set(this.#bins, this.#cursor.place, show, describe);
  }
}

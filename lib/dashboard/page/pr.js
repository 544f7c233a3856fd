// Precision over recall of one class, or of the mean: a point of it is read off by pointer or keys.
import { Cursor, svg } from "./dom.js";

const [LEFT, TOP, WIDTH, HEIGHT] = [44, 8, 400, 240];
const x = (recall) => LEFT + WIDTH * recall;
const y = (precision) => TOP + HEIGHT * (1 - precision);
const TICKS = [0, 0.25, 0.5, 0.75, 1];

export class PrecisionRecall {
  #chart;
  #line = svg("polyline", { class: "line", fill: "none" });
  #others = svg("g");
  #best = svg("circle", { class: "best", r: 5 });
  #chosen = svg("circle", { class: "chosen", r: 6 });
  #cursor;
  #points = null;
  #onScore;

  /** @param onScore told of the score of a point that is clicked, or entered, where it has one */
  constructor(host, told, onScore) {
    this.#onScore = onScore;
    this.#chart = svg("svg", { viewBox: `0 0 ${LEFT + WIDTH + 20} ${TOP + HEIGHT + 40}`, class: "chart" });
    const grid = TICKS.flatMap((at) => [
      svg("line", { class: "tick", x1: x(at), x2: x(at), y1: y(0), y2: y(1) }),
      svg("line", { class: "tick", x1: x(0), x2: x(1), y1: y(at), y2: y(at) }),
      text(x(at), y(0) + 16, "middle", at),
      text(LEFT - 6, y(at) + 4, "end", at),
    ]);
    const names = [text(x(0.5), y(0) + 34, "middle", "recall"), text(12, y(0.5), "middle", "precision", true)];
    this.#chart.append(...grid, ...names, this.#others, this.#line, this.#best, this.#chosen);
    host.replaceChildren(this.#chart);
    this.#cursor = new Cursor(this.#chart, told);
    this.#chart.setAttribute("aria-label", "precision over recall");
    this.#chart.addEventListener("pointermove", (event) => this.#point(event));
    this.#chart.addEventListener("click", (event) => {
      this.#point(event);
      this.#use();
    });
    this.#chart.addEventListener("keydown", (event) => event.key === "Enter" && this.#use());
  }

  /**
   * @param points { score, precision, recall, f1 }: columns, by falling score; score and f1 null for the mean
   * @param best where F1 is highest, or null
   * @param score whose point is shown until another one is chosen
   * @param color of the line; null: the page's own
   * @param others lines of other runs: { name, color, points }
   */
  show(name, { score: scores, precision, recall, f1 }, { best, score, color, others }) {
    this.#points = { scores, precision, recall };
    this.#line.setAttribute("points", corners({ recall, precision }));
    this.#line.style.stroke = color ?? "";
    this.#others.replaceChildren(
      ...others.map((other) => {
        const line = svg("polyline", { class: "line other", fill: "none", points: corners(other.points) });
        line.style.stroke = other.color;
        line.append(svg("title"));
        line.firstChild.textContent = other.name;
        return line;
      }),
    );
    this.#chart.dataset.others = String(others.length);
    this.#chart.dataset.points = String(recall.length);
    const hasBest = best !== null && scores !== null;
    this.#best.setAttribute("visibility", hasBest ? "visible" : "hidden");
    this.#chosen.setAttribute("visibility", recall.length > 0 ? "visible" : "hidden");
    if (hasBest) at(this.#best, best.recall, best.precision);
    const describe = (i) => {
      const ends = `precision ${precision[i].toFixed(3)}, recall ${recall[i].toFixed(3)}`;
      if (scores === null) return `${name}: ${ends}`;
      return `${name}, score from ${scores[i].toFixed(3)}: ${ends}, F1 ${f1[i].toFixed(3)}`;
    };
    // The mean has points at all recalls: it is shown where it was read before, in its middle at first.
    const before = this.#chart.dataset.of === "mean" ? this.#cursor.place : Math.floor(recall.length / 2);
    const place =
      scores === null
        ? before
        : Math.max(
            0,
            scores.findLastIndex((one) => one >= score),
          );
    this.#chart.dataset.of = scores === null ? "mean" : "class";
    this.#cursor.set(recall.length, place, (i) => at(this.#chosen, recall[i], precision[i]), describe);
  }

  #point(event) {
    const { recall, precision } = this.#points ?? { recall: [] };
    if (recall.length === 0) return;
    const { left, width } = this.#chart.getBoundingClientRect();
    const scale = (LEFT + WIDTH + 20) / width;
    const [px, py] = [
      (event.clientX - left) * scale,
      (event.clientY - this.#chart.getBoundingClientRect().top) * scale,
    ];
    let [nearest, distance] = [0, Number.POSITIVE_INFINITY];
    for (let i = 0; i < recall.length; i++) {
      const own = (x(recall[i]) - px) ** 2 + (y(precision[i]) - py) ** 2;
      if (own < distance) [nearest, distance] = [i, own];
    }
    this.#cursor.move(nearest);
  }

  #use() {
    const score = this.#points?.scores?.[this.#cursor.place];
    if (score !== undefined) this.#onScore(score);
  }
}

function at(circle, recall, precision) {
  circle.setAttribute("cx", String(x(recall)));
  circle.setAttribute("cy", String(y(precision)));
}

export function text(x, y, anchor, content, upright = false) {
  const made = svg("text", { x, y, "text-anchor": anchor, ...(upright && { transform: `rotate(-90 ${x} ${y})` }) });
  made.textContent = String(content);
  return made;
}

const corners = ({ recall, precision }) =>
  recall.map((at, i) => `${x(at).toFixed(1)},${y(precision[i]).toFixed(1)}`).join(" ");

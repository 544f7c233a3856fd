// The confusion matrix: rows are what is, columns what it is taken for; a cell is read off by pointer or keys, and leads to its images.
import { element } from "./dom.js";

const [LEAST, MOST] = [7, 48];
/** From this size of a cell on, its number is written into it; from the other on, classes have their names beside them. */
const [NUMBERS, NAMES] = [26, 13];
const MARGIN = 96;

export class Confusion {
  #canvas = element("canvas", { tabIndex: 0, class: "matrix" });
  #told;
  #onCell;
  #shown = null;
  #cell = [0, 0];
  #side = 0;
  #margin = 0;

  /** @param onCell told of a cell that is clicked, or entered: { row, column, text } */
  constructor(host, told, onCell) {
    this.#told = told;
    this.#onCell = onCell;
    const canvas = this.#canvas;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "matrix");
    canvas.addEventListener("pointermove", (event) => this.#point(event));
    canvas.addEventListener("click", (event) => this.#point(event) && this.#open());
    canvas.addEventListener("keydown", (event) => this.#press(event));
    host.replaceChildren(canvas);
  }

  /** @param answer { classes, cells: [row, column, count][] } */
  show({ classes, cells }) {
    const size = classes.length + 1;
    const counts = new Map(cells.map(([row, column, count]) => [row * size + column, count]));
    const totals = new Array(size).fill(0);
    for (const [row, , count] of cells) totals[row] += count;
    this.#shown = { size, counts, totals, names: [...classes, "nothing"] };
    this.#cell = this.#cell.map((place) => Math.min(place, size - 1));
    this.draw();
  }

  /** Draws it again, where the theme or the width is another. */
  draw() {
    if (!this.#shown) return;
    const { size, counts, totals, names } = this.#shown;
    const room = this.#canvas.parentElement.clientWidth;
    this.#margin = room > 480 ? MARGIN : MARGIN / 2;
    this.#side = Math.max(LEAST, Math.min(MOST, Math.floor((room - this.#margin) / size)));
    if (this.#side < NAMES) this.#margin = 20;
    const [side, margin, ratio] = [this.#side, this.#margin, Math.min(2, devicePixelRatio)];
    const length = margin + side * size + 1;
    const canvas = this.#canvas;
    // No canvas is larger than this in all browsers.
    const scale = Math.min(ratio, 8192 / length);
    canvas.width = canvas.height = Math.ceil(length * scale);
    canvas.style.width = canvas.style.height = `${length}px`;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    const [line, ink, dim, mark] = ["--line", "--text", "--dim", "--mark"].map((name) =>
      style.getPropertyValue(name).trim(),
    );
    context.strokeStyle = line;
    context.strokeRect(margin + 0.5, margin + 0.5, side * size, side * size);
    for (const [cell, count] of counts) {
      const [row, column] = [Math.floor(cell / size), cell % size];
      const share = count / totals[row];
      context.globalAlpha = 0.12 + 0.88 * share;
      context.fillStyle = mark;
      context.fillRect(margin + column * side, margin + row * side, side - 1, side - 1);
      context.globalAlpha = 1;
      if (side < NUMBERS) continue;
      context.fillStyle = share > 0.5 ? style.getPropertyValue("--back").trim() : ink;
      context.font = "12px system-ui, sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(shortened(count), margin + (column + 0.5) * side, margin + (row + 0.5) * side, side - 4);
    }
    if (side >= NAMES) this.#drawNames(context, names, dim);
    context.strokeStyle = ink;
    context.lineWidth = 2;
    const [row, column] = this.#cell;
    context.strokeRect(margin + column * side, margin + row * side, side, side);
    this.#tell();
  }

  #drawNames(context, names, color) {
    const [side, margin] = [this.#side, this.#margin];
    context.fillStyle = color;
    context.font = `${Math.min(12, side - 1)}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (const [i, name] of names.entries()) {
      context.textAlign = "right";
      context.fillText(name, margin - 6, margin + (i + 0.5) * side, margin - 8);
      context.save();
      context.translate(margin + (i + 0.5) * side, margin - 6);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(name, 0, 0, margin - 8);
      context.restore();
    }
  }

  #describe([row, column]) {
    const { size, counts, totals, names } = this.#shown;
    const count = counts.get(row * size + column) ?? 0;
    const none = size - 1;
    if (row === none && column === none) return "nothing where nothing is: not counted";
    const share = totals[row] === 0 ? "" : ` of ${totals[row]} (${((100 * count) / totals[row]).toFixed(1)} %)`;
    if (row === none) return `${names[column]} found where nothing is: ${count}${share}`;
    if (column === none) return `${names[row]} missed: ${count}${share}`;
    return `${names[row]} ${row === column ? "found" : `taken for ${names[column]}`}: ${count}${share}`;
  }

  #tell() {
    const text = this.#describe(this.#cell);
    if (this.#told.textContent !== text) this.#told.textContent = text;
    this.#canvas.setAttribute("aria-label", `confusion matrix, ${text}`);
    this.#canvas.dataset.cell = this.#cell.join(" ");
  }

  #open() {
    const [row, column] = this.#cell;
    this.#onCell({ row, column, text: this.#describe(this.#cell) });
  }

  #point(event) {
    if (!this.#shown) return false;
    const { left, top } = this.#canvas.getBoundingClientRect();
    const cell = [event.clientY - top, event.clientX - left].map((at) => Math.floor((at - this.#margin) / this.#side));
    if (cell.some((place) => place < 0 || place >= this.#shown.size)) return false;
    this.#move(cell);
    return true;
  }

  #move(cell) {
    if (cell.join() === this.#cell.join()) return;
    this.#cell = cell;
    this.draw();
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.#shown) return;
    const { size } = this.#shown;
    const [row, column] = this.#cell;
    const moves = {
      ...{ ArrowUp: [row - 1, column], ArrowDown: [row + 1, column] },
      ...{ ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1] },
      ...{ Home: [row, 0], End: [row, size - 1], PageUp: [0, column], PageDown: [size - 1, column] },
    };
    if (event.key === "Enter" || event.key === " ") this.#open();
    else if (moves[event.key]) this.#move(moves[event.key].map((place) => Math.max(0, Math.min(size - 1, place))));
    else return;
    event.preventDefault();
    const [r, c] = this.#cell;
    const host = this.#canvas.parentElement;
    // The cell stays in sight where the matrix is wider than the screen.
    const [x, y] = [this.#margin + c * this.#side, this.#margin + r * this.#side];
    host.scrollLeft = Math.max(x + this.#side - host.clientWidth + 8, Math.min(host.scrollLeft, x - 8));
    host.scrollTop = Math.max(y + this.#side - host.clientHeight + 8, Math.min(host.scrollTop, y - 8));
  }
}

const shortened = (count) => (count < 10_000 ? String(count) : `${Math.round(count / 1000)}k`);

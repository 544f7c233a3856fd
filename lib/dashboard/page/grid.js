// A list of very many figures, of which those in sight exist; one of them has the focus, and arrows move it.
import { element } from "./dom.js";

const [GAP, CAPTION, LEAST_WIDTH] = [16, 48, 420];
/** Items that are asked for at once, and how many such parts are kept. */
const PART = 50;
const MAX_PARTS = 40;
/** Rows beyond what is in sight. */
const BEYOND = 1;

export class Grid {
  #host;
  #space = element("div", { class: "space" });
  #load;
  #draw;
  #open;
  #fail;
  #total = 0;
  #parts = new Map();
  #figures = new Map();
  #active = 0;
  #columns = 1;
  #row = 1;
  /** What is shown; what was asked for before comes too late. */
  #turn = {};

  /**
   * @param load (from, count) => promise of { total, items }
   * @param draw (figure, item) fills a figure, or fills it again
   * @param open told of an item that is clicked, or entered, and of its place
   * @param fail told of what went wrong; null: nothing
   */
  constructor(host, { load, draw, open, fail }) {
    this.#host = host;
    this.#load = load;
    this.#draw = draw;
    this.#open = open;
    this.#fail = fail;
    host.setAttribute("role", "list");
    host.setAttribute("aria-label", "images");
    host.append(this.#space);
    host.addEventListener("scroll", () => this.#place(), { passive: true });
    new ResizeObserver(() => this.#place()).observe(host);
    host.addEventListener("keydown", (event) => this.#press(event));
    host.addEventListener("focusin", ({ target }) => {
      if (target.dataset.place !== undefined) this.#active = Number(target.dataset.place);
    });
    host.addEventListener("click", (event) => {
      const figure = event.target.closest("[data-place]");
      if (figure) this.#enter(Number(figure.dataset.place));
    });
  }

  /** Shows other items, from the first on unless `stay`. What is there stays until they have come. */
  async reset({ stay = false } = {}) {
    const turn = {};
    this.#turn = turn;
    const from = stay ? Math.floor(this.#firstPlace() / PART) : 0;
    try {
      const part = await this.#load(from * PART, PART);
      if (this.#turn !== turn) return;
      this.#fail(null);
      this.#total = part.total;
      this.#parts = new Map([[from, part.items]]);
      const focused = this.#host.contains(document.activeElement) && document.activeElement !== this.#host;
      for (const figure of this.#figures.values()) figure.remove();
      this.#figures.clear();
      this.#host.dataset.total = String(part.total);
      this.#active = Math.max(0, Math.min(this.#active, part.total - 1));
      if (!stay) {
        this.#active = 0;
        this.#host.scrollTop = 0;
      }
      this.#place();
      if (focused) this.#move(this.#active);
    } catch (error) {
      if (this.#turn === turn) this.#fail(error);
    }
  }

  /** Draws what is in sight again: boxes that are shown are others. */
  redraw() {
    for (const [place, figure] of this.#figures) {
      const item = this.#item(place);
      if (item) this.#draw(figure, item);
    }
  }

  #firstPlace() {
    return Math.floor(this.#host.scrollTop / this.#row) * this.#columns;
  }

  #item(place) {
    return this.#parts.get(Math.floor(place / PART))?.[place % PART];
  }

  #place() {
    const { clientWidth: width, clientHeight: height } = this.#host;
    if (width === 0) return;
    const first = this.#firstPlace();
    this.#columns = Math.max(1, Math.floor((width + GAP) / (LEAST_WIDTH + GAP)));
    const side = (width - GAP * (this.#columns - 1)) / this.#columns;
    // Two pictures beside each other, 4 : 3.
    const row = Math.round((side / 2) * 0.75) + CAPTION + GAP;
    if (row !== this.#row) {
      this.#row = row;
      this.#host.style.setProperty("--picture", `${row - CAPTION - GAP}px`);
      this.#space.style.height = `${this.#rows * row}px`;
      this.#host.scrollTop = Math.floor(first / this.#columns) * row;
    }
    this.#space.style.height = `${this.#rows * row}px`;
    const from = Math.max(0, Math.floor(this.#host.scrollTop / row) - BEYOND) * this.#columns;
    const to = Math.min(this.#total, (Math.ceil((this.#host.scrollTop + height) / row) + BEYOND) * this.#columns);
    const wanted = new Set();
    for (let place = from; place < to; place++) wanted.add(place);
    // What has the focus keeps it, wherever it is scrolled to.
    const focused = [...this.#figures].find(([, figure]) => figure === document.activeElement)?.[0];
    if (focused !== undefined && focused < this.#total) wanted.add(focused);
    for (const [place, figure] of this.#figures) {
      if (wanted.has(place)) continue;
      figure.remove();
      this.#figures.delete(place);
    }
    // One of them is reached by Tab: what had the focus last, or what is at the top.
    const top = Math.min(Math.ceil(this.#host.scrollTop / row) * this.#columns, to - 1);
    const reached = wanted.has(this.#active) ? this.#active : top;
    for (const place of [...wanted].sort((a, b) => a - b)) this.#show(place, side, place === reached);
    this.#host.dataset.shown = String(this.#figures.size);
    const missing = new Set(
      [...wanted].map((place) => Math.floor(place / PART)).filter((part) => !this.#parts.has(part)),
    );
    for (const part of missing) void this.#ask(part);
  }

  get #rows() {
    return Math.ceil(this.#total / this.#columns);
  }

  #show(place, width, reached) {
    let figure = this.#figures.get(place);
    if (!figure) {
      figure = element("figure", {
        class: "sample",
        role: "listitem",
        "aria-setsize": this.#total,
        "aria-posinset": place + 1,
      });
      figure.dataset.place = String(place);
      this.#figures.set(place, figure);
      const next = [...this.#figures.keys()].filter((other) => other > place && this.#figures.get(other).isConnected);
      // In the order of their places, for those who hear them read.
      this.#space.insertBefore(figure, next.length > 0 ? this.#figures.get(Math.min(...next)) : null);
      const item = this.#item(place);
      if (item) this.#draw(figure, item);
    }
    figure.tabIndex = reached ? 0 : -1;
    const { style } = figure;
    style.width = `${width}px`;
    style.left = `${(place % this.#columns) * (width + GAP)}px`;
    style.top = `${Math.floor(place / this.#columns) * this.#row}px`;
  }

  async #ask(part) {
    const turn = this.#turn;
    const parts = this.#parts;
    parts.set(part, []);
    for (const old of parts.keys()) {
      if (parts.size <= MAX_PARTS) break;
      parts.delete(old);
    }
    try {
      const { items } = await this.#load(part * PART, PART);
      if (this.#turn !== turn) return;
      parts.set(part, items);
      for (const [place, figure] of this.#figures) {
        if (Math.floor(place / PART) === part && items[place % PART]) this.#draw(figure, items[place % PART]);
      }
    } catch (error) {
      if (this.#turn !== turn) return;
      parts.delete(part);
      this.#fail(error);
    }
  }

  #enter(place) {
    this.#move(place);
    const item = this.#item(place);
    if (item) this.#open(item, place);
  }

  #move(place) {
    if (this.#total === 0) return;
    this.#active = Math.max(0, Math.min(this.#total - 1, place));
    const top = Math.floor(this.#active / this.#columns) * this.#row;
    const { scrollTop, clientHeight } = this.#host;
    if (top < scrollTop) this.#host.scrollTop = top;
    else if (top + this.#row > scrollTop + clientHeight) this.#host.scrollTop = top + this.#row - clientHeight;
    this.#place();
    this.#figures.get(this.#active)?.focus({ preventScroll: true });
    this.#place();
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = Math.max(1, Math.floor(this.#host.clientHeight / this.#row));
    const columns = this.#columns;
    const moves = {
      ...{ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns },
      ...{ PageUp: -rows * columns, PageDown: rows * columns, Home: -this.#total, End: this.#total },
    };
    if (event.key === "Enter") this.#enter(this.#active);
    else if (moves[event.key] !== undefined) this.#move(this.#active + moves[event.key]);
    else return;
    event.preventDefault();
  }
}

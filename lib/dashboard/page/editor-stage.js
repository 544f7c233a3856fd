// An image with its boxes, to be looked at closely and worked on with mouse, pen or fingers.
import { svg } from "./dom.js";
import { color } from "./samples.js";

/** Pixels of the screen within which an edge or a handle is hit, and which a drag has at least; fingers are coarser. */
const REACH = { mouse: 7, pen: 10, touch: 18 };
const LEAST_DRAG = { mouse: 3, pen: 5, touch: 8 };
const HANDLE = 5;
const MAX_SCALE = 32;
/** The most boxes whose names are written beside them. */
const MAX_NAMES = 60;

/** Sides that a handle moves: indices of [x1, y1, x2, y2]. */
const HANDLES = [[0, 1], [1], [2, 1], [2], [2, 3], [3], [0, 3], [0]];
const CURSORS = ["nwse", "ns", "nesw", "ew", "nwse", "ns", "nesw", "ew"];
const handleAt = ([x1, y1, x2, y2], i) => [
  [x1, (x1 + x2) / 2, x2, x2, x2, (x1 + x2) / 2, x1, x1][i],
  [y1, y1, y1, (y1 + y2) / 2, y2, y2, y2, (y1 + y2) / 2][i],
];

const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);

/**
 * Shows boxes as {key, box, label, text, kind: "own" | "found" | "theirs", crowd}, and tells what is done to them: onSelect(key), onDraw(box),
 * onChange(box) of the selected one. Where `editable` is false, boxes are looked at alone.
 */
export class Stage {
  #element;
  #canvas = document.createElement("canvas");
  #svg = svg("svg", { "aria-hidden": "true" });
  #on;
  #bitmap = null;
  #size = { width: 1, height: 1 };
  #view = { x: 0, y: 0, scale: 1 };
  #fits = true;
  #boxes = [];
  #selected = null;
  #pointers = new Map();
  /** What is being done: {kind, start, from, box, ...}. */
  #gesture = null;
  editable = false;
  drawing = false;

  constructor(element, on) {
    this.#element = element;
    this.#on = on;
    element.tabIndex = 0;
    element.replaceChildren(this.#canvas, this.#svg);
    element.addEventListener("pointerdown", (event) => this.#down(event));
    element.addEventListener("pointermove", (event) => this.#move(event));
    element.addEventListener("pointerup", (event) => this.#up(event));
    element.addEventListener("pointercancel", (event) => this.#cancelled(event));
    element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    element.addEventListener("contextmenu", (event) => this.#gesture && event.preventDefault());
    new ResizeObserver(() => this.#resize()).observe(element);
  }

  /** @param bitmap null where there is none to be shown */
  setImage(bitmap, { width, height }) {
    this.#bitmap = bitmap;
    this.#size = { width: Math.max(1, width), height: Math.max(1, height) };
    this.cancel();
    this.fit();
  }

  show(boxes, selected) {
    this.#boxes = boxes;
    this.#selected = selected;
    this.#drawBoxes();
  }

  /** Gives up what is being dragged. @returns whether anything was */
  cancel() {
    const was = this.#gesture !== null;
    this.#gesture = null;
    this.#drawBoxes();
    return was;
  }

  fit() {
    const [width, height] = [this.#element.clientWidth, this.#element.clientHeight];
    const scale = Math.min(width / this.#size.width, height / this.#size.height) || 1;
    this.#fits = true;
    this.#view = { scale, ...this.#centred(scale) };
    this.#draw();
  }

  #centred(scale) {
    return {
      x: (this.#size.width - this.#element.clientWidth / scale) / 2,
      y: (this.#size.height - this.#element.clientHeight / scale) / 2,
    };
  }

  /** @param at where on the screen stays what it is; default: the middle */
  zoom(factor, at = [this.#element.clientWidth / 2, this.#element.clientHeight / 2]) {
    const [x, y] = this.#toImage(at);
    const least = Math.min(
      this.#element.clientWidth / this.#size.width,
      this.#element.clientHeight / this.#size.height,
      1,
    );
    const scale = Math.min(Math.max(this.#view.scale * factor, least), Math.max(MAX_SCALE, least));
    this.#fits = false;
    this.#view = { scale, x: x - at[0] / scale, y: y - at[1] / scale };
    this.#draw();
  }

  /** By pixels of the screen. */
  pan(dx, dy) {
    this.#fits = false;
    this.#view = { ...this.#view, x: this.#view.x + dx / this.#view.scale, y: this.#view.y + dy / this.#view.scale };
    this.#draw();
  }

  /** A box in the middle of what is seen, a quarter as wide and high. */
  middle() {
    const [x1, y1] = this.#toImage([0, 0]);
    const [x2, y2] = this.#toImage([this.#element.clientWidth, this.#element.clientHeight]);
    const [left, top] = [Math.max(0, x1), Math.max(0, y1)];
    const [right, bottom] = [Math.min(this.#size.width, x2), Math.min(this.#size.height, y2)];
    const [w, h] = [(right - left) / 8, (bottom - top) / 8];
    const [x, y] = [(left + right) / 2, (top + bottom) / 2];
    return [x - w, y - h, x + w, y + h];
  }

  /** Moves what is seen so that a box is in it. */
  reveal(box) {
    const [left, top] = this.#toScreen([box[0], box[1]]);
    const [right, bottom] = this.#toScreen([box[2], box[3]]);
    const [width, height] = [this.#element.clientWidth, this.#element.clientHeight];
    const shift = (low, high, size) => (high < 0 || low > size ? (low + high - size) / 2 : 0);
    const [dx, dy] = [shift(left, right, width), shift(top, bottom, height)];
    if (dx !== 0 || dy !== 0) this.pan(dx, dy);
  }

  /** Where a point of the image is in the element. */
  #toScreen([x, y]) {
    return [(x - this.#view.x) * this.#view.scale, (y - this.#view.y) * this.#view.scale];
  }

  #toImage([x, y]) {
    return [x / this.#view.scale + this.#view.x, y / this.#view.scale + this.#view.y];
  }

  #resize() {
    const ratio = devicePixelRatio;
    this.#canvas.width = Math.max(1, Math.round(this.#element.clientWidth * ratio));
    this.#canvas.height = Math.max(1, Math.round(this.#element.clientHeight * ratio));
    if (this.#fits) this.fit();
    else this.#draw();
  }

  #draw() {
    // Where the image is, for who tries the page.
    this.#element.dataset.view = [this.#view.x, this.#view.y, this.#view.scale].join(" ");
    const context = this.#canvas.getContext("2d");
    const ratio = devicePixelRatio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    const [x, y] = this.#toScreen([0, 0]);
    const { scale } = this.#view;
    context.imageSmoothingEnabled = scale < 4;
    context.fillStyle = "#888";
    context.fillRect(x, y, this.#size.width * scale, this.#size.height * scale);
    if (this.#bitmap) context.drawImage(this.#bitmap, x, y, this.#size.width * scale, this.#size.height * scale);
    this.#drawBoxes();
  }

  #drawBoxes() {
    const { kind, box: changed } = this.#gesture ?? {};
    const nodes = [];
    const names = this.#boxes.length <= MAX_NAMES;
    for (const shown of [...this.#boxes].sort((a, b) => area(b.box) - area(a.box))) {
      const selected = shown.key === this.#selected;
      const moving = selected && (kind === "move" || kind === "resize");
      nodes.push(...this.#nodesOf(moving ? { ...shown, box: changed } : shown, selected, names || selected));
    }
    if (kind === "draw") nodes.push(this.#rect(changed, { class: "new" }));
    this.#svg.replaceChildren(...nodes);
    this.#element.dataset.boxes = String(this.#boxes.length);
  }

  #rect(box, attributes) {
    const [x, y] = this.#toScreen([box[0], box[1]]);
    const [right, bottom] = this.#toScreen([box[2], box[3]]);
    const [width, height] = [Math.max(0, right - x), Math.max(0, bottom - y)];
    return svg("rect", { x, y, width, height, ...attributes });
  }

  #nodesOf({ key, box, label, text, kind, crowd }, selected, named) {
    const classes = ["box", kind, ...(selected ? ["selected"] : []), ...(crowd ? ["crowd"] : [])].join(" ");
    const nodes = [this.#rect(box, { class: classes, stroke: color(label), "data-key": key })];
    if (named) {
      const [x, y] = this.#toScreen([box[0], box[1]]);
      const name = svg("text", { x: x + 2, y: y > 16 ? y - 4 : y + 14, class: "name", fill: color(label) });
      name.textContent = text;
      nodes.push(name);
    }
    if (!selected || kind === "found" || !this.editable) return nodes;
    for (let i = 0; i < HANDLES.length; i++) {
      const [x, y] = this.#toScreen(handleAt(box, i));
      nodes.push(svg("rect", { x: x - HANDLE, y: y - HANDLE, width: 2 * HANDLE, height: 2 * HANDLE, class: "handle" }));
    }
    return nodes;
  }

  /** Which handle of the selected box is at a place; -1: none. */
  #handleAt(point, reach) {
    const selected = this.#boxes.find(({ key, kind }) => key === this.#selected && kind === "own");
    if (!selected || !this.editable) return -1;
    const [x1, y1, x2, y2] = selected.box;
    // Of a small box there is something left to take it by.
    const least = (Math.min(x2 - x1, y2 - y1) * this.#view.scale) / 3;
    let [found, nearest] = [-1, Math.min(reach, Math.max(3, least))];
    for (let i = 0; i < HANDLES.length; i++) {
      const [x, y] = this.#toScreen(handleAt(selected.box, i));
      const distance = Math.max(Math.abs(x - point[0]), Math.abs(y - point[1]));
      if (distance <= nearest) [found, nearest] = [i, distance];
    }
    return found;
  }

  /** The box at a place: the smallest one that holds it, or whose edge is near; of the selected one it is enough to be in it. */
  #boxAt(point, reach) {
    const [x, y] = this.#toImage(point);
    const near = reach / this.#view.scale;
    const holds = ({ box: [x1, y1, x2, y2] }) => x >= x1 - near && x <= x2 + near && y >= y1 - near && y <= y2 + near;
    const own = this.#boxes.filter(({ kind }) => kind !== "theirs");
    return own.filter(holds).sort((a, b) => area(a.box) - area(b.box))[0] ?? null;
  }

  #pointOf(event) {
    const { left, top } = this.#element.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  #down(event) {
    if (event.button > 1) return;
    event.preventDefault();
    this.#element.focus({ preventScroll: true });
    this.#element.setPointerCapture(event.pointerId);
    const point = this.#pointOf(event);
    this.#pointers.set(event.pointerId, point);
    if (this.#pointers.size > 1) {
      this.#gesture = { kind: "pinch" };
      this.#drawBoxes();
      return;
    }
    this.#gesture = { ...this.#begin(event, point), start: point, from: this.#toImage(point), moved: false };
  }

  /** What a press begins. */
  #begin({ button, pointerType }, point) {
    if (button === 1) return { kind: "pan" };
    const reach = REACH[pointerType] ?? REACH.mouse;
    const handle = this.drawing ? -1 : this.#handleAt(point, reach);
    if (handle >= 0) return { kind: "resize", handle, box: this.#selectedBox() };
    const hit = this.drawing ? null : this.#boxAt(point, reach);
    if (!hit) return this.editable ? { kind: "draw", box: [0, 0, 0, 0] } : { kind: "pan", tap: true };
    const chosen = hit.key === this.#selected;
    if (!chosen) this.#on.select(hit.key);
    // A finger chooses first: what it only touches does not move.
    const moves = this.editable && hit.kind === "own" && (chosen || pointerType !== "touch");
    if (moves) return { kind: "move", box: hit.box };
    return { kind: this.editable ? "hold" : "pan" };
  }

  #selectedBox() {
    return this.#boxes.find(({ key }) => key === this.#selected)?.box;
  }

  #move(event) {
    const point = this.#pointOf(event);
    const before = this.#pointers.get(event.pointerId);
    if (!before) {
      this.#hover(event, point);
      return;
    }
    if (this.#gesture?.kind === "pinch") {
      this.#pinch(event.pointerId, point);
      return;
    }
    this.#pointers.set(event.pointerId, point);
    const gesture = this.#gesture;
    if (!gesture) return;
    const least = LEAST_DRAG[event.pointerType] ?? LEAST_DRAG.mouse;
    const [dx, dy] = [point[0] - gesture.start[0], point[1] - gesture.start[1]];
    if (!gesture.moved && Math.hypot(dx, dy) < least) return;
    gesture.moved = true;
    if (gesture.kind === "pan") this.pan(before[0] - point[0], before[1] - point[1]);
    else this.#drag(gesture, point);
  }

  #drag(gesture, point) {
    const [x, y] = this.#toImage(point).map((at, i) =>
      Math.min(Math.max(at, 0), [this.#size.width, this.#size.height][i]),
    );
    const [fromX, fromY] = gesture.from;
    if (gesture.kind === "draw") gesture.box = ordered([fromX, fromY, x, y]);
    const old = this.#selectedBox();
    if (gesture.kind === "resize" && old) {
      const box = [...old];
      for (const side of HANDLES[gesture.handle]) box[side] = side % 2 === 0 ? x : y;
      gesture.box = ordered(box);
    }
    if (gesture.kind === "move" && old) {
      const dx = Math.min(Math.max(x - fromX, -old[0]), this.#size.width - old[2]);
      const dy = Math.min(Math.max(y - fromY, -old[1]), this.#size.height - old[3]);
      gesture.box = [old[0] + dx, old[1] + dy, old[2] + dx, old[3] + dy];
    }
    this.#drawBoxes();
  }

  /** Two fingers zoom and move what is seen. */
  #pinch(id, point) {
    const [other] = [...this.#pointers].filter(([one]) => one !== id).map(([, at]) => at);
    const before = this.#pointers.get(id);
    this.#pointers.set(id, point);
    if (!other) return;
    const distance = (a, b) => Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1]));
    this.pan((before[0] - point[0]) / 2, (before[1] - point[1]) / 2);
    this.zoom(distance(point, other) / distance(before, other), [(point[0] + other[0]) / 2, (point[1] + other[1]) / 2]);
  }

  #hover({ pointerType }, point) {
    const handle = this.drawing ? -1 : this.#handleAt(point, REACH[pointerType] ?? REACH.mouse);
    const hit = handle < 0 && !this.drawing ? this.#boxAt(point, REACH.mouse) : null;
    const moves = this.editable && hit?.kind === "own";
    const cursor = handle >= 0 ? `${CURSORS[handle]}-resize` : moves ? "move" : hit ? "pointer" : "";
    this.#element.style.cursor = cursor || (this.editable ? "crosshair" : "grab");
  }

  #up(event) {
    if (!this.#pointers.delete(event.pointerId)) return;
    const gesture = this.#gesture;
    if (gesture?.kind === "pinch") {
      // The finger that is left does not go on to draw.
      if (this.#pointers.size === 0) this.#gesture = null;
      return;
    }
    this.#gesture = null;
    const { kind, box, moved, tap } = gesture ?? {};
    if (moved && kind === "draw") this.#on.draw(box);
    else if (moved && (kind === "move" || kind === "resize")) this.#on.change(box);
    else if (!moved && (kind === "draw" || tap)) this.#on.select(null);
    this.#drawBoxes();
  }

  #cancelled(event) {
    this.#pointers.delete(event.pointerId);
    this.cancel();
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp(-event.deltaY * lines * 0.0015), this.#pointOf(event));
  }
}

const ordered = ([x1, y1, x2, y2]) => [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];

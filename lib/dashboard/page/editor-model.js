// The boxes of one image while they are edited: what is undone and redone, what has changed, and what others have changed meanwhile.

/** Pixels that a box keeps at least. */
const LEAST = 1;
/** Steps that can be undone. */
const MAX_STEPS = 500;

const tenths = (value) => Math.round(value * 10) / 10;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** The share of two boxes' union that both have. */
export function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

/** A box whose corners may be exchanged, inside the image, with an area. */
export function fitted([x1, y1, x2, y2], { width, height }) {
  const side = (a, b, most) => {
    const low = clamp(tenths(Math.min(a, b)), 0, most - LEAST);
    return [low, clamp(tenths(Math.max(a, b)), low + LEAST, most)];
  };
  const [left, right] = side(x1, x2, width);
  const [top, bottom] = side(y1, y2, height);
  return [left, top, right, bottom];
}

const sameBox = (a, b) => a.every((side, i) => Math.abs(side - b[i]) < 1e-3);
const same = (a, b) => a.label === b.label && a.crowd === b.crowd && sameBox(a.box, b.box);

/**
 * Boxes as {key, box: [x1, y1, x2, y2], label, crowd, score}: `key` is this page's, and stays with a box whatever becomes of it;
 * `score` is that of a prediction which was accepted as it is. Each change is one step that can be undone.
 */
export class BoxModel {
  boxes = [];
  selected = null;
  /** The boxes that the server has, in short, as it said. */
  seen = null;
  #size;
  #next = 1;
  #ids = new Map(); // keys: the server's numbers
  #base = new Map(); // the server's boxes, by its numbers
  #undone = [];
  #done = [];
  #gesture = null;

  /** @param state what the server said of an image: {image, boxes, seen} */
  constructor(state) {
    this.#size = state.image;
    this.reset(state);
  }

  /** Has what the server has, and forgets all that was done. */
  reset({ boxes, seen }) {
    this.#ids.clear();
    this.#setBase(boxes, seen);
    this.boxes = boxes.map((box) => this.#keyed(box));
    this.selected = null;
    [this.#done, this.#undone, this.#gesture] = [[], [], null];
  }

  #setBase(boxes, seen) {
    this.#base = new Map(boxes.map((box) => [box.id, box]));
    this.seen = seen;
  }

  #keyed({ id, box, label, crowd, score = null }) {
    const key = this.#next++;
    if (id !== undefined && id !== null) this.#ids.set(key, id);
    return { key, box, label, crowd, score };
  }

  get current() {
    return this.boxes.find(({ key }) => key === this.selected) ?? null;
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** What has been done to a box before: undefined for one that the server does not have. */
  baseOf(key) {
    return this.#base.get(this.#ids.get(key));
  }

  /** Whether there is anything to be written. */
  get dirty() {
    return this.edits([]).length > 0;
  }

  /** @param gesture changes of the same one, one behind the other, are undone together */
  #step(boxes, selected, gesture = null) {
    if (gesture === null || gesture !== this.#gesture) {
      this.#done.push({ boxes: this.boxes, selected: this.selected });
      if (this.#done.length > MAX_STEPS) this.#done.shift();
    }
    this.#gesture = gesture;
    this.#undone = [];
    this.boxes = boxes;
    this.selected = selected;
  }

  select(key) {
    this.selected = key;
    this.#gesture = null;
  }

  /** Adds boxes as one step; the last one is selected. @returns whether there was any */
  add(boxes) {
    const added = boxes.map((box) => this.#keyed({ crowd: false, ...box, box: fitted(box.box, this.#size) }));
    if (added.length === 0) return false;
    this.#step([...this.boxes, ...added], added.at(-1).key);
    return true;
  }

  /** Changes the selected box. @returns whether it is another one now */
  change({ box, ...changes }, gesture) {
    const old = this.current;
    if (!old) return false;
    const next = { ...old, ...changes, ...(box && { box: fitted(box, this.#size) }) };
    if (same(old, next)) return false;
    // It is no longer what the model has found.
    next.score = null;
    this.#step(
      this.boxes.map((one) => (one === old ? next : one)),
      old.key,
      gesture,
    );
    return true;
  }

  /** Moves the selected box, which stays inside the image whole. */
  move(dx, dy, gesture) {
    if (!this.current) return false;
    const { box } = this.current;
    const x = clamp(dx, -box[0], this.#size.width - box[2]);
    const y = clamp(dy, -box[1], this.#size.height - box[3]);
    return this.change({ box: [box[0] + x, box[1] + y, box[2] + x, box[3] + y] }, gesture);
  }

  /** Removes the selected box; the one behind it is selected. */
  remove() {
    const at = this.boxes.findIndex(({ key }) => key === this.selected);
    if (at < 0) return false;
    const left = this.boxes.toSpliced(at, 1);
    this.#step(left, (left[at] ?? left.at(-1))?.key ?? null);
    return true;
  }

  undo() {
    return this.#travel(this.#done, this.#undone);
  }

  redo() {
    return this.#travel(this.#undone, this.#done);
  }

  #travel(from, to) {
    const step = from.pop();
    if (!step) return false;
    to.push({ boxes: this.boxes, selected: this.selected });
    [this.boxes, this.selected, this.#gesture] = [step.boxes, step.selected, null];
    return true;
  }

  /** What is to be written, as the server takes it. @param classes names, by label */
  edits(classes) {
    const kept = new Set();
    const edits = [];
    const added = [];
    for (const { key, box, label, crowd, score } of this.boxes) {
      const id = this.#ids.get(key);
      const before = this.#base.get(id);
      if (!before) {
        added.push({
          ...{ action: "add", category: classes[label], box },
          ...(crowd && { crowd }),
          ...(score !== null && { score }),
        });
        continue;
      }
      kept.add(id);
      if (same(before, { box, label, crowd })) continue;
      edits.push({
        ...{ action: "change", id },
        ...(label !== before.label && { category: classes[label] }),
        ...(!sameBox(box, before.box) && { box }),
        ...(crowd !== before.crowd && { crowd }),
      });
    }
    for (const id of this.#base.keys()) if (!kept.has(id)) edits.push({ action: "delete", id });
    return [...edits, ...added];
  }

  /** Has what was written, as the server has it now: what was done before can still be undone. */
  settle({ boxes, seen }) {
    const added = this.boxes.filter(({ key }) => !this.#base.has(this.#ids.get(key)));
    const fresh = boxes.filter(({ id }) => !this.#base.has(id)).sort((a, b) => a.id - b.id);
    for (const [i, { key, ...own }] of added.entries()) {
      if (fresh[i] && same(fresh[i], own)) this.#ids.set(key, fresh[i].id);
    }
    this.#setBase(boxes, seen);
    const keys = new Map(this.boxes.map(({ key }) => [this.#ids.get(key), key]));
    this.boxes = boxes.map((box) => {
      const { key, ...rest } = this.#keyed(box);
      const own = keys.get(box.id);
      if (own === undefined) return { key, ...rest };
      this.#ids.delete(key);
      return { key: own, ...rest };
    });
    if (!this.current) this.selected = null;
    this.#gesture = null;
  }

  /**
   * Puts what was done here on top of what the server has now: boxes that were changed, deleted or added here are as they are here,
   * all others as they are there.
   */
  rebase({ boxes, seen }) {
    const [before, keyOf] = [this.#base, new Map(this.boxes.map((box) => [this.#ids.get(box.key), box]))];
    const there = new Map(boxes.map((box) => [box.id, box]));
    const next = [];
    for (const box of boxes) {
      const own = keyOf.get(box.id);
      if (own && !same(before.get(box.id), own)) next.push(own);
      else if (own) next.push({ ...own, box: box.box, label: box.label, crowd: box.crowd });
      else if (!before.has(box.id)) next.push(this.#keyed(box));
    }
    for (const own of this.boxes) {
      const id = this.#ids.get(own.key);
      if (there.has(id)) continue;
      // One that was deleted there and not touched here is gone; one that came by another way is not there twice.
      if (before.has(id) && same(before.get(id), own)) continue;
      if (!before.has(id) && boxes.some((box) => box.label === own.label && overlap(box.box, own.box) > 0.95)) continue;
      next.push(own);
    }
    this.#setBase(boxes, seen);
    this.boxes = next;
    if (!this.current) this.selected = null;
    [this.#done, this.#undone, this.#gesture] = [[], [], null];
  }
}

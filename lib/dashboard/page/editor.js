// The box editor: an image of a run's data set with its boxes and with what was found on it, to be looked at, corrected and written.
import * as api from "./api.js";
import { $ } from "./dom.js";
import { actionOf, keyRows } from "./editor-keys.js";
import { listBoxes, listUnwritten } from "./editor-lists.js";
import { overlap } from "./editor-model.js";
import { keyOf, Session } from "./editor-session.js";
import { Stage } from "./editor-stage.js";

/** How often others' changes are looked for. */
const LOOK_MS = 3000;
/** Pictures that are kept, those longest unused going first. */
const MAX_BITMAPS = 6;
/** A prediction is known already where a box of its class overlaps it so much. */
const COVERED = 0.5;
/** What a browser remembers. */
const AUTHOR = "dlfs-author";
const ALWAYS = "dlfs-predict-always";

class Editor {
  /** By keyOf: the one that is shown, and those that are not written yet. */
  #sessions = new Map();
  #session = null;
  /** What is gone through: {at(place), total}. */
  #list = null;
  #place = 0;
  #iteration;
  #found = null; // the number of the prediction that is selected
  #label = 0;
  #turn = 0;
  #bitmaps = new Map();
  #watching;
  #then = null; // what is to be done when the unwritten is seen to
  #stage = new Stage($("editor-stage"), {
    select: (key) => this.#select(key),
    draw: (box) => this.#edit((model) => model.add([{ box, label: this.#label }])),
    change: (box) => this.#edit((model) => model.change({ box })),
  });

  constructor() {
    const dialog = $("editor");
    dialog.addEventListener("keydown", (event) => this.#press(event));
    // Escape is the editor's own.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => clearInterval(this.#watching));
    $("editor-keys").replaceChildren(...keyRows());
    for (const button of dialog.querySelectorAll("button[data-action]")) {
      const [name, ...values] = button.dataset.action.split(" ");
      button.addEventListener("click", () => this.#do(name, values.map(Number)));
    }
    $("editor-class").addEventListener("change", () => this.relabel(Number($("editor-class").value)));
    $("editor-class").addEventListener("keydown", ({ key }) => key === "Enter" && $("editor-stage").focus());
    $("editor-score").addEventListener("input", () => this.#show());
    $("editor-always").checked = localStorage.getItem(ALWAYS) === "true";
    $("editor-always").addEventListener("change", ({ target }) => {
      localStorage.setItem(ALWAYS, String(target.checked));
      if (target.checked && this.#session && !this.#session.found) void this.predict();
    });
    $("editor-author").value = localStorage.getItem(AUTHOR) ?? "";
    $("editor-author").addEventListener("change", () => localStorage.setItem(AUTHOR, $("editor-author").value.trim()));
    $("editor-boxes").addEventListener("click", (event) => {
      const key = event.target.closest("button")?.dataset.key;
      if (key !== undefined) this.#choose(key.startsWith("found") ? key : Number(key));
    });
    addEventListener("beforeunload", (event) => {
      if ([...this.#sessions.values()].some(({ unwritten }) => unwritten)) event.preventDefault();
    });
  }

  /**
   * Shows an image of a list.
   *
   * @param list {at(place) => {run, image, split, iteration, note}, total}
   * @param score from which on predictions are shown
   */
  async open(list, place = 0, score = undefined) {
    this.#list = list;
    if (score !== undefined) $("editor-score").value = String(score);
    if (!$("editor").open) {
      this.#clear();
      $("editor").showModal();
      $("editor-stage").focus();
      this.#watching = setInterval(() => void this.#look(), LOOK_MS);
    }
    await this.#load(place);
  }

  /** Shows nothing: what was shown before is not what is asked for. */
  #clear() {
    this.#session = null;
    this.#stage.editable = false;
    this.#stage.setImage(null, { width: 1, height: 1 });
    this.#stage.show([], null);
    listBoxes([], null);
    for (const id of ["editor-title", "editor-place", "editor-found", "editor-into"]) $(id).textContent = "";
    delete $("editor").dataset.shown;
  }

  async #load(place) {
    const turn = ++this.#turn;
    const late = () => this.#turn !== turn;
    $("editor-said").textContent = "loading";
    try {
      const wanted = await this.#list.at(place);
      if (late()) return;
      if (!wanted) {
        $("editor-said").textContent = "there is no further image";
        return;
      }
      // One that cannot be shown is gone past.
      this.#place = place;
      const { run, iteration } = wanted;
      const session = await this.#sessionOf(wanted);
      const image = session.state.image.key;
      if (late()) return;
      this.#drop();
      [this.#session, this.#iteration, this.#found] = [session, iteration, null];
      this.#sessions.set(session.key, session);
      this.#then = null;
      this.#fillClasses();
      if (session.said === "") session.said = wanted.note ?? "";
      this.#stage.setImage(null, session.state.image);
      this.#show();
      const bitmap = await this.#bitmapOf(run, image);
      if (late()) return;
      this.#stage.setImage(bitmap, session.state.image);
      if (!session.found && $("editor-always").checked) void this.predict();
      if (!bitmap) $("editor-said").textContent = "its file cannot be had, or not be shown";
      $("editor").dataset.shown = image;
      const following = await this.#list.at(place + 1);
      if (following && !late()) void this.#bitmapOf(following.run, following.image);
    } catch (error) {
      if (!late()) $("editor-said").textContent = error.message;
    }
  }

  /** The session of an image that is not written yet, or a new one. */
  async #sessionOf({ run, image, split, iteration }) {
    const before = this.#sessions.get(keyOf(run, split, image));
    if (before) return before;
    const session = new Session(api, run, await api.annotations(run, { key: image, split, iteration }));
    return this.#sessions.get(session.key) ?? session;
  }

  /** Forgets the image that was shown, unless there is something to be written of it. */
  #drop() {
    const old = this.#session;
    if (old && !old.unwritten && old.status === "") this.#sessions.delete(old.key);
  }

  #bitmapOf(run, image) {
    const key = keyOf(run, "", image);
    const load = async () => {
      try {
        const file = await api.image(run, `image?${new URLSearchParams({ key: image })}`);
        return await createImageBitmap(file, { imageOrientation: "from-image" });
      } catch {
        this.#bitmaps.delete(key); // it may be had the next time
        return null;
      }
    };
    const found = this.#bitmaps.get(key) ?? load();
    this.#bitmaps.delete(key);
    this.#bitmaps.set(key, found);
    for (const [old, bitmap] of this.#bitmaps) {
      if (this.#bitmaps.size <= MAX_BITMAPS) break;
      this.#bitmaps.delete(old);
      void bitmap.then((one) => one?.close());
    }
    return found;
  }

  #fillClasses() {
    const { classes } = this.#session.state;
    if (this.#label >= classes.length) this.#label = 0;
    const select = $("editor-class");
    if ([...select.options].map(({ text }) => text).join("\n") !== classes.join("\n")) {
      select.replaceChildren(...classes.map((name, i) => new Option(name, String(i))));
    }
  }

  /** What was found, from the score on that is chosen, and is not known yet. */
  get #predictions() {
    const { found, model } = this.#session;
    const least = Number($("editor-score").value);
    const known = (one) =>
      model.boxes.some(({ label, box }) => label === one.label && overlap(box, one.box) >= COVERED);
    return (found?.boxes ?? [])
      .map((one, i) => ({ ...one, key: `found-${i}` }))
      .filter((one) => one.score >= least && !known(one));
  }

  #show() {
    const session = this.#session;
    if (!session) return;
    const { model, state, status } = session;
    const nameOf = (label) => state.classes[label] ?? `class ${label}`;
    const own = model.boxes.map((box) => {
      const score = box.score === null ? "" : ` ${box.score.toFixed(2)}`;
      return { ...box, kind: "own", text: `${nameOf(box.label)}${score}${box.crowd ? " (group)" : ""}` };
    });
    const predictions = this.#predictions.map((one) => {
      return { ...one, kind: "found", crowd: false, text: `${nameOf(one.label)} ${one.score.toFixed(2)}?` };
    });
    if (!predictions.some(({ key }) => key === this.#found)) this.#found = null;
    const selected = this.#found ?? model.selected;
    this.#stage.editable = session.editable;
    const theirs = (session.theirs?.boxes ?? []).map(({ id, box, label, crowd }) => {
      return { key: `theirs-${id}`, kind: "theirs", box, label, crowd, text: `theirs: ${nameOf(label)}` };
    });
    this.#stage.show([...own, ...predictions, ...theirs], selected);
    listBoxes([...own, ...predictions], selected);
    const current = model.current ?? predictions.find(({ key }) => key === this.#found);
    $("editor-class").value = String(current?.label ?? this.#label);
    $("editor-title").textContent = state.image.key;
    $("editor-place").textContent =
      this.#list.total > 1 ? `${this.#place + 1} of ${this.#list.total}, ${state.image.split}` : state.image.split;
    $("editor-score-value").textContent = Number($("editor-score").value).toFixed(2);
    $("editor-found").textContent = session.found
      ? `${predictions.length} predictions after step ${session.found.iteration} that are not known`
      : "no predictions are here of this image";
    $("editor-always").closest("label").hidden = !state.predicts;
    $("editor-into").textContent =
      { training: "labels go into the training that goes on", "data set": "labels go into the data set" }[state.into] ??
      "";
    $("editor-said").textContent = session.said;
    $("editor").classList.toggle("reading", state.into === null);
    $("editor").dataset.status = status || (model.dirty ? "changed" : "");
    $("editor-draw").setAttribute("aria-pressed", String(this.#stage.drawing));
    $("editor-once").closest("label").hidden = state.into !== "training";
    $("editor-conflict").hidden = status !== "conflict";
    this.#enable(session, model, predictions.length);
    this.#tellUnwritten();
  }

  #enable(session, model, predictions) {
    const { editable } = session;
    const own = editable && model.current !== null;
    const can = {
      ...{ "editor-undo": editable && model.canUndo, "editor-redo": editable && model.canRedo },
      ...{ "editor-delete": own, "editor-group": own, "editor-accept": editable && this.#found !== null },
      ...{ "editor-accept-all": editable && predictions > 0, "editor-draw": editable, "editor-add": editable },
      "editor-predict": session.state.predicts && editable,
      ...{ "editor-save": editable && model.dirty, "editor-save-next": editable, "editor-class": editable },
    };
    for (const [id, may] of Object.entries(can)) {
      // Keys that are pressed on what is disabled go nowhere.
      if (!may && document.activeElement === $(id)) $("editor-stage").focus({ preventScroll: true });
      $(id).disabled = !may;
    }
  }

  #select(key) {
    if (!this.#session) return;
    const found = typeof key === "string";
    this.#found = found ? key : null;
    this.#session.model.select(found ? null : key);
    this.#show();
  }

  /** Selects a box, and moves what is seen to it. */
  #choose(key) {
    this.#select(key);
    const box = this.#session.model.current?.box ?? this.#predictions.find((one) => one.key === key)?.box;
    if (box) this.#stage.reveal(box);
  }

  /** Does something to the boxes. */
  #edit(work) {
    const session = this.#session;
    if (!session?.editable) return;
    if (!work(session.model)) return;
    this.#found = null;
    session.said = "";
    if (session.status === "failed") session.status = "";
    this.#show();
  }

  #press(event) {
    const found = actionOf(event);
    if (!found) return;
    event.preventDefault();
    const [name, ...values] = found.action;
    this.#do(name, [...values, found.fast]);
  }

  /** What keys and buttons ask for; while no image is shown, as the first one cannot be had, only to leave it. */
  #do(name, values) {
    if (this.#session || ["go", "close", "escape", "answer"].includes(name)) void this[name](...values);
  }

  // What keys and buttons do.

  step(by) {
    const keys = [...this.#session.model.boxes.map(({ key }) => key), ...this.#predictions.map(({ key }) => key)];
    if (keys.length === 0) return;
    const at = keys.indexOf(this.#found ?? this.#session.model.selected);
    this.#choose(keys[at < 0 && by < 0 ? keys.length - 1 : (at + by + keys.length) % keys.length]);
  }

  nudge(dx, dy, fast) {
    const by = fast ? 10 : 1;
    if (this.#session.model.current) this.#edit((model) => model.move(dx * by, dy * by, "move"));
    else this.#stage.pan(dx * by * 10, dy * by * 10);
  }

  grow(dx, dy, fast) {
    const by = fast ? 10 : 1;
    this.#edit((model) => {
      const [x1, y1, x2, y2] = model.current?.box ?? [0, 0, 0, 0];
      return model.change({ box: [x1, y1, Math.max(x1 + 1, x2 + dx * by), Math.max(y1 + 1, y2 + dy * by)] }, "grow");
    });
  }

  addBox() {
    this.#edit((model) => model.add([{ box: this.#stage.middle(), label: this.#label }]));
  }

  toggleDrawing() {
    this.#stage.drawing = !this.#stage.drawing;
    this.#show();
  }

  remove() {
    this.#edit((model) => model.remove());
  }

  accept() {
    const one = this.#predictions.find(({ key }) => key === this.#found);
    if (one) this.#edit((model) => model.add([{ box: one.box, label: one.label, score: one.score }]));
  }

  acceptAll() {
    const all = this.#predictions.map(({ box, label, score }) => ({ box, label, score }));
    this.#edit((model) => model.add(all));
  }

  async predict() {
    const session = this.#session;
    await session?.predict(() => this.#tell(session));
  }

  relabel(label) {
    if (!this.#session || label >= this.#session.state.classes.length) return;
    this.#label = label;
    const one = this.#predictions.find(({ key }) => key === this.#found);
    // A prediction whose class is put right is a person's work.
    this.#edit((model) => (one ? model.add([{ box: one.box, label }]) : model.change({ label }, "label")));
    this.#show();
  }

  chooseClass() {
    $("editor-class").focus();
  }

  toggleGroup() {
    this.#edit((model) => model.change({ crowd: !model.current?.crowd }));
  }

  undo() {
    this.#edit((model) => model.undo());
  }

  redo() {
    this.#edit((model) => model.redo());
  }

  zoom(factor) {
    this.#stage.zoom(factor);
  }

  fit() {
    this.#stage.fit();
  }

  escape() {
    if (this.#stage.cancel()) return;
    if (!$("editor-ask").hidden) {
      void this.answer(0);
      return;
    }
    const { model } = this.#session ?? {};
    if (model && (model.selected !== null || this.#found !== null)) this.#select(null);
    else this.close();
  }

  async save() {
    const session = this.#session;
    if (!session?.editable) return;
    const options = { author: $("editor-author").value.trim() || "dashboard", atOnce: $("editor-once").checked };
    await session.save(options, () => this.#tell(session));
  }

  async saveAndGo() {
    if (this.#session?.state.into === null) return;
    void this.save();
    await this.#load(this.#place + 1);
  }

  async go(by) {
    await this.#leaving(() => this.#load(this.#place + by));
  }

  async close() {
    await this.#leaving(() => {
      $("editor").close();
      this.#drop();
      this.#session = null;
      this.#tellUnwritten();
    });
  }

  /** Does something that leaves the image; what is not written is asked about first. */
  async #leaving(then) {
    const session = this.#session;
    if (session?.status !== "saving" && session?.unwritten) {
      this.#then = then;
      $("editor-ask").hidden = false;
      $("editor-ask-save").focus();
    } else await then();
  }

  async answer(choice) {
    const [then, session] = [this.#then, this.#session];
    $("editor-ask").hidden = true;
    this.#then = null;
    $("editor-stage").focus();
    if (choice === 0 || !then) return;
    if (choice === 1) void this.save();
    else session.settle(false);
    await then();
  }

  /** A conflict is settled. @param mine 1: with what was done here on top, 0: as the others have it */
  settle(mine) {
    this.#session.settle(mine === 1);
    this.#show();
    $("editor-stage").focus();
  }

  /** Shows one that is not written yet. */
  async #openUnwritten({ run, state: { image } }) {
    const one = { run, image: image.key, split: image.split };
    const open = () => this.open({ total: 1, at: async (place) => (place === 0 ? one : null) });
    await ($("editor").open ? this.#leaving(open) : open());
  }

  /** What became of a save. */
  #tell(session) {
    if (session !== this.#session && !session.unwritten && session.status === "") this.#sessions.delete(session.key);
    if (session === this.#session) this.#show();
    else this.#tellUnwritten();
  }

  /** Other images that are not written. */
  #tellUnwritten() {
    const shown = $("editor").open ? this.#session : null;
    const others = [...this.#sessions.values()].filter((one) => one.unwritten && one !== shown);
    listUnwritten(others, (one) => void this.#openUnwritten(one));
  }

  async #look() {
    const session = this.#session;
    if (!session || document.hidden) return;
    try {
      if ((await session.look(this.#iteration)) && session === this.#session) this.#show();
    } catch {
      // The page says already that the server does not answer.
    }
  }
}

let editor = null;

/** Opens the editor on an image of a list. */
export function openEditor(list, place, score) {
  editor ??= new Editor();
  return editor.open(list, place, score);
}

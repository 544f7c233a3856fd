// The images of a run's data set, to be labelled one after the other.
import * as api from "./api.js";
import { $, fill, settled } from "./dom.js";

const PAGE = 200;

/** Images of a data set, in its order, read on as they are asked for. */
export class ImageList {
  #keys = [];
  #next = 0;
  total = 0;
  split = "";
  splits = [];

  constructor(run, filter) {
    this.run = run;
    this.filter = filter;
  }

  /** The image at a place, {run, image, split}; null behind the last one. */
  async at(place) {
    while (place >= this.#keys.length && this.#next !== null) {
      const page = await api.listImages(this.run, { ...this.filter, after: this.#next, limit: PAGE });
      this.#keys.push(...page.images);
      this.#next = page.next;
      this.total = page.total ?? this.total;
      [this.split, this.splits] = [page.split, page.splits];
    }
    const image = this.#keys[place];
    return image === undefined ? null : { run: this.run, image, split: this.split };
  }
}

/**
 * Images that a file names, in its order: JSON lines with `image`, as dlfs label rank and audit write them, or a path a line. What a
 * line says besides is told with its image.
 */
export class NamedList {
  #entries;

  /** @throws Error where a line is none */
  constructor(run, split, text) {
    this.run = run;
    this.split = split;
    const notes = new Map();
    for (const [i, line] of text.split(/\r?\n/).entries()) {
      if (line.trim() === "") continue;
      const { image, note } = entryOf(line.trim(), i + 1);
      notes.set(image, [...(notes.get(image) ?? []), ...(note === "" ? [] : [note])]);
    }
    this.#entries = [...notes];
  }

  get total() {
    return this.#entries.length;
  }

  async at(place) {
    const entry = this.#entries[place];
    return entry ? { run: this.run, split: this.split, image: entry[0], note: entry[1].join("; ") } : null;
  }
}

/** What a line of a list says of an image. */
function entryOf(line, number) {
  // Of a path, what comes last is the image's name.
  if (!line.startsWith("{")) return { image: line.split("/").at(-1), note: "" };
  let row;
  try {
    row = JSON.parse(line);
  } catch (error) {
    throw new Error(`line ${number} of the list: ${error.message}`);
  }
  if (typeof row.image !== "string") throw new Error(`line ${number} of the list: expected "image"`);
  const { image, problem, given, found, value } = row;
  if (typeof problem !== "string") return { image, note: typeof value === "number" ? `worth ${value.toFixed(3)}` : "" };
  const was = given?.class === undefined || given.class === found?.class ? "" : `${given.class}, rather `;
  return { image, note: `${problem}: ${was}${found?.class ?? ""} ${found?.score?.toFixed(2) ?? ""}`.trim() };
}

/** The panel that chooses which of them. @param open (list) => void */
export class ImagesPanel {
  #doing;
  #known = "";

  constructor(doing, open) {
    this.#doing = doing;
    $("label-run").addEventListener("change", () => void this.#look());
    for (const id of ["label-split", "label-boxes"]) $(id).addEventListener("change", () => void this.#look());
    $("label-text").addEventListener(
      "input",
      settled(250, () => void this.#look()),
    );
    $("label-open").addEventListener("click", () => open(this.#list()));
    $("label-list").addEventListener("change", () => void this.#openFile(open));
  }

  /** @param runs names, the one that is shown first being `first` */
  setRuns(runs, first) {
    const names = runs.map((name) => [name, name]);
    if (this.#known === JSON.stringify(names)) return;
    this.#known = JSON.stringify(names);
    fill($("label-run"), names, first);
    void this.#look();
  }

  #list() {
    const filter = { split: $("label-split").value, boxes: $("label-boxes").value, text: $("label-text").value.trim() };
    return new ImageList($("label-run").value, filter);
  }

  #openFile(open) {
    return this.#doing("list", async () => {
      const [file] = $("label-list").files;
      if (!file) return;
      const text = await file.text();
      // The same file may be chosen again.
      $("label-list").value = "";
      const list = new NamedList($("label-run").value, $("label-split").value, text);
      if (list.total === 0) throw new Error(`${file.name}: it names no image`);
      open(list);
    });
  }

  /** Says how many there are. */
  #look() {
    return this.#doing("images of the data set", async (late) => {
      const list = this.#list();
      if (list.run === "") return;
      $("label-open").disabled = true;
      $("label-count").textContent = "";
      await list.at(0);
      if (late()) return;
      const splits = list.splits.map((split) => [split, split]);
      fill($("label-split"), splits, list.split);
      $("label-count").textContent = `${list.total} ${list.total === 1 ? "image" : "images"}`;
      $("label-open").disabled = list.total === 0;
    });
  }
}

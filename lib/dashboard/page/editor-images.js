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

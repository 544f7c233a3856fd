// What a model finds: an evaluation of a run as images, curves, a confusion matrix and numbers of boxes, all of one choice of class,
// score and IoU.
import * as api from "./api.js";
import { Confusion } from "./confusion.js";
import { $, fill, settled } from "./dom.js";
import { Grid } from "./grid.js";
import { ClassTable, SizeHistogram } from "./histograms.js";
import { PrecisionRecall } from "./pr.js";
import { drawSample } from "./samples.js";

const PICTURES = {
  "pr-curve.svg": "precision over recall of each class",
  "confusion-matrix.svg": "confusion matrix: which class is taken for which, or missed",
  "f1-curve.svg": "F1 over the score threshold of each class",
};

export class Evaluations {
  #doing;
  /** { run, iteration, classes, dataset, key }: `key` is another one where the evaluation is */
  #shown = null;
  /** A cell of the confusion matrix whose images are shown. */
  #cell = null;
  #grid;
  #curve;
  #confusion;
  #classes;
  #sizes;
  #compared;

  /**
   * @param doing (what, work) runs what a control asks for, and says what goes wrong
   * @param compared () => [{ run, color }]: runs whose curves are shown together
   */
  constructor(doing, compared) {
    this.#doing = doing;
    this.#compared = compared;
    this.#grid = new Grid($("samples"), {
      load: async (from, count) => {
        const { run, iteration } = this.#shown;
        const { total, images } = await api.evaluation(run, iteration, "images", { ...this.#query(), from, count });
        $("samples-count").textContent = `${total} ${total === 1 ? "image" : "images"}`;
        return { total, items: images };
      },
      draw: (figure, sample) => {
        figure.dataset.name = sample.name;
        void drawSample(figure, this.#shown.run, sample, this.#shown.classes, this.#boxes());
      },
      open: (_, place) => {
        const detail = { list: this.#list(), place, score: Number($("score").value) };
        document.dispatchEvent(new CustomEvent("dlfs-open", { detail }));
      },
      fail: (error) =>
        doing("images", async () => {
          if (error) throw error;
        }),
    });
    this.#curve = new PrecisionRecall($("pr"), $("pr-told"), (score) => this.#setScore(score));
    this.#confusion = new Confusion($("confusion"), $("confusion-told"), (cell) => this.#showCell(cell));
    this.#classes = new ClassTable($("classes"), (label) => {
      $("sample-class").value = label;
      this.#choose();
    });
    this.#sizes = new SizeHistogram($("sizes"), $("sizes-told"));
    $("sample-run").addEventListener("change", () => {
      $("sample-iteration").value = "";
      void this.load();
    });
    $("sample-iteration").addEventListener("change", () => void this.load());
    $("sample-class").addEventListener("change", () => this.#choose());
    $("sample-sort").addEventListener("change", () => void this.#grid.reset());
    $("sample-cell").addEventListener("click", () => this.#showCell(null));
    const later = settled(150, () => this.#choose());
    for (const id of ["score", "iou"]) {
      $(id).addEventListener("input", () => {
        this.#tellValues();
        if (id === "score") this.#grid.redraw();
        later();
      });
    }
    $("sample-text").addEventListener(
      "input",
      settled(200, () => void this.#grid.reset()),
    );
  }

  /** The run whose evaluation is shown; "" for none. */
  get run() {
    return $("sample-run").value;
  }

  /** Runs that there are, and the one that is shown at first. */
  setRuns(names, first) {
    fill(
      $("sample-run"),
      names.map((name) => [name, name]),
      first,
    );
  }

  /** Other runs are compared. */
  compare() {
    void this.#showFigures();
  }

  /** Draws again what depends on colours and widths. */
  resize() {
    this.#confusion.draw();
  }

  /** Shows the run's last evaluation, or the one that is chosen; `changed`: the same again, further on. */
  async load({ changed = false } = {}) {
    const { run } = this;
    if (run === "") return;
    await this.#doing("evaluations", async (late) => {
      const [list, dataset, pictures] = await Promise.all([api.evaluations(run), api.dataset(run), api.pictures(run)]);
      if (late()) return;
      const steps = list
        .toReversed()
        .map(({ iteration, whole }) => [String(iteration), `${iteration}${whole ? "" : " (some images)"}`]);
      fill($("sample-iteration"), [["", "the last"], ...steps], "");
      const wanted = $("sample-iteration").value;
      const chosen = wanted === "" ? list.at(-1) : list.find(({ iteration }) => String(iteration) === wanted);
      $("analysis").hidden = !chosen;
      for (const part of document.querySelectorAll(".of-images")) part.hidden = !chosen;
      const drawn = chosen?.whole ? [] : picturesOf(pictures, !chosen);
      $("samples-note").textContent = noteOf(chosen, drawn.length > 0);
      void this.#showPictures(run, drawn);
      if (!chosen) {
        this.#shown = null;
        return;
      }
      const key = [run, chosen.iteration, chosen.version].join();
      if (changed && this.#shown?.key === key) return;
      const about = await api.evaluation(run, chosen.iteration, "");
      if (late()) return;
      const same = changed && this.#shown?.run === run;
      const before = this.#shown?.classes;
      this.#shown = { run, ...about, dataset, key };
      // A class of the same number is another one where classes have other names.
      if (String(before) !== String(about.classes)) $("sample-class").value = "";
      fill($("sample-class"), [["", "all"], ...about.classes.map((name, i) => [String(i), name])], "");
      if (!same) this.#setCell(null);
      document.body.dataset.evaluation = `${run} ${about.iteration}`;
      await Promise.all([this.#grid.reset({ stay: same }), this.#showFigures()]);
    });
  }

  /** A class, a score or an IoU is another. */
  #choose() {
    this.#tellValues();
    void this.#grid.reset();
    void this.#showFigures();
  }

  #tellValues() {
    for (const id of ["score", "iou"]) $(`${id}-value`).textContent = Number($(id).value).toFixed(2);
  }

  #setScore(score) {
    // A point of the curve has its own score still.
    $("score").value = String(Math.floor(score * 100) / 100);
    this.#choose();
  }

  #boxes() {
    return { score: Number($("score").value), label: $("sample-class").value };
  }

  #query() {
    const { score, label } = this.#boxes();
    const text = $("sample-text").value.trim();
    return {
      ...{ sort: $("sample-sort").value, score },
      ...(label !== "" && { class: label }),
      ...(text !== "" && { text }),
      ...(this.#cell && { row: this.#cell.row, column: this.#cell.column, iou: $("iou").value }),
    };
  }

  /** The images that are shown, to be gone through: {at(place), total}. */
  #list() {
    const { run, iteration } = this.#shown;
    const query = this.#query();
    const list = {
      total: Number($("samples").dataset.total),
      at: async (place) => {
        if (place < 0) return null;
        const { images, total } = await api.evaluation(run, iteration, "images", { ...query, from: place, count: 1 });
        list.total = total;
        const [sample] = images;
        return sample ? { run, iteration, image: sample.name, split: sample.split } : null;
      },
    };
    return list;
  }

  #showCell(cell) {
    this.#setCell(cell);
    // Its boxes are of two classes.
    if (cell) $("sample-class").value = "";
    this.#choose();
    if (cell) $("sample-cell").scrollIntoView({ block: "center" });
  }

  #setCell(cell) {
    this.#cell = cell;
    $("sample-cell").hidden = cell === null;
    $("sample-cell").textContent = cell ? `only ${cell.text} ✕` : "";
  }

  #showFigures() {
    return this.#doing("figures", async (late) => {
      if (!this.#shown) return;
      const { run, iteration, classes, dataset } = this.#shown;
      const { score, label } = this.#boxes();
      const iou = $("iou").value;
      const ofClass = label === "" ? {} : { class: label };
      const ask = (part, query) => api.evaluation(run, iteration, part, query);
      const compared = this.#compared();
      const [curves, others, confusion, boxes] = await Promise.all([
        ask("curves", { iou, ...ofClass }),
        Promise.all(compared.filter((other) => other.run !== run).map((other) => curveOf(other, iou, classes[label]))),
        ask("confusion", { iou, score }),
        ask("histograms", { score, ...ofClass }),
      ]);
      if (late()) return;
      const own = label === "" ? null : curves.classes[Number(label)];
      const name = own?.name ?? "mean of the classes";
      $("pr-name").textContent =
        `${name}, AP ${figure(own ? own.AP : curves.mean.AP)} at an IoU of ${Number(iou).toFixed(2)}`;
      const lines = others.filter((line) => line !== null);
      const color = lines.length > 0 ? compared.find((one) => one.run === run)?.color : undefined;
      this.#curve.show(name, curves.points, { best: own?.best ?? null, score, color, others: lines });
      $("pr-others").textContent = lines.length > 0 ? `beside: ${lines.map((line) => line.name).join(", ")}` : "";
      this.#confusion.show(confusion);
      const training = dataset?.splits[0];
      const trained = (i) => training?.boxes[dataset.classes.indexOf(classes[i])] ?? null;
      const rows = curves.classes.map(({ name: title, AP, best }, i) => ({
        ...{ label: i, name: title, ap: AP, best, trained: trained(i) },
        ...{ known: boxes.classes.truth[i], found: boxes.classes.found[i] },
      }));
      this.#classes.show(rows, label);
      const ofTraining =
        training && sizesOf(training.sizes, label === "" ? null : dataset.classes.indexOf(classes[label]));
      this.#sizes.show(boxes.sizes.edges, [
        { name: "found", counts: boxes.sizes.found, kind: "bars" },
        { name: "known", counts: boxes.sizes.truth, kind: "line known" },
        ...(ofTraining ? [{ name: "in training", counts: ofTraining, kind: "line trained" }] : []),
      ]);
      $("sizes-key").textContent =
        `bars: found from a score of ${score.toFixed(2)}; line: known${ofTraining ? "; dashed: in training" : ""}`;
      document.body.dataset.figures = [iteration, iou, score, label].join(" ");
    });
  }

  /** Pictures that a training has drawn: of runs whose evaluations have no figures. */
  #showPictures(run, names) {
    return this.#doing("pictures", async (late) => {
      const images = await Promise.all(
        names.map(async (name) => {
          const src = URL.createObjectURL(await api.image(run, `pictures/${name}`));
          const alt = PICTURES[name] ?? `predictions beside ground truth: ${name}`;
          const picture = Object.assign(new Image(), { src, alt });
          // Shown when they are there: what was shown before stays until then.
          await picture.decode().catch(() => undefined);
          return picture;
        }),
      );
      const old = late() ? images : [...$("pictures").children];
      if (!late()) $("pictures").replaceChildren(...images);
      for (const { src } of old) URL.revokeObjectURL(src);
    });
  }
}

const figure = (value) => (value < 0 ? "-" : value.toFixed(3));

function picturesOf(pictures, withSheet) {
  const sheet = withSheet ? pictures.findLast((name) => name.endsWith(".jpg")) : undefined;
  return [...(sheet ? [sheet] : []), ...Object.keys(PICTURES).filter((name) => pictures.includes(name))];
}

function noteOf(chosen, hasPictures) {
  if (!chosen)
    return hasPictures ? "Of this run, pictures of the last evaluation were kept alone." : "No evaluation is here yet.";
  const kept = chosen.whole ? "" : " Of this evaluation some images were kept alone, and figures are of those.";
  return `Left what was found, right what is known; dashed are groups.${kept}`;
}

/** The numbers of all classes together, or of one. */
function sizesOf(sizes, label) {
  if (label !== null) return sizes[label] ?? null;
  return sizes.reduce((sum, own) => sum.map((count, i) => count + own[i]));
}

/** The curve of another run's last evaluation, of the class of that name, or the mean; null where it has none. */
async function curveOf({ run, color }, iou, name) {
  const { iteration } = (await api.evaluations(run)).at(-1) ?? {};
  if (iteration === undefined) return null;
  const label = name === undefined ? -1 : (await api.evaluation(run, iteration, "")).classes.indexOf(name);
  if (name !== undefined && label < 0) return null;
  const { points, mean, classes } = await api.evaluation(run, iteration, "curves", {
    iou,
    ...(label >= 0 && { class: label }),
  });
  return { name: `${run} AP ${figure(label < 0 ? mean.AP : classes[label].AP)}`, color, points };
}

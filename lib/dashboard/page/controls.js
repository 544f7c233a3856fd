// What a training that goes on is told: shown where it can be told things.
import * as api from "./api.js";
import { $, fill } from "./dom.js";

const SURE_MS = 5000;
const DONE = {
  pause: "paused",
  resume: "goes on",
  evaluate: "evaluates",
  save: "saves a checkpoint",
  stop: "stops, its state saved",
  learningRate: "has another learning rate",
};

export class Controls {
  #doing;

  constructor(doing) {
    this.#doing = doing;
    for (const button of $("control").querySelectorAll("button[data-command]")) {
      button.addEventListener("click", () => this.#sure(button) && void this.#send(button));
    }
  }

  /** Trainings that can be told things. */
  setRuns(names) {
    $("control").hidden = names.length === 0;
    if (names.length === 0) return;
    fill(
      $("control-run"),
      names.map((name) => [name, name]),
      names.at(-1),
    );
  }

  /** A training is stopped by a second click, some seconds after the first at most. */
  #sure(button) {
    if (button.dataset.command !== "stop") return true;
    const sure = button.dataset.asked === "true";
    const ask = (asked) => {
      button.dataset.asked = String(asked);
      button.textContent = asked ? "stop it indeed" : "stop";
    };
    ask(!sure);
    if (!sure) setTimeout(() => ask(false), SURE_MS);
    return sure;
  }

  #send(button) {
    return this.#doing("control", async () => {
      const { command } = button.dataset;
      const run = $("control-run").value;
      const value = Number($("control-rate").value);
      // Whatever it costs is not done twice by a second click.
      button.disabled = true;
      $("control-told").textContent = `${run} is told`;
      try {
        const author = localStorage.getItem("dlfs-author") || "dashboard";
        const { from } = await api.tell(run, { command, author, ...(command === "learningRate" && { value }) });
        $("control-told").textContent = `${run} ${DONE[command]}, before step ${from + 1}`;
      } catch (error) {
        $("control-told").textContent = "";
        throw error;
      } finally {
        button.disabled = false;
      }
    });
  }
}

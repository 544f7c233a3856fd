// One image's boxes on their way to the server and back.
import { BoxModel } from "./editor-model.js";

// Pages that did not come over https have no crypto.randomUUID.
const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** An image that is edited, until all of it is written. */
export class Session {
  /** What the server said last: {image, classes, boxes, seen, into, predicts, found}. */
  state;
  model;
  /** "": at rest; "saving"; "failed": it was refused, or lost; "conflict": somebody else has changed the image, to `theirs`. */
  status = "";
  said = "";
  theirs = null;
  /** What was found when it was asked for: {iteration, boxes}. */
  predicted = null;
  #api;
  #sent = null;

  constructor(api, run, state) {
    this.#api = api;
    this.run = run;
    this.state = state;
    this.model = new BoxModel(state);
  }

  get key() {
    return keyOf(this.run, this.state.image.split, this.state.image.key);
  }

  get editable() {
    return this.state.into !== null && this.status !== "saving";
  }

  /** Whether there is anything that the server does not have. */
  get unwritten() {
    return this.status === "saving" || this.model.dirty;
  }

  /** Writes what has changed. @param tell called whenever something is to be said */
  async save({ author, atOnce }, tell) {
    const { image, classes, into } = this.state;
    const edits = this.model.edits(classes);
    if (this.status === "saving" || edits.length === 0) return;
    const content = { author, image: image.key, split: image.split, seen: this.model.seen, edits, atOnce };
    // What was lost on its way is the same message again, which is done once.
    const text = JSON.stringify(content);
    if (this.#sent?.text !== text) this.#sent = { text, id: newId() };
    this.#say("saving", into === "training" ? "waiting for the training" : "writing", tell);
    try {
      this.#heard(await this.#send({ id: this.#sent.id, ...content }, tell));
    } catch (error) {
      this.status = "failed";
      this.said = `not written: ${error.message}`;
    }
    tell();
  }

  async #send(message, tell) {
    for (;;) {
      const answer = await this.#api.writeLabels(this.run, message);
      if (answer.status !== 202) return answer;
      this.#say("saving", "the training has not answered yet: it takes labels in between two steps", tell);
    }
  }

  #heard({ status, error, now, into, from }) {
    if (status === 200) {
      this.#sent = null;
      this.state = now;
      this.model.settle(now);
      this.status = "";
      this.said = into === "training" ? `the training has it, from step ${from} on` : "the data set has it";
    } else if (status === 409) this.#conflict(now);
    else {
      this.status = "failed";
      this.said = `not written: ${error}`;
    }
  }

  #say(status, said, tell) {
    this.status = status;
    this.said = said;
    tell();
  }

  /** What is there of predictions: null where nothing is. */
  get found() {
    return this.predicted ?? this.state.found;
  }

  /** Asks what the model makes of the image now. */
  async predict(tell) {
    if (!this.state.predicts || this.status === "saving") return;
    const { key, split } = this.state.image;
    this.said = "predicting";
    tell();
    try {
      this.predicted = await this.#api.predictions(this.run, { image: key, split });
      this.said = "";
    } catch (error) {
      this.said = `not predicted: ${error.message}`;
    }
    tell();
  }

  /** Looks whether somebody else has changed the image. @returns whether anything is to be shown anew */
  async look(iteration) {
    if (this.status !== "" || this.state.into === null) return false;
    const { seen } = this.model;
    const now = await this.#api.annotations(this.run, { ...this.state.image, iteration });
    // Written meanwhile: what was heard is older.
    if (this.status !== "" || this.model.seen !== seen) return false;
    if (now.seen !== seen && this.model.dirty) this.#conflict(now);
    else if (now.seen !== seen) {
      this.model.rebase(now);
      this.said = `changed by ${whoChanged(now)}, and shown as it is now`;
    }
    const found = JSON.stringify(now.found) !== JSON.stringify(this.state.found);
    const moved = now.into !== this.state.into;
    this.state = now;
    return now.seen !== seen || found || moved;
  }

  #conflict(now) {
    this.theirs = now;
    this.status = "conflict";
    this.said = `${whoChanged(now)} has changed the image meanwhile: boxes there are ${now.boxes.length}`;
  }

  /** Shows what the others have made of it. @param keep with what was done here on top of it */
  settle(keep) {
    const now = this.theirs ?? this.state;
    if (keep) this.model.rebase(now);
    else this.model.reset(now);
    this.state = now;
    this.theirs = null;
    this.status = "";
    this.said = "";
  }
}

export const keyOf = (run, split, image) => JSON.stringify([run, split, image]);

function whoChanged({ boxes }) {
  const [last] = boxes.toSorted((a, b) => (b.modified ?? 0) - (a.modified ?? 0));
  return last?.source === "human" && last.author ? last.author : "somebody";
}

/** The boxes of images as the page's editor shows them and writes them back: to a training that goes on, or to the data set. */
import type { AnnotationRecord, ImageQuery, ImageRecord } from "../data";
import type { LabelMessage, SampleMessage } from "../formats";
import { applyEdits, askPredictions, type FoundBoxes, findLiveAddress, imageOf, postMessage, seenOf } from "../live";
import { DlfsError, ErrorCode } from "../native/error";
import { type RunData, RunDataSets } from "./run-data";
import type { RunView } from "./runs";

/** Images of one list, and detections of one image, at most. */
const MAX_IMAGES = 500;
const MAX_FOUND = 300;
/** A training that is evaluating answers when it is through. */
const ANSWER_MS = 600_000;
/** Answers that are remembered, for those who ask again. */
const MAX_REMEMBERED = 1000;

/** What became of labels. `from`: the first step that they count in. */
export type Outcome = { into: "training"; from: number } | { into: "data set" };

/** Which images are listed. */
export interface ImageFilter {
  split: string;
  boxes: "any" | "none" | "some";
  /** A part of the key. */
  text: string;
  /** Images after this id. */
  after: number;
  limit: number;
}

/** Finds objects on an image with the weights that a run has kept last. */
export type Predictor = (run: string, image: Uint8Array) => Promise<FoundBoxes>;

export interface EditorOptions {
  /** Whether labels may be written. Default false. */
  edit?: boolean;
  /** The token of trainings that do not leave theirs in their run folder: the user's own, DLFS_LIVE_TOKEN. */
  token?: string;
  /** Of runs whose training does not go on. Default: of those nothing is predicted. */
  predict?: Predictor;
}

/** Labels that were made of what the image has no more. */
export class ConflictError extends DlfsError {}

/** An image that is not there. */
export class NotFoundError extends DlfsError {}

/** Reads and writes the boxes of runs' images. */
export class LabelEditor implements Disposable {
  readonly #data = new RunDataSets();
  readonly #outcomes = new Map<string, Promise<Outcome>>();
  readonly #token: string | undefined;
  readonly #predict: Predictor | undefined;
  readonly writable: boolean;

  constructor({ edit = false, token, predict }: EditorOptions = {}) {
    this.writable = edit;
    this.#token = token;
    this.#predict = predict;
  }

  /**
   * An image with its boxes and what was found on it. Where nothing may be written, its boxes are those that its sample has.
   *
   * @param name its key, or its file name where that is one image's alone
   * @param iteration of the evaluation that found it. Default: the last one
   * @throws DlfsError where there is no such image
   */
  async describe(run: RunView, name: string, split: string, iteration?: number) {
    if (!this.writable) {
      const sample = await sampleOf(run, name, split, iteration);
      if (!sample) throw unseen(run, name);
      const { width, height } = sample.predictions;
      const image = { key: name, split, width, height };
      const rest = { seen: null, into: null, predicts: false, found: foundOf(sample) };
      return { image, classes: await run.classes(), boxes: truthOf(sample), ...rest };
    }
    const data = await this.#data.of(run);
    const { id, key, width, height } = imageIn(data, name, split);
    const sample = await sampleOf(run, key, split, iteration);
    const present = data.store.annotationsOf(id);
    const classes = data.classes.names;
    const boxes = present.map((annotation) => boxOf(annotation, data));
    const address = await this.#address(run);
    const into = address?.split === split ? "training" : "data set";
    const predicts = address !== null || this.#predict !== undefined;
    const found = sample && foundOf(sample);
    return { image: { key, split, width, height }, classes, boxes, seen: seenOf(present), into, predicts, found };
  }

  /** Images of a run's data set, by ascending id; `total` of them, on the first page. */
  async images(run: RunView, { split, boxes, text, after, limit }: ImageFilter) {
    const { store, trainSplit } = await this.#data.of(run);
    const any = "EXISTS (SELECT 1 FROM annotations a WHERE a.image_id = i.id)";
    const where = [
      ...(text === "" ? [] : ["instr(lower(i.key), lower(?)) > 0"]),
      ...(boxes === "any" ? [] : [boxes === "none" ? `NOT ${any}` : any]),
    ].join(" AND ");
    const conditions = where === "" ? {} : { where, parameters: text === "" ? [] : [text] };
    const wanted = split === "" ? trainSplit : split;
    const query: ImageQuery = { split: wanted, usable: true, ...conditions };
    const most = Math.min(limit, MAX_IMAGES);
    const found = store.findImages(query, { after, limit: most + 1 });
    const page = found.slice(0, most);
    return {
      ...{ split: wanted, trainSplit, splits: store.splits() },
      ...(after === 0 && { total: store.countImages(query) }),
      images: page.map(({ key }) => key),
      next: found.length > most ? (page.at(-1) as ImageRecord).id : null,
    };
  }

  /**
   * What a run's model makes of an image: with the weights that it has now where its training goes on, else with the last ones that
   * were kept.
   *
   * @throws DlfsError where the image or the model cannot be had
   */
  async predict(run: RunView, key: string, split: string): Promise<FoundBoxes> {
    imageIn(await this.#data.of(run), key, split);
    const address = await this.#address(run);
    if (address) return await askPredictions(address, { image: key, split }, { timeoutMs: ANSWER_MS });
    const predict = this.#predict;
    if (predict) return await predict(run.path, (await run.images.read(key)).bytes);
    throw new NotFoundError(ErrorCode.unsupported, "predictions", `${run.name} has no training that goes on`);
  }

  /**
   * Writes labels: the training takes them in that goes on with the image's split, else the data set does. The same message again
   * (by its id) has the same outcome.
   *
   * @throws ConflictError where the image's boxes are not those that the message's author saw; DlfsError naming what is wrong
   */
  async write(run: RunView, message: LabelMessage & { split: string; seen: string }): Promise<Outcome> {
    const key = `${run.path}\n${message.id}`;
    const before = this.#outcomes.get(key);
    if (before) return await before;
    const outcome = this.#write(run, message);
    this.#outcomes.set(key, outcome);
    // What failed may be tried again.
    outcome.catch(() => this.#outcomes.delete(key));
    for (const old of this.#outcomes.keys()) {
      if (this.#outcomes.size <= MAX_REMEMBERED) break;
      this.#outcomes.delete(old);
    }
    return await outcome;
  }

  async #write(run: RunView, message: LabelMessage & { split: string; seen: string }): Promise<Outcome> {
    const address = await this.#address(run);
    const data = await this.#data.of(run);
    const { store, classes } = data;
    const image = imageIn(data, message.image, message.split);
    const conflicting = () => seenOf(store.annotationsOf(image.id)) !== message.seen;
    if (address?.split !== message.split) {
      try {
        const boxesPerImage = Number.POSITIVE_INFINITY;
        applyEdits({ store, classes, split: message.split, boxesPerImage }, image, message);
      } catch (error) {
        if (error instanceof DlfsError && conflicting()) throw new ConflictError(error.code, "labels", error.message);
        throw error;
      }
      return { into: "data set" };
    }
    const answer = await postMessage(address, { type: "labels", value: message }, { timeoutMs: ANSWER_MS });
    if (answer.accepted) return { into: "training", from: answer.from };
    if (conflicting()) throw new ConflictError(ErrorCode.argument, "labels", answer.reason);
    throw new DlfsError(ErrorCode.argument, "labels", answer.reason);
  }

  /** The training that goes on, and the split that it takes labels of; null where none does. */
  async #address(run: RunView): Promise<{ url: string; token: string; split: string } | null> {
    const found = await findLiveAddress(run.path);
    if (!found) return null;
    const token = found.token ?? this.#token;
    if (token !== undefined) return { ...found, token };
    throw new DlfsError(ErrorCode.io, "live", `${run.name}: DLFS_LIVE_TOKEN must be the one that its training has`);
  }

  [Symbol.dispose](): void {
    this.#data[Symbol.dispose]();
  }
}

function imageIn({ store, classes }: RunData, image: string, split: string): ImageRecord {
  const found = imageOf({ store, classes, split, boxesPerImage: Number.POSITIVE_INFINITY }, { image });
  if (!found) throw new NotFoundError(ErrorCode.io, "image", `the data set has no "${image}" in "${split}"`);
  return found;
}

/** What a run's last evaluation, or another one, has of an image; null where it has nothing. */
async function sampleOf(run: RunView, key: string, split: string, iteration?: number): Promise<SampleMessage | null> {
  const at = iteration ?? (await run.evaluations.latest());
  const images = (at === null ? null : await run.evaluations.get(at))?.images ?? [];
  return images.find((image) => image.predictions.name === key && image.split === split) ?? null;
}

const unseen = ({ name }: RunView, key: string) =>
  new NotFoundError(ErrorCode.io, "image", `${name} has no sample of "${key}"`);

const sidesOf = (boxes: ArrayLike<number>, i: number) => Array.from({ length: 4 }, (_, k) => boxes[4 * i + k] ?? 0);

function foundOf({ iteration, predictions: { boxes, scores, labels } }: SampleMessage) {
  const count = Math.min(MAX_FOUND, scores.length);
  const found = Array.from({ length: count }, (_, i) => {
    return { box: sidesOf(boxes, i), label: labels[i], score: Number((scores[i] ?? 0).toFixed(4)) };
  });
  return { iteration, boxes: found };
}

function truthOf({ truth: { boxes, labels, ids, crowd } }: SampleMessage) {
  return Array.from(labels, (label, i) => ({ id: ids[i], box: sidesOf(boxes, i), label, crowd: crowd[i] === 1 }));
}

function boxOf(annotation: AnnotationRecord, { classes }: RunData) {
  const { id, categoryId, isCrowd: crowd, score, author, source, modified } = annotation;
  const [x, y, width, height] = annotation.bbox;
  const box = [x, y, x + width, y + height];
  return { id, box, label: classes.indexOf(categoryId), crowd, score, author, source, modified };
}

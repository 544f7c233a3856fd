/** What enters a training while it goes on: labels and commands, taken in between two steps. */
import type { DataSource, ImageChange, ImageCodec, ImageRecord, TargetChange } from "../data";
import type { ControlMessage, EventContent, EventMessage, LabelMessage, Message } from "../formats";
import { DlfsError } from "../native/error";
import type { LiveBus } from "./bus";
import type { Journal, JournalEntry } from "./journal";
import { applyEdits, imageOf, type LabelledData, refuse } from "./label-edits";

/** The training that labels and commands are for. */
export interface LiveTraining {
  /** Takes in what an image is trained with; see CocoDataLoader.change. */
  change(change: ImageChange): TargetChange;
  /** The schedule's rates are times this from the next step on. */
  setRateFactor(factor: number): void;
  /** After the next step, beside whatever is due. */
  evaluate(): void;
  save(): void;
  /** Save and end. */
  stop(): void;
}

export interface LiveSessionOptions {
  data: LabelledData & { source: DataSource; codec: ImageCodec };
  training: LiveTraining;
  journal: Journal;
  /** Told of what is taken in, and what is refused. */
  bus: LiveBus;
  /** Of an earlier training, or of this one before it was stopped: commands that are given again at their steps. */
  entries?: readonly JournalEntry[];
  /** The most messages that wait for the next step. Default 10,000. */
  maxWaiting?: number;
  /** Milliseconds since 1970-01-01 UTC. Default: `Date.now`. */
  clock?: () => number;
}

/** What became of a message. */
export type Answer = { accepted: true; from: number } | { accepted: false; reason: string };

interface Waiting {
  message: LabelMessage | ControlMessage;
  answer: (answer: Answer) => void;
}

/** Messages taken in before one step, at most: a flood of them must not keep the device waiting. */
const PER_STEP = 256;

/**
 * Takes labels and commands in, one after the other, between two steps: beforeStep() is called before each. Each is checked, done
 * as a whole or refused by name, written to the journal, and answered; the same message again (by its id) changes nothing. What
 * cannot be written to the journal is answered when it can be.
 */
export class LiveSession {
  readonly #options: LiveSessionOptions;
  readonly #waiting: Waiting[] = [];
  readonly #seen = new Set<string>();
  /** Rate factors of an earlier training, by the step that they count from. */
  readonly #rates: { iteration: number; value: number }[];
  #unwritten: { entry: JournalEntry; answer: () => void }[] = [];
  #paused = false;
  #wake: (() => void) | null = null;
  #iteration = 0;
  #refused = 0;

  constructor(options: LiveSessionOptions) {
    this.#options = options;
    const entries = options.entries ?? options.journal.entries;
    for (const { message } of entries) this.#seen.add(message);
    this.#rates = entries.flatMap(({ iteration, content }) =>
      "command" in content && content.command === "learningRate" ? [{ iteration, value: content.value as number }] : [],
    );
    this.#rates.sort((a, b) => a.iteration - b.iteration);
  }

  get paused(): boolean {
    return this.#paused;
  }

  /** Messages that wait for the next step, and that were refused. */
  get status(): { waiting: number; refused: number } {
    return { waiting: this.#waiting.length, refused: this.#refused };
  }

  /**
   * Gives a message to the training.
   *
   * @param sender in messages: an address
   * @returns what became of it, when that is known
   */
  submit({ type, value }: Message, sender: string): Promise<Answer> {
    if (type !== "labels" && type !== "control") {
      const reason = `${sender}: a training takes labels and control messages, not ${type}`;
      this.#refused++;
      return Promise.resolve({ accepted: false, reason });
    }
    const { maxWaiting = 10_000 } = this.#options;
    if (this.#waiting.length >= maxWaiting) {
      return Promise.resolve(this.#refuse(value.id, `${maxWaiting} messages wait already; try again later`));
    }
    return new Promise((answer) => {
      this.#waiting.push({ message: value, answer });
      this.#wake?.();
    });
  }

  /** Takes in what waits; resolves when the step may be taken, at once where nothing does. `iteration`: steps done. */
  beforeStep(iteration: number): Promise<void> | undefined {
    this.#iteration = iteration;
    this.#replayRates();
    const idle = this.#waiting.length === 0 && this.#unwritten.length === 0 && !this.#paused;
    return idle ? undefined : this.#takeIn();
  }

  /** Answers all that waits: the training has ended. */
  close(): void {
    for (const { message, answer } of this.#waiting.splice(0))
      answer(this.#refuse(message.id, "the training has ended"));
    this.#paused = false;
    this.#wake?.();
  }

  #replayRates(): void {
    while (this.#rates.length > 0 && (this.#rates[0] as { iteration: number }).iteration <= this.#iteration) {
      const { value } = this.#rates.shift() as { value: number };
      this.#options.training.setRateFactor(value);
    }
  }

  async #takeIn(): Promise<void> {
    do {
      for (const { message, answer } of this.#waiting.splice(0, PER_STEP)) {
        try {
          if (this.#seen.has(message.id)) answer(this.#accept(message.id));
          else await ("command" in message ? this.#obey(message, answer) : this.#label(message, answer));
        } catch (error) {
          if (!(error instanceof DlfsError)) throw error;
          answer(this.#refuse(message.id, error.message));
        }
      }
      await this.#write();
      if (this.#paused && this.#waiting.length === 0) await this.#woken();
    } while (this.#paused);
  }

  async #woken(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    await promise;
    this.#wake = null;
  }

  async #obey(message: ControlMessage, answer: (answer: Answer) => void): Promise<void> {
    const { training } = this.#options;
    const { id, author, time, command, value } = message;
    switch (command) {
      case "pause":
        this.#paused = true;
        break;
      case "resume":
        this.#paused = false;
        break;
      case "learningRate":
        training.setRateFactor(value as number);
        break;
      case "evaluate":
        training.evaluate();
        break;
      case "save":
        training.save();
        break;
      case "stop":
        this.#paused = false;
        training.stop();
        break;
    }
    const content = { command, ...(value !== undefined && { value }) };
    this.#note({ message: id, author, time, iteration: this.#iteration, content }, answer);
  }

  async #label(message: LabelMessage, answer: (answer: Answer) => void): Promise<void> {
    const { data, training } = this.#options;
    const { id, author, time, atOnce, weight } = message;
    const image = imageOf(data, message) ?? (await this.#add(message));
    const boxes = applyEdits(data, image, message);
    const change = training.change({ image, boxes, atOnce, weight });
    this.#note({ message: id, author, time, iteration: this.#iteration, content: { change } }, answer);
  }

  /** Adds an image that the data set has not had. */
  async #add({ image: key, newImage, author, time }: LabelMessage): Promise<ImageRecord> {
    const { store, split, source, codec } = this.#options.data;
    if (!newImage) return refuse("image", `"${key}" is none of "${split}", and the message brings none`);
    const bytes =
      newImage.bytes ??
      (await source.read(key).catch((error: Error) => {
        if (!(error instanceof DlfsError)) throw error;
        return refuse("image", `"${key}" cannot be read from the data set's source, and the message brings no bytes`);
      }));
    const { width, height } = codec.info(bytes);
    const given = [newImage.width, newImage.height];
    if (given.some((side) => side !== 0) && (given[0] !== width || given[1] !== height)) {
      refuse("new_image", `the file is ${width}x${height}, the message says ${given.join("x")}`);
    }
    if (newImage.bytes) await source.write(key, newImage.bytes);
    const where = "i.source_id = (SELECT MAX(source_id) FROM images WHERE split = ?)";
    const largest = store.findImages({ split, where, parameters: [split] }, { limit: 1 })[0]?.sourceId ?? 0;
    const by = { source: "human", author, time } as const;
    const fileName = key.slice(key.lastIndexOf("/") + 1);
    const [added] = store.addImages(split, [{ sourceId: largest + 1, fileName, key, width, height }], by);
    return store.image(added as number) as ImageRecord;
  }

  #note(entry: JournalEntry, answer: (answer: Answer) => void): void {
    this.#seen.add(entry.message);
    this.#unwritten.push({ entry, answer: () => answer(this.#accept(entry.message)) });
  }

  /** Writes what was taken in, and answers it; where that fails it is tried again before the next step. */
  async #write(): Promise<void> {
    const written = this.#unwritten;
    if (written.length === 0) return;
    try {
      await this.#options.journal.append(written.map(({ entry }) => entry));
    } catch (error) {
      this.#say({ kind: "log", level: "warning", text: (error as Error).message });
      return;
    }
    this.#unwritten = [];
    for (const { answer } of written) answer();
  }

  #accept(id: string): Answer {
    this.#say({ kind: "accepted", id, from: this.#iteration + 1 });
    return { accepted: true, from: this.#iteration + 1 };
  }

  #refuse(id: string, reason: string): Answer {
    this.#refused++;
    this.#say({ kind: "refused", id, reason });
    return { accepted: false, reason };
  }

  #say(event: EventContent): void {
    const { bus, clock = Date.now } = this.#options;
    const value = { ...event, iteration: this.#iteration, time: clock() } as EventMessage;
    bus.publish({ type: "event", value });
  }
}

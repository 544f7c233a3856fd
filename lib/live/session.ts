/** What enters a training while it goes on: labels and commands, taken in between two steps. */
import type { ImageChange, ImageRecord, TargetChange } from "../data";
import type { ControlMessage, EventContent, EventMessage, LabelMessage, Message } from "../formats";
import { DlfsError, ErrorCode } from "../native/error";
import type { LiveBus } from "./bus";
import { type ChangedImage, changedMeanwhile } from "./catch-up";
import type { Journal, JournalEntry } from "./journal";
import { applyEdits, imageOf, refuse } from "./label-edits";
import { admitImage, type GrowingData } from "./new-image";
import { RateReplay } from "./rate-replay";

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
  data: GrowingData;
  training: LiveTraining;
  journal: Journal;
  /** Told of what is taken in, and what is refused. */
  bus: LiveBus;
  /** Of an earlier training, or of this one before it was stopped: commands that are given again at their steps. */
  entries?: readonly JournalEntry[];
  /** Whether the training goes on after it stood still: what was done to its images meanwhile is taken in. Default false. */
  resumed?: boolean;
  /** The most messages that wait for the next step, and their bytes. Default 10,000 and 256 MiB. */
  maxWaiting?: number;
  maxWaitingBytes?: number;
  /** Milliseconds before a step after which what still waits is left to the next one. Default 10. */
  budgetMs?: number;
  /** Told that something waits to be taken in. */
  onWaiting?: () => void;
  /** Told of what was taken in, when it is in the training. */
  onTaken?: (entry: JournalEntry) => void;
  /** Milliseconds since 1970-01-01 UTC. Default: `Date.now`. */
  clock?: () => number;
}

/** What became of a message. */
export type Answer = { accepted: true; from: number } | { accepted: false; reason: string };

type Incoming = LabelMessage | ControlMessage;

interface Waiting {
  message: Incoming;
  bytes: number;
  answer: (answer: Answer) => void;
}

/** Questions that wait for their turn between two steps, at most. */
const MAX_ERRANDS = 16;

/** Messages taken in before one step, at most: a flood of them must not keep the device waiting. */
const PER_STEP = 256;

/** What a message takes in memory, roughly. */
function sizeOf(message: Incoming): number {
  if ("command" in message) return 256;
  return 256 + 128 * message.edits.length + (message.newImage?.bytes?.length ?? 0);
}

/**
 * Takes labels and commands in, one after the other, between two steps: beforeStep() is called before each. Each is checked, done
 * as a whole or refused by name, written to the journal, and answered; the same message again (by its id) changes nothing. What
 * cannot be written to the journal is answered when it can be, and nothing more is taken in until then.
 */
export class LiveSession {
  readonly #options: LiveSessionOptions;
  readonly #waiting: Waiting[] = [];
  readonly #seen = new Set<string>();
  readonly #rates: RateReplay;
  /** When each author has last said what all boxes of an image are: by author and image. */
  readonly #replaced = new Map<string, number>();
  /** What is to be done between steps that changes nothing. */
  readonly #errands: { run: () => Promise<void>; refuse: () => void }[] = [];
  #waitingBytes = 0;
  #unwritten: { entry: JournalEntry; answer: (answer: Answer) => void }[] = [];
  /** Why the journal cannot be written. */
  #failure: Error | null = null;
  #paused = false;
  #ended = false;
  /** What was done while the training stood still, and is not taken in yet. */
  readonly #behind: ChangedImage[];
  #wake: (() => void) | null = null;
  #iteration = 0;
  #refused = 0;

  constructor(options: LiveSessionOptions) {
    this.#options = options;
    const entries = options.entries ?? options.journal.entries;
    this.#behind = options.resumed ? changedMeanwhile(options.data, entries) : [];
    for (const { message, author, time, content } of entries) {
      this.#seen.add(message);
      if ("change" in content) this.#labelled(author, content.change.image.id, time);
    }
    this.#rates = new RateReplay(entries);
  }

  /** Whether messages or questions wait for the next step. */
  get isAsked(): boolean {
    return this.#waiting.length > 0 || this.#errands.length > 0;
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
    const { maxWaiting = 10_000, maxWaitingBytes = 256 * 2 ** 20 } = this.#options;
    if (this.#waiting.length >= maxWaiting) {
      return Promise.resolve(this.#refuse(value.id, `${maxWaiting} messages wait already; try again later`));
    }
    const bytes = sizeOf(value);
    if (this.#waitingBytes + bytes > maxWaitingBytes) {
      const waiting = `${this.#waitingBytes} bytes of messages wait already, of ${maxWaitingBytes} that may`;
      return Promise.resolve(this.#refuse(value.id, `${waiting}; try again later`));
    }
    this.#waitingBytes += bytes;
    return new Promise((answer) => {
      this.#waiting.push({ message: value, bytes, answer });
      this.#options.onWaiting?.();
      this.#wake?.();
    });
  }

  /**
   * Does something between two steps that changes nothing of the training, one such thing between two of them.
   *
   * @throws DlfsError where many wait already, or the training has ended before it came to it
   */
  async between<T>(work: () => Promise<T>): Promise<T> {
    const refused = (reason: string) => new DlfsError(ErrorCode.argument, "training", reason);
    if (this.#ended) throw refused("it has ended");
    if (this.#errands.length >= MAX_ERRANDS)
      throw refused(`${MAX_ERRANDS} such questions wait already; try again later`);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    this.#errands.push({ run: () => work().then(resolve, reject), refuse: () => reject(refused("it has ended")) });
    this.#options.onWaiting?.();
    this.#wake?.();
    return await promise;
  }

  /**
   * Takes in what waits; resolves when the step may be taken, at once where nothing does.
   *
   * @param iteration steps done
   * @param takes whether this is a step before which something may be taken in
   */
  beforeStep(iteration: number, takes = true): Promise<void> | undefined {
    this.#iteration = iteration;
    this.#rates.before(iteration, (factor) => this.#options.training.setRateFactor(factor));
    if (this.#behind.length > 0) {
      if (takes) this.#catchUp();
      else this.#options.onWaiting?.();
    }
    if (!takes) return this.#unwritten.length > 0 ? this.#write() : undefined;
    const idle = !this.isAsked && this.#unwritten.length === 0 && !this.#paused;
    return idle ? undefined : this.#takeIn();
  }

  /** Answers all that waits: the training has ended. */
  async close(): Promise<void> {
    this.#ended = true;
    for (const { refuse } of this.#errands.splice(0)) refuse();
    for (const { message, answer } of this.#waiting.splice(0))
      answer(this.#refuse(message.id, "the training has ended"));
    this.#waitingBytes = 0;
    this.#paused = false;
    this.#wake?.();
    await this.#write();
    for (const { entry, answer } of this.#unwritten.splice(0))
      answer(this.#refuse(entry.message, `it was taken in, and is not in the journal: ${this.#failure?.message}`));
  }

  /** Takes in what the store has of images otherwise than the training that stood still. */
  #catchUp(): void {
    const { training } = this.#options;
    for (const { image, boxes, seen, author, time } of this.#behind.splice(0)) {
      try {
        const content = { change: training.change({ image, boxes }) };
        const message = `store ${image.id} ${seen}`;
        this.#note({ message, author, time, iteration: this.#iteration, content }, () => {});
      } catch (error) {
        if (!(error instanceof DlfsError)) throw error;
        const text = `${image.key} was changed meanwhile, and is trained on as it was: ${error.message}`;
        this.#say({ kind: "log", level: "warning", text });
      }
    }
  }

  async #takeIn(): Promise<void> {
    const { budgetMs = 10 } = this.#options;
    do {
      await this.#write();
      const began = performance.now();
      for (let count = 0; count < PER_STEP && this.#waiting.length > 0; count++) {
        await this.#takeNext();
        if (performance.now() - began >= budgetMs) break;
      }
      await this.#write();
      await this.#errands.shift()?.run();
      if (this.#paused && !this.isAsked) await this.#woken();
    } while (this.#paused);
  }

  async #takeNext(): Promise<void> {
    const { message, bytes, answer } = this.#waiting.shift() as Waiting;
    this.#waitingBytes -= bytes;
    try {
      if (this.#seen.has(message.id)) answer(this.#accept(message.id));
      else if (this.#failure) refuse("journal", `${this.#failure.message}; try again later`);
      else await ("command" in message ? this.#obey(message, answer) : this.#label(message, answer));
    } catch (error) {
      if (!(error instanceof DlfsError)) throw error;
      answer(this.#refuse(message.id, error.message));
    }
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
    const known = imageOf(data, message);
    if (known) this.#checkOrder(known, message);
    const added = known ? null : await admitImage(data, message);
    let taken: Pick<ImageChange, "image" | "boxes">;
    try {
      taken = data.store.transaction(() => {
        const image = known ?? (added as NonNullable<typeof added>).add();
        return { image, boxes: applyEdits(data, image, message) };
      });
    } catch (error) {
      await added?.withdraw();
      throw error;
    }
    const change = training.change({ ...taken, atOnce, weight });
    this.#labelled(author, taken.image.id, time);
    this.#note({ message: id, author, time, iteration: this.#iteration, content: { change } }, answer);
  }

  #labelled(author: string, image: number, time: number): void {
    const key = `${image} ${author}`;
    this.#replaced.set(key, Math.max(time, this.#replaced.get(key) ?? 0));
  }

  /** Refuses what would undo its author's later work: messages may overtake one another. */
  #checkOrder({ id, key, problem }: ImageRecord, { author, time, replace, seen }: LabelMessage): void {
    if (problem !== null) refuse("image", `${key} cannot be used: ${problem}`);
    const last = this.#replaced.get(`${id} ${author}`) ?? 0;
    if (!replace || seen !== undefined || author === "" || time >= last) return;
    const [own, later] = [time, last].map((at) => new Date(at).toISOString());
    refuse("time", `${author} has labelled ${key} at ${later}, after this, which is of ${own}`);
  }

  #note(entry: JournalEntry, answer: (answer: Answer) => void): void {
    this.#seen.add(entry.message);
    this.#options.onTaken?.(entry);
    this.#unwritten.push({ entry, answer });
  }

  /** Writes what was taken in, and answers it; where that fails it is tried again before the next step. */
  async #write(): Promise<void> {
    const written = this.#unwritten;
    if (written.length === 0) return;
    try {
      await this.#options.journal.append(written.map(({ entry }) => entry));
    } catch (error) {
      const { message } = error as Error;
      const text = `${message}; labels and commands are refused until it can be`;
      if (!this.#failure) this.#say({ kind: "log", level: "warning", text });
      this.#failure = error as Error;
      return;
    }
    if (this.#failure) this.#say({ kind: "log", level: "info", text: "the journal is written again" });
    this.#failure = null;
    this.#unwritten = [];
    for (const { entry, answer } of written) answer(this.#accept(entry.message));
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

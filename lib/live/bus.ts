/** What a training or a service says, to whoever listens: never waits for a reader, and keeps no more than it may. */
import { encodeMessage, type Message } from "../formats";

/** One that listens: a file, a socket, another system. */
export interface LiveSink {
  /** What it is called in messages. */
  readonly name: string;
  /** Takes frames, in order; resolves when it can take more. One that rejects is given up. */
  send(frames: readonly Uint8Array[]): Promise<void>;
  /** Nothing more comes. */
  close?(): Promise<void>;
}

export interface ReaderOptions {
  /** The most messages that wait for a reader. Default 4096. */
  maxMessages?: number;
  /** The most bytes that wait for a reader. Default 32 MiB. */
  maxBytes?: number;
}

/** How a reader keeps up. */
export interface ReaderStatus {
  name: string;
  /** Messages that it has taken, that wait for it, and that it has missed. */
  sent: number;
  waiting: number;
  dropped: number;
  waitingBytes: number;
}

export interface LiveBusOptions {
  /** Told, once for each, of readers that are given up. Default: a warning on the console. */
  onError?: (reader: string, error: Error) => void;
}

/** Frames given to a reader at once, at most. */
const BATCH_MESSAGES = 256;
const BATCH_BYTES = 1 << 20;
/** A service has a run for each version of a model, and loads others as long as it goes on. */
const MAX_STARTED = 64;

interface Waiting {
  frame: Uint8Array;
  /** Its place among all messages. */
  order: number;
}

/** A queue whose front moves: taking is cheap at any length. */
class Fifo {
  #items: (Waiting | undefined)[] = [];
  #front = 0;

  get first(): Waiting | undefined {
    return this.#items[this.#front];
  }

  get length(): number {
    return this.#items.length - this.#front;
  }

  push(item: Waiting): void {
    this.#items.push(item);
  }

  shift(): Waiting {
    const item = this.#items[this.#front] as Waiting;
    this.#items[this.#front++] = undefined;
    if (this.#front >= 1024 && 2 * this.#front >= this.#items.length) {
      this.#items = this.#items.slice(this.#front);
      this.#front = 0;
    }
    return item;
  }
}

/** How much it matters that a reader gets a message: samples are first to go, then figures of single steps. */
function weightOf({ type, value }: Message): number {
  if (type === "sample" || type === "predictions") return 0;
  if (type === "metrics") return value.what === "train" ? 1 : 2;
  return type === "event" && value.kind === "log" ? 1 : 2;
}
const WEIGHTS = [0, 1, 2] as const;

/** A sink, what waits for it, and the one send that is under way. */
class Reader {
  readonly #queues = WEIGHTS.map(() => new Fifo());
  readonly #maxMessages: number;
  readonly #maxBytes: number;
  #bytes = 0;
  #sent = 0;
  #dropped = 0;
  /** Of those, how many the reader has not been told of. */
  #untold = 0;
  #sending: Promise<void> | null = null;
  #closed = false;

  constructor(
    readonly sink: LiveSink,
    { maxMessages = 4096, maxBytes = 32 * 2 ** 20 }: ReaderOptions,
    private readonly describeDrops: (count: number) => Uint8Array,
    private readonly onError: (error: Error) => void,
  ) {
    this.#maxMessages = maxMessages;
    this.#maxBytes = maxBytes;
  }

  get status(): ReaderStatus {
    const { name } = this.sink;
    const counts = { sent: this.#sent, waiting: this.#waiting, dropped: this.#dropped };
    return { name, ...counts, waitingBytes: this.#bytes };
  }

  get #waiting(): number {
    return this.#queues.reduce((sum, { length }) => sum + length, 0);
  }

  /** Room is made by dropping what matters less, the oldest first; the message itself goes where all else matters more. */
  put(frame: Uint8Array, order: number, weight: number): void {
    if (this.#closed) return;
    if (frame.length > this.#maxBytes) {
      this.#drop(null);
      return;
    }
    const fits = () => this.#waiting < this.#maxMessages && this.#bytes + frame.length <= this.#maxBytes;
    for (const lower of WEIGHTS) {
      if (lower > weight) break;
      const queue = this.#queues[lower] as Fifo;
      while (!fits() && queue.length > 0) this.#drop(queue.shift());
    }
    if (!fits()) {
      this.#drop(null);
      return;
    }
    (this.#queues[weight] as Fifo).push({ frame, order });
    this.#bytes += frame.length;
    this.#sending ??= this.#send();
  }

  #drop(waiting: Waiting | null): void {
    if (waiting) this.#bytes -= waiting.frame.length;
    this.#dropped++;
    this.#untold++;
  }

  /** The next frames in the order of their messages, the loss of others first. */
  #take(): Uint8Array[] {
    const frames: Uint8Array[] = [];
    if (this.#untold > 0) frames.push(this.describeDrops(this.#untold));
    this.#untold = 0;
    for (let bytes = 0; frames.length < BATCH_MESSAGES && bytes < BATCH_BYTES; ) {
      let next: Fifo | null = null;
      for (const queue of this.#queues) {
        if (queue.first && (!next?.first || queue.first.order < next.first.order)) next = queue;
      }
      if (!next) break;
      const { frame } = next.shift();
      frames.push(frame);
      bytes += frame.length;
      this.#bytes -= frame.length;
      this.#sent++;
    }
    return frames;
  }

  async #send(): Promise<void> {
    // Whoever publishes goes on first.
    await Promise.resolve();
    try {
      while (!this.#closed && (this.#waiting > 0 || this.#untold > 0)) await this.sink.send(this.#take());
    } catch (error) {
      this.#closed = true;
      this.onError(error instanceof Error ? error : new Error(String(error)));
    } finally {
      this.#sending = null;
    }
  }

  /** Has all that waits sent, for up to `graceMs`, and takes nothing more. */
  async close(graceMs: number): Promise<void> {
    const over = Promise.withResolvers<void>();
    const timer = setTimeout(over.resolve, graceMs);
    await Promise.race([this.#sending ?? Promise.resolve(), over.promise]);
    this.#closed = true;
    // A sink that never takes what it was given is not waited for when it is closed, either.
    await Promise.race([this.sink.close?.().catch(() => undefined) ?? Promise.resolve(), over.promise]);
    clearTimeout(timer);
  }
}

/**
 * Gives messages to readers. publish() only puts them into each reader's queue, which is bounded: a reader that is slow, or dead,
 * misses messages, which are counted and told to it, and costs nobody else anything.
 */
export class LiveBus implements AsyncDisposable {
  readonly #readers = new Set<Reader>();
  readonly #onError: (reader: string, error: Error) => void;
  #order = 0;
  #iteration = 0;
  /** What a reader that comes later needs to understand the rest: how runs began, by their names. */
  readonly #started = new Map<string, Uint8Array>();

  constructor({ onError }: LiveBusOptions = {}) {
    this.#onError = onError ?? ((reader, { message }) => console.warn(`warning: ${reader} is given up: ${message}`));
  }

  /** Whether anybody listens: what is costly to make need not be made otherwise. */
  get hasReaders(): boolean {
    return this.#readers.size > 0;
  }

  get readers(): readonly ReaderStatus[] {
    return [...this.#readers].map(({ status }) => status);
  }

  /** Never waits and never throws for what a reader does. @throws DlfsError for a message that makes no sense */
  publish(message: Message): void {
    const { type, value } = message;
    if ("iteration" in value) this.#iteration = value.iteration;
    const started = type === "event" && value.kind === "started" ? value.run : null;
    if (started === null && this.#readers.size === 0) return;
    const frame = encodeMessage(message);
    if (started !== null) this.#remember(started, frame);
    const weight = weightOf(message);
    const order = this.#order++;
    for (const reader of this.#readers) reader.put(frame, order, weight);
  }

  #remember(run: string, frame: Uint8Array): void {
    this.#started.delete(run);
    this.#started.set(run, frame);
    if (this.#started.size > MAX_STARTED) this.#started.delete(this.#started.keys().next().value as string);
  }

  /** Gives a sink all messages from now on, after the training's start. The function that is returned ends that. */
  attach(sink: LiveSink, options: ReaderOptions = {}): (graceMs?: number) => Promise<void> {
    const describeDrops = (count: number) =>
      encodeMessage({ type: "event", value: { kind: "dropped", iteration: this.#iteration, time: Date.now(), count } });
    const reader: Reader = new Reader(sink, options, describeDrops, (error) => {
      this.#readers.delete(reader);
      this.#onError(sink.name, error);
    });
    this.#readers.add(reader);
    for (const frame of this.#started.values()) reader.put(frame, this.#order++, 2);
    return async (graceMs = 0) => {
      this.#readers.delete(reader);
      await reader.close(graceMs);
    };
  }

  /** Has all readers sent what waits for them, for up to `graceMs`. */
  async close(graceMs = 5000): Promise<void> {
    const readers = [...this.#readers];
    this.#readers.clear();
    await Promise.all(readers.map((reader) => reader.close(graceMs)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

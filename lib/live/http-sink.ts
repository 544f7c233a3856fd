/** Messages to another system by HTTP POST; what it does not take meanwhile waits on the disk. */
import { existsSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { sleep } from "../data/retry";
import { encodeFrame, FramedFileReader, FramedFileWriter, type FramedFormat } from "../formats/framed-stream";
import { check, DlfsError, ErrorCode } from "../native/error";
import type { LiveSink } from "./bus";

const FORMAT: FramedFormat = { magic: "DLFSPOOL", version: 1, what: "spool of messages" };
const BATCH_MESSAGES = 256;
const BATCH_BYTES = 1 << 20;

export interface HttpSinkOptions {
  /** Where it goes: http or https. Each POST's body is some frames, one behind the other. */
  url: string;
  /** Sent with each POST, such as Authorization. */
  headers?: Readonly<Record<string, string>>;
  /** The file of what waits while the other side does not take it; its folder must be there. What is in it is sent first. */
  spool: string;
  /** The most bytes that wait on the disk; what comes then is dropped, and counted. Default 256 MiB. */
  maxSpoolBytes?: number;
  /** Milliseconds that a POST may take. Default 10,000. */
  timeoutMs?: number;
  /** Milliseconds between two tries, at first; doubled up to a minute. Default 500. */
  firstDelay?: number;
  /** Told of each row of failures once, and of its end. Default: the console. */
  log?: (line: string) => void;
}

/** What the other side said that makes another try of the same useless. */
class RefusedError extends Error {}

/**
 * Posts frames to a URL with `Content-Type: application/vnd.dlfs.frames` and `Dlfs-Sequence: ID:N`, where ID is of this sink's
 * stream alone and N counts its frames from 0: a batch that comes twice, since an answer was lost, has the number it had. An
 * answer of 2xx takes it; 408, 429, 5xx and a broken connection let it be tried again, later and later; what else is answered
 * refuses it, which is counted and said. From the first failure on, frames go to the spool, and from there in their order.
 */
export class HttpSink implements LiveSink {
  readonly name: string;
  readonly #options: Required<HttpSinkOptions>;
  readonly #stop = new AbortController();
  readonly #id: string = crypto.randomUUID();
  #sequence = 0;
  #writer: FramedFileWriter | null = null;
  #spooled = 0;
  /** Emptying of the spool, while something is in it. */
  #draining: Promise<void> | null = null;
  /** Ends of what is done to the spool's file, one after the other. */
  #busy: Promise<unknown> = Promise.resolve();
  #dropped = 0;
  #refused = 0;

  private constructor(options: HttpSinkOptions) {
    const { hostname, protocol } = new URL(options.url);
    check(/^https?:$/.test(protocol), "HttpSink", () => `url: expected http or https, got "${protocol}"`);
    this.name = `${protocol}//${hostname}`;
    this.#options = {
      ...{ headers: {}, maxSpoolBytes: 256 * 2 ** 20, timeoutMs: 10_000, firstDelay: 500 },
      ...{ log: (line: string) => console.warn(line), ...options },
    };
  }

  /** @throws DlfsError for a URL that is none, or a spool that cannot be read */
  static async open(options: HttpSinkOptions): Promise<HttpSink> {
    check(URL.canParse(options.url), "HttpSink", () => `url: "${options.url}" is none`);
    const sink = new HttpSink(options);
    if (existsSync(options.spool)) await sink.#resume();
    return sink;
  }

  /** Frames that are on the disk, were dropped since there was no room, and were refused by the other side. */
  get status(): { spooled: number; dropped: number; refused: number } {
    return { spooled: this.#spooled, dropped: this.#dropped, refused: this.#refused };
  }

  async send(frames: readonly Uint8Array[]): Promise<void> {
    if (!this.#draining) {
      try {
        await this.#post(frames);
        return;
      } catch (error) {
        if (error instanceof RefusedError) return this.#refuse(frames.length, error);
        this.#options.log(
          `warning: ${this.name}: ${(error as Error).message}; messages wait in ${this.#options.spool}`,
        );
      }
    }
    await this.#keep(frames);
  }

  /** What waits stays on the disk, for the next sink with that spool. */
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#draining;
    await this.#exclusive(async () => {
      await this.#writer?.[Symbol.asyncDispose]();
      this.#writer = null;
    });
  }

  async #post(frames: readonly Uint8Array[]): Promise<void> {
    const { url, headers, timeoutMs } = this.#options;
    const sequence = `${this.#id}:${this.#sequence}`;
    const signal = AbortSignal.any([AbortSignal.timeout(timeoutMs), this.#stop.signal]);
    const answer = await fetch(url, {
      method: "POST",
      headers: { ...headers, "Content-Type": "application/vnd.dlfs.frames", "Dlfs-Sequence": sequence },
      body: Buffer.concat(frames),
      redirect: "error",
      signal,
    });
    await answer.body?.cancel();
    if (answer.ok) {
      this.#sequence += frames.length;
      return;
    }
    const text = `it answers ${answer.status} ${answer.statusText}`.trimEnd();
    throw answer.status >= 500 || [408, 429].includes(answer.status) ? new Error(text) : new RefusedError(text);
  }

  #refuse(count: number, { message }: Error): void {
    if (this.#refused === 0) this.#options.log(`warning: ${this.name}: ${message}: messages are refused, and lost`);
    this.#refused += count;
    this.#sequence += count;
  }

  /** Runs what changes the spool's file, and what depends on it, one after the other. */
  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#busy.then(work);
    this.#busy = result.catch(() => undefined);
    return result;
  }

  #keep(frames: readonly Uint8Array[]): Promise<void> {
    const { spool, maxSpoolBytes, log } = this.#options;
    const bytes = frames.reduce((sum, { length }) => sum + length, 0);
    return this.#exclusive(async () => {
      try {
        this.#writer ??= existsSync(spool)
          ? await FramedFileWriter.append(spool, FORMAT, await endOf(spool))
          : await FramedFileWriter.create(spool, FORMAT);
        if (this.#writer.position + bytes > maxSpoolBytes) {
          throw new DlfsError(ErrorCode.io, spool, `its limit of ${maxSpoolBytes} bytes is reached`);
        }
        await this.#writer.appendEncoded(frames);
        this.#spooled += frames.length;
      } catch (error) {
        if (this.#dropped === 0) log(`warning: ${this.name}: ${(error as Error).message}; messages are dropped`);
        this.#dropped += frames.length;
      }
      if (this.#spooled > 0) this.#draining ??= this.#drain();
    });
  }

  /** Sends what is in the spool, as often as it takes; then removes it. */
  async #drain(): Promise<void> {
    const { firstDelay, spool, log } = this.#options;
    const { signal } = this.#stop;
    let delay = firstDelay;
    let next: { batch: Uint8Array[]; after: number } | null = null;
    let sent = await sentOf(spool);
    let wait = true;
    for (;;) {
      if (this.#spooled === 0 && (await this.#exclusive(() => this.#finish()))) break;
      try {
        if (wait) await sleep(delay * (0.5 + 0.5 * Math.random()), signal);
        next ??= await nextBatch(spool, sent);
        await this.#post(next.batch);
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof DlfsError) {
          log(`warning: ${this.name}: ${error.message}; what waited there is lost`);
          this.#dropped += this.#spooled;
          this.#spooled = 0;
          continue;
        }
        if (!(error instanceof RefusedError && next)) {
          wait = true;
          delay = Math.min(60_000, 2 * delay);
          continue;
        }
        this.#refuse(next.batch.length, error);
      }
      this.#spooled -= next.batch.length;
      sent = next.after;
      [next, wait, delay] = [null, false, firstDelay];
      await this.#mark(sent);
    }
    log(`${this.name}: it takes messages again`);
  }

  /** Removes the spool where all of it is sent: from then on messages go straight to the other side again. */
  async #finish(): Promise<boolean> {
    if (this.#spooled > 0) return false;
    await this.#writer?.[Symbol.asyncDispose]();
    this.#writer = null;
    await this.#clear();
    this.#draining = null;
    return true;
  }

  /** Goes on with what an earlier sink has left. */
  async #resume(): Promise<void> {
    const { spool } = this.#options;
    const sent = await sentOf(spool);
    {
      await using reader = await FramedFileReader.open(spool, FORMAT);
      for await (const _ of reader.frames()) if (reader.position > sent) this.#spooled++;
    }
    this.#draining = this.#drain();
  }

  /** How far the spool has been sent, so that a sink that is killed does not begin again. */
  async #mark(after: number): Promise<void> {
    const path = `${this.#options.spool}.sent`;
    try {
      await Bun.write(`${path}.new`, `${after}\n`);
      await rename(`${path}.new`, path);
    } catch {
      // A disk without room: at worst messages are sent twice.
    }
  }

  async #clear(): Promise<void> {
    const { spool } = this.#options;
    await Promise.all([rm(spool, { force: true }), rm(`${spool}.sent`, { force: true })]);
  }
}

/** Where the whole messages of a spool end. */
async function endOf(spool: string): Promise<number> {
  await using reader = await FramedFileReader.open(spool, FORMAT);
  for await (const _ of reader.frames());
  return reader.position;
}

/** The place in the spool behind what was sent. */
async function sentOf(spool: string): Promise<number> {
  const file = Bun.file(`${spool}.sent`);
  const place = (await file.exists()) ? Number(await file.text()) : 0;
  return Number.isSafeInteger(place) && place >= 0 ? place : 0;
}

/** Frames behind a place of the spool, and the place behind them. */
async function nextBatch(spool: string, from: number): Promise<{ batch: Uint8Array[]; after: number }> {
  await using reader = await FramedFileReader.open(spool, FORMAT, from);
  const batch: Uint8Array[] = [];
  let bytes = 0;
  for await (const frame of reader.frames()) {
    const encoded = encodeFrame(frame);
    batch.push(encoded);
    bytes += encoded.length;
    if (batch.length >= BATCH_MESSAGES || bytes >= BATCH_BYTES) break;
  }
  return { batch, after: reader.position };
}

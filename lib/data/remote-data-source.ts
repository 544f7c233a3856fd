import { check, DlfsError } from "../native/error";
import {
  type ByteRange,
  type CallOptions,
  checkRange,
  DataSource,
  keyProblem,
  type ObjectInfo,
  type ReadOptions,
  SourceError,
} from "./data-source";
import { type Attempt, type HttpRequest, receive, refusal, send } from "./http-transfer";
import { Semaphore } from "./queues";
import { RetriesExhausted, type RetryOptions, raced, retrying, TransientError } from "./retry";

export interface RemoteOptions {
  /** Requests under way at a time, retries waiting for their turn not counted. Default 64. */
  concurrency?: number;
  /** Milliseconds without any sign of the other side after which an attempt is given up. Default 30,000. */
  timeout?: number;
  retry?: Omit<RetryOptions, "onRetry">;
  /** Told, every few seconds at most, that a call had to be repeated. Default: a line on standard error. */
  warn?: (message: string) => void;
}

export interface RemoteStats {
  /** Attempts made, of reads, lists, stats and writes. */
  requests: number;
  /** Those that repeated an earlier one. */
  retries: number;
  /** Bytes read. */
  bytes: number;
}

export interface ListPage {
  objects: ObjectInfo[];
  /** What leads to the next page; null at the end. */
  next: string | null;
}

/** Milliseconds between two warnings about retries. */
const WARN_INTERVAL = 5000;

/**
 * What the sources behind a network have in common: keys below a prefix, bytes read over HTTP, a limit of requests at a time,
 * and attempts that are given up after silence and repeated after failures that may pass (429, 5xx, cut connections, transfers
 * that end early; never 403 or 404).
 */
export abstract class RemoteDataSource extends DataSource {
  readonly stats: RemoteStats = { requests: 0, retries: 0, bytes: 0 };
  /** Put before keys to make the service's names: empty, or ends with "/". */
  protected readonly prefix: string;
  readonly #root: string;
  readonly #slots: Semaphore;
  readonly #timeout: number;
  readonly #retry: RetryOptions;
  readonly #warn: (message: string) => void;
  #warned = Number.NEGATIVE_INFINITY;

  /** @param root what locate() puts before keys, without a slash at the end */
  constructor(root: string, prefix: string, options: RemoteOptions) {
    super();
    const { concurrency = 64, timeout = 30_000 } = options;
    for (const [name, value] of Object.entries({ concurrency, timeout })) {
      const good = Number.isSafeInteger(value) && value >= 1;
      check(good, this.constructor.name, () => `${name} must be an integer >= 1, got ${value}`);
    }
    this.prefix = prefix === "" || prefix.endsWith("/") ? prefix : `${prefix}/`;
    this.#root = root;
    this.#slots = new Semaphore(concurrency);
    this.#timeout = timeout;
    this.#warn = options.warn ?? ((message) => console.warn(`warning: ${message}`));
    this.#retry = options.retry ?? {};
  }

  /** The GET request for an object's bytes. */
  protected abstract readRequest(key: string): HttpRequest | Promise<HttpRequest>;

  protected abstract statObject(key: string, attempt: Attempt): Promise<ObjectInfo | null>;

  /** A page of the keys that start with `prefix`, in ascending order; `token` is the `next` of the page before. */
  protected abstract listPage(prefix: string, token: string | null, attempt: Attempt): Promise<ListPage>;

  protected abstract writeObject(key: string, bytes: Uint8Array, attempt: Attempt): Promise<void>;

  /** Removes an object; one that is not there is no error. */
  protected removeObject(key: string, _attempt: Attempt): Promise<void> {
    return super.remove(key);
  }

  override locate(key: string): string {
    return `${this.#root}/${key}`;
  }

  override async read(key: string, options: ReadOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    const { range, signal } = options;
    const op = this.#op("read", key);
    const location = this.locate(key);
    if (range) {
      checkRange(range, op, location);
      if (range.start === range.end) {
        // HTTP has no empty ranges; whether the object exists is asked for all the same.
        if (await this.stat(key, { signal })) return new Uint8Array(0);
        throw new SourceError(op, location, "missing", "no such object");
      }
    }
    const bytes = await this.#attempts(op, location, signal, (attempt) => this.#fetch(key, range, op, attempt));
    this.stats.bytes += bytes.length;
    return bytes;
  }

  override async stat(key: string, { signal }: CallOptions = {}): Promise<ObjectInfo | null> {
    const op = this.#op("stat", key);
    return await this.#attempts(op, this.locate(key), signal, (attempt) => this.statObject(key, attempt));
  }

  override async *list(prefix: string, { signal }: CallOptions = {}): AsyncIterable<ObjectInfo> {
    const op = `${this.constructor.name}.list`;
    let token: string | null = null;
    do {
      const from = token;
      const page: ListPage = await this.#attempts(op, this.locate(`${prefix}*`), signal, (attempt) =>
        this.listPage(prefix, from, attempt),
      );
      // Some tools make objects of no bytes that stand for folders; they are no objects here.
      for (const info of page.objects) if (!info.key.endsWith("/") && info.key !== "") yield info;
      token = page.next;
    } while (token !== null);
  }

  override async write(key: string, bytes: Uint8Array, { signal }: CallOptions = {}): Promise<void> {
    const op = this.#op("write", key);
    await this.#attempts(op, this.locate(key), signal, (attempt) => this.writeObject(key, bytes, attempt));
  }

  override async remove(key: string, { signal }: CallOptions = {}): Promise<void> {
    const op = this.#op("remove", key);
    await this.#attempts(op, this.locate(key), signal, (attempt) => this.removeObject(key, attempt));
  }

  async #fetch(key: string, range: ByteRange | undefined, op: string, attempt: Attempt) {
    const request = await this.readRequest(key);
    const headers = { ...request.headers };
    if (range) headers.range = `bytes=${range.start}-${range.end - 1}`;
    const response = await send({ ...request, headers }, attempt);
    // The range starts at the object's end or beyond.
    if (response.status === 416 && range) {
      await response.body?.cancel();
      return new Uint8Array(0);
    }
    if (!response.ok) throw await refusal(op, this.locate(key), response, attempt);
    return await receive(response, range, attempt);
  }

  /** Runs a call, again where it helps, and makes its failures SourceErrors. */
  async #attempts<T>(
    op: string,
    location: string,
    signal: AbortSignal | undefined,
    work: (attempt: Attempt) => Promise<T>,
  ): Promise<T> {
    const onRetry = (error: TransientError, attempt: number, delay: number): void => {
      this.stats.retries++;
      const now = performance.now();
      if (now - this.#warned < WARN_INTERVAL) return;
      this.#warned = now;
      const { attempts = 8 } = this.#retry;
      this.#warn(
        `${location}: ${error.message}; attempt ${attempt + 1} of ${attempts} follows in ${(delay / 1000).toFixed(1)} s`,
      );
    };
    try {
      return await retrying(() => this.#attempt(signal, work), { ...this.#retry, onRetry }, signal);
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      if (error instanceof DlfsError) throw error;
      if (error instanceof RetriesExhausted)
        throw new SourceError(op, location, "unavailable", error.message, { cause: error });
      throw new SourceError(op, location, "other", error instanceof Error ? error.message : String(error), {
        cause: error,
      });
    }
  }

  /** One attempt, when its turn has come. */
  async #attempt<T>(signal: AbortSignal | undefined, work: (attempt: Attempt) => Promise<T>): Promise<T> {
    await this.#slots.acquire(signal);
    this.stats.requests++;
    const silence = new AbortController();
    const giveUp = (): void => {
      silence.abort(new TransientError(`nothing came for ${this.#timeout / 1000} s`));
    };
    let timer = setTimeout(giveUp, this.#timeout);
    const progress = (): void => {
      clearTimeout(timer);
      timer = setTimeout(giveUp, this.#timeout);
    };
    const either = signal ? AbortSignal.any([signal, silence.signal]) : silence.signal;
    try {
      // Libraries that know nothing of signals are left to themselves when the call is ended.
      return await raced(work({ signal: either, progress }), either);
    } finally {
      clearTimeout(timer);
      this.#slots.release();
    }
  }

  #op(method: string, key: string): string {
    const op = `${this.constructor.name}.${method}`;
    const problem = keyProblem(key);
    check(problem === null, op, () => `key ${JSON.stringify(key)} in ${this.#root}: ${problem}`);
    return op;
  }
}

/**
 * The queue of a model: requests wait in it until they make a batch, with the meaning of Triton Inference Server's dynamic batcher
 * (https://github.com/triton-inference-server/server/blob/main/docs/user_guide/batcher.md). It has no clock, no timers and no
 * engine: whoever owns it says what time it is.
 */

export interface BatcherOptions {
  /** The most images of a batch. */
  readonly maxBatch: number;
  /** Sizes that batches are made of where that is possible; empty: as large as possible. */
  readonly preferredSizes: readonly number[];
  /** How long a request may wait for others to make a batch of the largest preferred size, in milliseconds; 0: not at all. */
  readonly maxDelayMs: number;
  /** Levels of priority, from 1, the first to be served. */
  readonly priorityLevels: number;
  /** The most requests that wait, of each priority level. */
  readonly maxQueue: number;
  /** The most bytes of images that wait, in all. */
  readonly maxQueueBytes: number;
  /** Requests join a batch until its images have so many bytes; one that has more by itself goes alone. */
  readonly maxBatchBytes: number;
  /**
   * What becomes of a request that has waited for its timeout: it is given back as expired, or served after all others of its level
   * that have not.
   */
  readonly timeoutAction: "reject" | "delay";
  /** The timeout in the queue, in milliseconds; 0: none. */
  readonly defaultTimeoutMs: number;
  /** Whether a request may say a timeout of its own; one that is longer than the default is cut to it. */
  readonly allowTimeoutOverride: boolean;
}

/** A request in the queue. */
export interface QueuedRequest<Item> {
  readonly item: Item;
  readonly images: number;
  readonly bytes: number;
  /** From 1. */
  readonly priority: number;
  /** When it came, and when its timeout is over (infinite: never); in the owner's milliseconds. */
  readonly arrived: number;
  readonly deadline: number;
}

/** A priority level: requests in the order in which they are served, first those within their timeouts. */
class Level<Item> {
  readonly timely = new Set<QueuedRequest<Item>>();
  readonly late = new Set<QueuedRequest<Item>>();

  get size(): number {
    return this.timely.size + this.late.size;
  }
}

export class DynamicBatcher<Item> {
  readonly #options: BatcherOptions;
  readonly #levels: readonly Level<Item>[];
  readonly #preferred: ReadonlySet<number>;
  readonly #largestPreferred: number;
  #images = 0;
  #bytes = 0;
  /** No deadline of a timely request is before it. */
  #nearestDeadline = Number.POSITIVE_INFINITY;

  constructor(options: BatcherOptions) {
    this.#options = options;
    this.#levels = Array.from({ length: options.priorityLevels }, () => new Level<Item>());
    this.#preferred = new Set(options.preferredSizes);
    this.#largestPreferred = Math.max(...options.preferredSizes, 0) || options.maxBatch;
  }

  /** Requests that wait, by priority level. */
  get queued(): number[] {
    return this.#levels.map(({ size }) => size);
  }

  get images(): number {
    return this.#images;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get empty(): boolean {
    return this.#images === 0;
  }

  /**
   * Puts a request at the end of its level.
   *
   * @param request `images` from 1 to maxBatch; `priority` from 1 to priorityLevels; a `timeoutMs` of 0 or none is the default's
   * @returns a text that names the limit where the queue is full
   */
  add(
    request: { item: Item; images: number; bytes: number; priority: number; timeoutMs?: number },
    now: number,
  ): QueuedRequest<Item> | string {
    const { maxQueue, maxQueueBytes, defaultTimeoutMs, allowTimeoutOverride } = this.#options;
    const { item, images, bytes, priority, timeoutMs = 0 } = request;
    const level = this.#levels[priority - 1] as Level<Item>;
    if (level.size >= maxQueue) return `the queue is full: ${maxQueue} requests wait (maxQueue)`;
    if (this.#bytes + bytes > maxQueueBytes && this.#images > 0) {
      return `the queue is full: images of ${this.#bytes} bytes wait, of at most ${maxQueueBytes} (maxQueueBytes)`;
    }
    const longest = defaultTimeoutMs || Number.POSITIVE_INFINITY;
    const timeout = allowTimeoutOverride && timeoutMs > 0 ? Math.min(timeoutMs, longest) : longest;
    const queued = { item, images, bytes, priority, arrived: now, deadline: now + timeout };
    level.timely.add(queued);
    this.#images += images;
    this.#bytes += bytes;
    this.#nearestDeadline = Math.min(this.#nearestDeadline, queued.deadline);
    return queued;
  }

  /** Takes a request out, such as one whose client has gone; false where it is not in the queue any more. */
  remove(request: QueuedRequest<Item>): boolean {
    const level = this.#levels[request.priority - 1] as Level<Item>;
    if (!level.timely.delete(request) && !level.late.delete(request)) return false;
    this.#images -= request.images;
    this.#bytes -= request.bytes;
    return true;
  }

  /**
   * Applies timeouts: requests that are over theirs go behind the others of their level, or leave the queue and are returned. To be
   * called before take(), and at wakeAt().
   */
  expire(now: number): QueuedRequest<Item>[] {
    if (now < this.#nearestDeadline) return [];
    const expired: QueuedRequest<Item>[] = [];
    let nearest = Number.POSITIVE_INFINITY;
    for (const { timely, late } of this.#levels) {
      for (const request of timely) {
        if (now < request.deadline) {
          nearest = Math.min(nearest, request.deadline);
        } else if (this.#options.timeoutAction === "delay") {
          timely.delete(request);
          late.add(request);
        } else {
          this.remove(request);
          expired.push(request);
        }
      }
    }
    this.#nearestDeadline = nearest;
    return expired;
  }

  /** The batch to be run now that an engine is free, in the order of the queue; empty where there is none yet. */
  take(now: number): QueuedRequest<Item>[] {
    const { batch, due } = this.#plan(now);
    if (now < due) return [];
    for (const request of batch) this.remove(request);
    return batch;
  }

  /**
   * When to come back, without a request having come or gone before: for expire(), and, where an engine is free, for take().
   * Infinite where there is nothing to wait for.
   */
  wakeAt(now: number, engineFree: boolean): number {
    const due = engineFree ? this.#plan(now).due : Number.POSITIVE_INFINITY;
    return Math.min(due, this.#nearestDeadline);
  }

  /** Takes all requests out. */
  clear(): QueuedRequest<Item>[] {
    const all = [...this.#inOrder()];
    for (const request of all) this.remove(request);
    this.#nearestDeadline = Number.POSITIVE_INFINITY;
    return all;
  }

  *#inOrder(): Generator<QueuedRequest<Item>> {
    for (const { timely, late } of this.#levels) {
      yield* timely;
      yield* late;
    }
  }

  /** The next batch, and when it is to be run: infinite where there is none, `now` where nothing better can come. */
  #plan(now: number): { batch: QueuedRequest<Item>[]; due: number } {
    const { maxBatch, maxBatchBytes, maxDelayMs } = this.#options;
    const batch: QueuedRequest<Item>[] = [];
    let [images, bytes, preferred, full] = [0, 0, 0, false];
    for (const request of this.#inOrder()) {
      if (batch.length > 0) {
        const sum = images + request.images;
        // What is there is as good as a preferred size where no preferred size can be reached any more.
        if (sum > this.#largestPreferred && preferred === 0) preferred = batch.length;
        if (sum > maxBatch || bytes + request.bytes > maxBatchBytes) {
          full = true;
          break;
        }
      }
      batch.push(request);
      images += request.images;
      bytes += request.bytes;
      if (this.#preferred.has(images)) preferred = batch.length;
    }
    if (batch.length === 0) return { batch, due: Number.POSITIVE_INFINITY };
    // A request waits for others no longer than half its timeout, so that waiting does not end it.
    const due = batch.reduce(
      (first, { arrived, deadline }) => Math.min(first, arrived + Math.min(maxDelayMs, (deadline - arrived) / 2)),
      Number.POSITIVE_INFINITY,
    );
    const overdue = maxDelayMs > 0 && now >= due;
    if (preferred > 0 && !overdue) return { batch: batch.slice(0, preferred), due: now };
    if (full || images >= this.#largestPreferred || images >= maxBatch) return { batch, due: now };
    return { batch, due };
  }
}

import { DlfsError, ErrorCode } from "../native/error";
import type { BatchPlace, BatchSchedule } from "./batch-schedule";

/** Batches of a schedule that are prepared ahead, a bounded number of them, and handed out in order, from any place on. */
export class BatchQueue<Prepared> {
  readonly #running = new Set<Promise<unknown>>();
  /** Batches on their way, in order. */
  #queue: Promise<Prepared>[] = [];
  #generation = new AbortController();
  /** The batches to be handed out, and to be started, next. */
  #next: BatchPlace = { epoch: 0, index: 0 };
  #start: BatchPlace = { epoch: 0, index: 0 };
  /** Settled when the call of next() before has been answered. */
  #answered: Promise<unknown> = Promise.resolve();
  #waited = 0;
  #disposed = false;

  /**
   * @param op what the loader is called in messages
   * @param ahead batches prepared ahead
   * @param prepare makes a batch; gives up, and releases what it has, once the signal is aborted
   * @param release takes back a batch that nobody wants any more
   */
  constructor(
    private readonly op: string,
    private readonly ahead: number,
    private readonly schedule: BatchSchedule,
    private readonly prepare: (place: BatchPlace, signal: AbortSignal) => Promise<Prepared>,
    private readonly release: (prepared: Prepared) => void,
  ) {}

  /** The place of the batch that is handed out next. */
  get place(): BatchPlace {
    return this.#next;
  }

  /** The place of the batch that is started next: those before it are prepared already, or being so. */
  get frontier(): BatchPlace {
    return this.#start;
  }

  /** Seconds that callers of next() have waited. */
  get waitSeconds(): number {
    return this.#waited / 1000;
  }

  /** The next batch, given to `handOut`. Calls are answered in order. */
  async next<Batch>(handOut: (prepared: Prepared) => Batch): Promise<Batch> {
    this.checkOpen();
    this.#fill(1);
    const prepared = this.#queue.shift() as Promise<Prepared>;
    this.#next = this.schedule.after(this.#next);
    this.#fill(this.ahead);
    const asked = performance.now();
    const before = this.#answered;
    const answer = before.then(() => prepared).then(handOut);
    this.#answered = answer.catch(() => {});
    try {
      return await answer;
    } catch (error) {
      if (this.#disposed) this.checkOpen();
      throw error;
    } finally {
      this.#waited += performance.now() - asked;
    }
  }

  /** Goes on with the batch at `place`; those on their way are given up, and calls of next() that wait for them rejected. */
  seek(place: BatchPlace): void {
    this.checkOpen();
    this.#drop();
    this.#next = place;
    this.#start = place;
  }

  checkOpen(): void {
    if (this.#disposed) throw new DlfsError(ErrorCode.handle, this.op, "the loader is disposed");
  }

  /** Gives up what is on its way. */
  close(): void {
    this.#disposed = true;
    this.#drop();
  }

  /** Resolves when nothing is under way any more. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.allSettled(this.#running);
  }

  /** Starts batches until `count` are on their way. */
  #fill(count: number): void {
    while (this.#queue.length < count) {
      const batch = this.prepare(this.#start, this.#generation.signal);
      this.#start = this.schedule.after(this.#start);
      this.#queue.push(batch);
      const settled = batch.then(
        () => {},
        () => {}, // Reported by the next() that gets this batch, if there is one.
      );
      this.#running.add(settled);
      settled.then(() => this.#running.delete(settled));
    }
  }

  #drop(): void {
    this.#generation.abort(new DlfsError(ErrorCode.handle, this.op, "the batch is no longer wanted"));
    this.#generation = new AbortController();
    for (const batch of this.#queue) batch.then(this.release, () => {});
    this.#queue = [];
  }
}

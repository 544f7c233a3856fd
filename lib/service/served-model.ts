/** A version of a model that is served: requests wait in its queue, go to its engines in batches, and are answered, all of them. */

import { withoutPaths } from "./client-text";
import { type BatcherOptions, DynamicBatcher, type QueuedRequest } from "./dynamic-batcher";
import type { EngineDescription, EngineStageTimes } from "./engine-messages";
import { EngineLostError, type EngineProcess, imageBytes } from "./engine-process";
import type { EngineSupervisor } from "./engine-supervisor";
import { atOnce, InOrder } from "./in-order";
import { RateMeter, StatisticsRecorder } from "./statistics";
import {
  type EngineStatistics,
  type FailureReason,
  type InferenceReply,
  type InferenceRequest,
  type ModelDescription,
  type ModelStatistics,
  ServiceError,
  type ServiceResult,
} from "./types";

export interface ServedModelOptions {
  readonly name: string;
  readonly version: string;
  /** Of the queue; maxBatch and maxBatchBytes follow from the engines. */
  readonly batching: Omit<BatcherOptions, "maxBatch" | "maxBatchBytes"> & {
    readonly defaultPriority: number;
    /** Requests are answered in the order in which they came. */
    readonly preserveOrdering: boolean;
  };
  /** Detections below it are left out where a request says no threshold. */
  readonly scoreThreshold: number | undefined;
  /** Batches that an engine has at a time. */
  readonly inFlight: number;
  /** Makes the engines; `onChange` is called when one is ready or lost. */
  readonly engines: (onChange: () => void) => readonly EngineSupervisor[];
  readonly statistics?: StatisticsRecorder;
}

/** A request on its way. */
interface Pending {
  readonly request: InferenceRequest;
  readonly images: number;
  readonly arrived: number;
  readonly resolve: (reply: InferenceReply) => void;
  readonly reject: (reason: ServiceError) => void;
  readonly onAbort: () => void;
  queued: QueuedRequest<Pending> | null;
  settled: boolean;
}

/** A batch that was taken from the queue. */
type Batch = readonly QueuedRequest<Pending>[];

export class ServedModel {
  readonly name: string;
  readonly version: string;
  readonly recorder: StatisticsRecorder;
  readonly #options: ServedModelOptions;
  readonly #engines: readonly EngineSupervisor[];
  readonly #meter = new RateMeter();
  readonly #order: Pick<InOrder, "place">;
  readonly #loading: Promise<void>;
  #batcher: DynamicBatcher<Pending>;
  #state: "loading" | "serving" | "failed" | "unloaded" = "loading";
  #reason = "";
  #description: EngineDescription | null = null;
  /** A batch for which the shared memory had no room. */
  #held: Batch | null = null;
  #running = 0;
  /** Requests that were not answered yet. */
  readonly #pending = new Set<Pending>();
  #pumpSoon = false;
  #timer: ReturnType<typeof setTimeout> | null = null;
  #idle: (() => void)[] = [];
  #closing: Promise<void> | null = null;

  /** Begins to load; see `loaded`. */
  constructor(options: ServedModelOptions) {
    this.name = options.name;
    this.version = options.version;
    this.#options = options;
    this.recorder = options.statistics ?? new StatisticsRecorder(options.name, options.version);
    this.#order = options.batching.preserveOrdering ? new InOrder() : atOnce;
    this.#batcher = new DynamicBatcher({ ...options.batching, maxBatch: 1, maxBatchBytes: 1 });
    this.#engines = options.engines(() => this.#enginesChanged());
    this.#loading = this.#load();
    this.#loading.catch(() => {});
  }

  /** Settled when it is ready, or with why it cannot be: an EngineLostError, or a DlfsError, which may name paths. */
  get loaded(): Promise<void> {
    return this.#loading;
  }

  /** It was loaded and not closed; its engines may be lost at the moment. */
  get serving(): boolean {
    return this.#state === "serving";
  }

  get description(): ModelDescription {
    const { name, version } = this;
    const found = this.#description;
    const [state, reason] = this.#stateAndReason();
    return {
      ...{ name, version, state, reason, classes: found?.classes ?? [], size: found?.size ?? null },
      ...{ precision: found?.precision ?? "", backend: found?.backend ?? "", device: found?.device ?? "" },
      ...{ maxBatch: found?.maxBatch ?? 0, priorityLevels: this.#options.batching.priorityLevels },
    };
  }

  statistics(): ModelStatistics {
    return this.recorder.snapshot({
      queued: this.#batcher.queued,
      queuedBytes: this.#batcher.bytes,
      running: this.#running,
      engines: this.#engines.map((supervisor, index): EngineStatistics => {
        const { engine } = supervisor;
        const { allocated = 0, free = 0, total = 0, resident = 0 } = engine?.memory ?? {};
        return {
          ...{ index, ready: engine !== null, pid: engine?.pid ?? 0 },
          ...{ backend: this.#description?.backend ?? "", device: engine?.description.device ?? "" },
          ...{ memory: { allocated, free, total }, processMemory: resident },
          shared: { used: engine?.sharedUsed ?? 0, total: supervisor.sharedTotal },
          ...{ running: engine?.running ?? 0, restarts: supervisor.restarts },
        };
      }),
    });
  }

  /** See InferenceBackend.infer. */
  infer(request: InferenceRequest): Promise<InferenceReply> {
    const arrived = performance.now();
    return new Promise((resolve, reject) => {
      const settle = this.#order.place();
      const pending: Pending = {
        ...{ request, arrived, images: request.images.length, queued: null, settled: false },
        resolve: (reply) => settle(() => resolve(reply)),
        reject: (reason) => settle(() => reject(reason)),
        onAbort: () => this.#cancel(pending),
      };
      this.#pending.add(pending);
      const refused = this.#refusal(request);
      if (refused) this.#fail(pending, refused, "OTHER");
      else this.#enqueue(pending);
    });
  }

  /**
   * Takes no further requests, finishes those it has, and ends its engines. What is not finished after so many milliseconds, of this
   * call or another, is cut off.
   */
  async close(withinMs = Number.POSITIVE_INFINITY): Promise<void> {
    this.#closing ??= this.#close();
    const timer = withinMs === Number.POSITIVE_INFINITY ? undefined : setTimeout(() => this.#cutOff(), withinMs);
    await this.#closing;
    clearTimeout(timer);
  }

  async #close(): Promise<void> {
    this.#state = "unloaded";
    this.#reason = "it was unloaded";
    if (this.#pending.size > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
    await Promise.all(this.#engines.map((supervisor) => supervisor.dispose()));
    if (this.#timer) clearTimeout(this.#timer);
  }

  #cutOff(): void {
    this.#failAll("it is being unloaded, and the request took longer than that may wait");
    for (const { engine } of this.#engines) engine?.kill("it is being unloaded");
  }

  async #load(): Promise<void> {
    try {
      await this.#startEngines();
    } catch (error) {
      if (this.#state === "loading") this.#state = "failed";
      this.#reason = withoutPaths((error as Error).message);
      await Promise.all(this.#engines.map((supervisor) => supervisor.dispose()));
      throw error;
    }
    if (this.#state === "loading") this.#state = "serving";
  }

  async #startEngines(): Promise<void> {
    // What the first finds out about its device's convolutions the others find on the disk.
    const [first, ...others] = this.#engines as [EngineSupervisor, ...EngineSupervisor[]];
    await first.start();
    const started = await Promise.allSettled(others.map((supervisor) => supervisor.start()));
    for (const one of started) if (one.status === "rejected") throw one.reason;
    // The engines are alike: what one says holds for all.
    const engine = this.#engine;
    if (!engine) throw new EngineLostError("its engine was lost as soon as it had loaded the model", false);
    this.#description = engine.description;
    const { maxBatch } = engine.description;
    const maxBatchBytes = Math.floor(engine.roomFor(maxBatch) / this.#options.inFlight);
    if (maxBatchBytes <= 0) {
      const mebibytes = Math.floor(first.sharedTotal / 2 ** 20);
      const message = `sharedMemory: ${mebibytes} MiB cannot hold the results of ${maxBatch} images (maxBatch)`;
      throw new EngineLostError(message, true);
    }
    this.#batcher = new DynamicBatcher({ ...this.#options.batching, maxBatch, maxBatchBytes });
  }

  #stateAndReason(): [ModelDescription["state"], string] {
    if (this.#state === "loading") return ["loading", "it is loading"];
    if (this.#state === "unloaded") return ["unloaded", this.#reason];
    if (this.#state === "failed") return ["unavailable", this.#reason];
    if (this.#engine) return ["ready", ""];
    const [first] = this.#engines as [EngineSupervisor];
    return ["unavailable", withoutPaths(first.reason)];
  }

  get #title(): string {
    return `model "${this.name}" version "${this.version}"`;
  }

  /** One that is ready. */
  get #engine(): EngineProcess | null {
    return this.#engines.find(({ engine }) => engine)?.engine ?? null;
  }

  /** Why a request cannot be taken; null where it can. */
  #refusal({ images, priority, scoreThreshold, timeoutMs, signal }: InferenceRequest): ServiceError | null {
    const [state, reason] = this.#stateAndReason();
    if (state !== "ready") {
      const retry = state === "unloaded" ? undefined : Math.min(...this.#engines.map(({ retryAfter }) => retryAfter));
      return new ServiceError(503, `${this.#title} is not ready: ${reason}`, retry);
    }
    const wrong = (message: string) => new ServiceError(400, `${this.#title}: ${message}`);
    const { maxBatch } = this.#description as EngineDescription;
    if (images.length === 0) return wrong("expected at least one image");
    if (images.length > maxBatch) {
      return wrong(`expected at most ${maxBatch} images in a request, got ${images.length} (maxBatch)`);
    }
    const { priorityLevels } = this.#options.batching;
    if (priority !== undefined && !(Number.isInteger(priority) && priority >= 1 && priority <= priorityLevels)) {
      return wrong(`expected a priority from 1 to ${priorityLevels}, got ${priority}`);
    }
    const isNumber = (value: number | undefined) => value === undefined || value >= 0;
    if (!isNumber(timeoutMs)) return wrong(`expected a timeout from 0, got ${timeoutMs}`);
    if (!isNumber(scoreThreshold)) return wrong(`expected a score threshold from 0, got ${scoreThreshold}`);
    const room = (this.#engine as EngineProcess).roomFor(images.length);
    const bytes = imageBytes(images);
    if (bytes > room) {
      return new ServiceError(
        413,
        `${this.#title}: its images have ${bytes} bytes, a request may have ${room} (sharedMemory)`,
      );
    }
    if (signal?.aborted) return new ServiceError(499, "the request was cancelled");
    return null;
  }

  #enqueue(pending: Pending): void {
    const { images, priority = this.#options.batching.defaultPriority, timeoutMs, signal } = pending.request;
    const request = { item: pending, images: images.length, bytes: imageBytes(images), priority, timeoutMs };
    const added = this.#batcher.add(request, pending.arrived);
    if (typeof added === "string") {
      this.#fail(pending, new ServiceError(503, `${this.#title}: ${added}`, this.#retryAfter()), "REJECTED");
      return;
    }
    pending.queued = added;
    signal?.addEventListener("abort", pending.onAbort, { once: true });
    this.#pump();
  }

  /** Seconds until what waits will have been answered, at the rate at which images were answered lately. */
  #retryAfter(): number {
    return this.#meter.secondsFor(this.#batcher.images);
  }

  #cancel(pending: Pending): void {
    if (pending.queued && this.#batcher.remove(pending.queued)) this.#pump();
    this.#fail(pending, new ServiceError(499, "the request was cancelled"), "CANCELED");
  }

  #fail(pending: Pending, error: ServiceError, reason: FailureReason): void {
    if (!this.#settle(pending)) return;
    this.recorder.requestFailed(error.status === 499 ? "CANCELED" : reason, performance.now() - pending.arrived);
    pending.reject(error);
  }

  /** False where it was settled before. */
  #settle(pending: Pending): boolean {
    if (pending.settled) return false;
    pending.settled = true;
    pending.request.signal?.removeEventListener("abort", pending.onAbort);
    this.#pending.delete(pending);
    if (this.#pending.size === 0) for (const resolve of this.#idle.splice(0)) resolve();
    return true;
  }

  #failAll(message: string): void {
    const retryAfter = Math.min(...this.#engines.map((supervisor) => supervisor.retryAfter));
    this.#batcher.clear();
    this.#held = null;
    for (const pending of [...this.#pending]) {
      this.#fail(pending, new ServiceError(503, `${this.#title}: ${message}`, retryAfter), "BACKEND");
    }
  }

  #enginesChanged(): void {
    if (this.#state === "loading") return;
    // Where no engine is left, what waits would wait for nobody knows how long.
    if (!this.#engine) this.#failAll(`its engine was lost: ${withoutPaths(this.#engines[0]?.reason ?? "")}`);
    this.#pump();
  }

  /** Gives batches to engines, at the end of this turn of the event loop: requests that come together go together. */
  #pump(): void {
    if (this.#pumpSoon) return;
    this.#pumpSoon = true;
    setImmediate(() => {
      this.#pumpSoon = false;
      this.#pumpNow();
    });
  }

  #pumpNow(): void {
    const now = performance.now();
    for (const { item, arrived } of this.#batcher.expire(now)) {
      const message = `the request waited ${Math.round(now - arrived)} ms in the queue, which is its timeout`;
      this.#fail(item, new ServiceError(503, `${this.#title}: ${message}`, this.#retryAfter()), "REJECTED");
    }
    for (let engines = this.#freeEngines(); engines.length > 0; engines = this.#freeEngines()) {
      const batch = this.#held ?? this.#batcher.take(now);
      this.#held = null;
      if (batch.length === 0) break;
      const wanted = batch.filter(({ item }) => !item.settled);
      if (wanted.length === 0 || engines.some((engine) => this.#run(engine, wanted, now))) continue;
      this.#held = wanted;
      break;
    }
    this.#wakeLater(now);
  }

  /** Engines that may have another batch, those with the fewest first. */
  #freeEngines(): EngineProcess[] {
    const free = this.#engines.flatMap(({ engine }) =>
      engine && engine.running < this.#options.inFlight ? [engine] : [],
    );
    return free.sort((a, b) => a.running - b.running);
  }

  #wakeLater(now: number): void {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    const at = this.#batcher.wakeAt(now, this.#held === null && this.#freeEngines().length > 0);
    if (at === Number.POSITIVE_INFINITY) return;
    // Timers hold 31 bits; to wake too early does no harm.
    this.#timer = setTimeout(() => this.#pumpNow(), Math.min(2 ** 31 - 1, Math.max(1, Math.ceil(at - now))));
  }

  /** False where the engine's memory has no room for the batch at the moment. */
  #run(engine: EngineProcess, batch: Batch, now: number): boolean {
    const standard = this.#options.scoreThreshold;
    const images = batch.flatMap(({ item: { request } }) =>
      request.images.map((image) => ({ image, scoreThreshold: request.scoreThreshold ?? standard })),
    );
    const answer = engine.detect(images);
    if (answer === null) return false;
    this.#running += batch.length;
    answer.then(
      ({ results, times }) => this.#answered(batch, images.length, now, results, times),
      (error: Error) => this.#failed(batch, error),
    );
    return true;
  }

  #answered(
    batch: Batch,
    batchSize: number,
    dispatched: number,
    results: readonly ServiceResult[],
    times: EngineStageTimes,
  ): void {
    this.#running -= batch.length;
    this.#pump();
    const now = performance.now();
    const compute = now - dispatched;
    const { decode, infer, postprocess } = times;
    const stages = { transfer: Math.max(0, compute - decode - infer - postprocess), decode, infer, postprocess };
    this.#meter.add(batchSize, now);
    this.recorder.batchDone(batchSize, stages);
    const { name, version } = this;
    let next = 0;
    for (const { item } of batch) {
      const own = results.slice(next, next + item.images);
      next += item.images;
      if (!this.#settle(item)) continue;
      const queue = dispatched - item.arrived;
      this.recorder.requestDone(Date.now(), now - item.arrived, queue, stages);
      item.resolve({ model: name, version, results: own, times: { queue, compute, stages }, batchSize });
    }
  }

  #failed(batch: Batch, error: Error): void {
    this.#running -= batch.length;
    this.#pump();
    const lost = error instanceof EngineLostError;
    const message = `${lost ? "its engine was lost" : "the engine failed"}: ${withoutPaths(error.message)}`;
    const retryAfter = Math.min(...this.#engines.map((supervisor) => supervisor.retryAfter));
    for (const { item } of batch) {
      this.#fail(item, new ServiceError(503, `${this.#title}: ${message}`, retryAfter), "BACKEND");
    }
  }
}

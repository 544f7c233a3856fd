/** An engine in a Worker of this process, used from the thread that made it as if it were there. */

import type { Pixels } from "../data";
import { check, DlfsError, ErrorCode } from "../native";
import type { DetectOptions, EngineOptions, EngineResult, EngineTimes } from "./engine";

/** As an engine's, without what belongs to the thread that it is on. */
export interface EngineWorkerOptions extends Omit<EngineOptions, "device"> {
  /** Which device of the backend. Default 0. */
  deviceIndex?: number;
  /** Files that the Worker imports before it loads the model: they register architectures. */
  modules?: readonly string[];
}

export type EngineWorkerImage = Uint8Array | Pixels;

/** What an engine says of itself. */
export interface EngineFacts {
  readonly path: string;
  readonly iteration: number;
  readonly classes: readonly string[];
  readonly size: readonly [height: number, width: number];
  readonly batchSizes: readonly number[];
  readonly maxBatch: number;
  readonly maxDetections: number;
  readonly precision: string;
  readonly metrics: Readonly<Record<string, number>>;
  readonly backend: string;
  readonly deviceName: string;
}

/** A DlfsError between threads. */
export interface SentError {
  readonly code: number;
  readonly op: string;
  /** Without the operation. */
  readonly message: string;
}

export type SentResult = Omit<EngineResult, "error"> & { readonly error: SentError | null };

export type ToEngineWorker =
  | { kind: "load"; path: string; options: EngineWorkerOptions }
  | { kind: "detect"; id: number; images: readonly EngineWorkerImage[]; scoreThreshold: number | undefined }
  | { kind: "dispose" };

export type FromEngineWorker =
  | { kind: "loaded"; facts: EngineFacts }
  | { kind: "detected"; id: number; results: readonly SentResult[]; times: readonly EngineTimes[] }
  | { kind: "failed"; id: number | null; error: SentError }
  | { kind: "disposed" };

export function sendError(error: unknown): SentError {
  if (!(error instanceof DlfsError)) return { code: ErrorCode.internal, op: "EngineWorker", message: String(error) };
  const { code, op, message } = error;
  return { code, op, message: message.startsWith(`${op}: `) ? message.slice(op.length + 2) : message };
}

const received = ({ code, op, message }: SentError) => new DlfsError(code, op, message);

interface Waiting {
  readonly resolve: (results: EngineResult[]) => void;
  readonly reject: (reason: Error) => void;
  readonly onTimes: ((times: EngineTimes) => void) | undefined;
}

/**
 * What Engine does, done by a Worker: nothing that the engine does on the processor, such as reading results or waiting for
 * device memory, stops this thread. Images are copied to it. A fault of the device or of native code takes the whole process
 * along: a service that has to survive that has engines in processes of their own.
 */
export class EngineWorker implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  readonly #loaded = Promise.withResolvers<EngineFacts>();
  readonly #ended = Promise.withResolvers<void>();
  #facts: EngineFacts | null = null;
  #nextId = 1;
  #disposing: Promise<void> | null = null;
  #lost: DlfsError | null = null;

  private constructor() {
    this.#worker = new Worker(new URL("./engine-worker-thread.ts", import.meta.url).href);
    this.#worker.onmessage = ({ data }: MessageEvent<FromEngineWorker>) => this.#hear(data);
    this.#worker.onerror = ({ message }) => this.#lose(`its Worker failed: ${message}`);
    this.#worker.addEventListener("close", () => {
      this.#lose("its Worker has ended");
      this.#ended.resolve();
    });
  }

  /** As Engine.load(), in a Worker. @throws DlfsError as there */
  static async load(path: string, options: EngineWorkerOptions = {}): Promise<EngineWorker> {
    const made = new EngineWorker();
    made.#send({ kind: "load", path, options });
    try {
      made.#facts = await made.#loaded.promise;
      return made;
    } catch (error) {
      await made.dispose();
      throw error;
    }
  }

  get path(): string {
    return this.#known.path;
  }

  get iteration(): number {
    return this.#known.iteration;
  }

  /** Names of the classes, by label. */
  get classes(): readonly string[] {
    return this.#known.classes;
  }

  get size(): readonly [height: number, width: number] {
    return this.#known.size;
  }

  get batchSizes(): readonly number[] {
    return this.#known.batchSizes;
  }

  get maxBatch(): number {
    return this.#known.maxBatch;
  }

  get maxDetections(): number {
    return this.#known.maxDetections;
  }

  get precision(): string {
    return this.#known.precision;
  }

  get metrics(): Readonly<Record<string, number>> {
    return this.#known.metrics;
  }

  /** "cuda" or "cpu", and the device's own name. */
  get backend(): string {
    return this.#known.backend;
  }

  get deviceName(): string {
    return this.#known.deviceName;
  }

  /** @throws DlfsError of code `image` where it is damaged, or none */
  async detect(image: EngineWorkerImage, options?: DetectOptions): Promise<EngineResult>;
  /** Of each image what was found, or why nothing could be. */
  async detect(images: readonly EngineWorkerImage[], options?: DetectOptions): Promise<EngineResult[]>;
  async detect(
    images: EngineWorkerImage | readonly EngineWorkerImage[],
    options: DetectOptions = {},
  ): Promise<EngineResult | EngineResult[]> {
    check(this.#disposing === null, "EngineWorker", () => "used after dispose()", ErrorCode.handle);
    if (this.#lost) throw this.#lost;
    const list = Array.isArray(images) ? (images as readonly EngineWorkerImage[]) : null;
    const id = this.#nextId++;
    const { scoreThreshold, onTimes } = options;
    const results = await new Promise<EngineResult[]>((resolve, reject) => {
      this.#send({ kind: "detect", id, images: list ?? [images as EngineWorkerImage], scoreThreshold });
      this.#waiting.set(id, { resolve, reject, onTimes });
    });
    if (list) return results;
    const [result] = results as [EngineResult];
    if (result.error) throw result.error;
    return result;
  }

  /** Waits for what is under way, frees all memory, and ends the Worker. */
  dispose(): Promise<void> {
    this.#disposing ??= (async () => {
      if (!this.#lost) this.#send({ kind: "dispose" });
      await this.#ended.promise;
    })();
    return this.#disposing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  get #known(): EngineFacts {
    return this.#facts as EngineFacts;
  }

  #send(message: ToEngineWorker): void {
    this.#worker.postMessage(message);
  }

  #hear(message: FromEngineWorker): void {
    switch (message.kind) {
      case "loaded":
        this.#loaded.resolve(message.facts);
        break;
      case "detected": {
        const waiting = this.#take(message.id);
        for (const times of message.times) waiting?.onTimes?.(times);
        waiting?.resolve(
          message.results.map(({ error, ...result }) => ({ ...result, error: error && received(error) })),
        );
        break;
      }
      case "failed": {
        const error = received(message.error);
        if (message.id === null) this.#loaded.reject(error);
        else this.#take(message.id)?.reject(error);
        break;
      }
      case "disposed":
        this.#ended.resolve();
        break;
    }
  }

  #take(id: number): Waiting | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    return waiting;
  }

  #lose(message: string): void {
    this.#lost ??= new DlfsError(ErrorCode.internal, "EngineWorker", message);
    this.#loaded.reject(this.#lost);
    this.#loaded.promise.catch(() => {}); // nobody may wait for it any more
    for (const id of [...this.#waiting.keys()]) this.#take(id)?.reject(this.#lost);
  }
}

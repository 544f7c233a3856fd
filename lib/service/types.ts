/**
 * What the two halves of the service know of each other: the HTTP side turns requests into `InferenceRequest`s, the model side
 * (repository, queues, engines in processes of their own) answers them.
 */
import type { Pixels } from "../data/device-codec";
import type { EngineResult } from "../engine";

/** The bytes of a JPEG, PNG or WebP file, or RGB pixels. They stay as they are until the answer is there. */
export type ServiceImage = Uint8Array | Pixels;

export interface InferenceRequest {
  /** At least one; all are detected on in one batch: a request is never split. */
  readonly images: readonly ServiceImage[];
  /** Detections below it are left out. Default: what the model's post-processing keeps. */
  readonly scoreThreshold?: number;
  /** 1 is served first; default the model's. Values beyond the model's levels are errors of status 400. */
  readonly priority?: number;
  /** The longest time in the queue. Default the model's; a longer one is cut to the model's where it has one. */
  readonly timeoutMs?: number;
  /** A request whose client has gone leaves the queue. */
  readonly signal?: AbortSignal;
}

/** Where a request's time went, in milliseconds. */
export interface InferenceTimes {
  /** From its arrival until its batch was given to the engine. */
  readonly queue: number;
  /** From there until its answer: transfer to the engine's process, decoding, network, post-processing. */
  readonly compute: number;
}

export interface InferenceReply {
  readonly model: string;
  readonly version: string;
  /** Of each image, in order; a damaged one has an `error`. */
  readonly results: readonly ServiceResult[];
  readonly times: InferenceTimes;
  /** Images of the batch that it ran in. */
  readonly batchSize: number;
}

/** As the engine's, but its error is a text, fit to be shown to a client. */
export type ServiceResult = Omit<EngineResult, "error"> & { readonly error: string | null };

export interface ModelDescription {
  readonly name: string;
  readonly version: string;
  readonly state: "loading" | "ready" | "unavailable" | "unloaded";
  /** Why it is not ready; empty where it is. Without paths. */
  readonly reason: string;
  /** What follows is known from the first time that it was ready on. Class names by label. */
  readonly classes: readonly string[];
  /** Network input in pixels. */
  readonly size: readonly [height: number, width: number] | null;
  readonly precision: string;
  /** "cuda" or "cpu", and the device's own name. */
  readonly backend: string;
  readonly device: string;
  /** The most images of a batch, and so of a request. */
  readonly maxBatch: number;
  readonly priorityLevels: number;
}

/** What the queue and the engine of a model's version have done since the service started. */
export interface ModelStatistics {
  readonly name: string;
  readonly version: string;
  /** Requests that wait in the queue, and requests that are with the engine. */
  readonly queued: number;
  readonly running: number;
  /** How many batches of each number of images have run. */
  readonly batches: ReadonlyMap<number, number>;
  /** How often its engine's process was started again because it had died. */
  readonly restarts: number;
  /** Of the engine, in bytes: what its process holds, and its tensors on the device; null where that is not known. */
  readonly processMemory: number | null;
  readonly deviceMemory: number | null;
}

/** The model side, as the HTTP side sees it. */
export interface InferenceBackend {
  /** All models and versions that it knows, loaded or not. */
  models(): readonly ModelDescription[];
  /** @throws ServiceError 404 for a name or version it does not know. Without a version: the default one, else the newest ready. */
  describe(name: string, version?: string): ModelDescription;
  /**
   * @throws ServiceError 400 for a request that the model cannot take, 404 for an unknown model, 499 where `signal` ended it, 503
   *   with `retryAfter` where the queue is full, the time is out, the model is not ready, or its engine died.
   */
  infer(name: string, version: string | undefined, request: InferenceRequest): Promise<InferenceReply>;
  /** Resolves when the model (all its versions, or those its policy names) is ready. @throws ServiceError */
  load(name: string): Promise<void>;
  /** Takes no further requests, finishes those it has, and frees the device's memory. @throws ServiceError */
  unload(name: string): Promise<void>;
  /** Of all versions that are, or were, loaded; cheap, as it is asked for with every scrape of the metrics. */
  statistics(): readonly ModelStatistics[];
}

/** An error that a client is told of: `status` is HTTP's, the message names no path and no stack. */
export class ServiceError extends Error {
  override readonly name = "ServiceError";
  constructor(
    readonly status: number,
    message: string,
    /** Seconds after which trying again may help. */
    readonly retryAfter?: number,
  ) {
    super(message);
  }
}

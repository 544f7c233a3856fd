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

/** What an engine does with a batch, in this order. */
export type Stage = "transfer" | "decode" | "infer" | "postprocess";

/** Where a request's time went, in milliseconds. */
export interface InferenceTimes {
  /** From its arrival until its batch was given to the engine. */
  readonly queue: number;
  /** From there until its answer: the sum of the stages. */
  readonly compute: number;
  /**
   * Of its batch. `transfer`: to the engine's process and back, and waiting there for a batch before it; `decode`: files into the
   * network's input, resized and normalized; `infer`: the network with its post-processing on the device; `postprocess`: boxes
   * into the images' pixels.
   */
  readonly stages: Readonly<Record<Stage, number>>;
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

/** How many values were at most each bound and above the one before, as Prometheus' histograms are made of; values in seconds. */
export interface HistogramData {
  /** Ascending. */
  readonly bounds: readonly number[];
  /** One more than bounds: the last counts what is above all of them. */
  readonly counts: readonly number[];
  readonly sum: number;
  readonly count: number;
}

/**
 * Why a request was not answered, as Triton counts it: `REJECTED` by a full queue or its timeout, `CANCELED` by its client,
 * `BACKEND` by the engine, `OTHER`: the request was wrong, or the model not ready.
 */
export type FailureReason = "REJECTED" | "CANCELED" | "BACKEND" | "OTHER";

/** Batches that had so many images. */
export interface BatchStatistics {
  readonly size: number;
  readonly executions: number;
  /** Sums over the batches, in seconds. */
  readonly stages: Readonly<Record<Stage, number>>;
}

/** A process that runs engines of a model. */
export interface EngineStatistics {
  /** Which of the model's, from 0. */
  readonly index: number;
  readonly ready: boolean;
  /** Of the operating system; 0 where there is none at the moment. */
  readonly pid: number;
  readonly backend: string;
  readonly device: string;
  /** Bytes of device memory that the engine has allocated, and what the device has free and in all; 0 where not known. */
  readonly memory: { readonly allocated: number; readonly free: number; readonly total: number };
  /** Bytes of memory that the process has resident; 0 where not known. */
  readonly processMemory: number;
  /** Bytes of memory shared with it: in use, and in all. */
  readonly shared: { readonly used: number; readonly total: number };
  /** Batches that it has not answered yet. */
  readonly running: number;
  /** How often it had to be started again. */
  readonly restarts: number;
}

/** What happened to a version of a model since it was loaded first. Counts and sums only grow. */
export interface ModelStatistics {
  readonly name: string;
  readonly version: string;
  /** Milliseconds since 1970-01-01 UTC of the last request that was answered; 0 before. */
  readonly lastInference: number;
  /** Requests answered, and failed, by reason. */
  readonly success: number;
  readonly failures: Readonly<Record<FailureReason, number>>;
  /** Images detected on, and batches run. */
  readonly inferences: number;
  readonly executions: number;
  /** Of answered requests, in seconds, each with its batch's times: from arrival to answer, in the queue, and by stage. */
  readonly requestSeconds: { readonly total: number; readonly queue: number } & Readonly<Record<Stage, number>>;
  readonly failureSeconds: number;
  /** Of requests. */
  readonly queueTimes: HistogramData;
  /** Of batches. */
  readonly stageTimes: Readonly<Record<Stage, HistogramData>>;
  /** Images of batches. */
  readonly batchSizes: HistogramData;
  /** By their sizes, ascending. */
  readonly batches: readonly BatchStatistics[];
  /** Requests that wait at the moment, by priority level (the first is level 1), and bytes of their images. */
  readonly queued: readonly number[];
  readonly queuedBytes: number;
  /** Requests that are with an engine. */
  readonly running: number;
  readonly engines: readonly EngineStatistics[];
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
  /** Takes no further requests (503), finishes those it has, and ends all engines; those that take longer than `withinMs` are cut off. */
  close(withinMs?: number): Promise<void>;
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

/** The model side of a service, of which a part of what it answers is published. */
import packageJson from "../../package.json";
import { FORMAT_NAMES, looksLike } from "../data/image-file";
import type { GroundTruth } from "../formats";
import type { LiveBus } from "../live";
import type {
  InferenceBackend,
  InferenceReply,
  InferenceRequest,
  ModelDescription,
  ModelStatistics,
  ServiceResult,
} from "./types";

export interface PublishingOptions {
  readonly bus: LiveBus;
  /** Share of the images that are published, 0 to 1. */
  readonly share: number;
  /** Images a second, at most. */
  readonly perSecond: number;
  /** Larger files are left out: what was found on them is published alone. */
  readonly maxImageBytes: number;
  /** Told of what could not be published; the answer is given all the same. */
  readonly onError: (error: Error) => void;
  /** 0 to 1; default `Math.random`. */
  readonly random?: () => number;
  /** Milliseconds since 1970-01-01 UTC. Default: `Date.now`. */
  readonly clock?: () => number;
}

const NO_TRUTH: GroundTruth = {
  ...{ boxes: new Float64Array(0), labels: new Uint32Array(0), ids: new Float64Array(0), crowd: new Uint8Array(0) },
};

const EXTENSIONS = new Map(Object.entries(FORMAT_NAMES).map(([extension, name]) => [name, extension]));

/** What was counted of a model when its figures were last published. */
type Counted = Pick<ModelStatistics, "success" | "failures" | "inferences" | "executions" | "requestSeconds">;

/**
 * Asks another model side, and publishes some of the image files with what was found on them, as samples: by the hash of the file,
 * `split` being "MODEL/VERSION", `iteration` how many images were answered before. Each version is introduced by an event "started"
 * with its classes. Pixels that are no file, and damaged files, are not published.
 */
export class PublishingBackend implements InferenceBackend {
  readonly #inner: InferenceBackend;
  readonly #options: Required<PublishingOptions>;
  readonly #introduced = new Set<string>();
  readonly #counted = new Map<string, Counted>();
  #answered = 0;
  /** Images that may be published now, and since when. */
  #allowed: number;
  #since: number;
  #figuresAt: number;

  constructor(inner: InferenceBackend, options: PublishingOptions) {
    this.#inner = inner;
    this.#options = { random: Math.random, clock: Date.now, ...options };
    this.#allowed = Math.max(1, options.perSecond);
    this.#since = this.#options.clock();
    this.#figuresAt = this.#since;
  }

  async infer(name: string, version: string | undefined, request: InferenceRequest): Promise<InferenceReply> {
    const reply = await this.#inner.infer(name, version, request);
    try {
      this.#publish(request, reply);
    } catch (error) {
      this.#options.onError(error as Error);
    }
    return reply;
  }

  models(): readonly ModelDescription[] {
    return this.#inner.models();
  }

  describe(name: string, version?: string): ModelDescription {
    return this.#inner.describe(name, version);
  }

  load(name: string): Promise<void> {
    return this.#inner.load(name);
  }

  unload(name: string): Promise<void> {
    return this.#inner.unload(name);
  }

  statistics(): readonly ModelStatistics[] {
    return this.#inner.statistics();
  }

  close(withinMs?: number): Promise<void> {
    return this.#inner.close(withinMs);
  }

  /** Publishes how each version has done since the last call: rates, and milliseconds of a request. */
  publishFigures(): void {
    const { bus, clock } = this.#options;
    const time = clock();
    const seconds = Math.max(1e-3, (time - this.#figuresAt) / 1000);
    this.#figuresAt = time;
    for (const statistics of this.#inner.statistics()) {
      const { name, version, success, failures, inferences, executions, requestSeconds, queued } = statistics;
      const model = `${name}/${version}`;
      const before = this.#counted.get(model);
      const failed = total(failures);
      this.#counted.set(model, { success, failures, inferences, executions, requestSeconds });
      const requests = success - (before?.success ?? 0);
      const batches = executions - (before?.executions ?? 0);
      const images = inferences - (before?.inferences ?? 0);
      const spent = requestSeconds.total - (before?.requestSeconds.total ?? 0);
      const values = {
        requestsPerSecond: requests / seconds,
        imagesPerSecond: images / seconds,
        failuresPerSecond: (failed - (before ? total(before.failures) : 0)) / seconds,
        queued: queued.reduce((sum, count) => sum + count, 0),
        ...(requests > 0 && { requestMs: (1000 * spent) / requests }),
        ...(batches > 0 && { batchSize: images / batches }),
      };
      bus.publish({
        type: "metrics",
        value: { what: `service/${model}`, iteration: inferences, epoch: 0, time, values },
      });
    }
  }

  #publish({ images }: InferenceRequest, reply: InferenceReply): void {
    const { bus, share, random } = this.#options;
    for (const [i, image] of images.entries()) {
      this.#answered++;
      const result = reply.results[i];
      if (!bus.hasReaders || !(image instanceof Uint8Array) || !result || result.error !== null) continue;
      if (random() < share && this.#isAllowed()) this.#publishImage(image, result, reply);
    }
  }

  /** So many images a second, those of a quiet second one after the other. */
  #isAllowed(): boolean {
    const { clock, perSecond } = this.#options;
    const now = clock();
    const earned = (Math.max(0, now - this.#since) / 1000) * perSecond;
    this.#allowed = Math.min(Math.max(1, perSecond), this.#allowed + earned);
    this.#since = now;
    if (this.#allowed < 1) return false;
    this.#allowed--;
    return true;
  }

  #publishImage(file: Uint8Array, { width, height, detections }: ServiceResult, reply: InferenceReply): void {
    const { bus, maxImageBytes, clock } = this.#options;
    const split = this.#introduce(reply);
    const hash = new Bun.CryptoHasher("sha256").update(file).digest("hex").slice(0, 32);
    const predictions = {
      ...{ name: `${hash}.${EXTENSIONS.get(looksLike(file) ?? "") ?? "bin"}`, width, height },
      boxes: Float32Array.from(detections.flatMap(({ box }) => [...box])),
      scores: Float32Array.from(detections, ({ score }) => score),
      labels: Uint32Array.from(detections, ({ label }) => label),
    };
    const thumbnail = file.length <= maxImageBytes ? { thumbnail: file } : {};
    const value = { iteration: this.#answered, time: clock(), split, predictions, truth: NO_TRUTH, ...thumbnail };
    bus.publish({ type: "sample", value });
  }

  /** Says once what a version's labels mean. */
  #introduce({ model, version }: InferenceReply): string {
    const run = `${model}/${version}`;
    if (this.#introduced.has(run)) return run;
    this.#introduced.add(run);
    const { classes, size, precision, backend, device } = this.#inner.describe(model, version);
    const versions = { dlfs: packageJson.version, bun: Bun.version, backend, libraries: { device } };
    const config = JSON.stringify({ model, version, size, precision });
    const about = { kind: "started", run, config, classes, versions } as const;
    this.#options.bus.publish({
      ...{ type: "event", value: { ...about, iteration: this.#answered, time: this.#options.clock() } },
    });
    return run;
  }
}

const total = (counts: Readonly<Record<string, number>>): number =>
  Object.values(counts).reduce((sum, count) => sum + count, 0);

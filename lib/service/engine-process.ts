/**
 * An engine in a process of its own, as the server sees it: whatever becomes of the engine, the server goes on.
 *
 * Messages are small JSON texts through Bun's ipc, a socket pair without a name: there and back takes as long as through a Unix
 * socket (15 to 80 us on two cores), and half as long as with structured clones.
 */
import { join } from "node:path";
import type { Subprocess } from "bun";
import { DlfsError, ErrorCode } from "../native";
import {
  type EngineDescription,
  type EngineMemory,
  type EngineSpec,
  type EngineStageTimes,
  type FromEngine,
  readResults,
  resultBytes,
  type SharedImage,
  type ToEngine,
} from "./engine-messages";
import type { SharedMemory } from "./shared-memory";
import { SharedSlots } from "./shared-slots";
import type { ServiceImage, ServiceResult } from "./types";

/** Lines that an engine's process prints which are kept for the message that says how it ended. */
const KEPT_LINES = 5;
/** What a process is given to end by itself when it was asked to, in milliseconds. */
const QUIT_MS = 10_000;

export interface EngineProcessOptions {
  readonly spec: EngineSpec;
  /** The most that loading the model, and answering a batch, may take, in milliseconds. */
  readonly loadTimeoutMs: number;
  readonly answerTimeoutMs: number;
  /** Hears what the process prints, and what is sent of it. */
  readonly log?: (line: string) => void;
  /** The program of the process. Default: engine-child.ts; tests have others. */
  readonly program?: string;
}

/** Why an engine cannot be had, or is no more. */
export class EngineLostError extends Error {
  override readonly name = "EngineLostError";
  constructor(
    message: string,
    /** The model cannot be loaded, which trying again does not change. */
    readonly permanent: boolean,
    /** What its process printed last. */
    readonly printed: readonly string[] = [],
  ) {
    super(message);
  }
}

/** An image with the threshold of its request. */
export interface BatchImage {
  readonly image: ServiceImage;
  readonly scoreThreshold: number | undefined;
}

interface Running {
  readonly images: number;
  readonly at: number;
  readonly timer: ReturnType<typeof setTimeout>;
  readonly resolve: (answer: { results: ServiceResult[]; times: EngineStageTimes }) => void;
  readonly reject: (reason: Error) => void;
}

const bytesOf = (image: ServiceImage) => (image instanceof Uint8Array ? image : image.data).byteLength;

/** Bytes of shared memory that images need, without their results. */
export function imageBytes(images: readonly ServiceImage[]): number {
  return images.reduce((sum, image) => sum + SharedSlots.sizeOf(bytesOf(image)), 0);
}

/** Errors after which an engine goes on as before: memory for this batch was not to be had. */
const HARMLESS: readonly number[] = [ErrorCode.memory, ErrorCode.hostMemory];

/** One process, from its start to its end. Its memory belongs to the caller, who may give it to another one afterwards. */
export class EngineProcess {
  /** Settled with why, when the process is no more. */
  readonly ended: Promise<EngineLostError>;
  /** Settled with why when it answers nothing more: it has ended, or is being ended. */
  readonly lost: Promise<EngineLostError>;
  readonly #options: EngineProcessOptions;
  readonly #isLost = Promise.withResolvers<EngineLostError>();
  readonly #memory: SharedMemory;
  readonly #slots: SharedSlots;
  readonly #child: Subprocess<"ignore", "pipe", "pipe">;
  readonly #ready = Promise.withResolvers<EngineDescription>();
  readonly #running = new Map<number, Running>();
  readonly #lines: string[] = [];
  #description: EngineDescription | null = null;
  #deviceMemory: EngineMemory = { allocated: 0, free: 0, total: 0, resident: 0 };
  /** Why it is, or is about to be, no more. */
  #lost: EngineLostError | null = null;
  #quitting = false;
  #nextId = 1;

  private constructor(options: EngineProcessOptions, memory: SharedMemory) {
    this.lost = this.#isLost.promise;
    this.#options = options;
    this.#memory = memory;
    this.#slots = new SharedSlots(memory.byteLength);
    this.#child = Bun.spawn([process.execPath, options.program ?? join(import.meta.dir, "engine-child.ts")], {
      stdio: ["ignore", "pipe", "pipe", memory.descriptor],
      serialization: "json",
      ipc: (message) => this.#hear(message as FromEngine),
    }) as Subprocess<"ignore", "pipe", "pipe">;
    const printed = Promise.allSettled([this.#follow(this.#child.stdout), this.#follow(this.#child.stderr)]);
    this.ended = this.#child.exited.then(async () => {
      // What it printed last says most; a child of its own may hold the pipe open.
      await Promise.race([printed, Bun.sleep(200)]);
      const lost = this.#lost ?? new EngineLostError(this.#ending(), false, this.#lines);
      this.#lose(lost);
      return lost;
    });
  }

  /**
   * Starts a process and has it load its model.
   *
   * @throws EngineLostError where it cannot, ends, or takes too long
   */
  static async start(
    options: EngineProcessOptions,
    memory: SharedMemory,
    signal?: AbortSignal,
  ): Promise<EngineProcess> {
    const started = new EngineProcess(options, memory);
    const seconds = options.loadTimeoutMs / 1000;
    const timer = setTimeout(
      () => started.kill(`loading the model took longer than ${seconds} s (loadTimeoutMs)`),
      options.loadTimeoutMs,
    );
    const stop = () => started.kill("it is not wanted any more");
    signal?.addEventListener("abort", stop);
    if (signal?.aborted) stop();
    try {
      started.#description = await started.#ready.promise;
      return started;
    } catch (error) {
      await started.ended;
      throw error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
  }

  /** Known from start() on. */
  get description(): EngineDescription {
    return this.#description as EngineDescription;
  }

  get pid(): number {
    return this.#child.pid;
  }

  get memory(): EngineMemory {
    return this.#deviceMemory;
  }

  get sharedUsed(): number {
    return this.#slots.used;
  }

  /** Batches that it has not answered. */
  get running(): number {
    return this.#running.size;
  }

  /** The most bytes of images that a batch of so many can have. */
  roomFor(images: number): number {
    return this.#slots.total - SharedSlots.sizeOf(resultBytes(images, this.description.maxDetections));
  }

  /**
   * Detects on a batch, whose images are copied before this returns. Null where the shared memory has no room for it at the moment:
   * it has when the batches before are answered.
   *
   * @returns a promise that is rejected with EngineLostError where the process ends, or has to be ended, before it answers; with
   *   DlfsError where this batch alone failed
   */
  detect(batch: readonly BatchImage[]): Promise<{ results: ServiceResult[]; times: EngineStageTimes }> | null {
    if (this.#lost) return Promise.reject(this.#lost);
    const resultsBytes = SharedSlots.sizeOf(resultBytes(batch.length, this.description.maxDetections));
    const total = batch.reduce((sum, { image }) => sum + SharedSlots.sizeOf(bytesOf(image)), resultsBytes);
    const at = this.#slots.take(total);
    if (at < 0) return null;
    const memory = this.#memory.bytes;
    let next = at + resultsBytes;
    const images = batch.map(({ image, scoreThreshold = -1 }): SharedImage => {
      const place = next;
      const file = image instanceof Uint8Array;
      memory.set(file ? image : image.data, place);
      const bytes = bytesOf(image);
      next += SharedSlots.sizeOf(bytes);
      return [place, bytes, file ? 0 : image.width, file ? 0 : image.height, scoreThreshold];
    });
    const id = this.#nextId++;
    const answer = Promise.withResolvers<{ results: ServiceResult[]; times: EngineStageTimes }>();
    const { answerTimeoutMs } = this.#options;
    const timer = setTimeout(
      () => this.kill(`it did not answer within ${answerTimeoutMs / 1000} s (answerTimeoutMs)`),
      answerTimeoutMs,
    );
    this.#running.set(id, { ...answer, images: batch.length, at, timer });
    this.#send({ kind: "batch", id, images, resultsAt: at, resultsBytes });
    return answer.promise;
  }

  /** Ends it after the batches that it has. */
  async quit(): Promise<void> {
    this.#quitting = true;
    this.#send({ kind: "quit" });
    const timer = setTimeout(() => this.kill("it did not end when it was asked to"), QUIT_MS);
    await this.ended;
    clearTimeout(timer);
  }

  /** Ends it at once; what it has not answered is rejected with this reason. */
  kill(reason: string): void {
    this.#lose(new EngineLostError(reason, false));
    this.#child.kill("SIGKILL");
  }

  #send(message: ToEngine): void {
    try {
      this.#child.send(message);
    } catch {
      // It has ended; `ended` says so.
    }
  }

  #hear(message: FromEngine): void {
    if (this.#lost) return;
    switch (message.kind) {
      case "started":
        this.#send({ kind: "load", parent: process.pid, spec: this.#options.spec });
        break;
      case "ready":
        this.#deviceMemory = message.memory;
        this.#ready.resolve(message.engine);
        break;
      case "failed":
        // Memory that others hold now may be free later.
        this.#lose(new EngineLostError(message.message, !HARMLESS.includes(message.code)));
        this.#child.kill("SIGKILL");
        break;
      case "memory":
        this.#deviceMemory = message.memory;
        break;
      case "done": {
        const running = this.#take(message.id);
        if (!running) break;
        const { at, images } = running;
        const results = readResults(this.#memory.bytes, at, this.description.maxDetections, images);
        this.#slots.release(at);
        running.resolve({ results, times: message.times });
        break;
      }
      case "error": {
        if (!HARMLESS.includes(message.code)) {
          this.kill(message.message);
          break;
        }
        const running = this.#take(message.id);
        if (running) this.#slots.release(running.at);
        running?.reject(new DlfsError(message.code, "engine", message.message));
        break;
      }
    }
  }

  #take(id: number): Running | undefined {
    const running = this.#running.get(id);
    clearTimeout(running?.timer);
    this.#running.delete(id);
    return running;
  }

  /** Rejects all that waits for it. */
  #lose(reason: EngineLostError): void {
    this.#lost ??= reason;
    this.#isLost.resolve(this.#lost);
    this.#ready.reject(this.#lost);
    this.#ready.promise.catch(() => {}); // nobody may wait for it any more
    for (const id of [...this.#running.keys()]) this.#take(id)?.reject(this.#lost);
  }

  #ending(): string {
    const { exitCode, signalCode } = this.#child;
    if (this.#quitting && exitCode === 0) return "it was asked to end";
    const how = signalCode === null ? `ended with status ${exitCode}` : `was ended by ${signalCode}`;
    return `its process ${how}`;
  }

  async #follow(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    let rest = "";
    const line = (text: string) => {
      if (text.trim() === "") return;
      this.#lines.push(text);
      if (this.#lines.length > KEPT_LINES) this.#lines.shift();
      this.#options.log?.(text);
    };
    for await (const chunk of stream) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      lines.forEach(line);
    }
    line(rest);
  }
}

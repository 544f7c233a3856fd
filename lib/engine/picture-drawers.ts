/** Pictures with boxes, drawn and written by threads of their own: decoding and encoding an image takes longer than detecting on it. */
import type { Pixels } from "../data";
import type { ImagePrediction } from "../formats";
import { DlfsError, ErrorCode, loadLibrary } from "../native";
import { drawPrediction } from "./draw-prediction";
import type { Engine } from "./engine";

export type ToPictureThread =
  | { kind: "classes"; classes: readonly string[] }
  | { kind: "draw"; id: number; content: Uint8Array | Pixels; prediction: ImagePrediction; path: string }
  | { kind: "end" };

export type FromPictureThread =
  | { kind: "drawn"; id: number }
  | { kind: "failed"; id: number; code: number; op: string; message: string }
  | { kind: "ended" };

type Job = Omit<Extract<ToPictureThread, { kind: "draw" }>, "kind" | "id"> & PromiseWithResolvers<void>;

interface Thread {
  readonly worker: Worker;
  readonly ended: PromiseWithResolvers<void>;
  /** What it draws. */
  job: Job | null;
}

/** Where threads can draw: they decode and encode with the CPU's library, whatever the engine runs on. */
function hasThreads(): boolean {
  try {
    loadLibrary("cpu");
    return true;
  } catch {
    return false;
  }
}

/**
 * Draws pictures of predictions and writes them as JPEGs, on a number of threads, or, where the CPU's library is not there, on this
 * one with the engine's device.
 */
export class PictureDrawers implements AsyncDisposable {
  readonly #engine: Engine;
  readonly #most: number;
  readonly #threads: Thread[] = [];
  readonly #waiting: Job[] = [];
  #nextId = 1;

  /** @param threads how many at most; they are started when they are needed */
  constructor(engine: Engine, threads: number) {
    this.#engine = engine;
    this.#most = hasThreads() ? Math.max(1, Math.floor(threads)) : 0;
  }

  /**
   * Resolves when the picture is at `path`. `content`, the image's file or its pixels, is given away: it is empty afterwards.
   *
   * @throws DlfsError where it cannot be written
   */
  async draw(content: Uint8Array | Pixels, prediction: ImagePrediction, path: string): Promise<void> {
    if (this.#most === 0) {
      await Bun.write(path, drawPrediction(this.#engine, content, prediction));
      return;
    }
    const job: Job = { content, prediction, path, ...Promise.withResolvers<void>() };
    this.#waiting.push(job);
    const idle = this.#threads.find(({ job: busy }) => !busy);
    if (idle) this.#next(idle);
    else if (this.#threads.length < this.#most) this.#next(this.#start());
    await job.promise;
  }

  /** Waits for what is being drawn, and ends the threads. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      this.#threads.map(async ({ worker, ended, job }) => {
        await job?.promise.catch(() => {});
        worker.postMessage({ kind: "end" } satisfies ToPictureThread);
        await ended.promise;
      }),
    );
  }

  #start(): Thread {
    const worker = new Worker(new URL("./picture-thread.ts", import.meta.url).href);
    const thread: Thread = { worker, ended: Promise.withResolvers(), job: null };
    worker.onmessage = ({ data }: MessageEvent<FromPictureThread>) => this.#hear(thread, data);
    worker.onerror = ({ message }) => {
      thread.job?.reject(new DlfsError(ErrorCode.internal, "pictures", `a thread that draws them failed: ${message}`));
      thread.ended.resolve();
    };
    const { classes } = this.#engine;
    worker.postMessage({ kind: "classes", classes } satisfies ToPictureThread);
    this.#threads.push(thread);
    return thread;
  }

  #next(thread: Thread): void {
    const job = this.#waiting.shift();
    if (!job) return;
    thread.job = job;
    const { prediction, path } = job;
    const content =
      job.content instanceof Uint8Array ? own(job.content) : { ...job.content, data: own(job.content.data) };
    const { buffer } = content instanceof Uint8Array ? content : content.data;
    const message: ToPictureThread = { kind: "draw", id: this.#nextId++, content, prediction, path };
    thread.worker.postMessage(message, [buffer as ArrayBuffer]);
  }

  #hear(thread: Thread, message: FromPictureThread): void {
    if (message.kind === "ended") {
      thread.ended.resolve();
      return;
    }
    const { job } = thread;
    thread.job = null;
    if (message.kind === "drawn") job?.resolve();
    else job?.reject(new DlfsError(message.code, message.op, message.message));
    this.#next(thread);
  }
}

/** Bytes whose buffer holds nothing else, and may be given away: small files come as parts of a larger one. */
function own(bytes: Uint8Array): Uint8Array {
  const whole = bytes.byteOffset === 0 && bytes.byteLength === bytes.buffer.byteLength;
  return whole && bytes.buffer instanceof ArrayBuffer ? bytes : new Uint8Array(bytes); // slice() of a Buffer copies nothing
}

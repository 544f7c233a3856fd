/** Batch inference on several devices: a process for each, with an engine of its own, and one that writes. */
import { fileURLToPath } from "node:url";
import { DlfsError, ErrorCode } from "../native";
import type { DeviceOptions } from "../tensor";
import type { AboutEngine, DetectedBatch, FramesHeard } from "./detect-left";
import type { ListOptions } from "./image-list";
import type { PredictOptions } from "./predict";
import type { FromProcess, ProcessEngine, ProcessWork, ToProcess } from "./predict-messages";

const script = fileURLToPath(new URL("./predict-process.ts", import.meta.url));

export interface PredictProcessesOptions extends Omit<ProcessEngine, "device"> {
  /** A process for each of them; of the CPU any number, each with some of its threads. */
  devices: readonly DeviceOptions[];
  /** Where the images are, as listImages() takes it: each process lists for itself, and takes its share. */
  location: string;
  list?: Pick<ListOptions, "every" | "fps">;
}

/** What processes do in a call of run(). */
export type ProcessesWork = Omit<ProcessWork, "location" | "list" | "share" | "pictures"> &
  Pick<PredictOptions, "signal"> & { pictures?: boolean };

interface Member {
  readonly child: Bun.Subprocess<"ignore", "inherit", "inherit">;
  readonly place: string;
  /** Resolves when it is ready. */
  readonly ready: PromiseWithResolvers<Extract<FromProcess, { kind: "ready" }>>;
  done: boolean;
  /** Why it has ended before it was done. */
  failure: DlfsError | null;
  /** Frames of a video that it expects. */
  frames: number;
}

/**
 * Processes with an engine each, which share the images of a place: for as many devices as a machine has. One that fails ends
 * with the others' work done; its images are left for another run.
 */
export class PredictProcesses implements AsyncDisposable {
  readonly #options: PredictProcessesOptions;
  readonly #members: Member[] = [];
  readonly #batches: { member: Member; batch: DetectedBatch }[] = [];
  #heard: FramesHeard = {};
  /** Resolved, and made anew, whenever a process has said something. */
  #news = Promise.withResolvers<void>();
  #about: AboutEngine | null = null;
  #description = "";

  private constructor(options: PredictProcessesOptions) {
    this.#options = options;
  }

  /** Starts the processes; resolves when all engines are loaded. @throws DlfsError where one of them cannot be */
  static async start(options: PredictProcessesOptions): Promise<PredictProcesses> {
    const { devices, location: _location, list: _list, ...engine } = options;
    const processes = new PredictProcesses(options);
    try {
      for (const device of devices) processes.#spawn({ ...engine, device });
      const all = await Promise.all(processes.#members.map(({ ready }) => ready.promise));
      const [first] = all as [(typeof all)[0]];
      processes.#about = first.about;
      const names = [...Map.groupBy(all, ({ device }) => device)].map(([name, { length }]) => `${length} x ${name}`);
      const { path, about, size, precision } = first;
      processes.#description = `${path}, ${about.iteration} iterations, input ${size.join("x")}, ${precision}; ${names.join(", ")}`;
      return processes;
    } catch (error) {
      await processes.dispose();
      throw error;
    }
  }

  /** What a predictions file says of the model. */
  get about(): AboutEngine {
    return this.#about as AboutEngine;
  }

  /** Model and devices, in a line. */
  get description(): string {
    return this.#description;
  }

  /**
   * Detects on all images that the predictions file has no results of, which must be open for writing already. Batches come in the order
   * in which they are done. Once.
   *
   * @throws DlfsError of the first process that failed, after the batches of the others
   */
  async *run(
    { signal, pictures = false, ...work }: ProcessesWork,
    heard: FramesHeard = {},
  ): AsyncGenerator<DetectedBatch> {
    this.#heard = heard;
    const { location, list = {} } = this.#options;
    const { out, predictions, retryFailed, scoreThreshold, readAhead, batchesAhead } = work;
    const shared = { location, list, out, pictures, predictions, retryFailed, scoreThreshold, readAhead, batchesAhead };
    const count = this.#members.length;
    const stop = () => {
      for (const member of this.#members) this.#tell(member, { kind: "stop" });
    };
    signal?.addEventListener("abort", stop, { once: true });
    try {
      for (const [index, member] of this.#members.entries())
        this.#tell(member, { kind: "work", work: { ...shared, share: { index, count } } });
      if (signal?.aborted) stop();
      for (;;) {
        const next = this.#batches.shift();
        if (next) {
          yield next.batch;
          this.#tell(next.member, { kind: "written" });
          continue;
        }
        if (this.#members.every(({ done, failure }) => done || failure)) break;
        await this.#news.promise;
      }
      const failed = this.#members.find(({ failure }) => failure)?.failure;
      if (failed && !signal?.aborted) throw failed;
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  /** Ends the processes. */
  async dispose(): Promise<void> {
    await Promise.all(
      this.#members.map(async ({ child }) => {
        if (child.exitCode === null && child.signalCode === null) child.disconnect();
        const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
        await child.exited;
        clearTimeout(timer);
      }),
    );
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #spawn(engine: ProcessEngine): void {
    const { backend, index } = engine.device;
    const place = `${backend === "cpu" ? "process" : "device"} ${index ?? this.#members.length}`;
    const child = Bun.spawn([process.execPath, "run", script], {
      env: process.env,
      stdio: ["ignore", "inherit", "inherit"],
      ipc: (message: FromProcess) => this.#hear(member, message),
      onExit: (_, code, signal) => this.#ended(member, signal === null ? `status ${code}` : `${signal}`),
    });
    const ready = Promise.withResolvers<Extract<FromProcess, { kind: "ready" }>>();
    ready.promise.catch(() => {}); // start() waits for all of them, and says which failed first
    const member: Member = { child, place, ready, done: false, failure: null, frames: 0 };
    this.#members.push(member);
    this.#tell(member, { kind: "load", engine });
  }

  #tell({ child, failure }: Member, message: ToProcess): void {
    if (failure || child.exitCode !== null || child.signalCode !== null) return;
    try {
      child.send(message);
    } catch {
      // It has ended: onExit says how.
    }
  }

  #hear(member: Member, message: FromProcess): void {
    switch (message.kind) {
      case "ready":
        member.ready.resolve(message);
        break;
      case "batch":
        this.#batches.push({ member, batch: message.batch });
        break;
      case "length":
        member.frames = message.frames;
        this.#heard.onLength?.(this.#members.reduce((sum, { frames }) => sum + frames, 0));
        break;
      case "known":
        this.#heard.onKnown?.(message.frames);
        break;
      case "done":
        member.done = true;
        break;
      case "failed":
        this.#fail(member, new DlfsError(message.code, message.op || member.place, message.message));
        break;
    }
    this.#wake();
  }

  #ended(member: Member, how: string): void {
    if (!member.done) {
      const message = `its process ended with ${how}; what it had not done is left, and the same call goes on with it`;
      this.#fail(member, new DlfsError(ErrorCode.internal, member.place, message));
    }
    this.#wake();
  }

  #fail(member: Member, error: DlfsError): void {
    member.failure ??= error;
    member.ready.reject(error);
  }

  #wake(): void {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }
}

/** Keeps an engine running: its process is started again when it has ended, less and less often where that does not help. */
import { EngineLostError, EngineProcess, type EngineProcessOptions } from "./engine-process";
import type { ServiceLog } from "./service-log";
import { SharedMemory } from "./shared-memory";

export interface Backoff {
  /** Milliseconds before the first new start, which double with each that fails, up to the most. */
  readonly firstMs: number;
  readonly mostMs: number;
  /** An engine that was ready for so long has failed for a new reason: counting begins again. */
  readonly stableMs: number;
}

export interface SupervisorOptions extends EngineProcessOptions {
  /** Bytes of memory shared with the process. */
  readonly sharedBytes: number;
  readonly backoff?: Backoff;
  /** Told when the engine is ready or lost. */
  readonly onChange: () => void;
  readonly serviceLog: ServiceLog;
}

const BACKOFF: Backoff = { firstMs: 250, mostMs: 30_000, stableMs: 60_000 };
/** How often a process that ends before it has loaded the model for the first time is started. */
const FIRST_STARTS = 3;
/** Shared memory may be smaller than wanted by so many times, rather than on a disk. */
const LEAST_SHARE = 4;
/** Failures in a row that are called a crash loop. */
const CRASH_LOOP = 3;

export class EngineSupervisor {
  readonly #options: SupervisorOptions;
  readonly #backoff: Backoff;
  readonly #stop = new AbortController();
  #memory: SharedMemory | null = null;
  #engine: EngineProcess | null = null;
  #starting: Promise<EngineProcess> | null = null;
  #restarting: Promise<void> | null = null;
  #failures = 0;
  #restarts = 0;
  #reason = "it is loading";
  #retryAt = 0;
  #loadMs = 0;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#backoff = options.backoff ?? BACKOFF;
  }

  /** The engine; null while there is none. */
  get engine(): EngineProcess | null {
    return this.#engine;
  }

  /** Why there is none. */
  get reason(): string {
    return this.#reason;
  }

  get restarts(): number {
    return this.#restarts;
  }

  get sharedTotal(): number {
    return this.#memory?.byteLength ?? 0;
  }

  /** Seconds after which there may be one again. */
  get retryAfter(): number {
    const wait = Math.max(0, this.#retryAt - performance.now()) + this.#loadMs;
    return Math.max(1, Math.ceil(wait / 1000));
  }

  /**
   * Loads the model for the first time.
   *
   * @throws EngineLostError where that cannot be, or the process ended again and again; DlfsError where memory is short
   */
  async start(): Promise<void> {
    const { sharedBytes, serviceLog } = this.#options;
    this.#memory = await SharedMemory.create(sharedBytes, {
      leastBytes: sharedBytes / LEAST_SHARE,
      warn: (message) => serviceLog.warn(message),
    });
    if (this.#stop.signal.aborted) {
      this.#release();
      throw new EngineLostError("it is not wanted any more", false);
    }
    for (let attempt = 1; ; attempt++) {
      try {
        this.#watch(await this.#launch());
        return;
      } catch (error) {
        const lost = error as EngineLostError;
        this.#reason = lost.message;
        if (this.#stop.signal.aborted || lost.permanent || attempt === FIRST_STARTS) {
          this.#release();
          throw error;
        }
        this.#report(lost, "the engine ended while it loaded the model, and is started again");
        await this.#wait(this.#backoff.firstMs * 2 ** (attempt - 1));
        this.#restarts++;
      }
    }
  }

  /** Ends it, after the batches that it has. */
  async dispose(): Promise<void> {
    this.#stop.abort();
    this.#reason = "it is unloaded";
    const engine = this.#engine ?? (await this.#starting?.catch(() => null));
    await engine?.quit();
    await this.#restarting;
    this.#release();
  }

  async #launch(): Promise<EngineProcess> {
    const started = performance.now();
    this.#starting = EngineProcess.start(this.#options, this.#memory as SharedMemory, this.#stop.signal);
    try {
      const engine = await this.#starting;
      // The way there and back is used once before the first request.
      await engine.detect([{ image: { width: 1, height: 1, data: new Uint8Array(3) }, scoreThreshold: undefined }]);
      this.#loadMs = performance.now() - started;
      return engine;
    } finally {
      this.#starting = null;
    }
  }

  /** Makes an engine the one that is used, until it is lost. */
  #watch(engine: EngineProcess): void {
    const ready = performance.now();
    this.#engine = engine;
    this.#reason = "";
    void engine.ended.then((lost) => {
      this.#engine = null;
      if (this.#stop.signal.aborted) return;
      if (performance.now() - ready >= this.#backoff.stableMs) this.#failures = 0;
      this.#restarting = this.#restart(lost);
    });
    // While it is being ended it answers nothing more.
    void engine.lost.then(({ message }) => {
      this.#engine = null;
      this.#reason = message;
      this.#options.onChange();
    });
    this.#options.onChange();
  }

  async #restart(first: EngineLostError): Promise<void> {
    let lost = first;
    while (!this.#stop.signal.aborted) {
      this.#failures++;
      const { firstMs, mostMs } = this.#backoff;
      const delay = Math.min(mostMs, firstMs * 2 ** (this.#failures - 1));
      const again = this.#failures >= CRASH_LOOP ? `crash loop, ${this.#failures} times in a row: ` : "";
      this.#reason = `${again}${lost.message}`;
      this.#retryAt = performance.now() + delay;
      this.#report(lost, `the engine is started again in ${delay / 1000} s`);
      this.#options.onChange();
      await this.#wait(delay);
      if (this.#stop.signal.aborted) return;
      this.#restarts++;
      try {
        this.#watch(await this.#launch());
        this.#options.serviceLog.info("the engine is ready again", { restarts: this.#restarts });
        return;
      } catch (error) {
        lost = error as EngineLostError;
      }
    }
  }

  #report(lost: EngineLostError, what: string): void {
    if (this.#stop.signal.aborted) return;
    const { serviceLog, spec } = this.#options;
    const { message, printed } = lost;
    const fields = { path: spec.path, failures: this.#failures, ...(printed.length > 0 && { printed }) };
    serviceLog.error(`${what}: ${message}`, fields);
  }

  #wait(milliseconds: number): Promise<void> {
    const { signal } = this.#stop;
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      if (signal.aborted) resolve();
      signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  #release(): void {
    this.#memory?.[Symbol.dispose]();
    this.#memory = null;
  }
}

/** What the newest weights of runs make of images, one at a time. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Detection } from "../train";
import { EngineWorker, type EngineWorkerOptions } from "./engine-worker";

export interface RunPredictorOptions extends EngineWorkerOptions {
  /** Detections below it are noise. Default 0.05. */
  scoreThreshold?: number;
}

interface Loaded {
  /** The run, and the checkpoints that it had. */
  readonly key: string;
  readonly engine: EngineWorker;
}

/** Loads a run's newest checkpoint when it is asked about an image, in a thread; the model of one run at a time. */
export class RunPredictor implements AsyncDisposable {
  #loaded: Loaded | null = null;
  /** What is under way: one thing after the other. */
  #busy: Promise<unknown> = Promise.resolve();

  readonly #options: EngineWorkerOptions;
  readonly #scoreThreshold: number;

  constructor({ scoreThreshold = 0.05, ...options }: RunPredictorOptions = {}) {
    this.#options = options;
    this.#scoreThreshold = scoreThreshold;
  }

  /**
   * @param run its folder
   * @param image the bytes of a file
   * @throws DlfsError where the run has no checkpoint that can be read, or the image is damaged
   */
  async predict(run: string, image: Uint8Array): Promise<{ iteration: number; boxes: Detection[] }> {
    const predicting = this.#busy.then(() => this.#predict(run, image));
    this.#busy = predicting.catch(() => undefined);
    return await predicting;
  }

  async #predict(run: string, image: Uint8Array) {
    const engine = await this.#engineOf(run);
    const { detections } = await engine.detect(image, { scoreThreshold: this.#scoreThreshold });
    return { iteration: engine.iteration, boxes: detections };
  }

  async #engineOf(run: string): Promise<EngineWorker> {
    const names = await readdir(join(run, "checkpoints")).catch(() => []);
    const key = JSON.stringify([run, names.sort()]);
    if (this.#loaded?.key === key) return this.#loaded.engine;
    await this.#unload();
    const engine = await EngineWorker.load(run, { batchSizes: [1], warmUp: false, ...this.#options });
    this.#loaded = { key, engine };
    return engine;
  }

  async #unload(): Promise<void> {
    const before = this.#loaded;
    this.#loaded = null;
    await before?.engine.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#busy;
    await this.#unload();
  }
}

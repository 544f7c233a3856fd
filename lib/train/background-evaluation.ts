import type { CocoResult } from "../metrics";
import type { ImageDetections } from "./evaluator";

/** What an evaluation gives. */
export interface EvaluationResult {
  readonly result: CocoResult;
  readonly detections: ImageDetections[];
}

/** An evaluation of the weights as they were after some step, while the steps go on. */
export class BackgroundEvaluation {
  readonly #stop = new AbortController();
  readonly #work: Promise<EvaluationResult>;
  #finished = false;

  /**
   * @param iteration steps done before
   * @param epoch passes over the data that were complete then
   */
  constructor(
    readonly iteration: number,
    readonly epoch: number,
    evaluate: (signal: AbortSignal) => Promise<EvaluationResult>,
  ) {
    this.#work = evaluate(this.#stop.signal).finally(() => {
      this.#finished = true;
    });
    this.#work.catch(() => {}); // told to whoever asks for the result
  }

  /** Whether result() has nothing to wait for. */
  get finished(): boolean {
    return this.#finished;
  }

  /** Rejects with what went wrong. */
  async result(): Promise<EvaluationResult> {
    return await this.#work;
  }

  /** Ends it after the batch under way, whatever becomes of it. */
  async giveUp(): Promise<void> {
    this.#stop.abort();
    await this.#work.catch(() => {});
  }
}

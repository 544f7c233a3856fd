import type { CocoResult } from "../metrics";
import { DlfsError, ErrorCode } from "../native";
import type { ImageDetections } from "./evaluator";
import type { StepResult } from "./train-step";

/**
 * Hears what happens in a training, and may do something of its own at each point; everything is optional. The training waits for
 * promises that are returned, and ends, its state saved, with an error that names the method where one throws.
 *
 * Iterations are counted from 0: onStepStart(7) is before the eighth step. Evaluations and checkpoints are named by the steps
 * done: iteration 8 is after that step.
 */
export interface TrainerObserver {
  /** Before the first step of a pass over the data, or, where a training goes on, of the rest of one. Epochs are counted from 0. */
  onEpochStart?(epoch: number, iteration: number): void | Promise<void>;
  /** After the last step of a pass; reports of its last steps may still be to come. `iteration`: steps done. */
  onEpochEnd?(epoch: number, iteration: number): void | Promise<void>;
  /** Before a step's first batch is asked for. */
  onStepStart?(iteration: number): void | Promise<void>;
  /** A step has been enqueued; `waitSeconds`: how long it waited for data. The device may still be at one before. */
  onStep?(iteration: number, images: number, waitSeconds: number, epoch: number): void | Promise<void>;
  /** A step's report has arrived. */
  onResult?(result: StepResult): void | Promise<void>;
  /**
   * The steps are done, all their reports have come, and the model still has the weights of the last step. `overlaps`: steps go on
   * while it is evaluated, and onEvaluation follows some of them later.
   */
  onEvaluationStart?(iteration: number, overlaps: boolean): void | Promise<void>;
  onEvaluation?(iteration: number, result: CocoResult, detections: ImageDetections[]): void | Promise<void>;
  /** The state is about to be copied for a checkpoint. */
  onCheckpointStart?(iteration: number): void | Promise<void>;
  /** A checkpoint is on the disk. */
  onCheckpoint?(path: string, iteration: number): void | Promise<void>;
  /**
   * A checkpoint could not be written, by a full disk say; the one before is as it was. Training goes on, and the next one is
   * tried when it is due; where no observer has this, training ends with the error.
   */
  onCheckpointError?(error: Error, iteration: number): void | Promise<void>;
}

type Hook = keyof TrainerObserver;
type Arguments<H extends Hook> = Parameters<NonNullable<TrainerObserver[H]>>;

/** Calls observers in their order, one after the other. */
export class Observers {
  readonly #list: readonly TrainerObserver[];

  constructor(observers: TrainerObserver | readonly TrainerObserver[] = []) {
    this.#list = Array.isArray(observers) ? observers : [observers as TrainerObserver];
  }

  has(hook: Hook): boolean {
    return this.#list.some((observer) => observer[hook] !== undefined);
  }

  /**
   * Calls a method of all observers that have it. Gives nothing, rather than a promise, where there is nothing to wait for: steps
   * are many. Throws DlfsError naming method and iteration.
   */
  call<H extends Hook>(hook: H, at: number, ...args: Arguments<H>): Promise<void> | undefined {
    for (let i = 0; i < this.#list.length; i++) {
      const waiting = this.#one(i, hook, at, args);
      if (waiting) return this.#rest(waiting, i + 1, hook, at, args);
    }
    return undefined;
  }

  async #rest<H extends Hook>(first: Promise<void>, from: number, hook: H, at: number, args: Arguments<H>) {
    await first;
    for (let i = from; i < this.#list.length; i++) await this.#one(i, hook, at, args);
  }

  #one<H extends Hook>(index: number, hook: H, at: number, args: Arguments<H>): Promise<void> | undefined {
    const observer = this.#list[index] as TrainerObserver;
    const fail = (error: unknown): never => {
      const name = observer.constructor === Object ? `observer ${index + 1}` : observer.constructor.name;
      const text = error instanceof Error ? error.message : String(error);
      const code = error instanceof DlfsError ? error.code : ErrorCode.argument;
      throw new DlfsError(code, `${hook} of ${name}, iteration ${at}`, text, { cause: error });
    };
    try {
      const method = observer[hook] as ((...args: Arguments<H>) => void | Promise<void>) | undefined;
      const result = method?.apply(observer, args);
      return result instanceof Promise ? result.catch(fail) : undefined;
    } catch (error) {
      return fail(error);
    }
  }
}

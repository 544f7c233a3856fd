import type { BatchImages, DetectionLoader } from "../data";
import type { ProcessGroup } from "../distributed";
import { type Checkpoint, CheckpointStore, type CheckpointStoreOptions } from "../formats";
import type { RecomputeOption } from "../graph";
import type { CocoResult, CocoStats } from "../metrics";
import type { DetectionModel } from "../models";
import { check, DlfsError, ErrorCode } from "../native";
import { BackgroundEvaluation, type EvaluationResult } from "./background-evaluation";
import { Checkpointing, type SavedCheckpoint } from "./checkpointing";
import { autotune } from "./convolution-tuning";
import { type DryRun, dryRun } from "./dry-run";
import { Ema, type EmaOptions } from "./ema";
import type { Evaluator, ImageDetections } from "./evaluator";
import { type FreezeRule, Freezing } from "./freezing";
import { Observers, type TrainerObserver } from "./observers";
import { type PlateauOptions, ReduceOnPlateau } from "./schedule";
import { SGD, type SGDOptions } from "./sgd";
import { type StepResult, TrainStep } from "./train-step";
import { TrainingRanks, type TrainingRanksOptions } from "./training-ranks";
import {
  checkpointMetadata,
  namedTensors,
  restoreAlgorithms,
  restoreTraining,
  type TrainingState,
} from "./training-state";

export interface TrainerOptions {
  model: DetectionModel;
  /** Training batches: a CocoDataLoader or a RecordLoader; its decoder, or reader, holds the images. */
  loader: DetectionLoader;
  decoder: BatchImages;
  optimizer: Omit<SGDOptions, "iterations">;
  /** Parameters that do not train, for good or before an iteration. */
  freeze?: readonly FreezeRule[];
  /** Keeps moving averages of the weights: they are what is evaluated, and what a model is made of from a checkpoint. */
  ema?: EmaOptions;
  /** Reduces the schedule's rates when a metric of the evaluations has stopped getting better. Default metric: AP. */
  plateau?: PlateauOptions & { metric?: keyof CocoStats };
  /** Batches whose gradients' mean makes a step; see TrainStepOptions. Default 1. */
  accumulate?: number;
  /** Ends the training after so many evaluations in a row that were no better than the best. */
  patience?: number;
  /** Steps in all. */
  iterations: number;
  /**
   * One with a model of its own, of the same kind as `model`, is given the weights, or their averages, as they are when an
   * evaluation is due, and evaluates while training goes on: see EvaluatorOptions.stream. Its result then comes some steps
   * later, which neither `plateau` nor `patience` can do with.
   */
  evaluator?: Evaluator | null;
  /** Steps between evaluations; one follows the last step too. */
  evaluateEvery?: number;
  /** Folder of the checkpoints; none are written without. */
  checkpointFolder?: string;
  /** Steps between checkpoints, which are written while training goes on; one follows the last step too. */
  checkpointEvery?: number;
  /** Which of them stay, besides the best. Default: the newest 3. */
  keep?: CheckpointStoreOptions;
  /** Called in their order. */
  observer?: TrainerObserver | readonly TrainerObserver[];
  /** Stops after the step under way, with a checkpoint. */
  signal?: AbortSignal;
  /**
   * Milliseconds for timing the candidates of a convolution that has no saved pick, 0 for heuristics; see `autotune`, which says
   * the default.
   */
  tuneMs?: number;
  /** What a step computes again in the backward pass instead of keeping it; see ProgramOptions. */
  recompute?: RecomputeOption;
  /** Kept in checkpoints: the resolved configuration. */
  config?: unknown;
  /**
   * Ranks that train together, with a communicator: each with a loader of its share of the images, its rank and their number. All
   * have the same options. Rank 0's weights are everybody's at the start, and rank 0 alone writes checkpoints. A signal on any rank
   * stops all after the same step.
   */
  group?: ProcessGroup;
  ranks?: TrainingRanksOptions;
}

export interface TrainingOutcome {
  /** Steps done. */
  iteration: number;
  /** True when `signal` stopped it early. */
  interrupted: boolean;
  /** True when `patience` ended it early. */
  settled: boolean;
  /** The last evaluation. */
  evaluation: { result: CocoResult; detections: ImageDetections[] } | null;
  /** The last checkpoint's path. */
  checkpoint: string | null;
  /** Steps before an evaluation that was under way when training was stopped early, and has no result. */
  givenUp?: number;
}

/** A loss or the gradients' norm is not finite: the state is not worth saving. */
class NotFiniteError extends DlfsError {}

const isCollective = (error: Error): boolean =>
  (error instanceof DlfsError && error.code === ErrorCode.collective) ||
  (error.cause instanceof Error && isCollective(error.cause));

/** Trains a detector: steps, evaluations, checkpoints. The device is never waited for but at evaluations and checkpoints. */
export class Trainer implements Disposable {
  readonly optimizer: SGD;
  readonly ema: Ema | null;
  readonly #freezing: Freezing;
  readonly #plateau: ReduceOnPlateau | null;
  readonly #options: TrainerOptions;
  readonly #checkpointing: Checkpointing | null;
  readonly #observers: Observers;
  /** What is being written, until it has been seen what became of it. */
  #pending: { saved: Promise<SavedCheckpoint>; iteration: number } | null = null;
  #state: TrainingState;
  #lastCheckpoint: string | null = null;
  /** The iteration of the state that is on the disk. */
  #savedIteration = 0;
  /** An evaluation that goes on beside the steps. */
  #background: BackgroundEvaluation | null = null;
  #givenUp: number | undefined;
  /** The epoch whose start has been told. */
  #epoch: number | null = null;
  /** What an observer has thrown while a checkpoint was written behind the steps. */
  #failure: unknown = null;
  readonly #ranks: TrainingRanks | null;
  /** The ranks have agreed to stop before the next step. */
  #stopped = false;
  #wanted = { evaluation: false, checkpoint: false };
  #rateFactor = 1;

  constructor(options: TrainerOptions) {
    this.#options = options;
    this.#observers = new Observers(options.observer);
    check(
      !this.#overlaps || (!options.plateau && options.patience === undefined),
      "Trainer",
      () =>
        "plateau and patience need an evaluation's result before the next step: expected an evaluator of the same model",
    );
    if (options.tuneMs !== undefined) autotune(options.model.device, { ms: options.tuneMs });
    this.#freezing = new Freezing(options.model, options.freeze);
    this.optimizer = new SGD(options.model, { ...options.optimizer, iterations: options.iterations });
    const { checkpointFolder, keep } = options;
    const writes = checkpointFolder !== undefined && (options.group?.isRoot ?? true);
    const store = writes ? new CheckpointStore(checkpointFolder, keep) : null;
    this.ema = options.ema ? new Ema(options.model, options.ema) : null;
    this.#plateau = options.plateau ? new ReduceOnPlateau(options.plateau) : null;
    this.#checkpointing = store && new Checkpointing(options.model, this.optimizer, this.ema, store);
    const { model, group } = options;
    this.#ranks = group ? new TrainingRanks(group, model, this.optimizer, this.ema, options.ranks) : null;
    this.#state = { iteration: 0, loader: options.loader.state(), history: [] };
  }

  /** Steps done. */
  get iteration(): number {
    return this.#state.iteration;
  }

  /** Evaluates after the next step, beside what is due. */
  requestEvaluation(): void {
    this.#wanted.evaluation = true;
  }

  /** Writes a checkpoint after the next step, beside what is due. */
  requestCheckpoint(): void {
    this.#wanted.checkpoint = true;
  }

  /** From the next step on, rates are the schedule's times this, and times a plateau's factor: a number above 0. */
  set rateFactor(factor: number) {
    this.#rateFactor = factor;
    this.optimizer.rateFactor = factor * (this.#plateau?.factor ?? 1);
  }

  /** Continues from a checkpoint; before train(). */
  async resume(checkpoint: Checkpoint): Promise<void> {
    const { model, loader } = this.#options;
    restoreAlgorithms(model, checkpoint);
    this.#state = await restoreTraining(checkpoint, model, this.optimizer, this.ema, loader);
    if (this.#plateau && this.#state.plateau) {
      this.#plateau.restore(this.#state.plateau);
      this.optimizer.rateFactor = this.#rateFactor * this.#plateau.factor;
    }
    this.#lastCheckpoint = checkpoint.path;
    this.#savedIteration = this.#state.iteration;
  }

  /**
   * Trains until `iterations`, or until the signal. Throws when a loss or the gradients' norm is not finite; the last checkpoint
   * stays. Whatever else ends it, an image source that is gone, a lack of memory, an observer, the state after the last whole step
   * is saved first where that can be done, and the error says where.
   */
  async train(): Promise<TrainingOutcome> {
    const { iterations, signal } = this.#options;
    let evaluation: TrainingOutcome["evaluation"] = null;
    const stop = () => this.#ranks?.requestStop();
    signal?.addEventListener("abort", stop);
    try {
      await this.#ranks?.begin(this.#state);
      if (signal?.aborted) stop();
      do {
        // Where parameters begin to train, the step is made anew.
        const end = Math.min(iterations, this.#freezing.apply(this.#state.iteration));
        evaluation = (await this.#trainUntil(end)) ?? evaluation;
      } while (this.#goesOn(iterations));
      if (this.#state.iteration < iterations) await this.#giveUpEvaluation();
      await this.#save();
      await this.#seeCheckpoint(true);
      if (this.#failure !== null) throw this.#failure;
    } catch (error) {
      await this.#saveAfter(error);
      throw error;
    } finally {
      signal?.removeEventListener("abort", stop);
      await this.#background?.giveUp();
      await this.#checkpointing?.settled();
    }
    const settled = this.#hasSettled();
    const interrupted = this.#state.iteration < iterations && !settled;
    const { iteration } = this.#state;
    const givenUp = this.#givenUp === undefined ? {} : { givenUp: this.#givenUp };
    return { iteration, interrupted, settled, evaluation, checkpoint: this.#lastCheckpoint, ...givenUp };
  }

  #goesOn(end: number): boolean {
    // Of several ranks, each hears of a signal at another step.
    const stopped = this.#ranks ? this.#stopped : this.#options.signal?.aborted;
    return this.#state.iteration < end && !stopped && !this.#hasSettled();
  }

  /** Whether all ranks do the next step. */
  async #mayBegin(): Promise<boolean> {
    if (this.#ranks && !(await this.#ranks.mayBegin(this.#state.iteration))) this.#stopped = true;
    return !this.#stopped;
  }

  /** Steps, evaluations and checkpoints with the parameters that train now; the last evaluation. */
  async #trainUntil(end: number): Promise<TrainingOutcome["evaluation"]> {
    const { iterations, evaluator, evaluateEvery, checkpointEvery } = this.#options;
    using step = this.#makeStep();
    let evaluation: TrainingOutcome["evaluation"] = null;
    const due = (every: number | undefined) => every !== undefined && this.#state.iteration % every === 0;
    if (evaluator && this.#state.evaluationDue) evaluation = await this.#evaluate(step, evaluator);
    while (this.#goesOn(end) && (await this.#mayBegin())) {
      if (this.#background?.finished) evaluation = await this.#finishEvaluation();
      await this.#step(step);
      const last = this.#state.iteration === iterations;
      const wanted = this.#wanted;
      this.#wanted = { evaluation: false, checkpoint: false };
      if (evaluator && (last || due(evaluateEvery) || wanted.evaluation)) {
        evaluation = await this.#evaluate(step, evaluator);
      }
      if (!last && (due(checkpointEvery) || wanted.checkpoint)) await this.#save();
    }
    await this.#drain(step);
    return evaluation;
  }

  /** The step that trains what trains now. */
  #makeStep(): TrainStep {
    const { model, loader, recompute, accumulate } = this.#options;
    const { batchSize, height, width, maxBoxes } = loader;
    this.optimizer.selectTrained();
    const shape = { batchSize, height, width, maxBoxes };
    const parallel = this.#ranks?.parallel();
    const options = { ...shape, recompute, ema: this.ema ?? undefined, accumulate, parallel };
    return new TrainStep(model, this.optimizer, options, this.#state.iteration);
  }

  /**
   * Instead of train(): some steps with as many boxes as there may be and all that ever trains, and an evaluation of one batch. Says
   * what they take; writes nothing.
   */
  async dryRun(): Promise<DryRun> {
    const { model, loader, decoder, evaluator = null, accumulate = 1, iterations, group } = this.#options;
    if (this.#ranks) this.#ranks.phase = "dry run";
    this.#freezing.apply(iterations);
    using step = this.#makeStep();
    const tensors = [...namedTensors(model, this.optimizer, this.ema)];
    return await dryRun({
      ...{ step, loader, evaluator, accumulate, ranks: group?.world },
      images: ({ slot, size }) => decoder.images(slot, size),
      checkpointBytes: tensors.reduce((sum, [, { byteLength }]) => sum + byteLength, 0),
    });
  }

  /**
   * Saves what can be saved after an error, and adds to its message where that is, or that nothing is. Where the error came between
   * batches that make one step, running statistics have seen the first of them; weights, momentum and averages have not.
   */
  async #saveAfter(error: unknown): Promise<void> {
    if (error instanceof NotFiniteError || !(error instanceof Error)) return;
    // What a reduction that was given up has left in the weights is nobody's; and the other ranks write nothing.
    if (this.#ranks && (error instanceof SuppressedError || isCollective(error) || !this.#ranks.isRoot)) return;
    const { iteration } = this.#state;
    try {
      await this.#giveUpEvaluation();
      this.optimizer.step.write([iteration]); // the first of several batches has counted the step
      if (this.ema?.swapped) this.ema.swap(); // an evaluation that could not put the weights back
      await this.#save(false);
      await this.#seeCheckpoint(true);
    } catch {
      // The first error is the one to tell of; what is saved is said below.
    }
    const saved = this.#lastCheckpoint !== null && this.#savedIteration === iteration;
    const kept = saved
      ? `its state is saved in ${this.#lastCheckpoint}`
      : this.#lastCheckpoint
        ? `its state could not be saved, the last checkpoint is ${this.#lastCheckpoint}`
        : this.#checkpointing && iteration > 0
          ? "its state could not be saved, and there is no earlier checkpoint"
          : "nothing is saved";
    error.message += `; training stopped after iteration ${iteration}, ${kept}`;
  }

  /** Whether the last `patience` evaluations were no better than the best. */
  #hasSettled(): boolean {
    const { patience } = this.#options;
    const { best, history } = this.#state;
    if (patience === undefined || !best) return false;
    return (
      history.filter(({ kind, iteration }) => kind === "evaluation" && iteration > best.iteration).length >= patience
    );
  }

  async #step(step: TrainStep): Promise<void> {
    const { loader, decoder, accumulate = 1 } = this.#options;
    const { iteration } = step;
    if (this.#failure !== null) throw this.#failure;
    const { epoch } = this.#state.loader;
    if (this.#epoch !== epoch) await this.#observers.call("onEpochStart", iteration, epoch, iteration);
    this.#epoch = epoch;
    await this.#observers.call("onStepStart", iteration, iteration);
    const waited = loader.waitSeconds;
    const finished: StepResult[] = [];
    let images = 0;
    let after = this.#state.loader;
    for (let part = 0; part < accumulate; part++) {
      const batch = await loader.getBatch();
      const tensor = decoder.images(batch.slot, batch.size);
      this.#ranks?.announce(step, tensor);
      const submitted = await step.submit(tensor, batch).catch((error: unknown) => {
        batch.release();
        throw error;
      });
      submitted.copied.then(batch.release);
      if (submitted.finished) finished.push(submitted.finished);
      images += batch.n * (this.#options.group?.world ?? 1);
      after = loader.stateAfter(batch);
    }
    // Both at once: a state that is saved after an error is that of a whole step.
    this.#state.loader = after;
    this.#state.iteration = step.iteration;
    this.#ranks?.compare(step.iteration);
    await this.#observers.call("onStep", iteration, iteration, images, loader.waitSeconds - waited, epoch);
    for (const result of finished) await this.#report(result);
    if (after.epoch !== epoch) await this.#observers.call("onEpochEnd", iteration, after.epoch - 1, step.iteration);
  }

  async #report(result: StepResult): Promise<void> {
    await this.#observers.call("onResult", result.iteration, result);
    if (!result.failed) return;
    await this.#seeCheckpoint(false); // so that the last one can be named
    const losses = Object.entries(result.losses).map(([name, value]) => `${name} ${value}`);
    const finite = Object.values(result.losses).every(Number.isFinite);
    if (result.gradNorm !== undefined) losses.push(`norm of the gradients ${result.gradNorm}`);
    const { scaler } = this.optimizer;
    const again = scaler ? `, as in ${scaler.patience - 1} before at the least loss scale, ${scaler.least}` : "";
    throw new NotFiniteError(
      ErrorCode.argument,
      "training",
      `${finite ? "the gradients' norm" : "a loss"} is not finite in iteration ${result.iteration}${again}: ` +
        `${losses.join(", ")}, learning rate ${result.rate}; ` +
        (this.#lastCheckpoint
          ? `the last good checkpoint is ${this.#lastCheckpoint}`
          : "no checkpoint had been written yet"),
    );
  }

  async #drain(step: TrainStep): Promise<void> {
    for (const result of await step.drain()) await this.#report(result);
  }

  /** Evaluates, or begins to, where steps go on meanwhile; the last result that there is. */
  async #evaluate(step: TrainStep, evaluator: Evaluator): Promise<EvaluationResult | null> {
    await this.#drain(step);
    if (this.#ranks) {
      this.#ranks.phase = "evaluation";
      this.#ranks.shareStatistics();
    }
    const before = await this.#finishEvaluation();
    const { iteration, loader } = this.#state;
    this.#state.evaluationDue = false;
    await this.#observers.call("onEvaluationStart", iteration, iteration, this.#overlaps);
    if (!this.#overlaps) {
      const evaluation = await this.withAverages(() => evaluator.evaluate());
      return await this.#noteEvaluation(iteration, loader.epoch, evaluation);
    }
    evaluator.takeWeights(new Map([...this.#options.model.stateDict(), ...(this.ema?.averages ?? [])]));
    this.#background = new BackgroundEvaluation(iteration, loader.epoch, (signal) =>
      evaluator.evaluate(undefined, signal),
    );
    return iteration === this.#options.iterations ? await this.#finishEvaluation() : before;
  }

  /** Whether evaluations go on beside the steps. */
  get #overlaps(): boolean {
    const { evaluator, model } = this.#options;
    return evaluator != null && evaluator.model !== model;
  }

  /** Waits for the evaluation beside the steps, if there is one, and takes note of it. */
  async #finishEvaluation(): Promise<EvaluationResult | null> {
    const background = this.#background;
    if (!background) return null;
    if (this.#ranks) this.#ranks.phase = "evaluation"; // waits for the others' detections
    const evaluation = await background.result().finally(() => {
      this.#background = null;
    });
    return await this.#noteEvaluation(background.iteration, background.epoch, evaluation);
  }

  /** Ends the evaluation beside the steps: training stops, and there may be little time. One of the present state is due again. */
  async #giveUpEvaluation(): Promise<void> {
    const background = this.#background;
    if (!background) return;
    this.#background = null;
    this.#state.evaluationDue = background.iteration === this.#state.iteration;
    if (!this.#state.evaluationDue) this.#givenUp = background.iteration;
    await background.giveUp();
  }

  async #noteEvaluation(iteration: number, epoch: number, evaluation: EvaluationResult): Promise<EvaluationResult> {
    const { stats } = evaluation.result;
    this.#state.history.push({ kind: "evaluation", iteration, epoch, time: Date.now(), values: { ...stats } });
    if (!this.#state.best || stats.AP > this.#state.best.value)
      this.#state.best = { name: "AP", value: stats.AP, iteration };
    if (this.#plateau) {
      this.#plateau.observe(stats[this.#options.plateau?.metric ?? "AP"]);
      this.#state.plateau = this.#plateau.state();
      this.optimizer.rateFactor = this.#rateFactor * this.#plateau.factor;
    }
    await this.#observers.call("onEvaluation", iteration, iteration, evaluation.result, evaluation.detections);
    return evaluation;
  }

  /** Runs `work` with the weights that are evaluated: the averages, where there are such. Between two steps alone. */
  async withAverages<T>(work: () => Promise<T>): Promise<T> {
    this.ema?.swap();
    try {
      return await work();
    } finally {
      this.ema?.swap();
    }
  }

  /** Starts writing the state as it is after the steps enqueued so far. `tell`: whether observers hear of it before. */
  async #save(tell = true): Promise<void> {
    // A checkpoint knows the results of all evaluations before it; one of its own state is due again where training goes on from it.
    const knowEvaluations = async () => {
      if (this.#background && this.#background.iteration < this.#state.iteration) await this.#finishEvaluation();
    };
    if (this.#ranks) await knowEvaluations(); // all wait, so that none stands in a step that another has not begun
    if (!this.#checkpointing) return;
    await this.#seeCheckpoint(false);
    if (this.#state.iteration === this.#savedIteration) return;
    await knowEvaluations();
    if (this.#ranks) this.#ranks.phase = "saving";
    const { iteration } = this.#state;
    if (tell) await this.#observers.call("onCheckpointStart", iteration, iteration);
    const { model, config } = this.#options;
    const evaluationDue = this.#state.evaluationDue || this.#background !== null;
    const metadata = checkpointMetadata(model, { ...this.#state, evaluationDue }, config ?? {});
    const { saved } = await this.#checkpointing.save(metadata);
    this.#pending = { saved, iteration };
    const seen = saved.then(
      () => this.#seeCheckpoint(false),
      () => {}, // said when the next one is due
    );
    seen.catch((error: unknown) => {
      this.#failure ??= error; // an observer's: it ends the training before the next step
    });
  }

  /** Notes what became of the checkpoint under way, once it is written. `last`: there will be no further try. */
  async #seeCheckpoint(last: boolean): Promise<void> {
    const pending = this.#pending;
    if (!pending) return;
    const saved = await pending.saved.catch((error: Error) => error);
    if (this.#pending !== pending) return; // somebody else has seen it
    this.#pending = null;
    const { iteration } = pending;
    if (saved instanceof Error) {
      if (last || !this.#observers.has("onCheckpointError")) throw saved;
      await this.#observers.call("onCheckpointError", iteration, saved, iteration);
    } else if (saved.path !== null) {
      this.#lastCheckpoint = saved.path;
      this.#savedIteration = iteration;
      await this.#observers.call("onCheckpoint", iteration, saved.path, iteration);
    }
  }

  /** After train() has ended. */
  dispose(): void {
    this.#ranks?.dispose();
    this.#checkpointing?.dispose();
    this.ema?.dispose();
    this.optimizer.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

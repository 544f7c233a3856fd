import type { CocoResult } from "../metrics";
import { type Labels, type Metric, TrainingMeter } from "../monitor";
import type { TrainerObserver } from "./observers";
import type { StepResult } from "./train-step";

export interface TrainingMetricsOptions {
  /** Of the training: run, model, device, ...; they tell one from another. */
  info: Labels;
  /** Steps in all. */
  iterations: number;
  /** Steps done before. */
  start: number;
  /** Bytes of device memory in use. */
  memory: () => number;
  /** How often images that cannot be used have been skipped. */
  skipped: () => number;
}

/**
 * A training in figures that Prometheus collects: counters of this process for rates (images a second are
 * `rate(dlfs_train_images_total[1m])`), and gauges for what is.
 */
export class TrainingMetrics implements TrainerObserver {
  readonly #options: TrainingMetricsOptions;
  readonly #meter = new TrainingMeter();
  readonly #began = Date.now() / 1000;
  #done: number;
  #epoch = 0;
  #result: StepResult | null = null;
  #evaluation: { iteration: number; stats: Readonly<Record<string, number>> } | null = null;
  #evaluations = 0;
  #evaluationSeconds = 0;
  #evaluationStart = 0;
  #checkpoints = 0;
  #checkpointFailures = 0;
  #checkpoint: { iteration: number; time: number } | null = null;

  constructor(options: TrainingMetricsOptions) {
    this.#options = options;
    this.#done = options.start;
  }

  onStep(iteration: number, images: number, waitSeconds: number, epoch: number): void {
    this.#meter.step(images, waitSeconds);
    this.#done = iteration + 1;
    this.#epoch = epoch;
  }

  onResult(result: StepResult): void {
    this.#result = result;
  }

  onEvaluationStart(_iteration: number, overlaps: boolean): void {
    if (!overlaps) {
      this.#meter.pause();
    }
    this.#evaluationStart = performance.now();
  }

  onEvaluation(iteration: number, { stats }: CocoResult): void {
    this.#evaluation = { iteration, stats: { ...stats } };
    this.#evaluations++;
    this.#evaluationSeconds += (performance.now() - this.#evaluationStart) / 1000;
    this.#meter.resume();
  }

  onCheckpoint(_path: string, iteration: number): void {
    this.#checkpoints++;
    this.#checkpoint = { iteration, time: Date.now() / 1000 };
  }

  onCheckpointError(): void {
    this.#checkpointFailures++;
  }

  /** The figures as they are now. */
  collect(): Metric[] {
    const { info, iterations, start, memory, skipped } = this.#options;
    const { seconds, steps, images, waitSeconds } = this.#meter.read();
    const { losses = {}, rate, gradNorm, scaling } = this.#result ?? {};
    const { stats = {}, iteration: evaluated } = this.#evaluation ?? {};
    const left = steps > 0 ? ((iterations - start - steps) * seconds) / steps : undefined;
    const counter = (name: string, help: string, value: number): Metric => {
      return { name: `dlfs_train_${name}_total`, type: "counter", help, values: [{ value }] };
    };
    const gauge = (name: string, help: string, value: number | undefined): Metric => {
      return { name: `dlfs_train_${name}`, type: "gauge", help, values: value === undefined ? [] : [{ value }] };
    };
    const labelled = (name: string, help: string, label: string, values: Readonly<Record<string, number>>): Metric => ({
      ...{ name: `dlfs_train_${name}`, type: "gauge", help },
      values: Object.entries(values).map(([key, value]) => ({ labels: { [label]: key }, value })),
    });
    return [
      { name: "dlfs_train_info", type: "gauge", help: "Which training this is.", values: [{ labels: info, value: 1 }] },
      gauge("start_time_seconds", "When this process began to train, since 1970.", this.#began),
      counter("iterations", "Optimizer steps of this process.", steps),
      counter("images", "Images trained on by this process.", images),
      counter("seconds", "Seconds of training, evaluations apart.", seconds),
      counter("data_wait_seconds", "Seconds for which steps waited for data.", waitSeconds),
      counter("skipped_images", "Images that could not be used and were skipped.", skipped()),
      gauge("iteration", "Optimizer steps done, those of earlier processes among them.", this.#done),
      gauge("planned_iterations", "Optimizer steps at the end.", iterations),
      gauge("epoch", "Passes over the data that are complete.", this.#epoch),
      gauge("remaining_seconds", "Seconds until the last step, evaluations apart.", left),
      labelled("loss", "Losses of the last reported step.", "loss", losses),
      gauge("learning_rate", "Learning rate of the last reported step.", rate),
      gauge("gradient_norm", "2-norm of the gradients of the last reported step.", gradNorm),
      gauge("loss_scale", "Scale of the losses in fp16.", scaling?.scale),
      gauge("overflowed_steps", "Steps that loss scaling has left out.", scaling?.overflows),
      gauge("device_memory_bytes", "Device memory in use.", memory()),
      counter("evaluations", "Evaluations of this process.", this.#evaluations),
      counter("evaluation_seconds", "Seconds that those took.", this.#evaluationSeconds),
      gauge("evaluation_iteration", "Steps done before the last evaluation.", evaluated),
      labelled(
        "evaluation_ratio",
        "COCO's figures of the last evaluation, -1 where there is nothing.",
        "metric",
        stats,
      ),
      counter("checkpoints", "Checkpoints written by this process.", this.#checkpoints),
      counter("checkpoint_failures", "Checkpoints that could not be written.", this.#checkpointFailures),
      gauge("checkpoint_iteration", "Steps done at the last checkpoint.", this.#checkpoint?.iteration),
      gauge("checkpoint_time_seconds", "When that was written, since 1970.", this.#checkpoint?.time),
      gauge("resident_memory_bytes", "Memory of the process.", process.memoryUsage.rss()),
    ];
  }
}

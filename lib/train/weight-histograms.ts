import type { DetectionModel } from "../models";
import type { TensorBoardWriter } from "../monitor";
import type { TrainerObserver } from "./observers";

/**
 * Writes how the values of each parameter that trains, and of its gradient in the last step, are distributed, before each
 * evaluation, when the device has nothing else to do, or, of a training without evaluations, before each checkpoint. A gradient is what the step computed: of several batches their sum, before
 * clipping, and in fp16 times the loss scale.
 */
export class WeightHistograms implements TrainerObserver {
  readonly #model: DetectionModel;
  readonly #writer: TensorBoardWriter;
  readonly #warn: (message: string) => void;
  readonly #before: "evaluation" | "checkpoint";
  #failed = false;

  /** @param warn told of what cannot be written; training goes on without histograms then */
  constructor(
    model: DetectionModel,
    writer: TensorBoardWriter,
    warn: (message: string) => void,
    before: "evaluation" | "checkpoint" = "evaluation",
  ) {
    this.#model = model;
    this.#writer = writer;
    this.#warn = warn;
    this.#before = before;
  }

  onEvaluationStart(iteration: number): void {
    if (this.#before === "evaluation") this.#write(iteration);
  }

  onCheckpointStart(iteration: number): void {
    if (this.#before === "checkpoint") this.#write(iteration);
  }

  #write(iteration: number): void {
    if (this.#failed) return;
    try {
      for (const [name, { tensor, grad, requiresGrad }] of this.#model.namedParameters()) {
        if (!requiresGrad) continue;
        this.#writer.histogram(iteration, `weights/${name}`, tensor.read() as Float32Array);
        if (grad) this.#writer.histogram(iteration, `gradients/${name}`, grad.read() as Float32Array);
      }
    } catch (error) {
      this.#failed = true;
      this.#warn(`warning: ${(error as Error).message}; training goes on without histograms`);
    }
  }
}

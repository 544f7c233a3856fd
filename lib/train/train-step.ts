import {
  estimateProgram,
  type LoweringOptions,
  type MemoryPlan,
  Program,
  planProgram,
  type RecomputeOption,
  type Spec,
  type Value,
} from "../graph";
import type { DetectionModel } from "../models";
import { check } from "../native";
import { align, type Device, Event, PinnedBuffer, type Tensor } from "../tensor";
import { autotune } from "./convolution-tuning";
import type { DataParallel } from "./data-parallel";
import type { Ema } from "./ema";
import { LossScaler, type LossScaling } from "./loss-scaling";
import type { SGD } from "./sgd";

export interface TrainStepOptions {
  batchSize: number;
  /** Size of the network's input; the largest, where batches of several sizes are trained on. */
  height: number;
  width: number;
  /** Boxes an image is padded to; at least the data set's largest number. */
  maxBoxes: number;
  /** Steps enqueued ahead of the device. Default 2. */
  inFlight?: number;
  /** Every intermediate value stays readable after a step (debugging). */
  keepAll?: boolean;
  /** Streams that the step's captured graph is spread over; see ProgramOptions. */
  lanes?: number;
  /** What is computed again in the backward pass instead of being kept; see ProgramOptions. */
  recompute?: RecomputeOption;
  /** Averages that follow the weights after each step. */
  ema?: Ema;
  /**
   * Batches whose gradients' mean makes a step (gradient accumulation): each is a submit(), with statistics of its own in batch
   * normalization, as in PyTorch. Default 1.
   */
  accumulate?: number;
  /** Other ranks that train on images of their own: steps are taken with the mean of all gradients. */
  parallel?: DataParallel;
}

/** What a program does of a step: all of it, or, where several batches make one, the first, one between, or the last. */
type Phase = "whole" | "first" | "middle" | "last";

/** TrainStepOptions' `recompute` from "all", "none" or a size such as "10GiB" or "800MiB"; null from anything else. */
export function parseRecompute(text: string): RecomputeOption | null {
  if (text === "all" || text === "none") return text === "all";
  const match = /^(\d+(?:\.\d+)?)([MG])iB$/.exec(text);
  return match && Math.floor(Number(match[1]) * (match[2] === "G" ? 2 ** 30 : 2 ** 20));
}

/** Ground truth of a batch on the host, padded to maxBoxes. */
export interface HostTargets {
  /** (N, M, 4), x1, y1, x2, y2 in pixels of the network's input. */
  boxes: Float32Array;
  /** (N, M), from 0. */
  labels: Int32Array;
  /** (N). */
  counts: Int32Array;
}

/** What a finished step reports. */
export interface StepResult {
  /** From 0. */
  iteration: number;
  losses: Record<string, number>;
  /** Learning rate of the step. */
  rate: number;
  /** 2-norm of the step's gradients before clipping; only where the optimizer takes it. */
  gradNorm?: number;
  /** Only with dynamic loss scaling. */
  scaling?: LossScaling;
  /**
   * True when a loss, or the gradients' norm, of this or an earlier step was not finite; no weight has changed since. With loss
   * scaling, such a step is left out, and this is true when so many were that there is no use in going on.
   */
  failed: boolean;
}

interface InFlight {
  targets: PinnedBuffer;
  report: PinnedBuffer;
  event: Event;
  iteration: number | null;
  /** Batches submitted before it. */
  order: number;
  /** Whether it ends its step. */
  last: boolean;
  /** Resolves `copied` of the step in this place. */
  release: () => void;
}

/**
 * A whole training step as one program: schedule, forward, target assignment, losses, backward, optimizer. Steps are enqueued
 * without waiting for the device, a fixed number ahead; their losses come back through events.
 */
export class TrainStep implements Disposable {
  /** The step for inputs of options.height x options.width. */
  readonly program: Program;
  readonly lossNames: readonly string[];
  readonly #device: Device;
  /** By the shape of their images; all in the memory of the first, which is the largest. */
  readonly #programs = new Map<string, Program>();
  readonly #ring: InFlight[];
  readonly #offsets: { boxes: number; labels: number; counts: number };
  readonly #accumulate: number;
  #iteration: number;
  /** Batches submitted. */
  #submitted = 0;
  /** Sums of the losses of the step that is being collected. */
  readonly #sums = new Map<string, number>();
  #revision: number;

  /** @param firstIteration the iteration that the first step is: not 0 when resuming */
  constructor(
    readonly model: DetectionModel,
    readonly optimizer: SGD,
    readonly options: TrainStepOptions,
    firstIteration = 0,
  ) {
    const { batchSize: n, maxBoxes: m, accumulate = 1 } = options;
    const { device } = model;
    check(
      Number.isSafeInteger(accumulate) && accumulate >= 1,
      "TrainStep",
      () => `accumulate: expected an integer >= 1, got ${accumulate}`,
    );
    this.#accumulate = accumulate;
    this.#device = device;
    this.#iteration = firstIteration;
    autotune(device);
    this.#revision = model.revision;
    model.train();
    // What is made is released again where a later part fails.
    using made = new DisposableStack();
    // The last of several batches needs the most memory: gradients of its own beside the sums.
    const phase = accumulate === 1 ? "whole" : "last";
    const first = this.#build(options.height, options.width, phase);
    this.program = made.use(first.program);
    this.lossNames = first.losses;
    this.#programs.set(programKey(options.height, options.width, phase), this.program);
    const labels = align(n * m * 16);
    this.#offsets = { boxes: 0, labels, counts: labels + align(n * m * 4) };
    const bytes = this.#offsets.counts + align(n * 4);
    this.#ring = Array.from({ length: options.inFlight ?? 2 }, () => ({
      targets: made.use(new PinnedBuffer(device, bytes)),
      report: made.use(new PinnedBuffer(device, byteLength(this.#reported(this.program)))),
      event: made.use(new Event(device)),
      iteration: null,
      order: 0,
      last: true,
      release: () => {},
    }));
    made.move();
  }

  /** The step for inputs of a size, in the memory of the first one where there is one and it is large enough. */
  #build(height: number, width: number, phase: Phase, sharing?: Program): { program: Program; losses: string[] } {
    const { model, optimizer } = this;
    const options = { ...this.options, height, width };
    const { ema, parallel } = options;
    let losses: string[] = [];
    const forward = (inputs: Record<string, Value>) => {
      const values = lossesOf(model, inputs);
      losses = Object.keys(values);
      return values;
    };
    const [begins, ends] = [phase === "whole" || phase === "first", phase === "whole" || phase === "last"];
    const update = (made: Program) => [
      ...optimizer.updateCalls(made, 1 / this.#accumulate),
      ...(ema?.stepCalls(made, optimizer.skip) ?? []),
    ];
    const program = new Program(model.device, inputSpecs(model, options), forward, {
      ...loweringOptions(options),
      accumulate: !begins,
      gradientScale: optimizer.scaler?.scale,
      before: (made) => (begins ? optimizer.scheduleCalls(made) : []),
      onGradients: ends ? parallel?.gradientCalls() : undefined,
      after: (made) => [
        ...(parallel?.lossCalls(made, losses) ?? []),
        ...optimizer.checkCalls(made, losses),
        ...(ends ? update(made) : []),
      ],
      sharing,
    });
    return { program, losses };
  }

  /** The program for these images, which is built the first time that their size comes. */
  #programFor(images: Tensor, phase: Phase): Program {
    const [, height, width] = images.shape as unknown as [number, number, number];
    const key = programKey(height, width, phase);
    const known = this.#programs.get(key);
    if (known) return known;
    this.model.train(); // an evaluation may have come between
    const { program } = this.#build(height, width, phase, this.program);
    this.#programs.set(key, program);
    return program;
  }

  /** The memory that a step would take besides parameters, gradients and momentum; allocates none of it. */
  static plan(model: DetectionModel, options: TrainStepOptions): MemoryPlan {
    autotune(model.device);
    model.train();
    const losses = (inputs: Record<string, Value>) => lossesOf(model, inputs);
    const accumulate = (options.accumulate ?? 1) > 1;
    return planProgram(model.device, inputSpecs(model, options), losses, { ...loweringOptions(options), accumulate });
  }

  /** plan()'s bytes by batch size, estimated from the plan for options.batchSize, which should be small. */
  static estimate(model: DetectionModel, options: TrainStepOptions): (batchSize: number) => number {
    autotune(model.device);
    model.train();
    const losses = (inputs: Record<string, Value>) => lossesOf(model, inputs);
    const accumulate = (options.accumulate ?? 1) > 1;
    const lowering = { ...loweringOptions(options), accumulate };
    return estimateProgram(model.device, inputSpecs(model, options), options.batchSize, losses, lowering);
  }

  /** Whether submit() with such images builds no program, nor captures one: both may take their time. */
  isReady(images: Tensor): boolean {
    const [, height, width] = images.shape as unknown as [number, number, number];
    const part = this.#submitted % this.#accumulate;
    return this.#programs.get(programKey(height, width, phaseOf(part, this.#accumulate)))?.captured ?? false;
  }

  /** The iteration that the next submit() runs. */
  get iteration(): number {
    return this.#iteration;
  }

  /**
   * Enqueues one step, or, where several batches make one, a part of it, on images (N, H, W, 3) on the device. Images of another
   * size than the options' get a program of their own, the first time that they come, in the same memory if they are no larger.
   * Waits, without blocking the event loop, while too many steps are in flight; returns the report of the step that made room, if
   * any. `images` may be overwritten once `copied` resolves: when the step's own report has been collected, by a later submit(),
   * drain() or dispose().
   */
  async submit(images: Tensor, targets: HostTargets): Promise<{ finished: StepResult | null; copied: Promise<void> }> {
    const place = this.#ring[this.#submitted % this.#ring.length] as InFlight;
    const finished = await this.#collect(place);
    this.#enqueue(place, images, targets);
    const copied = new Promise<void>((resolve) => {
      place.release = resolve;
    });
    return { finished, copied };
  }

  /** Waits for all that is enqueued; the reports of steps that it ends, in order. */
  async drain(): Promise<StepResult[]> {
    const pending = this.#ring.filter(({ iteration }) => iteration !== null).sort((a, b) => a.order - b.order);
    const results: StepResult[] = [];
    for (const place of pending) {
      const result = await this.#collect(place);
      if (result) results.push(result);
    }
    return results;
  }

  #enqueue(place: InFlight, images: Tensor, targets: HostTargets): void {
    const { batchSize: n, maxBoxes: m } = this.options;
    check(
      targets.boxes.length === n * m * 4 && targets.labels.length === n * m && targets.counts.length === n,
      "TrainStep",
      () =>
        `expected targets of ${n} images padded to ${m} boxes, got ${targets.boxes.length / 4} boxes, ${targets.labels.length} labels and ${targets.counts.length} counts`,
    );
    const { native } = this.#device;
    const part = this.#submitted % this.#accumulate;
    const last = part === this.#accumulate - 1;
    const program = this.#programFor(images, phaseOf(part, this.#accumulate));
    const { inputs, stream } = program;
    const { bytes, address } = place.targets;
    const stage = (offset: number, view: Float32Array | Int32Array, target: Tensor) => {
      bytes.set(new Uint8Array(view.buffer, view.byteOffset, view.byteLength), offset);
      native.copyToDevice(stream.handle, target.address, address + offset, view.byteLength);
    };
    stage(this.#offsets.boxes, targets.boxes, inputs.boxes!);
    stage(this.#offsets.labels, targets.labels, inputs.labels!);
    stage(this.#offsets.counts, targets.counts, inputs.counts!);
    inputs.images!.copyFrom(images, stream);
    if (this.#revision !== this.model.revision) {
      for (const made of this.#programs.values()) made.refresh(); // the folded weights of frozen layers
    }
    this.#revision = this.model.revision;
    program.run();
    let to = place.report.address;
    for (const { address, byteLength } of this.#reported(program)) {
      native.copyToHost(stream.handle, to, address, byteLength);
      to += byteLength;
    }
    place.event.record(stream);
    place.iteration = this.#iteration;
    place.order = this.#submitted++;
    place.last = last;
    if (last) this.#iteration++;
  }

  /** What the host is told of a step, in this order; #collect reads it. */
  #reported({ results }: Program): Tensor[] {
    const { rate, failed, gradNorm, scaler } = this.optimizer;
    return [
      ...this.lossNames.map((name) => results[name] as Tensor),
      ...[rate, failed],
      ...(scaler ? [scaler.scale, scaler.overflow, scaler.counters] : []),
      ...(gradNorm ? [gradNorm] : []),
    ];
  }

  async #collect(place: InFlight): Promise<StepResult | null> {
    const { iteration } = place;
    if (iteration === null) return null;
    await place.event.done();
    place.iteration = null;
    place.release();
    this.program.stream.query(); // reports an error of the work itself
    const values = place.report.float32();
    for (const [i, name] of this.lossNames.entries()) {
      this.#sums.set(name, (this.#sums.get(name) ?? 0) + (values[i] as number));
    }
    if (!place.last) return null;
    const losses = Object.fromEntries([...this.#sums].map(([name, sum]) => [name, sum / this.#accumulate]));
    this.#sums.clear();
    const flags = place.report.int32();
    let at = this.lossNames.length;
    const result: StepResult = { iteration, losses, rate: values[at++] as number, failed: flags[at++] !== 0 };
    const { scaler, gradNorm } = this.optimizer;
    if (scaler) {
      const [scale, overflow] = [values[at++] as number, flags[at++] as number];
      result.scaling = LossScaler.report(scale, overflow, flags.subarray(at, at + scaler.counters.size));
      at += scaler.counters.size;
    }
    if (gradNorm) result.gradNorm = (values[at] as number) / this.#accumulate;
    return result;
  }

  dispose(): void {
    try {
      this.program.stream.synchronize();
    } catch {
      // Disposing happens while an error of the work is on its way up, too; it must not take its place.
    }
    for (const program of this.#programs.values()) program.dispose();
    for (const { targets, report, event, release } of this.#ring) {
      release();
      targets.dispose();
      report.dispose();
      event.dispose();
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

const byteLength = (tensors: Tensor[]): number => tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);

/** Of so many batches that make a step, what is done with one. */
function phaseOf(part: number, accumulate: number): Phase {
  if (part === accumulate - 1) return part === 0 ? "whole" : "last";
  return part === 0 ? "first" : "middle";
}

const programKey = (height: number, width: number, phase: Phase): string => `${height}x${width} ${phase}`;

function inputSpecs(
  { precision }: DetectionModel,
  { batchSize: n, height, width, maxBoxes: m }: TrainStepOptions,
): Record<"images" | "boxes" | "labels" | "counts", Spec> {
  return {
    images: { shape: [n, height, width, 3], dtype: precision },
    boxes: { shape: [n, m, 4], dtype: "f32" },
    labels: { shape: [n, m], dtype: "i32" },
    counts: { shape: [n], dtype: "i32" },
  };
}

function lossesOf(model: DetectionModel, { images, boxes, labels, counts }: Record<string, Value>) {
  return model.losses(images!, { boxes: boxes!, labels: labels!, counts: counts! });
}

function loweringOptions({ keepAll, lanes, recompute }: TrainStepOptions): LoweringOptions {
  return { training: true, seeds: "sum", keepAll, lanes, recompute };
}

import type { ProcessGroup } from "../distributed";
import type { DetectionModel } from "../models";
import { DlfsError, ErrorCode } from "../native";
import { Event, PinnedBuffer, Tensor } from "../tensor";
import { DataParallel, type DataParallelOptions } from "./data-parallel";
import type { Ema } from "./ema";
import type { SGD } from "./sgd";
import type { TrainStep } from "./train-step";
import { namedTensors, type TrainingState } from "./training-state";

export interface TrainingRanksOptions extends DataParallelOptions {
  /** Steps between comparisons of the weights' checksums, which must be the same on all ranks. Default 100; 0: never. */
  checksumEvery?: number;
}

/** What a Trainer's ranks do together besides their steps: they begin and stop alike, and compare their weights. */
export class TrainingRanks implements Disposable {
  readonly #group: ProcessGroup;
  readonly #options: TrainingRanksOptions;
  readonly #model: DetectionModel;
  readonly #optimizer: SGD;
  readonly #ema: Ema | null;
  readonly #event: Event;
  readonly #sums: Tensor;
  readonly #host: PinnedBuffer;
  /** The checksums that are being taken. */
  #pending: { iteration: number; names: string[] } | null = null;
  #phase = "steps";

  constructor(
    group: ProcessGroup,
    model: DetectionModel,
    optimizer: SGD,
    ema: Ema | null,
    options: TrainingRanksOptions = {},
  ) {
    this.#group = group;
    this.#options = options;
    [this.#model, this.#optimizer, this.#ema] = [model, optimizer, ema];
    const { device } = model;
    const bytes = 8 * optimizer.trainedNames.length;
    using made = new DisposableStack();
    this.#event = made.use(new Event(device));
    this.#sums = made.use(Tensor.zeros(device, [bytes], "u8"));
    this.#host = made.use(new PinnedBuffer(device, bytes));
    made.move();
  }

  /** True on rank 0, which writes what is written. */
  get isRoot(): boolean {
    return this.#group.isRoot;
  }

  /** Checks that all ranks begin at the same place, and gives them rank 0's weights, momentum, averages and counters. */
  async begin({ iteration, loader }: TrainingState): Promise<void> {
    const own = JSON.stringify({ iteration, loader });
    const all = await this.#group.exchangeJson("training state", own);
    const other = all.findIndex((state) => state !== all[0]);
    if (other >= 0) {
      throw new DlfsError(
        ErrorCode.argument,
        "training together",
        `rank ${other} begins at ${all[other]}, rank 0 at ${all[0]}`,
      );
    }
    const tensors = [...namedTensors(this.#model, this.#optimizer, this.#ema)].map(([, tensor]) => tensor);
    this.parallel().broadcast(tensors, "initial state");
    this.#model.refresh();
  }

  /** The reductions of the parameters that train now. */
  parallel(): DataParallel {
    return new DataParallel(this.#model, this.#group.communicator, this.#options);
  }

  /** Asks all ranks to stop after a step that they agree on. */
  requestStop(): void {
    this.#group.requestStop();
  }

  /** Whether the next step is to be done. */
  mayBegin(iteration: number): Promise<boolean> {
    return this.#group.mayBegin(iteration);
  }

  /** Tells before a step's batch is submitted whether it may take its time, as programs are built and tuned. */
  announce(step: TrainStep, images: Tensor): void {
    this.phase = step.isReady(images) ? "steps" : "building";
  }

  set phase(phase: string) {
    if (phase === this.#phase) return;
    this.#phase = phase;
    this.#group.phase = phase;
  }

  /** After a step has been enqueued: takes checksums where they are due, and tells of those that are there. */
  compare(iteration: number): void {
    const { checksumEvery = 100 } = this.#options;
    if (this.#pending && this.#event.query()) this.#tell();
    if (checksumEvery === 0 || iteration % checksumEvery !== 0 || this.#pending) return;
    const { native, stream } = this.#model.device;
    const names = this.#optimizer.trainedNames;
    this.#optimizer.checksums(stream, this.#sums.address);
    native.copyToHost(stream.handle, this.#host.address, this.#sums.address, 8 * names.length);
    this.#event.record(stream);
    this.#pending = { iteration, names };
  }

  #tell(): void {
    const { iteration, names } = this.#pending!;
    this.#pending = null;
    const sums = new BigUint64Array(this.#host.bytes.buffer, 0, names.length);
    const values = Object.fromEntries(names.map((name, i) => [name, (sums[i] as bigint).toString(16)]));
    this.#group.agree(iteration - 1, "weights", values);
  }

  /** Gives all ranks rank 0's running statistics, which each keeps of its own images: before they evaluate. */
  shareStatistics(): void {
    const state = [...this.#model.namedState()].filter(([, { isBuffer }]) => isBuffer);
    const tensors = state.flatMap(([name, { tensor }]) => {
      const average = this.#ema?.averages.get(name);
      return average ? [tensor, average] : [tensor];
    });
    if (tensors.length === 0) return;
    this.parallel().broadcast(tensors, "running statistics");
    this.#model.refresh();
  }

  dispose(): void {
    for (const owned of [this.#event, this.#sums, this.#host]) owned.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

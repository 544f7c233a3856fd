import type { Call, Program } from "../graph";
import type { Model } from "../layers";
import { check } from "../native";
import { Arena, align, type Device, NativeObject, outHandle, Tensor } from "../tensor";

export interface EmaOptions {
  /** How much of the average stays at a step, between 0 and 1. Default 0.9998. */
  decay?: number;
  /**
   * Steps over which it grows to that: decay (1 - exp(-step / warmup)), so that the first weights, which are random, are soon
   * forgotten (YOLOv5's ModelEMA). Default 2000; 0: the same decay throughout, as torch.optim.swa_utils.
   */
  warmup?: number;
}

/** The decay of each step, counted from 1, until it is the largest within fp32. */
export function emaDecays({ decay = 0.9998, warmup = 2000 }: EmaOptions = {}): Float32Array {
  check(decay > 0 && decay < 1, "EMA", () => `decay: expected a number between 0 and 1, got ${decay}`);
  check(Number.isSafeInteger(warmup) && warmup >= 0, "EMA", () => `warmup: expected an integer >= 0, got ${warmup}`);
  // exp(-20) is below fp32's resolution of 1.
  const table = new Float32Array(Math.max(1, 20 * warmup));
  for (let i = 0; i < table.length; i++) table[i] = warmup === 0 ? decay : decay * -Math.expm1(-(i + 1) / warmup);
  return table;
}

/**
 * The exponential moving average of a model's weights and running statistics, which often scores higher than the weights of any
 * single step (Polyak and Juditsky 1992). It follows the weights within the captured step, and stands still where that changes
 * nothing.
 */
export class Ema extends NativeObject {
  readonly device: Device;
  /** By the names of the model's parameters and buffers. */
  readonly averages: ReadonlyMap<string, Tensor>;
  /** Steps taken, int32. */
  readonly step: Tensor;
  readonly #model: Model;
  readonly #decay: Tensor;
  readonly #table: Tensor;
  readonly #memory: Arena;
  #swapped = false;

  /** The averages begin as the weights are. */
  constructor(model: Model, options: EmaOptions = {}) {
    const { device } = model;
    const table = emaDecays(options);
    const state = [...model.stateDict()].filter(([, { dtype }]) => dtype === "f32");
    using made = new DisposableStack();
    const memory = made.use(
      new Arena(
        device,
        state.reduce((sum, [, { byteLength }]) => sum + align(byteLength), 0),
      ),
    );
    const averages = new Map(
      state.map(([name, { byteLength, shape }]) => [name, Tensor.at(device, memory.take(byteLength), shape, "f32")]),
    );
    for (const [name, tensor] of state) averages.get(name)?.copyFrom(tensor);
    const addresses = (tensors: Iterable<Tensor>) => BigInt64Array.from([...tensors], ({ address }) => BigInt(address));
    const out = outHandle();
    device.native.averageCreate(
      device.handle,
      out.view,
      addresses(averages.values()),
      addresses(state.map(([, tensor]) => tensor)),
      BigInt64Array.from(state, ([, { size }]) => BigInt(size)),
      state.length,
    );
    super(out.value, "Ema", (handle) => device.native.averageDestroy(handle));
    made.defer(() => super.dispose());
    this.device = device;
    this.averages = averages;
    this.#model = model;
    this.#memory = memory;
    this.step = made.use(Tensor.zeros(device, [1], "i32"));
    this.#decay = made.use(Tensor.zeros(device, [1]));
    this.#table = made.use(Tensor.from(device, table, [table.length]));
    made.move();
  }

  /** The calls that follow an optimizer's step, which `skip`, its flag, has left undone where it is not 0. */
  stepCalls(program: Program, skip: Tensor): Call[] {
    const { native } = this.device;
    const stream = program.stream.handle;
    const [decay, step, table] = [this.#decay.address, this.step.address, this.#table.address];
    const length = this.#table.size;
    const [handle, flag] = [this.handle, skip.address];
    const call = (run: () => void): Call => ({ kind: "ema", path: "", outputs: [], run });
    return [
      call(() => void native.scheduleStep(stream, decay, step, table, length)),
      call(() => void native.averageStep(stream, handle, decay, flag)),
    ];
  }

  /** Whether the model has the averages now, and `averages` the weights of the last step. */
  get swapped(): boolean {
    return this.#swapped;
  }

  /** Exchanges the model's weights and statistics with the averages; twice is as before. */
  swap(): void {
    const { native, stream } = this.device;
    const largest = Math.max(...[...this.averages.values()].map(({ byteLength }) => byteLength));
    using scratch = new Arena(this.device, largest);
    const state = this.#model.stateDict();
    for (const [name, average] of this.averages) {
      const { address, byteLength } = state.get(name) as Tensor;
      native.copy(stream.handle, scratch.address, address, byteLength);
      native.copy(stream.handle, address, average.address, byteLength);
      native.copy(stream.handle, average.address, scratch.address, byteLength);
    }
    stream.synchronize(); // before the scratch memory goes
    this.#swapped = !this.#swapped;
    this.#model.refresh();
  }

  override dispose(): void {
    if (this.disposed) return;
    super.dispose();
    for (const tensor of [this.step, this.#decay, this.#table]) tensor.dispose();
    this.#memory.dispose();
  }
}

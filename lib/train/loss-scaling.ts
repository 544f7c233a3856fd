import type { Call, Program } from "../graph";
import { check, constants } from "../native";
import { type Device, Tensor } from "../tensor";

/** Dynamic loss scaling's settings, by the names and with the defaults of torch.amp.GradScaler, and what ends a training. */
export interface LossScalingOptions {
  /** The first steps' scale. Default 65536. */
  initial?: number;
  /** What the scale is multiplied by after `interval` good steps in a row. Default 2. */
  growth?: number;
  /** What it is multiplied by after a step that overflowed. Default 0.5. */
  backoff?: number;
  /** Default 2000. */
  interval?: number;
  /**
   * The scale does not fall below this. Default 1, the gradients of the losses themselves: a training whose gradients overflow
   * without a scale is ill. (GradScaler has no least scale.)
   */
  least?: number;
  /** Overflows in a row at the least scale that end the training with an error. Default 20. */
  patience?: number;
}

/** What a step reports of its loss scaling. */
export interface LossScaling {
  /** The scale for the next step. */
  scale: number;
  /** Whether this step changed no weight, because its gradients, or a loss, were not finite. */
  skipped: boolean;
  /** Steps that were, since training began. */
  overflows: number;
}

/**
 * Dynamic loss scaling (Micikevicius et al. 2018), as torch.amp.GradScaler: the losses' gradients are multiplied by a scale, so
 * that small ones do not vanish in fp16, and the optimizer divides it out of the parameters' gradients, which are fp32. Where
 * those are not finite the step is left out and the scale reduced; it grows after many good steps. The scale and its counters
 * live on the device and change inside the captured step, so that the host never waits for them.
 */
export class LossScaler implements Disposable {
  /** Multiplies the losses' gradients, fp32. */
  readonly scale: Tensor;
  /** Good steps in a row, overflows in all, overflows in a row at the least scale, int32. */
  readonly counters: Tensor;
  /** Not 0 where the present step overflowed, or the training has failed: the step changes no weight. int32. */
  readonly overflow: Tensor;
  readonly #device: Device;
  readonly #rule: Required<LossScalingOptions>;

  constructor(device: Device, options: LossScalingOptions = {}) {
    const rule = { initial: 65536, growth: 2, backoff: 0.5, interval: 2000, least: 1, patience: 20, ...options };
    const positive = (name: keyof typeof rule, valid: boolean, expected: string) =>
      check(valid, "lossScaling", () => `${name}: expected ${expected}, got ${rule[name]}`);
    const count = (value: number) => Number.isSafeInteger(value) && value >= 1 && value < 2 ** 31;
    positive("least", rule.least > 0 && rule.least < 2 ** 127, "a number above 0 that fp32 has");
    positive(
      "initial",
      rule.initial >= rule.least && rule.initial < 2 ** 128,
      `a number from ${rule.least} that fp32 has`,
    );
    positive("growth", rule.growth >= 1 && Number.isFinite(rule.growth), "a number >= 1");
    positive("backoff", rule.backoff > 0 && rule.backoff <= 1, "a number above 0 and up to 1");
    positive("interval", count(rule.interval), "an integer >= 1");
    positive("patience", count(rule.patience), "an integer >= 1");
    this.#device = device;
    this.#rule = rule;
    using made = new DisposableStack();
    this.scale = made.use(Tensor.from(device, [rule.initial], [1]));
    this.counters = made.use(Tensor.zeros(device, [constants.LOSS_SCALE_COUNTERS], "i32"));
    this.overflow = made.use(Tensor.zeros(device, [1], "i32"));
    made.move();
  }

  /** The least scale. */
  get least(): number {
    return this.#rule.least;
  }

  get patience(): number {
    return this.#rule.patience;
  }

  /** The call that begins a step, before its losses: it has not overflowed yet, unless training has `failed` for good. */
  beginCalls(program: Program, failed: Tensor): Call[] {
    const { native } = this.#device;
    const [stream, overflow] = [program.stream.handle, this.overflow.address];
    return [call(() => void native.copy(stream, overflow, failed.address, 4))];
  }

  /** The call that ends a step, after the optimizer's: the next scale; `failed` is raised where there is no use in going on. */
  endCalls(program: Program, failed: Tensor): Call[] {
    const { native } = this.#device;
    const { growth, backoff, interval, least, patience } = this.#rule;
    const [stream, scale, counters] = [program.stream.handle, this.scale.address, this.counters.address];
    const [flag, overflow] = [failed.address, this.overflow.address];
    const run = () =>
      void native.lossScaleStep(stream, scale, counters, flag, overflow, growth, backoff, interval, least, patience);
    return [call(run)];
  }

  /** What a finished step wrote: `scale`, `overflow` and `counters`, as they were when it ended. */
  static report(scale: number, overflow: number, counters: Int32Array): LossScaling {
    return { scale, skipped: overflow !== 0, overflows: counters[1] as number };
  }

  dispose(): void {
    for (const tensor of [this.scale, this.counters, this.overflow]) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

const call = (run: () => void): Call => ({ kind: "loss_scale", path: "", outputs: [], run });

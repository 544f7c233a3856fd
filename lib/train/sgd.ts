import type { Call, Parameter, Program } from "../graph";
import type { Model } from "../layers";
import { type Address, check, constants } from "../native";
import {
  Arena,
  align,
  type Device,
  dtypeCode,
  NativeObject,
  outHandle,
  precisionPolicy,
  type Stream,
  Tensor,
} from "../tensor";
import { LossScaler, type LossScalingOptions } from "./loss-scaling";
import { type Schedule, scheduleTable } from "./schedule";

/** Parameters with settings of their own. */
export interface ParameterGroup {
  /** Which: by name (the path in the model, "backbone.body.conv1.weight") or by more than that. */
  match: RegExp | ((name: string, parameter: Parameter) => boolean);
  /** Default: the optimizer's. */
  weightDecay?: number;
  /** Multiplies the schedule's rate. Default 1. */
  rate?: number;
}

/** Biases and the parameters of normalization, which many trainings spare the weight decay: those of one dimension. */
export const withoutDecay: ParameterGroup = { match: (_, { shape }) => shape.length <= 1, weightDecay: 0 };

export interface SGDOptions {
  /** Learning rate by iteration. */
  schedule: Schedule;
  /** Iterations that the schedule is tabulated for; later ones keep the last rate. */
  iterations: number;
  /** Default 0.9. */
  momentum?: number;
  nesterov?: boolean;
  /** Default 1e-4, for all parameters, as torch.optim.SGD applies it. */
  weightDecay?: number;
  /** Of several that match a parameter, the first holds. One that matches none is an error. */
  groups?: readonly ParameterGroup[];
  /**
   * Scales a step's gradients down to this 2-norm, of all of them as one vector, where theirs is larger
   * (torch.nn.utils.clip_grad_norm_). Default: they are used as they are.
   */
  clipNorm?: number;
  /** Clips each gradient to -clipValue to clipValue (torch.nn.utils.clip_grad_value_), after clipNorm. Default: none is. */
  clipValue?: number;
  /**
   * Dynamic loss scaling, with settings of its own or `true` for the defaults. Default: of a model in fp16. A step that is not
   * finite is left out and counted then, and no failure.
   */
  lossScaling?: boolean | LossScalingOptions;
  /** Takes the gradients' norm although nothing is clipped to it, to be shown: StepResult.gradNorm. Default false. */
  gradNorm?: boolean;
}

/**
 * Stochastic gradient descent with momentum, as torch.optim.SGD with dampening 0. The rate, the step counter and the momentum
 * live on the device, so that a step with its schedule is part of the captured program. A step whose losses, or whose
 * gradients' norm where it is taken, are not finite changes nothing and raises `failed`; or, with dynamic loss scaling, changes
 * nothing but the scale.
 */
export class SGD implements Disposable {
  readonly device: Device;
  readonly momenta: ReadonlyMap<string, Tensor>;
  /** The next step's iteration, int32. */
  readonly step: Tensor;
  /** The last step's learning rate, fp32. */
  readonly rate: Tensor;
  /**
   * Not 0 once a loss or the gradients' norm was NaN or infinite, int32; with loss scaling, once they were in so many steps that
   * there is no use in going on.
   */
  readonly failed: Tensor;
  /** 2-norm of the last step's gradients before clipping, fp32; null without `clipNorm`, `gradNorm` and loss scaling. */
  readonly gradNorm: Tensor | null;
  /** Its scale belongs into the programs that compute the gradients: their `gradientScale`. Null without loss scaling. */
  readonly scaler: LossScaler | null;
  readonly #table: Tensor;
  /** The schedule's rates, and what they are multiplied by now. */
  readonly #rates: Float32Array;
  #factor = 1;
  readonly #memory: Arena;
  /** The parameters that trained when this was made, with their settings. */
  readonly #trained: readonly TrainedParameter[];
  readonly #castDtype: number;
  /** Those of them that require gradients now, for the device. */
  #lists: TensorLists;
  readonly #momentum: number;
  readonly #nesterov: boolean;
  /** Null: gradients are used as they are. */
  readonly #clipNorm: number | null;
  readonly #clipValue: number;
  #normScratch: Tensor | null;

  constructor(model: Model, options: SGDOptions) {
    const { device } = model;
    const { momentum = 0.9, nesterov = false, weightDecay = 1e-4, groups = [], clipNorm, clipValue } = options;
    const { lossScaling = precisionPolicy(model.precision).lossScaling } = options;
    check(
      momentum >= 0 && weightDecay >= 0,
      "SGD",
      () => `expected momentum and weight decay >= 0, got ${momentum}, ${weightDecay}`,
    );
    check(
      clipNorm === undefined || (clipNorm > 0 && Number.isFinite(clipNorm)),
      "SGD",
      () => `expected clipNorm > 0, got ${clipNorm}`,
    );
    check(
      clipValue === undefined || (clipValue > 0 && Number.isFinite(clipValue)),
      "SGD",
      () => `expected clipValue > 0, got ${clipValue}`,
    );
    const { schedule, iterations } = options;
    check(
      Number.isSafeInteger(iterations) && iterations > 0,
      "SGD",
      () => `expected a positive whole number of iterations, got ${iterations}`,
    );
    // What the caller can get wrong is found before anything is allocated.
    const table = scheduleTable(schedule, iterations);
    const parameters = [...model.namedParameters()].filter(([, parameter]) => parameter.requiresGrad);
    check(parameters.length > 0, "SGD", () => "the model has no parameters to train");
    const settings = settingsOf(parameters, weightDecay, groups);
    // What is made is released again where a later part fails.
    using made = new DisposableStack();
    const memory = made.use(
      new Arena(
        device,
        parameters.reduce((sum, [, { size }]) => sum + align(size * 4), 0),
      ),
    );
    device.native.memset(device.stream.handle, memory.address, align(memory.byteLength), 0);
    const trained = parameters.map(([name, parameter], i): TrainedParameter => {
      const momentum = Tensor.at(device, memory.take(parameter.size * 4), parameter.shape, "f32");
      return { name, parameter, momentum, ...(settings[i] as ParameterSettings) };
    });
    this.device = device;
    this.momenta = new Map(trained.map(({ name, momentum }) => [name, momentum]));
    this.#memory = memory;
    this.#trained = trained;
    this.#castDtype = dtypeCode(model.precision);
    this.#lists = made.use(new TensorLists(device, trained, this.#castDtype));
    this.#momentum = momentum;
    this.#nesterov = nesterov;
    this.step = made.use(Tensor.zeros(device, [1], "i32"));
    this.rate = made.use(Tensor.zeros(device, [1]));
    this.failed = made.use(Tensor.zeros(device, [1], "i32"));
    this.#table = made.use(Tensor.from(device, table, [table.length]));
    this.#rates = table;
    this.#clipNorm = clipNorm ?? null;
    this.#clipValue = clipValue ?? 0;
    this.scaler = lossScaling ? made.use(new LossScaler(device, lossScaling === true ? {} : lossScaling)) : null;
    // With loss scaling it is the norm that tells whether all gradients are finite.
    const takesNorm = clipNorm !== undefined || options.gradNorm === true || this.scaler !== null;
    this.gradNorm = takesNorm ? made.use(Tensor.zeros(device, [1])) : null;
    this.#normScratch = takesNorm ? made.use(Tensor.empty(device, [this.#lists.normWorkspace()], "u8")) : null;
    made.move();
  }

  /**
   * Steps update those parameters from now on that require gradients now, of those that did when this was made; the others keep
   * value and momentum. Calls made before are of no use any more: programs are to be made anew.
   */
  selectTrained(): void {
    const chosen = this.#trained.filter(({ parameter }) => parameter.requiresGrad);
    check(chosen.length > 0, "SGD", () => "no parameter is left to train");
    // A workspace for all of them is large enough for some.
    const lists = new TensorLists(this.device, chosen, this.#castDtype);
    this.#lists.dispose();
    this.#lists = lists;
  }

  get disposed(): boolean {
    return this.#lists.disposed;
  }

  /** What the schedule's rates are multiplied by, from the next step on; ReduceOnPlateau's. Nothing is captured again. */
  get rateFactor(): number {
    return this.#factor;
  }

  set rateFactor(factor: number) {
    check(Number.isFinite(factor) && factor >= 0, "SGD", () => `rateFactor: expected a number >= 0, got ${factor}`);
    if (factor === this.#factor) return;
    this.#factor = factor;
    this.#table.write(this.#rates.map((rate) => rate * factor));
  }

  /** Not 0 where the present step changes no weight, int32. */
  get skip(): Tensor {
    return this.scaler?.overflow ?? this.failed;
  }

  /** The calls that set the rate and count the step: before a program's own. */
  scheduleCalls(program: Program): Call[] {
    const { native } = this.device;
    const stream = program.stream.handle;
    const [rate, step, table, length] = [this.rate.address, this.step.address, this.#table.address, this.#table.size];
    return [
      {
        kind: "schedule",
        path: "",
        outputs: [],
        run: () => void native.scheduleStep(stream, rate, step, table, length),
      },
      ...(this.scaler?.beginCalls(program, this.failed) ?? []),
    ];
  }

  /** The calls that raise `skip` where a loss is not finite: after a program's own. */
  checkCalls(program: Program, losses: readonly string[]): Call[] {
    return losses.map((name) => this.#check(program, name, program.results[name] as Tensor));
  }

  /**
   * The calls that check the gradients' norm and update the parameters: after a program's own, and the losses' checks.
   *
   * @param gradFactor multiplies the gradients first: 1 / N where they are the sums of N batches'
   */
  updateCalls(program: Program, gradFactor = 1): Call[] {
    const { native } = this.device;
    const stream = program.stream.handle;
    const [rate, skip, handle] = [this.rate.address, this.skip.address, this.#lists.handle];
    const scale = this.scaler?.scale ?? null;
    check(
      program.gradientScale === scale,
      "SGD",
      () => `the program's gradientScale is not that of the optimizer's loss scaling, which is ${scale ? "on" : "off"}`,
    );
    const at = scale?.address ?? null;
    const calls: Call[] = [];
    if (this.gradNorm) {
      const [norm, scratch] = [this.gradNorm.address, this.#normScratch!.address];
      const run = () => void native.sgdGradNorm(stream, handle, norm, at, scratch);
      calls.push({ kind: "grad_norm", path: "", outputs: [], run }, this.#check(program, "grad_norm", this.gradNorm));
    }
    const norm = this.#clipNorm === null ? null : this.gradNorm!.address;
    const rule = [this.#momentum, this.#nesterov ? 1 : 0, gradFactor, this.#clipNorm ?? 0, this.#clipValue] as const;
    const run = () => void native.sgdStep(stream, handle, rate, skip, norm, at, ...rule);
    calls.push({ kind: "sgd", path: "", outputs: [], run }, ...(this.scaler?.endCalls(program, this.failed) ?? []));
    return calls;
  }

  /** Names of the parameters that steps update now, in the order of checksums(). */
  get trainedNames(): string[] {
    return this.#trained.flatMap(({ name, parameter }) => (parameter.requiresGrad ? [name] : []));
  }

  /** Enqueues checksums of the parameters that steps update now: int64s, one for each, at this address. */
  checksums(stream: Stream, address: Address): void {
    this.device.native.sgdChecksums(stream.handle, this.#lists.handle, address);
  }

  #check(program: Program, path: string, { address }: Tensor): Call {
    const { native } = this.device;
    const [stream, flag] = [program.stream.handle, this.skip.address];
    const run = () => void native.checkFinite(stream, flag, address, 1, constants.F32);
    return { kind: "check_finite", path, outputs: [], run };
  }

  dispose(): void {
    if (this.disposed) return;
    this.#lists.dispose();
    for (const tensor of [this.step, this.rate, this.failed, this.#table, this.gradNorm, this.#normScratch]) {
      tensor?.dispose();
    }
    this.scaler?.dispose();
    this.#memory.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Weight decay, and what multiplies the rate. */
interface ParameterSettings {
  decay: number;
  rate: number;
}

interface TrainedParameter extends ParameterSettings {
  name: string;
  parameter: Parameter;
  momentum: Tensor;
}

/** The settings of each parameter. */
function settingsOf(
  parameters: [string, Parameter][],
  weightDecay: number,
  groups: readonly ParameterGroup[],
): ParameterSettings[] {
  const used = new Set<ParameterGroup>();
  const found = parameters.map(([name, parameter]) => {
    const group = groups.find(({ match }) => (match instanceof RegExp ? match.test(name) : match(name, parameter)));
    if (group) used.add(group);
    const spared = parameter.options.decay === false ? 0 : weightDecay;
    return { decay: group?.weightDecay ?? spared, rate: group?.rate ?? 1 };
  });
  for (const [i, group] of groups.entries()) {
    const { match, weightDecay: decay = 0, rate = 1 } = group;
    check(
      used.has(group),
      "SGD",
      () => `groups[${i}]: ${match instanceof RegExp ? match : "it"} matches no parameter that trains`,
    );
    check(
      decay >= 0 && rate >= 0,
      "SGD",
      () => `groups[${i}]: expected numbers >= 0, got weightDecay ${decay}, rate ${rate}`,
    );
  }
  return found;
}

/** The addresses of parameters and what belongs to them, on the device. */
class TensorLists extends NativeObject {
  readonly #device: Device;

  constructor(device: Device, trained: readonly TrainedParameter[], castDtype: number) {
    const addresses = (of: (each: TrainedParameter) => number) =>
      BigInt64Array.from(trained, (each) => BigInt(of(each)));
    const out = outHandle();
    device.native.sgdCreate(
      device.handle,
      out.view,
      addresses(({ parameter }) => parameter.tensor.address),
      addresses(({ parameter }) => parameter.grad?.address ?? 0),
      addresses(({ momentum }) => momentum.address),
      addresses(({ parameter }) => parameter.copy?.address ?? 0),
      addresses(({ parameter }) => parameter.size),
      Float32Array.from(trained, ({ decay }) => decay),
      Float32Array.from(trained, ({ rate }) => rate),
      trained.length,
      castDtype,
    );
    super(out.value, "SGD", (handle) => device.native.sgdDestroy(handle));
    this.#device = device;
  }

  /** Bytes of scratch memory for the norm of the gradients. */
  normWorkspace(): number {
    const bytes = outHandle();
    this.#device.native.sgdGradNormWorkspace(this.handle, bytes.view);
    return bytes.value;
  }
}

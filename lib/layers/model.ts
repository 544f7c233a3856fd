import { type Init, type Parameter, Program, type Spec, Value } from "../graph";
import { check, DlfsError, ErrorCode } from "../native";
import {
  type ActivationDType,
  Arena,
  align,
  checkPrecision,
  type Device,
  type DType,
  dtypeCode,
  dtypeSize,
  type Precision,
  precisionPolicy,
  Tensor,
} from "../tensor";
import { Layer } from "./layer";
import { type ModelSummary, type SummaryOptions, summarize } from "./summary";

export interface ModelOptions {
  /** How it computes; parameters, statistics and losses stay fp32. "tf32" needs a device that was opened so. Default "fp32". */
  precision?: Precision;
  /** Seed of the initial weights. Default 0. */
  seed?: number;
}

/** How many input shapes keep their programs in call(). */
const MAX_PROGRAMS = 8;

/** A layer that is run and trained as a whole: it owns the memory of all parameters below it and the programs made of it. */
export abstract class Model extends Layer {
  #device: Device | null = null;
  #precision: ActivationDType = "f32";
  #memory: { parameters: Arena; gradients: Arena; copies: Arena | null } | null = null;
  readonly #programs = new Map<string, Program>();
  #revision = 0;
  #lastCall: Program | null = null;

  get device(): Device {
    if (!this.#device)
      throw new DlfsError(ErrorCode.argument, this.constructor.name, "is on no device: call to(device) first");
    return this.#device;
  }

  /** Dtype of the activations. */
  get precision(): ActivationDType {
    return this.#precision;
  }

  /** Allocates all parameters on a device and draws their initial values. Call once. Returns the model. */
  to(device: Device, options: ModelOptions = {}): this {
    check(!this.#device, this.constructor.name, () => "is on a device already");
    const { seed = 0 } = options;
    const policy = precisionPolicy(options.precision ?? "fp32");
    checkPrecision(policy, device, this.constructor.name);
    const precision = policy.dtype;
    this.assignNames();
    const state = [...this.namedState().values()];
    const bytes = (dtype: DType) => (sum: number, p: Parameter) => sum + align(p.size * dtypeSize(dtype));
    const trained = state.filter((p) => !p.isBuffer);
    const sizes = {
      parameters: state.reduce(bytes("f32"), 0),
      gradients: trained.reduce(bytes("f32"), 0),
      copies: precision === "f32" ? null : trained.reduce(bytes(precision), 0),
    };
    this.#memory = this.#allocate(device, sizes);
    this.#device = device;
    this.#precision = precision;
    for (const [index, parameter] of state.entries()) {
      const view = (arena: Arena, dtype: DType) =>
        Tensor.at(device, arena.take(parameter.size * dtypeSize(dtype)), parameter.shape, dtype);
      parameter.tensor = view(this.#memory.parameters, "f32");
      draw(device, parameter.tensor, parameter.init, seed, index);
      if (parameter.isBuffer) continue;
      parameter.grad = view(this.#memory.gradients, "f32");
      if (this.#memory.copies) parameter.copy = view(this.#memory.copies, precision);
    }
    this.zeroGrad();
    this.refresh();
    return this;
  }

  /** Memory of these sizes in bytes; all of it or an error that says what it was for. */
  #allocate(device: Device, sizes: { parameters: number; gradients: number; copies: number | null }) {
    using made = new DisposableStack();
    try {
      const memory = {
        parameters: made.use(new Arena(device, sizes.parameters)),
        gradients: made.use(new Arena(device, sizes.gradients)),
        copies: sizes.copies === null ? null : made.use(new Arena(device, sizes.copies)),
      };
      made.move();
      return memory;
    } catch (error) {
      if (!(error instanceof DlfsError) || error.code !== ErrorCode.memory) throw error;
      made.dispose();
      const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
      const asked = Object.entries(sizes).flatMap(([name, size]) =>
        size === null ? [] : [`${mib(size)} for ${name}`],
      );
      const { free, total } = device.memory();
      throw new DlfsError(
        ErrorCode.memory,
        this.constructor.name,
        `out of memory: asked for ${asked.join(", ")}; ${mib(free)} of ${mib(total)} are free on ${device.info.name}`,
        { cause: error },
      );
    }
  }

  /** Weights have been changed from outside: brings the low-precision copies and what programs hold of them up to date. */
  refresh(): void {
    const { native, stream } = this.device;
    for (const { tensor, copy } of this.parameters()) {
      if (copy)
        native.cast(stream.handle, copy.address, tensor.address, tensor.size, dtypeCode(copy.dtype), dtypeCode("f32"));
    }
    for (const program of this.#programs.values()) program.refresh();
    ++this.#revision;
  }

  /** Grows with each refresh(): who holds a program of this model compares it, to refresh that program too. */
  get revision(): number {
    return this.#revision;
  }

  /** As Layer.train(); what inference holds of weights and running statistics is computed again from what they are now. */
  override train(mode = true): this {
    for (const program of this.#programs.values()) program.refresh();
    return super.train(mode);
  }

  /**
   * Layers with their output shapes, parameters, FLOPs and memory for inputs of given shapes, as data and as text
   * (`console.log(String(model.summary([[1, 640, 640, 3]])))`). Works before to(): forward is traced, not run. In training
   * mode the layers are those of training.
   */
  summary(inputShapes: readonly (readonly number[])[], options: SummaryOptions = {}): ModelSummary {
    return summarize(this, inputShapes, { precision: this.#precision, ...options });
  }

  /** Sets all gradients to 0. */
  zeroGrad(): void {
    const arena = this.#memory?.gradients;
    if (arena) this.device.native.memset(this.device.stream.handle, arena.address, align(arena.byteLength), 0);
  }

  /** Parameters and buffers by path, those that are not persistent too: the tensors themselves, not copies. */
  stateDict(): Map<string, Tensor> {
    return new Map([...this.namedState()].map(([name, parameter]) => [name, parameter.tensor]));
  }

  /**
   * Replaces parameters and buffers, or none where one does not fit. Every name must be present with its shape, and no
   * other, unless `strict` is false; buffers that are not persistent may be missing.
   */
  loadStateDict(values: ReadonlyMap<string, ArrayLike<number>>, { strict = true } = {}): void {
    const state = this.namedState();
    const missing = [...state].flatMap(([name, { isPersistent }]) => (isPersistent && !values.has(name) ? [name] : []));
    const unexpected = [...values.keys()].filter((name) => !state.has(name));
    check(
      !strict || (missing.length === 0 && unexpected.length === 0),
      `${this.constructor.name}.loadStateDict`,
      () => `missing: ${missing.join(", ") || "none"}; unexpected: ${unexpected.join(", ") || "none"}`,
    );
    const given = [...state].flatMap(([name, parameter]) => {
      const found = values.get(name);
      return found ? [{ name, parameter, found }] : [];
    });
    for (const { name, parameter, found } of given) {
      check(
        found.length === parameter.size,
        name,
        () => `expected ${parameter.size} values for (${parameter.shape.join(", ")}), got ${found.length}`,
        ErrorCode.shape,
      );
    }
    for (const { parameter, found } of given) parameter.tensor.write(found);
    this.refresh();
  }

  /**
   * Runs forward() on tensors: the first call with new shapes traces it into a program, later ones run that. Results are
   * views that the next call with these shapes overwrites. In training mode, backward() can follow.
   */
  call(...inputs: Tensor[]): Tensor | Tensor[] {
    const key = `${this.#modes()}:${inputs.map((x) => `${x.dtype}(${x.shape.join()})`).join()}`;
    let program = this.#programs.get(key);
    if (program) this.#programs.delete(key);
    else program = this.#build(inputs);
    this.#programs.set(key, program);
    for (const [oldest, unused] of this.#programs) {
      if (this.#programs.size <= MAX_PROGRAMS) break;
      this.#programs.delete(oldest);
      unused.dispose();
    }
    for (const [i, tensor] of inputs.entries()) program.inputs[`${i}`]!.copyFrom(tensor, program.stream);
    program.runCalls(0, program.backwardStart);
    this.#lastCall = this.training ? program : null;
    const results = resultsOf(program);
    return results.length === 1 ? (results[0] as Tensor) : results;
  }

  /**
   * Back-propagates through the last call(): adds to every parameter's gradient, and returns the gradients of the inputs. Needs
   * a gradient for each result, of its shape (torch.autograd.backward).
   */
  backward(...gradients: Tensor[]): Tensor[] {
    const program = this.#lastCall;
    if (!program) {
      throw new DlfsError(
        ErrorCode.argument,
        this.constructor.name,
        "backward() needs a call() in training mode before it",
      );
    }
    const expected = resultsOf(program).length;
    check(gradients.length === expected, "backward", () => `expected ${expected} gradients, got ${gradients.length}`);
    for (const [i, gradient] of gradients.entries()) program.inputs[`grad.${i}`]!.copyFrom(gradient, program.stream);
    program.runCalls(program.backwardStart);
    return Object.keys(program.results)
      .filter((name) => name.startsWith("grad."))
      .map((name) => program.results[name] as Tensor);
  }

  /** What a traced program depends on besides its inputs: which layers train, and which parameters. */
  #modes(): string {
    const layers = [...this.namedLayers()].map(([, layer]) => (layer.training ? "t" : "e"));
    const parameters = [...this.namedState().values()].map((parameter) => (parameter.requiresGrad ? "1" : "0"));
    return `${layers.join("")}${parameters.join("")}`;
  }

  #build(inputs: Tensor[]): Program {
    const specs: Record<string, Spec> = Object.fromEntries(
      inputs.map((x, i) => [`${i}`, { shape: x.shape, dtype: x.dtype }]),
    );
    const forward = (values: Record<string, Value>) => {
      const out = (this.forward as (...x: Value[]) => unknown)(...inputs.map((_, i) => values[`${i}`]!));
      const results = out instanceof Value ? [out] : Object.values(out as Record<string, Value>);
      return Object.fromEntries(results.map((value, i) => [`${i}`, value]));
    };
    const lanes = 1; // the calls are never captured
    if (!this.training) return new Program(this.device, specs, forward, { lanes });
    const floating = inputs.flatMap((x, i) => (["f32", "bf16", "f16"].includes(x.dtype) ? [`${i}`] : []));
    return new Program(this.device, specs, forward, {
      training: true,
      accumulate: true,
      inputGradients: floating,
      seeds: "inputs",
      lanes,
    });
  }

  /** Releases the programs and the memory of all parameters. */
  dispose(): void {
    for (const program of this.#programs.values()) program.dispose();
    this.#programs.clear();
    for (const parameter of this.namedState().values()) {
      parameter.tensor = null;
      parameter.grad = null;
      parameter.copy = null;
    }
    this.#memory?.parameters.dispose();
    this.#memory?.gradients.dispose();
    this.#memory?.copies?.dispose();
    this.#memory = null;
    this.#device = null;
    this.#lastCall = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function resultsOf(program: Program): Tensor[] {
  return Object.entries(program.results)
    .filter(([name]) => !name.startsWith("grad."))
    .map(([, tensor]) => tensor);
}

function draw(device: Device, tensor: Tensor, init: Init, seed: number, offset: number): void {
  const { native, stream } = device;
  switch (init.kind) {
    case "constant":
      native.fill(stream.handle, tensor.address, tensor.size, dtypeCode("f32"), init.value);
      break;
    case "uniform":
      native.initUniform(stream.handle, tensor.address, tensor.size, seed, offset, init.low, init.high);
      break;
    case "normal":
      native.initNormal(stream.handle, tensor.address, tensor.size, seed, offset, init.mean, init.std);
      break;
  }
}

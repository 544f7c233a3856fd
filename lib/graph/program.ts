import { type Address, check, DlfsError, ErrorCode } from "../native";
import {
  Arena,
  type Device,
  dtypeCode,
  Event,
  elementCount,
  outHandle,
  PinnedBuffer,
  type Stream,
  Tensor,
} from "../tensor";
import { unwatchLeak, watchLeak } from "../tensor/leaks";
import { fuse } from "./fusion";
import { differentiate, type LeafGradients } from "./gradients";
import { byteSize, type MemoryPlan, planMemory, storageOf } from "./memory-plan";
import type { Emitter, Gradient, Node, Preparation } from "./node";
import type { Parameter } from "./parameter";
import { type Graph, trace } from "./trace";
import { withoutUnused } from "./unused";
import type { Spec, Value } from "./value";

/** One native call of a program. */
export interface Call {
  /** Operation kind, "conv2d_backward_weight". */
  readonly kind: string;
  /** Path of the layer, "backbone.conv1". */
  readonly path: string;
  readonly run: () => void;
  /** Values the call's node computes (debugging). */
  readonly outputs: readonly Value[];
}

/** Adds calls around a program's own: schedules and optimizers. Returns calls that run on the program's stream. */
export type CallSource = (program: Program) => Call[];

export interface ProgramOptions {
  /** Training: no folding of weights; differentiate `seeds`. */
  training?: boolean;
  /**
   * What to differentiate: names of results with the gradient that flows into them, a constant for a scalar loss, or "input"
   * for a further input `grad.<name>` of the program. "inputs": all results, each with such an input. "sum": the sum of all
   * results, which are scalar losses.
   */
  seeds?: Record<string, number | "input"> | "inputs" | "sum";
  /** Inputs whose gradients become results named `grad.<name>`. */
  inputGradients?: string[];
  /** Adds to the parameters' gradients instead of replacing them. */
  accumulate?: boolean;
  /** Calls before and after the program's own, in each run. */
  before?: CallSource;
  after?: CallSource;
  /** Every value keeps memory of its own, readable after a run with `readValue`. Default: DLFS_DEBUG=1. */
  keepAll?: boolean;
  /** Merge operations (default true). */
  fuse?: boolean;
  /** Default: the device's own stream. */
  stream?: Stream;
}

/** One line of `profile()`. */
export interface CallProfile {
  kind: string;
  path: string;
  milliseconds: number;
  /** False when a computed floating-point value holds NaN or infinity. */
  finite: boolean;
}

/**
 * A traced computation for one set of input shapes, built once and run many times: a list of native calls over fixed
 * addresses. The first run issues them one by one; later runs launch them as one captured graph where the device can.
 */
export class Program implements Disposable {
  readonly stream: Stream;
  readonly calls: readonly Call[];
  /** Index of the first call of the backward pass (calls.length without one). */
  readonly backwardStart: number;
  readonly memory: MemoryPlan;
  /** Fixed addresses to write inputs to. */
  readonly inputs: Record<string, Tensor> = {};
  readonly results: Record<string, Tensor> = {};
  readonly #arena: Arena;
  readonly #hoisted: Call[];
  readonly #bound = new Map<Value, Address>();
  #stale = true;
  #runs = 0;
  #graph = 0;
  #disposed = false;

  /**
   * Traces `forward`, fuses, differentiates, plans memory and records the calls.
   *
   * @param specs shapes and dtypes of the inputs by name
   * @param forward from symbolic inputs to named symbolic results
   */
  constructor(
    readonly device: Device,
    specs: Record<string, Spec>,
    forward: (inputs: Record<string, Value>) => Record<string, Value>,
    options: ProgramOptions = {},
  ) {
    this.stream = options.stream ?? device.stream;
    const { graph, result } = trace(specs, forward);
    const names = Object.keys(result);
    const values = Object.values(result);
    if (options.fuse ?? true) fuse(graph, device, values, options.training ?? false);
    const results = Object.fromEntries(names.map((name, i) => [name, values[i] as Value]));

    const forwardNodes = new Set(graph.nodes);
    const gradients = this.#differentiate(graph, results, options);
    const nodes = withoutUnused(graph.nodes, [...Object.values(results), ...gradients.parameters.values()]);
    const exports = this.#bindGradients(gradients.parameters, results, options);
    const isHoisted = hoistable(nodes);
    const main = nodes.filter((node) => !isHoisted.has(node));

    const prepared = new Map<Node, Preparation>();
    for (const node of nodes) if (node.op.prepare) prepared.set(node, node.op.prepare(device, node));
    this.memory = planMemory({
      nodes: main,
      permanent: [...graph.inputs.values(), ...[...isHoisted].flatMap((node) => node.outputs)],
      results: [...Object.values(results), ...exports.map(({ value }) => value)],
      bound: new Set(this.#bound.keys()),
      workspaces: new Map([...prepared].map(([node, { workspace }]) => [node, isHoisted.has(node) ? 0 : workspace])),
      keepAll: options.keepAll ?? process.env.DLFS_DEBUG === "1",
    });
    this.#arena = new Arena(device, this.memory.bytes);
    watchLeak(this, "Program");

    try {
      for (const [name, value] of graph.inputs) this.inputs[name] = this.#tensor(value);
      for (const [name, value] of Object.entries(results)) this.results[name] = this.#tensor(value);
      this.#hoisted = [...isHoisted].flatMap((node) => this.#record(node, prepared.get(node)));
      const before = options.before?.(this) ?? [];
      const forwardCalls = main
        .filter((node) => forwardNodes.has(node))
        .flatMap((node) => this.#record(node, prepared.get(node)));
      const backwardCalls = main
        .filter((node) => !forwardNodes.has(node))
        .flatMap((node) => this.#record(node, prepared.get(node)));
      const exportCalls = exports.map(({ value, target, accumulate }) => this.#export(value, target, accumulate));
      this.backwardStart = before.length + forwardCalls.length;
      this.calls = [...before, ...forwardCalls, ...backwardCalls, ...exportCalls, ...(options.after?.(this) ?? [])];
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Bytes of the arena: activations, inputs, results, workspaces. */
  get arenaBytes(): number {
    return this.memory.bytes;
  }

  /** Weights have changed: what was computed from them ahead of the runs is computed again before the next. */
  refresh(): void {
    this.#stale = true;
  }

  /** Enqueues the whole program on its stream and returns. */
  run(): void {
    this.#prologue();
    if (this.#graph !== 0) {
      this.device.native.graphLaunch(this.stream.handle, this.#graph);
      return;
    }
    // The first run goes call by call, so that libraries load their kernels outside of capture; it is a run like any other.
    if (this.#runs++ === 0 || !this.device.supports("graph")) this.runCalls();
    else {
      this.capture();
      this.device.native.graphLaunch(this.stream.handle, this.#graph);
    }
  }

  /** Enqueues the calls one by one, without a graph. */
  runCalls(from = 0, to = this.calls.length): void {
    this.#prologue();
    for (let i = from; i < to; ++i) this.#issue(this.calls[i] as Call);
  }

  /** Captures the calls as a graph; run() does this on its second run. */
  capture(): void {
    if (this.#graph !== 0) return;
    this.#prologue();
    const { native } = this.device;
    const out = outHandle();
    native.graphBegin(this.stream.handle);
    let failure: unknown = null;
    try {
      for (const call of this.calls) this.#issue(call);
    } catch (error) {
      failure = error;
    }
    try {
      native.graphEnd(this.stream.handle, out.view);
    } catch (error) {
      throw failure ?? error;
    }
    if (failure) {
      native.graphDestroy(out.value);
      throw failure;
    }
    this.#graph = out.value;
  }

  get captured(): boolean {
    return this.#graph !== 0;
  }

  /** Runs call by call, timing each and checking what it computed: a debugging aid, it waits after every call. */
  profile(): CallProfile[] {
    this.#prologue();
    const { native } = this.device;
    using start = new Event(this.device);
    using end = new Event(this.device);
    using flag = Tensor.zeros(this.device, [1], "i32");
    using host = new PinnedBuffer(this.device, 4);
    return this.calls.map((call) => {
      start.record(this.stream);
      this.#issue(call);
      end.record(this.stream);
      native.memset(this.stream.handle, flag.address, 4, 0);
      for (const value of call.outputs) {
        const address = this.#addressOrNull(value);
        if (address === null || !["f32", "bf16", "f16"].includes(value.dtype)) continue;
        native.checkFinite(
          this.stream.handle,
          flag.address,
          address,
          elementCount(value.shape),
          dtypeCode(value.dtype),
        );
      }
      native.copyToHost(this.stream.handle, host.address, flag.address, 4);
      this.stream.synchronize();
      return { kind: call.kind, path: call.path, milliseconds: end.since(start), finite: host.int32()[0] === 0 };
    });
  }

  /** The numbers that call `index` computed in the last run; the program must have been built with `keepAll`. */
  readValue(index: number, output = 0): Float32Array | Int32Array | Uint8Array | Float64Array {
    return this.valueTensor(index, output).read(this.stream);
  }

  /** The memory that call `index` computes an output in; without `keepAll`, later calls may use it for others. */
  valueTensor(index: number, output = 0): Tensor {
    const value = this.calls[index]?.outputs[output];
    if (!value) throw new DlfsError(ErrorCode.argument, "Program", `call ${index} has no output ${output}`);
    return this.#tensor(value);
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    unwatchLeak(this);
    if (this.#graph !== 0) this.device.native.graphDestroy(this.#graph);
    this.#arena.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #prologue(): void {
    if (!this.#stale) return;
    this.#stale = false;
    for (const call of this.#hoisted) this.#issue(call);
  }

  #issue(call: Call): void {
    try {
      call.run();
    } catch (error) {
      if (error instanceof DlfsError && call.path) {
        throw new DlfsError(error.code, call.path, `${call.kind}: ${error.message}`, { cause: error });
      }
      throw error;
    }
  }

  #differentiate(graph: Graph, results: Record<string, Value>, options: ProgramOptions): LeafGradients {
    const wantedSeeds =
      options.seeds === "inputs" || options.seeds === "sum"
        ? Object.fromEntries(Object.keys(results).map((name) => [name, options.seeds === "sum" ? 1 : "input"]))
        : options.seeds;
    const seeds = Object.entries(wantedSeeds ?? {}).map(([name, seed]): [Value, Gradient] => {
      const value = results[name];
      check(value !== undefined, "Program", () => `no result named "${name}" to differentiate`);
      if (seed === "input") return [value, graph.input(`grad.${name}`, value)];
      check(
        elementCount(value.shape) === 1,
        "Program",
        () => `expected a scalar loss for "${name}", got (${value.shape.join(", ")})`,
        ErrorCode.shape,
      );
      return [value, seed as number];
    });
    if (seeds.length === 0) return { parameters: new Map(), inputs: new Map() };
    const wanted = (options.inputGradients ?? []).map((name) => {
      const value = graph.inputs.get(name);
      check(value !== undefined, "Program", () => `no input named "${name}"`);
      return value;
    });
    const gradients = differentiate(graph, seeds, wanted);
    for (const [name, value] of gradients.inputs) results[`grad.${name}`] = value;
    return gradients;
  }

  /** Lets gradients be computed right into the parameters' `grad` where possible; returns the ones to copy or add there. */
  #bindGradients(gradients: Map<Parameter, Value>, results: Record<string, Value>, options: ProgramOptions) {
    const taken = new Set(Object.values(results).map(storageOf));
    const exports: { value: Value; target: Tensor; accumulate: boolean }[] = [];
    for (const [parameter, value] of gradients) {
      const target = parameter.grad;
      if (!target)
        throw new DlfsError(ErrorCode.argument, parameter.name, "has no gradient memory: call model.to(device) first");
      const root = storageOf(value);
      if (!options.accumulate && root.node && !taken.has(root)) {
        taken.add(root);
        this.#bound.set(root, target.address);
      } else {
        exports.push({ value, target, accumulate: options.accumulate ?? false });
      }
    }
    return exports;
  }

  #export(value: Value, target: Tensor, accumulate: boolean): Call {
    const { native } = this.device;
    const source = this.#address(value);
    const run = accumulate
      ? () =>
          void native.add(this.stream.handle, target.address, target.address, source, target.size, dtypeCode("f32"), 0)
      : () => void native.copy(this.stream.handle, target.address, source, target.byteLength);
    return { kind: accumulate ? "accumulate_gradient" : "copy_gradient", path: "", run, outputs: [] };
  }

  #addressOrNull(value: Value): Address | null {
    const root = storageOf(value);
    const bound = this.#bound.get(root);
    if (bound !== undefined) return bound;
    if (root.leaf && root.leaf.leaf !== "input") return root.leaf.parameter.inDType(root.dtype).address;
    const offset = this.memory.offsetOf(root);
    return offset === null ? null : this.#arena.at(offset);
  }

  #address(value: Value): Address {
    const address = this.#addressOrNull(value);
    if (address === null) throw new DlfsError(ErrorCode.internal, "Program", `value ${value.id} has no memory`);
    return address;
  }

  #tensor(value: Value): Tensor {
    return Tensor.at(this.device, this.#address(value), value.shape, value.dtype);
  }

  #record(node: Node, preparation: Preparation | undefined): Call[] {
    const calls: Call[] = [];
    const offset = this.memory.workspaceOf(node);
    const emitter: Emitter = {
      device: this.device,
      native: this.device.native,
      stream: this.stream.handle,
      workspace: offset === null ? null : this.#arena.at(offset),
      state: preparation?.state,
      address: (value) => this.#address(value),
      optional: (value) => (value ? this.#addressOrNull(value) : null),
      call: (run) => calls.push({ kind: node.op.kind, path: node.path, run: () => void run(), outputs: node.outputs }),
    };
    node.op.emit(emitter, node);
    return calls;
  }
}

/** Nodes that depend on parameters and constants alone and may run ahead. */
function hoistable(nodes: readonly Node[]): Set<Node> {
  const hoisted = new Set<Node>();
  for (const node of nodes) {
    const ready = node.inputs.every((input) => (input.node ? hoisted.has(input.node) : input.leaf?.leaf !== "input"));
    if (node.op.hoist && ready && byteSize(node.outputs[0] as Value) > 0) hoisted.add(node);
  }
  return hoisted;
}

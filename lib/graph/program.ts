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
import { type GradientExport, type Lowering, type LoweringOptions, lower } from "./lowering";
import { type MemoryPlan, storageOf } from "./memory-plan";
import type { Emitter, Node } from "./node";
import { outOfMemory } from "./out-of-memory";
import type { Parameter } from "./parameter";
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

/** A call of a program with its place in a captured graph. */
export interface PlacedCall extends Call {
  /** Which of the graph's streams it runs on; 0 is the program's own. */
  readonly lane: number;
  /** Calls of other lanes that must have finished before. */
  readonly after: readonly PlacedCall[];
}

/** Adds calls around a program's own: schedules and optimizers. Returns calls that run on the program's stream. */
export type CallSource = (program: Program) => Call[];

/** A call that wants some parameters' gradients complete, and runs beside what the backward pass still computes. */
export interface GradientCall {
  readonly kind: string;
  /** What it is for, in errors and profiles. */
  readonly path: string;
  readonly parameters: readonly Parameter[];
  /** Enqueues it on a stream that has come to where all of these gradients are complete. */
  readonly run: (stream: Stream) => void;
}

export interface ProgramOptions extends LoweringOptions {
  /** Calls before and after the program's own, in each run. */
  before?: CallSource;
  after?: CallSource;
  /** Calls on gradients as they become complete, run in this order; the calls of `after` wait for their streams alone. */
  onGradients?: readonly GradientCall[];
  /** Default: the device's own stream. */
  stream?: Stream;
  /**
   * A program whose memory is used, where it is large enough: the same computation for another size. The two run in turns, on one
   * stream; what one computed is gone once the other runs.
   */
  sharing?: Program;
}

/** Memory of one or several programs, and the one that it has the hoisted values of. */
interface SharedMemory {
  readonly arena: Arena;
  owner: Program | null;
  users: number;
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
  readonly calls: readonly PlacedCall[];
  /** Index of the first call of the backward pass (calls.length without one). */
  readonly backwardStart: number;
  readonly memory: MemoryPlan;
  /** What multiplies the gradients; see LoweringOptions. */
  readonly gradientScale: Tensor | null;
  /** How many streams a captured graph is spread over. */
  readonly lanes: number;
  /** Fixed addresses to write inputs to. */
  readonly inputs: Record<string, Tensor> = {};
  readonly results: Record<string, Tensor> = {};
  readonly #shared: SharedMemory;
  readonly #hoisted: Call[];
  /** Index of the first call of a node, and of the first call after them. */
  readonly #nodeCalls: readonly [number, number];
  readonly #bound: ReadonlyMap<Value, Address>;
  /** The stream that calls are issued to. */
  #target: Stream;
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
    this.#target = this.stream;
    const lowering = lower(device, specs, forward, options);
    this.#bound = lowering.bound;
    this.memory = lowering.memory;
    this.gradientScale = options.gradientScale ?? null;
    const onGradients = options.onGradients ?? [];
    this.lanes = lowering.lanes.lanes + (onGradients.length > 0 ? 1 : 0);
    const { sharing } = options;
    check(
      sharing === undefined || sharing.stream === this.stream,
      "Program",
      () => "programs that share memory must run on one stream",
    );
    if (sharing && sharing.#shared.arena.byteLength >= this.memory.bytes) {
      this.#shared = sharing.#shared;
    } else {
      try {
        this.#shared = { arena: new Arena(device, this.memory.bytes), owner: null, users: 0 };
      } catch (error) {
        throw outOfMemory(error, { device, specs, forward, options, lowering });
      }
    }
    this.#shared.users++;
    watchLeak(this, "Program");

    try {
      const { inputs, results, nodes, isForward, exports } = lowering;
      for (const [name, value] of inputs) this.inputs[name] = this.#tensor(value);
      for (const [name, value] of Object.entries(results)) this.results[name] = this.#tensor(value);
      this.#hoisted = lowering.hoisted.flatMap((node) => this.#record(node, lowering));
      const before = options.before?.(this) ?? [];
      const recorded = this.#recordLanes(lowering);
      const forwardCalls = recorded.filter((_, i) => isForward(nodes[i]!)).flat();
      const [beside, behind] = this.#placeOnGradients(onGradients, lowering, recorded);
      const backwardCalls = recorded.flatMap((calls, i) => [
        ...(isForward(nodes[i]!) ? [] : calls),
        ...(beside.get(i) ?? []),
      ]);
      const exportCalls = exports.map((gradient) => this.#export(gradient));
      this.backwardStart = before.length + forwardCalls.length;
      this.#nodeCalls = [before.length, this.backwardStart + backwardCalls.length];
      const last = [...exportCalls, ...behind, ...(options.after?.(this) ?? [])];
      this.calls = [...before.map(placed), ...forwardCalls, ...backwardCalls, ...last.map(placed)];
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
    const streams = [this.stream];
    while (streams.length < this.lanes) streams.push(this.device.lane(streams.length));
    native.graphBegin(this.stream.handle);
    let failure: unknown = null;
    try {
      this.#issueToLanes(streams);
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
    if (--this.#shared.users === 0) this.#shared.arena.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #prologue(): void {
    if (!this.#stale && this.#shared.owner === this) return;
    this.#stale = false;
    this.#shared.owner = this;
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

  /**
   * Issues all calls, each to its lane's stream: the lanes fork from the program's stream before the first node's call, wait for
   * each other's calls by events, and are joined after the last.
   */
  #issueToLanes(streams: readonly Stream[]): void {
    const events: Event[] = [];
    const mark = (stream: Stream): Event => {
      const event = new Event(this.device);
      events.push(event);
      event.record(stream);
      return event;
    };
    const others = streams.slice(1);
    const [first, end] = this.#nodeCalls;
    const awaited = new Set(this.calls.flatMap(({ after }) => after));
    const passed = new Map<PlacedCall, Event>();
    try {
      for (const call of this.calls.slice(0, first)) this.#issue(call);
      const fork = mark(this.stream);
      for (const stream of others) stream.waitFor(fork);
      for (const call of this.calls.slice(first, end)) {
        this.#target = streams[call.lane]!;
        for (const earlier of call.after) this.#target.waitFor(passed.get(earlier)!);
        this.#issue(call);
        if (awaited.has(call)) passed.set(call, mark(this.#target));
      }
      this.#target = this.stream;
      for (const stream of others) this.stream.waitFor(mark(stream));
      for (const call of this.calls.slice(end)) this.#issue(call);
    } finally {
      this.#target = this.stream;
      for (const event of events) event.dispose();
    }
  }

  #export({ value, target, accumulate }: GradientExport): Call {
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
    return offset === null ? null : this.#shared.arena.at(offset);
  }

  #address(value: Value): Address {
    const address = this.#addressOrNull(value);
    if (address === null) throw new DlfsError(ErrorCode.internal, "Program", `value ${value.id} has no memory`);
    return address;
  }

  #tensor(value: Value): Tensor {
    return Tensor.at(this.device, this.#address(value), value.shape, value.dtype);
  }

  /** The calls of each node of the run, with their lanes and what they wait for. */
  #recordLanes(lowering: Lowering): PlacedCall[][] {
    const { nodes, lanes } = lowering;
    const recorded: PlacedCall[][] = [];
    for (const [index, node] of nodes.entries()) {
      const calls = this.#record(node, lowering);
      // What others wait for needs a place in its stream, even if it does nothing.
      if (calls.length === 0 && lanes.lanes > 1 && !node.op.alias)
        calls.push({ kind: node.op.kind, path: node.path, run: () => {}, outputs: [] });
      const after = lanes.waits[index]!.map((earlier) => recorded[earlier]!.at(-1)!);
      recorded.push(calls.map((call, i) => ({ ...call, lane: lanes.laneOf[index]!, after: i === 0 ? after : [] })));
    }
    return recorded;
  }

  /**
   * Where calls on gradients go: behind which node's calls, on a lane of their own so that no other waits for them, or, where a
   * gradient is exported, behind the exports. They stay in order, which ranks that reduce together must agree on.
   */
  #placeOnGradients(
    calls: readonly GradientCall[],
    { nodes, completedBy, lanes }: Lowering,
    recorded: readonly PlacedCall[][],
  ): [beside: Map<number, PlacedCall[]>, behind: Call[]] {
    const indexOf = new Map(nodes.map((node, index) => [node, index]));
    const beside = new Map<number, PlacedCall[]>();
    const behind: Call[] = [];
    let position = 0;
    for (const { kind, path, parameters, run } of calls) {
      const call: Call = { kind, path, outputs: [], run: () => run(this.#target) };
      const ready = parameters.map((parameter) => indexOf.get(completedBy.get(parameter)!));
      if (behind.length > 0 || ready.includes(undefined)) {
        behind.push(call);
        continue;
      }
      // Of each lane the last one is waited for, which the others come before.
      const last = new Map<number, number>();
      for (const index of ready as number[]) {
        const lane = lanes.laneOf[index]!;
        last.set(lane, Math.max(index, last.get(lane) ?? 0));
      }
      const after = [...last.values()].flatMap((index) => recorded[index]!.at(-1) ?? []);
      position = Math.max(position, ...(ready as number[]));
      beside.set(position, [...(beside.get(position) ?? []), { ...call, lane: lanes.lanes, after }]);
    }
    return [beside, behind];
  }

  #record(node: Node, { prepared }: Lowering): Call[] {
    const calls: Call[] = [];
    let emitting = true;
    const target = (): number => {
      check(!emitting, node.op.kind, () => "read the emitter's stream inside call(): calls may run on several streams");
      return this.#target.handle;
    };
    const offset = this.memory.workspaceOf(node);
    const emitter: Emitter = {
      device: this.device,
      native: this.device.native,
      get stream() {
        return target();
      },
      workspace: offset === null ? null : this.#shared.arena.at(offset),
      state: prepared.get(node)?.state,
      address: (value) => this.#address(value),
      optional: (value) => (value ? this.#addressOrNull(value) : null),
      call: (run) => calls.push({ kind: node.op.kind, path: node.path, run: () => void run(), outputs: node.outputs }),
    };
    node.op.emit(emitter, node);
    emitting = false;
    return calls;
  }
}

function placed(call: Call): PlacedCall {
  return { ...call, lane: 0, after: [] };
}

import { type Address, check, DlfsError, ErrorCode } from "../native";
import { type Device, elementCount, type Tensor } from "../tensor";
import { fuse } from "./fusion";
import { padChannels } from "./fusion-padding";
import { fuseGradients } from "./gradient-fusion";
import { differentiate, type LeafGradients } from "./gradients";
import { assignLanes, type LanePlan, oneLane } from "./lanes";
import { byteSize, type MemoryPlan, type MemoryRequest, neededBytes, planMemory, storageOf } from "./memory-plan";
import { fuseMoments } from "./moments";
import type { Gradient, Node, Preparation } from "./node";
import { Parameter } from "./parameter";
import { Recomputation, type RecomputeOption } from "./recompute";
import { type Graph, trace } from "./trace";
import { withoutUnused } from "./unused";
import type { Spec, Value } from "./value";

/** On an H100, fewer left some of the gain and more gave none. */
const DEFAULT_LANES = 4;

export interface LoweringOptions {
  /** Parameters that require gradients change between runs; differentiate `seeds`. */
  training?: boolean;
  /**
   * What to differentiate: names of results with the gradient that flows into them, a constant for a scalar loss, or "input"
   * for a further input `grad.<name>` of the program. "inputs": all results, each with such an input. "sum": the sum of all
   * results, which are scalar losses.
   */
  seeds?: Record<string, number | "input"> | "inputs" | "sum";
  /** Inputs whose gradients become results named `grad.<name>`. */
  inputGradients?: string[];
  /** An fp32 scalar on the device that multiplies the gradients of all constant seeds: the scale of dynamic loss scaling. */
  gradientScale?: Tensor;
  /** Adds to the parameters' gradients instead of replacing them. */
  accumulate?: boolean;
  /** Every value keeps memory of its own, readable after a run with `readValue`. Default: DLFS_DEBUG=1. */
  keepAll?: boolean;
  /** Merge operations (default true). */
  fuse?: boolean;
  /** Changes the fused graph before it is differentiated and planned (quantizeGraph); results may be replaced in place. */
  rewrite?: (graph: Graph, results: Value[]) => void;
  /**
   * How many streams a captured graph is spread over, from 1 to 8. Calls outside a graph run one after the other whatever this
   * is, and so do all with `keepAll`. Default 4 where the device runs streams at the same time ("graph.lanes"), else 1.
   */
  lanes?: number;
  /**
   * What is computed in the forward pass and again right before the backward pass needs it, instead of being kept: `true`, all
   * that is cheap; a number, as much as is needed for an arena of at most so many bytes, the cheapest for its size first. The
   * results keep their bytes. Default false.
   */
  recompute?: RecomputeOption;
}

/** A parameter's gradient that is copied or added to the parameter's own memory after the run. */
export interface GradientExport {
  readonly value: Value;
  readonly target: Tensor;
  readonly accumulate: boolean;
}

/** A traced computation, ready to become native calls. */
export interface Lowering {
  readonly inputs: ReadonlyMap<string, Value>;
  readonly results: Readonly<Record<string, Value>>;
  /** Computed when weights have changed, before the next run. */
  readonly hoisted: readonly Node[];
  /** Computed in each run: the forward pass, then the backward pass. */
  readonly nodes: readonly Node[];
  isForward(node: Node): boolean;
  readonly prepared: ReadonlyMap<Node, Preparation>;
  /** Bytes of scratch memory of the nodes, before any of them were repeated. */
  readonly workspaces: readonly number[];
  /** Gradients computed right where the parameter keeps them. */
  readonly bound: ReadonlyMap<Value, Address>;
  readonly exports: readonly GradientExport[];
  /** The node that completes a parameter's gradient in its own memory; of those that are exported there is none. */
  readonly completedBy: ReadonlyMap<Parameter, Node>;
  readonly lanes: LanePlan;
  readonly memory: MemoryPlan;
}

/**
 * Traces `forward`, fuses, differentiates, spreads the nodes over lanes and plans memory. Allocates none.
 *
 * @param assumedWorkspaces as `Lowering.workspaces`: used instead of preparing the nodes, for an estimate
 */
export function lower(
  device: Device,
  specs: Record<string, Spec>,
  forward: (inputs: Record<string, Value>) => Record<string, Value>,
  options: LoweringOptions = {},
  assumedWorkspaces?: readonly number[],
): Lowering {
  const keepAll = options.keepAll ?? process.env.DLFS_DEBUG === "1";
  const { graph, result } = trace(specs, forward);
  const names = Object.keys(result);
  const values = Object.values(result);
  if (options.fuse ?? true) {
    fuse(graph, device, values, options.training ?? false);
    padChannels(graph, device, values, options.training ?? false);
    fuseMoments(graph, device);
  }
  options.rewrite?.(graph, values);
  const results = Object.fromEntries(names.map((name, i) => [name, values[i] as Value]));

  const forwardNodes = new Set(graph.nodes);
  const isForward = (node: Node) => forwardNodes.has(node);
  const gradients = differentiateSeeds(graph, results, options);
  const needed = neededNodes(graph, results, gradients.parameters, options.fuse ?? true);
  const { bound, exports, completedBy } = bindGradients(gradients.parameters, results, options.accumulate ?? false);
  const isHoisted = hoistable(needed, options.training ?? false);

  const prepared = new Map<Node, Preparation>();
  for (const [i, node] of needed.entries()) {
    if (assumedWorkspaces) prepared.set(node, { workspace: assumedWorkspaces[i] ?? 0 });
    else if (node.op.prepare) prepared.set(node, node.op.prepare(device, node));
  }
  const workspaces = needed.map((node) => prepared.get(node)?.workspace ?? 0);
  let nodes = needed.filter((node) => !isHoisted.has(node));
  const request = (lanes?: LanePlan): MemoryRequest => ({
    nodes,
    lanes,
    permanent: [...graph.inputs.values(), ...[...isHoisted].flatMap((node) => node.outputs)],
    results: [...Object.values(results), ...exports.map(({ value }) => value)],
    bound: new Set(bound.keys()),
    workspaces: new Map([...prepared].map(([node, { workspace }]) => [node, isHoisted.has(node) ? 0 : workspace])),
    keepAll,
  });
  const count = keepAll ? 1 : laneCount(device, options);
  const repeats = new Set<Node>();
  const plan = () => {
    const lanes = count > 1 ? assignLanes(nodes, count, repeats) : oneLane(nodes);
    return { lanes, memory: planMemory(request(lanes)) };
  };
  let { lanes, memory } = plan();
  const aim = keepAll ? false : (options.recompute ?? false);
  if (aim === true || (aim !== false && memory.bytes > aim)) {
    const recomputation = new Recomputation({
      graph,
      nodes,
      isForward,
      results: request().results,
      measure: (tried) => neededBytes({ ...request(), nodes: tried }),
      onRepeat: (node, repeat) => {
        repeats.add(repeat);
        const preparation = prepared.get(node);
        if (preparation) prepared.set(repeat, preparation);
      },
    });
    if (aim === true) recomputation.repeatCheap();
    // A plan takes somewhat more than what is needed at once, above all one for several lanes.
    let bytes = Number(aim);
    do {
      if (aim !== true) recomputation.reduceTo(bytes);
      nodes = [...recomputation.nodes];
      ({ lanes, memory } = plan());
      bytes -= memory.bytes - Number(aim);
    } while (aim !== true && memory.bytes > aim && !recomputation.exhausted);
    check(
      aim === true || memory.bytes <= aim,
      "Program",
      () => `recompute: expected ${aim} bytes to be enough, but ${memory.bytes} are needed even so`,
      ErrorCode.memory,
    );
  }
  return {
    inputs: graph.inputs,
    results,
    hoisted: [...isHoisted],
    nodes,
    isForward,
    prepared,
    workspaces,
    bound,
    exports,
    completedBy,
    lanes,
    memory,
  };
}

/** The memory that a program of this computation would take; allocates none of it. */
export function planProgram(
  device: Device,
  specs: Record<string, Spec>,
  forward: (inputs: Record<string, Value>) => Record<string, Value>,
  options: LoweringOptions = {},
): MemoryPlan {
  return lower(device, specs, forward, options).memory;
}

/**
 * The memory that a program would take by the size of its batch, the first of each input's sizes that is `batch`. Allocates nothing;
 * plans convolutions for `batch` alone: scratch memory is taken in proportion, so that this is an estimate.
 */
export function estimateProgram(
  device: Device,
  specs: Record<string, Spec>,
  batch: number,
  forward: (inputs: Record<string, Value>) => Record<string, Value>,
  options: LoweringOptions = {},
): (n: number) => number {
  const { workspaces } = lower(device, specs, forward, options);
  return (n) => {
    const scaled = Object.entries(specs).map(([name, { shape, dtype }]): [string, Spec] => [
      name,
      { shape: shape[0] === batch ? [n, ...shape.slice(1)] : shape, dtype },
    ]);
    const scratch = workspaces.map((bytes) => Math.ceil((bytes * n) / batch));
    return lower(device, Object.fromEntries(scaled), forward, options, scratch).memory.bytes;
  };
}

function laneCount(device: Device, options: LoweringOptions): number {
  const lanes = options.lanes ?? (device.supports("graph.lanes") ? DEFAULT_LANES : 1);
  check(Number.isInteger(lanes) && lanes >= 1 && lanes <= 8, "Program", () => `expected 1 to 8 lanes, got ${lanes}`);
  return lanes;
}

/** Appends the backward pass of the seeds; adds the gradients of inputs to the results. */
function differentiateSeeds(graph: Graph, results: Record<string, Value>, options: LoweringOptions): LeafGradients {
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
  const scale = options.gradientScale ? graph.parameter(scalarOf("gradientScale", options.gradientScale)) : null;
  const gradients = differentiate(graph, seeds, wanted, scale);
  for (const [name, value] of gradients.inputs) results[`grad.${name}`] = value;
  return gradients;
}

/** A number on the device as an operand; its memory is the owner's. */
function scalarOf(name: string, tensor: Tensor): Parameter {
  check(
    tensor.dtype === "f32" && tensor.size === 1,
    "Program",
    () => `${name}: expected an f32 scalar, got ${tensor.dtype} (${tensor.shape.join(", ")})`,
  );
  const scalar = new Parameter([], { kind: "constant", value: 1 }, { buffer: true });
  scalar.name = name;
  scalar.tensor = tensor;
  return scalar;
}

/** What results and gradients depend on, the backward pass merged; brings both up to date with that. */
function neededNodes(
  graph: Graph,
  results: Record<string, Value>,
  gradients: Map<Parameter, Value>,
  merge: boolean,
): readonly Node[] {
  const values = [...Object.values(results), ...gradients.values()];
  const nodes = withoutUnused(graph.nodes, values);
  if (!merge) return nodes;
  const merged = fuseGradients(graph, nodes, values);
  for (const name of Object.keys(results)) results[name] = values.shift() as Value;
  for (const parameter of gradients.keys()) gradients.set(parameter, values.shift() as Value);
  return merged;
}

/** Lets gradients be computed right into the parameters' `grad` where possible; returns the ones to copy or add there. */
function bindGradients(
  gradients: Map<Parameter, Value>,
  results: Record<string, Value>,
  accumulate: boolean,
): Pick<Lowering, "bound" | "exports" | "completedBy"> {
  const bound = new Map<Value, Address>();
  const completedBy = new Map<Parameter, Node>();
  const taken = new Set(Object.values(results).map(storageOf));
  const exports: GradientExport[] = [];
  for (const [parameter, value] of gradients) {
    const target = parameter.grad;
    if (!target)
      throw new DlfsError(ErrorCode.argument, parameter.name, "has no gradient memory: call model.to(device) first");
    const root = storageOf(value);
    if (!accumulate && root.node && !taken.has(root)) {
      taken.add(root);
      bound.set(root, target.address);
      completedBy.set(parameter, root.node);
    } else {
      exports.push({ value, target, accumulate });
    }
  }
  return { bound, exports, completedBy };
}

/**
 * Nodes that depend on constants, and on parameters that the program's own runs do not change, alone: they may run ahead.
 * Training changes the parameters that require gradients, and an operation with an effect may change any that it reads.
 */
function hoistable(nodes: readonly Node[], training: boolean): Set<Node> {
  const written = new Set(nodes.flatMap((node) => (node.op.effect ? node.inputs : [])));
  const changes = (value: Value) =>
    value.leaf?.leaf === "input" || written.has(value) || (training && (value.leaf?.parameter.requiresGrad ?? false));
  const hoisted = new Set<Node>();
  for (const node of nodes) {
    const ready = node.inputs.every((input) => (input.node ? hoisted.has(input.node) : !changes(input)));
    if (node.op.hoist && ready && byteSize(node.outputs[0] as Value) > 0) hoisted.add(node);
  }
  return hoisted;
}

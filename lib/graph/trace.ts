import { DlfsError, ErrorCode } from "../native";
import type { DType } from "../tensor";
import { type Node, type Op, ShapeError } from "./node";
import type { Parameter } from "./parameter";
import { type Leaf, type Spec, Value } from "./value";

/** A sequence of operations in the order of their application, with the leaves they start from. */
export class Graph {
  nodes: Node[] = [];
  readonly inputs = new Map<string, Value>();
  readonly #leaves = new Map<Parameter, Map<string, Value>>();
  #nextValue = 0;
  #nextNode = 0;

  input(name: string, spec: Spec): Value {
    if (this.inputs.has(name)) throw new DlfsError(ErrorCode.argument, "graph", `two inputs are named "${name}"`);
    const value = this.#leaf(spec, { leaf: "input", name });
    this.inputs.set(name, value);
    return value;
  }

  /** A parameter as an operand: itself in fp32, its low-precision copy otherwise. */
  parameter(parameter: Parameter, dtype: DType = "f32"): Value {
    const byType = this.#leaves.get(parameter) ?? new Map<string, Value>();
    this.#leaves.set(parameter, byType);
    let value = byType.get(dtype);
    if (!value) {
      value = this.#leaf(
        { shape: parameter.shape, dtype },
        { leaf: dtype === "f32" ? "parameter" : "copy", parameter },
      );
      byType.set(dtype, value);
    }
    return value;
  }

  /** Appends a node; throws DlfsError with the path where the operands do not fit. */
  append<A>(op: Op<A>, inputs: readonly Value[], attrs: A, path: string): Value[] {
    let specs: Spec[];
    try {
      specs = op.infer(inputs, attrs);
    } catch (error) {
      if (error instanceof ShapeError) throw new DlfsError(ErrorCode.shape, path || op.kind, error.message);
      throw error;
    }
    const node: Node<A> = { id: this.#nextNode++, op, inputs: [...inputs], outputs: [], attrs, path };
    for (const [index, spec] of specs.entries()) {
      node.outputs.push(new Value(this.#nextValue++, spec.shape, spec.dtype, node as Node, index));
    }
    this.nodes.push(node as Node);
    return node.outputs;
  }

  /** Gives a node one more output. */
  addOutput(node: Node, spec: Spec): Value {
    const value = new Value(this.#nextValue++, spec.shape, spec.dtype, node, node.outputs.length);
    node.outputs.push(value);
    return value;
  }

  #leaf(spec: Spec, leaf: Leaf): Value {
    return new Value(this.#nextValue++, [...spec.shape], spec.dtype, leaf, 0);
  }
}

interface Trace {
  graph: Graph;
  path: string[];
}

let current: Trace | null = null;

/** Runs `body` on symbolic tensors, recording the operations it applies. */
export function trace<R>(
  inputs: Record<string, Spec>,
  body: (inputs: Record<string, Value>) => R,
): { graph: Graph; result: R } {
  const graph = new Graph();
  const values = Object.fromEntries(Object.entries(inputs).map(([name, spec]) => [name, graph.input(name, spec)]));
  const outer = current;
  current = { graph, path: [] };
  try {
    return { graph, result: body(values) };
  } finally {
    current = outer;
  }
}

function active(what: string): Trace {
  if (!current) {
    throw new DlfsError(
      ErrorCode.argument,
      what,
      "operations on symbolic tensors belong inside a layer's forward(); to run a model on tensors use model.call()",
    );
  }
  return current;
}

/** True while a forward() is being recorded. */
export function isTracing(): boolean {
  return current !== null;
}

/** Applies an operation inside forward(); the results are symbolic. */
export function applyOp<A>(op: Op<A>, inputs: readonly Value[], attrs: A): Value[] {
  const { graph, path } = active(op.kind);
  for (const input of inputs) {
    if (!(input instanceof Value)) {
      throw new DlfsError(
        ErrorCode.argument,
        path.join(".") || op.kind,
        `expected a symbolic tensor, got ${describe(input)}`,
      );
    }
  }
  return graph.append(op, inputs, attrs, path.join("."));
}

/** A parameter as an operand of the operation being recorded. */
export function useParameter(parameter: Parameter, dtype: DType = "f32"): Value {
  return active(parameter.name || "parameter").graph.parameter(parameter, dtype);
}

/** Adds a name to the path while `body` runs; layers do this around forward(). */
export function withPath<R>(name: string, body: () => R): R {
  const { path } = active(name);
  path.push(name);
  try {
    return body();
  } finally {
    path.pop();
  }
}

/** The layer whose forward() is being recorded, for messages; else `fallback`. */
export function currentPath(fallback: string): string {
  return current?.path.join(".") || fallback;
}

function describe(value: unknown): string {
  if (value === null || typeof value !== "object") return String(value);
  return `a ${value.constructor.name}${value.constructor.name === "Tensor" ? " (use model.call() to run on tensors)" : ""}`;
}

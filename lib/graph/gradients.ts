import { DlfsError, ErrorCode } from "../native";
import type { Gradient, GradientBuilder, Node, Op } from "./node";
import { add, fill, scaleBy } from "./ops/elementwise";
import type { Parameter } from "./parameter";
import type { Graph } from "./trace";
import { type Spec, Value } from "./value";

/** Gradients of a graph's leaves: of trained parameters, and of the inputs that were asked for. */
export interface LeafGradients {
  parameters: Map<Parameter, Value>;
  inputs: Map<string, Value>;
}

/**
 * Appends the backward pass to a graph (reverse-mode differentiation): each node's rule turns the gradients of its outputs
 * into those of its inputs; a value used several times receives the sum, in a fixed order.
 *
 * @param seeds the values to differentiate with their gradients: constants for scalar losses, values otherwise
 * @param wanted inputs whose gradients are wanted besides the parameters'
 * @param scale an fp32 scalar that multiplies the gradients of constant seeds
 */
export function differentiate(
  graph: Graph,
  seeds: [Value, Gradient][],
  wanted: readonly Value[] = [],
  scale: Value | null = null,
): LeafGradients {
  const forward = [...graph.nodes];
  const trained = new Set<Value>(wanted);
  const isTrained = (value: Value) =>
    trained.has(value) || (value.leaf?.leaf !== "input" && (value.leaf?.parameter.requiresGrad ?? false));
  for (const node of forward) {
    if (node.inputs.some(isTrained)) for (const output of node.outputs) trained.add(output);
  }

  const gradients = new Map<Value, Gradient>();
  let path = "";
  const builder: GradientBuilder = {
    apply: <A>(op: Op<A>, inputs: readonly Value[], attrs: A) => graph.append(op, inputs, attrs, path),
    value: (gradient: Gradient, like: Spec) => {
      if (gradient instanceof Value) return gradient;
      const attrs = { shape: like.shape, dtype: like.dtype, value: gradient };
      const filled = graph.append(fill, [], attrs, path)[0] as Value;
      return scale && gradient !== 0 ? scaleBy(builder, filled, scale) : filled;
    },
    needed: isTrained,
    scale,
  };
  const accumulate = (value: Value, gradient: Gradient) => {
    const known = gradients.get(value);
    if (known === undefined) gradients.set(value, gradient);
    else if (typeof known === "number" && typeof gradient === "number") gradients.set(value, known + gradient);
    else {
      const sum = builder.apply(add, [builder.value(known, value), builder.value(gradient, value)], {
        activation: "none",
      });
      gradients.set(value, sum[0] as Value);
    }
  };

  for (const [value, gradient] of seeds) accumulate(value, gradient);
  for (const node of forward.reverse()) {
    if (!node.inputs.some(isTrained)) continue;
    const outputs = node.outputs.map((output) => gradients.get(output) ?? null);
    if (outputs.every((gradient) => gradient === null)) continue;
    path = node.path;
    for (const [index, gradient] of backward(builder, node, outputs).entries()) {
      const input = node.inputs[index] as Value;
      if (gradient !== null && isTrained(input)) accumulate(input, gradient);
    }
  }

  const result: LeafGradients = { parameters: new Map(), inputs: new Map() };
  path = "";
  for (const [value, gradient] of gradients) {
    if (!value.leaf || value.leaf.leaf === "input") continue;
    const { parameter } = value.leaf;
    const fp32 = builder.value(gradient, { shape: value.shape, dtype: "f32" });
    const known = result.parameters.get(parameter);
    // The fp32 parameter and its low-precision copy are one parameter.
    result.parameters.set(
      parameter,
      known ? (builder.apply(add, [known, fp32], { activation: "none" })[0] as Value) : fp32,
    );
  }
  // In the order asked for; an input that no seed depends on has a gradient of 0.
  for (const value of wanted) {
    if (value.leaf?.leaf === "input")
      result.inputs.set(value.leaf.name, builder.value(gradients.get(value) ?? 0, value));
  }
  return result;
}

function backward(builder: GradientBuilder, node: Node, outputs: (Gradient | null)[]): (Gradient | null)[] {
  if (!node.op.gradient) {
    throw new DlfsError(ErrorCode.unsupported, node.path || node.op.kind, `${node.op.kind} has no gradient`);
  }
  return node.op.gradient(builder, node, outputs);
}

/** Programs from functions, parameters from values: what the tests of the graph share. */
import { Parameter, Program, type ProgramOptions, type Value } from "../../lib/graph";
import { type Device, type DType, elementCount, Tensor } from "../../lib/tensor";
import { dot } from "../ops/reference/elementwise";
import { expectClose } from "../support/compare";
import { Random } from "../support/random";

export interface Given {
  shape: readonly number[];
  values?: ArrayLike<number>;
  dtype?: DType;
}

/** A parameter with memory and gradient; dispose of it after the programs that use it. */
export function parameter(device: Device, { shape, values }: Given, name = "p"): Parameter & Disposable {
  const made = new Parameter(shape, { kind: "constant", value: 0 });
  made.name = name;
  const tensor = Tensor.from(device, values ?? new Random(name).normal(elementCount(shape)), shape);
  const grad = Tensor.zeros(device, shape);
  made.tensor = tensor;
  made.grad = grad;
  return Object.assign(made, {
    [Symbol.dispose]() {
      tensor.dispose();
      grad.dispose();
    },
  });
}

/** A program with its inputs written. */
export function program(
  device: Device,
  inputs: Record<string, Given>,
  forward: (inputs: Record<string, Value>) => Record<string, Value>,
  options: ProgramOptions = {},
): Program {
  const specs = Object.fromEntries(
    Object.entries(inputs).map(([name, { shape, dtype = "f32" }]) => [name, { shape, dtype }]),
  );
  const made = new Program(device, specs, forward, options);
  for (const [name, tensor] of Object.entries(made.inputs)) {
    tensor.write(inputs[name]?.values ?? new Random(`input ${name}`).normal(tensor.size));
  }
  return made;
}

export const kinds = (made: Program): string[] => made.calls.map((call) => call.kind);

export function numbers(tensor: Tensor | undefined): number[] {
  if (!tensor) throw new Error("no such result");
  return Array.from(tensor.read());
}

/**
 * Compares the gradients of a program's inputs and parameters with central differences of the program itself: fp32 with a
 * step of 1/64, for functions that are smooth there. Along random directions; see tests/ops/check.ts.
 */
export function expectGradients(
  device: Device,
  inputs: Record<string, Given>,
  forward: (inputs: Record<string, Value>) => Record<string, Value>,
  parameters: Parameter[] = [],
): void {
  using made = program(device, inputs, forward, {
    training: true,
    seeds: "inputs",
    inputGradients: Object.keys(inputs),
  });
  made.run();
  const outputs = Object.keys(made.results).filter((name) => !name.startsWith("grad."));
  const upstream = outputs.map((name) => made.inputs[`grad.${name}`]!.read());
  const loss = (): number => {
    made.runCalls(0, made.backwardStart);
    return outputs.reduce((sum, name, i) => sum + dot(made.results[name]!.read(), upstream[i]!), 0);
  };
  const targets = [
    ...Object.keys(inputs).map((name) => ({
      name,
      tensor: made.inputs[name]!,
      gradient: made.results[`grad.${name}`]!.read(),
    })),
    ...parameters.map((p) => ({ name: p.name, tensor: p.tensor, gradient: p.grad!.read() })),
  ];
  const step = 1 / 64;
  for (const { name, tensor, gradient } of targets) {
    const values = Float32Array.from(tensor.read());
    const random = new Random(`direction of ${name}`);
    const direction = Float32Array.from(values, () => (random.next() < 0.5 ? 1 : -1));
    const at = (sign: number): number => {
      tensor.write(values.map((v, i) => v + sign * step * direction[i]!));
      return loss();
    };
    const slope = (at(1) - at(-1)) / (2 * step);
    tensor.write(values);
    // third derivatives times step^2 / 6, and fp32 sums divided by the step
    expectClose(
      [dot(direction, gradient)],
      [slope],
      { rtol: 1e-3, atol: 2e-3 * Math.sqrt(dot(gradient, gradient)) + 1e-4 },
      `gradient of ${name}`,
    );
  }
}

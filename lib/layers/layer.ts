import { isTracing, Parameter, type Value, withPath } from "../graph";
import { DlfsError, ErrorCode } from "../native";

/** What forward() takes and gives: symbolic tensors, alone, in arrays or by name. */
export type Values = Value | readonly Value[] | { readonly [name: string]: Value };

/** A layer of one input and one output. */
export type Unary = Layer & { forward(x: Value): Value };

/**
 * A part of a model, as torch.nn.Module: it owns parameters and other layers as properties and composes operations in
 * `forward`, which runs on symbolic tensors, once per input shape. What it computes backward follows from the operations.
 *
 * ```ts
 * class Block extends Layer {
 *   conv = new Conv2d(64, 64, 3, { padding: 1 });
 *   norm = new BatchNorm2d(64);
 *   forward(x: Value): Value {
 *     return relu(add(this.norm.forward(this.conv.forward(x)), x));
 *   }
 * }
 * ```
 */
export abstract class Layer {
  /** True in training mode, where batch normalization uses the batch's statistics. Set by train() and eval(). */
  training = true;
  /** This layer's name in its parent; set when a model is traced. */
  #name = "";

  constructor() {
    // Entering and leaving a layer keeps the path that error messages and profiles show.
    const forward = this.forward.bind(this) as (...inputs: never[]) => unknown;
    Object.defineProperty(this, "forward", {
      configurable: true,
      value: (...inputs: never[]) => {
        if (!isTracing()) {
          throw new DlfsError(
            ErrorCode.argument,
            this.constructor.name,
            "forward() works on symbolic tensors; to run a model on tensors use call()",
          );
        }
        return this.#name ? withPath(this.#name, () => forward(...inputs)) : forward(...inputs);
      },
    });
  }

  abstract forward(...inputs: never[]): unknown;

  /**
   * Direct children with their names: properties that are layers, and the elements of properties that are arrays of them.
   * Names are in snake_case, as PyTorch's are, whatever the property's.
   */
  namedChildren(): [string, Layer][] {
    const children: [string, Layer][] = [];
    for (const [key, value] of Object.entries(this)) {
      const name = snakeCase(key);
      if (value instanceof Layer) children.push([name, value]);
      else if (Array.isArray(value)) {
        for (const [i, element] of value.entries())
          if (element instanceof Layer) children.push([`${name}.${i}`, element]);
      }
    }
    return children;
  }

  /** This layer and all below it, with their paths; the layer itself has the path `prefix`. */
  *namedLayers(prefix = ""): Generator<[string, Layer]> {
    yield [prefix, this];
    for (const [name, child] of this.namedChildren()) yield* child.namedLayers(prefix ? `${prefix}.${name}` : name);
  }

  /** Parameters and buffers with their paths; one that several layers share comes with each of its paths. */
  *namedUses(prefix = ""): Generator<[string, Parameter]> {
    for (const [path, layer] of this.namedLayers(prefix)) {
      for (const [key, value] of Object.entries(layer)) {
        if (!(value instanceof Parameter)) continue;
        const name = snakeCase(key);
        yield [path ? `${path}.${name}` : name, value];
      }
    }
  }

  /** Parameters and buffers by path, each once: one that several layers share by the first of its paths. */
  namedState(prefix = ""): Map<string, Parameter> {
    const state = new Map<string, Parameter>();
    const seen = new Set<Parameter>();
    for (const [path, parameter] of this.namedUses(prefix)) {
      if (seen.has(parameter)) continue;
      seen.add(parameter);
      state.set(path, parameter);
    }
    return state;
  }

  /** Trained parameters by path. */
  namedParameters(): Map<string, Parameter> {
    return new Map([...this.namedState()].filter(([, parameter]) => !parameter.isBuffer));
  }

  parameters(): Parameter[] {
    return [...this.namedParameters().values()];
  }

  /** Training mode (true) or inference mode for this layer and all below; returns the layer. */
  train(mode = true): this {
    for (const [, layer] of this.namedLayers()) layer.training = mode;
    return this;
  }

  eval(): this {
    return this.train(false);
  }

  /** Gives all layers below their names and all parameters their paths; models call this before tracing. */
  assignNames(): void {
    for (const [, layer] of this.namedLayers()) for (const [name, child] of layer.namedChildren()) child.#name = name;
    for (const [path, parameter] of this.namedState()) parameter.name = path;
  }
}

function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

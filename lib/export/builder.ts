import type { OnnxNode, OnnxValueInfo, WeightDType, WeightSource } from "../formats";
import type { OnnxAttributes, OnnxBuilder, OnnxLayout, Value } from "../graph";
import { DlfsError, ErrorCode } from "../native";
import { elementCount } from "../tensor";
import { permute } from "./permute";

/**
 * The batch size that models are traced with for export. A prime, larger than any size that networks have: whatever is a
 * multiple of it contains the batch.
 */
export const BATCH = 999_983;

/** Name of the batch among the dimensions of inputs and outputs. */
const BATCH_NAME = "batch";

const toNchw = [0, 3, 1, 2];
const toPlain = [0, 2, 3, 1];

/** A shape in a layout. */
export function shapeIn(shape: readonly number[], layout: OnnxLayout): number[] {
  return layout === "nchw" ? toNchw.map((axis) => shape[axis] as number) : [...shape];
}

/** An axis of (N, H, W, C) in a layout. */
export function axisIn(axis: number, layout: OnnxLayout): number {
  return layout === "nchw" ? toNchw.indexOf(axis) : axis;
}

function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** Collects the nodes and initializers of an ONNX graph, and knows where each value of the traced graph is in it. */
export class GraphBuilder implements OnnxBuilder {
  readonly inputs: OnnxValueInfo[] = [];
  readonly outputs: OnnxValueInfo[] = [];
  /** How many classes the labels of candidates tell apart, by value. */
  readonly classCounts = new Map<Value, number>();
  /** Path of the layer that is being exported, for names and messages. */
  path = "";
  readonly #nodes: OnnxNode[] = [];
  readonly #initializers = new Map<string, WeightSource>();
  readonly #places = new Map<Value, Partial<Record<OnnxLayout, string>>>();
  readonly #names = new Set<string>();
  /** Names of nodes' outputs that the graph's outputs are. */
  readonly #renamed = new Map<string, string>();
  /** Names of constants by their content, and of parameters by name and order of dimensions. */
  readonly #known = new Map<string, string>();

  constructor(readonly opset: number) {}

  /** Nodes that an output depends on, and initializers that these read. */
  used(): { nodes: OnnxNode[]; initializers: WeightSource[] } {
    const rename = (names: readonly string[]) => names.map((name) => this.#renamed.get(name) ?? name);
    const read = new Set(this.outputs.map(({ name }) => name));
    const nodes: OnnxNode[] = [];
    for (const node of [...this.#nodes].reverse()) {
      const [inputs, outputs] = [rename(node.inputs), rename(node.outputs)];
      if (!outputs.some((name) => read.has(name))) continue;
      for (const name of inputs) read.add(name);
      nodes.push({ ...node, inputs, outputs });
    }
    const initializers = [...this.#initializers.values()].filter(({ name }) => read.has(name));
    return { nodes: nodes.reverse(), initializers };
  }

  /** Makes a value an input of the graph. */
  addInput(value: Value, name: string, layout: OnnxLayout = "plain"): void {
    this.#names.add(name);
    this.inputs.push({ name, dtype: "f32", shape: this.dynamic(shapeIn(value.shape, layout)) });
    this.output(value, name, layout);
  }

  /** Makes a value an output of the graph under a name, which has been reserved. */
  addOutput(value: Value, name: string, dtype: WeightDType, layout: OnnxLayout = "plain"): void {
    const from = this.input(value, layout);
    const computed = this.#nodes.some(({ outputs }) => outputs.includes(from));
    if (computed && !this.#renamed.has(from)) this.#renamed.set(from, name);
    else this.#nodes.push({ name, opType: "Identity", inputs: [from], outputs: [name], attributes: {} });
    this.outputs.push({ name, dtype, shape: this.dynamic(shapeIn(value.shape, layout)) });
  }

  /** Keeps names for outputs. */
  reserve(names: readonly string[]): void {
    for (const name of names) this.#names.add(name);
  }

  /** A shape with the batch by name. */
  private dynamic(shape: readonly number[]): (number | string)[] {
    return shape.map((size) => {
      if (size === 0 || size % BATCH !== 0) return size;
      return size === BATCH ? BATCH_NAME : `${size / BATCH}*${BATCH_NAME}`;
    });
  }

  /** A name that nothing else has. */
  private unique(wanted: string): string {
    let name = wanted;
    for (let i = 2; this.#names.has(name); ++i) name = `${wanted}_${i}`;
    this.#names.add(name);
    return name;
  }

  input(value: Value, layout: OnnxLayout = "plain"): string {
    if (value.leaf && value.leaf.leaf !== "input") return this.parameter(value);
    const place = this.#places.get(value);
    if (!place) throw new DlfsError(ErrorCode.internal, this.path, `value ${value.id} was not exported`);
    const known = place[layout];
    if (known !== undefined) return known;
    const name = this.add("Transpose", [Object.values(place)[0]!], {
      perm: { ints: layout === "nchw" ? toNchw : toPlain },
    });
    place[layout] = name;
    return name;
  }

  layoutOf(...values: Value[]): OnnxLayout {
    const images = values.every(({ shape }) => shape.length === 4);
    return images && values.some((value) => this.#places.get(value)?.nchw !== undefined) ? "nchw" : "plain";
  }

  output(value: Value, name: string, layout: OnnxLayout = "plain"): void {
    this.#places.set(value, { ...this.#places.get(value), [layout]: name });
  }

  parameter(value: Value, axes?: readonly number[]): string {
    const leaf = value.leaf;
    if (!leaf || leaf.leaf === "input") {
      const message = "expected a parameter as weight; computed weights cannot be exported";
      throw new DlfsError(ErrorCode.unsupported, this.path, message);
    }
    const { parameter } = leaf;
    const order = axes ?? parameter.shape.map((_, axis) => axis);
    return this.weights(
      `${parameter.name}:${order}`,
      parameter.name,
      parameter.shape,
      order,
      () => parameter.tensor.read() as Float32Array,
    );
  }

  /**
   * An initializer of values that are made when the file is written.
   *
   * @param key what tells it apart: the same key again gives the same initializer
   */
  weights(
    key: string,
    name: string,
    shape: readonly number[],
    axes: readonly number[],
    values: () => Float32Array,
  ): string {
    return this.constant(
      key,
      name,
      "f32",
      axes.map((axis) => shape[axis] as number),
      () => bytesOf(permute(values(), shape, axes)),
    );
  }

  private constant(
    key: string,
    name: string,
    dtype: WeightDType,
    shape: readonly number[],
    data: WeightSource["data"],
  ): string {
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const unique = this.unique(name);
    this.#known.set(key, unique);
    this.#initializers.set(unique, { name: unique, dtype, shape, data });
    return unique;
  }

  floats(values: number | ArrayLike<number>, shape?: readonly number[]): string {
    const list = Float32Array.from(typeof values === "number" ? [values] : values);
    const dims = shape ?? (typeof values === "number" ? [] : [list.length]);
    if (dims.some((size) => size % BATCH === 0) || elementCount(dims) !== list.length) {
      const message = `a constant of shape (${dims.join(", ")}) cannot be exported: it depends on the batch size`;
      throw new DlfsError(ErrorCode.unsupported, this.path, message);
    }
    // Few numbers are the same in many places; tables of many are not compared.
    const key = list.length <= 16 ? `f32:${[...bytesOf(list)]}:${dims}` : `f32#${this.#known.size}`;
    return this.constant(key, list.length <= 16 ? "constant" : this.named("table"), "f32", dims, bytesOf(list));
  }

  ints(values: number | readonly number[]): string {
    const list = typeof values === "number" ? [values] : values;
    const dims = typeof values === "number" ? [] : [list.length];
    const data = bytesOf(BigInt64Array.from(list, BigInt));
    return this.constant(`i64:${list}:${dims}`, "constant", "i64", dims, data);
  }

  shape(shape: readonly number[], from: readonly number[]): string {
    const dynamic = shape.flatMap((size, axis) => (size > 0 && size % BATCH === 0 ? [axis] : []));
    const [axis] = dynamic;
    if (dynamic.length > 1) {
      const message = "a shape with the batch in two of its dimensions cannot be exported";
      throw new DlfsError(ErrorCode.unsupported, this.path, message);
    }
    if (axis === undefined) return this.ints(shape);
    // Reshape takes 0 as "this dimension stays" and -1 as "what is left".
    const stays = shape[axis] === BATCH && from[axis] === BATCH;
    return this.ints(shape.map((size, i) => (i === axis ? (stays ? 0 : -1) : size)));
  }

  /** A shape as an operand of operators that take no stand-in for the batch, which must then be the first dimension. */
  sizes(shape: readonly number[]): string {
    const [first, ...rest] = shape;
    const dynamic = (size: number) => size > 0 && size % BATCH === 0;
    if (first !== BATCH) {
      if (shape.some(dynamic)) {
        const message = `a tensor of shape (${shape.join(", ")}) cannot be exported: the batch is not its first dimension`;
        throw new DlfsError(ErrorCode.unsupported, this.path, message);
      }
      return this.ints(shape);
    }
    const batch = this.add("Shape", [this.inputs[0]!.name], { start: { int: 0 }, end: { int: 1 } });
    return rest.length === 0 ? batch : this.add("Concat", [batch, this.ints(rest)], { axis: { int: 0 } });
  }

  private named(what: string): string {
    return this.path ? `${this.path}/${what}` : what;
  }

  add(opType: string, inputs: readonly string[], attributes: OnnxAttributes = {}): string {
    return this.addMany(opType, inputs, 1, attributes)[0]!;
  }

  addMany(opType: string, inputs: readonly string[], outputs: number, attributes: OnnxAttributes = {}): string[] {
    const name = this.unique(this.named(opType));
    const names = Array.from({ length: outputs }, (_, i) => (i === 0 ? name : this.unique(`${name}.${i}`)));
    this.#nodes.push({ name, opType, inputs, outputs: names, attributes });
    return names;
  }
}

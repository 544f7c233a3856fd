/** What an operation's ONNX rule works with; the exporter itself is in lib/export. */
import type { Value } from "./value";

/** An attribute of an ONNX node, told apart by its type. */
export type OnnxAttributeValue =
  | { readonly int: number }
  | { readonly float: number }
  | { readonly text: string }
  | { readonly ints: readonly number[] }
  | { readonly floats: readonly number[] };

export type OnnxAttributes = Readonly<Record<string, OnnxAttributeValue>>;

/**
 * How a value's dimensions lie in ONNX: "plain", as here; or, of image batches (N, H, W, C), "nchw", as ONNX's operators on
 * images want them.
 */
export type OnnxLayout = "plain" | "nchw";

/** Builds an ONNX graph, for one operation at a time: a rule asks for its operands, adds nodes, and names its outputs. */
export interface OnnxBuilder {
  /** Version of the operator set ai.onnx. */
  readonly opset: number;
  /**
   * The ONNX name of an operand in a layout; where it is there in the other one only, a Transpose is added.
   *
   * @param layout default "plain"
   */
  input(value: Value, layout?: OnnxLayout): string;
  /** The layout in which all of these are there with the fewest Transposes: "nchw" is of image batches only. */
  layoutOf(...values: Value[]): OnnxLayout;
  /**
   * A parameter's values as an initializer under the parameter's name.
   *
   * @param axes the order of its dimensions: [0, 3, 1, 2] makes (K, R, S, C) into (K, C, R, S). Default: as they are
   */
  parameter(value: Value, axes?: readonly number[]): string;
  /** Constants; of shape () for a single number. */
  floats(values: number | ArrayLike<number>, shape?: readonly number[]): string;
  /** 64-bit integers; of one dimension for a list, () for a single number. */
  ints(values: number | readonly number[]): string;
  /**
   * A shape as the second operand of Reshape: 0 or -1 stands for the batch.
   *
   * @param from the shape of what is reshaped
   */
  shape(shape: readonly number[], from: readonly number[]): string;
  /** Adds a node with one output; gives the output's name. "" leaves an optional input out. */
  add(opType: string, inputs: readonly string[], attributes?: OnnxAttributes): string;
  /** Adds a node with several outputs. */
  addMany(opType: string, inputs: readonly string[], outputs: number, attributes?: OnnxAttributes): string[];
  /**
   * Says which ONNX value an output of the operation is.
   *
   * @param layout default "plain"
   */
  output(value: Value, name: string, layout?: OnnxLayout): void;
}

/** What of an ONNX model (onnx.ai, onnx.proto) is read and written, as plain data under the format's own names. */
import type { WeightDType } from "./weights";

/** TensorProto.DataType. */
export const onnxDTypes = {
  f32: 1,
  u8: 2,
  i8: 3,
  u16: 4,
  i16: 5,
  i32: 6,
  i64: 7,
  bool: 9,
  f16: 10,
  f64: 11,
  u32: 12,
  u64: 13,
  bf16: 16,
  f8e4m3: 17,
  f8e5m2: 19,
} as const satisfies Record<WeightDType, number>;

/** Names of the element types that are not read, by their number. */
export const otherDTypes: Readonly<Record<number, string>> = {
  8: "STRING",
  14: "COMPLEX64",
  15: "COMPLEX128",
  18: "FLOAT8E4M3FNUZ",
  20: "FLOAT8E5M2FNUZ",
  21: "UINT4",
  22: "INT4",
  23: "FLOAT4E2M1",
  24: "FLOAT8E8M0",
  25: "UINT2",
  26: "INT2",
};

/** An attribute's value, told apart by its type. */
export type OnnxAttribute =
  | { readonly int: number }
  | { readonly float: number }
  | { readonly text: string }
  | { readonly ints: readonly number[] }
  | { readonly floats: readonly number[] };

/** An operation of ai.onnx in the graph; its inputs and outputs are names of values, "" for an optional one that is left out. */
export interface OnnxNode {
  readonly name: string;
  readonly opType: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, OnnxAttribute>>;
}

/** An input or output of the graph. A dimension is a size, or the name of one that is only known when the model runs. */
export interface OnnxValueInfo {
  readonly name: string;
  readonly dtype: WeightDType;
  readonly shape: readonly (number | string)[];
}

/** A graph, but for its initializers. */
export interface OnnxGraph {
  readonly name: string;
  /** In the order of their run. */
  readonly nodes: readonly OnnxNode[];
  readonly inputs: readonly OnnxValueInfo[];
  readonly outputs: readonly OnnxValueInfo[];
}

/** A model, but for its initializers. */
export interface OnnxModel {
  readonly irVersion: number;
  /** Version of the operator set ai.onnx. */
  readonly opset: number;
  readonly producer: { readonly name: string; readonly version: string };
  /** Texts beside the graph. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly graph: OnnxGraph;
}

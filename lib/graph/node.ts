import type { Address, NativeFunctions } from "../native";
import { type Device, type DType, elementCount, outHandle } from "../tensor";
import type { OnnxBuilder } from "./onnx";
import type { Spec, Value } from "./value";

/** One operation of a graph with its operands. */
export interface Node<A = unknown> {
  readonly id: number;
  readonly op: Op<A>;
  readonly inputs: Value[];
  readonly outputs: Value[];
  readonly attrs: A;
  /** Path of the layer that applied it, for messages: "backbone.layer2.0.conv1". */
  readonly path: string;
}

/**
 * Gradient of a value: a value of the same shape, or, for scalars, a constant known when the graph is built, which the graph's
 * gradient scale multiplies besides, where it has one.
 */
export type Gradient = Value | number;

/** What a backward rule may do: apply operations to values. */
export interface GradientBuilder {
  apply<A>(op: Op<A>, inputs: readonly Value[], attrs: A): Value[];
  /** A gradient as a value (a constant becomes a filled tensor, times the gradient scale). */
  value(gradient: Gradient, like: Spec): Value;
  /** What constant gradients are to be multiplied by, an fp32 scalar (dynamic loss scaling); null: nothing. */
  readonly scale: Value | null;
  /** False where nothing upstream of this value is trained, so that its gradient need not be computed. */
  needed(value: Value): boolean;
}

/** Native state that a node needs besides memory, made before memory is planned. */
export interface Preparation<S = unknown> {
  /** Bytes of scratch memory during the node's calls. */
  workspace: number;
  state?: S;
}

/** What emit() works with: addresses are final, calls are recorded in order. */
export interface Emitter {
  readonly device: Device;
  readonly native: NativeFunctions;
  /** Where a call goes: to be read inside call(), because a captured program is spread over several streams. */
  readonly stream: number;
  /** Scratch memory of the size prepare() asked for, or null. */
  readonly workspace: Address | null;
  /** What prepare() returned as state. */
  readonly state: unknown;
  address(value: Value): Address;
  /** The address, or null where the value is absent or nobody reads it. */
  optional(value: Value | undefined): Address | null;
  /** Records a native call. */
  call(run: () => void): void;
}

/**
 * A kind of operation. The built-in ones are in graph/ops and detection; a user's own is an object of this type, given to
 * `applyOp` inside forward. A(ttributes) are plain data.
 */
export interface Op<A = unknown> {
  readonly kind: string;
  /** Output shapes and dtypes; throws ShapeError where the inputs do not fit. */
  infer(inputs: readonly Spec[], attrs: A): Spec[];
  /** Gradients of the inputs (null: none) from those of the outputs (null: not used). Absent: not differentiable. */
  gradient?(builder: GradientBuilder, node: Node<A>, outputs: (Gradient | null)[]): (Gradient | null)[];
  prepare?(device: Device, node: Node<A>): Preparation;
  /** Records the native calls. */
  emit(emitter: Emitter, node: Node<A>): void;
  /** Writes the operation as ONNX nodes, for an operation of one's own; lib/export has the rules of the built-in ones. */
  onnx?(builder: OnnxBuilder, node: Node<A>): void;
  /** The output is the first input's memory under another shape; emit records nothing. */
  readonly alias?: boolean;
  /**
   * Inputs whose memory the first output may reuse when nothing reads them later; as a function, those whose memory a given
   * output may reuse.
   */
  readonly inplace?: readonly number[] | ((output: number) => readonly number[]);
  /** Outputs that need no memory when nothing reads them; emit asks for them with optional(). */
  readonly optionalOutputs?: readonly number[];
  /**
   * Inputs whose last axis may be followed by padding: channels that say nothing, are not read, and get gradients of 0. infer
   * takes the longer axis, and gives outputs that are as long as their inputs the same padding.
   */
  padded?(node: Node<A>): readonly number[];
  /** Changes something besides its outputs (running statistics), so it stays even when no output is read. */
  readonly effect?: boolean;
  /** Takes part in an operation of all ranks: not to be done again. */
  isCollective?(node: Node<A>): boolean;
  /** Of an operation with an effect: the one that computes the same outputs and changes nothing else. */
  readonly withoutEffect?: Op<A>;
  /** Depends on parameters and constants only: computed when weights change, not in each run. */
  readonly hoist?: boolean;
}

/** Operands that do not fit; applyOp adds the layer's path. */
export class ShapeError extends Error {}

export function expectShape(condition: boolean, message: () => string): asserts condition {
  if (!condition) throw new ShapeError(message());
}

/** Checks that a tensor has a floating-point dtype that activations may have. */
export function expectActivation(spec: Spec, what: string): void {
  const allowed: DType[] = ["f32", "bf16", "f16"];
  expectShape(allowed.includes(spec.dtype), () => `expected ${what} of dtype ${allowed.join(", ")}, got ${spec.dtype}`);
}

/** Checks (N, H, W, C) and returns its sizes. */
export function nhwc(spec: Spec, what = "an image batch"): [number, number, number, number] {
  expectShape(spec.shape.length === 4, () => `expected ${what} of shape (N, H, W, C), got (${spec.shape.join(", ")})`);
  return spec.shape as unknown as [number, number, number, number];
}

/** A packed (..., C) tensor as rows of channels. */
export function rowsAndChannels(shape: readonly number[]): [rows: number, channels: number] {
  const channels = shape.at(-1)!;
  return [elementCount(shape) / channels, channels];
}

/** The preparation of a node that needs only scratch memory, of the size that a native ..._workspace function gives. */
export function scratchMemory(ask: (out: BigInt64Array) => unknown): Preparation {
  const out = outHandle();
  ask(out.view);
  return { workspace: out.value };
}

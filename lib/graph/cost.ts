import { elementCount } from "../tensor";
import { byteSize } from "./memory-plan";
import type { Node } from "./node";

/** What a GPU of the H100's class needs for a call that does nothing, for a byte and for a floating-point operation. */
const [START_US, US_PER_BYTE, US_PER_FLOP] = [3, 1 / 2.2e6, 1 / 5e8];

function product(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** Attributes of a convolution's gradients: the geometry with the shapes of x and w. */
interface GradientAttrs {
  readonly x: readonly number[];
  readonly w: readonly number[];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly dilation: readonly [number, number];
}

function isGradientAttrs(attrs: unknown): attrs is GradientAttrs {
  const { x, w, stride } = (attrs ?? {}) as Partial<GradientAttrs>;
  return Array.isArray(x) && Array.isArray(w) && Array.isArray(stride);
}

/** Output pixels of the convolution of x (N, H, W, C) by w (K, R, S, C / groups); rows of a linear map. */
function outputPixels({ x, w, stride, padding, dilation }: GradientAttrs): number {
  if (w.length === 2) return product(x) / (x.at(-1) as number);
  const size = (d: 0 | 1) =>
    Math.floor((x[1 + d]! + 2 * padding[d] - dilation[d] * (w[1 + d]! - 1) - 1) / stride[d]) + 1;
  return x[0]! * size(0) * size(1);
}

/** Multiplications and additions of a convolution or a linear map in any direction; 0 for other kinds. */
export function productFlops({ op, inputs, outputs, attrs }: Node): number {
  if (isGradientAttrs(attrs)) return 2 * outputPixels(attrs) * product(attrs.w);
  const weight = inputs[1]?.shape;
  if (!weight || (weight.length !== 4 && weight.length !== 2)) return 0;
  const perOutput = product(weight.slice(1));
  if (op.kind.startsWith("conv2d") || op.kind.startsWith("linear")) {
    return 2 * elementCount(outputs[0]!.shape) * perOutput;
  }
  // Each element of the input meets the weights of its channel.
  return op.kind.startsWith("conv_transpose2d") ? 2 * elementCount(inputs[0]!.shape) * perOutput : 0;
}

/**
 * Microseconds that a node takes on a fast GPU, roughly: the larger of its memory traffic and its arithmetic. It weighs nodes of
 * a program against each other; on other devices all of them are slower by a similar factor.
 */
export function estimateMicroseconds(node: Node): number {
  const bytes = [...node.inputs, ...node.outputs].reduce((sum, value) => sum + byteSize(value), 0);
  return START_US + Math.max(bytes * US_PER_BYTE, productFlops(node) * US_PER_FLOP);
}

/** The time of a node in times that its first output could be moved, without what every call costs. */
export function estimatePasses(node: Node): number {
  return (estimateMicroseconds(node) - START_US) / (byteSize(node.outputs[0]!) * US_PER_BYTE);
}

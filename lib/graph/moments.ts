import type { Device } from "../tensor";
import type { Node } from "./node";
import { type ConvAttrs, conv2d, conv2dWithMoments } from "./ops/conv";
import { type BatchNormAttrs, batchNormTrain } from "./ops/norm";
import type { Graph } from "./trace";
import type { Spec } from "./value";

/**
 * Lets a 1x1 convolution whose result is normalised by the batch's statistics give the moments that these are computed from,
 * where the device has such convolutions: the normalization then reads the result once and not twice. To be applied after
 * `fuse` and before differentiation.
 */
export function fuseMoments(graph: Graph, device: Device): void {
  for (const norm of graph.nodes) {
    const conv = norm.op === batchNormTrain ? norm.inputs[0]!.node : null;
    if (!conv || !canGiveMoments(conv, device)) continue;
    const parts = device.info.units;
    const attrs = { ...(conv.attrs as ConvAttrs), parts };
    const [, moments] = conv2dWithMoments.infer(conv.inputs, attrs) as [Spec, Spec];
    Object.assign(conv, { op: conv2dWithMoments, attrs });
    norm.inputs.push(graph.addOutput(conv, moments));
    Object.assign(norm, { attrs: { ...(norm.attrs as BatchNormAttrs), parts } });
  }
}

function canGiveMoments({ op, inputs, attrs }: Node, device: Device): boolean {
  if (op !== conv2d) return false;
  const { bias, residual, activation, groups } = attrs as ConvAttrs;
  const [k, r, s, c] = inputs[1]!.shape as [number, number, number, number];
  const { dtype } = inputs[0]!;
  const plain = !bias && !residual && activation === "none" && groups === 1;
  return (
    plain &&
    r === 1 &&
    s === 1 &&
    c % 8 === 0 &&
    k % 8 === 0 &&
    (dtype === "f32" || dtype === "bf16" || dtype === "f16") &&
    device.supports(`conv.moments.${dtype}`)
  );
}

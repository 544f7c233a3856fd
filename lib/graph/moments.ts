import type { Device } from "../tensor";
import type { Node } from "./node";
import { type ConvAttrs, conv2d, conv2dWithMoments } from "./ops/conv";
import { type BatchNormAttrs, batchNormTrain } from "./ops/norm";
import { type BatchNormJoinAttrs, batchNormJoin, joinBranch } from "./ops/norm-join";
import type { Graph } from "./trace";
import type { Spec, Value } from "./value";

/**
 * Lets a 1x1 convolution whose result is normalised by the batch's statistics give the moments that these are computed from,
 * where the device has such convolutions: the normalization then reads the result once and not twice. To be applied after
 * `fuse` and before differentiation.
 */
export function fuseMoments(graph: Graph, device: Device): void {
  // Appends x's moments to the inputs of the node that normalises it; returns how many parts they have, 0 without.
  const give = (norm: Node, x: Value): number => {
    const conv = x.node;
    if (!conv || !canGiveMoments(conv, device)) return 0;
    const parts = device.info.units;
    const attrs = { ...(conv.attrs as ConvAttrs), parts };
    const [, moments] = conv2dWithMoments.infer(conv.inputs, attrs) as [Spec, Spec];
    Object.assign(conv, { op: conv2dWithMoments, attrs });
    norm.inputs.push(graph.addOutput(conv, moments));
    return parts;
  };
  for (const norm of graph.nodes) {
    const inputs = [...norm.inputs];
    if (norm.op === batchNormTrain) {
      const parts = give(norm, inputs[0]!);
      if (parts) Object.assign(norm, { attrs: { ...(norm.attrs as BatchNormAttrs), parts } });
    } else if (norm.op === batchNormJoin) {
      const parts = [give(norm, inputs[0]!), give(norm, inputs[joinBranch]!)] as const;
      Object.assign(norm, { attrs: { ...(norm.attrs as BatchNormJoinAttrs), parts } });
    }
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

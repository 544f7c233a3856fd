import { type Device, dtypeCode } from "../../tensor";
import { type Emitter, expectShape, type Node, type Op, rowsAndChannels, scratchMemory } from "../node";
import type { Spec } from "../value";
import { activationCode } from "./elementwise";
import { type BatchNormAttrs, batchNormWorkspace, checkOperands } from "./norm";

export interface BatchNormJoinAttrs {
  /** Of x and of z. */
  readonly eps: readonly [number, number];
  readonly momentum: readonly [number, number];
  readonly activation: BatchNormAttrs["activation"];
  /** Of x and of z: its moments are given by this many parts (dlfs_batch_norm_statistics). 0: computed from it. */
  readonly parts: readonly [number, number];
}

/** How many inputs each normalization has: its tensor, weight, bias, running mean and running variance. */
export const joinBranch = 5;

/** batchNormJoin that leaves the running statistics as they are. */
const batchNormJoinRepeat: Op<BatchNormJoinAttrs> = {
  kind: "batch_norm_join",
  optionalOutputs: [5],
  infer(inputs, { activation }) {
    const plain = { eps: 0, momentum: 0, residual: false, activation };
    const [x, z] = [
      checkOperands(inputs.slice(0, joinBranch), plain),
      checkOperands(inputs.slice(joinBranch, 2 * joinBranch), plain),
    ];
    const [rows, channels] = rowsAndChannels(x.shape);
    expectShape(
      z.dtype === x.dtype && z.shape.join() === x.shape.join(),
      () => `expected two tensors ${x.dtype} (${x.shape.join(", ")}), got ${z.dtype} (${z.shape.join(", ")})`,
    );
    expectShape(rows > 1, () => `expected more than one value per channel when training, got (${x.shape.join(", ")})`);
    const statistics: Spec = { shape: [channels], dtype: "f32" };
    const mask: Spec = { shape: [rows, Math.ceil(channels / 8)], dtype: "u8" };
    return [x, statistics, statistics, statistics, statistics, ...(activation === "relu" ? [mask] : [])];
  },
  prepare: batchNormWorkspace,
  emit: (e, node) => emitJoin(e, node, false),
};

/**
 * The sum of two batch normalizations with the batch's statistics, and its activation. Inputs x, weight, bias, running mean,
 * running variance, then the same of z, then the moments that are given. Outputs y, and for the backward pass mean and 1 / std
 * of x, then of z, and of ReLU a bit for each element.
 */
export const batchNormJoin: Op<BatchNormJoinAttrs> = {
  ...batchNormJoinRepeat,
  effect: true,
  withoutEffect: batchNormJoinRepeat,
  gradient(builder, { inputs, outputs, attrs: { activation } }, [dy]) {
    const [x, xWeight, , , , z, zWeight] = inputs;
    const [y, xMean, xInvstd, zMean, zInvstd, mask] = outputs;
    const operands = [builder.value(dy!, y!), x!, z!, xWeight!, xMean!, xInvstd!, zWeight!, zMean!, zInvstd!];
    const gradients = builder.apply(batchNormJoinBackward, mask ? [...operands, mask] : operands, { activation });
    const [dx, dz, dxWeight, dxBias, dzWeight, dzBias] = gradients;
    return [dx!, dxWeight!, dxBias!, null, null, dz!, dzWeight!, dzBias!, null, null];
  },
  emit: (e, node) => emitJoin(e, node, true),
};

/** Records both normalizations' statistics, with the running ones where they are to be updated, and their sum. */
function emitJoin(e: Emitter, { inputs, outputs, attrs }: Node<BatchNormJoinAttrs>, running: boolean): void {
  const [y, ...saved] = outputs.slice(0, 5).map((value) => e.address(value)) as [number, ...number[]];
  const [mask, scratch] = [e.optional(outputs[5]), e.workspace];
  const [rows, channels] = rowsAndChannels(inputs[0]!.shape);
  const [dtype, activation] = [dtypeCode(inputs[0]!.dtype), activationCode(attrs.activation)];
  const moments = inputs.slice(2 * joinBranch);
  const operands = [0, 1].map((i) => {
    const parts = attrs.parts[i]!;
    const given = parts ? e.address(moments.shift()!) : null;
    const [x, weight, bias, runningMean, runningVar] = inputs
      .slice(i * joinBranch, (i + 1) * joinBranch)
      .map((value) => e.address(value)) as [number, number, number, number, number];
    const [mean, invstd] = saved.slice(2 * i) as [number, number];
    const [eps, momentum] = [attrs.eps[i]!, attrs.momentum[i]!];
    const [newMean, newVar] = running ? [runningMean, runningVar] : [null, null];
    e.call(() =>
      e.native.batchNormStatistics(
        e.stream,
        mean,
        invstd,
        newMean,
        newVar,
        x,
        given,
        scratch,
        rows,
        channels,
        parts,
        dtype,
        eps,
        momentum,
      ),
    );
    return { x, coefficients: [weight, bias, mean, invstd] as const };
  });
  const [a, b] = [operands[0]!, operands[1]!];
  e.call(() =>
    e.native.batchNormJoin(
      e.stream,
      y,
      mask,
      a.x,
      b.x,
      ...a.coefficients,
      ...b.coefficients,
      rows,
      channels,
      dtype,
      activation,
    ),
  );
}

/**
 * Inputs dy, x, z, x's weight, mean and 1 / std, the same of z and, of ReLU, forward's mask. Outputs the gradients of x and z,
 * of x's weight and bias, of z's weight and bias.
 */
const batchNormJoinBackward: Op<Pick<BatchNormJoinAttrs, "activation">> = {
  kind: "batch_norm_join_backward",
  inplace: [0],
  infer([dy, , , weight]) {
    const parameter: Spec = { shape: weight!.shape, dtype: "f32" };
    return [dy!, dy!, parameter, parameter, parameter, parameter];
  },
  prepare(device: Device, { inputs: [dy] }) {
    const [size, dtype] = [rowsAndChannels(dy!.shape), dtypeCode(dy!.dtype)];
    return scratchMemory((out) => device.native.batchNormJoinWorkspace(device.handle, out, ...size, dtype));
  },
  emit(e, { inputs, outputs }) {
    type Six = [number, number, number, number, number, number];
    const gradients = outputs.map((value) => e.address(value)) as Six;
    const [dy, x, z] = inputs.slice(0, 3).map((value) => e.address(value)) as [number, number, number];
    const coefficients = inputs.slice(3, 9).map((value) => e.address(value)) as Six;
    const [mask, scratch, dtype] = [e.optional(inputs[9]), e.workspace, dtypeCode(inputs[0]!.dtype)];
    const [rows, channels] = rowsAndChannels(inputs[0]!.shape);
    e.call(() =>
      e.native.batchNormJoinBackward(
        e.stream,
        ...gradients,
        dy,
        x,
        z,
        mask,
        ...coefficients,
        scratch,
        rows,
        channels,
        dtype,
      ),
    );
  },
};

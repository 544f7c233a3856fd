import { constants } from "../../native";
import { align, type Communicator, type Device, dtypeCode, elementCount } from "../../tensor";
import {
  type Emitter,
  expectActivation,
  expectShape,
  type Gradient,
  type Node,
  nhwc,
  type Op,
  type Preparation,
  rowsAndChannels,
  scratchMemory,
} from "../node";
import type { Spec, Value } from "../value";
import { activateBackward, activationCode, type FusedActivation } from "./elementwise";

export interface BatchNormAttrs {
  readonly eps: number;
  /** Weight of the batch's statistics in the running ones, as in PyTorch. */
  readonly momentum: number;
  /** A last input is added before the activation. */
  readonly residual: boolean;
  readonly activation: Extract<FusedActivation, "none" | "relu">;
  /** Of batchNormTrain: the last input has x's moments by this many parts (dlfs_batch_norm_train). Default: computed from x. */
  readonly parts?: number;
  /** Of batchNormTrain: the statistics are those of all ranks' rows (synchronized batch normalization), of which all have as many. */
  readonly communicator?: Communicator;
}

/** Checks x with its parameters, and the residual where there is one; returns x. */
export function checkOperands(inputs: readonly Spec[], attrs: BatchNormAttrs): Spec {
  const x = inputs[0]!;
  const c = nhwc(x)[3];
  expectActivation(x, "an image batch");
  const names = ["weight", "bias", "running_mean", "running_var"];
  for (const [i, name] of names.entries()) {
    const operand = inputs[i + 1]!;
    expectShape(
      operand.dtype === "f32" && operand.shape.length === 1 && operand.shape[0] === c,
      () => `expected ${operand.shape[0]} channels (${name}), got ${c}`,
    );
  }
  if (attrs.residual) {
    const z = inputs[5]!;
    expectShape(
      z.dtype === x.dtype && z.shape.join() === x.shape.join(),
      () => `expected a residual ${x.dtype} (${x.shape.join(", ")}), got ${z.dtype} (${z.shape.join(", ")})`,
    );
  }
  return x;
}

/** Addresses of the operands that every form of batch normalization has. */
function firstFive(e: Emitter, inputs: readonly Value[]): [number, number, number, number, number] {
  return inputs.slice(0, 5).map((value) => e.address(value)) as [number, number, number, number, number];
}

/** Scratch memory for the statistics, or the gradients, of a node's first input. */
export function batchNormWorkspace(device: Device, { inputs: [x] }: Node): Preparation {
  const [size, dtype] = [rowsAndChannels(x!.shape), dtypeCode(x!.dtype)];
  return scratchMemory((out) => device.native.batchNormWorkspace(device.handle, out, ...size, dtype));
}

/** The same, and behind it, where ranks share statistics, the rank's own moments and those of all ranks. */
function trainWorkspace(device: Device, node: Node<BatchNormAttrs>): Preparation {
  const { workspace, ...rest } = batchNormWorkspace(device, node);
  const { communicator } = node.attrs;
  if (!communicator) return { workspace, ...rest };
  const moments = momentsBytes(node.inputs[0]!.shape.at(-1)!);
  return { ...rest, workspace: align(workspace) + align(moments) + communicator.world * moments };
}

/** Bytes of one part of moments: means, sums of squared distances, rows. */
const momentsBytes = (channels: number): number => 4 * (2 * channels + 1);

/** batchNormTrain that leaves the running statistics as they are: what its outputs are computed again with. */
const batchNormRepeat: Op<BatchNormAttrs> = {
  kind: "batch_norm",
  optionalOutputs: [3],
  infer(inputs, attrs) {
    const x = checkOperands(inputs, attrs);
    const [rows, channels] = rowsAndChannels(x.shape);
    expectShape(rows > 1, () => `expected more than one value per channel when training, got (${x.shape.join(", ")})`);
    const statistics: Spec = { shape: [channels], dtype: "f32" };
    const mask: Spec = { shape: [rows, Math.ceil(channels / 8)], dtype: "u8" };
    return [x, statistics, statistics, ...(attrs.residual && attrs.activation === "relu" ? [mask] : [])];
  },
  prepare: trainWorkspace,
  emit: (e, node) => emitTrain(e, node, null, null),
};

/**
 * Batch normalization with the batch's statistics. Inputs x, weight, bias, running mean, running variance and, with
 * `residual`, a tensor added before the activation, and with `parts` x's moments. Outputs y, and for the backward pass mean and
 * 1 / std and, of ReLU with a residual, a bit for each element, by which the gradient is masked; without a residual ReLU's zeros
 * follow from x.
 */
export const batchNormTrain: Op<BatchNormAttrs> = {
  ...batchNormRepeat,
  effect: true,
  isCollective: ({ attrs }) => attrs.communicator !== undefined,
  gradient(builder, node, [dy]) {
    const [x, weight, bias] = node.inputs;
    const [y, mean, invstd, mask] = node.outputs;
    const { activation } = node.attrs;
    const upstream = builder.value(dy!, y!);
    const inputs = [upstream, x!, weight!, mean!, invstd!, bias!, ...(mask ? [mask] : [])];
    const attrs = { residual: mask !== undefined, activation, communicator: node.attrs.communicator };
    const [dx, dweight, dbias, dresidual] = builder.apply(batchNormBackward, inputs, attrs);
    // Without ReLU the residual's gradient is dy itself.
    return [dx!, dweight!, dbias!, null, null, ...(node.attrs.residual ? [dresidual ?? upstream] : [])];
  },
  withoutEffect: batchNormRepeat,
  emit(e, node) {
    const [runningMean, runningVar] = node.inputs.slice(3, 5).map((value) => e.address(value)) as [number, number];
    emitTrain(e, node, runningMean, runningVar);
  },
};

/** How many parts, and where their moments are; none are given where x's own are to be taken. */
type Moments = [parts: number, moments: number | null];

/** Takes x's moments and gathers those of all ranks: a part for each. */
function emitSynchronization(e: Emitter, node: Node<BatchNormAttrs>, [parts, moments]: Moments): Moments {
  const { inputs, attrs } = node;
  const communicator = attrs.communicator!;
  const { world } = communicator;
  const [rows, channels] = rowsAndChannels(inputs[0]!.shape);
  const [x, dtype, scratch] = [e.address(inputs[0]!), dtypeCode(inputs[0]!.dtype), e.workspace!];
  const size = momentsBytes(channels);
  const own = scratch + align(batchNormWorkspace(e.device, node).workspace);
  const all = own + align(size);
  // Parts by kinds: all means, all sums, all numbers of rows.
  const [means, sums, counts] = [0, 4 * channels, 8 * channels];
  const outs = BigInt64Array.of(BigInt(all), BigInt(all + world * sums), BigInt(all + world * counts));
  const owns = BigInt64Array.of(BigInt(own + means), BigInt(own + sums), BigInt(own + counts));
  const sizes = BigInt64Array.of(BigInt(4 * channels), BigInt(4 * channels), 4n);
  const label = communicator.labelOf(`statistics of ${node.path}`);
  e.call(() => e.native.batchNormMoments(e.stream, own, x, moments, scratch, rows, channels, parts, dtype));
  e.call(() => e.native.commAllGather(e.stream, communicator.handle, outs, owns, sizes, 3, label));
  e.call(() => e.native.commWait(e.stream, communicator.handle));
  return [world, all];
}

function emitTrain(
  e: Emitter,
  node: Node<BatchNormAttrs>,
  runningMean: number | null,
  runningVar: number | null,
): void {
  const { inputs, outputs, attrs } = node;
  const [x, weight, bias] = firstFive(e, inputs);
  const [y, mean, invstd] = outputs.slice(0, 3).map((value) => e.address(value)) as [number, number, number];
  const residual = attrs.residual ? e.address(inputs[5]!) : null;
  const own: Moments = attrs.parts ? [attrs.parts, e.address(inputs.at(-1)!)] : [0, null];
  const [mask, scratch] = [e.optional(outputs[3]), e.workspace];
  const [rows, channels] = rowsAndChannels(inputs[0]!.shape);
  const [dtype, activation] = [dtypeCode(inputs[0]!.dtype), activationCode(attrs.activation)];
  const [parts, moments] = attrs.communicator ? emitSynchronization(e, node, own) : own;
  e.call(() =>
    e.native.batchNormTrain(
      e.stream,
      y,
      mask,
      mean,
      invstd,
      runningMean,
      runningVar,
      x,
      residual,
      weight,
      bias,
      moments,
      scratch,
      rows,
      channels,
      parts,
      dtype,
      attrs.eps,
      attrs.momentum,
      activation,
    ),
  );
}

/**
 * Inputs dy, x, weight, mean, 1 / std, bias and, of ReLU with a residual, forward's mask. Outputs the gradients of x, weight and
 * bias and, with `residual`, the masked dy.
 */
const batchNormBackward: Op<Pick<BatchNormAttrs, "residual" | "activation" | "communicator">> = {
  kind: "batch_norm_backward",
  inplace: [0],
  optionalOutputs: [3],
  infer([dy, , weight], { residual }) {
    const statistics: Spec = { shape: weight!.shape, dtype: "f32" };
    return residual ? [dy!, statistics, statistics, dy!] : [dy!, statistics, statistics];
  },
  prepare: batchNormWorkspace,
  emit(e, node) {
    if (node.attrs.communicator) {
      emitSynchronizedBackward(e, node);
      return;
    }
    const { inputs, outputs, attrs } = node;
    const [dy, x, weight, mean, invstd] = firstFive(e, inputs);
    const [dx, dweight, dbias] = outputs.slice(0, 3).map((value) => e.address(value)) as [number, number, number];
    const [bias, mask] = [e.address(inputs[5]!), e.optional(inputs[6])];
    const [dresidual, scratch] = [e.optional(outputs[3]), e.workspace];
    const [rows, channels] = rowsAndChannels(inputs[0]!.shape);
    const [dtype, activation] = [dtypeCode(inputs[0]!.dtype), activationCode(attrs.activation)];
    e.call(() =>
      e.native.batchNormBackward(
        e.stream,
        dx,
        dresidual,
        dweight,
        dbias,
        dy,
        x,
        mask,
        weight,
        bias,
        mean,
        invstd,
        scratch,
        rows,
        channels,
        dtype,
        activation,
      ),
    );
  },
};

/**
 * The same where statistics are all ranks': the gradients of weight and bias, which dx depends on, are the ranks' mean. That leaves
 * them as they are where gradients are averaged over the ranks anyway.
 */
function emitSynchronizedBackward(
  e: Emitter,
  { inputs, outputs, attrs, path }: Node<Pick<BatchNormAttrs, "residual" | "activation" | "communicator">>,
): void {
  const communicator = attrs.communicator!;
  const [dy, x, weight, mean, invstd] = firstFive(e, inputs);
  const [dx, dweight, dbias] = outputs.slice(0, 3).map((value) => e.address(value)) as [number, number, number];
  const [bias, mask, scratch] = [e.address(inputs[5]!), e.optional(inputs[6]), e.workspace];
  const [rows, channels] = rowsAndChannels(inputs[0]!.shape);
  const [dtype, activation] = [dtypeCode(inputs[0]!.dtype), activationCode(attrs.activation)];
  const none = activationCode("none");
  // The masked dy is kept: by the residual's gradient, or in dx's memory.
  const masked = mask === null ? e.optional(outputs[3]) : (e.optional(outputs[3]) ?? dx);
  const sums = BigInt64Array.of(BigInt(dweight), BigInt(dbias));
  const sizes = BigInt64Array.of(BigInt(channels), BigInt(channels));
  const [f32, average] = [dtypeCode("f32"), constants.REDUCE_AVERAGE];
  const label = communicator.labelOf(`gradients of ${path}`);
  const at = [weight, bias, mean, invstd] as const;
  e.call(() =>
    e.native.batchNormBackwardSums(
      ...([e.stream, masked, dweight, dbias, dy, x, mask, ...at, scratch, rows, channels, dtype, activation] as const),
    ),
  );
  e.call(() => e.native.commAllReduce(e.stream, communicator.handle, sums, sizes, 2, f32, average, label));
  e.call(() => e.native.commWait(e.stream, communicator.handle));
  const [upstream, kind] = masked === null ? [dy, activation] : [masked, none];
  e.call(() =>
    e.native.batchNormBackwardInput(
      ...([e.stream, dx, upstream, x, null, ...at, dweight, dbias, rows, channels, dtype, kind] as const),
    ),
  );
}

/**
 * Batch normalization with the running statistics; inputs as batchNormTrain. Where a layer in inference mode is part of a model
 * that trains ("frozen" statistics), it is an affine map of x, and differentiated as such.
 */
export const batchNormInfer: Op<BatchNormAttrs> = {
  kind: "batch_norm_infer",
  inplace: [0],
  infer: (inputs, attrs) => [checkOperands(inputs, attrs)],
  gradient(builder, node, [dy]) {
    const [x, weight, bias, mean, variance] = node.inputs as [Value, Value, Value, Value, Value];
    const { residual, activation } = node.attrs;
    const y = node.outputs[0]!;
    let upstream = builder.value(dy!, y);
    if (activation !== "none") upstream = builder.apply(activateBackward, [upstream, y], { activation })[0]!;
    const plain: BatchNormAttrs = { ...node.attrs, residual: false, activation: "none" };
    const zero = builder.value(0, weight);
    const dx = builder.needed(x)
      ? builder.apply(batchNormInfer, [upstream, weight, zero, zero, variance], plain)[0]!
      : null;
    let dweight: Value | null = null;
    let dbias: Value | null = null;
    if (builder.needed(weight) || builder.needed(bias)) {
      // Of values already normalised, the training rule with mean 0 and deviation 1 gives the sums of dy x and of dy.
      const one = builder.value(1, weight);
      const normalised = builder.apply(batchNormInfer, [x, one, zero, mean, variance], plain)[0]!;
      const sums = builder.apply(batchNormBackward, [upstream, normalised, weight, zero, one, bias], {
        residual: false,
        activation: "none",
      });
      dweight = sums[1]!;
      dbias = sums[2]!;
    }
    return [dx, dweight, dbias, null, null, ...(residual ? [upstream] : [])];
  },
  emit(e, { inputs, outputs, attrs }) {
    const [x, weight, bias, mean, variance] = firstFive(e, inputs);
    const [y, residual] = [e.address(outputs[0]!), e.optional(inputs[5])];
    const [rows, channels] = rowsAndChannels(inputs[0]!.shape);
    const [dtype, activation] = [dtypeCode(inputs[0]!.dtype), activationCode(attrs.activation)];
    e.call(() =>
      e.native.batchNormInfer(
        e.stream,
        y,
        x,
        residual,
        weight,
        bias,
        mean,
        variance,
        rows,
        channels,
        dtype,
        attrs.eps,
        activation,
      ),
    );
  },
};

/**
 * Folds running statistics into a convolution. Inputs w (fp32), weight, bias, mean, variance and, where the convolution has
 * one, its bias; outputs the folded weight in `dtype` and the folded bias. Differentiated with respect to the convolution's
 * weight and bias alone: normalizations with trained parameters are not folded in training.
 */
export const batchNormFold: Op<{ eps: number; dtype: Spec["dtype"] }> = {
  kind: "batch_norm_fold",
  hoist: true,
  infer: ([w], { dtype }) => [
    { shape: w!.shape, dtype },
    { shape: [w!.shape[0]!], dtype: "f32" },
  ],
  gradient(builder, { inputs, attrs: { eps } }, upstream) {
    const [weight, variance] = [inputs[1]!, inputs[4]!];
    const scaled = (operand: Value | undefined, gradient: Gradient | null) =>
      operand && gradient !== null && builder.needed(operand)
        ? builder.apply(batchNormFoldBackward, [builder.value(gradient, operand), weight, variance], { eps })[0]!
        : null;
    return [scaled(inputs[0], upstream[0]!), null, null, null, null, scaled(inputs[5], upstream[1]!)];
  },
  emit(e, { inputs, outputs, attrs }) {
    const [w, weight, bias, mean, variance] = firstFive(e, inputs);
    const [foldedW, foldedBias] = outputs.map((value) => e.address(value)) as [number, number];
    const convBias = e.optional(inputs[5]);
    const k = inputs[0]!.shape[0]!;
    const [perChannel, dtype] = [elementCount(inputs[0]!.shape) / k, dtypeCode(attrs.dtype)];
    e.call(() =>
      e.native.batchNormFold(
        e.stream,
        foldedW,
        foldedBias,
        w,
        convBias,
        weight,
        bias,
        mean,
        variance,
        k,
        perChannel,
        dtype,
        attrs.eps,
      ),
    );
  },
};

/** The fp32 gradient of a folded weight (K, ...) or bias (K) times each output channel's factor, weight / sqrt(variance + eps). */
const batchNormFoldBackward: Op<{ eps: number }> = {
  kind: "batch_norm_fold_backward",
  inplace: [0],
  infer: ([gradient]) => [gradient!],
  emit(e, { inputs: [gradient, weight, variance], outputs: [y], attrs: { eps } }) {
    const [dst, src, gain, spread] = [e.address(y!), e.address(gradient!), e.address(weight!), e.address(variance!)];
    const k = gradient!.shape[0]!;
    const perChannel = elementCount(gradient!.shape) / k;
    e.call(() => e.native.batchNormFoldBackward(e.stream, dst, src, gain, spread, k, perChannel, eps));
  },
};

import { constants } from "../../native";
import { type DType, dtypeCode, elementCount } from "../../tensor";
import { expectActivation, expectShape, type GradientBuilder, type Op } from "../node";
import { type Spec, sameShape, type Value } from "../value";

const fusedActivations = ["none", "relu", "sigmoid", "silu", "relu6"] as const;

/** Activations that other operations can end in. */
export type FusedActivation = (typeof fusedActivations)[number];
export type Activation = FusedActivation | "leaky_relu" | "hardswish" | "hardsigmoid";

const activationCodes: Record<Activation, number> = {
  none: constants.ACT_NONE,
  relu: constants.ACT_RELU,
  sigmoid: constants.ACT_SIGMOID,
  silu: constants.ACT_SILU,
  relu6: constants.ACT_RELU6,
  leaky_relu: constants.ACT_LEAKY_RELU,
  hardswish: constants.ACT_HARDSWISH,
  hardsigmoid: constants.ACT_HARDSIGMOID,
};

/** The dlfs_activation of dlfs.h. */
export function activationCode(activation: Activation): number {
  return activationCodes[activation];
}

export function isFusedActivation(activation: Activation): activation is FusedActivation {
  return (fusedActivations as readonly Activation[]).includes(activation);
}

export interface ActivationAttrs {
  readonly activation: Activation;
  /** Of "leaky_relu", for x <= 0. */
  readonly slope?: number;
}

/**
 * Whether an activation is differentiated from its input, which then must be kept. The others are from their output, whose
 * memory may be the input's (a leaky ReLU's output has its input's sign where its slope is not negative).
 */
export function keepsInput({ activation, slope = 0 }: ActivationAttrs): boolean {
  return activation === "silu" || activation === "hardswish" || (activation === "leaky_relu" && slope < 0);
}

/** y = activation(x). */
export const activate: Op<ActivationAttrs> = {
  kind: "activation",
  inplace: [0],
  infer([x]) {
    expectActivation(x!, "a tensor");
    return [x!];
  },
  gradient(builder, node, [dy]) {
    const [x] = node.inputs;
    const [y] = node.outputs;
    const kept = keepsInput(node.attrs) ? x! : y!;
    return builder.apply(activateBackward, [builder.value(dy!, y!), kept], node.attrs);
  },
  emit(e, { inputs: [x], outputs: [y], attrs }) {
    const [dst, src, n] = [e.address(y!), e.address(x!), elementCount(x!.shape)];
    const [dtype, activation] = [dtypeCode(x!.dtype), activationCode(attrs.activation)];
    e.call(() => e.native.activationForward(e.stream, dst, src, n, dtype, activation, attrs.slope ?? 0));
  },
};

/** dx from dy and the kept tensor: the activation's output, or its input where `keepsInput`. */
export const activateBackward: Op<ActivationAttrs> = {
  kind: "activation_backward",
  inplace: [0],
  infer: ([dy]) => [dy!],
  emit(e, { inputs: [dy, kept], outputs: [dx], attrs }) {
    const [dst, upstream, memory, n] = [e.address(dx!), e.address(dy!), e.address(kept!), elementCount(dy!.shape)];
    const [dtype, activation] = [dtypeCode(dy!.dtype), activationCode(attrs.activation)];
    const [x, y] = keepsInput(attrs) ? [memory, null] : [null, memory];
    e.call(() => e.native.activationBackward(e.stream, dst, upstream, x, y, n, dtype, activation, attrs.slope ?? 0));
  },
};

/** Checks that operands are of one shape and dtype; `expected` is for the message. */
function expectAlike(a: Spec, b: Spec, expected: string): void {
  const text = ({ dtype, shape }: Spec) => `${dtype} (${shape.join(", ")})`;
  expectActivation(a, "a tensor");
  expectShape(
    sameShape(a.shape, b.shape) && a.dtype === b.dtype,
    () => `expected ${expected}, got ${text(a)} and ${text(b)}`,
  );
}

/** y = activation(a + b). */
export const add: Op<{ activation: FusedActivation }> = {
  kind: "add",
  inplace: [0, 1],
  infer([a, b]) {
    expectAlike(a!, b!, "two tensors of one shape and dtype");
    return [a!];
  },
  gradient(builder, node, [dy]) {
    const { activation } = node.attrs;
    if (activation === "none") return [dy!, dy!];
    const dx = builder.apply(activateBackward, [builder.value(dy!, node.outputs[0]!), node.outputs[0]!], {
      activation,
    })[0]!;
    return [dx, dx];
  },
  emit(e, { inputs: [a, b], outputs: [y], attrs }) {
    const [dst, left, right, n] = [e.address(y!), e.address(a!), e.address(b!), elementCount(a!.shape)];
    const [dtype, activation] = [dtypeCode(a!.dtype), activationCode(attrs.activation)];
    e.call(() => e.native.add(e.stream, dst, left, right, n, dtype, activation));
  },
};

/** y = a * b, of one shape and dtype. */
export const multiply: Op<object> = {
  kind: "multiply",
  inplace: [0, 1],
  infer([a, b]) {
    const expected = "two tensors of one shape and dtype, or channels' factors (N, 1, 1, C) of images (N, H, W, C)";
    expectAlike(a!, b!, expected);
    return [a!];
  },
  gradient(builder, { inputs: [a, b], outputs: [y] }, [dy]) {
    const upstream = builder.value(dy!, y!);
    const by = (value: Value, other: Value) =>
      builder.needed(value) ? builder.apply(multiply, [upstream, other], {})[0]! : null;
    return [by(a!, b!), by(b!, a!)];
  },
  emit(e, { inputs: [a, b], outputs: [y] }) {
    const [dst, left, right, n] = [e.address(y!), e.address(a!), e.address(b!), elementCount(a!.shape)];
    const dtype = dtypeCode(a!.dtype);
    e.call(() => e.native.multiply(e.stream, dst, left, right, n, dtype));
  },
};

/** y = factor * x, or factor * x * s with a scalar s as second input. */
export const scale: Op<{ factor: number }> = {
  kind: "scale",
  inplace: [0],
  infer([x, s]) {
    expectActivation(x!, "a tensor");
    if (s) {
      expectShape(
        s.dtype === "f32" && elementCount(s.shape) === 1,
        () => `expected an f32 scalar as factor, got ${s.dtype} (${s.shape.join(", ")})`,
      );
    }
    return [x!];
  },
  gradient(builder, node, [dy]) {
    const { factor } = node.attrs;
    const [x, s] = node.inputs;
    if (!s) return [typeof dy === "number" ? dy * factor : builder.apply(scale, [dy!], { factor })[0]!];
    return [builder.apply(scale, [builder.value(dy!, x!), s], { factor })[0]!, null];
  },
  emit(e, { inputs: [x, s], outputs: [y], attrs }) {
    const [dst, src, n, dtype] = [e.address(y!), e.address(x!), elementCount(x!.shape), dtypeCode(x!.dtype)];
    const factor = e.optional(s);
    e.call(() => e.native.scale(e.stream, dst, src, factor, n, dtype, attrs.factor));
  },
};

/** x times a scalar value, for backward rules. */
export function scaleBy(builder: GradientBuilder, x: Value, s: Value): Value {
  return builder.apply(scale, [x, s], { factor: 1 })[0]!;
}

/** A tensor of one value. */
export const fill: Op<{ shape: readonly number[]; dtype: DType; value: number }> = {
  kind: "fill",
  infer: (_, { shape, dtype }) => [{ shape, dtype }],
  emit(e, { outputs: [y], attrs }) {
    const [dst, n, dtype] = [e.address(y!), elementCount(attrs.shape), dtypeCode(attrs.dtype)];
    e.call(() => e.native.fill(e.stream, dst, n, dtype, attrs.value));
  },
};

/** Conversion to another dtype. */
export const cast: Op<{ dtype: DType }> = {
  kind: "cast",
  infer: ([x], { dtype }) => [{ shape: x!.shape, dtype }],
  gradient: (builder, { inputs: [x], outputs: [y] }, [dy]) =>
    builder.apply(cast, [builder.value(dy!, y!)], { dtype: x!.dtype }),
  emit(e, { inputs: [x], outputs: [y] }) {
    const [dst, src, n] = [e.address(y!), e.address(x!), elementCount(x!.shape)];
    const [to, from] = [dtypeCode(y!.dtype), dtypeCode(x!.dtype)];
    e.call(() => e.native.cast(e.stream, dst, src, n, to, from));
  },
};

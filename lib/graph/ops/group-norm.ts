import { dtypeCode, elementCount } from "../../tensor";
import { expectActivation, expectShape, type Node, nhwc, type Op, type Preparation, scratchMemory } from "../node";
import type { Spec, Value } from "../value";
import { type Activation, activationCode } from "./elementwise";

export interface GroupNormAttrs {
  /** How many groups of neighbouring channels have statistics of their own. */
  readonly groups: number;
  readonly eps: number;
  readonly activation: Extract<Activation, "none" | "relu">;
}

type Sizes = [n: number, rows: number, channels: number, groups: number, dtype: number];

function sizes(x: Spec, { groups }: Pick<GroupNormAttrs, "groups">): Sizes {
  const [n, , , c] = nhwc(x);
  return [n, elementCount(x.shape) / (n * c), c, groups, dtypeCode(x.dtype)];
}

const prepare: Op<Pick<GroupNormAttrs, "groups">>["prepare"] = (device, { inputs: [x], attrs }): Preparation =>
  scratchMemory((out) => device.native.groupNormWorkspace(device.handle, out, ...sizes(x!, attrs)));

/**
 * Group normalization of each image's groups of channels, in training and inference alike. Inputs x, weight and bias; outputs y,
 * and mean and 1 / std of each image and group for the backward pass.
 */
export const groupNorm: Op<GroupNormAttrs> = {
  kind: "group_norm",
  inplace: [0],
  infer([x, weight, bias], { groups }) {
    const [n, , , c] = nhwc(x!);
    expectActivation(x!, "an image batch");
    expectShape(c % groups === 0, () => `expected channels divisible by ${groups} groups, got ${c}`);
    for (const [name, operand] of Object.entries({ weight, bias })) {
      expectShape(
        operand!.dtype === "f32" && operand!.shape.length === 1 && operand!.shape[0] === c,
        () => `expected ${operand!.shape[0]} channels (${name}), got ${c}`,
      );
    }
    const statistics: Spec = { shape: [n, groups], dtype: "f32" };
    return [x!, statistics, statistics];
  },
  gradient(builder, { inputs: [x, weight], outputs: [y, mean, invstd], attrs }, [dy]) {
    const { groups, activation } = attrs;
    const inputs = [builder.value(dy!, y!), x!, weight!, mean!, invstd!];
    if (activation === "relu") inputs.push(y!);
    return builder.apply(groupNormBackward, inputs, { groups, activation });
  },
  prepare,
  emit(e, { inputs, outputs, attrs }: Node<GroupNormAttrs>) {
    const [x, weight, bias] = inputs.map((value) => e.address(value)) as [number, number, number];
    const [y, mean, invstd] = outputs.map((value) => e.address(value)) as [number, number, number];
    const [scratch, activation] = [e.workspace, activationCode(attrs.activation)];
    const given = sizes(inputs[0]!, attrs);
    e.call(() =>
      e.native.groupNormForward(e.stream, y, mean, invstd, x, weight, bias, scratch, ...given, attrs.eps, activation),
    );
  },
};

/** Gradients of x, weight and bias. Inputs dy, x, weight, mean, 1 / std and, with ReLU, y. */
const groupNormBackward: Op<Pick<GroupNormAttrs, "groups" | "activation">> = {
  kind: "group_norm_backward",
  inplace: [0],
  infer: ([dy, , weight]) => [dy!, weight!, weight!],
  prepare,
  emit(e, { inputs, outputs, attrs }) {
    const [dy, x, weight, mean, invstd] = inputs.map((value: Value) => e.address(value)) as number[];
    const [dx, dweight, dbias] = outputs.map((value) => e.address(value)) as [number, number, number];
    const [y, scratch, activation] = [e.optional(inputs[5]), e.workspace, activationCode(attrs.activation)];
    const given = sizes(inputs[0]!, attrs);
    e.call(() =>
      e.native.groupNormBackward(
        e.stream,
        dx,
        dweight,
        dbias,
        dy!,
        x!,
        y,
        weight!,
        mean!,
        invstd!,
        scratch,
        ...given,
        activation,
      ),
    );
  },
};

/** Activations and their gradients. */
import { constants } from "../../../lib/native";
import { type GoldenCase, loadGolden } from "../../support/golden";
import { type ActivationName, activate, activationNames, dot, map, slope } from "../reference/elementwise";
import { type Input, type OpCase, recorded } from "./case";

export const activationCodes: Record<ActivationName, number> = {
  none: constants.ACT_NONE,
  relu: constants.ACT_RELU,
  sigmoid: constants.ACT_SIGMOID,
  silu: constants.ACT_SILU,
  relu6: constants.ACT_RELU6,
  leaky_relu: constants.ACT_LEAKY_RELU,
  hardswish: constants.ACT_HARDSWISH,
  hardsigmoid: constants.ACT_HARDSIGMOID,
};

/** Activations that other operations can end in. */
export const fusedNames = ["none", "relu", "sigmoid", "silu", "relu6"] as const satisfies ActivationName[];

/** Sizes around what vector registers and blocks of threads hold. */
const sizes = [1, 7, 64, 1027];

interface Options {
  inPlace?: boolean;
  values?: Input["values"];
  /** Slope of leaky_relu for x <= 0. */
  leak?: number;
}

const drawn: Input["values"] = (random, size) => random.normal(size, 0, 3);

export function activationForward(
  name: string,
  n: number,
  activation: ActivationName,
  { inPlace = false, values = drawn, leak = 0.01 }: Options = {},
): OpCase {
  return {
    op: "activation_forward",
    name,
    inputs: { x: { shape: [n], values } },
    outputs: { y: { shape: [n], ...(inPlace && { inPlaceOf: "x" }) } },
    prepare(c) {
      const [y, x] = ["y", "x"].map((operand) => c.address(operand));
      return () => void c.native.activationForward(c.stream, y!, x!, n, c.dtype, activationCodes[activation], leak);
    },
    reference: ({ x }) => ({ y: map(x!, (value) => activate(value, activation, leak)) }),
  };
}

/** Whether the gradient is computed from x; then y may be NULL, else x. */
const readsX = (activation: ActivationName, leak: number): boolean =>
  activation === "silu" || activation === "hardswish" || (activation === "leaky_relu" && leak < 0);

/** What the operation does not read is NULL. */
export function activationBackward(
  name: string,
  n: number,
  activation: ActivationName,
  { inPlace = false, values = drawn, leak = 0.01 }: Options = {},
): OpCase {
  const y: Input = {
    shape: [n],
    values: (_random, _size, earlier) => map(earlier.x!, (value) => activate(value, activation, leak)),
  };
  const fromX = readsX(activation, leak);
  return {
    op: "activation_backward",
    name,
    inputs: { x: { shape: [n], values }, y, dy: { shape: [n] } },
    outputs: { dx: { shape: [n], ...(inPlace && { inPlaceOf: "dy" }) } },
    prepare(c) {
      const [dx, dy, xs, ys] = ["dx", "dy", "x", "y"].map((operand) => c.address(operand));
      const [x, y] = [fromX ? xs! : null, fromX ? null : ys!];
      const code = activationCodes[activation];
      return () => void c.native.activationBackward(c.stream, dx!, dy!, x, y, n, c.dtype, code, leak);
    },
    // The slopes of sigmoid and hardsigmoid are those at the rounded y.
    reference: ({ x: xs, y: ys, dy }) => ({
      dx: map(dy!, (value, i) => {
        const [x, y] = [xs![i]!, ys![i]!];
        if (activation === "sigmoid") return value * (y * (1 - y));
        if (activation === "hardsigmoid") return y > 0 && y < 1 ? value / 6 : 0;
        return value * slope(x, activation, leak);
      }),
    }),
    gradients: [
      {
        output: "dx",
        of: "x",
        loss: (inputs) =>
          dot(
            inputs.dy!,
            map(inputs.x!, (value) => activate(value, activation, leak)),
          ),
      },
    ],
  };
}

const goldenCase = (golden: GoldenCase<{ negativeSlope?: number }>): OpCase[] => {
  const name = golden.name.replace(/,.*/, "") as ActivationName;
  const leak = golden.params.negativeSlope ?? 0;
  const [x, y, dy, dx] = ["x", "y", "dy", "dx"].map((key) => golden.array(key));
  const n = x!.length;
  return [
    recorded(activationForward(golden.name, n, name, { leak }), { x: x! }, { y: y! }),
    recorded(activationBackward(golden.name, n, name, { leak }), { x: x!, y: y!, dy: dy! }, { dx: dx! }),
  ];
};

const { NaN: nan, POSITIVE_INFINITY: infinity } = Number;
/** The corners of the activations made of straight pieces, and the values beside them. */
const corners = [-6, -3, 0, 3, 6].flatMap((x) => [x - 2 ** -6, x, x + 2 ** -6]);

/** Cases without a check by finite differences, which mean nothing at a corner. */
const withoutDifferences = (opCase: OpCase): OpCase => ({ ...opCase, gradients: undefined });

/** An infinite dy where the activation is flat, and one where it is not: torch selects there, 0 is not multiplied. */
function flat(activation: ActivationName): OpCase {
  const xs = [-8, -4, activation === "hardsigmoid" ? 4 : 8, 1];
  const opCase = activationBackward(`${activation}, infinite dy where it is flat`, 4, activation, { values: () => xs });
  const inputs = { ...opCase.inputs, dy: { shape: [4], values: () => [infinity, -infinity, infinity, infinity] } };
  const above = activation === "relu" || activation === "hardswish" ? infinity : 0;
  return withoutDifferences({ ...opCase, inputs, reference: () => ({ dx: [0, 0, above, infinity] }) });
}

export const activationCases: OpCase[] = [
  ...(["relu", "relu6", "hardswish", "hardsigmoid"] as const).map(flat),
  ...activationNames.flatMap((activation) => [
    ...sizes.map((n) => activationForward(`${activation} of ${n}`, n, activation)),
    activationForward(`${activation} in place`, 513, activation, { inPlace: true }),
    activationForward(`${activation} at corners`, corners.length, activation, { values: () => corners }),
    ...sizes.map((n) => activationBackward(`${activation} of ${n}`, n, activation)),
    activationBackward(`${activation}, dx in dy's memory`, 513, activation, { inPlace: true }),
    withoutDifferences(
      activationBackward(`${activation} at corners`, corners.length, activation, { values: () => corners }),
    ),
    ...(activation === "none"
      ? []
      : [activationForward(`${activation} keeps NaN`, 4, activation, { values: () => [nan, 1, -1, nan] })]),
  ]),
  ...[0, 0.2, 1.5, -0.2].flatMap((leak) => [
    activationForward(`leaky_relu of slope ${leak}`, 300, "leaky_relu", { leak }),
    activationBackward(`leaky_relu of slope ${leak}`, 300, "leaky_relu", { leak }),
  ]),
  ...(["relu", "relu6", "leaky_relu", "hardsigmoid"] as const).map((activation) =>
    activationForward(`${activation} of infinity`, 2, activation, { values: () => [infinity, -infinity] }),
  ),
  ...loadGolden("activation").flatMap(goldenCase),
  ...loadGolden<{ negativeSlope?: number }>("activation-piecewise").flatMap(goldenCase),
];

const bench = 8 * 80 * 80 * 256;
export const activationBenches: OpCase[] = [
  activationForward("relu, 8x80x80x256", bench, "relu"),
  activationForward("silu, 8x80x80x256", bench, "silu"),
  activationForward("hardswish, 8x80x80x256", bench, "hardswish"),
  activationBackward("relu6, 8x80x80x256", bench, "relu6"),
  activationBackward("silu, 8x80x80x256", bench, "silu"),
  activationBackward("hardswish, 8x80x80x256", bench, "hardswish"),
];

/**
 * What a case of an operation is. One list per operation serves three ends: the correctness test and the gradient check
 * (tests/ops/check.ts) and the benchmark (tests/bench).
 */
import type { NativeFunctions } from "../../../lib/native";
import type { Device, DType, Feature } from "../../../lib/tensor";
import { expectClose, roundoff, type Tolerance } from "../../support/compare";
import type { Random } from "../../support/random";

export type Numbers = ArrayLike<number>;
/** Operands by name, row-major. */
export type Arrays = Record<string, Numbers>;

/** Dtype of an operand: "x" is the one under test (f32, bf16 or f16). */
export type Kind = DType | "x";

export interface Operand {
  shape: readonly number[];
  /** Default "x". */
  kind?: Kind;
}

export interface Input extends Operand {
  /** Draws the values; `earlier` holds the inputs listed before, as rounded to their dtype. Default: normal. */
  values?: (random: Random, size: number, earlier: Arrays) => Numbers;
}

export interface Output extends Operand {
  /** Shares the memory of this input. Else it starts as poison. */
  inPlaceOf?: string;
  /** How many products one element sums up; default 1. */
  terms?: number;
  /**
   * How often the value is rounded to the activations' dtype on its way; default once where that is its own dtype. More where
   * the contract lets a library without a fused form store an intermediate result.
   */
  roundings?: number;
  /** Magnitude of intermediate results that are rounded so. Default 1. */
  magnitude?: number;
  /** Replaces the default of `tolerance()`. */
  tolerance?: Tolerance;
}

/** What prepare() works with. */
export interface CaseContext {
  device: Device;
  native: NativeFunctions;
  /** The stream's handle. */
  stream: number;
  /** The dlfs_dtype of "x". */
  dtype: number;
  /** Address of an operand; NULL where the case has none of that name. */
  address(name: string): number | null;
  /** Poisoned scratch memory of so many bytes; null for 0. */
  workspace(bytes: number): number | null;
  /** Runs after the case. */
  defer(release: () => void): void;
}

/** A gradient that an operation computes, with the scalar whose derivative it is. */
export interface GradientCheck {
  /** The output that holds the gradient. */
  output: string;
  /** The input it belongs to. */
  of: string;
  /** The scalar, from the inputs, in float64. */
  loss: (inputs: Arrays) => number;
}

export interface OpCase {
  op: string;
  name: string;
  inputs: Record<string, Input>;
  outputs: Record<string, Output>;
  /** The dtypes that "x" may have; default f32, bf16 and f16. */
  dtypes?: readonly ("f32" | "bf16" | "f16")[];
  /** Needed besides the dtype. */
  features?: (dtype: DType) => Feature[];
  /** Plans the operation and returns the function that enqueues it; that may be called many times. */
  prepare: (c: CaseContext) => () => void;
  reference: (inputs: Arrays) => Arrays;
  gradients?: GradientCheck[] | undefined;
  /** Multiplications and additions of one run, where they bound its speed; elsewhere the operands' traffic does. */
  flops?: number;
}

/** Storage type of an operand when "x" is `dtype`. */
export function kindOf(operand: Operand, dtype: DType): DType {
  const kind = operand.kind ?? "x";
  return kind === "x" ? dtype : kind;
}

/**
 * Allowed differences of a result from float64 arithmetic on the same (already rounded) inputs.
 * - fp32: every operation rounds by at most 2^-24 relative; `terms` products of magnitude about 1, summed in any order, may
 *   err by terms * 2^-24 in the worst case of random signs; 4 times that leaves room for inputs up to 2 and for algorithms
 *   that transform (Winograd), and is 1000 times below what a wrong term or TF32 would give. A few roundings at the end: 1e-6.
 * - bf16, f16: sums are fp32, then one rounding to the dtype, 2^-8 or 2^-11 relative; 2 % more for the edge of a binade.
 */
export function tolerance(dtype: DType, terms = 1): Tolerance {
  const atol = Math.max(1e-6, 4 * terms * roundoff.f32);
  if (dtype === "bf16" || dtype === "f16")
    return { rtol: 1.02 * roundoff[dtype] + 1e-6, atol: dtype === "f16" ? atol + 2 ** -24 : atol };
  return { rtol: 2e-6, atol };
}

/**
 * A case whose inputs and expected outputs were recorded elsewhere. The reference is compared with the record as well, so
 * that what it says about all other cases is backed by PyTorch.
 *
 * @param margin differences allowed between reference and record, which was computed in fp32
 */
export function recorded(
  opCase: OpCase,
  inputs: Arrays,
  outputs: Arrays,
  margin: Tolerance = { rtol: 1e-5, atol: 1e-5 },
): OpCase {
  const fixed = Object.entries(opCase.inputs).map(([name, input]): [string, Input] => {
    const values = inputs[name];
    return [name, values ? { ...input, values: () => values } : input];
  });
  return {
    ...opCase,
    name: `${opCase.name} (recorded)`,
    inputs: Object.fromEntries(fixed),
    dtypes: ["f32"],
    gradients: undefined,
    reference(values) {
      const own = opCase.reference(values);
      for (const [name, expected] of Object.entries(outputs))
        expectClose(own[name]!, expected, margin, `the reference's ${name}`);
      return { ...own, ...outputs };
    },
  };
}

import { check, ErrorCode } from "../native";
import type { Device, Feature } from "./device";
import type { DType } from "./dtype";

/** Dtypes that activations may have. */
export type ActivationDType = Extract<DType, "f32" | "bf16" | "f16">;

/** How a network computes: the dtype of its activations, and of its convolutions' arithmetic. */
export interface PrecisionPolicy {
  readonly name: "fp32" | "tf32" | "bf16" | "fp16";
  readonly dtype: ActivationDType;
  /** Convolutions and matrix products of fp32 round what they multiply to TF32 (10 bits of mantissa). */
  readonly tf32: boolean;
  /** Gradients need a scale, so as not to vanish: fp16's smallest number is 6e-8. */
  readonly lossScaling: boolean;
}

/**
 * The precisions by name. Parameters, their gradients, momentum, statistics, losses and boxes are fp32 in all of them, and sums
 * within an operation are.
 *
 * - fp32: everything
 * - tf32: as fp32, but that a GPU's tensor cores may round what convolutions multiply; cards of compute capability 8.0 and later,
 *   fp32 elsewhere
 * - bf16: activations with fp32's range and 8 bits of mantissa; cards of compute capability 8.0 and later, and the CPU
 * - fp16: activations with 11 bits of mantissa up to 65504, trained with dynamic loss scaling; cards of compute capability 7.5 and
 *   later
 */
const policies = {
  fp32: { name: "fp32", dtype: "f32", tf32: false, lossScaling: false },
  tf32: { name: "tf32", dtype: "f32", tf32: true, lossScaling: false },
  bf16: { name: "bf16", dtype: "bf16", tf32: false, lossScaling: false },
  fp16: { name: "fp16", dtype: "f16", tf32: false, lossScaling: true },
} as const satisfies Record<PrecisionPolicy["name"], PrecisionPolicy>;

/** All names that say a precision: the policies', and the dtypes'. */
const byName = { ...policies, f32: policies.fp32, f16: policies.fp16 } as const;

export type Precision = keyof typeof byName;

export const precisionNames = Object.keys(byName) as Precision[];

/** The policy of a name. */
export function precisionPolicy(name: Precision): PrecisionPolicy {
  check(
    Object.hasOwn(byName, name),
    "precision",
    () => `expected one of ${precisionNames.join(", ")}, got ${JSON.stringify(name)}`,
  );
  return byName[name];
}

/** Throws where a device cannot compute in a precision; `op` is who asks. */
export function checkPrecision({ name, dtype, tf32 }: PrecisionPolicy, device: Device, op: string): void {
  const needed: Feature[] = dtype === "f32" ? [] : [dtype, `conv.${dtype}`];
  check(
    needed.every((feature) => device.supports(feature)),
    op,
    () => `precision ${name} is not supported by ${device.info.name} (backend ${device.backend})`,
    ErrorCode.unsupported,
  );
  check(!tf32 || device.tf32, op, () => `precision tf32 is a mode of the device: open it with { tf32: true }`);
}

/** "bf16", or what a device makes of it: "tf32 (fp32 here: NAME has no TF32)". */
export function precisionText({ name, tf32 }: PrecisionPolicy, device: Device): string {
  return tf32 && !device.supports("tf32") ? `${name} (fp32 here: ${device.info.name} has no TF32)` : name;
}

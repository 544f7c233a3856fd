/** Values of options, checked; what is wrong is a UsageError, which ends the command with 2. */

import { type PrecisionPolicy, precisionNames, precisionPolicy } from "../tensor";
import { parseRecompute, type TrainStepOptions } from "../train";

/** The command was called wrongly. */
export class UsageError extends Error {}

export function positiveInteger(name: string, text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new UsageError(`--${name}: expected an integer from 1, got "${text}"`);
}

export function number(name: string, text: string): number {
  const value = Number(text);
  if (text.trim() !== "" && Number.isFinite(value)) return value;
  throw new UsageError(`--${name}: expected a number, got "${text}"`);
}

export function milliseconds(name: string, text: string): number {
  const value = Number(text);
  if (text.trim() !== "" && Number.isFinite(value) && value >= 0) return value;
  throw new UsageError(`--${name}: expected milliseconds from 0, got "${text}"`);
}

/** "640" or "480x640". */
export function sizeOf(name: string, text: string): [height: number, width: number] {
  const match = /^([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?$/.exec(text);
  if (match) return [Number(match[1]), Number(match[2] ?? match[1])];
  throw new UsageError(`--${name}: expected N or HxW in pixels, got "${text}"`);
}

export function oneOf<T extends string>(name: string, text: string, allowed: readonly T[]): T {
  const found = allowed.find((value) => value === text);
  if (found !== undefined) return found;
  throw new UsageError(`--${name}: expected one of ${allowed.join(", ")}, got "${text}"`);
}

/** The policy of a precision's name. */
export function precisionOf(name: string, text: string): PrecisionPolicy {
  return precisionPolicy(oneOf(name, text, precisionNames));
}

/** "all", "none" or a size, "10GiB": what a training step computes again instead of keeping it. */
export function recomputeOf(name: string, text: string): NonNullable<TrainStepOptions["recompute"]> {
  const option = parseRecompute(text);
  if (option !== null) return option;
  throw new UsageError(`--${name}: expected all, none or a size such as 10GiB or 800MiB, got "${text}"`);
}

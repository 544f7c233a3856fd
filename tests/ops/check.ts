/** Registers the tests of a list of cases: results, the same bytes in deterministic mode, and gradients. */
import { describe, expect, test } from "bun:test";
import type { DType } from "../../lib/tensor";
import { expectClose, expectSameBytes, roundoff } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { Random } from "../support/random";
import { type Arrays, type GradientCheck, kindOf, type OpCase, tolerance } from "./cases/case";
import { dot } from "./reference/elementwise";
import { drawInputs, runCase } from "./run-case";

/** Tests for each dtype that the device has; the cases it cannot run are one skipped test for each reason. */
export function describeCases(title: string, cases: readonly OpCase[]): void {
  describe(title, () => {
    const skipped = new Map<string, number>();
    for (const opCase of cases) {
      for (const dtype of opCase.dtypes ?? (["f32", "bf16", "f16"] as const)) {
        const label = `${opCase.op} ${dtype}: ${opCase.name}`;
        const reason = missing(testDevice(), dtype, opCase.features?.(dtype));
        if (reason) {
          skipped.set(reason, (skipped.get(reason) ?? 0) + 1);
          continue;
        }
        test(label, () => checkResults(opCase, dtype));
        if (dtype === "f32" && opCase.gradients) test(`${label}: gradients`, () => checkGradients(opCase));
      }
    }
    for (const [reason, count] of skipped) test.skip(`${count} cases (${reason})`, () => {});
  });
}

/** The results agree with the reference; in deterministic mode too, where a second run gives the same bytes. */
export function checkResults(opCase: OpCase, dtype: DType): void {
  checkAlgorithms([opCase], dtype);
}

/** The same for cases that differ in how they compute alone: one reference, which takes longer than all else, serves them. */
export function checkAlgorithms(cases: readonly [OpCase, ...OpCase[]], dtype: DType): void {
  const inputs = drawInputs(cases[0], dtype);
  const expected = cases[0].reference(inputs);
  for (const opCase of cases) {
    expect(Object.keys(expected)).toEqual(expect.arrayContaining(Object.keys(opCase.outputs)));
    compare(opCase, dtype, runCase(testDevice(), opCase, dtype, inputs).outputs, expected);
    const deterministic = testDevice({ deterministic: true });
    const first = runCase(deterministic, opCase, dtype, inputs);
    compare(opCase, dtype, first.outputs, expected);
    const second = runCase(deterministic, opCase, dtype, inputs);
    for (const name of Object.keys(opCase.outputs))
      expectSameBytes(second.bytes[name]!, first.bytes[name]!, `${name}, second run`);
  }
}

function compare(opCase: OpCase, dtype: DType, actual: Arrays, expected: Arrays): void {
  for (const [name, output] of Object.entries(opCase.outputs)) {
    const kind = kindOf(output, dtype);
    const exact = kind === "i32" || kind === "u8";
    const allowed = { ...(output.tolerance ?? (exact ? { rtol: 0, atol: 0 } : tolerance(kind, output.terms))) };
    if (output.roundings && (dtype === "bf16" || dtype === "f16")) {
      allowed.rtol = Math.max(allowed.rtol, tolerance(dtype).rtol);
      allowed.atol += (output.roundings - 1) * (output.magnitude ?? 1) * roundoff[dtype];
    }
    expectClose(actual[name]!, expected[name]!, allowed, name, output.shape);
  }
}

/**
 * Compares each gradient with central differences of its loss in float64, along random directions of +1 and -1: the sum of
 * gradient times direction is the slope along it. The step's own error is about 1e-10, so what is seen is the operation's:
 * 1e-4 of the gradient's norm leaves 2^-24 per element and sums of thousands of terms, and one wrong element of a thousand
 * equal ones would be 300 times that.
 */
function checkGradients(opCase: OpCase): void {
  const inputs = drawInputs(opCase, "f32");
  const { outputs } = runCase(testDevice(), opCase, "f32", inputs);
  for (const check of opCase.gradients!) {
    const gradient = outputs[check.output]!;
    const norm = Math.sqrt(dot(gradient, gradient));
    for (const seed of ["a", "b", "c"]) {
      const random = new Random(`${opCase.name} ${check.of} ${seed}`);
      const direction = Float64Array.from({ length: gradient.length }, () => (random.next() < 0.5 ? 1 : -1));
      const along = dot(direction, gradient);
      expectClose(
        [along],
        [slopeAlong(check, inputs, direction)],
        { rtol: 1e-5, atol: 1e-4 * norm + 1e-8 },
        `d loss / d ${check.of} along ${seed}`,
      );
    }
  }
}

function slopeAlong(check: GradientCheck, inputs: Arrays, direction: Float64Array): number {
  const step = 1e-5;
  const at = (sign: number) => {
    const moved = Float64Array.from(inputs[check.of]!, (value, i) => value + sign * step * direction[i]!);
    return check.loss({ ...inputs, [check.of]: moved });
  };
  return (at(1) - at(-1)) / (2 * step);
}

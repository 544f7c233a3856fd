/** Compares detectors with the numbers that tests/golden/detectors recorded with torchvision. */
import { expect, test } from "bun:test";
import { type Case, compute, type Family, uniform } from "../golden/detectors/network";
import { expectClose } from "./compare";
import { testDevice } from "./device";

const device = testDevice();

/** Detections and losses as they are; of other tensors norm, largest magnitude, projection and two values. */
interface Recorded {
  shape: number[];
  values: number[];
}

/** A golden file as JSON. */
interface Golden {
  cases: { name: string; case: object; tensors: object }[];
}

/** The summary that common.py computes, in double precision. */
function summary(name: string, data: Float32Array, samples: number): number[] {
  const signs = uniform(`projection of ${name}`, data.length);
  let [squares, largest, projection] = [0, 0, 0];
  for (let i = 0; i < data.length; ++i) {
    const x = data[i] as number;
    squares += x * x;
    largest = Math.max(largest, Math.abs(x));
    projection += x * (signs[i] as number);
  }
  const values = Array.from({ length: samples }, (_, k) => data[(k * 2654435761 + 12345) % data.length] as number);
  return [Math.sqrt(squares), largest, projection, ...values];
}

/** Norms below this are 0 but for the rounding of double precision: the gradient of a bias before batch normalization. */
const ZERO = 1e-12;

/** What single precision may make of such a 0. */
const ROUNDING = 1e-6;

/**
 * Compares summaries of a tensor: its norm, and the product with numbers of variance 1/3, within the tolerance relative to the
 * norm; its largest magnitude and its values within the tolerance relative to the largest.
 */
function expectSummary(name: string, data: Float32Array, { values }: Recorded, tolerance: number): void {
  const [norm, largest, projection, ...samples] = values as [number, number, number, ...number[]];
  const [gotNorm, gotLargest, gotProjection, ...gotSamples] = summary(name, data, samples.length);
  if (norm < ZERO) {
    expectClose([gotNorm!], [0], { rtol: 0, atol: ROUNDING }, `${name}: norm`);
    return;
  }
  expectClose(
    [gotNorm!, gotProjection!],
    [norm, projection],
    { rtol: 0, atol: tolerance * norm },
    `${name}: norm and projection`,
  );
  expectClose(
    [gotLargest!, ...gotSamples],
    [largest, ...samples],
    { rtol: 0, atol: tolerance * largest },
    `${name}: largest and samples`,
  );
}

/** Every recorded detection has a counterpart: the same label, its box within 0.1 pixel, its score within 1e-4. */
function expectDetections(name: string, data: Float32Array, { values }: Recorded): void {
  const found = Array.from({ length: data.length / 6 }, (_, i) => [...data.subarray(6 * i, 6 * i + 6)]);
  const limits = [0.1, 0.1, 0.1, 0.1, 1e-4, 0];
  for (let i = 0; i < values.length; i += 6) {
    const row = values.slice(i, i + 6);
    const at = found.findIndex((other) => other.every((x, k) => Math.abs(x - row[k]!) <= limits[k]!));
    if (at < 0) throw new Error(`${name}: no detection like ${row.join(", ")}`);
    found.splice(at, 1);
  }
}

/** A test for each case of a golden file. */
export function goldenTests<C extends Case>(family: Family<C>, golden: Golden): void {
  for (const { name, case: given, tensors } of golden.cases) {
    test(name, async () => {
      const expected = new Map(Object.entries(tensors as Record<string, Recorded>));
      const actual = await compute(device, family, given as C);
      const names = [...actual.keys()];
      // Of some cases only a sample of the parameters is recorded.
      const compared = "every" in given ? names.filter((key) => expected.has(key)) : names;
      expect(compared.sort()).toEqual([...expected.keys()].sort());
      for (const key of compared) {
        const [{ shape, data }, recorded] = [actual.get(key)!, expected.get(key)!];
        expect(`${key} (${shape.join(", ")})`).toBe(`${key} (${recorded.shape.join(", ")})`);
        if (key === "losses") expectClose(data, recorded.values, { rtol: 1e-5, atol: 0 }, key, shape);
        else if (key.startsWith("detections")) expectDetections(key, data, recorded);
        else expectSummary(key, data, recorded, key.startsWith("grad.") ? 1e-3 : 1e-4);
      }
    }, 60_000);
  }
}

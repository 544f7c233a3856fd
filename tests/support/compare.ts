/** Comparison of arrays of numbers with messages that say where and how far they differ. */

export interface Tolerance {
  /** Largest difference relative to the expected value. */
  rtol: number;
  /** Largest difference besides. */
  atol: number;
}

export const exact: Tolerance = { rtol: 0, atol: 0 };

/** Unit roundoff: half the distance between neighbouring numbers, relative. */
export const roundoff = { f32: 2 ** -24, bf16: 2 ** -8, f16: 2 ** -11 } as const;

/** Row-major index -> "(1, 0, 3)". */
export function position(index: number, shape: readonly number[]): string {
  const at: number[] = [];
  let rest = index;
  for (const size of [...shape].reverse()) {
    at.unshift(rest % size);
    rest = Math.floor(rest / size);
  }
  return `(${at.join(", ")})`;
}

/**
 * Throws unless |actual - expected| <= atol + rtol |expected| everywhere; NaN equals NaN, infinities equal themselves.
 *
 * @param what names the array in the message
 */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { rtol, atol }: Tolerance,
  what = "values",
  shape: readonly number[] = [expected.length],
): void {
  if (actual.length !== expected.length) {
    throw new Error(`${what}: expected ${expected.length} values, got ${actual.length}`);
  }
  let [count, worst, worstExcess] = [0, -1, 0];
  for (let i = 0; i < expected.length; ++i) {
    const [a, e] = [actual[i] as number, expected[i] as number];
    if (a === e || (Number.isNaN(a) && Number.isNaN(e))) continue;
    const allowed = atol + rtol * Math.abs(e);
    const difference = Math.abs(a - e);
    if (difference <= allowed && Number.isFinite(e)) continue;
    ++count;
    const excess = Number.isFinite(difference) ? difference / (allowed || Number.MIN_VALUE) : Number.POSITIVE_INFINITY;
    if (worst < 0 || excess > worstExcess) [worst, worstExcess] = [i, excess];
  }
  if (count === 0) return;
  const [a, e] = [actual[worst] as number, expected[worst] as number];
  throw new Error(
    `${what} (${shape.join(", ")}): ${count} of ${expected.length} differ; worst at ${position(worst, shape)}: ` +
      `expected ${e}, got ${a} (difference ${Math.abs(a - e)}, allowed ${atol + rtol * Math.abs(e)})`,
  );
}

/** Throws unless two byte arrays are equal, naming the first difference. */
export function expectSameBytes(actual: Uint8Array, expected: Uint8Array, what = "bytes"): void {
  if (actual.length !== expected.length)
    throw new Error(`${what}: expected ${expected.length} bytes, got ${actual.length}`);
  if (Buffer.compare(actual, expected) === 0) return;
  const at = expected.findIndex((byte, i) => byte !== actual[i]);
  const count = expected.reduce((sum, byte, i) => sum + (byte === actual[i] ? 0 : 1), 0);
  throw new Error(
    `${what}: ${count} of ${expected.length} bytes differ, first at ${at}: expected ${expected[at]}, got ${actual[at]}`,
  );
}

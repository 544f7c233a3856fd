/** Curves of many points, and what is shown of them. */
import { describe, expect, test } from "bun:test";
import { Curve } from "../../lib/dashboard";

function curveOf(ys: readonly number[], xs: readonly number[] = ys.map((_, i) => i)): Curve {
  const curve = new Curve();
  for (const [i, y] of ys.entries()) curve.push(xs[i] as number, y);
  return curve;
}

describe("points", () => {
  test("are all of them where they are few", () => {
    expect(curveOf([3, 1, 2]).points()).toEqual({ x: [0, 1, 2], y: [3, 1, 2] });
    expect(new Curve().points()).toEqual({ x: [], y: [] });
  });

  test("of 100,000 keep each bucket's lowest and highest, in their order", () => {
    const ys = Array.from({ length: 100_000 }, (_, i) => Math.sin(i / 5000));
    ys[54_321] = 40;
    ys[54_322] = -30;
    const { x, y } = curveOf(ys).points({ buckets: 500 });
    expect(x.length).toBeLessThanOrEqual(1002);
    expect(x.length).toBeGreaterThan(500);
    expect(x).toEqual(x.toSorted((a, b) => a - b));
    expect(y[x.indexOf(54_321)]).toBe(40);
    expect(y[x.indexOf(54_322)]).toBe(-30);
  });

  test("of a range are finer, and reach beyond its edges by one", () => {
    const curve = curveOf(Array.from({ length: 10_000 }, (_, i) => i % 7));
    expect(curve.points({ from: 100, to: 103, buckets: 50 }).x).toEqual([99, 100, 101, 102, 103, 104]);
    const { x } = curve.points({ from: 2000, to: 3000, buckets: 50 });
    expect(x.length).toBeLessThanOrEqual(102);
    expect(x.every((at) => at >= 1999 && at <= 3001)).toBe(true);
  });

  test("of uneven distance fall into buckets by x", () => {
    const xs = [...Array.from({ length: 1000 }, (_, i) => i / 1000), 1000];
    expect(
      curveOf(
        xs.map((_, i) => i),
        xs,
      ).points({ buckets: 10 }),
    ).toEqual({ x: [0, 0.999, 1000], y: [0, 999, 1000] });
  });

  test("that are no finite numbers are gaps, and hide nothing", () => {
    expect(curveOf([1, NaN, Infinity]).points().y).toEqual([1, null, null]);
    const ys = Array.from({ length: 1000 }, (_, i) => (i % 2 ? NaN : i));
    expect(curveOf(ys).points({ buckets: 10 }).y).not.toContain(null);
    const { y } = curveOf(ys.map((_, i) => (i < 500 ? NaN : 1))).points({ buckets: 10 });
    expect(y.filter((one) => one === null)).toHaveLength(5);
  });
});

test("steps that are done again replace the old ones", () => {
  const curve = curveOf([1, 2, 3, 4]);
  curve.push(2, 30);
  expect([[...curve.x], [...curve.y]]).toEqual([
    [0, 1, 2],
    [1, 2, 30],
  ]);
});

test("smoothing averages what was before, without a start at zero", () => {
  const { y } = curveOf([4, NaN, 8]).smooth(0.5);
  expect(y[0]).toBeCloseTo(4, 12);
  // (0.25 * 4 + 0.5 * 8) / 0.75
  expect(y[1]).toBeCloseTo(20 / 3, 12);
  expect(y).toHaveLength(2);
});

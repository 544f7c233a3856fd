/** What orders unlabelled images: formulas by hand-computed values, and choices whose answer is known. */
import { describe, expect, test } from "bun:test";
import {
  aggregate,
  balance,
  classWeights,
  committeeDisagreement,
  disagreement,
  type FoundBox,
  iouOf,
  kCenterGreedy,
  margin,
  mirrored,
  pairBoxes,
  rankImages,
  scoreEntropy,
  uncertainty,
} from "../../lib/label/rank";

const box = (x: number, score: number, label = 0): FoundBox => ({ box: [x, 0, x + 10, 10], score, label });

describe("values of an image", () => {
  test("are aggregated as asked, and 0 without boxes", () => {
    expect((["sum", "mean", "max"] as const).map((how) => aggregate([1, 2, 6], how))).toEqual([9, 3, 6]);
    expect((["sum", "mean", "max"] as const).map((how) => aggregate([], how))).toEqual([0, 0, 0]);
    for (const value of [uncertainty([]), margin([]), balance([], [1]), disagreement([], [])]) expect(value).toBe(0);
  });

  test("entropy is one bit at 0.5, the same on both sides, and 0 at the ends", () => {
    expect(scoreEntropy(0.5)).toBe(1);
    expect(scoreEntropy(0.25)).toBeCloseTo(0.811278, 6);
    expect(scoreEntropy(0.75)).toBeCloseTo(0.811278, 6);
    expect([scoreEntropy(0), scoreEntropy(1)]).toEqual([0, 0]);
    expect(uncertainty([box(0, 0.5), box(20, 0.25)], "mean")).toBeCloseTo((1 + 0.811278) / 2, 6);
  });

  test("the margin is to another class at the same place, or to the background", () => {
    // Alone, the background has 0.1; beside a dog of 0.8 that is the runner-up; one far away is an object of its own.
    expect(margin([box(0, 0.9)])).toBeCloseTo((1 - 0.8) ** 2, 12);
    expect(margin([box(1, 0.8, 1), box(0, 0.9, 0)])).toBeCloseTo((1 - 0.1) ** 2, 12);
    expect(margin([box(0, 0.9, 0), box(30, 0.8, 1)])).toBeCloseTo(0.2 ** 2 + 0.4 ** 2, 12);
    // Of the same class, it is the same object, and no runner-up.
    expect(margin([box(0, 0.9), box(1, 0.8)])).toBeCloseTo(0.2 ** 2, 12);
  });

  test("disagreement is 0 of the same, 1 of nothing in common, and what it says in between", () => {
    const boxes = [box(0, 0.9), box(30, 0.6, 1)];
    expect(disagreement(boxes, [...boxes].reverse())).toBeCloseTo(0, 12);
    expect(disagreement(boxes, [])).toBe(1);
    expect(disagreement([box(0, 0.9, 0)], [box(0, 0.9, 1)])).toBe(1);
    // One box moved by 2 of 10: IoU 8 / 12.
    expect(disagreement([box(0, 0.8)], [box(2, 0.4)])).toBeCloseTo(1 - (2 * (8 / 12) * 0.4) / 1.2, 12);
    expect(committeeDisagreement([[box(0, 1)], [box(0, 1)], []])).toBeCloseTo(2 / 3, 12);
    expect(committeeDisagreement([boxes])).toBe(0);
  });

  test("a mirror image's boxes come back to where they are", () => {
    expect(mirrored([box(0, 0.5, 1)], 100)).toEqual([{ box: [90, 0, 100, 10], score: 0.5, label: 1 }]);
  });

  test("rare classes are worth more", () => {
    expect(classWeights([8, 0])).toEqual([10 / 9, 10]);
    expect(balance([box(0, 0.5, 0), box(0, 0.5, 1)], [1, 10])).toBe(5.5);
  });
});

test("boxes are paired by overlap, each once, the closest first", () => {
  expect(iouOf([0, 0, 10, 10], [10, 0, 20, 10])).toBe(0);
  expect(iouOf([0, 0, 0, 10], [0, 0, 0, 10])).toBe(0);
  const pairs = pairBoxes([box(0, 1), box(2, 1)], [box(2, 1), box(3, 1)], 0.5);
  expect(pairs.map(({ a, b }) => [a, b])).toEqual([
    [1, 0],
    [0, 1],
  ]);
  expect(pairBoxes([box(0, 1)], [box(0, 1)], 0.5, () => false)).toEqual([]);
});

describe("k-center greedy", () => {
  const points = (...rows: number[][]) => rows.map((row) => Float32Array.from(row));

  test("begins near the mean, and goes to what is farthest", () => {
    const chosen = kCenterGreedy(points([0], [1], [2], [10], [11]), { count: 3 });
    // The mean is 4.8: 2 is nearest; then 11 is 9 away, then 0 is 2 away (10 is 1).
    expect(chosen.map(({ index }) => index)).toEqual([2, 4, 0]);
    expect(chosen.map(({ distance }) => distance)).toEqual([1, 1, 2 / 9]);
  });

  test("keeps away from what is labelled", () => {
    const features = points([0, 0], [0, 9], [5, 5]);
    const chosen = kCenterGreedy(features, { count: 9, labelled: points([0, 8]) });
    expect(chosen.map(({ index }) => index)).toEqual([0, 2, 1]);
  });

  test("covers within twice the best radius", () => {
    // Four groups of five: a centre in each covers within 1.
    const rows = [0, 100, 200, 300].flatMap((at) => [0, 0.25, 0.5, 0.75, 1].map((d) => [at + d]));
    const chosen = kCenterGreedy(points(...rows), { count: 4 }).map(({ index }) => rows[index]![0]!);
    expect(chosen.map((x) => Math.floor(x / 100)).sort()).toEqual([0, 1, 2, 3]);
  });

  test("weighs distance against what images are worth besides", () => {
    const features = points([0], [1], [10]);
    const chosen = (weight: number) => kCenterGreedy(features, { count: 2, weight, values: [0, 1, 0] });
    expect(chosen(0.1).map(({ index }) => index)).toEqual([1, 2]);
    expect(
      kCenterGreedy(points([3], [3]), { count: 2, labelled: points([3]) }).map(({ distance }) => distance),
    ).toEqual([0, 0]);
  });

  test("refuses rows that differ in length, and what is no number", () => {
    expect(() => kCenterGreedy(points([0], [1, 2]), { count: 1 })).toThrow("row 1: expected 1 finite numbers, got 2");
    expect(() => kCenterGreedy(points([0], [Number.NaN]), { count: 1 })).toThrow("row 1: expected 1 finite");
    expect(() => kCenterGreedy(points([0]), { count: 1, values: [] })).toThrow("expected 1 values, got 0");
  });
});

describe("rankImages", () => {
  const sure = { name: "sure", found: [box(0, 0.99)], features: Float32Array.of(0) };
  const doubtful = { name: "doubtful", found: [box(0, 0.5)], features: Float32Array.of(0.1) };
  const strange = { name: "strange", found: [box(0, 0.99, 1)], features: Float32Array.of(9) };
  const all = [sure, doubtful, strange];
  const names = (weights: Parameters<typeof rankImages>[1]["weights"], more = {}) =>
    rankImages(all, { weights, classes: 2, ...more }).map(({ name }) => name);

  test("orders by one criterion, and tells its value", () => {
    expect(names({ uncertainty: 1 })).toEqual(["doubtful", "sure", "strange"]);
    expect(names({ margin: 3 })).toEqual(["doubtful", "sure", "strange"]);
    expect(names({ balance: 1 }, { classCounts: [100, 1] })[0]).toBe("strange");
    expect(names({ diversity: 1 }, { labelled: [Float32Array.of(0)], count: 1 })).toEqual(["strange"]);
    const [first] = rankImages(all, { weights: { uncertainty: 2 }, classes: 2 });
    expect(first).toEqual({ index: 1, name: "doubtful", value: 1, values: { uncertainty: 1 } });
  });

  test("what nobody has labelled is balanced by what is expected", () => {
    // Of the classes about 1.5 and 1 are expected: the rarer one's image comes first.
    expect(names({ balance: 1 })[0]).toBe("strange");
  });

  test("disagreement counts what others found", () => {
    const images = [
      { ...sure, others: [sure.found] },
      { ...strange, others: [[]] },
    ];
    const ranked = rankImages(images, { weights: { disagreement: 1 }, classes: 2 });
    expect(ranked.map(({ name, value }) => [name, value])).toEqual([
      ["strange", 1],
      ["sure", 0],
    ]);
  });

  test("mixes normalised values by their weights", () => {
    const labelled = [Float32Array.of(0)];
    const mixed = rankImages(all, { weights: { uncertainty: 1, diversity: 3 }, classes: 2, labelled });
    expect(mixed.map(({ name }) => name)).toEqual(["strange", "doubtful", "sure"]);
    expect(mixed[0]!.value).toBeCloseTo(0.75, 6);
    expect(Object.keys(mixed[0]!.values)).toEqual(["uncertainty", "diversity"]);
    expect(names({ uncertainty: 3, diversity: 1 }, { labelled })[0]).toBe("doubtful");
  });

  test("refuses weights that say nothing, and diversity without features", () => {
    expect(() => names({})).toThrow("weights: expected numbers from 0, one above it");
    expect(() => names({ margin: -1, balance: 2 })).toThrow("weights: expected numbers from 0");
    const plain = { name: "plain", found: [] };
    expect(() => rankImages([plain], { weights: { diversity: 1 }, classes: 1 })).toThrow("plain: diversity needs");
  });
});

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { CocoResult } from "../../lib/metrics/index";
import { CocoEvaluator, defaultCocoParams, evaluateCoco } from "../../lib/metrics/index";
import { formatFixed3, groupByBucket, pairwiseSum, stableSortDescending } from "../../lib/metrics/numeric";
import { errorOf } from "../support/errors";
import { detectionOf, digest, truthOf } from "./coco-rows";

interface GoldenCase {
  images: number[];
  categories: number[];
  groundTruth: number[][];
  detections: number[][];
  expected: {
    stats: Record<string, number>;
    perCategory: Record<string, { AP: number; AP50: number; AR100: number }>;
    summary: string;
    precision: string;
    recall: string;
    scores: string;
  };
}

interface Golden {
  sums: Record<string, number>;
  iouThresholds: number[];
  recallThresholds: number[];
  cases: Record<string, GoldenCase>;
}

/** pycocotools' own figures: see record.py beside the file. */
const golden = JSON.parse(readFileSync(join(import.meta.dir, "../golden/coco-eval/golden.json"), "utf8")) as Golden;

function expectEqual(result: CocoResult, expected: GoldenCase["expected"]): void {
  // toBe and toEqual compare doubles bit by bit, so this is equality in all digits.
  expect(result.stats as unknown as Record<string, number>).toEqual(expected.stats);
  const perCategory = Object.fromEntries([...result.perCategory].map(([id, stats]) => [String(id), stats]));
  expect(perCategory).toEqual(expected.perCategory);
  expect(digest(result.recall)).toBe(expected.recall);
  expect(digest(result.precision)).toBe(expected.precision);
  expect(digest(result.scores)).toBe(expected.scores);
  expect(result.summarize()).toBe(expected.summary);
}

describe("equal to pycocotools in every digit", () => {
  for (const [name, { images, categories, groundTruth, detections, expected }] of Object.entries(golden.cases)) {
    test(name, () => {
      const result = evaluateCoco(groundTruth.map(truthOf), detections.map(detectionOf), { images, categories });
      expectEqual(result, expected);
    });
  }

  test("the default thresholds", () => {
    const params = defaultCocoParams();
    expect([...params.iouThresholds]).toEqual(golden.iouThresholds);
    expect([...params.recallThresholds]).toEqual(golden.recallThresholds);
  });

  for (const [count, sum] of Object.entries(golden.sums)) {
    test(`the sum of ${count} values`, () => {
      const values = Float64Array.from({ length: Number(count) }, (_, i) => ((i * 7919) % 100003) / 100003);
      expect(pairwiseSum(values)).toBe(sum);
    });
  }
});

describe("CocoEvaluator", () => {
  const { images, categories, groundTruth, detections, expected } = golden.cases.crowds!;

  test("takes its input in parts, in any order of images, and again after clearDetections", () => {
    const evaluator = new CocoEvaluator({ images: [...images].reverse(), categories: [...categories].reverse() });
    const truth = groundTruth.map(truthOf);
    // Order matters within an image and category only.
    truth.sort((a, b) => b.imageId - a.imageId || b.categoryId - a.categoryId);
    const found = detections.map(detectionOf);
    evaluator.addDetections(found.slice(0, 10));
    evaluator.addGroundTruth(truth.slice(0, 20));
    evaluator.addGroundTruth(truth.slice(20));
    expect(evaluator.evaluate().stats.AP).not.toBe(expected.stats.AP!);
    evaluator.clearDetections();
    expect(evaluator.detectionCount).toBe(0);
    expect(evaluator.groundTruthCount).toBe(groundTruth.length);
    expect(evaluator.evaluate().stats.AP).toBe(0);
    for (const { imageId, categoryId, bbox, score } of found) {
      evaluator.addDetection(imageId, categoryId, Float64Array.from([0, ...Array.from(bbox)]), score, 1);
    }
    expectEqual(evaluator.evaluate(), expected);
  });

  test("without images and categories: those that occur", () => {
    const result = evaluateCoco(groundTruth.map(truthOf), detections.map(detectionOf));
    expect(result.stats as unknown as Record<string, number>).toEqual(expected.stats);
    expect(result.categoryIds).toEqual([...categories].sort((a, b) => a - b));
  });

  test("leaves out ground truth of categories and images that are not measured", () => {
    const image = images[0]!;
    const category = categories[1]!;
    const inside = (row: number[]) => row[0] === image && row[1] === category;
    const narrow = evaluateCoco(groundTruth.map(truthOf), detections.filter(inside).map(detectionOf), {
      images: [image],
      categories: [{ id: category }],
    });
    const only = evaluateCoco(groundTruth.filter(inside).map(truthOf), detections.filter(inside).map(detectionOf));
    expect(narrow.stats).toEqual(only.stats);
    expect(narrow.stats.AP50).toBeGreaterThan(0);
  });

  test("an object of id 0 counts as pycocotools counts it, unless zero ids are trusted", () => {
    const object = { imageId: 1, categoryId: 1, bbox: [10, 10, 40, 40] };
    const detection = { ...object, score: 0.9 };
    expect(evaluateCoco([{ ...object, id: 0 }], [detection]).stats.AP).toBe(0);
    expect(evaluateCoco([{ ...object, id: 0 }], [detection], { trustZeroIds: true }).stats.AP).toBeCloseTo(1, 12);
    expect(evaluateCoco([object], [detection]).stats.AP).toBeCloseTo(1, 12);
  });

  test("the area of an object is its box where none is given", () => {
    const object = { imageId: 1, categoryId: 1, bbox: [0, 0, 32, 32] };
    const { stats } = evaluateCoco([object], [{ ...object, score: 0.5 }]);
    // 32 x 32 lies on the edge, which belongs to both ranges.
    expect([stats.ARs, stats.ARm, stats.ARl]).toEqual([1, 1, -1]);
  });

  test("other thresholds, limits and ranges", () => {
    const object = { imageId: 1, categoryId: 1, bbox: [0, 0, 10, 10] };
    const shifted = { imageId: 1, categoryId: 1, bbox: [0, 0, 10, 4], score: 0.5 };
    const result = evaluateCoco([object], [shifted], {
      iouThresholds: Float64Array.of(0.3, 0.5),
      maxDets: [5],
      areaRanges: [{ label: "all", min: 0, max: Infinity }],
    });
    expect(result.counts).toEqual({ T: 2, R: 101, K: 1, A: 1, M: 1 });
    expect([...result.recall]).toEqual([1, 0]);
    expect(result.stats.AP).toBeCloseTo(0.5, 12);
    expect(result.stats.AP50).toBe(0);
    // What the parameters leave unmeasured is -1.
    expect([result.stats.AP75, result.stats.APs, result.stats.AR10]).toEqual([-1, -1, -1]);
  });

  test("32 thresholds use every bit of a match", () => {
    const object = { imageId: 1, categoryId: 1, bbox: [0, 0, 10, 10] };
    const iouThresholds = Float64Array.from({ length: 32 }, (_, i) => 0.3 + 0.02 * i);
    const { recall, counts } = evaluateCoco([object], [{ ...object, bbox: [0, 0, 10, 6.05], score: 1 }], {
      iouThresholds,
    });
    const stride = counts.A * counts.M;
    const found = Array.from({ length: 32 }, (_, t) => recall[(t + 1) * stride - stride + counts.M - 1]!);
    expect(found).toEqual(Array.from(iouThresholds, (threshold) => (threshold <= 0.605 ? 1 : 0)));
  });

  test.each([
    [{ imageId: 1.5, categoryId: 1, bbox: [0, 0, 1, 1], score: 1 }, "detection 0: imageId must be an integer, got 1.5"],
    [
      { imageId: 1, categoryId: NaN, bbox: [0, 0, 1, 1], score: 1 },
      "detection 0: categoryId must be an integer, got NaN",
    ],
    [{ imageId: 1, categoryId: 1, bbox: [0, 0, 1], score: 1 }, "got [0, 0, 1, undefined]"],
    [{ imageId: 1, categoryId: 1, bbox: [0, NaN, 1, 1], score: 1 }, "got [0, NaN, 1, 1]"],
    [{ imageId: 1, categoryId: 1, bbox: [0, 0, 1, 1], score: NaN }, "detection 0: score must be finite, got NaN"],
    [{ imageId: 1, categoryId: 1, bbox: [0, 0, Infinity, 1], score: 1 }, "got [0, 0, Infinity, 1]"],
    [{ imageId: 1, categoryId: 1, bbox: [0, 0, 1, 1], score: -Infinity }, "score must be finite, got -Infinity"],
    [
      { imageId: 1, categoryId: 1, bbox: [0, 0, -1, 1], score: 1 },
      "detection 0: bbox must have a width and a height of at least 0, got [0, 0, -1, 1]",
    ],
    [{ imageId: 1, categoryId: 1, bbox: [0, 0, 1, -0.5], score: 1 }, "at least 0, got [0, 0, 1, -0.5]"],
    [{ imageId: 2, categoryId: 1, bbox: [0, 0, 1, 1], score: 1 }, "image 2 is not among the 1 images to evaluate"],
    [
      { imageId: 1, categoryId: 4, bbox: [0, 0, 1, 1], score: 1 },
      "category 4 is not among the 2 categories to evaluate",
    ],
  ])("refuses detection %j", (detection, message) => {
    const evaluator = new CocoEvaluator({ images: [1], categories: [1, 3] });
    const error = errorOf(() => evaluator.addDetections([detection]));
    expect(error.message).toContain(message);
    expect(error.op).toBe("CocoEvaluator.addDetection, detection 0");
    expect(evaluator.detectionCount).toBe(0);
  });

  test.each([
    [{ area: Infinity }, "object 1: area must be finite, got Infinity"],
    [{ area: -1 }, "object 1: area must not be negative, got -1"],
    [{ bbox: [0, 0, 2, -2] }, "object 1: bbox must have a width and a height of at least 0, got [0, 0, 2, -2]"],
    [{ bbox: [NaN, 0, 2, 2] }, "object 1: bbox must be four finite numbers [x, y, width, height], got [NaN, 0, 2, 2]"],
    [{ imageId: Number.NaN }, "object 1: imageId must be an integer, got NaN"],
  ])("refuses ground truth %j, and says which", (fault, message) => {
    const evaluator = new CocoEvaluator();
    const object = { imageId: 1, categoryId: 1, bbox: [0, 0, 1, 1] };
    evaluator.addGroundTruth([object]);
    expect(errorOf(() => evaluator.addGroundTruth([{ ...object, ...fault }])).message).toContain(message);
    expect(evaluator.groundTruthCount).toBe(1);
  });

  test("boxes without area are measured", () => {
    const flat = { imageId: 1, categoryId: 1, bbox: [3, 3, 0, 5] };
    expect(evaluateCoco([flat], [{ ...flat, score: 1 }]).stats.AP).toBe(0);
  });

  test.each([
    [{ iouThresholds: new Float64Array(33) }, "iouThresholds must hold 1 to 32"],
    [{ iouThresholds: Float64Array.of(1.5) }, "iouThresholds must hold 1 to 32 values in 0 .. 1, got [1.5]"],
    [{ recallThresholds: Float64Array.of(0.5, 0.1) }, "recallThresholds must be ascending"],
    [{ maxDets: [10, 1] }, "maxDets must be ascending integers from 1, got [10, 1]"],
    [{ areaRanges: [{ label: "all", min: 2, max: 1 }] }, "areaRanges must be ranges with min <= max"],
  ])("refuses parameters %#", (params, message) => {
    expect(() => new CocoEvaluator(params)).toThrow(message);
  });
});

describe("numeric", () => {
  test("stableSortDescending keeps the order of equals, in any part of the array", () => {
    let state = 1;
    const random = () => {
      state = (state * 48271) % 2147483647;
      return state / 2147483647;
    };
    for (const n of [0, 1, 2, 11, 12, 13, 24, 25, 100, 1000]) {
      const keys = Float64Array.from({ length: n }, () => Math.floor(random() * 20));
      const order = Int32Array.from({ length: n }, (_, i) => i);
      const start = Math.min(3, n);
      const expected = [
        ...order.subarray(0, start),
        ...[...order.subarray(start)].sort((a, b) => keys[b]! - keys[a]! || a - b),
      ];
      stableSortDescending(order, keys, start, n, new Int32Array(n));
      expect([...order]).toEqual(expected);
    }
  });

  test("groupByBucket is stable", () => {
    const { order, starts } = groupByBucket(Int32Array.of(2, 0, 2, 1, 0), 4);
    expect([...order]).toEqual([1, 4, 3, 0, 2]);
    expect([...starts]).toEqual([0, 2, 3, 5, 5]);
    expect([...groupByBucket(Int32Array.of(1, 0, 1), 2, Int32Array.of(2, 0)).order]).toEqual([2, 0]);
  });

  test.each([
    [0.0625, "0.062"],
    [0.1875, "0.188"],
    [0.3125, "0.312"],
    [0.0005, "0.001"],
    [0.50449, "0.504"],
    [-1, "-1.000"],
    [1, "1.000"],
  ])("formatFixed3(%p) is what Python prints", (value, text) => {
    expect(formatFixed3(value)).toBe(text);
  });
});

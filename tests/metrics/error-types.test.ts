/** Error types: equal to tidecv's, and the rules one by one. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { CocoDetection, CocoGroundTruth, ErrorAnalysis } from "../../lib/metrics/index";
import { analyzeErrors, CocoEvaluator, errorTypes } from "../../lib/metrics/index";
import { errorOf } from "../support/errors";

const read = (path: string) => JSON.parse(readFileSync(join(import.meta.dir, "../golden", path), "utf8"));
/** tidecv's own figures: see record.py beside the file. */
const golden = read("detection-errors/golden.json") as Record<string, Record<"default" | "strict", ErrorAnalysis>>;
const { cases } = read("coco-eval/golden.json") as {
  cases: Record<string, { groundTruth: number[][]; detections: number[][] }>;
};

const truthOf = (row: number[]): CocoGroundTruth => ({
  imageId: row[0]!,
  categoryId: row[1]!,
  bbox: row.slice(2, 6),
  iscrowd: row[7]!,
});
const detectionOf = (row: number[]): CocoDetection => ({
  imageId: row[0]!,
  categoryId: row[1]!,
  bbox: row.slice(2, 6),
  score: row[6]!,
});

function evaluatorOf(truth: CocoGroundTruth[], detections: CocoDetection[]): CocoEvaluator {
  const evaluator = new CocoEvaluator();
  evaluator.addGroundTruth(truth);
  evaluator.addDetections(detections);
  return evaluator;
}

describe("equal to tidecv", () => {
  for (const [name, expected] of Object.entries(golden)) {
    test(name, () => {
      const { groundTruth, detections } = cases[name]!;
      const counted = new Set(groundTruth.filter((row) => row[7] === 0).map((row) => row[1]!));
      const kept = detections.filter((row) => counted.has(row[1]!));
      const evaluator = evaluatorOf(groundTruth.map(truthOf), kept.map(detectionOf));
      const strict = { foreground: 0.75, background: 0.25, maxDets: 5 };
      for (const [options, wanted] of [
        [{}, expected.default],
        [strict, expected.strict],
      ] as const) {
        const found = analyzeErrors(evaluator, options);
        expect(found.counts).toEqual(wanted.counts);
        expect(found.AP).toBeCloseTo(wanted.AP, 12);
        for (const type of errorTypes) expect(found.dAP[type], type).toBeCloseTo(wanted.dAP[type], 12);
      }
    });
  }
});

describe("analyzeErrors", () => {
  const object = (categoryId: number, x = 0, more = {}): CocoGroundTruth => ({
    imageId: 1,
    categoryId,
    bbox: [x, 0, 10, 10],
    ...more,
  });
  const detection = (categoryId: number, x = 0, score = 0.9): CocoDetection => ({
    imageId: 1,
    categoryId,
    bbox: [x, 0, 10, 10],
    score,
  });
  const none = Object.fromEntries(errorTypes.map((type) => [type, 0])) as Record<(typeof errorTypes)[number], number>;
  // Objects of both categories, so that both are measured; the second is far away and found.
  const analyze = (detections: CocoDetection[], truth = [object(1)]) =>
    analyzeErrors(evaluatorOf([...truth, object(2, 500)], [...detections, detection(2, 500, 0.99)]));

  test("no errors", () => {
    const { AP, counts, dAP } = analyze([detection(1)]);
    expect(AP).toBeCloseTo(1, 12);
    expect(counts).toEqual(none);
    expect(dAP).toEqual(none);
  });

  test("a box beside its object: localization, and correcting it gives all that is missing", () => {
    const { AP, counts, dAP } = analyze([detection(1, 5)]);
    expect(AP).toBeCloseTo(0.5, 12);
    expect(counts).toEqual({ ...none, localization: 1 });
    expect(dAP.localization).toBeCloseTo(0.5, 12);
    expect(dAP.missed).toBe(0);
  });

  test("the wrong class", () => {
    const { counts, dAP } = analyze([detection(2)]);
    expect(counts).toEqual({ ...none, classification: 1 });
    expect(dAP.classification).toBeCloseTo(0.5, 12);
  });

  test("the wrong class and place: both; the object stays missed", () => {
    expect(analyze([detection(2, 5)]).counts).toEqual({ ...none, both: 1, missed: 1 });
  });

  test("a second detection of an object: duplicate", () => {
    expect(analyze([detection(1), detection(1, 1, 0.8)]).counts).toEqual({ ...none, duplicate: 1 });
  });

  test("nothing there: background, which costs where it scores above what is right", () => {
    const { counts, dAP } = analyze([detection(1, 100, 0.95), detection(1)]);
    expect(counts).toEqual({ ...none, background: 1 });
    expect(dAP.background).toBeCloseTo(0.25, 12);
    expect(analyze([detection(1, 100, 0.5), detection(1)]).dAP.background).toBe(0);
  });

  test("an object without any detection: missed, and correcting it no longer asks for it", () => {
    const { counts, dAP } = analyze([detection(1)], [object(1), object(1, 200)]);
    expect(counts).toEqual({ ...none, missed: 1 });
    expect(dAP.missed).toBeCloseTo((50 / 101) * 0.5, 12);
  });

  test("nothing at all", () => {
    const { AP, counts, dAP } = analyzeErrors(new CocoEvaluator());
    expect([AP, counts, dAP]).toEqual([0, none, none]);
  });

  test("refuses thresholds in the wrong order", () => {
    const error = errorOf(() => analyzeErrors(new CocoEvaluator(), { foreground: 0.2, background: 0.3 }));
    expect(error.message).toBe("analyzeErrors: expected 0 <= background <= foreground <= 1, got 0.3 and 0.2");
    expect(errorOf(() => analyzeErrors(new CocoEvaluator(), { maxDets: 0 })).message).toContain("got 0");
  });
});

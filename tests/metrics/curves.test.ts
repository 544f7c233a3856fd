import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { CocoEvaluator, detectionCurves, f1CurveSvg, prCurveSvg } from "../../lib/metrics/index";
import { errorOf } from "../support/errors";

const { cases } = JSON.parse(readFileSync(join(import.meta.dir, "../golden/coco-eval/golden.json"), "utf8")) as {
  cases: Record<string, { images: number[]; categories: number[]; groundTruth: number[][]; detections: number[][] }>;
};

function evaluatorOf(truth: number[][], detections: number[][], options = {}): CocoEvaluator {
  const evaluator = new CocoEvaluator(options);
  evaluator.addGroundTruth(
    truth.map((row) => ({
      imageId: row[0]!,
      categoryId: row[1]!,
      bbox: row.slice(2, 6),
      area: row[6]!,
      iscrowd: row[7]!,
      id: row[8]!,
    })),
  );
  for (const row of detections) evaluator.addDetection(row[0]!, row[1]!, row, row[6]!, 2);
  return evaluator;
}

/** One image, one category: objects at 0, 20, 40, ...; detections at given places with given scores. */
function simple(objects: number, detections: [x: number, score: number][]): CocoEvaluator {
  const truth = Array.from({ length: objects }, (_, i) => [1, 1, 20 * i, 0, 10, 10, 100, 0, i + 1]);
  return evaluatorOf(
    truth,
    detections.map(([x, score]) => [1, 1, x, 0, 10, 10, score]),
  );
}

describe("detectionCurves", () => {
  for (const [name, { images, categories, groundTruth, detections }] of Object.entries(cases)) {
    test(`AP of each category is COCO's at this IoU: ${name}`, () => {
      const evaluator = evaluatorOf(groundTruth, detections, { images, categories });
      const result = evaluator.evaluate();
      const curves = detectionCurves(evaluator);
      expect(curves.categories.map(({ categoryId }) => categoryId)).toEqual(result.categoryIds);
      for (const { categoryId, AP } of curves.categories) expect(AP).toBe(result.perCategory.get(categoryId)!.AP50);
      expect(curves.mean.AP).toBeCloseTo(result.stats.AP50, 12);
      const strict = detectionCurves(evaluator, { iouThreshold: 0.75 });
      expect(strict.mean.AP).toBeCloseTo(result.stats.AP75, 12);
    });
  }

  test("precision, recall and F1 at each score", () => {
    // right, wrong, right; one of three objects stays missed.
    const { categories } = detectionCurves(
      simple(3, [
        [0, 0.9],
        [100, 0.8],
        [20, 0.6],
      ]),
    );
    const curve = categories[0]!;
    expect(curve.positives).toBe(3);
    expect([...curve.thresholds]).toEqual([0.9, 0.8, 0.6]);
    expect([...curve.precision]).toEqual([1, 1 / 2, 2 / 3]);
    expect([...curve.recall]).toEqual([1 / 3, 1 / 3, 2 / 3]);
    expect([...curve.f1]).toEqual([2 / 4, 2 / 5, 4 / 6]);
    expect(curve.best).toEqual({ threshold: 0.6, precision: 2 / 3, recall: 2 / 3, f1: 4 / 6 });
  });

  test("detections of one score come and go together", () => {
    const { categories } = detectionCurves(
      simple(2, [
        [0, 0.5],
        [100, 0.5],
        [20, 0.5],
      ]),
    );
    expect([...categories[0]!.thresholds]).toEqual([0.5]);
    expect([...categories[0]!.precision]).toEqual([2 / 3]);
  });

  test("of thresholds that are equally good, the highest is best", () => {
    // F1 is 2 / 3 after the first and after the third detection.
    const { categories } = detectionCurves(
      simple(2, [
        [0, 0.9],
        [100, 0.8],
        [20, 0.7],
        [120, 0.6],
      ]),
    );
    const best = categories[0]!.best!;
    expect(best.threshold).toBe(0.7);
    expect(
      detectionCurves(
        simple(2, [
          [0, 0.9],
          [100, 0.8],
        ]),
      ).categories[0]!.best!.threshold,
    ).toBe(0.9);
  });

  test("the mean is over the categories with objects, at a common threshold", () => {
    const truth = [
      [1, 1, 0, 0, 10, 10, 100, 0, 1],
      [1, 2, 50, 0, 10, 10, 100, 0, 2],
    ];
    const detections = [
      [1, 1, 0, 0, 10, 10, 0.8],
      [1, 2, 50, 0, 10, 10, 0.4],
      [1, 3, 0, 0, 10, 10, 0.9],
    ];
    const { categories, mean } = detectionCurves(evaluatorOf(truth, detections));
    expect(categories.map(({ AP }) => Math.round(AP))).toEqual([1, 1, -1]);
    expect(categories[2]!.best).toBeNull();
    expect(mean.f1[0]).toBe(1);
    expect(mean.f1[600]).toBe(0.5);
    expect(mean.f1[900]).toBe(0);
    expect(mean.best).toEqual({ threshold: 0.4, precision: 1, recall: 1, f1: 1 });
  });

  test("scores outside 0 to 1 widen the axis", () => {
    const { mean } = detectionCurves(
      simple(2, [
        [0, 3],
        [20, -1],
      ]),
    );
    expect([mean.thresholds[0], mean.thresholds[1000]]).toEqual([-1, 3]);
    expect([mean.f1[0], mean.f1[500], mean.f1[1000]]).toEqual([1, 2 / 3, 2 / 3]);
  });

  test("nothing at all", () => {
    const { categories, mean } = detectionCurves(new CocoEvaluator());
    expect(categories).toEqual([]);
    expect([mean.AP, mean.best]).toEqual([-1, null]);
  });

  test("refuses an IoU outside 0 to 1", () => {
    expect(errorOf(() => detectionCurves(new CocoEvaluator(), { iouThreshold: 50 })).message).toContain("got 50");
  });
});

describe("pictures", () => {
  const curves = detectionCurves(
    simple(3, [
      [0, 0.9],
      [100, 0.8],
      [20, 0.6],
    ]),
  );

  test.each([
    ["precision and recall", prCurveSvg(curves, ["a<b"])],
    ["F1", f1CurveSvg(curves, ["a<b"])],
    ["nothing", prCurveSvg(detectionCurves(new CocoEvaluator()), [])],
    ["nothing, F1", f1CurveSvg(detectionCurves(new CocoEvaluator()), [])],
  ])("%s", (_, svg) => {
    expect(svg).toStartWith("<svg ");
    expect(svg).toEndWith("</svg>\n");
    expect(svg).not.toMatch(/NaN|undefined|Infinity|a<b/);
  });

  test("the best threshold is written out", () => {
    expect(f1CurveSvg(curves, ["a"])).toContain("best mean F1 0.667 at 0.600: precision 0.667, recall 0.667");
    expect(prCurveSvg(curves, ["a"])).toContain(`>a: ${curves.categories[0]!.AP.toFixed(3)}</text>`);
  });

  test("with many categories, the best and the worst are listed", () => {
    const categories = Array.from({ length: 12 }, (_, k) => k + 1);
    const truth = categories.flatMap((k) => [[1, k, 20 * k, 0, 10, 10, 100, 0, k]]);
    const found = categories.slice(6).map((k) => [1, k, 20 * k, 0, 10, 10, 0.5]);
    const svg = prCurveSvg(
      detectionCurves(evaluatorOf(truth, found)),
      categories.map((k) => `class ${k}`),
    );
    expect(svg).toContain(">12 categories</text>");
    expect(svg).toContain(">class 7: 1.000</text>");
    expect(svg).toContain(">class 6: 0.000</text>");
    expect(svg.match(/<polyline/g)).toHaveLength(13);
  });

  test("refuses another number of names", () => {
    expect(errorOf(() => prCurveSvg(curves, [])).message).toBe("prCurveSvg: expected the names of 1 categories, got 0");
  });
});

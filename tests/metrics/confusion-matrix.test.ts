import { describe, expect, test } from "bun:test";
import type { CocoDetection, CocoGroundTruth } from "../../lib/metrics/index";
import { CocoEvaluator, confusionMatrix, confusionMatrixSvg } from "../../lib/metrics/index";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const object = (categoryId: number, x: number, more: Partial<CocoGroundTruth> = {}): CocoGroundTruth => ({
  imageId: 1,
  categoryId,
  bbox: [x, 0, 10, 10],
  ...more,
});
const detection = (categoryId: number, x: number, score = 0.9, imageId = 1): CocoDetection => ({
  imageId,
  categoryId,
  bbox: [x, 0, 10, 10],
  score,
});

function matrixOf(truth: CocoGroundTruth[], detections: CocoDetection[], options = {}): number[][] {
  const evaluator = new CocoEvaluator({ categories: [3, 7] });
  evaluator.addGroundTruth(truth);
  evaluator.addDetections(detections);
  const { counts, size, categoryIds } = confusionMatrix(evaluator, options);
  expect(categoryIds).toEqual([3, 7]);
  return Array.from({ length: size }, (_, row) => [...counts.subarray(row * size, (row + 1) * size)]);
}

describe("confusionMatrix", () => {
  test("rows are objects, columns detections, background is last", () => {
    const truth = [object(3, 0), object(3, 100), object(7, 200)];
    const detections = [detection(3, 0), detection(7, 101), detection(3, 300), detection(7, 400)];
    expect(matrixOf(truth, detections)).toEqual([
      [1, 1, 0],
      [0, 0, 1],
      [1, 1, 0],
    ]);
  });

  test("thresholds are exceeded, not reached", () => {
    // An overlap of half the box in one direction: IoU 1 / 3.
    const [truth, beside] = [[object(3, 0)], [detection(3, 5, 0.25)]];
    const apart = [
      [0, 0, 1],
      [0, 0, 0],
      [1, 0, 0],
    ];
    expect(matrixOf(truth, beside, { scoreThreshold: 0.2, iouThreshold: 1 / 3 })).toEqual(apart);
    expect(matrixOf(truth, beside, { scoreThreshold: 0.2, iouThreshold: 0.33 })[0]).toEqual([1, 0, 0]);
    expect(matrixOf(truth, beside, { scoreThreshold: 0.25, iouThreshold: 0.33 })).toEqual([
      [0, 0, 1],
      [0, 0, 0],
      [0, 0, 0],
    ]);
  });

  test("the higher IoU wins, whatever score and class say; the loser meets background", () => {
    expect(matrixOf([object(3, 0)], [detection(3, 2, 0.99), detection(7, 1, 0.3)])).toEqual([
      [0, 1, 0],
      [0, 0, 0],
      [1, 0, 0],
    ]);
  });

  test("a detection that loses its best object gets no other, as in Ultralytics' rule", () => {
    const truth = [object(3, 0), object(7, 3)];
    const found = matrixOf(truth, [detection(3, 0), detection(3, 1)], { iouThreshold: 0.3 });
    expect(found).toEqual([
      [1, 0, 0],
      [0, 0, 1],
      [1, 0, 0],
    ]);
  });

  test("equal IoUs go to the earlier detection", () => {
    expect(matrixOf([object(3, 0)], [detection(7, 1), detection(3, 1)])[0]).toEqual([0, 1, 0]);
  });

  test("images are apart", () => {
    expect(matrixOf([object(3, 0)], [detection(3, 0, 0.9, 2)])).toEqual([
      [0, 0, 1],
      [0, 0, 0],
      [1, 0, 0],
    ]);
  });

  test("crowds are no objects, and what lies within them is not counted", () => {
    const crowd = object(3, 0, { bbox: [0, 0, 100, 100], iscrowd: 1 });
    expect(matrixOf([crowd, object(3, 10)], [detection(3, 10), detection(7, 50), detection(3, 200)])).toEqual([
      [1, 0, 0],
      [0, 0, 0],
      [1, 0, 0],
    ]);
  });

  test("rows add up to the objects, columns to the detections", () => {
    const random = new Random("confusion");
    const place = () => 60 * random.next();
    const truth = Array.from({ length: 60 }, (_, i) => object(i % 3 === 0 ? 3 : 7, place(), { imageId: 1 + (i % 9) }));
    const detections = Array.from({ length: 200 }, (_, i) => detection(i % 4 === 0 ? 3 : 7, place(), 0.9, 1 + (i % 9)));
    const rows = matrixOf(truth, detections);
    const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);
    expect(rows.slice(0, 2).map(sum)).toEqual([20, 40]);
    expect([0, 1].map((column) => sum(rows.map((row) => row[column]!)))).toEqual([50, 150]);
    expect(rows[0]![1]! + rows[1]![0]!).toBeGreaterThan(0);
  });

  test("refuses thresholds that mean nothing", () => {
    const evaluator = new CocoEvaluator();
    expect(errorOf(() => confusionMatrix(evaluator, { iouThreshold: 1 })).message).toContain("got 1");
    expect(errorOf(() => confusionMatrix(evaluator, { scoreThreshold: NaN })).message).toContain("got NaN");
  });
});

describe("confusionMatrixSvg", () => {
  test("shows counts and shares, and escapes names", () => {
    const matrix = {
      categoryIds: [3, 7],
      size: 3,
      counts: Int32Array.of(3, 1, 0, 0, 5, 0, 2, 0, 0),
      scoreThreshold: 0.25,
      iouThreshold: 0.45,
    };
    const svg = confusionMatrixSvg(matrix, ["salt & <pepper>", "b"]);
    expect(svg).toStartWith("<svg ");
    expect(svg).toEndWith("</svg>\n");
    expect(svg).toContain(">75 %</text>");
    expect(svg).toContain("<title>salt &amp; &lt;pepper&gt; taken for b: 1 of 4 (25.0 %)</title>");
    expect(svg).toContain("<title>background taken for salt &amp; &lt;pepper&gt;: 2 of 2 (100.0 %)</title>");
    expect(svg).not.toContain("<pepper>");
    expect(svg).not.toContain("NaN");
    expect(errorOf(() => confusionMatrixSvg(matrix, ["a"])).message).toBe(
      "confusionMatrixSvg: expected the names of 2 categories, got 1",
    );
  });

  test("no objects and no detections: an empty grid", () => {
    const matrix = confusionMatrix(new CocoEvaluator({ categories: [1] }));
    expect([...matrix.counts]).toEqual([0, 0, 0, 0]);
    expect(confusionMatrixSvg(matrix, ["a"])).not.toContain("taken for");
  });
});

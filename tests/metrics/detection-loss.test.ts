/** The loss of an image's detections, in numbers worked out by hand. */
import { describe, expect, test } from "bun:test";
import { detectionLoss } from "../../lib/metrics";

const BOX = [10, 10, 30, 30];
const found = (...rows: [box: number[], score: number, label?: number][]) => ({
  boxes: rows.flatMap(([box]) => box),
  scores: rows.map(([, score]) => score),
  labels: rows.map(([, , label = 0]) => label),
});
const truth = (...rows: [box: number[], label?: number, crowd?: number][]) => ({
  boxes: rows.flatMap(([box]) => box),
  labels: rows.map(([, label = 0]) => label),
  crowd: rows.map(([, , crowd = 0]) => crowd),
});

describe("detectionLoss", () => {
  test("is 0 where nothing is and nothing was found, and next to it where all was found surely", () => {
    expect(detectionLoss(found(), truth())).toBe(0);
    expect(detectionLoss(found([BOX, 1]), truth([BOX]))).toBeCloseTo(-Math.log(0.99), 12);
  });

  test("adds cross-entropy of what is right and of what is wrong, and 1 - IoU", () => {
    // Half of the height: an IoU of 0.5.
    const loss = detectionLoss(found([[10, 10, 30, 20], 0.8], [[100, 100, 120, 120], 0.3]), truth([BOX]));
    expect(loss).toBeCloseTo(-Math.log(0.8) + 0.5 - Math.log(0.7), 12);
  });

  test("of a missed object is that of the lowest score", () => {
    expect(detectionLoss(found(), truth([BOX]))).toBeCloseTo(-Math.log(0.01), 12);
    const other = detectionLoss(found([BOX, 0.6, 1]), truth([BOX]));
    expect(other).toBeCloseTo(-Math.log(0.01) - Math.log(0.4), 12);
  });

  test("is a mean over objects", () => {
    const far = [100, 100, 120, 120];
    const loss = detectionLoss(found([BOX, 0.5]), truth([BOX], [far]));
    expect(loss).toBeCloseTo((-Math.log(0.5) - Math.log(0.01)) / 2, 12);
  });

  test("takes of two detections the surer one, in whatever order they come", () => {
    const rows: [number[], number][] = [
      [BOX, 0.4],
      [BOX, 0.9],
    ];
    const wanted = -Math.log(0.9) - Math.log(0.6);
    expect(detectionLoss(found(...rows), truth([BOX]))).toBeCloseTo(wanted, 12);
    expect(detectionLoss(found(...rows.reverse()), truth([BOX]))).toBeCloseTo(wanted, 12);
  });

  test("does not count what lies within a crowd, nor the crowd", () => {
    expect(detectionLoss(found([[12, 12, 16, 16], 0.9]), truth([BOX, 0, 1]))).toBe(0);
  });
});

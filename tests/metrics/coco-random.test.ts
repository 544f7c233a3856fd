/** Hundreds of random cases against the figures that pycocotools gave for them: equal in every digit. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { evaluateCoco } from "../../lib/metrics/index";
import { detectionOf, digest, truthOf } from "./coco-rows";
import { type RandomCase, randomCase } from "./random-cases";

interface Recorded {
  seed: number;
  objects: number;
  detections: number;
  /** AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl. */
  stats: number[];
  /** Of the precision, recall and score arrays, and of AP, AP50 and AR100 per category. */
  digests: [precision: string, recall: string, scores: string, perCategory: string];
}

// COCO_CASES names another file of record_random.py, for a longer comparison by hand.
const path = process.env.COCO_CASES ?? join(import.meta.dir, "../golden/coco-eval/random.json");
const recorded = JSON.parse(readFileSync(path, "utf8")) as Recorded[];

describe("random cases, equal to pycocotools in every digit", () => {
  const group = 40;
  for (let start = 0; start < recorded.length; start += group) {
    const part = recorded.slice(start, start + group);
    test(`seeds ${part[0]!.seed} to ${part.at(-1)!.seed}`, () => {
      for (const expected of part) {
        const { images, categories, groundTruth, detections } = randomCase(expected.seed);
        // The same case as the recorder's, before its figures are compared.
        expect([expected.seed, groundTruth.length, detections.length]).toEqual([
          expected.seed,
          expected.objects,
          expected.detections,
        ]);
        const result = evaluateCoco(groundTruth.map(truthOf), detections.map(detectionOf), { images, categories });
        const perCategory = [...result.perCategory.values()].flatMap(({ AP, AP50, AR100 }) => [AP, AP50, AR100]);
        expect({ seed: expected.seed, stats: Object.values(result.stats) }).toEqual({
          seed: expected.seed,
          stats: expected.stats,
        });
        expect([result.precision, result.recall, result.scores, Float64Array.from(perCategory)].map(digest)).toEqual(
          expected.digests,
        );
      }
    });
  }

  test("the cases cover what they are for", () => {
    const cases = recorded.map(({ seed }) => randomCase(seed));
    const counted = (matches: (c: RandomCase) => boolean) => cases.filter(matches).length;
    const repeats = (values: unknown[]) => new Set(values).size < values.length;
    const ids = (rows: number[][], column: number) => new Set(rows.map((row) => row[column]));
    expect(cases.length).toBeGreaterThanOrEqual(200);
    const covered = {
      crowds: counted(({ groundTruth }) => groundTruth.some((row) => row[7] === 1)),
      "images without objects": counted(
        ({ images, groundTruth }) => ids(groundTruth, 0).size > 0 && ids(groundTruth, 0).size < images.length,
      ),
      "no objects": counted(({ groundTruth }) => groundTruth.length === 0),
      "no detections": counted(({ detections }) => detections.length === 0),
      "equal scores": counted(({ detections }) => repeats(detections.map((row) => `${row[0]} ${row[1]} ${row[6]}`))),
      "objects at one place": counted(({ groundTruth }) => repeats(groundTruth.map((row) => row.slice(0, 6).join()))),
      "areas on range ends": counted(({ groundTruth }) =>
        groundTruth.some((row) => row[6] === 1024 || row[6] === 9216),
      ),
      "boxes without area": counted(({ groundTruth }) => groundTruth.some((row) => row[4] === 0 || row[5] === 0)),
      "more than maxDets": counted(({ detections }) => {
        const counts = new Map<string, number>();
        for (const row of detections) counts.set(`${row[0]} ${row[1]}`, (counts.get(`${row[0]} ${row[1]}`) ?? 0) + 1);
        return Math.max(0, ...counts.values()) > 100;
      }),
      "an object of id 0": counted(({ groundTruth }) => groundTruth.some((row) => row[8] === 0)),
      "image and category 0": counted(({ images, categories }) => images.includes(0) && categories.includes(0)),
      "gaps between categories": counted(({ categories }) =>
        categories.some((id, i) => i > 0 && id > categories[i - 1]! + 1),
      ),
      "categories without objects": counted(
        ({ categories, groundTruth }) => ids(groundTruth, 1).size > 0 && ids(groundTruth, 1).size < categories.length,
      ),
    };
    for (const [what, count] of Object.entries(covered)) expect([what, count > 0]).toEqual([what, true]);
  });
});

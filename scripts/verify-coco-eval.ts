/**
 * Compares this library's COCO evaluation with recorded figures of pycocotools.
 *
 *   bun run scripts/verify-coco-eval.ts FOLDER
 *
 * FOLDER holds `instances*.json` (ground truth), `*results.json` (detections) and `expected_bbox.json` with `stats` (the
 * twelve figures by name) and `per_category` (AP, AP50, AR100 by category id). Prints the table and the largest
 * difference; exits with 1 when it exceeds 1e-12.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { CocoEvaluator } from "../lib/metrics/index";

interface Instances {
  images: { id: number }[];
  categories: { id: number }[];
  annotations: {
    id: number;
    image_id: number;
    category_id: number;
    bbox: number[];
    area: number;
    iscrowd: number;
  }[];
}

interface Expected {
  stats: Record<string, number>;
  per_category: Record<string, Record<string, number>>;
}

const LIMIT = 1e-12;

const folder = process.argv[2];
if (folder === undefined) {
  console.error("usage: bun run scripts/verify-coco-eval.ts FOLDER");
  process.exit(2);
}

function load<T>(pattern: RegExp): T {
  const names = readdirSync(folder!).filter((name) => pattern.test(name));
  if (names.length !== 1) {
    console.error(
      `${folder}: expected one file that matches ${pattern}, found ${names.length ? names.join(", ") : "none"}`,
    );
    process.exit(2);
  }
  return JSON.parse(readFileSync(join(folder!, names[0]!), "utf8")) as T;
}

const instances = load<Instances>(/^instances.*(?<!results)\.json$/);
const results = load<{ image_id: number; category_id: number; bbox: number[]; score: number }[]>(/results\.json$/);
const expected = load<Expected>(/^expected_bbox\.json$/);

const start = performance.now();
const evaluator = new CocoEvaluator({ images: instances.images, categories: instances.categories });
evaluator.addGroundTruth(
  instances.annotations.map((a) => ({
    id: a.id,
    imageId: a.image_id,
    categoryId: a.category_id,
    bbox: a.bbox,
    area: a.area,
    iscrowd: a.iscrowd,
  })),
);
for (const { image_id, category_id, bbox, score } of results) {
  evaluator.addDetection(image_id, category_id, bbox, score);
}
const result = evaluator.evaluate();
const elapsed = performance.now() - start;

let largest = 0;
let largestAt = "";
let compared = 0;
let exact = 0;
function compare(name: string, actual: number | undefined, wanted: number): void {
  const difference = actual === undefined ? Infinity : Math.abs(actual - wanted);
  compared++;
  if (difference === 0) exact++;
  // Written so that NaN counts as the largest difference.
  if (!(difference <= largest)) {
    largest = Number.isNaN(difference) ? Infinity : difference;
    largestAt = name;
  }
}
for (const [name, wanted] of Object.entries(expected.stats)) {
  compare(name, (result.stats as unknown as Record<string, number>)[name], wanted);
}
for (const [id, figures] of Object.entries(expected.per_category)) {
  const actual = result.perCategory.get(Number(id)) as unknown as Record<string, number> | undefined;
  for (const [name, wanted] of Object.entries(figures)) compare(`category ${id} ${name}`, actual?.[name], wanted);
}

console.log(result.summarize());
console.log(
  `${evaluator.groundTruthCount} objects, ${evaluator.detectionCount} detections, ` +
    `${instances.images.length} images in ${elapsed.toFixed(0)} ms`,
);
console.log(
  `${exact} of ${compared} figures equal in every digit; largest difference ${largest}${largestAt && ` (${largestAt})`}`,
);
process.exit(largest <= LIMIT ? 0 : 1);

/** Predictions files as other programs read them. */
import { join } from "node:path";
import { type ImagePrediction, latestPredictions, type PredictionsHeader, writeTextAtomic } from "../formats";
import { check, ErrorCode } from "../native";

/** coco: a list of results; jsonl: an object for each image, with class names; yolo: a text file for each image. */
export const predictionFormats = ["coco", "jsonl", "yolo"] as const;
export type PredictionFormat = (typeof predictionFormats)[number];

export interface ConvertOptions {
  /** Of coco: ids of the data set's categories by name. Default: the class index plus one. */
  categories?: ReadonlyMap<string, number>;
}

/** An image's name as a path that does not lead out of a folder. */
export function pathInside(name: string): string {
  const parts = name.split(/[\\/]/).filter((part) => part !== "" && part !== "." && part !== "..");
  return parts.join("/") || "image";
}

export function withoutExtension(path: string): string {
  return path.replace(/\.[^./]+$/, "");
}

const rounded = (value: number, digits: number): number => Number(value.toFixed(digits));

/**
 * Writes what a predictions file holds to `out`, a file (coco, jsonl) or a folder (yolo: the image's name with .txt for its
 * extension). Images with errors have a line with it in jsonl, and nothing else.
 *
 * @returns what was written
 * @throws DlfsError naming file and image: of coco one without an id, or a class that the data set lacks
 */
export async function convertPredictions(
  path: string,
  format: PredictionFormat,
  out: string,
  { categories }: ConvertOptions = {},
): Promise<string> {
  let header: PredictionsHeader | null = null;
  const predictions = latestPredictions(path, (found) => {
    header = found;
  });
  const className = (label: number): string => header?.classes[label] ?? `${label}`;
  if (format === "yolo") {
    for await (const prediction of predictions) {
      const { name, width, height, error } = prediction;
      if (error !== undefined) continue;
      const lines = boxesOf(prediction).map(({ x1, y1, x2, y2, score, label }) => {
        const box = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height];
        return `${label} ${box.map((value) => value.toFixed(6)).join(" ")} ${score.toFixed(6)}\n`;
      });
      await Bun.write(join(out, `${withoutExtension(pathInside(name))}.txt`), lines.join(""));
    }
    return out;
  }
  const lines =
    format === "jsonl" ? jsonLines(predictions, className) : cocoResults(path, predictions, className, categories);
  await writeTextAtomic(out, lines);
  return out;
}

/** The objects of a prediction. */
function boxesOf({ boxes, scores, labels }: ImagePrediction) {
  return Array.from(scores, (score, i) => {
    const [x1, y1, x2, y2] = boxes.subarray(4 * i, 4 * i + 4) as unknown as [number, number, number, number];
    return { x1, y1, x2, y2, score, label: labels[i] as number };
  });
}

async function* jsonLines(
  predictions: AsyncIterable<ImagePrediction>,
  className: (label: number) => string,
): AsyncGenerator<string> {
  for await (const prediction of predictions) {
    const { name, imageId, width, height, frame, time, error } = prediction;
    const detections = boxesOf(prediction).map(({ x1, y1, x2, y2, score, label }) => ({
      box: [x1, y1, x2, y2].map((value) => rounded(value, 2)),
      score: rounded(score, 5),
      label,
      class: className(label),
    }));
    yield `${JSON.stringify({ image: name, imageId, frame, time, width, height, detections, error })}\n`;
  }
}

async function* cocoResults(
  path: string,
  predictions: AsyncIterable<ImagePrediction>,
  className: (label: number) => string,
  categories: ConvertOptions["categories"],
): AsyncGenerator<string> {
  let before = "[";
  for await (const prediction of predictions) {
    const { name, imageId, error } = prediction;
    if (error !== undefined) continue;
    check(
      imageId !== undefined,
      path,
      () => `${name} has no id: coco's results are those of a data set's images; detect on its annotation file`,
      ErrorCode.argument,
    );
    for (const { x1, y1, x2, y2, score, label } of boxesOf(prediction)) {
      const category = categories ? categories.get(className(label)) : label + 1;
      check(category !== undefined, path, () => `the data set has no category "${className(label)}"`);
      const bbox = [x1, y1, x2 - x1, y2 - y1].map((value) => rounded(value, 3));
      yield before + JSON.stringify({ image_id: imageId, category_id: category, bbox, score: rounded(score, 6) });
      before = ",\n";
    }
  }
  yield before === "[" ? "[]\n" : "]\n";
}

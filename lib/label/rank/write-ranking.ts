/** An order of images as files that others read. */
import { extname } from "node:path";
import { writeFileAtomic } from "../../formats";
import { check } from "../../native/error";
import { regionOf } from "../regions";
import type { GatheredImage } from "./gather";
import type { RankedImage } from "./rank-images";

export const rankingFormats = ["paths", "jsonl", "label-studio"] as const;
export type RankingFormat = (typeof rankingFormats)[number];

export interface RankingOptions {
  format: RankingFormat;
  /** Of each candidate, by its place in their list: where it lies. */
  locations: readonly string[];
  /** Names of the classes, by label. */
  classes: readonly string[];
  /** Said in Label Studio's predictions. */
  modelVersion: string;
  /** For Label Studio: what comes before an image's name. Default: nothing. */
  imagePrefix?: string;
  /** For Label Studio: boxes below it are not proposed. Default 0.3. */
  proposeFrom?: number;
}

/** The format that a file's name means: .txt, .jsonl or .json. */
export function rankingFormatOf(path: string): RankingFormat {
  const format = new Map<string, RankingFormat>([
    [".txt", "paths"],
    [".jsonl", "jsonl"],
    [".json", "label-studio"],
  ]).get(extname(path).toLowerCase());
  check(format !== undefined, path, () => "expected a name that ends with .txt, .jsonl or .json, or a format");
  return format;
}

/** Names as dlfs data's exports for Label Studio have them. */
const CONTROL = { fromName: "label", toName: "image", field: "image", labels: [] };

/**
 * - "paths": where each image lies, a line each, most worth first; what `dlfs predict` takes as a list
 * - "jsonl": an object a line: rank from 1, image, path, value, and what each criterion said
 * - "label-studio": a list of tasks to import, each with its value as `score`, to sort by, and the model's boxes as a prediction
 */
export function formatRanking(
  ranked: readonly RankedImage[],
  images: readonly GatheredImage[],
  options: RankingOptions,
): string {
  const { format, locations, classes, modelVersion, imagePrefix = "", proposeFrom = 0.3 } = options;
  const placed = ranked.map((one) => {
    const image = images[one.index] as GatheredImage;
    return { one, image, path: locations[image.place] as string };
  });
  if (format === "paths") return placed.map(({ path }) => `${path}\n`).join("");
  if (format === "jsonl") {
    const rows = placed.map(({ one: { name, value, values }, path }, i) => {
      return { rank: i + 1, image: name, path, value, ...values };
    });
    return rows.map((row) => `${JSON.stringify(row)}\n`).join("");
  }
  const tasks = placed.map(({ one: { name, value }, image }) => {
    const proposed = image.found.filter(({ score }) => score >= proposeFrom);
    const result = proposed.map(({ box, score, label }, k) => {
      return regionOf({ box, score, label: classes[label] as string }, image, CONTROL, `${image.place}-${k}`);
    });
    const data = { image: `${imagePrefix}${name}`, score: value };
    return { data, predictions: [{ model_version: modelVersion, score: value, result }] };
  });
  return `${JSON.stringify(tasks, null, 1)}\n`;
}

/** Writes formatRanking's text; the file appears complete or not at all. */
export async function writeRanking(path: string, ...args: Parameters<typeof formatRanking>): Promise<void> {
  await writeFileAtomic(path, formatRanking(...args));
}

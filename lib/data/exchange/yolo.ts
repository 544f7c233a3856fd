/** YOLO's text files, a line for each box, with the data.yaml that Ultralytics' tools read. */
import { readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, join, relative, resolve } from "node:path";
import { DlfsError, ErrorCode } from "../../native/error";
import type { AnnotationStore, CocoBox } from "../annotation-store";
import type { ImportReport } from "../import-content";
import { fileError, isMissing } from "../local-data-source";
import { NamedContent, type NamedImportOptions } from "./named-content";
import { TextWriter } from "./text-writer";
import { type ExportOptions, type ExportReport, Stems, sizeOf, walkImages } from "./walk";

export interface YoloImportOptions extends Omit<NamedImportOptions, "categories"> {
  /** The size of an image file, or what is wrong with it. Default: Bun reads it. */
  imageSize?: (path: string) => Promise<{ width: number; height: number }>;
}

const IMAGE_NAME = /\.(jpe?g|png|webp|bmp|tiff?|gif|heic|avif)$/i;

/** Files that are read at a time. */
const BATCH = 64;

/** How far a relative coordinate may be off for being rounded. */
const ROUNDING = 1e-3;

/** The splits that every tool knows; others are taken where they name folders. */
const SPLITS = new Set(["train", "val", "test"]);

/** Keys that name something else. */
const NO_SPLITS = new Set(["path", "names", "nc", "download"]);

export interface YoloConfig {
  /** Folder that the data set's paths are relative to. */
  root: string;
  names: string[];
  /** Folders or lists of images by split. */
  splits: Record<string, string[]>;
}

/** Reads a data.yaml, or the one in a folder. */
export async function readYoloConfig(input: string): Promise<YoloConfig & { file: string }> {
  const file = (await isFolder(input)) ? join(input, "data.yaml") : input;
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    throw fileError("importYolo", file, error);
  }
  const fail = (message: string): never => {
    throw new DlfsError(ErrorCode.io, file, message);
  };
  const config = parseYaml(text, fail);
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isObject(config)) return fail(`expected names and splits, got ${JSON.stringify(config)}`);
  const { names, nc, path } = config;
  const list = isObject(names) ? Object.keys(names).map((_, i) => names[String(i)]) : names;
  if (!Array.isArray(list) || list.length === 0)
    return fail(`names: expected a list of classes, got ${JSON.stringify(names)}`);
  for (const [i, name] of list.entries()) {
    if ((typeof name !== "string" && typeof name !== "number") || name === "") {
      return fail(`names[${i}]: expected a name, got ${JSON.stringify(name)}`);
    }
  }
  if (nc !== undefined && nc !== list.length)
    return fail(`nc: expected ${list.length}, the number of names, got ${nc}`);
  if (path !== undefined && typeof path !== "string")
    return fail(`path: expected a folder, got ${JSON.stringify(path)}`);
  const splits: Record<string, string[]> = {};
  for (const [split, value] of Object.entries(config)) {
    if (NO_SPLITS.has(split) || value === undefined || value === null || value === "") continue;
    const places = [value].flat();
    if (!places.every((place) => typeof place === "string")) {
      if (!SPLITS.has(split)) continue;
      return fail(`${split}: expected folders or files, got ${JSON.stringify(value)}`);
    }
    splits[split] = places as string[];
  }
  return { file, root: resolve(dirname(file), path ?? "."), names: list.map(String), splits };
}

function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (info) => info.isDirectory(),
    () => false,
  );
}

function parseYaml(text: string, fail: (message: string) => never): unknown {
  try {
    return Bun.YAML.parse(text);
  } catch (error) {
    const lines = text.split("\n");
    const parses = (count: number): boolean => {
      try {
        Bun.YAML.parse(lines.slice(0, count).join("\n"));
        return true;
      } catch {
        return false;
      }
    };
    // The parser does not say where: behind the lines that are valid by themselves.
    let valid = lines.length - 1;
    while (valid > 0 && !parses(valid)) valid--;
    return fail(`not valid YAML at line ${valid + 1}: ${(error as Error).message.replace(/^YAML Parse error: /, "")}`);
  }
}

/**
 * Imports a split of a YOLO data set: `input` is its data.yaml or the folder of it. Labels are where the images are, with
 * labels/ instead of the last images/ in the path and .txt as ending; an image without one has no boxes. A line is class, centre
 * x and y, width, height, as parts of the image's size, and a score or nothing; or class and the corners of a polygon, of which
 * the hull is kept. Images that cannot be read are left out and reported. The images' keys are their paths from the data set's
 * root on.
 *
 * @throws DlfsError naming file and line
 */
export async function importYolo(
  store: AnnotationStore,
  input: string,
  options: YoloImportOptions,
): Promise<ImportReport> {
  const { split, imageSize = sizeOfImage } = options;
  const { file, root, names, splits } = await readYoloConfig(input);
  const places = splits[split];
  if (!places) {
    const known = Object.keys(splits).join(", ") || "none";
    throw new DlfsError(ErrorCode.io, file, `${split}: missing, expected a folder of images; splits: ${known}`);
  }
  // Names are relative to the folder of the images, where there is one.
  const [place] = places as [string, ...string[]];
  const base = places.length === 1 && (await isFolder(resolve(root, place))) ? resolve(root, place) : root;
  const folder = join(options.folder ?? "", relative(root, base));
  using content = new NamedContent("importYolo", store, file, { ...options, folder, categories: names });
  const images: string[] = [];
  for (const place of places) images.push(...(await imagesOf(root, place, file)));
  if (images.length === 0) throw new DlfsError(ErrorCode.io, file, `${split}: no images in ${places.join(", ")}`);
  const label = `reading ${basename(root)}, ${split}`;
  content.progress(label, 0, images.length);
  for (let at = 0; at < images.length; at += BATCH) {
    const batch = images.slice(at, at + BATCH);
    const found = await Promise.all(
      batch.map(async (path) => {
        const labels = labelFile(path);
        const size = await imageSize(path).catch((error: Error) => error.message);
        return { path, labels, size, text: await readLabels(labels) };
      }),
    );
    for (const { path, labels, size, text } of found) {
      const key = relative(base, path);
      if (typeof size === "string") {
        content.content.problems.add("image", "skipped", "it cannot be read", `${key}: ${size}`);
        continue;
      }
      const image = content.image(key, size.width, size.height);
      for (const [i, line] of text.split("\n").entries()) {
        if (line.trim() === "") continue;
        const where = `${labels}, line ${i + 1}`;
        const { category, bbox, score } = readLine(line, names, size, where);
        content.box(image, { category, bbox, score, where: () => where });
      }
    }
    content.progress(label, at + batch.length, images.length);
  }
  return content.finish();
}

async function imagesOf(root: string, place: string, file: string): Promise<string[]> {
  const path = resolve(root, place);
  try {
    if ((await stat(path)).isDirectory()) {
      const names = await readdir(path, { recursive: true });
      return names
        .filter((name) => IMAGE_NAME.test(name))
        .sort()
        .map((name) => join(path, name));
    }
    const lines = (await readFile(path, "utf8")).split("\n").map((line) => line.trim());
    // In a list "./" is the list's folder.
    return lines
      .filter((line) => line !== "")
      .map((line) => resolve(line.startsWith("./") ? dirname(path) : root, line));
  } catch (error) {
    throw fileError("importYolo", `${path}, named in ${file}`, error);
  }
}

/** labels/ instead of the last images/ of the path. */
function labelFile(image: string): string {
  const at = image.lastIndexOf("/images/");
  const path = at < 0 ? image : `${image.slice(0, at)}/labels/${image.slice(at + "/images/".length)}`;
  return path.replace(/\.[^./]+$/, ".txt");
}

async function readLabels(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (isMissing(error)) return "";
    throw fileError("importYolo", path, error);
  }
}

async function sizeOfImage(path: string): Promise<{ width: number; height: number }> {
  return new Bun.Image(await Bun.file(path).bytes()).metadata();
}

function readLine(
  line: string,
  names: readonly string[],
  size: { width: number; height: number },
  where: string,
): { category: string; bbox: CocoBox; score: number | null } {
  const fail = (message: string): never => {
    throw new DlfsError(ErrorCode.io, where, message);
  };
  const fields = line.trim().split(/\s+/);
  const numbers = fields.map((field, i) => {
    const value = Number(field);
    return Number.isFinite(value) ? value : fail(`field ${i + 1}: expected a number, got "${field}"`);
  });
  const isPolygon = numbers.length >= 7 && numbers.length % 2 === 1;
  if (numbers.length !== 5 && numbers.length !== 6 && !isPolygon) {
    fail(`expected class, x, y, width, height, got ${counted(numbers.length)}`);
  }
  const category = names[numbers[0] as number];
  if (category === undefined) fail(`field 1: expected a class from 0 to ${names.length - 1}, got ${fields[0]}`);
  for (let i = 1; i < (isPolygon ? numbers.length : 5); i++) {
    const value = numbers[i] as number;
    if (value < -ROUNDING || value > 1 + ROUNDING) {
      fail(`field ${i + 1}: expected a part of the image from 0 to 1, got ${fields[i]}`);
    }
  }
  const box = (x: number, y: number, w: number, h: number): CocoBox => [
    x * size.width,
    y * size.height,
    w * size.width,
    h * size.height,
  ];
  if (isPolygon) {
    const xs = numbers.filter((_, i) => i % 2 === 1);
    const ys = numbers.filter((_, i) => i > 0 && i % 2 === 0);
    const [x, y] = [Math.min(...xs), Math.min(...ys)];
    return { category: category as string, bbox: box(x, y, Math.max(...xs) - x, Math.max(...ys) - y), score: null };
  }
  const [, x, y, w, h, score] = numbers as [number, number, number, number, number, number | undefined];
  return { category: category as string, bbox: box(x - w / 2, y - h / 2, w, h), score: score ?? null };
}

function counted(fields: number): string {
  return fields === 1 ? "1 field" : `${fields} fields`;
}

/**
 * Writes a split as YOLO's text files, to labels/SPLIT/, and a data.yaml that names images/SPLIT and, where it was there
 * before, the other splits; image files are left where they are. Classes are numbered by ascending category id. Crowds, which
 * the format does not know, are left out and counted.
 *
 * @throws DlfsError for an image whose size is not known, and where two images would have the same file
 */
export async function exportYolo(
  store: AnnotationStore,
  folder: string,
  options: ExportOptions,
): Promise<ExportReport> {
  const { split } = options;
  const classes = store.classes();
  const yaml = join(folder, "data.yaml");
  const report = { images: 0, annotations: 0, leftOut: 0, paths: [join(folder, "labels", split), yaml] };
  const stems = new Stems();
  for (const { image, boxes } of walkImages(store, options, "writing labels")) {
    const { width, height } = sizeOf(image);
    using file = new TextWriter(join(folder, "labels", split, `${stems.of(image)}.txt`));
    for (const { categoryId, bbox, isCrowd, score } of boxes) {
      if (isCrowd) {
        report.leftOut++;
        continue;
      }
      const [x, y, w, h] = bbox;
      const parts = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height];
      file.write(`${[classes.indexOf(categoryId), ...parts, ...(score === null ? [] : [score])].join(" ")}\n`);
      report.annotations++;
    }
    file.finish();
    report.images++;
  }
  const before = await readYoloConfig(yaml).catch(() => null);
  const splits = { ...before?.splits, [split]: [join("images", split)] };
  using writer = new TextWriter(yaml);
  writer.write("path: .\n");
  for (const [name, places] of Object.entries(splits)) writer.write(`${name}: ${JSON.stringify(one(places))}\n`);
  writer.write(`nc: ${classes.length}\nnames:\n`);
  for (const [i, name] of classes.names.entries()) writer.write(`  ${i}: ${JSON.stringify(name)}\n`);
  writer.finish();
  return report;
}

function one(places: readonly string[]): string | readonly string[] {
  return places.length === 1 ? (places[0] as string) : places;
}

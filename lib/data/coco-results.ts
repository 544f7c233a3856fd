/** Detections in COCO's results format (https://cocodataset.org/#format-results), and the annotations they are measured with. */
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { check, ErrorCode } from "../native/error";
import type { Category, NewImage } from "./annotation-store";
import { readCoco, sameId } from "./coco-reader";
import { END_OF_OBJECT, JsonKeys, JsonReader } from "./json-reader";
import { fileError } from "./local-data-source";
import { type ProgressListener, showProgress, yieldToEventLoop } from "./progress";

/** A detection as a results file has it, the box as x, y, width, height in pixels of the image file. */
export interface ResultRow {
  imageId: number;
  categoryId: number;
  bbox: readonly [x: number, y: number, width: number, height: number];
  score: number;
}

/** An annotated object as an annotation file has it. */
export interface AnnotatedObject {
  id: number;
  imageId: number;
  categoryId: number;
  bbox: readonly [x: number, y: number, width: number, height: number];
  area: number;
  iscrowd: boolean;
}

/** What evaluation needs of an annotation file; unlike importCoco, nothing is left out of it. */
export interface AnnotationFile {
  path: string;
  images: { id: number; fileName: string }[];
  categories: Category[];
  objects: AnnotatedObject[];
}

/** Bytes read between two turns of the event loop. */
const SLICE = 4 << 20;

async function load(op: string, path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (error) {
    throw fileError(op, path, error);
  }
}

/**
 * Reads an annotation file as it is, for evaluation.
 *
 * @throws DlfsError naming the file and the field, as importCoco does
 */
export async function readCocoAnnotations(
  path: string,
  { progress = showProgress() }: { progress?: ProgressListener } = {},
): Promise<AnnotationFile> {
  const file: AnnotationFile = { path, images: [], categories: [], objects: [] };
  const categoryRows = new Map<number, number>();
  const imageRows = new Map<number, number>();
  const unique = (rows: Map<number, number>, list: string, index: number, id: number): void => {
    const first = rows.get(id);
    if (first !== undefined) throw sameId(path, list, index, id, first);
    rows.set(id, index);
  };
  using reader = JsonReader.open(path);
  const visitor = {
    category(category: Category, index: number): void {
      unique(categoryRows, "categories", index, category.id);
      file.categories.push(category);
    },
    image({ sourceId: id, fileName }: NewImage, index: number): void {
      unique(imageRows, "images", index, id);
      file.images.push({ id, fileName });
    },
    annotation(values: Float64Array): void {
      const [id, imageId, categoryId, x, y, width, height, area, crowd] = values as unknown as number[];
      const bbox = [x!, y!, width!, height!] as const;
      const known = !Number.isNaN(area);
      file.objects.push({
        id: id!,
        imageId: imageId!,
        categoryId: categoryId!,
        bbox,
        area: known ? area! : bbox[2] * bbox[3],
        iscrowd: crowd === 1,
      });
    },
  };
  await readCoco(reader, visitor, progress);
  return file;
}

const ROW_KEYS = new JsonKeys(["image_id", "category_id", "bbox", "score"]);

/**
 * Reads a results file: a list of objects with image_id, category_id, bbox and score; other fields are passed over.
 *
 * @param annotations what the detections belong to: others are errors
 * @param each called with every detection in the file's order
 * @returns how many there are
 * @throws DlfsError naming the file and the field ("[12].score"): no such image or category, a number that is missing, no number
 *   or not finite, a box of a negative size
 */
export async function readCocoResults(
  path: string,
  annotations: AnnotationFile,
  each: (row: ResultRow) => void,
  { progress = showProgress() }: { progress?: ProgressListener } = {},
): Promise<number> {
  const bytes = await load("readCocoResults", path);
  check(bytes.length > 0, path, () => "the file is empty", ErrorCode.io);
  const images = new Set(annotations.images.map(({ id }) => id));
  const categories = new Set(annotations.categories.map(({ id }) => id));
  const reader = new JsonReader(bytes, path);
  const label = `reading ${basename(path)}`;
  let pause = SLICE;
  let count = 0;
  progress(label, 0, bytes.length);
  reader.enterArray();
  for (; reader.nextElement(); ++count) {
    each(readRow(reader, images, categories, annotations.path));
    if (reader.position < pause) continue;
    pause = reader.position + SLICE;
    progress(label, reader.position, bytes.length);
    await yieldToEventLoop();
  }
  reader.end();
  progress(label, bytes.length, bytes.length);
  return count;
}

function readRow(reader: JsonReader, images: Set<number>, categories: Set<number>, annotations: string): ResultRow {
  let imageId: number | undefined;
  let categoryId: number | undefined;
  let bbox: ResultRow["bbox"] | undefined;
  let score: number | undefined;
  reader.enterObject();
  for (let key = reader.nextKey(ROW_KEYS); key !== END_OF_OBJECT; key = reader.nextKey(ROW_KEYS)) {
    if (key === 0) {
      imageId = reader.integer("an image's id");
      if (!images.has(imageId)) reader.fail(`no image of ${annotations} has id ${imageId}`);
    } else if (key === 1) {
      categoryId = reader.integer("a category's id");
      if (!categories.has(categoryId)) reader.fail(`no category of ${annotations} has id ${categoryId}`);
    } else if (key === 2) bbox = readBox(reader);
    else if (key === 3) score = reader.number();
    else reader.skip();
  }
  const missing = (field: string): never => reader.fail(`${field} is missing`);
  return {
    imageId: imageId ?? missing("image_id"),
    categoryId: categoryId ?? missing("category_id"),
    bbox: bbox ?? missing("bbox"),
    score: score ?? missing("score"),
  };
}

function readBox(reader: JsonReader): ResultRow["bbox"] {
  const bbox: number[] = [];
  reader.enterArray();
  while (reader.nextElement()) {
    const value = reader.number();
    if (bbox.length >= 2 && value < 0) reader.fail(`expected a size >= 0, got ${value}`);
    bbox.push(value);
  }
  if (bbox.length !== 4) reader.fail(`expected 4 numbers (x, y, width, height), got ${bbox.length}`);
  return bbox as unknown as ResultRow["bbox"];
}

/** Detections as the text of a results file, a line each; numbers keep all their digits. */
export function formatCocoResults(rows: Iterable<ResultRow>): string {
  const lines = [...rows].map(({ imageId, categoryId, bbox, score }) =>
    JSON.stringify({ image_id: imageId, category_id: categoryId, bbox, score }),
  );
  return `[${lines.join(",\n")}]\n`;
}

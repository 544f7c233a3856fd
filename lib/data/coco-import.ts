import { readFile, stat } from "node:fs/promises";
import { basename } from "node:path";
import { check, DlfsError, ErrorCode } from "../native/error";
import type { AnnotationStore, Category, CocoBox, NewAnnotation, NewImage } from "./annotation-store";
import { END_OF_OBJECT, JsonKeys, JsonReader } from "./json-reader";
import { fileError, keyProblem } from "./local-data-source";
import { ProblemList } from "./problems";
import { type ProgressListener, showProgress, yieldToEventLoop } from "./progress";

export interface ImportOptions {
  /** The split that the images become part of; it must not have any yet. */
  split: string;
  /** Folder of the image files, put before their names to make the keys of a DataSource: "train2017". Default: none. */
  folder?: string;
  /** What messages call the annotation file. Default: its path. */
  name?: string;
  /** Values for AnnotationStore.setMetadata, set together with the import or not at all. */
  metadata?: Record<string, string>;
  progress?: ProgressListener;
}

/** What an import brought in, and what it left out. */
export interface ImportReport {
  split: string;
  source: string;
  images: number;
  /** Boxes, crowds included. */
  annotations: number;
  crowds: number;
  categories: number;
  problems: ProblemList;
}

const TOP_KEYS = new JsonKeys(["images", "annotations", "categories"]);
const CATEGORY_KEYS = new JsonKeys(["id", "name", "supercategory"]);
const IMAGE_KEYS = new JsonKeys(["id", "file_name", "width", "height"]);
const ANNOTATION_KEYS = new JsonKeys(["id", "image_id", "category_id", "bbox", "area", "iscrowd"]);

/** Bytes read between two turns of the event loop. */
const SLICE = 4 << 20;

/** A box may reach this far, in pixels, outside its image before that is worth a word: files round coordinates. */
const ROUNDING = 1;

/**
 * Imports a COCO annotation file (https://cocodataset.org/#format-data, object detection) into a store: a path, or the
 * file's bytes. Ids need not be contiguous; `area` defaults to the box's, `iscrowd` to 0, an image's size to unknown; other
 * fields are passed over. A file that is not JSON, lacks a field, has a value of the wrong kind, an id of an image or category
 * twice, or an unknown category is a DlfsError that names the file and the field's path, and the store stays as it was.
 * Entries that can be left out are, and are counted in the report: boxes without area or outside their image, annotations
 * of unknown images, images whose file another image has already. Boxes that reach outside are kept as they are for
 * evaluation (training clips them) and reported as clipped.
 */
export async function importCoco(
  store: AnnotationStore,
  input: string | Uint8Array,
  options: ImportOptions,
): Promise<ImportReport> {
  const { split, folder = "", metadata = {}, progress = showProgress() } = options;
  const name = options.name ?? (typeof input === "string" ? input : "annotations");
  check(split !== "", "importCoco", () => "the split's name is empty");
  check(
    store.images(split).length === 0,
    "importCoco",
    () => `${name}: split "${split}" has images already, delete it first to import it again`,
  );
  const { bytes, size, modified } = await load(input);
  const content = await readCocoContent(bytes, name, progress);
  const problems = new ProblemList();
  const images = usableImages(content.images, folder, problems);

  return store.transaction(() => {
    store.addCategories(content.categories);
    const ids = store.addImages(split, images.list);
    const boxes = annotationsByImage(content, images, name, problems);
    let crowds = 0;
    const annotations = store.addAnnotations(
      boxes.map((box) => {
        if (box.isCrowd) crowds++;
        return { ...box, imageId: ids[box.imageId] as number };
      }),
    );
    for (const [key, value] of Object.entries(metadata)) store.setMetadata(key, value);
    const entries = problems.entries();
    store.recordImport({ split, source: name, size, modified, importedAt: Date.now(), problems: entries });
    const counts = { images: ids.length, annotations, crowds, categories: content.categories.length };
    return { split, source: name, ...counts, problems };
  });
}

async function load(input: string | Uint8Array): Promise<{ bytes: Uint8Array; size: number; modified: number | null }> {
  if (typeof input !== "string") return { bytes: input, size: input.length, modified: null };
  try {
    const info = await stat(input);
    return { bytes: await readFile(input), size: info.size, modified: Math.floor(info.mtimeMs) };
  } catch (error) {
    throw fileError("importCoco", input, error);
  }
}

/** What a file holds, checked field by field; ids of images and of categories are unique. */
export interface CocoContent {
  categories: Category[];
  images: NewImage[];
  /** ANNOTATION_FIELDS numbers each: id, image_id, category_id, x, y, width, height, area (NaN: none), iscrowd. */
  annotations: Float64Array;
  annotationCount: number;
}

export const ANNOTATION_FIELDS = 9;

/** @param name what messages call the file */
export async function readCocoContent(
  bytes: Uint8Array,
  name: string,
  progress: ProgressListener,
): Promise<CocoContent> {
  check(bytes.length > 0, name, () => "the file is empty", ErrorCode.io);
  const content = await parse(new JsonReader(bytes, name), bytes.length, progress);
  checkUnique(content.categories, (c) => c.id, "categories", name);
  checkUnique(content.images, (i) => i.sourceId, "images", name);
  return content;
}

async function parse(reader: JsonReader, length: number, progress: ProgressListener): Promise<CocoContent> {
  const content: CocoContent = {
    categories: [],
    images: [],
    annotations: new Float64Array(9 * 1024),
    annotationCount: 0,
  };
  const label = `reading ${basename(reader.name)}`;
  const found = new Set<number>();
  let pause = SLICE;
  progress(label, 0, length);
  const list = async (read: () => void): Promise<void> => {
    reader.enterArray();
    while (reader.nextElement()) {
      read();
      if (reader.position < pause) continue;
      pause = reader.position + SLICE;
      progress(label, reader.position, length);
      await yieldToEventLoop();
    }
  };
  reader.enterObject();
  for (let key = reader.nextKey(TOP_KEYS); key !== END_OF_OBJECT; key = reader.nextKey(TOP_KEYS)) {
    if (found.has(key)) reader.fail("is there twice");
    if (key === 0) await list(() => content.images.push(readImage(reader)));
    else if (key === 1) await list(() => readAnnotation(reader, content));
    else if (key === 2) await list(() => content.categories.push(readCategory(reader)));
    else reader.skip();
    if (key >= 0) found.add(key);
  }
  reader.end();
  for (const [i, name] of TOP_KEYS.names.entries()) {
    check(found.has(i), reader.name, () => `${name}: missing, expected a list`, ErrorCode.io);
  }
  check(content.images.length > 0, reader.name, () => "images: the list is empty", ErrorCode.io);
  check(content.categories.length > 0, reader.name, () => "categories: the list is empty", ErrorCode.io);
  progress(label, length, length);
  return content;
}

function readCategory(reader: JsonReader): Category {
  let id: number | null = null;
  let name: string | null = null;
  let supercategory: string | null = null;
  reader.enterObject();
  for (let key = reader.nextKey(CATEGORY_KEYS); key !== END_OF_OBJECT; key = reader.nextKey(CATEGORY_KEYS)) {
    if (key === 0) id = readId(reader);
    else if (key === 1) name = reader.string() || reader.fail("expected a name, got an empty text");
    else if (key === 2 && reader.kind() === "string") supercategory = reader.string();
    else reader.skip();
  }
  return { id: id ?? missing(reader, "id"), name: name ?? missing(reader, "name"), supercategory };
}

function readImage(reader: JsonReader): NewImage {
  let sourceId: number | null = null;
  let fileName: string | null = null;
  let width: number | null = null;
  let height: number | null = null;
  reader.enterObject();
  for (let key = reader.nextKey(IMAGE_KEYS); key !== END_OF_OBJECT; key = reader.nextKey(IMAGE_KEYS)) {
    if (key === 0) sourceId = readId(reader);
    else if (key === 1) fileName = reader.string() || reader.fail("expected a file name, got an empty text");
    else if (key === 2) width = readSize(reader);
    else if (key === 3) height = readSize(reader);
    else reader.skip();
  }
  fileName ??= missing(reader, "file_name");
  // A size is known as a whole or not at all.
  const known = width !== null && height !== null;
  return {
    sourceId: sourceId ?? missing(reader, "id"),
    fileName,
    key: fileName,
    width: known ? width : null,
    height: known ? height : null,
  };
}

/** Appends an annotation's ANNOTATION_FIELDS numbers. */
function readAnnotation(reader: JsonReader, content: CocoContent): void {
  let columns = content.annotations;
  const at = content.annotationCount * ANNOTATION_FIELDS;
  if (at + ANNOTATION_FIELDS > columns.length) {
    columns = new Float64Array(2 * columns.length);
    columns.set(content.annotations);
    content.annotations = columns;
  }
  columns.fill(Number.NaN, at, at + 8);
  columns[at + 8] = 0;
  reader.enterObject();
  for (let key = reader.nextKey(ANNOTATION_KEYS); key !== END_OF_OBJECT; key = reader.nextKey(ANNOTATION_KEYS)) {
    if (key >= 0 && key <= 2) {
      columns[at + key] = readId(reader);
    } else if (key === 3) {
      let n = 0;
      reader.enterArray();
      for (; reader.nextElement(); n++) {
        const value = reader.number(n < 2 ? "a number" : "a number >= 0");
        if (n < 4) columns[at + 3 + n] = value;
      }
      if (n !== 4) reader.fail(`expected 4 numbers (x, y, width, height), got ${n}`);
    } else if (key === 4) {
      if (reader.kind() === "null") reader.null();
      else columns[at + 7] = reader.number();
    } else if (key === 5) {
      columns[at + 8] = readFlag(reader);
    } else {
      reader.skip();
    }
  }
  for (const [i, field] of ["id", "image_id", "category_id", "bbox"].entries()) {
    if (Number.isNaN(columns[at + i])) missing(reader, field);
  }
  content.annotationCount++;
}

function readId(reader: JsonReader): number {
  const id = reader.integer("an integer >= 0");
  return id >= 0 ? id : reader.fail(`expected an integer >= 0, got ${id}`);
}

/** A width or height; null and 0, which some tools write for an unknown size, are null. */
function readSize(reader: JsonReader): number | null {
  if (reader.kind() === "null") {
    reader.null();
    return null;
  }
  const size = reader.integer("an integer > 0");
  return size >= 0 ? size || null : reader.fail(`expected an integer > 0, got ${size}`);
}

function readFlag(reader: JsonReader): number {
  if (reader.kind() === "boolean") return reader.boolean() ? 1 : 0;
  const flag = reader.number("0 or 1");
  return flag === 0 || flag === 1 ? flag : reader.fail(`expected 0 or 1, got ${flag}`);
}

function missing(reader: JsonReader, field: string): never {
  const path = reader.path();
  throw new DlfsError(ErrorCode.io, reader.name, `${path}${path && "."}${field}: missing`);
}

function checkUnique<T>(list: readonly T[], idOf: (entry: T) => number, what: string, file: string): void {
  const seen = new Map<number, number>();
  for (const [i, entry] of list.entries()) {
    const id = idOf(entry);
    const first = seen.get(id);
    check(first === undefined, file, () => `${what}[${i}].id: ${id} is ${what}[${first}]'s already`, ErrorCode.io);
    seen.set(id, i);
  }
}

interface UsableImages {
  list: NewImage[];
  /** Place in `list` of each sourceId; -1 for images that are left out. */
  places: Map<number, number>;
}

/** The images with their keys; those without a usable name, or with a name that another one has, are left out. */
function usableImages(images: readonly NewImage[], folder: string, problems: ProblemList): UsableImages {
  const list: NewImage[] = [];
  const places = new Map<number, number>();
  const byKey = new Map<string, NewImage>();
  for (const image of images) {
    const { sourceId, fileName } = image;
    const bad = keyProblem(fileName);
    // "./a.jpg" and "a.jpg" are one file.
    const key = [...folder.split("/"), ...fileName.split("/")].filter((part) => part !== "" && part !== ".").join("/");
    const other = byKey.get(key);
    if (bad !== null) {
      problems.add("image", "skipped", `its file name ${bad}`, `${JSON.stringify(fileName)}, id ${sourceId}`);
      places.set(sourceId, -1);
    } else if (other) {
      const example = `${fileName}: id ${sourceId} skipped, id ${other.sourceId} used`;
      problems.add("image", "skipped", "another image has the same file name", example);
      places.set(sourceId, -1);
    } else {
      const usable = { ...image, key };
      byKey.set(key, usable);
      places.set(sourceId, list.length);
      list.push(usable);
    }
  }
  return { list, places };
}

/** The annotations to import, sorted by image; imageId is the place in `images.list`. */
function annotationsByImage(
  content: CocoContent,
  images: UsableImages,
  file: string,
  problems: ProblemList,
): NewAnnotation[] {
  const { annotations: columns, annotationCount: count } = content;
  const categories = new Set(content.categories.map((c) => c.id));
  const ids = new Set<number>();
  const perImage: NewAnnotation[][] = images.list.map(() => []);
  let orphans = 0;
  for (let i = 0; i < count; i++) {
    const at = i * ANNOTATION_FIELDS;
    const column = (k: number): number => columns[at + k] as number;
    const sourceId = column(0);
    const image = column(1);
    const categoryId = column(2);
    const bbox: CocoBox = [column(3), column(4), column(5), column(6)];
    const area = column(7);
    check(
      categories.has(categoryId),
      file,
      () => `annotations[${i}].category_id: no category has id ${categoryId}`,
      ErrorCode.io,
    );
    const place = images.places.get(image);
    if (place === undefined) {
      orphans++;
      problems.add("box", "skipped", "no image has its image_id", `annotations[${i}], image_id ${image}`);
      continue;
    }
    if (place < 0) {
      problems.add("box", "skipped", "its image is skipped", `annotations[${i}], image_id ${image}`);
      continue;
    }
    const target = images.list[place] as NewImage;
    const placement = placeBox(bbox, target.width, target.height);
    if (placement !== "inside") {
      const skipped = placement !== "partly";
      const example = `annotations[${i}] of ${target.fileName}: [${bbox.join(", ")}]`;
      problems.add("box", skipped ? "skipped" : "clipped", BOX_REASONS[placement], example);
      if (skipped) continue;
    }
    if (ids.has(sourceId)) problems.add("box", "kept", "its id is not unique", `annotations[${i}], id ${sourceId}`);
    ids.add(sourceId);
    (perImage[place] as NewAnnotation[]).push({
      sourceId,
      imageId: place,
      categoryId,
      bbox,
      area: area >= 0 ? area : bbox[2] * bbox[3],
      isCrowd: column(8) === 1,
    });
  }
  const unknown = columns[1];
  check(
    count === 0 || orphans < count,
    file,
    () =>
      `annotations[].image_id: none of the ${count} annotations belongs to an image of the file, the first to ${unknown}`,
    ErrorCode.io,
  );
  return perImage.flat();
}

/** Reasons that a ProblemList gives for what placeBox finds. */
export const BOX_REASONS = {
  empty: "no area",
  outside: "lies outside the image",
  partly: "reaches outside the image",
} as const;

/** How a box lies in an image of this size (null: unknown). */
export function placeBox(
  [x, y, width, height]: CocoBox,
  imageWidth: number | null,
  imageHeight: number | null,
): "inside" | "partly" | "outside" | "empty" {
  if (!(width > 0 && height > 0)) return "empty";
  if (imageWidth === null || imageHeight === null) return "inside";
  if (x >= imageWidth || y >= imageHeight || x + width <= 0 || y + height <= 0) return "outside";
  const over = Math.max(-x, -y, x + width - imageWidth, y + height - imageHeight);
  return over > ROUNDING ? "partly" : "inside";
}

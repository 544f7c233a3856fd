/** COCO's annotation files, field by field (https://cocodataset.org/#format-data, object detection). */
import { basename } from "node:path";
import { check, DlfsError, ErrorCode } from "../native/error";
import type { Category, NewImage } from "./annotation-store";
import { END_OF_OBJECT, JsonKeys, type JsonReader } from "./json-reader";
import { type ProgressListener, yieldToEventLoop } from "./progress";

const TOP_KEYS = new JsonKeys(["images", "annotations", "categories"]);
const CATEGORY_KEYS = new JsonKeys(["id", "name", "supercategory"]);
const IMAGE_KEYS = new JsonKeys(["id", "file_name", "width", "height"]);
const ANNOTATION_KEYS = new JsonKeys(["id", "image_id", "category_id", "bbox", "area", "iscrowd", "attributes"]);
const ATTRIBUTE_KEYS = new JsonKeys(["crowd", "rotation"]);

/** Bytes read between two turns of the event loop. */
const SLICE = 4 << 20;

/** Numbers of an annotation: id, image_id, category_id, x, y, width, height, area (NaN: none), iscrowd. */
export const ANNOTATION_FIELDS = 9;

/** Is given the entries of a file, in the order in which it has them. */
export interface CocoVisitor {
  category(category: Category, index: number): void;
  /** Where an image has no size, or only one of width and height, both are null. */
  image(image: NewImage, index: number): void;
  /** @param values ANNOTATION_FIELDS numbers, valid during the call */
  annotation(values: Float64Array, index: number): void;
  /** The annotation that was given last is turned by that many degrees, as CVAT says in its attributes. */
  turned?(values: Float64Array, index: number, degrees: number): void;
  /** All images have been given. */
  imagesDone?(): void;
}

/**
 * Reads a file, checked field by field.
 *
 * @throws DlfsError naming the file and the field
 */
export async function readCoco(reader: JsonReader, visitor: CocoVisitor, progress: ProgressListener): Promise<void> {
  check(reader.size > 0, reader.name, () => "the file is empty", ErrorCode.io);
  const label = `reading ${basename(reader.name)}`;
  const found = new Map<number, number>();
  const values = new Float64Array(ANNOTATION_FIELDS);
  let pause = SLICE;
  progress(label, 0, reader.size);
  const list = async (read: (index: number) => void): Promise<number> => {
    let index = 0;
    reader.enterArray();
    while (reader.nextElement()) {
      read(index++);
      if (reader.position < pause) continue;
      pause = reader.position + SLICE;
      progress(label, reader.position, reader.size);
      await yieldToEventLoop();
    }
    return index;
  };
  reader.enterObject();
  for (let key = reader.nextKey(TOP_KEYS); key !== END_OF_OBJECT; key = reader.nextKey(TOP_KEYS)) {
    if (found.has(key)) reader.fail("is there twice");
    if (key === 0) {
      found.set(key, await list((i) => visitor.image(readImage(reader), i)));
      visitor.imagesDone?.();
    } else if (key === 1) {
      found.set(
        key,
        await list((i) => {
          const degrees = readAnnotation(reader, values);
          visitor.annotation(values, i);
          if (degrees !== 0) visitor.turned?.(values, i, degrees);
        }),
      );
    } else if (key === 2) {
      found.set(key, await list((i) => visitor.category(readCategory(reader), i)));
    } else {
      reader.skip();
    }
  }
  reader.end();
  for (const [i, name] of TOP_KEYS.names.entries()) {
    check(found.has(i), reader.name, () => `${name}: missing, expected a list`, ErrorCode.io);
  }
  check(found.get(0) !== 0, reader.name, () => "images: the list is empty", ErrorCode.io);
  check(found.get(2) !== 0, reader.name, () => "categories: the list is empty", ErrorCode.io);
  progress(label, reader.size, reader.size);
}

/** Two entries of a list have the same id. */
export function sameId(file: string, list: string, index: number, id: number, first: number): DlfsError {
  return new DlfsError(ErrorCode.io, file, `${list}[${index}].id: ${id} is ${list}[${first}]'s already`);
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

/** Reads an annotation's ANNOTATION_FIELDS numbers; by how many degrees it is turned. */
function readAnnotation(reader: JsonReader, values: Float64Array): number {
  let degrees = 0;
  let crowd = false;
  for (let i = 0; i < 8; i++) values[i] = Number.NaN;
  values[8] = 0;
  reader.enterObject();
  for (let key = reader.nextKey(ANNOTATION_KEYS); key !== END_OF_OBJECT; key = reader.nextKey(ANNOTATION_KEYS)) {
    if (key >= 0 && key <= 2) {
      values[key] = readId(reader);
    } else if (key === 3) {
      let n = 0;
      reader.enterArray();
      for (; reader.nextElement(); n++) {
        const value = reader.number(n < 2 ? "a number" : "a number >= 0");
        if (n < 4) values[3 + n] = value;
      }
      if (n !== 4) reader.fail(`expected 4 numbers (x, y, width, height), got ${n}`);
    } else if (key === 4) {
      if (reader.kind() === "null") reader.null();
      else values[7] = reader.number();
    } else if (key === 5) {
      values[8] = readFlag(reader);
    } else if (key === 6 && reader.kind() === "object") {
      reader.enterObject();
      for (let name = reader.nextKey(ATTRIBUTE_KEYS); name !== END_OF_OBJECT; name = reader.nextKey(ATTRIBUTE_KEYS)) {
        if (name === 0 && reader.kind() === "boolean") crowd = reader.boolean();
        else if (name === 1 && reader.kind() === "number") degrees = reader.number() % 360;
        else reader.skip();
      }
    } else {
      reader.skip();
    }
  }
  for (let i = 0; i < 4; i++) {
    if (Number.isNaN(values[i] as number)) missing(reader, ANNOTATION_KEYS.names[i] as string);
  }
  // CVAT writes no box as a crowd; what it keeps of ours is the attribute.
  if (crowd) values[8] = 1;
  return degrees;
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

/** Pascal VOC: an XML file for each image (VOC2012 development kit, section 4; what LabelImg and others write). */
import { readdir, readFile, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { DlfsError, ErrorCode } from "../../native/error";
import type { AnnotationStore, CocoBox } from "../annotation-store";
import type { ImportReport } from "../import-content";
import { fileError, isMissing } from "../local-data-source";
import { NamedContent, type NamedImportOptions } from "./named-content";
import { TextWriter } from "./text-writer";
import { type ExportOptions, type ExportReport, Stems, sizeOf, walkImages } from "./walk";

export interface VocOptions {
  /**
   * The first pixel's number. VOC counts from 1 and names the last pixel inside a box (default 1); some programs write edges
   * from 0 instead.
   */
  firstPixel?: 0 | 1;
}

/** Files that are read at a time. */
const BATCH = 64;

/** An element as Bun.XML gives it: a text, or children by name. */
type Node = string | { [name: string]: Node | Node[] };

/**
 * Imports VOC's XML files: `input` is a folder of them, or one that has them in Annotations/. Where it also has
 * ImageSets/Main/SPLIT.txt, only the images that are named there are imported. An image's key is `folder` and its <filename>.
 * Objects marked as difficult become crowds: evaluated as such, never a training target.
 *
 * @throws DlfsError naming the file and the element
 */
export async function importVoc(
  store: AnnotationStore,
  input: string,
  options: NamedImportOptions & VocOptions,
): Promise<ImportReport> {
  const { firstPixel = 1, split } = options;
  using content = new NamedContent("importVoc", store, input, options);
  const files = await annotationFiles(input, split);
  const label = `reading ${basename(input)}`;
  content.progress(label, 0, files.length);
  for (let at = 0; at < files.length; at += BATCH) {
    const batch = files.slice(at, at + BATCH);
    const texts = await Promise.all(batch.map(readText));
    for (const [i, file] of batch.entries()) readFileInto(content, file, texts[i] as string, firstPixel);
    content.progress(label, at + batch.length, files.length);
  }
  return content.finish();
}

async function annotationFiles(input: string, split: string): Promise<string[]> {
  const nested = join(input, "Annotations");
  const isNested = await stat(nested).then(
    (info) => info.isDirectory(),
    () => false,
  );
  const folder = isNested ? nested : input;
  let names: string[];
  try {
    const list = join(input, "ImageSets", "Main", `${split}.txt`);
    const listed = isNested
      ? await readFile(list, "utf8").catch((error) => (isMissing(error) ? null : raise(error)))
      : null;
    // A line may go on with a flag of the class that the list is for.
    names = listed
      ? listed
          .split("\n")
          .flatMap((line) => line.trim().replace(/\s+-?[01]$/, "") || [])
          .map((stem) => `${stem}.xml`)
      : (await readdir(folder, { recursive: true })).filter((name) => name.toLowerCase().endsWith(".xml")).sort();
  } catch (error) {
    throw fileError("importVoc", folder, error);
  }
  if (names.length === 0) throw new DlfsError(ErrorCode.io, "importVoc", `${folder}: expected XML files, found none`);
  return names.map((name) => join(folder, name));
}

function raise(error: unknown): never {
  throw error;
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    throw fileError("importVoc", path, error);
  }
}

function readFileInto(content: NamedContent, file: string, text: string, firstPixel: number): void {
  let document: Node;
  try {
    document = Bun.XML.parse(text) as Node;
  } catch (error) {
    throw new DlfsError(
      ErrorCode.io,
      file,
      `not valid XML: ${(error as Error).message.replace(/^XML Parse error: /, "")}`,
    );
  }
  const root = child(document, "annotation", file, "");
  const fileName = textOf(child(root, "filename", file, "annotation"), file, "annotation.filename");
  const size = typeof root === "string" ? undefined : root.size;
  const side = (name: string): number | null => {
    if (size === undefined || Array.isArray(size)) return null;
    const value = numberOf(child(size, name, file, "annotation.size"), file, `annotation.size.${name}`);
    return value > 0 ? value : null;
  };
  const [width, height] = [side("width"), side("height")];
  const known = width !== null && height !== null;
  const image = content.image(fileName, known ? width : null, known ? height : null);
  const objects = typeof root === "string" ? [] : [root.object ?? []].flat();
  for (const [i, object] of objects.entries()) {
    const path = `annotation.object[${i}]`;
    const category = textOf(child(object, "name", file, path), file, `${path}.name`);
    const box = child(object, "bndbox", file, path);
    const edge = (name: string): number =>
      numberOf(child(box, name, file, `${path}.bndbox`), file, `${path}.bndbox.${name}`);
    const [x, y] = [edge("xmin") - firstPixel, edge("ymin") - firstPixel];
    const bbox: CocoBox = [x, y, edge("xmax") - x, edge("ymax") - y];
    const difficult = typeof object === "string" ? undefined : object.difficult;
    content.box(image, { category, bbox, isCrowd: difficult === "1", where: () => `${file}, ${path}` });
  }
}

function child(node: Node | Node[], name: string, file: string, path: string): Node {
  const where = path === "" ? name : `${path}.${name}`;
  const found = typeof node === "string" || Array.isArray(node) ? undefined : node[name];
  if (found === undefined) throw new DlfsError(ErrorCode.io, file, `${where}: missing`);
  if (Array.isArray(found)) throw new DlfsError(ErrorCode.io, file, `${where}: expected one, got ${found.length}`);
  return found;
}

function textOf(node: Node, file: string, path: string): string {
  const text = typeof node === "string" ? node.trim() : "";
  if (text !== "") return text;
  throw new DlfsError(ErrorCode.io, file, `${path}: expected a text, got ${node === "" ? "nothing" : "elements"}`);
}

function numberOf(node: Node, file: string, path: string): number {
  const text = typeof node === "string" ? node.trim() : "";
  const value = Number(text);
  if (text !== "" && Number.isFinite(value)) return value;
  throw new DlfsError(ErrorCode.io, file, `${path}: expected a number, got ${JSON.stringify(node)}`);
}

/**
 * Writes a split as VOC's XML files, to Annotations/, with the list ImageSets/Main/SPLIT.txt. Crowds are marked as difficult.
 *
 * @throws DlfsError for an image whose size is not known, and where two images would have the same file
 */
export function exportVoc(store: AnnotationStore, folder: string, options: ExportOptions & VocOptions): ExportReport {
  const { firstPixel = 1, split } = options;
  const list = join(folder, "ImageSets", "Main", `${split}.txt`);
  const report = { images: 0, annotations: 0, leftOut: 0, paths: [join(folder, "Annotations"), list] };
  const names = new Map(store.categories().map(({ id, name }) => [id, name]));
  const stems = new Stems();
  using lines = new TextWriter(list);
  for (const { image, boxes } of walkImages(store, options, "writing XML files")) {
    const { width, height } = sizeOf(image);
    const stem = stems.of(image);
    const object = boxes.map(({ categoryId, bbox, isCrowd }) => {
      const [x, y] = [bbox[0] + firstPixel, bbox[1] + firstPixel];
      const edges = { xmin: x, ymin: y, xmax: bbox[0] + bbox[2], ymax: bbox[1] + bbox[3] };
      const bndbox = Object.fromEntries(Object.entries(edges).map(([name, value]) => [name, String(value)]));
      const flags = { pose: "Unspecified", truncated: "0", difficult: isCrowd ? "1" : "0" };
      return { name: names.get(categoryId) as string, ...flags, bndbox };
    });
    const size = { width: String(width), height: String(height), depth: "3" };
    const annotation = { folder: split, filename: image.fileName, size, segmented: "0", object };
    using file = new TextWriter(join(folder, "Annotations", `${stem}.xml`));
    file.write(`${Bun.XML.stringify({ annotation }, null, 2)}\n`);
    file.finish();
    lines.write(`${stem}\n`);
    report.images++;
    report.annotations += boxes.length;
  }
  lines.finish();
  return report;
}

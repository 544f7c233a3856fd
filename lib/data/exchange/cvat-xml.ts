/** CVAT's own file for images, "CVAT for images 1.1" (https://docs.cvat.ai/docs/manual/advanced/xml_format/). */
import { readFile, stat } from "node:fs/promises";
import { basename } from "node:path";
import { DlfsError, ErrorCode } from "../../native/error";
import type { AnnotationStore, CocoBox } from "../annotation-store";
import type { ImportReport } from "../import-content";
import { fileError } from "../local-data-source";
import { NamedContent, type NamedImportOptions } from "./named-content";
import { TextWriter } from "./text-writer";
import { type ExportOptions, type ExportReport, sizeOf, walkImages } from "./walk";

/** An element as Bun.XML gives it: attributes as "@name", children by name, one or a list. */
type Element = Readonly<Record<string, unknown>>;

/** An attribute of boxes that says that one is around a group: CVAT keeps it where the label has it (cvatLabels). */
export const CROWD = "crowd";

/** As labels have it, in its editor and in its files. */
const CROWD_LABEL = { name: CROWD, input_type: "checkbox", mutable: false, values: ["false"], default_value: "false" };
const CROWD_XML = { ...CROWD_LABEL, mutable: "False", values: "false" };

/** What CVAT has besides boxes: an image with one of these is not all there. */
const OTHER_SHAPES = ["polygon", "polyline", "points", "ellipse", "cuboid", "mask", "skeleton"] as const;

/**
 * Imports the images and boxes of an XML file; other shapes are left out and reported, turned boxes kept as CVAT draws them before
 * they are turned, and the images of both are in the report's `inexact`. Boxes that CVAT's models drew ("auto") are a model's.
 *
 * @throws DlfsError naming the file and the element
 */
export async function importCvatXml(
  store: AnnotationStore,
  path: string,
  options: NamedImportOptions,
): Promise<ImportReport> {
  using content = new NamedContent("importCvatXml", store, path, options);
  const [text, info] = await Promise.all([readFile(path, "utf8"), stat(path)]).catch((error) => {
    throw fileError("importCvatXml", path, error);
  });
  content.progress(`reading ${basename(path)}`, 0, info.size);
  const fail = (message: string): never => {
    throw new DlfsError(ErrorCode.io, path, message);
  };
  let document: unknown;
  try {
    document = Bun.XML.parse(text);
  } catch (error) {
    fail(`not valid XML: ${(error as Error).message.replace(/^XML Parse error: /, "")}`);
  }
  const [root] = children(document as Element, "annotations");
  if (!root) return fail("annotations: missing");
  if (children(root, "track").length > 0) fail("annotations.track: expected images, and this is of a video");
  const images = children(root, "image");
  if (images.length === 0) fail("annotations.image: missing");
  for (const [i, image] of images.entries()) readImage(image, `annotations.image[${i}]`, content, fail);
  content.progress(`reading ${basename(path)}`, info.size, info.size);
  return content.finish({ size: info.size, modified: Math.floor(info.mtimeMs) });
}

function readImage(image: Element, place: string, content: NamedContent, fail: (message: string) => never): void {
  const name = attribute(image, "name") || fail(`${place}.name: missing`);
  const number = (of: Element, key: string, where: string): number => {
    const text = attribute(of, key);
    const value = text === "" ? Number.NaN : Number(text);
    return Number.isFinite(value) ? value : fail(`${where}.${key}: expected a number, got ${JSON.stringify(text)}`);
  };
  const [width, height] = [number(image, "width", place), number(image, "height", place)];
  const id = content.image(name, width, height, Number(attribute(image, "id") || Number.NaN));
  for (const shape of OTHER_SHAPES) {
    const count = children(image, shape).length;
    if (count === 0) continue;
    const expected = `${place}.${shape}: expected boxes`;
    content.content.inexact(id, expected, "skipped", "it is no rectangle", `${count} ${shape} of ${name}`);
  }
  for (const [k, box] of children(image, "box").entries()) {
    const where = `${place}.box[${k}]`;
    const [x, y] = [number(box, "xtl", where), number(box, "ytl", where)];
    const bbox: CocoBox = [x, y, number(box, "xbr", where) - x, number(box, "ybr", where) - y];
    const rotation = attribute(box, "rotation") === "" ? 0 : number(box, "rotation", where);
    if (rotation % 360 !== 0) {
      const reason = "it is turned, the box before turning is used";
      const upright = `${where}.rotation: expected 0, got ${rotation}: boxes are upright`;
      content.content.inexact(id, upright, "kept", reason, `${where} of ${name}`);
    }
    const label = attribute(box, "label") || fail(`${where}.label: missing`);
    const crowd = children(box, "attribute").some((one) => attribute(one, "name") === CROWD && textOf(one) === "true");
    const by = attribute(box, "source") === "auto" ? ({ source: "model", author: "cvat" } as const) : undefined;
    content.box(id, { category: label, bbox, isCrowd: crowd, by, where: () => `${content.name}, ${where}` });
  }
}

/** The elements of that name in one. */
function children(of: Element, name: string): Element[] {
  const found = of[name];
  if (found === undefined || found === null) return [];
  // An element without attributes is its text.
  return [found].flat().map((one) => (typeof one === "object" && one !== null ? (one as Element) : { "#text": one }));
}

const attribute = (of: Element, name: string): string => String(of[`@${name}`] ?? "");

const textOf = (of: Element): string => String(of["#text"] ?? "").trim();

/** Writes a split as a file that CVAT takes for a task with these images ("CVAT 1.1"). */
export function exportCvatXml(store: AnnotationStore, path: string, options: ExportOptions): ExportReport {
  const { split, unusable = false } = options;
  const report = { images: 0, annotations: 0, leftOut: 0, paths: [path] };
  const names = new Map(store.categories().map(({ id, name }) => [id, name]));
  using writer = new TextWriter(path);
  writer.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n');
  const label = store
    .categories()
    .map(({ name }) => ({ name, type: "rectangle", attributes: { attribute: CROWD_XML } }));
  const size = String(store.countImages(unusable ? { split } : { split, usable: true }));
  const task = { name: split, size, mode: "annotation", labels: { label } };
  writer.write(`${Bun.XML.stringify({ meta: { task } }, null, 1)}\n`);
  for (const { image, boxes } of walkImages(store, options, "writing images")) {
    const { width, height } = sizeOf(image);
    const box = boxes.map(({ categoryId, bbox, isCrowd, source }) => {
      const [x, y, w, h] = bbox;
      return withAt({
        ...{ label: names.get(categoryId) as string, source: source === "model" ? "auto" : "manual", occluded: 0 },
        ...{ xtl: x, ytl: y, xbr: x + w, ybr: y + h, z_order: 0 },
        attribute: isCrowd ? [{ "@name": CROWD, "#text": "true" }] : [],
      });
    });
    const element = withAt({ id: image.sourceId, name: image.fileName, width, height, box });
    writer.write(`${Bun.XML.stringify({ image: element }, null, 1)}\n`);
    report.images++;
    report.annotations += boxes.length;
  }
  writer.write("</annotations>\n");
  writer.finish();
  return report;
}

/** An element for Bun.XML: lists are its children, all else its attributes. */
function withAt(of: Readonly<Record<string, unknown>>): Element {
  return Object.fromEntries(
    Object.entries(of).map(([name, value]) => (Array.isArray(value) ? [name, value] : [`@${name}`, String(value)])),
  );
}

/** The labels of a task for CVAT's editor of labels ("Raw"): the data set's classes, with what their boxes may say. */
export function cvatLabels(store: AnnotationStore): unknown[] {
  return store.categories().map(({ name }) => ({ name, type: "rectangle", attributes: [CROWD_LABEL] }));
}

/** Label Studio's tasks as JSON: boxes in percent of the image (https://labelstud.io/guide/task_format). */
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import { check, DlfsError, ErrorCode } from "../../native/error";
import type { AnnotationStore, Attribution, CocoBox } from "../annotation-store";
import type { ImportReport } from "../import-content";
import { JsonReader } from "../json-reader";
import { fileError } from "../local-data-source";
import { yieldToEventLoop } from "../progress";
import {
  attributionIn,
  isSameBox,
  type LabelStudioOptions,
  type StudioMeta,
  studioMeta,
  studioTask,
} from "./label-studio-task";
import { NamedContent, type NamedImportOptions } from "./named-content";
import { TextWriter, writeList } from "./text-writer";
import { type ExportOptions, type ExportReport, walkImages } from "./walk";

export interface LabelStudioImportOptions extends NamedImportOptions, LabelStudioOptions {
  /** Whether a model's predictions are imported: of tasks that nobody has annotated (default), of all, or not. */
  predictions?: "unlabeled" | "always" | "never";
  /** Tasks that nobody has annotated are passed over. Default false: they are images without boxes, but for predictions. */
  annotatedOnly?: boolean;
  /** Addresses of annotators by their ids, which exports have instead. */
  users?: ReadonlyMap<number, string>;
}

type Fields = Record<string, unknown>;

/** Bytes read between two turns of the event loop. */
const SLICE = 1 << 20;

/**
 * Imports a list of tasks: Label Studio's export, or what exportLabelStudio wrote. Of several annotations of a task the newest
 * that was not cancelled counts; one without boxes is an image without boxes. Boxes that are turned become their upright hull,
 * other shapes are left out; both are reported, and their images are in the report's `inexact`.
 *
 * @throws DlfsError naming the file and the field
 */
export async function importLabelStudio(
  store: AnnotationStore,
  path: string,
  options: LabelStudioImportOptions,
): Promise<ImportReport> {
  using content = new NamedContent("importLabelStudio", store, path, options);
  const info = await stat(path).catch((error) => {
    throw fileError("importLabelStudio", path, error);
  });
  using reader = JsonReader.open(path);
  check(reader.size > 0, path, () => "the file is empty", ErrorCode.io);
  const label = `reading ${basename(path)}`;
  let pause = SLICE;
  content.progress(label, 0, reader.size);
  reader.enterArray();
  for (let i = 0; reader.nextElement(); i++) {
    readTask(new Field(path, `[${i}]`, reader.value()), content, options);
    if (reader.position < pause) continue;
    pause = reader.position + SLICE;
    content.progress(label, reader.position, reader.size);
    await yieldToEventLoop();
  }
  reader.end();
  content.progress(label, reader.size, reader.size);
  return content.finish({ size: info.size, modified: Math.floor(info.mtimeMs) });
}

/** A value with its path, checked as it is asked for. */
class Field {
  constructor(
    readonly file: string,
    readonly path: string,
    readonly value: unknown,
  ) {}

  fail(expected: string): never {
    const text = this.value === undefined ? "nothing" : JSON.stringify(this.value);
    const got = text.length > 60 ? `${text.slice(0, 57)}...` : text;
    throw new DlfsError(ErrorCode.io, this.file, `${this.path}: expected ${expected}, got ${got}`);
  }

  of(name: string): Field {
    const { value } = this;
    if (typeof value !== "object" || value === null || Array.isArray(value)) return this.fail("an object");
    return new Field(this.file, `${this.path}.${name}`, (value as Fields)[name]);
  }

  /** The elements of a list; none where the field is missing. */
  list(): Field[] {
    const { value } = this;
    if (value === undefined || value === null) return [];
    if (!Array.isArray(value)) return this.fail("a list");
    return value.map((element, i) => new Field(this.file, `${this.path}[${i}]`, element));
  }

  number(): number {
    return typeof this.value === "number" && Number.isFinite(this.value) ? this.value : this.fail("a number");
  }

  text(): string {
    return typeof this.value === "string" && this.value !== "" ? this.value : this.fail("a text");
  }
}

function readTask(task: Field, content: NamedContent, options: LabelStudioImportOptions): void {
  const { predictions = "unlabeled", imageField = "image", imagePrefix = "", annotatedOnly = false, users } = options;
  const { problems } = content.content;
  const meta = studioMeta(task.of("meta").value);
  const url = task.of("data").of(imageField).text();
  const fileName = meta?.file ?? nameOf(url, imagePrefix);
  const annotations = task
    .of("annotations")
    .list()
    .filter((annotation) => annotation.of("was_cancelled").value !== true)
    .sort((a, b) => timeOf(a, "updated_at") - timeOf(b, "updated_at"));
  if (annotations.length > 1) {
    const example = `${task.path} (${fileName}): the newest of ${annotations.length} used`;
    problems.add("image", "kept", "it has several annotations", example);
  }
  const annotation = annotations.at(-1);
  if (!annotation && annotatedOnly) return;
  const usePredictions = predictions === "always" || (predictions === "unlabeled" && !annotation);
  // Label Studio's own export says no more of predictions than their ids.
  const predicted = task
    .of("predictions")
    .list()
    .filter(({ value }) => typeof value !== "number");
  const sources = [
    ...(annotation ? [{ of: annotation, model: false }] : []),
    ...(usePredictions ? predicted.slice(predictions === "always" ? 0 : -1).map((of) => ({ of, model: true })) : []),
  ];
  const regions = sources.flatMap(({ of, model }) =>
    of
      .of("result")
      .list()
      .map((region) => ({ region, model, by: attributionOf(of, model, users) })),
  );
  const sized = regions.find(({ region }) => region.of("original_width").value !== undefined)?.region;
  const width = sized ? sized.of("original_width").number() : (meta?.width ?? null);
  const height = sized ? sized.of("original_height").number() : (meta?.height ?? null);
  const image = content.image(fileName, width, height, meta?.id);
  for (const { region, model, by } of regions) {
    const where = `${region.path} of ${fileName}`;
    const type = region.of("type").value;
    if (type !== "rectanglelabels") {
      const example = `${where}: ${JSON.stringify(type)}`;
      if (studioShapes.has(String(type))) {
        const place = `${region.path}.type: expected "rectanglelabels", got "${type}"`;
        content.content.inexact(image, place, "skipped", "it is no rectangle with a label", example);
      } else {
        problems.add("result", "skipped", "it is no rectangle with a label", example);
      }
      continue;
    }
    const value = region.of("value");
    const [label, ...more] = value.of("rectanglelabels").list();
    if (!label) {
      const place = `${region.path}.value.rectanglelabels: expected a label`;
      content.content.inexact(image, place, "skipped", "it has no label", where);
      continue;
    }
    if (more.length > 0) problems.add("box", "kept", "it has several labels, the first is used", where);
    const turned = value.of("rotation").value ?? 0;
    if (turned !== 0) {
      const place = `${region.path}.value.rotation: expected 0, got ${JSON.stringify(turned)}: boxes are upright`;
      content.content.inexact(image, place, "kept", "it is turned, its upright hull is used", where);
    }
    const score = region.of("score");
    const marks = region.of("meta").value === undefined ? [] : region.of("meta").of("text").list();
    const box = { category: label.text(), bbox: boxOf(value, region) };
    content.box(image, {
      ...box,
      isCrowd: marks.some((mark) => mark.value === "crowd"),
      score: score.value === undefined || score.value === null ? null : score.number(),
      by,
      ...asItWas(meta?.boxes[String(region.of("id").value)], box, model),
      where: () => `${region.file}, ${where}`,
    });
  }
}

/** Types of Label Studio's results that are objects on the image, and no boxes with labels; others say something of it as a whole. */
export const studioShapes: ReadonlySet<string> = new Set([
  ...["rectangle", "polygonlabels", "polygon", "brushlabels", "brush", "ellipselabels", "ellipse"],
  ...["keypointlabels", "keypoint", "vectorlabels", "vector", "bitmasklabels", "bitmask"],
]);

/** What is known of a box from before; all of it where the box is as it was. */
function asItWas(
  known: StudioMeta["boxes"][string] | undefined,
  box: { category: string; bbox: CocoBox },
  model: boolean,
) {
  if (!known) return {};
  const { id: sourceId, bbox, area } = known;
  if (known.category !== box.category || !isSameBox(bbox, box.bbox)) return { sourceId };
  const by = attributionIn(known, model);
  return { sourceId, bbox, area, ...(by && { by }) };
}

/** The image's name in a URL: without the prefix, or what "?d=" names, or the path; escapes are resolved. */
function nameOf(url: string, prefix: string): string {
  if (prefix !== "" && url.startsWith(prefix)) return unescaped(url.slice(prefix.length));
  const local = /[?&]d=([^&]+)/.exec(url)?.[1];
  if (local) return unescaped(local);
  const remote = /^[a-z][a-z0-9+.-]*:\/\/[^/]+\/+([^?#]+)/i.exec(url)?.[1];
  return unescaped(remote ?? url).replace(/^\/+/, "");
}

function unescaped(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a lone "%" in a name
  }
}

function timeOf(of: Field, name: string): number {
  const value = of.of(name).value;
  const parsed = typeof value === "string" ? Date.parse(value) : Number.NaN;
  return Number.isNaN(parsed) ? 0 : parsed;
}

function attributionOf(of: Field, model: boolean, users?: ReadonlyMap<number, string>): Attribution {
  if (model) {
    return { source: "model", author: String(of.of("model_version").value ?? ""), time: timeOf(of, "created_at") };
  }
  const who = of.of("completed_by").value;
  // A number, or an object with the person's address.
  const known = typeof who === "object" && who !== null ? ((who as Fields).email ?? (who as Fields).id) : who;
  const author = String(users?.get(Number(known)) ?? known ?? "");
  return { source: "human", author, time: timeOf(of, "updated_at") || timeOf(of, "created_at") };
}

/** The box in pixels; a turned one's upright hull: it is turned clockwise about its top left corner. */
function boxOf(value: Field, region: Field): CocoBox {
  const width = region.of("original_width").number();
  const height = region.of("original_height").number();
  const pixels = (name: string, side: number): number => (value.of(name).number() / 100) * side;
  const [x, y, w, h] = [pixels("x", width), pixels("y", height), pixels("width", width), pixels("height", height)];
  const rotation = value.of("rotation");
  const angle = ((rotation.value === undefined ? 0 : rotation.number()) * Math.PI) / 180;
  if (angle === 0) return [x, y, w, h];
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const xs = [0, w * cos, -h * sin, w * cos - h * sin];
  const ys = [0, w * sin, h * cos, w * sin + h * cos];
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  return [x + left, y + top, Math.max(...xs) - left, Math.max(...ys) - top];
}

/**
 * Writes a split as tasks for Label Studio's import (studioTask), for a labeling configuration with <Image name="image"> and
 * <RectangleLabels name="label" toName="image">. What tasks cannot say (ids, authors, sizes of images without boxes) is in their
 * `meta`, so that importLabelStudio has all of it again, of boxes that were left as they are.
 *
 * @throws DlfsError for an image whose size is not known
 */
export function exportLabelStudio(
  store: AnnotationStore,
  path: string,
  options: ExportOptions & LabelStudioOptions,
): ExportReport {
  const report = { images: 0, annotations: 0, leftOut: 0, paths: [path] };
  const names = new Map(store.categories().map(({ id, name }) => [id, name]));
  using writer = new TextWriter(path);
  const tasks = function* (): Generator<unknown> {
    for (const { image, boxes } of walkImages(store, options, "writing tasks")) {
      report.images++;
      report.annotations += boxes.length;
      yield { id: report.images, ...studioTask(image, boxes, names, options) };
    }
  };
  writeList(writer, tasks());
  writer.write("\n");
  writer.finish();
  return report;
}

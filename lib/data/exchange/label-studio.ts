/** Label Studio's tasks as JSON: boxes in percent of the image (https://labelstud.io/guide/task_format). */
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import { check, DlfsError, ErrorCode } from "../../native/error";
import type { AnnotationRecord, AnnotationStore, Attribution, CocoBox, ImageRecord } from "../annotation-store";
import type { ImportReport } from "../import-content";
import { JsonReader } from "../json-reader";
import { fileError } from "../local-data-source";
import { yieldToEventLoop } from "../progress";
import { NamedContent, type NamedImportOptions } from "./named-content";
import { TextWriter, writeList } from "./text-writer";
import { type ExportOptions, type ExportReport, sizeOf, walkImages } from "./walk";

export interface LabelStudioOptions {
  /** What comes before an image's name in a task's URL: "/data/local-files/?d=", "gs://bucket/". Default: nothing. */
  imagePrefix?: string;
  /** The task's field with the URL. Default "image". */
  imageField?: string;
}

export interface LabelStudioImportOptions extends NamedImportOptions, LabelStudioOptions {
  /** Whether a model's predictions are imported: of tasks that nobody has annotated (default), of all, or not. */
  predictions?: "unlabeled" | "always" | "never";
}

type Fields = Record<string, unknown>;

/** Bytes read between two turns of the event loop. */
const SLICE = 1 << 20;

/**
 * Imports a list of tasks: Label Studio's export, or what exportLabelStudio wrote. Of several annotations of a task the last
 * that was not cancelled counts; one without boxes is an image without boxes. Boxes that are turned become their upright hull,
 * other shapes are left out; both are reported.
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
  const { predictions = "unlabeled", imageField = "image", imagePrefix = "" } = options;
  const { problems } = content.content;
  const url = task.of("data").of(imageField).text();
  const fileName = nameOf(url, imagePrefix);
  const annotations = task
    .of("annotations")
    .list()
    .filter((annotation) => annotation.of("was_cancelled").value !== true);
  if (annotations.length > 1) {
    const example = `${task.path} (${fileName}): the last of ${annotations.length} used`;
    problems.add("image", "kept", "it has several annotations", example);
  }
  const annotation = annotations.at(-1);
  const usePredictions = predictions === "always" || (predictions === "unlabeled" && !annotation);
  const sources = [
    ...(annotation ? [{ of: annotation, model: false }] : []),
    ...(usePredictions
      ? task
          .of("predictions")
          .list()
          .slice(predictions === "always" ? 0 : -1)
          .map((of) => ({ of, model: true }))
      : []),
  ];
  const regions = sources.flatMap(({ of, model }) =>
    of
      .of("result")
      .list()
      .map((region) => ({ region, by: attributionOf(of, model) })),
  );
  const sized = regions.find(({ region }) => region.of("original_width").value !== undefined)?.region;
  const width = sized ? sized.of("original_width").number() : null;
  const height = sized ? sized.of("original_height").number() : null;
  const image = content.image(fileName, width, height);
  for (const { region, by } of regions) {
    const where = `${region.path} of ${fileName}`;
    if (region.of("type").value !== "rectanglelabels") {
      const type = JSON.stringify(region.of("type").value);
      problems.add("box", "skipped", "it is no rectangle with a label", `${where}: ${type}`);
      continue;
    }
    const value = region.of("value");
    const [label, ...more] = value.of("rectanglelabels").list();
    if (!label) {
      problems.add("box", "skipped", "it has no label", where);
      continue;
    }
    if (more.length > 0) problems.add("box", "kept", "it has several labels, the first is used", where);
    const turned = value.of("rotation").value ?? 0;
    if (turned !== 0) problems.add("box", "kept", "it is turned, its upright hull is used", where);
    const score = region.of("score");
    const marks = region.of("meta").value === undefined ? [] : region.of("meta").of("text").list();
    content.box(image, {
      category: label.text(),
      bbox: boxOf(value, region),
      isCrowd: marks.some((mark) => mark.value === "crowd"),
      score: score.value === undefined || score.value === null ? null : score.number(),
      by,
      where: () => `${region.file}, ${where}`,
    });
  }
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

function attributionOf(of: Field, model: boolean): Attribution {
  const time = (name: string): number => {
    const value = of.of(name).value;
    const parsed = typeof value === "string" ? Date.parse(value) : Number.NaN;
    return Number.isNaN(parsed) ? 0 : parsed;
  };
  if (model) {
    return { source: "model", author: String(of.of("model_version").value ?? ""), time: time("created_at") };
  }
  const who = of.of("completed_by").value;
  // A number, or an object with the person's address.
  const author = typeof who === "object" && who !== null ? ((who as Fields).email ?? (who as Fields).id) : who;
  return { source: "human", author: String(author ?? ""), time: time("updated_at") || time("created_at") };
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
 * Writes a split as tasks for Label Studio's import: boxes of people and files as an annotation, a model's as a prediction with
 * its scores, for a labeling configuration with <Image name="image"> and <RectangleLabels name="label" toName="image">.
 *
 * @throws DlfsError for an image whose size is not known
 */
export function exportLabelStudio(
  store: AnnotationStore,
  path: string,
  options: ExportOptions & LabelStudioOptions,
): ExportReport {
  const { imagePrefix = "", imageField = "image" } = options;
  const report = { images: 0, annotations: 0, leftOut: 0, paths: [path] };
  const names = new Map(store.categories().map(({ id, name }) => [id, name]));
  using writer = new TextWriter(path);
  const tasks = function* (): Generator<unknown> {
    for (const { image, boxes } of walkImages(store, options, "writing tasks")) {
      report.images++;
      report.annotations += boxes.length;
      const size = sizeOf(image);
      const results = (of: AnnotationRecord[]): unknown[] => of.map((box) => region(box, size, names));
      const byModel = new Map<string, AnnotationRecord[]>();
      for (const box of boxes) {
        if (box.source !== "model") continue;
        const group = byModel.get(box.author);
        if (group) group.push(box);
        else byModel.set(box.author, [box]);
      }
      const own = boxes.filter((box) => box.source !== "model");
      const annotations = own.length > 0 || byModel.size === 0 ? [{ result: results(own), ...person(own) }] : [];
      const predictions = [...byModel].map(([author, group]) => ({
        model_version: author,
        score: Math.min(...group.map(({ score }) => score ?? 1)),
        result: results(group),
      }));
      const url = `${imagePrefix}${urlName(image, imagePrefix)}`;
      yield { id: report.images, data: { [imageField]: url }, annotations, predictions };
    }
  };
  writeList(writer, tasks());
  writer.write("\n");
  writer.finish();
  return report;
}

/** Keys in a query are escaped, as Label Studio does; paths are left as they are. */
function urlName(image: ImageRecord, prefix: string): string {
  return prefix.includes("?") ? image.fileName.split("/").map(encodeURIComponent).join("/") : image.fileName;
}

/** Who annotated, where all boxes are one person's. */
function person(boxes: readonly AnnotationRecord[]): { completed_by?: { email: string }; updated_at?: string } {
  const [first] = boxes;
  if (first?.source !== "human" || first.author === "") return {};
  if (boxes.some(({ author }) => author !== first.author)) return {};
  const newest = Math.max(...boxes.map(({ modified }) => modified));
  return { completed_by: { email: first.author }, updated_at: new Date(newest).toISOString() };
}

function region(
  { id, categoryId, bbox, isCrowd, score }: AnnotationRecord,
  { width, height }: { width: number; height: number },
  names: ReadonlyMap<number, string>,
): unknown {
  const [x, y, w, h] = bbox;
  const value = {
    x: (100 * x) / width,
    y: (100 * y) / height,
    width: (100 * w) / width,
    height: (100 * h) / height,
    rotation: 0,
    rectanglelabels: [names.get(categoryId)],
  };
  return {
    id: `b${id}`,
    from_name: "label",
    to_name: "image",
    type: "rectanglelabels",
    original_width: width,
    original_height: height,
    image_rotation: 0,
    value,
    ...(score === null ? {} : { score }),
    ...(isCrowd ? { meta: { text: ["crowd"] } } : {}),
  };
}

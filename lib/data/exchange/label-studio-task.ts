/** An image with its boxes as a task of Label Studio, and what a task keeps of them that regions cannot say. */
import type { AnnotationRecord, AnnotationSource, Attribution, CocoBox, ImageRecord } from "../annotation-store";
import { sizeOf } from "./walk";

export interface LabelStudioOptions {
  /** What comes before an image's name in a task's URL: "/data/local-files/?d=", "gs://bucket/". Default: nothing. */
  imagePrefix?: string;
  /** The task's field with the URL. Default "image". */
  imageField?: string;
}

export interface StudioTaskOptions extends LabelStudioOptions {
  /** The names of <RectangleLabels> and <Image> in the labeling configuration. Default "label" and "image". */
  control?: { fromName: string; toName: string };
  /** Whether an image without boxes is said to have been looked at: an annotation without results. Default true. */
  negatives?: boolean;
}

/** A box as it was when the task was written: under its region's id in `StudioMeta.boxes`. */
export interface StudioBoxMeta {
  id: number;
  category: string;
  bbox: CocoBox;
  area: number;
  source: AnnotationSource;
  author: string;
  time: number;
}

/** Kept as a task's `meta.dlfs`, which Label Studio shows nobody and gives back with the task. */
export interface StudioMeta {
  /** Of the image: its id in the data set it came from, its name there, and its size. */
  id: number;
  file: string;
  width: number;
  height: number;
  boxes: Record<string, StudioBoxMeta>;
}

export interface StudioTask {
  data: Record<string, string>;
  meta: { dlfs: StudioMeta };
  annotations: { result: unknown[] }[];
  predictions: { model_version: string; score: number; result: unknown[] }[];
}

/**
 * A task with the boxes of people and files as an annotation, a model's as a prediction with its scores. Whose they are is in
 * `meta`: Label Studio refuses annotations of people who are not its users.
 *
 * @throws DlfsError for an image whose size is not known
 */
export function studioTask(
  image: ImageRecord,
  boxes: readonly AnnotationRecord[],
  names: ReadonlyMap<number, string>,
  options: StudioTaskOptions = {},
): StudioTask {
  const { imagePrefix = "", imageField = "image", negatives = true } = options;
  const size = sizeOf(image);
  const results = (of: readonly AnnotationRecord[]) => of.map((box) => region(box, size, names, options));
  const byModel = Map.groupBy(
    boxes.filter(({ source }) => source === "model"),
    ({ author }) => author,
  );
  const own = boxes.filter(({ source }) => source !== "model");
  const isAnnotated = own.length > 0 || (negatives && byModel.size === 0);
  const predictions = [...byModel].map(([author, group]) => ({
    model_version: author,
    score: Math.min(...group.map(({ score }) => score ?? 1)),
    result: results(group),
  }));
  const entries = boxes.map(({ id, sourceId, categoryId, bbox, area, source, author, modified }) => {
    const category = names.get(categoryId) as string;
    return [regionId(id), { id: sourceId, category, bbox, area, source, author, time: modified }] as const;
  });
  const known = { id: image.sourceId, file: image.fileName, ...size, boxes: Object.fromEntries(entries) };
  return {
    data: { [imageField]: `${imagePrefix}${urlName(image, imagePrefix)}` },
    meta: { dlfs: known },
    annotations: isAnnotated ? [{ result: results(own) }] : [],
    predictions,
  };
}

const regionId = (id: number): string => `b${id}`;

/** Keys in a query are escaped, as Label Studio does; paths are left as they are. */
function urlName({ fileName }: ImageRecord, prefix: string): string {
  return prefix.includes("?") ? fileName.split("/").map(encodeURIComponent).join("/") : fileName;
}

function region(
  { id, categoryId, bbox, isCrowd, score, source }: AnnotationRecord,
  { width, height }: { width: number; height: number },
  names: ReadonlyMap<number, string>,
  { control = { fromName: "label", toName: "image" } }: StudioTaskOptions,
): unknown {
  const [x, y, w, h] = source === "model" ? within(bbox, width, height) : bbox;
  const value = {
    x: (100 * x) / width,
    y: (100 * y) / height,
    width: (100 * w) / width,
    height: (100 * h) / height,
    rotation: 0,
    rectanglelabels: [names.get(categoryId)],
  };
  return {
    id: regionId(id),
    from_name: control.fromName,
    to_name: control.toName,
    type: "rectanglelabels",
    original_width: width,
    original_height: height,
    image_rotation: 0,
    value,
    ...(score === null ? {} : { score }),
    ...(isCrowd ? { meta: { text: ["crowd"] } } : {}),
  };
}

/** Label Studio refuses predictions that reach outside the image. */
function within([x, y, w, h]: CocoBox, width: number, height: number): CocoBox {
  const [left, top] = [Math.max(0, x), Math.max(0, y)];
  return [left, top, Math.min(width, x + w) - left, Math.min(height, y + h) - top];
}

/** Pixels by which an edge may be off for the box to count as untouched: tools round. */
export const UNTOUCHED = 0.05;

/** Whether two boxes are the same but for rounding. */
export function isSameBox(a: CocoBox, b: CocoBox): boolean {
  return a.every((value, i) => Math.abs(value - (b[i] as number)) <= UNTOUCHED);
}

/** What a task keeps of its image; null where something else wrote it. Boxes that are not as written are left out. */
export function studioMeta(meta: unknown): StudioMeta | null {
  const dlfs = fields(fields(meta)?.dlfs);
  if (!dlfs) return null;
  const { id, file, width, height } = dlfs;
  const isSize = (value: unknown) => Number.isSafeInteger(value) && (value as number) > 0;
  if (!isId(id) || typeof file !== "string" || file === "" || !isSize(width) || !isSize(height)) return null;
  const boxes = Object.entries(fields(dlfs.boxes) ?? {}).filter(([, box]) => isBoxMeta(box));
  return { ...(dlfs as unknown as StudioMeta), boxes: Object.fromEntries(boxes) as StudioMeta["boxes"] };
}

const fields = (value: unknown): Record<string, unknown> | null =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : null;

const isId = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;

function isBoxMeta(value: unknown): boolean {
  const box = fields(value);
  if (!box) return false;
  const { id, category, bbox, area, source, author, time } = box;
  return (
    isId(id) &&
    isId(time) &&
    typeof category === "string" &&
    typeof author === "string" &&
    (source === "human" || source === "imported" || source === "model") &&
    [area, ...(Array.isArray(bbox) && bbox.length === 4 ? bbox : [Number.NaN])].every(Number.isFinite)
  );
}

/** Whose a box is: as it was, where it is untouched and no person has accepted what a model proposed. */
export function attributionIn(known: StudioBoxMeta, byModel: boolean): Attribution | null {
  const { source, author, time } = known;
  return source !== "model" || byModel ? { source, author, time } : null;
}

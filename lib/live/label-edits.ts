/** From a message of labels to the annotations of an image: checked against the data set, done as a whole or not at all. */
import {
  type AnnotationRecord,
  type AnnotationStore,
  type Attribution,
  type ClassMap,
  type ImageBoxes,
  type ImageRecord,
  isSameBox,
  targetsOf,
} from "../data";
import type { LabelEdit, LabelMessage } from "../formats";
import { DlfsError, ErrorCode } from "../native/error";

/** The data set that labels go to. */
export interface LabelledData {
  readonly store: AnnotationStore;
  /** The split that is trained on: others are not open to labels. */
  readonly split: string;
  readonly classes: ClassMap;
  /** Boxes that an image may come to have. */
  readonly boxesPerImage: number;
}

/** Refuses a message: `field` is what is wrong with it. */
export function refuse(field: string, message: string): never {
  throw new DlfsError(ErrorCode.argument, field, message);
}

/** The image that a message is about; null where the data set has none such. */
export function imageOf(
  { store, split }: LabelledData,
  { image, split: named }: Pick<LabelMessage, "image" | "split">,
): ImageRecord | null {
  if (named !== undefined && named !== split)
    refuse("split", `expected "${split}", which is trained on, got "${named}"`);
  const found = (column: string) =>
    store.findImages({ split, where: `i.${column} = ?`, parameters: [image] }, { limit: 2 });
  const [byKey] = found("key");
  if (byKey) return byKey;
  // Short of its folders, a name may be several images'.
  const [byName, other] = found("file_name");
  if (byName && other) refuse("image", `"${image}" names ${byName.key} and ${other.key}: give the key`);
  return byName ?? null;
}

/**
 * The boxes of an image in short, for LabelMessage.seen: 16 hexadecimal digits, the beginning of the SHA-256 of one line for each
 * box by ascending id, "ID CATEGORY_ID X Y WIDTH HEIGHT CROWD\n" with CROWD 0 or 1 and numbers as JavaScript writes them.
 */
export function seenOf(
  annotations: Iterable<Pick<AnnotationRecord, "id" | "categoryId" | "bbox" | "isCrowd">>,
): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const { id, categoryId, bbox, isCrowd } of annotations) {
    hash.update(`${id} ${categoryId} ${bbox.join(" ")} ${isCrowd ? 1 : 0}\n`);
  }
  return hash.digest("hex").slice(0, 16);
}

/** The annotation that was changed last; undefined of none. */
export function latestOf<T extends Pick<AnnotationRecord, "modified">>(annotations: readonly T[]): T | undefined {
  return annotations.toSorted((a, b) => b.modified - a.modified)[0];
}

/**
 * Does what a message says to the annotations of an image, as the work of its author.
 *
 * @returns what the image is trained with now
 * @throws DlfsError naming the field that is wrong; nothing has changed then
 */
export function applyEdits(data: LabelledData, image: ImageRecord, message: LabelMessage): ImageBoxes {
  const { store, classes, boxesPerImage } = data;
  const by: Attribution = { source: "human", author: message.author, time: message.time };
  return store.transaction(() => {
    const present = store.annotationsOf(image.id);
    if (message.seen !== undefined && message.seen !== seenOf(present)) {
      const last = latestOf(present);
      const whose = last?.author ? `, the last one by ${last.author}` : "";
      refuse("seen", `${image.key} has been changed since it was looked at: boxes now: ${present.length}${whose}`);
    }
    const ids = new Set(present.map(({ id }) => id));
    const stay = message.replace ? keepSame(data, image, present, message.edits, by) : new Set<number>();
    let next = present.reduce((most, { sourceId }) => Math.max(most, sourceId), 0);
    for (const [i, edit] of message.edits.entries()) {
      if (stay.has(i)) continue;
      applyEdit({ store, classes, image, ids, by, place: `edits[${i}]`, next: () => ++next }, edit);
    }
    const boxes = targetsOf(store.annotationsOf(image.id), image, (id) => classes.indexOf(id));
    const count = boxes.labels.length;
    if (count > boxesPerImage) {
      refuse("edits", `the image would have ${count} boxes, the training was started with room for ${boxesPerImage}`);
    }
    return boxes;
  });
}

/**
 * Where the edits are all boxes of an image: boxes that it has already stay as they are, whose they are included, but those that a
 * model proposed, which are their author's who accepts them; the others go.
 *
 * @returns the places of edits that are done with that
 */
function keepSame(
  { store, classes }: LabelledData,
  image: ImageRecord,
  present: readonly AnnotationRecord[],
  edits: readonly LabelEdit[],
  by: Attribution,
): Set<number> {
  const [left, done] = [new Set(present), new Set<number>()];
  for (const [i, edit] of edits.entries()) {
    if (edit.action !== "add") continue;
    const bbox = bboxOf(edit.box, image, `edits[${i}].box`);
    const categoryId = categoryOf(classes, edit.category, `edits[${i}].category`);
    const row = [...left].find((one) => {
      return one.categoryId === categoryId && one.isCrowd === (edit.crowd ?? false) && isSameBox(one.bbox, bbox);
    });
    if (!row) continue;
    left.delete(row);
    done.add(i);
    if (row.source !== "model") continue;
    store.updateAnnotations([{ id: row.id, ...(edit.score !== undefined && { score: edit.score }) }], by);
  }
  store.deleteAnnotations(
    [...left].map(({ id }) => id),
    by,
  );
  return done;
}

interface Editing {
  store: AnnotationStore;
  classes: ClassMap;
  image: ImageRecord;
  /** Annotations that the image has. */
  ids: Set<number>;
  by: Attribution;
  /** The edit, in messages. */
  place: string;
  /** An id in the data set that the image's other boxes do not have. */
  next: () => number;
}

function applyEdit({ store, classes, image, ids, by, place, next }: Editing, edit: LabelEdit): void {
  if (edit.action !== "add" && !ids.has(edit.annotationId)) {
    refuse(`${place}.annotation_id`, `${image.key} has no box ${edit.annotationId}`);
  }
  if (edit.action === "delete") {
    store.deleteAnnotations([edit.annotationId], by);
    ids.delete(edit.annotationId);
    return;
  }
  const { category, box, crowd, score } = edit;
  const changed = {
    ...(category !== undefined && { categoryId: categoryOf(classes, category, `${place}.category`) }),
    ...(box !== undefined && { bbox: bboxOf(box, image, `${place}.box`) }),
    ...(crowd !== undefined && { isCrowd: crowd }),
    ...(score !== undefined && { score }),
  };
  if (edit.action === "change") {
    store.updateAnnotations([{ id: edit.annotationId, ...changed }], by);
    return;
  }
  const { categoryId, bbox } = changed as { categoryId: number; bbox: readonly [number, number, number, number] };
  const area = bbox[2] * bbox[3];
  const common = { imageId: image.id, sourceId: next(), area, isCrowd: crowd ?? false };
  store.addAnnotations([{ ...common, categoryId, bbox, score: score ?? null }], { by });
}

function categoryOf(classes: ClassMap, name: string, field: string): number {
  const index = classes.names.indexOf(name);
  if (index >= 0) return classes.categoryIdOf(index);
  const known = classes.names.slice(0, 20).join(", ");
  return refuse(
    field,
    `"${name}" is none of the ${classes.length} classes: ${known}${classes.length > 20 ? ", ..." : ""}`,
  );
}

/** COCO's box of corners, what reaches beyond the image cut off. */
function bboxOf(
  [x1, y1, x2, y2]: readonly [number, number, number, number],
  { key, width, height }: ImageRecord,
  field: string,
): [number, number, number, number] {
  const [w, h] = [width as number, height as number];
  const [left, top] = [Math.max(0, x1), Math.max(0, y1)];
  const [right, bottom] = [Math.min(w, x2), Math.min(h, y2)];
  if (!(right > left && bottom > top)) {
    refuse(field, `${[x1, y1, x2, y2].join(", ")} lies outside of ${key}, ${w}x${h}`);
  }
  return [left, top, right - left, bottom - top];
}

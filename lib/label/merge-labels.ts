/** Labels from elsewhere into a data set: what is different is changed, as the work of who did it, and all else stays as it is. */
import { type AnnotationRecord, type AnnotationStore, type ImageRecord, isSameBox } from "../data";
import type { LabelEdit, LabelMessage } from "../formats";
import { latestOf, seenOf } from "../live";
import { DlfsError } from "../native/error";
import { ImageFinder } from "./find-image";
import type { LabelTarget } from "./label-targets";
import { type Box, pairBoxes } from "./rank/boxes";

export interface MergeOptions {
  /** Takes what is different. */
  target: LabelTarget;
  /** The only split whose images are meant. Default: all. */
  split?: string;
  /** Whose work changes are that do not say so. Default: nobody's. */
  author?: string;
  /**
   * Whether an image without boxes has none, as a tool says that tells apart what nobody has looked at yet. Default false: the data
   * set's boxes stay, and the image is counted.
   */
  negatives?: boolean;
  /**
   * Whether the other side keeps ids (sourceId) of boxes, and that one is a crowd. Default false: a box that was moved far is another
   * one, and a crowd stays one where it is not called so.
   */
  exact?: boolean;
  /** Ends it after an image: the report is of what was done till then. */
  signal?: AbortSignal;
  progress?: (done: number, total: number) => void;
}

export interface MergeReport {
  /** Images that were compared, and those of them that are different. */
  images: number;
  changedImages: number;
  /** Boxes. */
  same: number;
  added: number;
  changed: number;
  deleted: number;
  /** Images without boxes on the other side that keep theirs. */
  kept: number;
  /** Images that were not taken, and why. */
  refused: { image: string; reason: string }[];
}

/** A box by the name of its class. */
type Named = Pick<AnnotationRecord, "sourceId" | "bbox" | "isCrowd" | "source" | "author" | "modified"> & {
  category: string;
};

const cornersOf = ({ bbox: [x, y, w, h] }: Pick<Named, "bbox">): Box => [x, y, x + w, y + h];

/** A box that was moved is the same from this IoU on. */
const SAME_IOU = 0.5;

/**
 * What makes an image's boxes those that are given: a box at the same place (but for rounding) with the same class stays as it is,
 * ids and author included; of the others those of the same id are changed where ids are kept, and those that overlap, first within
 * their classes; the rest is added and deleted.
 * A model's box that comes back as a person's is accepted: it becomes that person's. Those that do not come back stay where
 * nothing else of the image is different.
 */
export function editsFor(
  present: readonly (Named & { id: number })[],
  given: readonly Named[],
  { exact = false }: Pick<MergeOptions, "exact"> = {},
): { same: number; edits: LabelEdit[]; by: Named[] } {
  const [left, open] = [new Set(present.keys()), new Set(given.keys())];
  const [edits, by]: [LabelEdit[], Named[]] = [[], []];
  let same = 0;
  const isCrowd = (old: Named, now: Named) => now.isCrowd || (!exact && old.isCrowd);
  const pair = (p: number, g: number) => {
    left.delete(p);
    open.delete(g);
    const [old, now] = [present[p] as Named & { id: number }, given[g] as Named];
    const change = {
      ...(old.category !== now.category && { category: now.category }),
      ...(!isSameBox(old.bbox, now.bbox) && { box: cornersOf(now) }),
      ...(old.isCrowd !== isCrowd(old, now) && { crowd: now.isCrowd }),
    };
    const isAccepted = old.source === "model" && now.source === "human";
    if (Object.keys(change).length === 0 && !isAccepted) {
      same++;
      return;
    }
    edits.push({ action: "change", annotationId: old.id, ...change });
    by.push(now);
  };
  const untouched = (old: Named, now: Named) => old.category === now.category && isSameBox(old.bbox, now.bbox);
  const sameId = (old: Named, now: Named) => old.sourceId === now.sourceId;
  const both = (old: Named, now: Named) => sameId(old, now) && untouched(old, now);
  for (const isSame of exact ? [both, untouched, sameId] : [untouched]) {
    for (const p of left) {
      const g = [...open].find((g) => isSame(present[p] as Named, given[g] as Named));
      if (g !== undefined) pair(p, g);
    }
  }
  const boxes = (of: readonly Named[]) => of.map((one) => ({ box: cornersOf(one) }));
  const isOpen = (p: number, g: number) => left.has(p) && open.has(g);
  const sameClass = (p: number, g: number) => present[p]!.category === given[g]!.category;
  for (const allowed of [(p: number, g: number) => isOpen(p, g) && sameClass(p, g), isOpen]) {
    for (const { a, b } of pairBoxes(boxes(present), boxes(given), SAME_IOU, allowed)) pair(a, b);
  }
  for (const g of open) {
    const now = given[g] as Named;
    edits.push({ action: "add", category: now.category, box: cornersOf(now), ...(now.isCrowd && { crowd: true }) });
    by.push(now);
  }
  // Who left a person's boxes as they are may not have looked at what a model proposes beside them.
  const isProposal = (p: number) => present[p]!.source === "model";
  if (edits.length === 0 && given.length > 0 && [...left].every(isProposal))
    return { same: same + left.size, edits, by };
  for (const p of left) edits.push({ action: "delete", annotationId: present[p]!.id });
  return { same, edits, by };
}

/**
 * Compares the images of `given` with those of `store` that they are, by key or name, and gives what is different to the target,
 * image by image. Images that cannot be taken are named with the reason, and the others are taken.
 *
 * @param inexact images of `given` that must not be taken, by their ids there, and why: turned boxes, shapes that are no boxes
 */
export async function mergeLabels(
  store: AnnotationStore,
  given: AnnotationStore,
  inexact: ReadonlyMap<number, string>,
  options: MergeOptions,
): Promise<MergeReport> {
  const { target, split, author = "", negatives = false, signal, progress } = options;
  const report: MergeReport = {
    ...{ images: 0, changedImages: 0, same: 0, added: 0, changed: 0, deleted: 0, kept: 0, refused: [] },
  };
  const finder = new ImageFinder(store, split);
  const [names, givenNames] = [namesOf(store), namesOf(given)];
  const total = given.countImages({});
  const seen = new Map<number, string>();
  let done = 0;
  for (let after: number | undefined; ; ) {
    const page = given.findImages({}, { limit: 500, after });
    after = page.at(-1)?.id;
    if (after === undefined) return report;
    const boxes = given.annotationsOfBatch(page.map(({ id }) => id));
    for (const [i, from] of page.entries()) {
      if (signal?.aborted) return report;
      progress?.(++done, total);
      const refuse = (reason: string) => report.refused.push({ image: from.fileName, reason });
      const reason = inexact.get(from.id);
      if (reason !== undefined) {
        refuse(reason);
        continue;
      }
      const image = finder.find(from.fileName);
      if (typeof image === "string") {
        refuse(image);
        continue;
      }
      const twin = seen.get(image.id);
      if (twin !== undefined) {
        refuse(`${twin} is the same image`);
        continue;
      }
      seen.set(image.id, from.fileName);
      const wanted = (boxes[i] as AnnotationRecord[]).map((row) => withName(row, givenNames));
      const rows = store.annotationsOf(image.id);
      const present = rows.map((row) => withName(row, names));
      report.images++;
      if (wanted.length === 0 && present.length > 0 && !negatives) {
        report.kept++;
        continue;
      }
      const { same, edits, by } = editsFor(present, wanted, options);
      report.same += same;
      if (edits.length === 0) continue;
      const error = await give(target, image, seenOf(rows), edits, by, author);
      if (error !== null) {
        refuse(error);
        continue;
      }
      report.changedImages++;
      const count = (action: LabelEdit["action"]) => edits.filter((edit) => edit.action === action).length;
      report.added += count("add");
      report.changed += count("change");
      report.deleted += count("delete");
    }
  }
}

const namesOf = (store: AnnotationStore) => new Map(store.categories().map(({ id, name }) => [id, name]));

function withName(row: AnnotationRecord, names: ReadonlyMap<number, string>) {
  return { ...row, category: names.get(row.categoryId) as string };
}

/** Gives edits of an image to the target as the work of who did the newest; what is wrong, or null. */
async function give(
  target: LabelTarget,
  { key, split, width, height }: ImageRecord,
  seen: string,
  edits: LabelEdit[],
  by: readonly Named[],
  nobody: string,
): Promise<string | null> {
  if (width === null || height === null) return "its size is not known; dlfs data check --fix reads it from the file";
  const newest = latestOf(by.filter(({ source }) => source === "human"));
  const author = newest?.author || nobody;
  const time = newest && newest.modified > 0 ? newest.modified : Date.now();
  const content = JSON.stringify([author, newest?.modified, edits]);
  const id = `merge-${split}/${key}-${Bun.hash(content).toString(36)}`;
  const message: LabelMessage = { id, author, time, image: key, split, edits, seen };
  try {
    await target(message);
    return null;
  } catch (error) {
    if (error instanceof DlfsError) return error.message;
    throw error;
  }
}

/** Gives a data set the classes that others' labels have and it does not, with new ids; their names. */
export function addClasses(store: AnnotationStore, given: AnnotationStore): string[] {
  const known = store.categories();
  const names = new Set(known.map(({ name }) => name));
  const fresh = given.categories().filter(({ name }) => !names.has(name));
  let next = known.at(-1)?.id ?? 0;
  store.addCategories(fresh.map(({ name, supercategory }) => ({ id: ++next, name, supercategory })));
  return fresh.map(({ name }) => name);
}

/** What others have made of images while a training that had taken them in stood still. */
import { type ImageBoxes, type ImageRecord, targetsOf } from "../data";
import type { JournalEntry } from "./journal";
import { type LabelledData, latestOf, seenOf } from "./label-edits";

/** An image whose boxes in the store are not those that the training took in last. */
export interface ChangedImage {
  readonly image: ImageRecord;
  readonly boxes: ImageBoxes;
  /** The boxes in short. */
  readonly seen: string;
  /** Who has changed the image last, and when, in milliseconds since 1970; "" and 0 where all its boxes are gone. */
  readonly author: string;
  readonly time: number;
}

/** Of the images that a training has taken in, those that the store has otherwise by now; in the order in which they were taken in. */
export function changedMeanwhile(
  { store, classes }: Pick<LabelledData, "store" | "classes">,
  entries: readonly JournalEntry[],
): ChangedImage[] {
  const latest = new Map<number, ImageBoxes>();
  for (const { content } of entries) if ("change" in content) latest.set(content.change.image.id, content.change.after);
  return [...latest].flatMap(([id, before]) => {
    const image = store.image(id);
    if (!image || image.problem !== null) return [];
    const present = store.annotationsOf(id);
    const boxes = targetsOf(present, image, (category) => classes.indexOf(category));
    if (same(boxes.boxes, before.boxes) && same(boxes.labels, before.labels)) return [];
    const last = latestOf(present);
    return [{ image, boxes, seen: seenOf(present), author: last?.author ?? "", time: last?.modified ?? 0 }];
  });
}

/** The same but for what corners and sides of boxes differ by rounding, in pixels. */
const same = (a: ArrayLike<number>, b: ArrayLike<number>): boolean =>
  a.length === b.length && Array.from(a).every((value, i) => Math.abs(value - (b[i] as number)) < 1e-6);

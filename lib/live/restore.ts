/** A data set's store that lacks what a journal has: it was made anew, or is of another machine. */
import { type ImageBoxes, type ImageRecord, type TargetChange, targetsOf } from "../data";
import { DlfsError, ErrorCode } from "../native/error";
import type { JournalEntry } from "./journal";
import type { LabelledData } from "./label-edits";

/**
 * Gives the store the images that came later, and, of images that have the boxes there that they had before the journal's first
 * change, the boxes of its last one. What others have changed meanwhile stays as it is.
 *
 * @returns how many images it has changed
 * @throws DlfsError where the store gives an image another id than the journal knows it by; nothing has changed then
 */
export function restoreStore(
  { store, classes }: Pick<LabelledData, "store" | "classes">,
  entries: readonly JournalEntry[],
): number {
  const changes = entries.flatMap((entry) => ("change" in entry.content ? [{ entry, ...entry.content.change }] : []));
  return store.transaction(() => {
    let count = 0;
    for (const own of Map.groupBy(changes, ({ image }) => image.id).values()) {
      const [first, last] = [own[0] as (typeof own)[0], own.at(-1) as (typeof own)[0]];
      const by = { source: "human", author: last.entry.author, time: last.entry.time } as const;
      const added = first.before === null && addImage(store, first, by);
      const { image, after } = last;
      const present = store.annotationsOf(image.id);
      const found = targetsOf(present, image, (id) => classes.indexOf(id));
      if (isSame(found, after) || !(added || (first.before && isSame(found, first.before)))) {
        if (added) count++;
        continue;
      }
      store.deleteAnnotations(
        present.filter(({ isCrowd }) => !isCrowd).map(({ id }) => id),
        by,
      );
      store.addAnnotations(
        Array.from(after.labels, (label, i) => {
          const [x1, y1, x2, y2] = after.boxes.subarray(4 * i, 4 * i + 4) as unknown as [
            number,
            number,
            number,
            number,
          ];
          const bbox = [x1, y1, x2 - x1, y2 - y1] as const;
          const common = { imageId: image.id, sourceId: i + 1, categoryId: classes.categoryIdOf(label) };
          return { ...common, bbox, area: bbox[2] * bbox[3], isCrowd: false };
        }),
        { by },
      );
      count++;
    }
    return count;
  });
}

/** Adds an image that the store lacks; whether it did. */
function addImage(
  store: LabelledData["store"],
  { image }: TargetChange,
  by: Parameters<LabelledData["store"]["addImages"]>[2],
): boolean {
  const { id, key, split, sourceId, fileName, width, height } = image;
  const [there] = store.findImages({ split, where: "i.key = ?", parameters: [key] }, { limit: 1 }) as [ImageRecord?];
  const given = there ? there.id : store.addImages(split, [{ sourceId, fileName, key, width, height }], by)[0];
  if (given === id) return !there;
  const reason = `the journal has ${key} as image ${id}, this data set as ${given}`;
  throw new DlfsError(ErrorCode.io, "live", `${reason}: it cannot be gone on with here`);
}

const isSame = (a: ImageBoxes, b: ImageBoxes): boolean => Bun.deepEquals([a.boxes, a.labels], [b.boxes, b.labels]);

/** What all exporters share: going through a split in pages, and what must be known of an image. */
import { DlfsError, ErrorCode } from "../../native/error";
import type { AnnotationRecord, AnnotationStore, ImageRecord } from "../annotation-store";
import { type ProgressListener, showProgress } from "../progress";

export interface ExportOptions {
  split: string;
  /** Images that have a problem too (ImageRecord.problem). Default false. */
  unusable?: boolean;
  progress?: ProgressListener;
}

/** What was written. */
export interface ExportReport {
  images: number;
  annotations: number;
  /** Boxes that the format cannot express. */
  leftOut: number;
  /** The files, or the folders of many. */
  paths: string[];
}

const PAGE = 2000;

/** A split's images with their boxes, by ascending id, in pages: what is in memory does not depend on how many there are. */
export function* walkImages(
  store: AnnotationStore,
  { split, unusable = false, progress = showProgress() }: ExportOptions,
  label: string,
): Generator<{ image: ImageRecord; boxes: AnnotationRecord[] }> {
  const query = unusable ? { split } : { split, usable: true };
  const total = store.countImages(query);
  if (total === 0) {
    const known = store.splits();
    const message = known.includes(split)
      ? `none of the images of split "${split}" can be used`
      : `no images of split "${split}"; splits: ${known.join(", ") || "none"}`;
    throw new DlfsError(ErrorCode.argument, "export", message);
  }
  progress(label, 0, total);
  let done = 0;
  let page = store.findImages(query, { limit: PAGE });
  while (page.length > 0) {
    const boxes = store.annotationsOfBatch(page.map((image) => image.id));
    for (const [i, image] of page.entries()) yield { image, boxes: boxes[i] as AnnotationRecord[] };
    done += page.length;
    progress(label, done, total);
    page = store.findImages(query, { limit: PAGE, after: (page.at(-1) as ImageRecord).id });
  }
}

/** An image's size, which formats with relative boxes cannot do without. */
export function sizeOf(image: ImageRecord): { width: number; height: number } {
  const { width, height } = image;
  if (width !== null && height !== null) return { width, height };
  const message = `${image.key}: its size is not known; dlfs data check --fix reads it from the file`;
  throw new DlfsError(ErrorCode.argument, "export", message);
}

/** Names that are files of their own: a file name without its ending, folders kept; an error where two are the same. */
export class Stems {
  readonly #seen = new Map<string, string>();

  of(image: ImageRecord): string {
    const stem = image.fileName.replace(/\.[^./]+$/, "");
    const other = this.#seen.get(stem);
    if (other !== undefined) {
      const message = `${image.fileName} and ${other} would have the same annotation file, ${stem}`;
      throw new DlfsError(ErrorCode.argument, "export", message);
    }
    this.#seen.set(stem, image.fileName);
    return stem;
  }
}

/** What a data set consists of, kept in the run folder: the dashboard shows it beside what is found. */
import type { Dataset } from "../data";
import { SIZE_BINS, SIZE_EDGES, sizeBin } from "../metrics";

export interface DatasetSummary {
  /** Names, by label. */
  classes: string[];
  /** Edges of the bins of sizes, in pixels. */
  edges: number[];
  splits: {
    name: string;
    /** Those that are used. */
    images: number;
    /** Boxes of each class, crowds left out. */
    boxes: number[];
    /** (classes, bins) boxes by the sides of squares of their area. */
    sizes: number[][];
  }[];
}

/** Counts the boxes of the splits that a training uses. */
export function summarizeDataset({ store, classes, trainSplit, valSplit }: Dataset): DatasetSummary {
  const names = [...new Set(valSplit === null ? [trainSplit] : [trainSplit, valSplit])];
  const splits = names.map((name) => {
    const usable = new Set(store.images(name, { usable: true }).map(({ id }) => id));
    const sizes = classes.names.map(() => new Array<number>(SIZE_BINS).fill(0));
    for (const { imageId, categoryId, bbox, isCrowd } of store.annotations(name)) {
      if (isCrowd || !usable.has(imageId)) continue;
      const own = sizes[classes.indexOf(categoryId)] as number[];
      own[sizeBin(bbox[2], bbox[3])]!++;
    }
    const boxes = sizes.map((own) => own.reduce((sum, count) => sum + count, 0));
    return { name, images: usable.size, boxes, sizes };
  });
  return { classes: [...classes.names], edges: [...SIZE_EDGES], splits };
}

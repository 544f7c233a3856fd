import { type AnchorOptions, cellAnchors } from "./anchors";
import type { DefaultBoxGenerator } from "./default-boxes";

/** The anchors of a pyramid level: those of the first cell, moved by the strides for every other one. */
export interface AnchorCells {
  readonly rows: number;
  readonly columns: number;
  readonly strideH: number;
  readonly strideW: number;
  /** Anchors of the first cell, (n, 4) as x1, y1, x2, y2 in input pixels. */
  readonly first: ArrayLike<number>;
}

type Grid = readonly [rows: number, columns: number];

/** The anchors that AnchorGenerator makes for maps of these sizes, finest first. */
export function pyramidCells(options: AnchorOptions, image: readonly [number, number], grids: readonly Grid[]) {
  return grids.map(
    ([rows, columns], level): AnchorCells => ({
      rows,
      columns,
      strideH: Math.floor(image[0] / rows),
      strideW: Math.floor(image[1] / columns),
      first: cellAnchors(options.sizes[level] as readonly number[], options.aspectRatios),
    }),
  );
}

/** The boxes that a DefaultBoxGenerator makes for maps of these sizes, finest first. */
export function defaultBoxCells(
  generator: DefaultBoxGenerator,
  image: readonly [number, number],
  grids: readonly Grid[],
): AnchorCells[] {
  const boxes = generator.boxes(image, grids);
  let start = 0;
  return grids.map(([rows, columns], level) => {
    const perCell = generator.perCell[level] as number;
    const first = boxes.subarray(start, start + 4 * perCell);
    const steps = generator.options.steps?.[level];
    start += 4 * perCell * rows * columns;
    return { rows, columns, strideH: steps ?? image[0] / rows, strideW: steps ?? image[1] / columns, first };
  });
}

/**
 * The largest IoU of a box (x, y, width, height in input pixels) with any of the anchors. Among the anchors of one shape the
 * best is one whose centre is nearest to the box's, so only those are looked at.
 */
export function bestAnchorIoU(
  levels: readonly AnchorCells[],
  x: number,
  y: number,
  width: number,
  height: number,
): number {
  let best = 0;
  for (const { rows, columns, strideH, strideW, first } of levels) {
    for (let i = 0; i < first.length; i += 4) {
      const [x1, y1] = [first[i] as number, first[i + 1] as number];
      const [w, h] = [(first[i + 2] as number) - x1, (first[i + 3] as number) - y1];
      const column = nearest((x + width / 2 - x1 - w / 2) / strideW, columns);
      const row = nearest((y + height / 2 - y1 - h / 2) / strideH, rows);
      const [left, top] = [x1 + column * strideW, y1 + row * strideH];
      const across = Math.min(x + width, left + w) - Math.max(x, left);
      const down = Math.min(y + height, top + h) - Math.max(y, top);
      if (across <= 0 || down <= 0) continue;
      const both = across * down;
      best = Math.max(best, both / (width * height + w * h - both));
    }
  }
  return best;
}

function nearest(place: number, count: number): number {
  return Math.min(count - 1, Math.max(0, Math.round(place)));
}

/** Boxes that were found on an image, and which of two sets are of the same object. */

/** A box in pixels of its image, x1 < x2 and y1 < y2. */
export type Box = readonly [x1: number, y1: number, x2: number, y2: number];

/** What a model found. */
export interface FoundBox {
  readonly box: Box;
  /** 0 to 1. */
  readonly score: number;
  /** Class index. */
  readonly label: number;
}

/** Intersection over union, 0 to 1; 0 where one of them is empty. */
export function iouOf(a: Box, b: Box): number {
  const w = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const h = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (!(w > 0 && h > 0)) return 0;
  const area = ([x1, y1, x2, y2]: Box) => (x2 - x1) * (y2 - y1);
  return (w * h) / (area(a) + area(b) - w * h);
}

export interface BoxPair {
  /** Rows of the two sets. */
  readonly a: number;
  readonly b: number;
  readonly iou: number;
}

/**
 * Pairs of two sets: of those that `allowed` accepts and whose IoU is at least `least`, the one of the highest IoU first, each box
 * once. Of equal pairs the first.
 */
export function pairBoxes(
  a: readonly { readonly box: Box }[],
  b: readonly { readonly box: Box }[],
  least: number,
  allowed: (a: number, b: number) => boolean = () => true,
): BoxPair[] {
  const all: BoxPair[] = [];
  for (const [i, one] of a.entries()) {
    for (const [j, other] of b.entries()) {
      const iou = iouOf(one.box, other.box);
      if (iou > 0 && iou >= least && allowed(i, j)) all.push({ a: i, b: j, iou });
    }
  }
  all.sort((p, q) => q.iou - p.iou || p.a - q.a || p.b - q.b);
  const [usedA, usedB] = [new Set<number>(), new Set<number>()];
  return all.filter((pair) => {
    if (usedA.has(pair.a) || usedB.has(pair.b)) return false;
    usedA.add(pair.a);
    usedB.add(pair.b);
    return true;
  });
}

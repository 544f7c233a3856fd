/** How large boxes are: numbers of them by the sides of squares of their area. */

/** Bin i is of sides from edges[i] to below edges[i + 1] in pixels, half octaves; the first and the last hold what is beyond, too. */
export const SIZE_EDGES: readonly number[] = Array.from({ length: 17 }, (_, i) => Math.round(4 * 2 ** (i / 2)));
export const SIZE_BINS = SIZE_EDGES.length - 1;

/** The bin of a box of that width and height. */
export function sizeBin(width: number, height: number): number {
  const side = Math.sqrt(Math.max(0, width) * Math.max(0, height));
  const beyond = SIZE_EDGES.findIndex((edge) => side < edge);
  return beyond < 0 ? SIZE_BINS - 1 : Math.max(0, beyond - 1);
}

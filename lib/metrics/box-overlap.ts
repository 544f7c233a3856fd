/**
 * Intersection over union of two boxes [x, y, width, height] at row `i` of `a` and row `j` of `b`, in the operations of
 * pycocotools' `bbIou`. With `crowd`, the intersection over the first box's own area.
 */
export function boxIou(a: Float64Array, i: number, b: Float64Array, j: number, crowd = false): number {
  const aw = a[4 * i + 2]!;
  const ah = a[4 * i + 3]!;
  const bw = b[4 * j + 2]!;
  const bh = b[4 * j + 3]!;
  const w = Math.min(aw + a[4 * i]!, bw + b[4 * j]!) - Math.max(a[4 * i]!, b[4 * j]!);
  const h = Math.min(ah + a[4 * i + 1]!, bh + b[4 * j + 1]!) - Math.max(a[4 * i + 1]!, b[4 * j + 1]!);
  if (w <= 0 || h <= 0) return 0;
  const intersection = w * h;
  return intersection / (crowd ? aw * ah : aw * ah + bw * bh - intersection);
}

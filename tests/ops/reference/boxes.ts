/** Boxes, anchors and matching in float64, after torchvision. Boxes are x1, y1, x2, y2. */
type Numbers = ArrayLike<number>;
export type Weights = readonly [number, number, number, number];

export const box = (boxes: Numbers, i: number): [number, number, number, number] => [
  boxes[i * 4]!,
  boxes[i * 4 + 1]!,
  boxes[i * 4 + 2]!,
  boxes[i * 4 + 3]!,
];

export function iou(a: Numbers, i: number, b: Numbers, j: number): number {
  const [ax1, ay1, ax2, ay2] = box(a, i);
  const [bx1, by1, bx2, by2] = box(b, j);
  const width = Math.max(0, Math.min(ax2, bx2) - Math.max(ax1, bx1));
  const height = Math.max(0, Math.min(ay2, by2) - Math.max(ay1, by1));
  const union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - width * height;
  return union === 0 ? 0 : (width * height) / union;
}

export function iouMatrix(a: Numbers, b: Numbers): Float64Array {
  const [rows, columns] = [a.length / 4, b.length / 4];
  return Float64Array.from({ length: rows * columns }, (_, i) => iou(a, Math.floor(i / columns), b, i % columns));
}

export function encode(boxes: Numbers, anchors: Numbers, [wx, wy, ww, wh]: Weights): Float64Array {
  const out = new Float64Array(boxes.length);
  for (let i = 0; i < boxes.length / 4; ++i) {
    const [ax1, ay1, ax2, ay2] = box(anchors, i);
    const [gx1, gy1, gx2, gy2] = box(boxes, i);
    const [aw, ah, gw, gh] = [ax2 - ax1, ay2 - ay1, gx2 - gx1, gy2 - gy1];
    out[i * 4] = (wx * ((gx1 + gx2) / 2 - (ax1 + ax2) / 2)) / aw;
    out[i * 4 + 1] = (wy * ((gy1 + gy2) / 2 - (ay1 + ay2) / 2)) / ah;
    out[i * 4 + 2] = ww * Math.log(gw / aw);
    out[i * 4 + 3] = wh * Math.log(gh / ah);
  }
  return out;
}

export function decode(deltas: Numbers, anchors: Numbers, [wx, wy, ww, wh]: Weights): Float64Array {
  const clip = Math.log(1000 / 16);
  const out = new Float64Array(deltas.length);
  for (let i = 0; i < deltas.length / 4; ++i) {
    const [ax1, ay1, ax2, ay2] = box(anchors, i);
    const [dx, dy, dw, dh] = box(deltas, i);
    const [aw, ah] = [ax2 - ax1, ay2 - ay1];
    const [x, y] = [(dx / wx) * aw + (ax1 + ax2) / 2, (dy / wy) * ah + (ay1 + ay2) / 2];
    const [w, h] = [Math.exp(Math.min(dw / ww, clip)) * aw, Math.exp(Math.min(dh / wh, clip)) * ah];
    out.set([x - w / 2, y - h / 2, x + w / 2, y + h / 2], i * 4);
  }
  return out;
}

/** BoxLinearCoder with normalize_by_size: left, top, right, bottom from the anchor's centre, in anchor sizes. */
export function encodeLinear(boxes: Numbers, anchors: Numbers): Float64Array {
  const out = new Float64Array(boxes.length);
  for (let i = 0; i < boxes.length / 4; ++i) {
    const [ax1, ay1, ax2, ay2] = box(anchors, i);
    const [x1, y1, x2, y2] = box(boxes, i);
    const [x, y, w, h] = [(ax1 + ax2) / 2, (ay1 + ay2) / 2, ax2 - ax1, ay2 - ay1];
    out.set([(x - x1) / w, (y - y1) / h, (x2 - x) / w, (y2 - y) / h], i * 4);
  }
  return out;
}

export function decodeLinear(deltas: Numbers, anchors: Numbers): Float64Array {
  const out = new Float64Array(deltas.length);
  for (let i = 0; i < deltas.length / 4; ++i) {
    const [ax1, ay1, ax2, ay2] = box(anchors, i);
    const [left, top, right, bottom] = box(deltas, i);
    const [x, y, w, h] = [(ax1 + ax2) / 2, (ay1 + ay2) / 2, ax2 - ax1, ay2 - ay1];
    out.set([x - left * w, y - top * h, x + right * w, y + bottom * h], i * 4);
  }
  return out;
}

/** (feature height * feature width * A, 4), ordered row, column, cell anchor. */
export function anchorGrid(
  cell: Numbers,
  [rows, columns]: readonly [number, number],
  [strideY, strideX]: readonly [number, number],
): Float64Array {
  const out: number[] = [];
  for (let row = 0; row < rows; ++row)
    for (let column = 0; column < columns; ++column)
      for (let i = 0; i < cell.length; ++i) out.push(cell[i]! + (i % 2 === 0 ? column * strideX : row * strideY));
  return Float64Array.from(out);
}

/** What happens after the thresholds: nothing, low-quality matches (Matcher), each box to its best anchor (SSDMatcher). */
export type Matching = "thresholds" | "lowQuality" | "bestAnchor";

/**
 * torchvision's Matcher and SSDMatcher on the boxes of one image. IoUs are rounded to fp32, since equality of IoUs decides
 * about matches of low quality.
 */
export function match(anchors: Numbers, boxes: Numbers, high: number, low: number, matching: Matching): Int32Array {
  const [count, boxCount] = [anchors.length / 4, boxes.length / 4];
  const best = new Float32Array(count).fill(-1);
  const index = new Int32Array(count).fill(-1);
  const largest = new Float32Array(boxCount);
  const bestAnchor = new Int32Array(boxCount);
  const ious = iouMatrix(boxes, anchors).map(Math.fround);
  for (let b = 0; b < boxCount; ++b) {
    for (let a = 0; a < count; ++a) {
      const value = ious[b * count + a]!;
      if (value > best[a]!) [best[a], index[a]] = [value, b];
      if (value > largest[b]!) [largest[b], bestAnchor[b]] = [value, a];
    }
  }
  const matches = index.map((b, a) =>
    b < 0 || best[a]! < Math.fround(low) ? -1 : best[a]! < Math.fround(high) ? -2 : b,
  );
  if (matching === "lowQuality") {
    for (let b = 0; b < boxCount; ++b)
      for (let a = 0; a < count; ++a) if (ious[b * count + a] === largest[b]) matches[a] = index[a]!;
  }
  if (matching === "bestAnchor") for (let b = 0; b < boxCount; ++b) matches[bestAnchor[b]!] = b;
  return matches;
}

export interface PointLevels {
  /** Anchors of the finest and of the coarsest level. */
  first: number;
  last: number;
  radius: number;
}

/** FCOS's center sampling on the boxes of one image, in fp32 as torchvision's FCOS.compute_loss. */
export function matchPoints(anchors: Numbers, boxes: Numbers, { first, last, radius }: PointLevels): Int32Array {
  const f = Math.fround;
  const count = anchors.length / 4;
  return Int32Array.from({ length: count }, (_, a) => {
    const [ax1, ay1, ax2, ay2] = box(anchors, a);
    const [x, y, size] = [f(f(ax1 + ax2) / 2), f(f(ay1 + ay2) / 2), f(ax2 - ax1)];
    const lower = a < first ? 0 : size * 4;
    const upper = a >= count - last ? Number.POSITIVE_INFINITY : size * 8;
    let [best, matched] = [0, -1];
    for (let b = 0; b < boxes.length / 4; ++b) {
      const [x1, y1, x2, y2] = box(boxes, b);
      const sides = [x - x1, y - y1, x2 - x, y2 - y].map(f);
      const offset = Math.max(Math.abs(f(x - f(f(x1 + x2) / 2))), Math.abs(f(y - f(f(y1 + y2) / 2))));
      const farthest = Math.max(...sides);
      if (!(offset < f(radius * size) && Math.min(...sides) > 0 && farthest > lower && farthest < upper)) continue;
      const value = f(1e8 - f(f(x2 - x1) * f(y2 - y1)));
      if (value > best) [best, matched] = [value, b];
    }
    return best < 1e-5 ? -1 : matched;
  });
}

/** Detection losses in float64, after torchvision. */
import { box, decode, decodeLinear, encode, encodeLinear, type Weights } from "./boxes";

type Numbers = ArrayLike<number>;
export type Normalization = "image" | "batch";
export type BoxLossKind = "l1" | "smooth_l1" | "iou" | "giou" | "diou" | "ciou";
export type Coder = "centre" | "linear";

/** What the terms of each image are multiplied by. */
function imageWeights(matches: Numbers, n: number, normalization: Normalization): number[] {
  const anchors = matches.length / n;
  const foreground = Array.from(
    { length: n },
    (_, image) => Array.from({ length: anchors }, (_, a) => matches[image * anchors + a]!).filter((m) => m >= 0).length,
  );
  const total = foreground.reduce((sum, count) => sum + count, 0);
  return foreground.map((own) => (normalization === "image" ? 1 / (n * Math.max(1, own)) : 1 / Math.max(1, total)));
}

/** Sigmoid focal loss of one logit (Lin et al. 2017) and its derivative by the logit. */
export function focalTerm(x: number, positive: boolean, alpha: number, gamma: number): { loss: number; slope: number } {
  const z = positive ? x : -x;
  // p = sigmoid(z), q = 1 - p, ce = -log p, without cancellation
  const p = z >= 0 ? 1 / (1 + Math.exp(-z)) : Math.exp(z) / (1 + Math.exp(z));
  const q = z >= 0 ? Math.exp(-z) / (1 + Math.exp(-z)) : 1 / (1 + Math.exp(z));
  const ce = Math.max(-z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
  const weight = (alpha < 0 ? 1 : positive ? alpha : 1 - alpha) * q ** gamma;
  // d/dz: weight' ce + weight ce', where dq/dz = -p q and dce/dz = -q
  const slope = -weight * (gamma * p * ce + q);
  return { loss: weight * ce, slope: positive ? slope : -slope };
}

export interface FocalInputs {
  logits: Numbers;
  matches: Numbers;
  labels: Numbers;
  n: number;
  anchors: number;
  classes: number;
  maxBoxes: number;
  alpha: number;
  gamma: number;
  normalization: Normalization;
}

export function focalLoss(inputs: FocalInputs) {
  const { logits, matches, labels, n, anchors, classes, maxBoxes, alpha, gamma, normalization } = inputs;
  const dlogits = new Float64Array(n * anchors * classes);
  let loss = 0;
  for (const [image, weight] of imageWeights(matches, n, normalization).entries()) {
    for (let a = 0; a < anchors; ++a) {
      const matched = matches[image * anchors + a]!;
      if (matched === -2) continue;
      for (let k = 0; k < classes; ++k) {
        const at = (image * anchors + a) * classes + k;
        const term = focalTerm(logits[at]!, matched >= 0 && labels[image * maxBoxes + matched] === k, alpha, gamma);
        loss += weight * term.loss;
        dlogits[at] = weight * term.slope;
      }
    }
  }
  return { loss, dlogits };
}

/** 1 - IoU of two boxes with the penalty of its kind; `alpha` fixes CIoU's. */
function iouLoss(kind: BoxLossKind, a: Numbers, b: Numbers, alpha?: number): { loss: number; alpha: number } {
  const eps = 1e-7;
  const [ax1, ay1, ax2, ay2] = box(a, 0);
  const [bx1, by1, bx2, by2] = box(b, 0);
  const width = Math.min(ax2, bx2) - Math.max(ax1, bx1);
  const height = Math.min(ay2, by2) - Math.max(ay1, by1);
  const inter = width > 0 && height > 0 ? width * height : 0;
  const union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter;
  const iou = inter / (union + eps);
  const [hullWidth, hullHeight] = [Math.max(ax2, bx2) - Math.min(ax1, bx1), Math.max(ay2, by2) - Math.min(ay1, by1)];
  if (kind === "iou") return { loss: 1 - iou, alpha: 0 };
  if (kind === "giou") {
    const hull = hullWidth * hullHeight;
    return { loss: 1 - iou + (hull - union) / (hull + eps), alpha: 0 };
  }
  const distance = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2;
  const diou = 1 - iou + distance / (hullWidth ** 2 + hullHeight ** 2 + eps);
  if (kind === "diou") return { loss: diou, alpha: 0 };
  const angles = Math.atan((bx2 - bx1) / (by2 - by1)) - Math.atan((ax2 - ax1) / (ay2 - ay1));
  const v = (4 / Math.PI ** 2) * angles ** 2;
  const factor = alpha ?? v / (1 - iou + v + eps);
  return { loss: diou + factor * v, alpha: factor };
}

export interface BoxLossInputs {
  deltas: Numbers;
  anchors: Numbers;
  matches: Numbers;
  boxes: Numbers;
  n: number;
  maxBoxes: number;
  kind: BoxLossKind;
  coder: Coder;
  weights: Weights;
  beta: number;
  normalization: Normalization;
}

/** IoU losses are differentiated by central differences: the reference knows none of the rules it checks. */
export function boxLoss(inputs: BoxLossInputs) {
  const { deltas, anchors, matches, boxes, n, maxBoxes, kind, coder, weights, beta, normalization } = inputs;
  const count = anchors.length / 4;
  const ddeltas = new Float64Array(n * count * 4);
  let loss = 0;
  for (const [image, weight] of imageWeights(matches, n, normalization).entries()) {
    for (let a = 0; a < count; ++a) {
      const matched = matches[image * count + a]!;
      if (matched < 0) continue;
      const at = (image * count + a) * 4;
      const [own, anchor] = [Float64Array.from(box(deltas, at / 4)), box(anchors, a)];
      const truth = box(boxes, image * maxBoxes + matched);
      if (kind === "l1" || kind === "smooth_l1") {
        const target = coder === "linear" ? encodeLinear(truth, anchor) : encode(truth, anchor, weights);
        for (let i = 0; i < 4; ++i) {
          const difference = own[i]! - target[i]!;
          const d = Math.abs(difference);
          loss += weight * (d < beta ? (d * d) / (2 * beta) : d - beta / 2);
          ddeltas[at + i] = weight * (d < beta ? difference / beta : Math.sign(difference));
        }
        continue;
      }
      const decoded = (moved: Numbers) =>
        coder === "linear" ? decodeLinear(moved, anchor) : decode(moved, anchor, weights);
      const { loss: term, alpha } = iouLoss(kind, decoded(own), truth);
      loss += weight * term;
      const step = 1e-6;
      for (let i = 0; i < 4; ++i) {
        const moved = (sign: number) => decoded(own.map((value, j) => (j === i ? value + sign * step : value)));
        const difference = iouLoss(kind, moved(1), truth, alpha).loss - iouLoss(kind, moved(-1), truth, alpha).loss;
        ddeltas[at + i] = (weight * difference) / (2 * step);
      }
    }
  }
  return { loss, ddeltas };
}

/** FCOS's target of an anchor: how near its centre is to the box's, 0 where it lies outside. */
export function centerness(anchor: Numbers, truth: Numbers): number {
  const [left, top, right, bottom] = encodeLinear(truth, anchor);
  const [x, y] = [Math.min(left!, right!) / Math.max(left!, right!), Math.min(top!, bottom!) / Math.max(top!, bottom!)];
  return x > 0 && y > 0 ? Math.sqrt(x * y) : 0;
}

export interface CenternessInputs {
  logits: Numbers;
  anchors: Numbers;
  matches: Numbers;
  boxes: Numbers;
  n: number;
  maxBoxes: number;
  normalization: Normalization;
}

export function centernessLoss({ logits, anchors, matches, boxes, n, maxBoxes, normalization }: CenternessInputs) {
  const count = anchors.length / 4;
  const dlogits = new Float64Array(n * count);
  let loss = 0;
  for (const [image, weight] of imageWeights(matches, n, normalization).entries()) {
    for (let a = 0; a < count; ++a) {
      const at = image * count + a;
      if (matches[at]! < 0) continue;
      const target = centerness(box(anchors, a), box(boxes, image * maxBoxes + matches[at]!));
      const x = logits[at]!;
      loss += weight * (Math.max(x, 0) - x * target + Math.log1p(Math.exp(-Math.abs(x))));
      dlogits[at] = weight * (1 / (1 + Math.exp(-x)) - target);
    }
  }
  return { loss, dlogits };
}

export interface CrossEntropyInputs {
  logits: Numbers;
  matches: Numbers;
  labels: Numbers;
  n: number;
  anchors: number;
  classes: number;
  maxBoxes: number;
  negativeRatio: number;
  normalization: Normalization;
}

/** Softmax cross-entropy; class 0 is the background. Background anchors are chosen by their loss as fp32. */
export function crossEntropyLoss(inputs: CrossEntropyInputs) {
  const { logits, matches, labels, n, anchors, classes, maxBoxes, negativeRatio, normalization } = inputs;
  const dlogits = new Float64Array(n * anchors * classes);
  let loss = 0;
  for (const [image, weight] of imageWeights(matches, n, normalization).entries()) {
    const rows = Array.from({ length: anchors }, (_, a) => {
      const match = matches[image * anchors + a]!;
      const x = Array.from({ length: classes }, (_, k) => logits[(image * anchors + a) * classes + k]!);
      const most = Math.max(...x);
      const sum = x.reduce((total, value) => total + Math.exp(value - most), 0);
      const target = match >= 0 ? labels[image * maxBoxes + match]! + 1 : 0;
      return { a, match, target, loss: Math.log(sum) - (x[target]! - most), p: x.map((v) => Math.exp(v - most) / sum) };
    });
    const foreground = rows.filter(({ match }) => match >= 0);
    const background = rows.filter(({ match }) => match === -1);
    const wanted = negativeRatio < 0 ? anchors : Math.ceil(negativeRatio * foreground.length);
    background.sort((a, b) => Math.fround(b.loss) - Math.fround(a.loss) || a.a - b.a);
    for (const row of [...foreground, ...background.slice(0, wanted)]) {
      loss += weight * row.loss;
      for (const [k, p] of row.p.entries())
        dlogits[(image * anchors + row.a) * classes + k] = weight * (p - (k === row.target ? 1 : 0));
    }
  }
  return { loss, dlogits };
}

/** A rectangle: top left corner and size. */
export interface Rect {
  x: number;
  y: number;
  width: number;
  height: number;
}

/**
 * How one image becomes one network input, as geometry: which part of the source (`crop`) is drawn where (`target`) on a
 * canvas, mirrored or not, and where the boxes end up. A plan starts with a canvas that is the image itself; each
 * preprocessing operation makes a new plan; at the end the canvas is the network input. No pixel is touched in between:
 * one native kernel executes the last plan (dlfs_preprocess in dlfs.h).
 */
export interface ImagePlan {
  /** Size of the source image. */
  readonly width: number;
  readonly height: number;
  /** Size of the network input that the plan is to end with. */
  readonly outputWidth: number;
  readonly outputHeight: number;
  /** Size of the canvas now. */
  readonly canvasWidth: number;
  readonly canvasHeight: number;
  /** The part of the source that is visible, in source pixels. */
  readonly crop: Rect;
  /** Where it is drawn, in canvas pixels, inside the canvas; the rest of the canvas is the fill colour. */
  readonly target: Rect;
  /** Whether the crop is mirrored within the target. */
  readonly flipX: boolean;
  readonly flipY: boolean;
  /** (n, 4): x1, y1, x2, y2 in canvas pixels, inside the canvas. */
  readonly boxes: Float64Array;
  /** (n): class index of each box. */
  readonly labels: Int32Array;
}

/** The plan that every image starts with: all of it, on a canvas of its own size. boxes (n, 4) in source pixels. */
export function startPlan(
  width: number,
  height: number,
  outputWidth: number,
  outputHeight: number,
  boxes: Float64Array,
  labels: Int32Array,
): ImagePlan {
  return {
    width,
    height,
    outputWidth,
    outputHeight,
    canvasWidth: width,
    canvasHeight: height,
    crop: { x: 0, y: 0, width, height },
    target: { x: 0, y: 0, width, height },
    flipX: false,
    flipY: false,
    boxes,
    labels,
  };
}

/** Which boxes outlive a cut: those of which at least this fraction of the area remains, or whose centre remains. */
export type BoxRule = number | "center";

/** Where the old canvas goes on the new one: every coordinate x becomes x * scaleX + shiftX, likewise y. */
export interface Placement {
  scaleX: number;
  scaleY: number;
  shiftX: number;
  shiftY: number;
  canvasWidth: number;
  canvasHeight: number;
}

/**
 * Moves the plan to a new canvas. What reaches outside is cut off; boxes are clipped, and dropped where `rule` says or
 * nothing is left. At least a part of the target must stay inside the new canvas.
 */
export function place(plan: ImagePlan, to: Placement, rule: BoxRule): ImagePlan {
  const full: Rect = {
    x: plan.target.x * to.scaleX + to.shiftX,
    y: plan.target.y * to.scaleY + to.shiftY,
    width: plan.target.width * to.scaleX,
    height: plan.target.height * to.scaleY,
  };
  const [x, width, cropX, cropWidth] = cut(
    full.x,
    full.width,
    to.canvasWidth,
    plan.crop.x,
    plan.crop.width,
    plan.flipX,
  );
  const [y, height, cropY, cropHeight] = cut(
    full.y,
    full.height,
    to.canvasHeight,
    plan.crop.y,
    plan.crop.height,
    plan.flipY,
  );

  const count = plan.labels.length;
  const boxes = new Float64Array(4 * count);
  const labels = new Int32Array(count);
  let kept = 0;
  for (let i = 0; i < count; i++) {
    const x1 = (plan.boxes[4 * i] as number) * to.scaleX + to.shiftX;
    const y1 = (plan.boxes[4 * i + 1] as number) * to.scaleY + to.shiftY;
    const x2 = (plan.boxes[4 * i + 2] as number) * to.scaleX + to.shiftX;
    const y2 = (plan.boxes[4 * i + 3] as number) * to.scaleY + to.shiftY;
    const left = clamp(x1, to.canvasWidth);
    const top = clamp(y1, to.canvasHeight);
    const right = clamp(x2, to.canvasWidth);
    const bottom = clamp(y2, to.canvasHeight);
    const area = (right - left) * (bottom - top);
    if (!(area > 0)) continue;
    if (rule === "center") {
      const centerX = (x1 + x2) / 2;
      const centerY = (y1 + y2) / 2;
      if (centerX < 0 || centerX >= to.canvasWidth || centerY < 0 || centerY >= to.canvasHeight) continue;
    } else if (area < rule * (x2 - x1) * (y2 - y1)) {
      continue;
    }
    boxes[4 * kept] = left;
    boxes[4 * kept + 1] = top;
    boxes[4 * kept + 2] = right;
    boxes[4 * kept + 3] = bottom;
    labels[kept++] = plan.labels[i] as number;
  }
  return {
    ...plan,
    canvasWidth: to.canvasWidth,
    canvasHeight: to.canvasHeight,
    crop: { x: cropX, y: cropY, width: cropWidth, height: cropHeight },
    target: { x, y, width, height },
    boxes: boxes.subarray(0, 4 * kept),
    labels: labels.subarray(0, kept),
  };
}

function clamp(value: number, limit: number): number {
  return Math.min(Math.max(value, 0), limit);
}

/** One axis of a target cut at the canvas: its start and length, and the crop's start and length that go with them. */
function cut(
  start: number,
  length: number,
  canvas: number,
  cropStart: number,
  cropLength: number,
  mirrored: boolean,
): [number, number, number, number] {
  const from = clamp(start, canvas);
  const to = clamp(start + length, canvas);
  if (from === start && to === start + length) return [start, length, cropStart, cropLength];
  const perPixel = cropLength / length;
  // Mirrored, the crop's start is what the target shows at its end.
  const lost = mirrored ? start + length - to : from - start;
  return [from, to - from, cropStart + lost * perPixel, (to - from) * perPixel];
}

/** The plan with its canvas mirrored left to right (x) or top to bottom (y). */
export function mirror(plan: ImagePlan, axis: "x" | "y"): ImagePlan {
  const boxes = plan.boxes.slice();
  const first = axis === "x" ? 0 : 1;
  const canvas = axis === "x" ? plan.canvasWidth : plan.canvasHeight;
  for (let i = first; i < boxes.length; i += 4) {
    const low = boxes[i] as number;
    boxes[i] = canvas - (boxes[i + 2] as number);
    boxes[i + 2] = canvas - low;
  }
  const { target } = plan;
  return axis === "x"
    ? { ...plan, boxes, flipX: !plan.flipX, target: { ...target, x: canvas - target.x - target.width } }
    : { ...plan, boxes, flipY: !plan.flipY, target: { ...target, y: canvas - target.y - target.height } };
}

/** A plan, or a composition, without boxes narrower or lower than `size` canvas pixels. */
export function dropSmallBoxes<Plan extends Pick<ImagePlan, "boxes" | "labels">>(plan: Plan, size: number): Plan {
  const large: number[] = [];
  for (let i = 0; i < plan.labels.length; i++) {
    const width = (plan.boxes[4 * i + 2] as number) - (plan.boxes[4 * i] as number);
    const height = (plan.boxes[4 * i + 3] as number) - (plan.boxes[4 * i + 1] as number);
    if (width >= size && height >= size) large.push(i);
  }
  if (large.length === plan.labels.length) return plan;
  const boxes = new Float64Array(4 * large.length);
  for (const [to, from] of large.entries()) boxes.set(plan.boxes.subarray(4 * from, 4 * from + 4), 4 * to);
  return { ...plan, boxes, labels: Int32Array.from(large, (i) => plan.labels[i] as number) };
}

/** Floats per image of the native transform: DLFS_TRANSFORM_FLOATS in dlfs.h. */
export const TRANSFORM_FLOATS = 12;

/** Writes a plan as the transform of image `index` for dlfs_preprocess: crop, target, flips, two zeros. */
export function writeTransform(out: Float32Array, index: number, plan: ImagePlan): void {
  const { crop, target } = plan;
  const at = index * TRANSFORM_FLOATS;
  out[at] = crop.x;
  out[at + 1] = crop.y;
  out[at + 2] = crop.width;
  out[at + 3] = crop.height;
  out[at + 4] = target.x;
  out[at + 5] = target.y;
  out[at + 6] = target.width;
  out[at + 7] = target.height;
  out[at + 8] = plan.flipX ? 1 : 0;
  out[at + 9] = plan.flipY ? 1 : 0;
  out[at + 10] = 0;
  out[at + 11] = 0;
}

/** Source to network input: x becomes x * scaleX + offsetX, likewise y; a scale is negative where the image is mirrored. */
export interface InputMapping {
  scaleX: number;
  scaleY: number;
  offsetX: number;
  offsetY: number;
}

/** The mapping of source coordinates to canvas coordinates that a plan amounts to. */
export function mappingOf(plan: ImagePlan): InputMapping {
  const { crop, target } = plan;
  const x = target.width / crop.width;
  const y = target.height / crop.height;
  return {
    scaleX: plan.flipX ? -x : x,
    scaleY: plan.flipY ? -y : y,
    offsetX: plan.flipX ? target.x + target.width + crop.x * x : target.x - crop.x * x,
    offsetY: plan.flipY ? target.y + target.height + crop.y * y : target.y - crop.y * y,
  };
}

/**
 * Maps boxes from network input pixels back to the source image and clips them to it, in place. `stride` numbers per box, of
 * which the first four are x1, y1, x2, y2 (6 for rows of dlfs_gather_detections).
 */
export function mapBoxesToImage(
  boxes: Float32Array | Float64Array,
  mapping: InputMapping,
  width: number,
  height: number,
  stride = 4,
): void {
  const { scaleX, scaleY, offsetX, offsetY } = mapping;
  for (let i = 0; i + 3 < boxes.length; i += stride) {
    const xa = clamp(((boxes[i] as number) - offsetX) / scaleX, width);
    const ya = clamp(((boxes[i + 1] as number) - offsetY) / scaleY, height);
    const xb = clamp(((boxes[i + 2] as number) - offsetX) / scaleX, width);
    const yb = clamp(((boxes[i + 3] as number) - offsetY) / scaleY, height);
    boxes[i] = Math.min(xa, xb);
    boxes[i + 1] = Math.min(ya, yb);
    boxes[i + 2] = Math.max(xa, xb);
    boxes[i + 3] = Math.max(ya, yb);
  }
}

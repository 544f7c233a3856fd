import { check } from "../native/error";
import { type ImagePlan, mirror, place } from "./image-plan";
import type { CounterRandom } from "./random";

/** An operation's name and options, as JSON: what a model file or a run's configuration keeps of it. */
export type PreprocessJson = { name: string } & Record<string, unknown>;

/**
 * One step from a decoded image to a network input. An operation maps the geometry only (see ImagePlan); it never sees a
 * pixel and keeps no state: all that is random about it is drawn from `random`.
 */
export abstract class PreprocessOp {
  abstract readonly name: string;
  /** Whether the operation augments training, rather than being part of what the network expects of its input. */
  readonly random: boolean = false;

  abstract apply(plan: ImagePlan, random: CounterRandom): ImagePlan;

  /** The operation's name and options; parsePreprocessing reads it back. */
  abstract toJSON(): PreprocessJson;
}

export interface ResizeOptions {
  /** "letterbox" keeps the proportions and fills what is left over; "stretch" fills the whole input. */
  mode?: "letterbox" | "stretch";
  /** Where a letterboxed image lies: in the middle, or in the top left corner. */
  align?: "center" | "corner";
  /**
   * Filter over the footprint when shrinking, as Pillow's bilinear and torch's antialias=True. Default false, as torchvision's
   * detection models. It is said of the whole: an input is drawn once, whatever else changes its size.
   */
  antialias?: boolean;
}

/** Makes the canvas the network input. Every list of operations needs one; what follows it keeps the size. */
export class Resize extends PreprocessOp {
  override readonly name = "resize";
  readonly mode: "letterbox" | "stretch";
  readonly align: "center" | "corner";
  readonly antialias: boolean;

  constructor({ mode = "letterbox", align = "center", antialias = false }: ResizeOptions = {}) {
    super();
    check(mode === "letterbox" || mode === "stretch", "Resize", () => `mode is "letterbox" or "stretch", got ${mode}`);
    check(align === "center" || align === "corner", "Resize", () => `align is "center" or "corner", got ${align}`);
    this.mode = mode;
    this.align = align;
    this.antialias = antialias;
  }

  override apply(plan: ImagePlan): ImagePlan {
    const { outputWidth, outputHeight, canvasWidth, canvasHeight } = plan;
    let width = outputWidth;
    let height = outputHeight;
    if (this.mode === "letterbox") {
      const scale = Math.min(outputWidth / canvasWidth, outputHeight / canvasHeight);
      // Whole pixels, as image libraries resize: no column is half image and half fill.
      width = Math.max(1, Math.min(outputWidth, Math.round(canvasWidth * scale)));
      height = Math.max(1, Math.min(outputHeight, Math.round(canvasHeight * scale)));
    }
    const share = this.align === "center" ? 0.5 : 0;
    return place(
      plan,
      {
        scaleX: width / canvasWidth,
        scaleY: height / canvasHeight,
        shiftX: Math.floor((outputWidth - width) * share),
        shiftY: Math.floor((outputHeight - height) * share),
        canvasWidth: outputWidth,
        canvasHeight: outputHeight,
      },
      0,
    );
  }

  override toJSON(): PreprocessJson {
    const { name, mode, align, antialias } = this;
    return { name, mode, align, ...(antialias && { antialias }) };
  }
}

/** Mirrors the image left to right with probability p. */
export class HorizontalFlip extends PreprocessOp {
  override readonly name = "horizontalFlip";
  override readonly random = true;

  constructor(readonly p = 0.5) {
    super();
    checkProbability("HorizontalFlip", p);
  }

  override apply(plan: ImagePlan, random: CounterRandom): ImagePlan {
    return random.chance(this.p) ? mirror(plan, "x") : plan;
  }

  override toJSON(): PreprocessJson {
    return { name: this.name, p: this.p };
  }
}

/** Mirrors the image top to bottom with probability p. */
export class VerticalFlip extends PreprocessOp {
  override readonly name = "verticalFlip";
  override readonly random = true;

  constructor(readonly p = 0.5) {
    super();
    checkProbability("VerticalFlip", p);
  }

  override apply(plan: ImagePlan, random: CounterRandom): ImagePlan {
    return random.chance(this.p) ? mirror(plan, "y") : plan;
  }

  override toJSON(): PreprocessJson {
    return { name: this.name, p: this.p };
  }
}

export interface ScaleJitterOptions {
  /** Boxes of which less than this fraction stays visible are dropped. */
  minVisible?: number;
}

/**
 * Scales the image by a factor that is log-uniform in [min, max), the canvas staying as large as it is: an image that
 * shrinks lies at a random place on the fill colour, of one that grows a random window is kept. In each direction alone
 * (Ghiasi et al. 2021, "Simple Copy-Paste", large scale jitter, on a canvas of fixed size).
 */
export class ScaleJitter extends PreprocessOp {
  override readonly name = "scaleJitter";
  override readonly random = true;
  readonly minVisible: number;

  constructor(
    readonly min = 0.8,
    readonly max = 1.25,
    { minVisible = 0.25 }: ScaleJitterOptions = {},
  ) {
    super();
    check(
      min > 0 && max >= min && Number.isFinite(max),
      "ScaleJitter",
      () => `needs 0 < min <= max, got ${min} and ${max}`,
    );
    checkProbability("ScaleJitter minVisible", minVisible);
    this.minVisible = minVisible;
  }

  override apply(plan: ImagePlan, random: CounterRandom): ImagePlan {
    const { canvasWidth, canvasHeight, target } = plan;
    const scale = random.logUniform(this.min, this.max);
    // The scaled image starts anywhere between lying at the one edge of the canvas and at the other.
    const x = (canvasWidth - target.width * scale) * random.next();
    const y = (canvasHeight - target.height * scale) * random.next();
    const to = {
      scaleX: scale,
      scaleY: scale,
      shiftX: x - target.x * scale,
      shiftY: y - target.y * scale,
      canvasWidth,
      canvasHeight,
    };
    return place(plan, to, this.minVisible);
  }

  override toJSON(): PreprocessJson {
    return { name: this.name, min: this.min, max: this.max, minVisible: this.minVisible };
  }
}

export interface RandomCropOptions {
  /** The crop's width and height are each between these fractions of the image's. */
  minScale?: number;
  maxScale?: number;
  /** The crop's width over its height, as a factor of the image's own. */
  minAspect?: number;
  maxAspect?: number;
  /** One is drawn: some box whose centre is inside must have at least this IoU with the crop; 1 or more: no crop. */
  overlaps?: readonly number[];
  /** How many crops are tried before the image is left whole. */
  trials?: number;
}

/**
 * Keeps a random part of the image, chosen so that boxes stay in it (Liu et al. 2016, "SSD", section 2.2, as torchvision's
 * RandomIoUCrop): boxes whose centre is outside are dropped, the others are clipped. An image without boxes is cropped
 * freely. The canvas shrinks to the crop, so Resize must follow.
 */
export class RandomCrop extends PreprocessOp {
  override readonly name = "randomCrop";
  override readonly random = true;
  readonly minScale: number;
  readonly maxScale: number;
  readonly minAspect: number;
  readonly maxAspect: number;
  readonly overlaps: readonly number[];
  readonly trials: number;

  constructor(options: RandomCropOptions = {}) {
    super();
    this.minScale = options.minScale ?? 0.3;
    this.maxScale = options.maxScale ?? 1;
    this.minAspect = options.minAspect ?? 0.5;
    this.maxAspect = options.maxAspect ?? 2;
    this.overlaps = options.overlaps ?? [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1];
    this.trials = options.trials ?? 40;
    const { minScale, maxScale, minAspect, maxAspect, overlaps, trials } = this;
    check(
      minScale > 0 && maxScale >= minScale && maxScale <= 1,
      "RandomCrop",
      () => `needs 0 < minScale <= maxScale <= 1, got ${minScale} and ${maxScale}`,
    );
    check(
      minAspect > 0 && maxAspect >= minAspect,
      "RandomCrop",
      () => `needs 0 < minAspect <= maxAspect, got ${minAspect} and ${maxAspect}`,
    );
    check(overlaps.length > 0 && overlaps.every((o) => o >= 0), "RandomCrop", () => `bad overlaps [${overlaps}]`);
    check(Number.isInteger(trials) && trials > 0, "RandomCrop", () => `trials must be an integer > 0, got ${trials}`);
  }

  override apply(plan: ImagePlan, random: CounterRandom): ImagePlan {
    const overlap = this.overlaps[random.integer(this.overlaps.length)] as number;
    if (overlap >= 1) return plan;
    const image = plan.target;
    for (let trial = 0; trial < this.trials; trial++) {
      const scaleX = random.uniform(this.minScale, this.maxScale);
      const scaleY = random.uniform(this.minScale, this.maxScale);
      const aspect = scaleX / scaleY;
      const width = image.width * scaleX;
      const height = image.height * scaleY;
      const x = image.x + random.uniform(0, image.width - width);
      const y = image.y + random.uniform(0, image.height - height);
      if (aspect < this.minAspect || aspect > this.maxAspect) continue;
      if (plan.labels.length > 0 && !(bestOverlap(plan.boxes, x, y, width, height) >= overlap)) continue;
      const to = { scaleX: 1, scaleY: 1, shiftX: -x, shiftY: -y, canvasWidth: width, canvasHeight: height };
      return place(plan, to, "center");
    }
    return plan;
  }

  override toJSON(): PreprocessJson {
    const { name, minScale, maxScale, minAspect, maxAspect, overlaps, trials } = this;
    return { name, minScale, maxScale, minAspect, maxAspect, overlaps, trials };
  }
}

/** The largest IoU with the window of any box whose centre is in it; -1 where there is none. */
function bestOverlap(boxes: Float64Array, x: number, y: number, width: number, height: number): number {
  let best = -1;
  for (let i = 0; i < boxes.length; i += 4) {
    const x1 = (boxes[i] as number) - x;
    const y1 = (boxes[i + 1] as number) - y;
    const x2 = (boxes[i + 2] as number) - x;
    const y2 = (boxes[i + 3] as number) - y;
    const centerX = (x1 + x2) / 2;
    const centerY = (y1 + y2) / 2;
    if (centerX < 0 || centerX >= width || centerY < 0 || centerY >= height) continue;
    const shared = (Math.min(x2, width) - Math.max(x1, 0)) * (Math.min(y2, height) - Math.max(y1, 0));
    best = Math.max(best, shared / ((x2 - x1) * (y2 - y1) + width * height - shared));
  }
  return best;
}

/** Means and standard deviations of the red, green and blue channel over ImageNet, for pixels in 0 to 1. */
export const IMAGENET_MEAN: readonly [number, number, number] = [0.485, 0.456, 0.406];
export const IMAGENET_STD: readonly [number, number, number] = [0.229, 0.224, 0.225];

export interface NormalizeOptions {
  /** Mean and standard deviation per channel (red, green, blue), for pixels in 0 to 1. */
  mean?: readonly number[];
  std?: readonly number[];
  /** Colour outside the image, per channel in 0 to 255. Default: the mean, so that it is 0 after normalisation. */
  fill?: readonly number[];
}

/** The values that pixels become: (pixel / 255 - mean) / std. It moves nothing; the kernel that draws the plan applies it. */
export class Normalize extends PreprocessOp {
  override readonly name = "normalize";
  readonly mean: readonly number[];
  readonly std: readonly number[];
  readonly fill: readonly number[];

  constructor({ mean = IMAGENET_MEAN, std = IMAGENET_STD, fill = mean.map((m) => 255 * m) }: NormalizeOptions = {}) {
    super();
    for (const [name, values] of Object.entries({ mean, std, fill })) {
      const good = values.length === 3 && values.every(Number.isFinite);
      check(good, "Normalize", () => `${name} must be three numbers, got [${values}]`);
    }
    check(
      std.every((s) => s > 0),
      "Normalize",
      () => `std must be > 0, got [${std}]`,
    );
    this.mean = mean;
    this.std = std;
    this.fill = fill;
  }

  override apply(plan: ImagePlan): ImagePlan {
    return plan;
  }

  override toJSON(): PreprocessJson {
    return { name: this.name, mean: this.mean, std: this.std, fill: this.fill };
  }
}

function checkProbability(op: string, p: number): void {
  check(p >= 0 && p <= 1, op, () => `expected a number in 0 to 1, got ${p}`);
}

/**
 * The `normalisation` argument of dlfs_preprocess and dlfs_decoder_submit for a list of operations: mean[3], std[3],
 * fill[3]. Without a Normalize among them pixels become 0 to 1, filled with black.
 */
export function normalizationOf(preprocessing: readonly PreprocessOp[]): Float32Array {
  const found = preprocessing.filter((op) => op instanceof Normalize);
  check(found.length <= 1, "preprocessing", () => `${found.length} Normalize operations, expected one at most`);
  const { mean, std, fill } = found[0] ?? { mean: [0, 0, 0], std: [1, 1, 1], fill: [0, 0, 0] };
  return Float32Array.from([...mean, ...std, ...fill]);
}

/** Whether a list of operations asks for a filter over the footprint when shrinking. */
export function antialiasOf(preprocessing: readonly PreprocessOp[]): boolean {
  return preprocessing.some((op) => op instanceof Resize && op.antialias);
}

/** The operations that evaluation and prediction share with training: all that are not random. */
export function withoutAugmentation(preprocessing: readonly PreprocessOp[]): PreprocessOp[] {
  return preprocessing.filter((op) => !op.random);
}

/** The operations of a list of toJSON results, as out of a model file. An unknown name is an error. */
export function parsePreprocessing(json: readonly PreprocessJson[]): PreprocessOp[] {
  return json.map(({ name, ...options }, i) => {
    switch (name) {
      case "resize":
        return new Resize(options);
      case "horizontalFlip":
        return new HorizontalFlip(options.p as number);
      case "verticalFlip":
        return new VerticalFlip(options.p as number);
      case "scaleJitter":
        return new ScaleJitter(options.min as number, options.max as number, options);
      case "randomCrop":
        return new RandomCrop(options);
      case "normalize":
        return new Normalize(options);
    }
    return check(false, `preprocessing[${i}]`, () => `unknown operation ${JSON.stringify(name)}`) as never;
  });
}

import { check } from "../native/error";
import {
  type Bounds,
  type Composition,
  type CompositionLayer,
  concatenate,
  cover,
  imageLayer,
  intersect,
  mapBounds,
  move,
  SAME_COLORS,
  type SourceImage,
  withBoxes,
} from "./composition";
import { type ImagePlan, place } from "./image-plan";
import type { CounterRandom } from "./random";
import { type PreprocessJson, PreprocessOp } from "./transforms";

/** What an operation that draws on other images may ask for. */
export interface OtherImages {
  /** Any image of the data set, as it is. */
  image(random: CounterRandom): SourceImage;
  /** Any image of the data set, with the operations done to it that come before this one. */
  prepared(random: CounterRandom): Composition;
}

/**
 * An operation that changes colours, turns, or draws on several images: what ImagePlan cannot say. It makes a new Composition
 * and is run by an Augmentation; all that is random about it is drawn from `random`.
 */
export abstract class AugmentOp extends PreprocessOp {
  override readonly random: boolean = true;
  /** Whether it makes pictures that no camera takes, which the last epochs of training are often spared. */
  readonly composes: boolean = false;

  abstract compose(composition: Composition, random: CounterRandom, others: OtherImages): Composition;

  /** The most boxes that a composition has after it, where one has `boxes` at most before. */
  room(boxes: number): number {
    return boxes;
  }

  override apply(plan: ImagePlan): ImagePlan {
    return check(
      plan === null,
      this.name,
      () => "it draws more than crops and flips of one image; it needs an Augmentation",
    ) as never;
  }
}

function checkBetween(op: string, values: Record<string, number>, low: number, high: number): void {
  for (const [name, value] of Object.entries(values)) {
    check(value >= low && value <= high, op, () => `${name}: expected a number from ${low} to ${high}, got ${value}`);
  }
}

const symmetric = (random: CounterRandom, size: number): number => random.uniform(-size, size);

/** Image layers with other colours; cut-outs keep theirs. */
function recolored(composition: Composition, change: (layer: CompositionLayer) => CompositionLayer): Composition {
  return { ...composition, layers: composition.layers.map((layer) => (layer.source ? change(layer) : layer)) };
}

function changeHsv(composition: Composition, hue: number, saturation: number, value: number): Composition {
  return recolored(composition, (layer) => {
    const turns = layer.hsv[0] + hue;
    return { ...layer, hsv: [turns - Math.round(turns), layer.hsv[1] * saturation, layer.hsv[2] * value] };
  });
}

/** Applies a matrix (3, 4) after the one that is there. */
function changeMatrix(composition: Composition, matrix: readonly number[], op: string): Composition {
  return recolored(composition, (layer) => {
    const [hue, saturation, value] = layer.hsv;
    check(hue === 0 && saturation === 1 && value === 1, op, () => "it must come before changes of hue and saturation");
    if (layer.matrix === SAME_COLORS) return { ...layer, matrix };
    const rows = [0, 1, 2].flatMap((row) =>
      [0, 1, 2, 3].map((column) => {
        const sum = [0, 1, 2].reduce((s, k) => s + (matrix[4 * row + k] ?? 0) * (layer.matrix[4 * k + column] ?? 0), 0);
        return column === 3 ? sum + (matrix[4 * row + 3] ?? 0) : sum;
      }),
    );
    return { ...layer, matrix: rows };
  });
}

export interface HsvJitterOptions {
  /** Most turns by which the hue shifts either way. */
  hue?: number;
  /** Most that the factors of saturation and value differ from 1. */
  saturation?: number;
  value?: number;
}

/** Shifts the hue and scales saturation and value, each uniformly around no change (YOLOv5 and later: augment_hsv). */
export class HsvJitter extends AugmentOp {
  override readonly name = "hsvJitter";
  readonly hue: number;
  readonly saturation: number;
  readonly value: number;

  constructor({ hue = 0.015, saturation = 0.7, value = 0.4 }: HsvJitterOptions = {}) {
    super();
    checkBetween("HsvJitter", { hue }, 0, 0.5);
    checkBetween("HsvJitter", { saturation, value }, 0, 1);
    this.hue = hue;
    this.saturation = saturation;
    this.value = value;
  }

  override compose(composition: Composition, random: CounterRandom): Composition {
    const hue = symmetric(random, this.hue);
    const saturation = 1 + symmetric(random, this.saturation);
    return changeHsv(composition, hue, saturation, 1 + symmetric(random, this.value));
  }

  override toJSON(): PreprocessJson {
    return { name: this.name, hue: this.hue, saturation: this.saturation, value: this.value };
  }
}

export interface PhotometricDistortOptions {
  /** Most levels of 255 that are added or taken away. */
  brightness?: number;
  /** Most that the factors of contrast (about middle grey) and saturation differ from 1. */
  contrast?: number;
  saturation?: number;
  /** Most turns by which the hue shifts either way. */
  hue?: number;
  /** Each of the changes happens with this probability. */
  p?: number;
}

/**
 * Brightness, contrast, saturation, hue and the order of the channels, each with probability p (Liu et al. 2016, "SSD",
 * section 3.6, after Howard 2013). The channels change places first, and contrast is about middle grey, not the image's mean.
 */
export class PhotometricDistort extends AugmentOp {
  override readonly name = "photometricDistort";
  readonly brightness: number;
  readonly contrast: number;
  readonly saturation: number;
  readonly hue: number;
  readonly p: number;

  constructor(options: PhotometricDistortOptions = {}) {
    super();
    const { brightness = 32, contrast = 0.5, saturation = 0.5, hue = 0.05, p = 0.5 } = options;
    checkBetween("PhotometricDistort", { brightness }, 0, 255);
    checkBetween("PhotometricDistort", { contrast, saturation, p }, 0, 1);
    checkBetween("PhotometricDistort", { hue }, 0, 0.5);
    this.brightness = brightness;
    this.contrast = contrast;
    this.saturation = saturation;
    this.hue = hue;
    this.p = p;
  }

  override compose(composition: Composition, random: CounterRandom): Composition {
    const { p } = this;
    const draw = (size: number): number => {
      const happens = random.chance(p);
      const value = symmetric(random, size);
      return happens ? value : 0;
    };
    const brightness = draw(this.brightness);
    const contrast = 1 + draw(this.contrast);
    const saturation = 1 + draw(this.saturation);
    const hue = draw(this.hue);
    const swaps = random.chance(p);
    const order = channelOrders[random.integer(channelOrders.length)] as readonly number[];
    const shift = contrast * (brightness - 127.5) + 127.5;
    const matrix = [0, 1, 2].flatMap((row) => {
      const from = swaps ? order[row] : row;
      return [0, 1, 2, 3].map((column) => (column === 3 ? shift : column === from ? contrast : 0));
    });
    return changeHsv(changeMatrix(composition, matrix, this.name), hue, saturation, 1);
  }

  override toJSON(): PreprocessJson {
    const { name, brightness, contrast, saturation, hue, p } = this;
    return { name, brightness, contrast, saturation, hue, p };
  }
}

const channelOrders = [
  [0, 1, 2],
  [0, 2, 1],
  [1, 0, 2],
  [1, 2, 0],
  [2, 0, 1],
  [2, 1, 0],
] as const;

export interface ZoomOutOptions {
  /** The canvas's sides become up to so many times as long. */
  most?: number;
  p?: number;
}

/** Puts the image at a random place on a larger canvas (Liu et al. 2016, "SSD", section 3.6), before Resize. */
export class ZoomOut extends PreprocessOp {
  override readonly name = "zoomOut";
  override readonly random = true;
  readonly most: number;
  readonly p: number;

  constructor({ most = 4, p = 0.5 }: ZoomOutOptions = {}) {
    super();
    checkBetween("ZoomOut", { most }, 1, 100);
    checkBetween("ZoomOut", { p }, 0, 1);
    this.most = most;
    this.p = p;
  }

  override apply(plan: ImagePlan, random: CounterRandom): ImagePlan {
    if (!random.chance(this.p)) return plan;
    const scale = random.uniform(1, this.most);
    const [canvasWidth, canvasHeight] = [Math.ceil(plan.canvasWidth * scale), Math.ceil(plan.canvasHeight * scale)];
    const shiftX = Math.floor(random.next() * (canvasWidth - plan.canvasWidth + 1));
    const shiftY = Math.floor(random.next() * (canvasHeight - plan.canvasHeight + 1));
    return place(plan, { scaleX: 1, scaleY: 1, shiftX, shiftY, canvasWidth, canvasHeight }, 0);
  }

  override toJSON(): PreprocessJson {
    return { name: this.name, most: this.most, p: this.p };
  }
}

export interface RandomAffineOptions {
  /** Most degrees of rotation either way. */
  degrees?: number;
  /** Most shift, as a part of the network input's sides. */
  translate?: number;
  /** The scale is uniform in 1 - scale to 1 + scale. */
  scale?: number;
  /** Most degrees of shear either way, along each axis. */
  shear?: number;
  /** Boxes of which less than this part stays visible are dropped. */
  minVisible?: number;
}

/**
 * Turns, scales, shears and shifts around the middle. The canvas becomes the network input: of a larger one, as Mosaic makes
 * it, the middle is what remains (YOLOv5 and later: random_perspective, without perspective).
 */
export class RandomAffine extends AugmentOp {
  override readonly name = "randomAffine";
  readonly degrees: number;
  readonly translate: number;
  readonly scale: number;
  readonly shear: number;
  readonly minVisible: number;

  constructor({ degrees = 0, translate = 0.1, scale = 0.5, shear = 0, minVisible = 0.1 }: RandomAffineOptions = {}) {
    super();
    checkBetween("RandomAffine", { degrees }, 0, 180);
    checkBetween("RandomAffine", { translate, minVisible }, 0, 1);
    checkBetween("RandomAffine", { scale }, 0, 0.99);
    checkBetween("RandomAffine", { shear }, 0, 60);
    this.degrees = degrees;
    this.translate = translate;
    this.scale = scale;
    this.shear = shear;
    this.minVisible = minVisible;
  }

  override compose(composition: Composition, random: CounterRandom): Composition {
    const { width, height, outputWidth, outputHeight } = composition;
    const radians = Math.PI / 180;
    const angle = symmetric(random, this.degrees) * radians;
    const scale = 1 + symmetric(random, this.scale);
    const shearX = Math.tan(symmetric(random, this.shear) * radians);
    const shearY = Math.tan(symmetric(random, this.shear) * radians);
    const x = (0.5 + symmetric(random, this.translate)) * outputWidth;
    const y = (0.5 + symmetric(random, this.translate)) * outputHeight;
    // A sine of -0 would not matter, but one of 1e-17 would make the map one that turns.
    const [cos, sin] = angle === 0 ? [scale, 0] : [Math.cos(angle) * scale, Math.sin(angle) * scale];
    const sheared = concatenate([1, shearX, 0, shearY, 1, 0], [cos, -sin, 0, sin, cos, 0]);
    const map = concatenate([1, 0, x, 0, 1, y], concatenate(sheared, [1, 0, -width / 2, 0, 1, -height / 2]));
    return move(composition, map, outputWidth, outputHeight, this.minVisible);
  }

  override toJSON(): PreprocessJson {
    const { name, degrees, translate, scale, shear, minVisible } = this;
    return { name, degrees, translate, scale, shear, minVisible };
  }
}

/** The probability of an operation that happens or does not. */
export interface ProbabilityOption {
  p?: number;
}

/**
 * Four images around a random point of a canvas of twice the network input's size, each as large as the operations before
 * (Resize above all) made it, without their fill; RandomAffine or RandomCrop and Resize must follow (Bochkovskiy et al. 2020,
 * "YOLOv4").
 */
export class Mosaic extends AugmentOp {
  override readonly name = "mosaic";
  override readonly composes = true;
  readonly p: number;

  constructor({ p = 1 }: ProbabilityOption = {}) {
    super();
    checkBetween("Mosaic", { p }, 0, 1);
    this.p = p;
  }

  override compose(composition: Composition, random: CounterRandom, others: OtherImages): Composition {
    if (!random.chance(this.p)) return composition;
    const { outputWidth, outputHeight } = composition;
    const [width, height] = [2 * outputWidth, 2 * outputHeight];
    const x = Math.round(random.uniform(0.5, 1.5) * outputWidth);
    const y = Math.round(random.uniform(0.5, 1.5) * outputHeight);
    const tiles = [0, 1, 2, 3].map((corner) => {
      const tile = corner === 0 ? composition : others.prepared(random);
      const { content } = tile;
      // Left and upper tiles end at the point, the others begin there.
      const shiftX = corner % 2 === 0 ? x - (content.x + content.width) : x - content.x;
      const shiftY = corner < 2 ? y - (content.y + content.height) : y - content.y;
      return move(tile, [1, 0, shiftX, 0, 1, shiftY], width, height, 0.1);
    });
    return {
      ...composition,
      width,
      height,
      content: { x: 0, y: 0, width, height },
      layers: tiles.flatMap(({ layers }) => layers),
      boxes: Float64Array.from(tiles.flatMap(({ boxes }) => [...boxes])),
      labels: Int32Array.from(tiles.flatMap(({ labels }) => [...labels])),
    };
  }

  override room(boxes: number): number {
    return 4 * boxes;
  }

  override toJSON(): PreprocessJson {
    return { name: this.name, p: this.p };
  }
}

export interface MixUpOptions extends ProbabilityOption {
  /** Both parameters of the beta distribution that the weight comes from: large ones keep it near a half. */
  alpha?: number;
}

/** Mixes the image with another one, prepared as this one was, and trains the boxes of both (Zhang et al. 2019). */
export class MixUp extends AugmentOp {
  override readonly name = "mixUp";
  override readonly composes = true;
  readonly p: number;
  readonly alpha: number;

  constructor({ p = 0.15, alpha = 32 }: MixUpOptions = {}) {
    super();
    checkBetween("MixUp", { p }, 0, 1);
    checkBetween("MixUp", { alpha }, 1, 1e6);
    this.p = p;
    this.alpha = alpha;
  }

  override compose(composition: Composition, random: CounterRandom, others: OtherImages): Composition {
    if (!random.chance(this.p)) return composition;
    const weight = Math.min(Math.max(beta(random, this.alpha), 1e-3), 1);
    const other = others.prepared(random);
    check(
      other.width === composition.width && other.height === composition.height,
      this.name,
      () =>
        `canvases of ${composition.width}x${composition.height} and ${other.width}x${other.height} cannot be mixed; ` +
        "MixUp comes after Resize or RandomAffine",
    );
    const mixed = other.layers.map((layer, i) => (i === 0 ? { ...layer, weight } : layer));
    const whole = { ...composition, layers: [...composition.layers, ...mixed] };
    return withBoxes(whole, other.boxes, other.labels);
  }

  override room(boxes: number): number {
    return 2 * boxes;
  }

  override toJSON(): PreprocessJson {
    return { name: this.name, p: this.p, alpha: this.alpha };
  }
}

/** A number of the beta distribution with both parameters `alpha` >= 1. */
function beta(random: CounterRandom, alpha: number): number {
  const a = gamma(random, alpha);
  return a / (a + gamma(random, alpha));
}

/** A number of the gamma distribution, shape >= 1 (Marsaglia and Tsang 2000). */
function gamma(random: CounterRandom, shape: number): number {
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const x = random.normal();
    const v = (1 + c * x) ** 3;
    if (v > 0 && Math.log(1 - random.next()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v;
  }
}

export interface CopyPasteOptions extends ProbabilityOption {
  /** Most boxes that are pasted. */
  most?: number;
  /** Sides of pasted boxes are scaled by a factor between these, log-uniformly. */
  minScale?: number;
  maxScale?: number;
  /** Boxes of which less than this part stays uncovered are dropped. */
  minVisible?: number;
}

/**
 * Pastes boxes of another image, with what they show, at random places (Ghiasi et al. 2021, "Simple Copy-Paste", with boxes
 * in place of masks). The canvas must be the network input or the image.
 */
export class CopyPaste extends AugmentOp {
  override readonly name = "copyPaste";
  override readonly composes = true;
  readonly p: number;
  readonly most: number;
  readonly minScale: number;
  readonly maxScale: number;
  readonly minVisible: number;

  constructor({ p = 0.3, most = 3, minScale = 0.5, maxScale = 1.5, minVisible = 0.4 }: CopyPasteOptions = {}) {
    super();
    checkBetween("CopyPaste", { p, minVisible }, 0, 1);
    checkBetween("CopyPaste", { minScale, maxScale }, 0.01, 100);
    check(minScale <= maxScale, this.name, () => `minScale ${minScale} is larger than maxScale ${maxScale}`);
    check(Number.isInteger(most) && most > 0 && most <= 16, this.name, () => `most: expected 1 to 16, got ${most}`);
    this.p = p;
    this.most = most;
    this.minScale = minScale;
    this.maxScale = maxScale;
    this.minVisible = minVisible;
  }

  override compose(composition: Composition, random: CounterRandom, others: OtherImages): Composition {
    if (!random.chance(this.p)) return composition;
    const other = others.image(random);
    const count = Math.min(other.labels.length, 1 + random.integer(this.most));
    // As large as the other image would be on this canvas.
    const fit = Math.min(composition.width / other.width, composition.height / other.height);
    let result = composition;
    const chosen = new Set<number>();
    while (chosen.size < count) chosen.add(random.integer(other.labels.length));
    for (const i of chosen) {
      const box = [...other.boxes.subarray(4 * i, 4 * i + 4)] as unknown as Bounds;
      const scale = fit * random.logUniform(this.minScale, this.maxScale);
      const width = (box[2] - box[0]) * scale;
      const height = (box[3] - box[1]) * scale;
      const x = random.next() * (composition.width - width);
      const y = random.next() * (composition.height - height);
      if (width > composition.width || height > composition.height || width < 1 || height < 1) continue;
      const map = [scale, 0, x - box[0] * scale, 0, scale, y - box[1] * scale] as const;
      const canvas: Bounds = [0, 0, composition.width, composition.height];
      const over = intersect(mapBounds(map, box), canvas);
      result = cover(result, [imageLayer(other, map, box, over)], over, this.minVisible);
      result = withBoxes(result, over, [other.labels[i] as number]);
    }
    return result;
  }

  override room(boxes: number): number {
    return boxes + this.most;
  }

  override toJSON(): PreprocessJson {
    const { name, p, most, minScale, maxScale, minVisible } = this;
    return { name, p, most, minScale, maxScale, minVisible };
  }
}

export interface CutoutOptions extends ProbabilityOption {
  holes?: number;
  /** A hole's sides are between these parts of the canvas's. */
  minSize?: number;
  maxSize?: number;
  /** 0 to 255, red, green and blue. */
  color?: readonly [number, number, number];
  /** Boxes of which less than this part stays uncovered are dropped. */
  minVisible?: number;
}

/** Paints rectangles over the image (DeVries and Taylor 2017). Turning must come before. */
export class Cutout extends AugmentOp {
  override readonly name = "cutout";
  readonly p: number;
  readonly holes: number;
  readonly minSize: number;
  readonly maxSize: number;
  readonly color: readonly [number, number, number];
  readonly minVisible: number;

  constructor(options: CutoutOptions = {}) {
    super();
    const { p = 0.5, holes = 1, minSize = 0.05, maxSize = 0.25, color = [114, 114, 114], minVisible = 0.4 } = options;
    checkBetween("Cutout", { p, minSize, maxSize, minVisible }, 0, 1);
    check(minSize <= maxSize, this.name, () => `minSize ${minSize} is larger than maxSize ${maxSize}`);
    check(
      Number.isInteger(holes) && holes > 0 && holes <= 32,
      this.name,
      () => `holes: expected 1 to 32, got ${holes}`,
    );
    check(color.length === 3, this.name, () => `color: expected three numbers, got [${color}]`);
    checkBetween("Cutout color", { red: color[0], green: color[1], blue: color[2] }, 0, 255);
    this.p = p;
    this.holes = holes;
    this.minSize = minSize;
    this.maxSize = maxSize;
    this.color = color;
    this.minVisible = minVisible;
  }

  override compose(composition: Composition, random: CounterRandom): Composition {
    if (!random.chance(this.p)) return composition;
    let result = composition;
    for (let hole = 0; hole < this.holes; hole++) {
      const width = random.uniform(this.minSize, this.maxSize) * composition.width;
      const height = random.uniform(this.minSize, this.maxSize) * composition.height;
      const x = random.next() * (composition.width - width);
      const y = random.next() * (composition.height - height);
      const over: Bounds = [x, y, x + width, y + height];
      const nothing = { id: 0, width: 0, height: 0 };
      const painted = {
        ...imageLayer(nothing, [1, 0, 0, 0, 1, 0], [0, 0, 0, 0], over),
        source: null,
        color: this.color,
      };
      result = cover(result, [painted], over, this.minVisible);
    }
    return result;
  }

  override toJSON(): PreprocessJson {
    const { name, p, holes, minSize, maxSize, color, minVisible } = this;
    return { name, p, holes, minSize, maxSize, color, minVisible };
  }
}

import { check, ErrorCode } from "../native/error";
import { type BoxRule, type ImagePlan, mappingOf, type Rect, startPlan } from "./image-plan";
import type { CounterRandom } from "./random";
import type { PreprocessOp } from "./transforms";

/** x becomes a x + b y + c, y becomes d x + e y + f. */
export type Affine = readonly [a: number, b: number, c: number, d: number, e: number, f: number];

/** Left, top, right and bottom; right and bottom exclusive. */
export type Bounds = readonly [x1: number, y1: number, x2: number, y2: number];

/** An image that compositions draw on: its size and its boxes, (n, 4) in its pixels. */
export interface SourceImage {
  /** Names the image to whoever draws the composition, and keys its random numbers: an integer >= 0. */
  readonly id: number;
  readonly width: number;
  readonly height: number;
  readonly boxes: Float64Array;
  /** (n): class index of each box. */
  readonly labels: Int32Array;
}

/** One layer of dlfs_augment (dlfs.h), while it is still being moved about. */
export interface CompositionLayer {
  /** The image that is drawn; null: `color` is. */
  readonly source: Pick<SourceImage, "id" | "width" | "height"> | null;
  /** Source pixels to canvas pixels. */
  readonly map: Affine;
  /** What is drawn of the source, in its pixels. */
  readonly crop: Bounds;
  /** What is drawn on of the canvas, in its pixels. */
  readonly region: Bounds;
  /** (3, 4), in levels of 255. */
  readonly matrix: readonly number[];
  /** The hue's shift in turns, factors of saturation and value. They come after the matrix. */
  readonly hsv: readonly [hue: number, saturation: number, value: number];
  /** 0 to 255. */
  readonly color: readonly [number, number, number];
  readonly opacity: number;
  /** Above 0: a new picture begins, which makes up this share of the whole. */
  readonly weight: number;
}

/**
 * How several images become one network input: layers drawn in order on the fill colour of a canvas, with the boxes that are
 * seen there. Every operation makes a new composition; no pixel is touched until the last is drawn (drawCompositions).
 */
export interface Composition {
  /** Size of the network input that the composition is to end with. */
  readonly outputWidth: number;
  readonly outputHeight: number;
  /** Size of the canvas now. */
  readonly width: number;
  readonly height: number;
  /** The part of the canvas that is not fill alone. */
  readonly content: Rect;
  readonly layers: readonly CompositionLayer[];
  /** (n, 4): x1, y1, x2, y2 in canvas pixels, inside the canvas. */
  readonly boxes: Float64Array;
  readonly labels: Int32Array;
}

export const SAME_COLORS: readonly number[] = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0];

/** The composition that every image starts with: all of it, on a canvas of its own size. */
export function startComposition(image: SourceImage, outputWidth: number, outputHeight: number): Composition {
  const { id, width, height, boxes, labels } = image;
  return {
    outputWidth,
    outputHeight,
    width,
    height,
    content: { x: 0, y: 0, width, height },
    layers: [imageLayer({ id, width, height }, [1, 0, 0, 0, 1, 0], [0, 0, width, height], [0, 0, width, height])],
    boxes,
    labels,
  };
}

/** An opaque layer of an image in its own colours. */
export function imageLayer(
  source: Pick<SourceImage, "id" | "width" | "height">,
  map: Affine,
  crop: Bounds,
  region: Bounds,
): CompositionLayer {
  const rest = { matrix: SAME_COLORS, hsv: [0, 1, 1], color: [0, 0, 0], opacity: 1, weight: 0 } as const;
  return { source, map, crop, region, ...rest };
}

/** First `inner`, then `outer`. */
export function concatenate(outer: Affine, inner: Affine): Affine {
  const [a, b, c, d, e, f] = outer;
  const [g, h, i, j, k, l] = inner;
  return [a * g + b * j, a * h + b * k, a * i + b * l + c, d * g + e * j, d * h + e * k, d * i + e * l + f];
}

export function inverse([a, b, c, d, e, f]: Affine): Affine {
  const determinant = a * e - b * d;
  check(Math.abs(determinant) > 1e-12, "composition", () => `the map ${[a, b, c, d, e, f]} cannot be inverted`);
  const [p, q, r, s] = [e / determinant, -b / determinant, -d / determinant, a / determinant];
  return [p, q, -p * c - q * f, r, s, -r * c - s * f];
}

/** Whether rectangles stay rectangles. */
const isAligned = ([, b, , d]: Affine): boolean => b === 0 && d === 0;

/** The smallest rectangle around what a map makes of a rectangle. */
export function mapBounds([a, b, c, d, e, f]: Affine, [x1, y1, x2, y2]: Bounds): Bounds {
  // Each product is least, and largest, at one of the two sides.
  return [
    Math.min(a * x1, a * x2) + Math.min(b * y1, b * y2) + c,
    Math.min(d * x1, d * x2) + Math.min(e * y1, e * y2) + f,
    Math.max(a * x1, a * x2) + Math.max(b * y1, b * y2) + c,
    Math.max(d * x1, d * x2) + Math.max(e * y1, e * y2) + f,
  ];
}

/** What two rectangles share; of no size where that is nothing. */
export function intersect([a, b, c, d]: Bounds, [e, f, g, h]: Bounds): Bounds {
  const [x, y] = [Math.max(a, e), Math.max(b, f)];
  return [x, y, Math.max(x, Math.min(c, g)), Math.max(y, Math.min(d, h))];
}

const areaOf = ([x1, y1, x2, y2]: Bounds): number => (x2 - x1) * (y2 - y1);

/** A layer on the canvas that `map` leads to, seen inside `visible` alone. */
function moveLayer(layer: CompositionLayer, map: Affine, visible: Bounds): CompositionLayer {
  if (isAligned(map)) {
    const region = intersect(mapBounds(map, layer.region), visible);
    return { ...layer, map: concatenate(map, layer.map), region };
  }
  check(
    layer.source !== null && isAligned(layer.map),
    "composition",
    () =>
      `a canvas ${layer.source ? "that was turned or sheared" : "with a cut-out"} cannot be turned or sheared (again)`,
  );
  // The edge of the old canvas turns as well: it is kept as an edge of the source.
  const crop = intersect(layer.crop, mapBounds(inverse(layer.map), layer.region));
  return { ...layer, map: concatenate(map, layer.map), crop, region: visible };
}

interface Boxes {
  boxes: Float64Array;
  labels: Int32Array;
}

const boxAt = (boxes: Float64Array, i: number): Bounds => [
  boxes[4 * i] as number,
  boxes[4 * i + 1] as number,
  boxes[4 * i + 2] as number,
  boxes[4 * i + 3] as number,
];

/** Moves boxes, clips them and drops those of which the rule leaves too little. */
function moveBoxes({ boxes, labels }: Boxes, map: Affine, visible: Bounds, rule: BoxRule): Boxes {
  const kept = new Float64Array(boxes.length);
  const keptLabels = new Int32Array(labels.length);
  let count = 0;
  for (let i = 0; i < labels.length; i++) {
    const moved = mapBounds(map, boxAt(boxes, i));
    const clipped = intersect(moved, visible);
    const area = areaOf(clipped);
    if (!(area > 0)) continue;
    if (rule === "center") {
      const [x, y] = [(moved[0] + moved[2]) / 2, (moved[1] + moved[3]) / 2];
      if (x < visible[0] || x >= visible[2] || y < visible[1] || y >= visible[3]) continue;
    } else if (area < rule * areaOf(moved)) {
      continue;
    }
    kept.set(clipped, 4 * count);
    keptLabels[count++] = labels[i] as number;
  }
  return { boxes: kept.slice(0, 4 * count), labels: keptLabels.slice(0, count) };
}

/**
 * Moves a composition to a new canvas; what reaches outside is cut off. A box becomes the smallest rectangle around what the
 * map makes of it, is clipped, and dropped where less than `rule` of its area remains (or, by "center", its centre is lost).
 * A map that turns or shears may come once, before cut-outs.
 */
export function move(composition: Composition, map: Affine, width: number, height: number, rule: BoxRule): Composition {
  const canvas: Bounds = [0, 0, width, height];
  const { x, y, width: w, height: h } = composition.content;
  const content = intersect(mapBounds(map, [x, y, x + w, y + h]), canvas);
  return {
    ...composition,
    width,
    height,
    content: { x: content[0], y: content[1], width: content[2] - content[0], height: content[3] - content[1] },
    layers: composition.layers.map((layer) => moveLayer(layer, map, canvas)),
    ...moveBoxes(composition, map, canvas, rule),
  };
}

/** Applies an operation that maps geometry alone (Resize, a flip, RandomCrop, ...) to a whole composition. */
export function applyPlanned(composition: Composition, op: PreprocessOp, random: CounterRandom): Composition {
  const { width, height, outputWidth, outputHeight, content, boxes, labels } = composition;
  const start = startPlan(width, height, outputWidth, outputHeight, boxes, labels);
  const plan: ImagePlan = op.apply({ ...start, crop: content, target: content }, random);
  const { scaleX, scaleY, offsetX, offsetY } = mappingOf(plan);
  const { target } = plan;
  const visible: Bounds = [target.x, target.y, target.x + target.width, target.y + target.height];
  const map: Affine = [scaleX, 0, offsetX, 0, scaleY, offsetY];
  return {
    ...composition,
    width: plan.canvasWidth,
    height: plan.canvasHeight,
    content: target,
    layers: composition.layers.map((layer) => moveLayer(layer, map, visible)),
    boxes: plan.boxes,
    labels: plan.labels,
  };
}

/** Draws further layers on top; boxes of which the rectangle `over` leaves less than `minVisible` to see are dropped. */
export function cover(
  composition: Composition,
  layers: readonly CompositionLayer[],
  over: Bounds,
  minVisible: number,
): Composition {
  const kept = [...composition.labels.keys()].filter((i) => {
    const box = boxAt(composition.boxes, i);
    return 1 - areaOf(intersect(box, over)) / areaOf(box) >= minVisible;
  });
  return {
    ...composition,
    layers: [...composition.layers, ...layers],
    boxes: Float64Array.from(kept.flatMap((i) => boxAt(composition.boxes, i))),
    labels: Int32Array.from(kept, (i) => composition.labels[i] as number),
  };
}

/** The composition with more boxes, in canvas pixels. */
export function withBoxes(composition: Composition, boxes: ArrayLike<number>, labels: ArrayLike<number>): Composition {
  return {
    ...composition,
    boxes: Float64Array.of(...composition.boxes, ...Array.from(boxes)),
    labels: Int32Array.of(...composition.labels, ...Array.from(labels)),
  };
}

/** Numbers per layer, and most layers per image: DLFS_LAYER_NUMBERS and DLFS_MAX_LAYERS in dlfs.h. */
export const LAYER_NUMBERS = 40;
export const MAX_LAYERS = 64;

/** The source of a layer as it lies in device memory: (height, width, 3) uint8 RGB, `pitch` bytes from row to row. */
export interface SourcePixels {
  address: number;
  pitch: number;
}

/**
 * The arguments `sources` and `layers` of dlfs_augment for a batch. `pixels` says where an image lies; null for one that could
 * not be decoded, whose layers are left out.
 */
export function packCompositions(
  compositions: readonly Composition[],
  pixels: (id: number) => SourcePixels | null,
  antialias: boolean,
): { sources: BigInt64Array; layers: Float64Array; count: number } {
  const addresses: number[] = [];
  const numbers: number[] = [];
  for (const [image, composition] of compositions.entries()) {
    const { width, height, outputWidth, outputHeight, layers } = composition;
    check(
      width === outputWidth && height === outputHeight,
      "composition",
      () =>
        `image ${image} ends with a canvas of ${width}x${height} (width x height), expected ${outputWidth}x${outputHeight}`,
      ErrorCode.shape,
    );
    check(
      layers.length <= MAX_LAYERS,
      "composition",
      () => `image ${image} has ${layers.length} layers, expected ${MAX_LAYERS} at most`,
    );
    for (const layer of layers) {
      const { source, map, crop, region, matrix, hsv, color, opacity, weight } = layer;
      const found = source && pixels(source.id);
      // One that is missing draws nothing, but may begin a picture.
      const drawn = source === null || found !== null;
      addresses.push(found?.address ?? 0);
      numbers.push(image, ...(source && found ? [source.height, source.width, found.pitch] : [0, 0, 0]));
      numbers.push(...inverse(map), ...crop);
      // A pixel belongs to the region that its centre lies in.
      for (const [k, edge] of region.entries()) {
        const whole = Math.min(Math.max(Math.ceil(edge - 0.5), 0), k % 2 === 0 ? width : height);
        numbers.push(drawn ? whole : 0);
      }
      numbers.push(...matrix, ...hsv, ...color, opacity, weight, antialias ? 1 : 0, 0);
    }
  }
  // Views that cross to native code are not empty.
  const count = addresses.length;
  const sources = BigInt64Array.from(count > 0 ? addresses : [0], BigInt);
  return { sources, layers: count > 0 ? Float64Array.from(numbers) : new Float64Array(LAYER_NUMBERS), count };
}

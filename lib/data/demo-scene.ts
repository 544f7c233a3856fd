import { SHAPES, type Shape } from "./demo-shapes";
import type { CounterRandom } from "./random";

/** An object of a scene: its class as a place in SHAPES, and the box around its visible pixels. */
export interface SceneObject {
  shape: number;
  x: number;
  y: number;
  width: number;
  height: number;
  /** Visible pixels. */
  area: number;
}

export interface Scene {
  /** (size, size, 3), RGB. */
  pixels: Uint8Array;
  objects: SceneObject[];
}

/** Radii as fractions of the image: the largest object is three times the smallest. */
const MIN_RADIUS = 0.08;
const MAX_RADIUS = 0.25;
const MAX_OBJECTS = 8;
/** No object is drawn where less than this fraction of it, or of one drawn before, would be seen. */
const MIN_VISIBLE = 0.6;
const TRIALS = 12;
const NOBODY = -1;

type Color = readonly [r: number, g: number, b: number];

/** A drawing in progress. */
interface Canvas {
  size: number;
  /** (size, size, 3), 0 to 255. */
  rgb: Float32Array;
  /** (size, size): the object seen at a pixel, or NOBODY. */
  owner: Int16Array;
}

/** Draws one image: textured background, stray lines, 1 to 8 objects that may overlap, noise. */
export function drawScene(size: number, random: CounterRandom): Scene {
  const canvas: Canvas = {
    size,
    rgb: new Float32Array(3 * size * size),
    owner: new Int16Array(size * size).fill(NOBODY),
  };
  drawBackground(canvas, random);
  for (let lines = random.integer(5); lines > 0; lines--) drawLine(canvas, random);

  const wanted = 1 + random.integer(MAX_OBJECTS);
  const placed: PlacedObject[] = [];
  for (let i = 0; i < wanted; i++) {
    const object = placeObject(canvas, random, placed);
    if (!object) continue;
    paint(canvas, object, placed.length, random);
    placed.push(object);
  }
  return { pixels: finish(canvas, random), objects: visibleBoxes(canvas, placed) };
}

function randomColor(random: CounterRandom): Color {
  return [random.uniform(15, 240), random.uniform(15, 240), random.uniform(15, 240)];
}

/** How different two colours look: weighted by the eye's sensitivity, 0 to about 255. */
function contrast(a: Color, b: Color): number {
  const [r, g, bl] = [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
  return Math.sqrt(0.3 * r * r + 0.5 * g * g + 0.2 * bl * bl);
}

function mix(a: Color, b: Color, t: number): Color {
  return [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t];
}

/** Value noise in 0 to 1: a grid of random values, smoothly interpolated. */
function valueNoise(size: number, cells: number, random: CounterRandom): Float32Array {
  const side = cells + 2;
  const grid = Float32Array.from({ length: side * side }, () => random.next());
  const out = new Float32Array(size * size);
  for (let y = 0; y < size; y++) {
    const v = ((y + 0.5) * cells) / size;
    const row = Math.floor(v);
    const ty = smooth(v - row);
    for (let x = 0; x < size; x++) {
      const u = ((x + 0.5) * cells) / size;
      const column = Math.floor(u);
      const tx = smooth(u - column);
      const at = row * side + column;
      const top = (grid[at] as number) * (1 - tx) + (grid[at + 1] as number) * tx;
      const bottom = (grid[at + side] as number) * (1 - tx) + (grid[at + side + 1] as number) * tx;
      out[y * size + x] = top * (1 - ty) + bottom * ty;
    }
  }
  return out;
}

function smooth(t: number): number {
  return t * t * (3 - 2 * t);
}

/** Two colours, mixed by a gradient, stripes and value noise of two scales, each with a weight of its own. */
function drawBackground({ size, rgb }: Canvas, random: CounterRandom): void {
  const first = randomColor(random);
  // Shades of one hue more often than two unrelated colours: the objects stand out by their shape.
  const other = random.chance(0.6) ? mix(first, randomColor(random), 0.35) : randomColor(random);
  const coarse = valueNoise(size, 3 + random.integer(4), random);
  const fine = valueNoise(size, 16 + random.integer(20), random);
  const angle = random.uniform(0, 2 * Math.PI);
  const gradientX = Math.cos(angle) / size;
  const gradientY = Math.sin(angle) / size;
  const stripes = random.chance(0.3) ? random.uniform(0.15, 0.4) : 0;
  const period = random.uniform(6, 30);
  const slope = random.uniform(0, Math.PI);
  const waveX = (2 * Math.PI * Math.cos(slope)) / period;
  const waveY = (2 * Math.PI * Math.sin(slope)) / period;
  const coarseWeight = random.uniform(0.2, 0.9);
  const fineWeight = random.uniform(0, 0.5);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const at = y * size + x;
      let t = 0.5 + (x - size / 2) * gradientX + (y - size / 2) * gradientY;
      t += coarseWeight * ((coarse[at] as number) - 0.5) + fineWeight * ((fine[at] as number) - 0.5);
      if (stripes > 0) t += stripes * Math.sin(x * waveX + y * waveY);
      t = Math.min(1, Math.max(0, t));
      rgb[3 * at] = first[0] + (other[0] - first[0]) * t;
      rgb[3 * at + 1] = first[1] + (other[1] - first[1]) * t;
      rgb[3 * at + 2] = first[2] + (other[2] - first[2]) * t;
    }
  }
}

/** A stray line that is no object. */
function drawLine(canvas: Canvas, random: CounterRandom): void {
  const { size } = canvas;
  const ax = random.uniform(0, size);
  const ay = random.uniform(0, size);
  const length = random.uniform(0.1, 0.6) * size;
  const angle = random.uniform(0, 2 * Math.PI);
  const stepX = Math.cos(angle);
  const stepY = Math.sin(angle);
  const half = random.uniform(0.4, 1.4);
  const color = randomColor(random);
  const x2 = ax + length * stepX;
  const y2 = ay + length * stepY;
  const right = Math.min(size - 1, Math.ceil(Math.max(ax, x2) + 2));
  const bottom = Math.min(size - 1, Math.ceil(Math.max(ay, y2) + 2));
  for (let y = Math.max(0, Math.floor(Math.min(ay, y2) - 2)); y <= bottom; y++) {
    for (let x = Math.max(0, Math.floor(Math.min(ax, x2) - 2)); x <= right; x++) {
      const dx = x + 0.5 - ax;
      const dy = y + 0.5 - ay;
      const along = Math.min(length, Math.max(0, dx * stepX + dy * stepY));
      const away = Math.hypot(dx - along * stepX, dy - along * stepY);
      blend(canvas.rgb, 3 * (y * size + x), color, 0.8 * Math.min(1, Math.max(0, half + 0.5 - away)));
    }
  }
}

function blend(rgb: Float32Array, at: number, [r, g, b]: Color, alpha: number): void {
  rgb[at] = (rgb[at] as number) * (1 - alpha) + r * alpha;
  rgb[at + 1] = (rgb[at + 1] as number) * (1 - alpha) + g * alpha;
  rgb[at + 2] = (rgb[at + 2] as number) * (1 - alpha) + b * alpha;
}

interface PlacedObject {
  shape: number;
  /** The window, in pixels, that the object lies in; it may reach outside the image. */
  left: number;
  top: number;
  width: number;
  height: number;
  /** (height, width): signed distance to the outline, in pixels. */
  distance: Float32Array;
  /** (height, width, 2): coordinates within the shape, about -1 to 1. */
  local: Float32Array;
  radius: number;
  /** Pixels of the whole object, and those that are seen. */
  pixels: number;
  visible: number;
}

/** An object at a place where enough of it and of all others is seen, or null where none is found. */
function placeObject(canvas: Canvas, random: CounterRandom, others: readonly PlacedObject[]): PlacedObject | null {
  const shape = random.integer(SHAPES.length);
  const radius = random.logUniform(MIN_RADIUS, MAX_RADIUS) * canvas.size;
  const object = rasterize(SHAPES[shape] as Shape, shape, radius, random);
  const reach = (object.width - 1) / 2;
  for (let trial = 0; trial < TRIALS; trial++) {
    object.left = Math.floor(random.uniform(0.4 * radius, canvas.size - 0.4 * radius)) - reach;
    object.top = Math.floor(random.uniform(0.4 * radius, canvas.size - 0.4 * radius)) - reach;
    object.visible = 0;
    const covered = others.map(() => 0);
    forEachPixel(canvas, object, (at) => {
      object.visible++;
      const owner = canvas.owner[at] as number;
      if (owner !== NOBODY) (covered[owner] as number)++;
    });
    const seen = others.every((other, i) => other.visible - (covered[i] as number) >= MIN_VISIBLE * other.pixels);
    if (seen && object.visible >= 0.75 * object.pixels) {
      for (const [i, other] of others.entries()) other.visible -= covered[i] as number;
      return object;
    }
  }
  return null;
}

/** An object of this radius in its window, which has no place in the image yet. */
function rasterize({ distance }: Shape, shape: number, radius: number, random: CounterRandom): PlacedObject {
  const angle = random.uniform(-0.35, 0.35);
  const stretch = random.logUniform(0.85, 1.18);
  const radiusX = radius * stretch;
  const radiusY = radius / stretch;
  const reach = Math.ceil(1.25 * Math.max(radiusX, radiusY)) + 1;
  const side = 2 * reach + 1;
  const centerX = reach + random.next();
  const centerY = reach + random.next();
  const object: PlacedObject = {
    shape,
    left: 0,
    top: 0,
    width: side,
    height: side,
    distance: new Float32Array(side * side),
    local: new Float32Array(2 * side * side),
    radius,
    pixels: 0,
    visible: 0,
  };
  const cos = Math.cos(angle);
  const sin = Math.sin(angle);
  const perUnit = Math.min(radiusX, radiusY);
  for (let row = 0, at = 0; row < side; row++) {
    const dy = row + 0.5 - centerY;
    for (let column = 0; column < side; column++, at++) {
      const dx = column + 0.5 - centerX;
      const u = (dx * cos + dy * sin) / radiusX;
      const v = (dy * cos - dx * sin) / radiusY;
      const away = distance(u, v) * perUnit;
      object.distance[at] = away;
      object.local[2 * at] = u;
      object.local[2 * at + 1] = v;
      if (away < 0) object.pixels++;
    }
  }
  return object;
}

/** Calls `visit(place in the image, place in the window)` for every pixel of the image whose centre is in the object. */
function forEachPixel(
  { size }: Canvas,
  { left, top, width, height, distance }: PlacedObject,
  visit: (at: number, local: number) => void,
  margin = 0,
): void {
  const bottom = Math.min(height, size - top);
  const right = Math.min(width, size - left);
  for (let row = Math.max(0, -top); row < bottom; row++) {
    for (let column = Math.max(0, -left); column < right; column++) {
      const local = row * width + column;
      if ((distance[local] as number) < margin) visit((top + row) * size + left + column, local);
    }
  }
}

type Fill = (u: number, v: number) => Color;

/** Draws an object in colours that differ from what is behind it; `number` becomes the owner of its pixels. */
function paint(canvas: Canvas, object: PlacedObject, number: number, random: CounterRandom): void {
  const { rgb, owner } = canvas;
  const behind = meanColor(canvas, object);
  const main = contrastingColor(behind, 55, random);
  const fill = randomFill(main, behind, random);
  const rim = random.chance(0.25) ? random.uniform(0.06, 0.14) * object.radius + 0.5 : 0;
  const rimColor: Color = random.chance(0.5) ? mix(main, [0, 0, 0], 0.65) : mix(main, [255, 255, 255], 0.65);
  forEachPixel(
    canvas,
    object,
    (at, local) => {
      const away = object.distance[local] as number;
      const color =
        away > -rim ? rimColor : fill(object.local[2 * local] as number, object.local[2 * local + 1] as number);
      blend(rgb, 3 * at, color, Math.min(1, 0.5 - away));
      if (away < 0) owner[at] = number;
    },
    0.5,
  );
}

function meanColor(canvas: Canvas, object: PlacedObject): Color {
  let [r, g, b] = [0, 0, 0];
  let count = 0;
  forEachPixel(canvas, object, (at) => {
    r += canvas.rgb[3 * at] as number;
    g += canvas.rgb[3 * at + 1] as number;
    b += canvas.rgb[3 * at + 2] as number;
    count++;
  });
  return [r / count, g / count, b / count];
}

/** A random colour at least this different from another one; the best of a few where none is. */
function contrastingColor(from: Color, least: number, random: CounterRandom): Color {
  let best = randomColor(random);
  for (let trial = 0; trial < 8 && contrast(best, from) < least; trial++) {
    const next = randomColor(random);
    if (contrast(next, from) > contrast(best, from)) best = next;
  }
  return best;
}

/** Plain, shaded, striped or dotted: no class has a pattern or a colour of its own. */
function randomFill(main: Color, behind: Color, random: CounterRandom): Fill {
  const mixed = mix(main, contrastingColor(behind, 40, random), random.uniform(0.3, 0.8));
  // A pattern must not let parts of the object vanish in what is behind it.
  const second = contrast(mixed, behind) >= 35 ? mixed : mix(main, mixed, 0.25);
  const angle = random.uniform(0, 2 * Math.PI);
  const cos = Math.cos(angle);
  const sin = Math.sin(angle);
  const frequency = random.uniform(5, 11);
  switch (random.integer(5)) {
    case 0:
      return () => main;
    case 1:
      return (u, v) => mix(main, second, Math.min(1, Math.max(0, 0.5 + 0.5 * (u * cos + v * sin))));
    case 2:
      return (u, v) => mix(main, second, Math.min(1, Math.hypot(u - 0.3 * cos, v - 0.3 * sin)));
    case 3:
      return (u, v) => (Math.sin(frequency * (u * cos + v * sin)) > 0 ? main : second);
    default:
      return (u, v) => (Math.sin(frequency * u) * Math.sin(frequency * v) > 0.35 ? second : main);
  }
}

/** Adds noise, rounds. */
function finish({ rgb }: Canvas, random: CounterRandom): Uint8Array {
  const strength = random.uniform(0, 14);
  const light = random.uniform(0.85, 1.1);
  const pixels = new Uint8ClampedArray(rgb.length); // rounds and clamps
  // A generator of its own (xorshift32, Marsaglia 2003) for the many numbers that noise takes.
  let state = random.bits() | 1;
  for (let i = 0; i < rgb.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    // The sum of two uniform numbers: a triangular distribution around 0.
    const noise = ((state & 0xffff) + (state >>> 16)) / 65536 - 1;
    pixels[i] = (rgb[i] as number) * light + 2 * strength * noise;
  }
  return new Uint8Array(pixels.buffer);
}

/** The boxes around what is seen of each object. */
function visibleBoxes({ size, owner }: Canvas, placed: readonly PlacedObject[]): SceneObject[] {
  const extents = placed.map(() => ({ left: size, top: size, right: 0, bottom: 0, area: 0 }));
  for (let y = 0, at = 0; y < size; y++) {
    for (let x = 0; x < size; x++, at++) {
      const extent = extents[owner[at] as number];
      if (!extent) continue;
      extent.left = Math.min(extent.left, x);
      extent.right = Math.max(extent.right, x + 1);
      extent.top = Math.min(extent.top, y);
      extent.bottom = Math.max(extent.bottom, y + 1);
      extent.area++;
    }
  }
  return placed.map(({ shape }, i) => {
    const { left, top, right, bottom, area } = extents[i] as (typeof extents)[number];
    return { shape, x: left, y: top, width: right - left, height: bottom - top, area };
  });
}

/**
 * A small rasteriser on RGB images: rectangles, text, labelled boxes, resizing. Whatever lies outside of the image is
 * cut off. Coordinates are pixels, x to the right, y down; fractions are rounded.
 */
import { check } from "../native/error";
import type { Rgb } from "./color";
import { textColorOn } from "./color";
import { charactersOf, GLYPH_HEIGHT, GLYPH_WIDTH, glyphOf } from "./font";

/** (height, width, 3) bytes, row-major, red, green, blue. */
export interface RgbImage {
  width: number;
  height: number;
  data: Uint8Array;
}

/** A rectangle by its top left corner. */
export interface Rect {
  x: number;
  y: number;
  width: number;
  height: number;
}

export function createImage(width: number, height: number, color: Rgb = [0, 0, 0]): RgbImage {
  const whole = Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0;
  check(whole, "createImage", () => `expected whole sizes from 1, got ${width}x${height}`);
  const image = { width, height, data: new Uint8Array(width * height * 3) };
  if (color.some((channel) => channel !== 0)) fillRect(image, { x: 0, y: 0, width, height }, color);
  return image;
}

export function checkImage(image: RgbImage, op: string): void {
  const { width, height, data } = image;
  check(
    Number.isInteger(width) &&
      Number.isInteger(height) &&
      width > 0 &&
      height > 0 &&
      data.length === width * height * 3,
    op,
    () => `expected ${width}x${height}x3 bytes of RGB, got ${data.length}`,
  );
}

/** Fills a rectangle; `opacity` below 1 mixes with what is there. */
export function fillRect(image: RgbImage, rect: Rect, color: Rgb, opacity = 1): void {
  const x0 = Math.max(0, Math.round(rect.x));
  const y0 = Math.max(0, Math.round(rect.y));
  const x1 = Math.min(image.width, Math.round(rect.x + rect.width));
  const y1 = Math.min(image.height, Math.round(rect.y + rect.height));
  const { data } = image;
  for (let y = y0; y < y1; y++) {
    for (let i = 3 * (y * image.width + x0), end = 3 * (y * image.width + x1); i < end; i += 3) {
      for (let c = 0; c < 3; c++) data[i + c] = Math.round(data[i + c]! + (color[c]! - data[i + c]!) * opacity);
    }
  }
}

export interface StrokeOptions {
  /** Width of the line in pixels, inside of the rectangle. Default 2. */
  thickness?: number;
  /** Length of dashes and gaps in pixels; default 0, a solid line. */
  dash?: number;
  /** Below 1 it mixes with what is there. Default 1. */
  opacity?: number;
}

/** Draws a rectangle's outline. */
export function strokeRect(image: RgbImage, rect: Rect, color: Rgb, options: StrokeOptions = {}): void {
  const x0 = Math.round(rect.x);
  const y0 = Math.round(rect.y);
  const width = Math.max(1, Math.round(rect.x + rect.width) - x0);
  const height = Math.max(1, Math.round(rect.y + rect.height) - y0);
  const thickness = Math.min(options.thickness ?? 2, width, height);
  const dash = options.dash ?? 0;
  const opacity = options.opacity ?? 1;
  const step = dash > 0 ? 2 * dash : Math.max(width, height);
  const length = dash > 0 ? dash : step;
  for (let at = 0; at < width; at += step) {
    const part = { x: x0 + at, width: Math.min(length, width - at), height: thickness };
    fillRect(image, { ...part, y: y0 }, color, opacity);
    fillRect(image, { ...part, y: y0 + height - thickness }, color, opacity);
  }
  // The corners belong to the horizontal lines: painted once, they have the opacity of the rest.
  for (let at = thickness; at < height - thickness; at += step) {
    const part = { y: y0 + at, height: Math.min(length, height - thickness - at), width: thickness };
    fillRect(image, { ...part, x: x0 }, color, opacity);
    fillRect(image, { ...part, x: x0 + width - thickness }, color, opacity);
  }
}

/** Size of a line of text in pixels. */
export function measureText(text: string, scale = 1): { width: number; height: number } {
  return { width: charactersOf(text).length * GLYPH_WIDTH * scale, height: GLYPH_HEIGHT * scale };
}

/** Draws one line of text with its top left corner at (x, y); `scale` is a whole factor of the 7x13 font. */
export function drawText(image: RgbImage, text: string, x: number, y: number, color: Rgb, scale = 1): void {
  let left = Math.round(x);
  const top = Math.round(y);
  for (const character of charactersOf(text)) {
    const glyph = glyphOf(character);
    for (let row = 0; row < GLYPH_HEIGHT; row++) {
      for (let column = 0; column < GLYPH_WIDTH; column++) {
        if ((glyph[row]! & (0x80 >> column)) === 0) continue;
        fillRect(image, { x: left + column * scale, y: top + row * scale, width: scale, height: scale }, color);
      }
    }
    left += GLYPH_WIDTH * scale;
  }
}

/** The text, or as much of it as fits into `width` pixels with two dots behind it. */
export function fitText(text: string, width: number, scale = 1): string {
  if (measureText(text, scale).width <= width) return text;
  const count = Math.max(0, Math.floor(width / (GLYPH_WIDTH * scale)) - 2);
  return `${charactersOf(text).slice(0, count).join("")}..`;
}

/** Space around the text of a tag. */
const TAG_PADDING = 2;

/** Size of a tag that `drawTag` draws. */
export function measureTag(text: string, scale = 1): { width: number; height: number } {
  const { width, height } = measureText(text, scale);
  return { width: width + 2 * TAG_PADDING, height: height + 1 };
}

/** Draws text on a filled rectangle whose top left corner is (x, y). */
export function drawTag(image: RgbImage, text: string, x: number, y: number, color: Rgb, scale = 1): void {
  const { width, height } = measureTag(text, scale);
  fillRect(image, { x, y, width, height }, color);
  drawText(image, text, x + TAG_PADDING, y, textColorOn(color), scale);
}

/** Copies `source` into `target` with its top left corner at (x, y), whole numbers. */
export function paste(target: RgbImage, source: RgbImage, x: number, y: number): void {
  const left = Math.max(0, -x);
  const right = Math.min(source.width, target.width - x);
  if (right <= left) return;
  for (let row = Math.max(0, -y); row < Math.min(source.height, target.height - y); row++) {
    const from = 3 * (row * source.width + left);
    const to = 3 * ((y + row) * target.width + x + left);
    target.data.set(source.data.subarray(from, from + 3 * (right - left)), to);
  }
}

/**
 * Resizes with a triangle filter that widens when it shrinks, so that nothing is skipped: Pillow's BILINEAR, to the last bit
 * (weights in fixed point, rows first, rounded to bytes after each direction).
 */
export function resize(image: RgbImage, width: number, height: number): RgbImage {
  checkImage(image, "resize");
  if (width === image.width && height === image.height) return { ...image, data: image.data.slice() };
  const narrow = width === image.width ? image : createImage(width, image.height);
  if (narrow !== image) {
    const columns = filterOf(image.width, width);
    for (let y = 0; y < image.height; y++) {
      for (let x = 0; x < width; x++) {
        const { first, weights } = columns[x]!;
        for (let c = 0; c < 3; c++) {
          let sum = HALF;
          for (let i = 0; i < weights.length; i++) {
            sum += weights[i]! * image.data[3 * (y * image.width + first + i) + c]!;
          }
          narrow.data[3 * (y * width + x) + c] = Math.min(255, sum >> FRACTION_BITS);
        }
      }
    }
  }
  if (height === image.height) return narrow;
  const out = createImage(width, height);
  const rows = filterOf(image.height, height);
  const stride = 3 * width;
  for (let y = 0; y < height; y++) {
    const { first, weights } = rows[y]!;
    for (let x = 0; x < stride; x++) {
      let sum = HALF;
      for (let i = 0; i < weights.length; i++) sum += weights[i]! * narrow.data[(first + i) * stride + x]!;
      out.data[y * stride + x] = Math.min(255, sum >> FRACTION_BITS);
    }
  }
  return out;
}

/** Weights are whole multiples of 2^-22: their sums with bytes stay below 2^31. */
const FRACTION_BITS = 22;
const HALF = 1 << (FRACTION_BITS - 1);

/** For each of `to` pixels: the first of `from` pixels that it draws on, and their weights, which add up to about 2^22. */
function filterOf(from: number, to: number): { first: number; weights: Int32Array }[] {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - support + 0.5));
    const last = Math.min(from, Math.floor(center + support + 0.5));
    const weights = new Float64Array(Math.max(1, last - first));
    let sum = 0;
    for (let j = 0; j < weights.length; j++) {
      weights[j] = Math.max(0, 1 - Math.abs((first + j - center + 0.5) * (1 / support)));
      sum += weights[j]!;
    }
    return {
      first,
      weights: Int32Array.from(weights, (weight) => Math.floor((weight / sum) * 2 ** FRACTION_BITS + 0.5)),
    };
  });
}

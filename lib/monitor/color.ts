/** Red, green, blue, 0 to 255. */
export type Rgb = readonly [number, number, number];

/** The larger part of the golden section of a circle, in degrees. */
const GOLDEN_ANGLE = 222.49223594996215;

/**
 * A colour per class that stays the same however many classes there are: hues a golden angle apart, which never come
 * close to the ones before, in three lightnesses.
 */
export function classColor(classIndex: number): Rgb {
  const hue = (30 + GOLDEN_ANGLE * classIndex) % 360;
  const lightness = [0.72, 0.56, 0.86][Math.floor(classIndex / 8) % 3]!;
  return oklch(lightness, 0.2, hue);
}

/** Black or white, whichever is easier to read on `background`. */
export function textColorOn([r, g, b]: Rgb): Rgb {
  return 0.299 * r + 0.587 * g + 0.114 * b > 128 ? [0, 0, 0] : [255, 255, 255];
}

/** Oklch to sRGB (Björn Ottosson, "A perceptual color space for image processing"), clipped to what sRGB can show. */
function oklch(lightness: number, chroma: number, hue: number): Rgb {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const encode = (linear: number) => {
    const value = Math.min(Math.max(linear, 0), 1);
    return Math.round(255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055));
  };
  return [
    encode(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    encode(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    encode(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

/** dlfs_augment in float64: layers warped, recoloured and drawn one by one on whole pictures. */
import { constants } from "../../../lib/native";

/** One layer; see dlfs.h. What is left out changes nothing and hides nothing. */
export interface Layer {
  image?: number;
  /** Name of the source and its height and width; none: `color` is drawn. */
  source?: { name: string; size: readonly [height: number, width: number]; pitch?: number };
  map?: readonly [number, number, number, number, number, number];
  crop?: readonly [number, number, number, number];
  region: readonly [number, number, number, number];
  matrix?: readonly number[];
  hsv?: readonly [hue: number, saturation: number, value: number];
  color?: readonly [number, number, number];
  opacity?: number;
  weight?: number;
  antialias?: boolean;
}

const identity = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0];

/** The numbers of dlfs.h. */
export function packLayer(layer: Layer): number[] {
  const [height, width] = layer.source?.size ?? [0, 0];
  const packed = [
    layer.image ?? 0,
    height,
    width,
    layer.source?.pitch ?? 3 * width,
    ...(layer.map ?? [1, 0, 0, 0, 1, 0]),
    ...(layer.crop ?? [0, 0, width, height]),
    ...layer.region,
    ...(layer.matrix ?? identity),
    ...(layer.hsv ?? [0, 1, 1]),
    ...(layer.color ?? [0, 0, 0]),
    layer.opacity ?? 1,
    layer.weight ?? 0,
    layer.antialias ? constants.LAYER_ANTIALIAS : 0,
    0,
  ];
  if (packed.length !== constants.LAYER_NUMBERS) throw new Error(`a layer has ${packed.length} numbers`);
  return packed;
}

/** Weights of the pixels around a point of one axis. */
function weightsAt(point: number, support: number, size: number): [pixel: number, weight: number][] {
  const weights: [number, number][] = [];
  let total = 0;
  for (let i = 0; i < size; i++) {
    const weight = Math.max(0, 1 - Math.abs(i + 0.5 - point) / support);
    if (weight > 0) weights.push([i, weight]);
    total += weight;
  }
  return weights.map(([i, weight]) => [i, weight / total]);
}

/** Hue in degrees, saturation and value in 0..1: the six-sector conversion (Smith 1978). */
function toHsv([r, g, b]: readonly number[]): [number, number, number] {
  const [most, least] = [Math.max(r!, g!, b!), Math.min(r!, g!, b!)];
  const range = most - least;
  let hue = 0;
  if (range > 0) {
    if (most === r) hue = 60 * ((g! - b!) / range);
    else if (most === g) hue = 60 * (2 + (b! - r!) / range);
    else hue = 60 * (4 + (r! - g!) / range);
  }
  return [(hue + 360) % 360, most > 0 ? range / most : 0, most / 255];
}

function fromHsv([h, s, v]: readonly [number, number, number]): number[] {
  const sector = Math.floor(h / 60) % 6;
  const f = h / 60 - Math.floor(h / 60);
  const [p, q, t] = [v * (1 - s), v * (1 - s * f), v * (1 - s * (1 - f))];
  const rgb = [
    [v, t, p],
    [q, v, p],
    [p, v, t],
    [p, q, v],
    [t, p, v],
    [v, p, q],
  ][sector]!;
  return rgb.map((x) => 255 * x);
}

const clamp = (x: number, most: number): number => Math.min(Math.max(x, 0), most);

function recolor(rgb: number[], { matrix = identity, hsv: [hue, saturation, value] = [0, 1, 1] }: Layer): number[] {
  const mixed = [0, 4, 8].map((m) =>
    clamp(matrix[m]! * rgb[0]! + matrix[m + 1]! * rgb[1]! + matrix[m + 2]! * rgb[2]! + matrix[m + 3]!, 255),
  );
  const [h, s, v] = toHsv(mixed);
  return fromHsv([(((h + 360 * hue) % 360) + 360) % 360, clamp(s * saturation, 1), clamp(v * value, 1)]);
}

/** What a layer draws at an output pixel; null where it draws nothing. */
function colorAt(layer: Layer, sources: Record<string, ArrayLike<number>>, u: number, v: number): number[] | null {
  const { source, region, map = [1, 0, 0, 0, 1, 0] } = layer;
  if (u < region[0] || v < region[1] || u >= region[2] || v >= region[3]) return null;
  if (!source) return [...(layer.color ?? [0, 0, 0])];
  const [height, width] = source.size;
  const [x1, y1, x2, y2] = layer.crop ?? [0, 0, width, height];
  const x = map[0] * (u + 0.5) + map[1] * (v + 0.5) + map[2];
  const y = map[3] * (u + 0.5) + map[4] * (v + 0.5) + map[5];
  if (x < Math.max(x1, 0) || y < Math.max(y1, 0) || x >= Math.min(x2, width) || y >= Math.min(y2, height)) return null;
  const support = layer.antialias
    ? [Math.max(1, Math.abs(map[0]) + Math.abs(map[1])), Math.max(1, Math.abs(map[3]) + Math.abs(map[4]))]
    : [1, 1];
  const pixels = sources[source.name]!;
  const rgb = [0, 0, 0];
  for (const [row, wy] of weightsAt(y, support[1]!, height)) {
    for (const [column, wx] of weightsAt(x, support[0]!, width)) {
      const at = row * (source.pitch ?? 3 * width) + 3 * column;
      for (let c = 0; c < 3; c++) rgb[c]! += wy * wx * pixels[at + c]!;
    }
  }
  return recolor(rgb, layer);
}

/** One image (size, 3) in levels of 255. */
export function compose(
  layers: readonly Layer[],
  sources: Record<string, ArrayLike<number>>,
  [height, width]: readonly [number, number],
  fill: readonly number[],
): Float64Array {
  const blank = () => Float64Array.from({ length: height * width * 3 }, (_, i) => fill[i % 3]!);
  const pictures = [{ weight: 1, pixels: blank() }];
  for (const [k, layer] of layers.entries()) {
    if (k > 0 && layer.weight) pictures.push({ weight: layer.weight, pixels: blank() });
    const { pixels } = pictures.at(-1)!;
    const { opacity = 1 } = layer;
    for (let v = 0; v < height; v++) {
      for (let u = 0; u < width; u++) {
        const rgb = colorAt(layer, sources, u, v);
        if (!rgb) continue;
        const at = (v * width + u) * 3;
        for (let c = 0; c < 3; c++) pixels[at + c] = pixels[at + c]! * (1 - opacity) + rgb[c]! * opacity;
      }
    }
  }
  return pictures
    .slice(1)
    .reduce(
      (under, { weight, pixels }) => under.map((x, i) => x * (1 - weight) + pixels[i]! * weight),
      pictures[0]!.pixels,
    );
}

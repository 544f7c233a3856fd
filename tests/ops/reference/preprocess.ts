/** dlfs_preprocess in float64: crop, resize (bilinear or triangle filter), flip, normalise. */

/** One image's transform; see dlfs.h. Crop in source pixels, target in output pixels. */
export interface Transform {
  crop: readonly [x: number, y: number, width: number, height: number];
  target: readonly [x: number, y: number, width: number, height: number];
  flipX?: boolean;
  flipY?: boolean;
}

export interface PreprocessOptions {
  size: readonly [height: number, width: number];
  channels: number;
  mean: readonly number[];
  std: readonly number[];
  fill: readonly number[];
  antialias?: boolean;
  bgr?: boolean;
  /** The pixel itself, rounded, instead of (pixel / 255 - mean) / std. */
  bytes?: boolean;
}

/** The 12 floats of dlfs.h. */
export function packTransform({ crop, target, flipX, flipY }: Transform): number[] {
  return [...crop, ...target, flipX ? 1 : 0, flipY ? 1 : 0, 0, 0];
}

/** Weights of the source pixels behind output pixel u of one axis; null where the fill colour is. */
function footprint(
  u: number,
  crop: number,
  cropSize: number,
  target: number,
  targetSize: number,
  flip: boolean,
  size: number,
  antialias: boolean,
): Map<number, number> | null {
  let t = u + 0.5 - target;
  if (t < 0 || t >= targetSize) return null;
  if (flip) t = targetSize - t;
  const scale = cropSize / targetSize;
  const center = t * scale + crop;
  const slack = size * 2 ** -22; // rounding of the coordinate in fp32
  if (center < -slack || center > size + slack) return null;
  const weights = new Map<number, number>();
  if (antialias && scale > 1) {
    // torch: pixels from center - scale to center + scale, weighted by a triangle, normalised to 1
    const first = Math.max(0, Math.trunc(center - scale + 0.5));
    const end = Math.min(size, Math.trunc(center + scale + 0.5));
    let total = 0;
    for (let i = first; i < end; ++i) {
      const weight = Math.max(0, 1 - Math.abs((i - center + 0.5) / scale));
      weights.set(i, weight);
      total += weight;
    }
    for (const [i, weight] of weights) weights.set(i, weight / total);
    return weights;
  }
  const at = Math.min(Math.max(center - 0.5, 0), size - 1);
  const first = Math.floor(at);
  weights.set(first, 1 - (at - first));
  if (first + 1 < size) weights.set(first + 1, at - first);
  return weights;
}

/** One image (height, width, 3) to (size, channels), in float64 (not rounded for `bytes`). */
export function preprocess(
  image: ArrayLike<number>,
  height: number,
  width: number,
  transform: Transform,
  options: PreprocessOptions,
): Float64Array {
  const { size, channels, mean, std, fill, antialias = false, bgr = false, bytes = false } = options;
  const { crop, target, flipX = false, flipY = false } = transform;
  const out = new Float64Array(size[0] * size[1] * channels);
  const columns = Array.from({ length: size[1] }, (_, u) =>
    footprint(u, crop[0], crop[2], target[0], target[2], flipX, width, antialias),
  );
  for (let v = 0; v < size[0]; ++v) {
    const rows = footprint(v, crop[1], crop[3], target[1], target[3], flipY, height, antialias);
    for (let u = 0; u < size[1]; ++u) {
      const across = columns[u];
      for (let c = 0; c < 3; ++c) {
        const source = bgr ? 2 - c : c;
        let value = fill[source]!;
        if (rows && across) {
          value = 0;
          for (const [y, wy] of rows)
            for (const [x, wx] of across) value += wy * wx * image[(y * width + x) * 3 + source]!;
        }
        out[(v * size[1] + u) * channels + c] = bytes ? value : (value / 255 - mean[source]!) / std[source]!;
      }
    }
  }
  return out;
}

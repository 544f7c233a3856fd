/** Layers warped, recoloured and composed into a batch. */
import { constants } from "../../../lib/native";
import { dtypeCode } from "../../../lib/tensor";
import { loadGolden } from "../../support/golden";
import { compose, type Layer, packLayer } from "../reference/augment";
import { type Input, type OpCase, recorded } from "./case";

interface Options {
  /** Sources by name: height, width, and bytes from row to row where they are padded. */
  sources: Record<string, readonly [height: number, width: number, pitch?: number]>;
  layers: readonly Layer[];
  size: readonly [number, number];
  n?: number;
  channels?: number;
  bgr?: boolean;
  bytes?: boolean;
  /** Levels by which results may differ: what float32 makes of a hue whose saturation is small, or of a wide filter. */
  levels?: number;
}

const mean = [0.485, 0.456, 0.406];
const std = [0.229, 0.224, 0.225];
const fill = [124, 116, 104];

export function augment(
  name: string,
  { sources, layers, size, n = 1, channels = 3, bgr = false, bytes = false, levels = 0.01 }: Options,
): OpCase {
  const image = ([height, width, pitch = 3 * width]: readonly [number, number, number?]): Input => ({
    shape: [height * pitch],
    kind: "u8",
    values: (random, count) => random.integers(count, 0, 256),
  });
  // A level is 1 / 255 / std; what fp16 and bf16 round away of values up to 2.7 comes on top.
  const step = levels / (255 * 0.224);
  return {
    op: "augment",
    name,
    ...(bytes && { dtypes: ["f32"] as const }),
    inputs: Object.fromEntries(Object.entries(sources).map(([key, source]) => [key, image(source)])),
    outputs: {
      out: bytes
        ? { shape: [n, ...size, channels], kind: "u8", tolerance: { rtol: 0, atol: 0.5 + levels } }
        : { shape: [n, ...size, channels], tolerance: undefined, terms: 400, roundings: 2, magnitude: step },
    },
    prepare(c) {
      const out = c.address("out");
      // Views must not be empty, even where there are no layers.
      const addresses = new BigInt64Array(Math.max(1, layers.length));
      for (const [j, { source }] of layers.entries()) addresses[j] = BigInt(source ? c.address(source.name)! : 0);
      const packed = new Float64Array(Math.max(1, layers.length) * constants.LAYER_NUMBERS);
      packed.set(layers.flatMap(packLayer));
      const normalisation = Float32Array.from([...mean, ...std, ...fill]);
      const dtype = bytes ? dtypeCode("u8") : c.dtype;
      const flags = bgr ? constants.PREPROCESS_BGR : 0;
      return () =>
        void c.native.augment(
          c.stream,
          out!,
          addresses,
          packed,
          normalisation,
          n,
          layers.length,
          ...size,
          channels,
          dtype,
          flags,
        );
    },
    reference(inputs) {
      const out = new Float64Array(n * size[0] * size[1] * channels);
      for (let i = 0; i < n; i++) {
        const own = layers.filter(({ image: at = 0 }) => at === i);
        const picture = compose(own, inputs, size, fill);
        for (let pixel = 0; pixel < size[0] * size[1]; pixel++) {
          for (let c = 0; c < 3; c++) {
            const from = bgr ? 2 - c : c;
            const level = picture[3 * pixel + from]!;
            out[(i * size[0] * size[1] + pixel) * channels + c] = bytes
              ? level
              : (level / 255 - mean[from]!) / std[from]!;
          }
        }
      }
      return { out };
    },
  };
}

/** Output pixel (u, v) of a layer that turns, scales and shifts a source around two centres. */
export function turned(
  degrees: number,
  scale: number,
  shear: number,
  [x, y]: readonly [number, number],
  [u, v]: readonly [number, number],
): [number, number, number, number, number, number] {
  const [cos, sin] = [Math.cos((degrees * Math.PI) / 180) * scale, Math.sin((degrees * Math.PI) / 180) * scale];
  const [a, b, d, e] = [cos + shear * sin, shear * cos - sin, sin, cos];
  return [a, b, x - a * u - b * v, d, e, y - d * u - e * v];
}

const size = [24, 32] as const;
const whole = [0, 0, 32, 24] as const;
const photo = { name: "photo", size: [19, 27] as const };
const other = { name: "other", size: [30, 21] as const };
const both = { photo: photo.size, other: other.size };
/** Stretches a source over the output. */
const stretch = ({ size: [height, width] }: { size: readonly [number, number] }, region: readonly number[] = whole) => {
  const [x1, y1, x2, y2] = region as [number, number, number, number];
  const [a, e] = [width / (x2 - x1), height / (y2 - y1)];
  return [a, 0, -a * x1, 0, e, -e * y1] as const;
};
const mosaic: Layer[] = [
  { source: photo, region: [0, 0, 14, 10], map: [1.25, 0, 4, 0, 1.5, 2] },
  { source: other, region: [14, 0, 32, 10], map: stretch(other, [14, 0, 32, 10]) },
  { source: other, region: [0, 10, 14, 24], map: [-1, 0, 20, 0, 0.75, -5], antialias: true },
  { source: photo, region: [14, 10, 32, 24], map: turned(20, 0.8, 0.2, [13, 9], [22, 17]) },
];
/** Brightness 1.2 about middle grey, red and blue swapped. */
const matrix = [0.1, 0, 1.1, -20, 0.2, 0.9, 0.1, -20, 1.2, 0, 0, -25.5];

interface GoldenParams {
  flip: boolean;
}

/** Pillow rounds to bytes after each of its two passes. */
const goldenCases: OpCase[] = loadGolden<GoldenParams>("resize").map((golden) => {
  const [height, width] = golden.shape("image") as [number, number];
  const [outHeight, outWidth] = golden.shape("out") as [number, number];
  const [a, e] = [width / outWidth, height / outHeight];
  const map = golden.params.flip ? ([-a, 0, width, 0, e, 0] as const) : ([a, 0, 0, 0, e, 0] as const);
  const opCase = augment(`Pillow: ${golden.name}`, {
    sources: { photo: [height, width] },
    layers: [
      { source: { name: "photo", size: [height, width] }, region: [0, 0, outWidth, outHeight], map, antialias: true },
    ],
    size: [outHeight, outWidth],
    bytes: true,
    levels: 0.51, // one level, of the two that are allowed
  });
  return recorded(opCase, { photo: golden.array("image") }, { out: golden.array("out") }, { rtol: 0, atol: 1 });
});

export const augmentCases: OpCase[] = [
  augment("no layers: the fill colour", { sources: {}, layers: [], size, n: 2 }),
  augment("stretched", { sources: both, layers: [{ source: photo, region: whole, map: stretch(photo) }], size }),
  augment("shrunk, antialiased, mirrored", {
    sources: both,
    layers: [{ source: other, region: [1, 2, 9, 11], map: [-2.7, 0, 21, 0, 3.1, -1], antialias: true }],
    size,
  }),
  augment("turned and sheared", {
    sources: both,
    layers: [{ source: photo, region: whole, map: turned(30, 0.9, 0.3, [13, 9], [16, 12]) }],
    size,
  }),
  augment("turned and shrunk, antialiased", {
    sources: both,
    layers: [{ source: other, region: whole, map: turned(-75, 2.2, -0.1, [10, 15], [15, 12]), antialias: true }],
    size,
  }),
  augment("a quarter turn", {
    sources: both,
    layers: [{ source: other, region: whole, map: [0, 1, -1, -1, 0, 30] }],
    size,
  }),
  augment("a crop, rows with padding", {
    sources: { photo: [19, 27, 100] },
    layers: [
      {
        source: { ...photo, pitch: 100 },
        region: [3, 2, 30, 20],
        map: [0.7, 0, 1, 0, 0.6, 2],
        crop: [5, 4, 17.5, 12.25],
      },
    ],
    size,
  }),
  augment("a map that misses the source", {
    sources: both,
    layers: [{ source: photo, region: whole, map: [1, 0, 500, 0, 1, 0] }],
    size,
  }),
  augment("colour matrix", {
    sources: both,
    layers: [{ source: photo, region: whole, map: stretch(photo), matrix }],
    size,
  }),
  augment("hue, saturation, value", {
    sources: both,
    layers: [
      { source: photo, region: [0, 0, 16, 24], map: stretch(photo), hsv: [0.3, 1.4, 0.8] },
      { source: photo, region: [16, 0, 32, 24], map: stretch(photo), hsv: [-0.45, 0.5, 1.7] },
    ],
    size,
    levels: 0.05,
  }),
  augment("hue after the matrix, turned", {
    sources: both,
    layers: [{ source: photo, region: whole, map: turned(12, 0.7, 0, [13, 9], [16, 12]), matrix, hsv: [0.9, 1, 1.2] }],
    size,
    levels: 0.05,
  }),
  augment("a mosaic of four", { sources: both, layers: mosaic, size }),
  augment("pasting, half transparent, and cutting out", {
    sources: both,
    layers: [
      { source: photo, region: whole, map: stretch(photo) },
      { source: other, region: [5, 5, 20, 20], map: [1, 0, -3, 0, 1, -2], opacity: 0.4 },
      { region: [12, 0, 18, 9], color: [10, 200, 90] },
      { region: [25, 3, 32, 24], color: [255, 0, 30], opacity: 0.75 },
    ],
    size,
  }),
  augment("mixup of two mosaics, and a third picture", {
    sources: both,
    layers: [
      ...mosaic,
      ...mosaic.map((layer, i) => ({
        ...layer,
        region: [layer.region[0], layer.region[1], layer.region[2] - 3, layer.region[3] - 2] as const,
        matrix,
        ...(i === 0 && { weight: 0.35 }),
      })),
      { source: other, region: whole, map: stretch(other), weight: 0.25 },
    ],
    size,
  }),
  augment("a batch: layers of several images, one of them without any", {
    sources: both,
    layers: [
      { source: photo, region: whole, map: stretch(photo) },
      { image: 2, source: other, region: whole, map: stretch(other) },
      ...mosaic.map((layer) => ({ ...layer, image: 3 })),
    ],
    size,
    n: 5,
  }),
  augment("more images and layers than one launch takes", {
    sources: both,
    layers: Array.from({ length: 21 }, (_, i) => mosaic.map((layer) => ({ ...layer, image: i }))).flat(),
    size,
    n: 21,
  }),
  augment("64 layers on one image", {
    sources: both,
    layers: Array.from({ length: 64 }, (_, i) => ({
      ...mosaic[i % 4]!,
      region: [i % 8, i % 5, 16 + (i % 16), 12 + (i % 12)] as const,
      opacity: 0.3,
    })),
    size,
  }),
  augment("8 channels, the last 5 zero, BGR", { sources: both, layers: mosaic, size, channels: 8, bgr: true }),
  augment("4 channels", { sources: both, layers: mosaic, size, channels: 4 }),
  augment("a width of no whole vectors", {
    sources: both,
    layers: [{ source: photo, region: [0, 0, 21, 11], map: stretch(photo, [0, 0, 21, 11]) }],
    size: [11, 21],
  }),
  augment("bytes", { sources: both, layers: mosaic, size, bytes: true, bgr: true }),
  ...goldenCases,
];

const large = { name: "photo", size: [480, 640] as const };
const canvas = [0, 0, 640, 640] as const;
const batchOf = (layers: Layer[]): Layer[] =>
  Array.from({ length: 16 }, (_, image) => layers.map((layer) => ({ ...layer, image }))).flat();
const bench = (name: string, layers: Layer[]): OpCase =>
  augment(`16 images of 640x640: ${name}`, {
    sources: { photo: large.size },
    layers: batchOf(layers),
    size: [640, 640],
    n: 16,
  });
const jitter = [0.01, 1.3, 0.9] as const;
const quarters = [
  [0, 0, 320, 320],
  [320, 0, 640, 320],
  [0, 320, 320, 640],
  [320, 320, 640, 640],
] as const;
export const augmentBenches: OpCase[] = [
  bench("stretched", [{ source: large, region: canvas, map: stretch(large, canvas) }]),
  bench("colour jitter", [{ source: large, region: canvas, map: stretch(large, canvas), hsv: jitter }]),
  bench("turned", [{ source: large, region: canvas, map: turned(5, 0.9, 0.05, [320, 240], [320, 320]) }]),
  bench(
    "mosaic of four with colour jitter",
    quarters.map((region) => ({ source: large, region, map: stretch(large, region), hsv: jitter, antialias: true })),
  ),
];

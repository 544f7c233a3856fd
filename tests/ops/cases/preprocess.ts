/** Crop, resize, flip, normalise, cast. */

import { constants } from "../../../lib/native";
import { dtypeCode } from "../../../lib/tensor";
import { loadGolden } from "../../support/golden";
import * as reference from "../reference/preprocess";
import { type Input, type OpCase, recorded } from "./case";

type Transform = reference.Transform;

interface Options {
  /** Images: height, width. */
  images: readonly (readonly [number, number])[];
  transforms: readonly Transform[];
  size: readonly [number, number];
  channels?: number;
  antialias?: boolean;
  bgr?: boolean;
  /** U8 output. */
  bytes?: boolean;
  normalised?: boolean;
}

const imagenet = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], fill: [124, 116, 104] };
const plain = { mean: [0, 0, 0], std: [1, 1, 1], fill: [10, 200, 90] };

export function preprocess(
  name: string,
  { images, transforms, size, channels = 3, antialias = false, bgr = false, bytes = false, normalised = true }: Options,
): OpCase {
  const n = images.length;
  const { mean, std, fill } = normalised ? imagenet : plain;
  const image = ([height, width]: readonly [number, number]): Input => ({
    shape: [height, width, 3],
    kind: "u8",
    values: (random, count) => random.integers(count, 0, 256),
  });
  return {
    op: "preprocess",
    name,
    ...(bytes && { dtypes: ["f32"] as const }),
    inputs: Object.fromEntries(images.map((sizes, i) => [`image${i}`, image(sizes)])),
    outputs: {
      out: bytes
        ? // a value halfway between two levels may go to either
          { shape: [n, ...size, channels], kind: "u8", tolerance: { rtol: 0, atol: 0.5 + 1e-3 } }
        : // sums of 255 * 2^-24, over the deviation 0.224, and a coordinate's rounding times a step of 255 levels
          { shape: [n, ...size, channels], tolerance: undefined, terms: 400 },
    },
    prepare(c) {
      const out = c.address("out");
      const sources = BigInt64Array.from(images.map((_, i) => BigInt(c.address(`image${i}`)!)));
      const flags = (antialias ? constants.PREPROCESS_ANTIALIAS : 0) | (bgr ? constants.PREPROCESS_BGR : 0);
      const packed = Float32Array.from(transforms.flatMap(reference.packTransform));
      const normalisation = Float32Array.from([...mean, ...std, ...fill]);
      const dtype = bytes ? dtypeCode("u8") : c.dtype;
      return () =>
        void c.native.preprocess(
          c.stream,
          out!,
          sources,
          Int32Array.from(images.flat()),
          packed,
          normalisation,
          n,
          ...size,
          channels,
          dtype,
          flags,
        );
    },
    reference(inputs) {
      const out = images.flatMap(([height, width], i) =>
        Array.from(
          reference.preprocess(inputs[`image${i}`]!, height, width, transforms[i]!, {
            size,
            channels,
            mean,
            std,
            fill,
            antialias,
            bgr,
            bytes,
          }),
        ),
      );
      return { out };
    },
  };
}

/** The whole image onto the whole output. */
const whole = (
  [height, width]: readonly [number, number],
  [h, w]: readonly [number, number],
  flips: Partial<Transform> = {},
): Transform => ({
  crop: [0, 0, width, height],
  target: [0, 0, w, h],
  ...flips,
});

const small = [19, 27] as const;
const wide = [12, 40] as const;
const pixel = [1, 1] as const;

/** A name, and everything that a golden case fixes. */
interface GoldenParams {
  crop: [number, number, number, number];
  size: [number, number];
  antialias: boolean;
  flip: boolean;
}

const goldenCases: OpCase[] = loadGolden<GoldenParams>("preprocess").map((golden) => {
  const { crop, size, antialias, flip } = golden.params;
  const [height, width] = golden.shape("image") as [number, number];
  const transform: Transform = { crop, target: [0, 0, size[1], size[0]], flipX: flip };
  const opCase = preprocess(golden.name, { images: [[height, width]], transforms: [transform], size, antialias });
  return recorded(opCase, { image0: golden.array("image") }, { out: golden.array("out") }, { rtol: 1e-4, atol: 1e-4 });
});

export function normalizePixels(name: string, pixels: number): OpCase {
  const { mean, std } = imagenet;
  return {
    op: "normalize_pixels",
    name,
    inputs: { image: { shape: [pixels, 3], kind: "u8", values: (random, count) => random.integers(count, 0, 256) } },
    outputs: { out: { shape: [pixels, 3], terms: 10 } },
    prepare(c) {
      const [out, image] = ["out", "image"].map((operand) => c.address(operand));
      const normalisation = Float32Array.from([...mean, ...std]);
      return () => void c.native.normalizePixels(c.stream, out!, image!, normalisation, pixels, c.dtype);
    },
    reference: ({ image }) => ({
      out: Float64Array.from(image!, (value, i) => (value / 255 - mean[i % 3]!) / std[i % 3]!),
    }),
  };
}

export const preprocessCases: OpCase[] = [
  normalizePixels("one pixel", 1),
  normalizePixels("a part of a vector more", 16 * 40 + 5),
  normalizePixels("thousands of pixels", 9001),
  preprocess("same size", { images: [small], transforms: [whole(small, small)], size: small }),
  preprocess("enlarge", { images: [small], transforms: [whole(small, [33, 50])], size: [33, 50] }),
  preprocess("shrink without antialias", { images: [small], transforms: [whole(small, [7, 9])], size: [7, 9] }),
  preprocess("shrink with antialias", {
    images: [small],
    transforms: [whole(small, [7, 9])],
    size: [7, 9],
    antialias: true,
  }),
  preprocess("antialias changes nothing where it enlarges", {
    images: [small],
    transforms: [whole(small, [33, 50])],
    size: [33, 50],
    antialias: true,
  }),
  preprocess("several images of several sizes", {
    images: [small, wide, pixel],
    transforms: [small, wide, pixel].map((s) => whole(s, [16, 16])),
    size: [16, 16],
  }),
  preprocess("mirrored both ways", {
    images: [small],
    transforms: [whole(small, [16, 20], { flipX: true, flipY: true })],
    size: [16, 20],
  }),
  preprocess("letterbox: the rest is the fill colour", {
    images: [wide],
    transforms: [{ crop: [0, 0, 40, 12], target: [0, 6, 24, 7], flipX: true }],
    size: [20, 24],
  }),
  preprocess("fractional crop", {
    images: [small],
    transforms: [{ crop: [3.25, 2.5, 14.5, 11.75], target: [0, 0, 20, 16] }],
    size: [16, 20],
  }),
  preprocess("fractional target", {
    images: [small],
    transforms: [{ crop: [0, 0, 27, 19], target: [2.5, 1.25, 15.5, 12.5] }],
    size: [16, 20],
  }),
  preprocess("crop beyond the image", {
    images: [small],
    transforms: [{ crop: [-8, -5, 50, 40], target: [0, 0, 24, 24] }],
    size: [24, 24],
  }),
  preprocess("crop beyond the image, antialias, mirrored", {
    images: [wide],
    transforms: [{ crop: [-10, -4, 60, 30], target: [0, 0, 17, 9], flipX: true, flipY: true }],
    size: [9, 17],
    antialias: true,
  }),
  preprocess("crop outside the image: all fill", {
    images: [small],
    transforms: [{ crop: [100, 100, 10, 10], target: [0, 0, 8, 8] }],
    size: [8, 8],
  }),
  preprocess("target beyond the output", {
    images: [small],
    transforms: [{ crop: [0, 0, 27, 19], target: [-6, -9, 40, 38] }],
    size: [16, 20],
  }),
  preprocess("8 channels, the last 5 zero", {
    images: [small],
    transforms: [whole(small, [8, 8])],
    size: [8, 8],
    channels: 8,
  }),
  preprocess("4 channels, BGR", {
    images: [small],
    transforms: [whole(small, [8, 11])],
    size: [8, 11],
    channels: 4,
    bgr: true,
  }),
  preprocess("not normalised", {
    images: [small],
    transforms: [whole(small, [8, 11])],
    size: [8, 11],
    normalised: false,
  }),
  preprocess("bytes", {
    images: [small, wide],
    transforms: [whole(small, [15, 21]), whole(wide, [15, 21])],
    size: [15, 21],
    bytes: true,
  }),
  preprocess("bytes, BGR, fill, antialias", {
    images: [wide],
    transforms: [{ crop: [0, 0, 40, 12], target: [1, 2, 13, 5] }],
    size: [9, 15],
    bytes: true,
    bgr: true,
    antialias: true,
    normalised: false,
  }),
  preprocess("one pixel onto many", { images: [pixel], transforms: [whole(pixel, [6, 5])], size: [6, 5] }),
  preprocess("many pixels onto one, antialias", {
    images: [small],
    transforms: [whole(small, [1, 1])],
    size: [1, 1],
    antialias: true,
  }),
  ...goldenCases,
];

const photo = [480, 640] as const;
export const preprocessBenches: OpCase[] = [
  preprocess("16 photos of 480x640 to 640x640", {
    images: Array(16).fill(photo),
    transforms: Array(16).fill(whole(photo, [640, 640])),
    size: [640, 640],
  }),
  preprocess("16 photos of 480x640 to 320x320, antialias", {
    images: Array(16).fill(photo),
    transforms: Array(16).fill(whole(photo, [320, 320])),
    size: [320, 320],
    antialias: true,
  }),
];

import { describe, expect, test } from "bun:test";
import {
  Augmentation,
  type AugmentationPreset,
  augmentationPreset,
  multiScaleSize,
  parseAugmentation,
} from "../../lib/data/augmentation";
import {
  CopyPaste,
  Cutout,
  HsvJitter,
  MixUp,
  Mosaic,
  type OtherImages,
  PhotometricDistort,
  RandomAffine,
} from "../../lib/data/augmentations";
import {
  type Composition,
  LAYER_NUMBERS,
  MAX_LAYERS,
  move,
  packCompositions,
  type SourceImage,
  startComposition,
} from "../../lib/data/composition";
import { drawCompositions } from "../../lib/data/device-augment";
import { DeviceImageCodec } from "../../lib/data/device-codec";
import { DeviceCompositionDecoder } from "../../lib/data/device-composition-decoder";
import { CounterRandom } from "../../lib/data/random";
import {
  HorizontalFlip,
  Normalize,
  type PreprocessOp,
  RandomCrop,
  Resize,
  ScaleJitter,
} from "../../lib/data/transforms";
import { constants } from "../../lib/native";
import { Tensor } from "../../lib/tensor";
import { expectSameBytes } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const size = [96, 128] as const;
const presets: AugmentationPreset[] = ["ssd", "retinanet", "yolo"];

/** Images with two boxes each, which are rectangles of a colour of their own on black. */
const images: SourceImage[] = [
  [160, 120],
  [90, 200],
  [128, 96],
  [300, 80],
].map(([width, height], i) => ({
  id: 100 + i,
  width: width!,
  height: height!,
  boxes: Float64Array.of(
    Math.round(width! * 0.1),
    Math.round(height! * 0.15),
    Math.round(width! * 0.45),
    Math.round(height! * 0.6),
    Math.round(width! * 0.55),
    Math.round(height! * 0.4),
    Math.round(width! * 0.9),
    Math.round(height! * 0.95),
  ),
  labels: Int32Array.of(2 * i, 2 * i + 1),
}));
const set = { length: images.length, at: (place: number) => images[place] as SourceImage };
const colorOf = (label: number): number[] => [60 + 25 * label, 250 - 30 * label, label % 2 ? 240 : 90];

function picture({ width, height, boxes, labels }: SourceImage): Uint8Array {
  const pixels = new Uint8Array(width * height * 3);
  for (const [i, label] of labels.entries()) {
    const [x1, y1, x2, y2] = boxes.subarray(4 * i, 4 * i + 4) as unknown as [number, number, number, number];
    for (let y = y1; y < y2; y++) for (let x = x1; x < x2; x++) pixels.set(colorOf(label), 3 * (y * width + x));
  }
  return pixels;
}

/** The composition's pixels (height, width, 3) in levels. */
function draw(composition: Composition, missing: readonly number[] = []): Uint8Array {
  using resources = new DisposableStack();
  const tensors = new Map(
    images.map((image) => [
      image.id,
      resources.use(Tensor.from(device, picture(image), [image.height, image.width, 3], "u8")),
    ]),
  );
  using batch = Tensor.empty(device, [1, ...size, 3], "u8");
  const pixels = (id: number) =>
    missing.includes(id) ? null : { address: tensors.get(id)!.address, pitch: 3 * tensors.get(id)!.shape[1]! };
  drawCompositions(batch, [composition], pixels, { preprocessing: [new Normalize({ fill: [7, 9, 11] })] });
  return batch.read() as Uint8Array;
}

/** Extent x1, y1, x2, y2 of the pixels that have a label's colour; null where there are none. */
function extent(pixels: Uint8Array, label: number): [number, number, number, number] | null {
  const color = colorOf(label);
  let found: [number, number, number, number] | null = null;
  for (let y = 0; y < size[0]; y++) {
    for (let x = 0; x < size[1]; x++) {
      const at = 3 * (y * size[1] + x);
      if (color.some((level, c) => Math.abs(pixels[at + c]! - level) > 4)) continue;
      const [x1, y1, x2, y2]: readonly number[] = found ?? [x, y, x, y];
      found = [Math.min(x1!, x), Math.min(y1!, y), Math.max(x2!, x + 1), Math.max(y2!, y + 1)];
    }
  }
  return found;
}

const without = (ops: readonly PreprocessOp[], ...kinds: string[]) => ops.filter(({ name }) => !kinds.includes(name));
const others: OtherImages = {
  image: () => images[1] as SourceImage,
  prepared: () => startComposition(images[1] as SourceImage, size[1], size[0]),
};
const key = (operation = 0) => new CounterRandom({ seed: 3, epoch: 0, image: 1, operation });

describe("boxes lie where the pixels of what they enclose are drawn", () => {
  // Colours must stay to be recognised; a mixed picture has none of its own.
  const colors = ["hsvJitter", "photometricDistort", "mixUp", "normalize"];
  test.each([
    ["ssd", without(augmentationPreset("ssd"), ...colors)],
    ["retinanet", without(augmentationPreset("retinanet"), ...colors)],
    ["yolo", without(augmentationPreset("yolo"), ...colors)],
    [
      "turned and sheared",
      [new Resize(), new RandomAffine({ degrees: 40, shear: 10, scale: 0.3 }), new HorizontalFlip()],
    ],
    ["a mosaic, turned", [new Resize(), new Mosaic(), new RandomAffine({ degrees: 20, shear: 5 })]],
    ["cropped, then turned", [new RandomCrop(), new Resize(), new RandomAffine({ degrees: 30 })]],
    ["turned, then scaled", [new Resize(), new RandomAffine({ degrees: 30 }), new ScaleJitter(0.5, 2)]],
  ] as const)("%s", (_name, operations) => {
    const augmentation = new Augmentation({ operations, seed: 11 });
    let compared = 0;
    for (let epoch = 0; epoch < 12; epoch++) {
      const composition = augmentation.compose(set, epoch % images.length, epoch, size);
      const pixels = draw(composition);
      const labels = [...composition.labels];
      const turned = operations.some((op) => op instanceof RandomAffine && op.degrees > 0);
      for (const [i, label] of labels.entries()) {
        // An image that a mosaic shows twice has its colours twice, maybe without the box.
        const image = 100 + Math.floor(label / 2);
        if (composition.layers.filter(({ source }) => source?.id === image).length > 1) continue;
        const box = [...composition.boxes.subarray(4 * i, 4 * i + 4)] as [number, number, number, number];
        const seen = extent(pixels, label);
        if (!seen) {
          // Only what is no wider than the blur of its edges, or a corner of a turned box, shows nothing.
          expect(turned || Math.min(box[2] - box[0], box[3] - box[1]) < 6).toBe(true);
          continue;
        }
        // Half a pixel where its edge lies between pixels, and what bilinear sampling blurs at a scale of up to 2.
        for (const [k, edge] of seen.entries()) {
          const inside = k < 2 ? edge - box[k]! : box[k]! - edge;
          expect(inside).toBeGreaterThan(-1.01);
          const cut = k % 2 === 0 ? box[0] === 0 || box[2] === size[1] : box[1] === 0 || box[3] === size[0];
          // The box around a turned box that was cut is larger than what is left to see.
          const anyCut = box[0] === 0 || box[1] === 0 || box[2] === size[1] || box[3] === size[0];
          if (!(turned && (cut || anyCut))) expect(inside).toBeLessThan(turned ? 4.5 : 3.01);
        }
        compared++;
      }
    }
    expect(compared).toBeGreaterThan(5);
  });
});

describe("what is drawn depends on (seed, epoch, image, operation) alone", () => {
  test.each(presets)("%s: in any order, by another pipeline, through JSON", (name) => {
    const operations = augmentationPreset(name);
    const made = new Augmentation({ operations, seed: 5 });
    const first = images.map((_, place) => made.compose(set, place, 2, size));
    const parsed = parseAugmentation(JSON.parse(JSON.stringify(operations)));
    const again = new Augmentation({ operations: parsed, seed: 5 });
    const second = [3, 1, 0, 2].map((place) => [place, again.compose(set, place, 2, size)] as const);
    for (const [place, composition] of second) expect(composition).toEqual(first[place]!);
    expect(made.compose(set, 0, 3, size)).not.toEqual(first[0]!);
    expect(made.compose(set, 0, 2, size, 1)).not.toEqual(first[0]!);
    expect(new Augmentation({ operations, seed: 6 }).compose(set, 0, 2, size)).not.toEqual(first[0]!);
  });

  test("an unknown name is an error", () => {
    expect(errorOf(() => parseAugmentation([{ name: "wobble" }])).message).toContain("wobble");
    expect(errorOf(() => augmentationPreset("resnet" as AugmentationPreset)).message).toContain('got "resnet"');
  });
});

describe("the last epochs", () => {
  test("have no composed images, and else the same numbers", () => {
    const operations = augmentationPreset("yolo");
    const augmentation = new Augmentation({ operations, epochs: 10, closeLast: 3 });
    const sources = (epoch: number) => {
      const { layers } = augmentation.compose(set, 0, epoch, size);
      return new Set(layers.map(({ source }) => source?.id)).size;
    };
    expect([6, 7, 9].map((epoch) => augmentation.closed(epoch))).toEqual([false, true, true]);
    expect(sources(6)).toBeGreaterThan(1);
    expect([7, 8, 9].map(sources)).toEqual([1, 1, 1]);
    const plain = new Augmentation({
      operations: operations.map((op) => (op instanceof Mosaic ? new Mosaic({ p: 0 }) : op)),
    });
    const hsv = (made: Augmentation) => made.compose(set, 0, 8, size).layers[0]!.hsv;
    expect(hsv(augmentation)).toEqual(hsv(plain));
  });

  test("need the number of epochs", () => {
    expect(errorOf(() => new Augmentation({ operations: [], closeLast: 2 })).message).toContain("number of epochs");
  });
});

describe("single operations", () => {
  const whole = (): Composition => startComposition(images[2] as SourceImage, size[1], size[0]);

  test("a box of which too little stays visible is dropped", () => {
    const moved = (shift: number, rule: number) => [...move(whole(), [1, 0, shift, 0, 1, 0], 128, 96, rule).labels];
    // Box 0 spans 13 to 58: moved by -40 two fifths of it remain.
    expect(moved(-40, 0.35)).toEqual([4, 5]);
    expect(moved(-40, 0.45)).toEqual([5]);
    expect(moved(-60, 0)).toEqual([5]);
  });

  test("mixup draws both pictures by their weights and keeps the boxes of both", () => {
    const prepared = () => move(startComposition(images[1]!, size[1], size[0]), [1, 0, 0, 0, 1, 0], 128, 96, 0);
    const mixed = new MixUp({ p: 1 }).compose(whole(), key(), { ...others, prepared });
    expect([...mixed.labels]).toEqual([4, 5, 2, 3]);
    const weight = mixed.layers[1]!.weight;
    expect(weight).toBeGreaterThan(0.2);
    expect(weight).toBeLessThan(0.8);
    const [below, above, both] = [draw(whole()), draw(prepared()), draw(mixed)];
    for (const [i, level] of both.entries()) {
      const expected = below[i]! * (1 - weight) + above[i]! * weight;
      expect(Math.abs(level - expected)).toBeLessThan(1.01);
    }
  });

  test("weights of mixup are those of a beta distribution", () => {
    const weights = Array.from({ length: 400 }, (_, i) => {
      const prepared = whole;
      return new MixUp({ p: 1, alpha: 8 }).compose(whole(), key(i), { ...others, prepared }).layers[1]!.weight;
    });
    const average = weights.reduce((a, b) => a + b) / weights.length;
    const variance = weights.reduce((sum, w) => sum + (w - average) ** 2, 0) / weights.length;
    expect(average).toBeCloseTo(0.5, 1);
    expect(variance).toBeGreaterThan(0.8 / (4 * 17));
    expect(variance).toBeLessThan(1.25 / (4 * 17));
  });

  test("copy-paste draws other boxes on top, and drops what they cover", () => {
    let pasted = 0;
    for (let i = 0; i < 20; i++) {
      const result = new CopyPaste({ p: 1, most: 2 }).compose(whole(), key(i), others);
      const pixels = draw(result);
      for (const [at, label] of result.labels.entries()) {
        if (label !== 2 && label !== 3) continue;
        pasted++;
        const [x1, y1, x2, y2] = [...result.boxes.subarray(4 * at, 4 * at + 4)] as [number, number, number, number];
        const middle = 3 * (Math.floor((y1 + y2) / 2) * size[1] + Math.floor((x1 + x2) / 2));
        if (at === result.labels.length - 1) expect([...pixels.subarray(middle, middle + 3)]).toEqual(colorOf(label));
      }
    }
    expect(pasted).toBeGreaterThan(15);
  });

  test("cut-outs paint and drop the boxes that they cover", () => {
    const all = new Cutout({ p: 1, minSize: 1, maxSize: 1, color: [1, 2, 3] }).compose(whole(), key());
    expect(all.labels.length).toBe(0);
    expect([...new Set(draw(all))].sort()).toEqual([1, 2, 3]);
    const small = new Cutout({ p: 1, holes: 3, minSize: 0.01, maxSize: 0.02 }).compose(whole(), key());
    expect(small.labels.length).toBe(2);
    expect(small.layers.length).toBe(4);
  });

  test("colours change on images, not on cut-outs", () => {
    const cut = new Cutout({ p: 1, color: [200, 20, 20] }).compose(whole(), key());
    const changed = new HsvJitter({ hue: 0.2 }).compose(cut, key());
    expect(changed.layers[0]!.hsv).not.toEqual([0, 1, 1]);
    expect(changed.layers[1]).toEqual(cut.layers[1]!);
  });

  test("photometric distortion with no size changes nothing", () => {
    const none = new PhotometricDistort({ brightness: 0, contrast: 0, saturation: 0, hue: 0, p: 0 });
    expect(none.compose(whole(), key())).toEqual(whole());
  });

  test("an image that could not be decoded leaves the fill colour", () => {
    expect([...new Set(draw(whole(), [102]))].sort((a, b) => a - b)).toEqual([7, 9, 11]);
  });
});

describe("orders of operations that cannot be", () => {
  const start = () => startComposition(images[0] as SourceImage, size[1], size[0]);
  const turn = new RandomAffine({ degrees: 30 });
  test.each([
    ["turning twice", () => turn.compose(turn.compose(start(), key()), key()), "turned or sheared (again)"],
    ["turning a cut-out", () => turn.compose(new Cutout({ p: 1 }).compose(start(), key()), key()), "with a cut-out"],
    [
      "contrast after hue",
      () => new PhotometricDistort({ p: 1 }).compose(new HsvJitter().compose(start(), key()), key()),
      "before changes of hue",
    ],
    ["mixing sizes", () => new MixUp({ p: 1 }).compose(start(), key(), others), "cannot be mixed"],
    ["a canvas of another size", () => packCompositions([start()], () => null, false), "expected 128x96"],
    ["a plan of one image", () => new Mosaic().apply({} as never), "needs an Augmentation"],
  ])("%s", (_name, run, words) => {
    expect(errorOf(run as () => unknown).message).toContain(words);
  });

  test.each([
    () => new HsvJitter({ hue: 0.6 }),
    () => new PhotometricDistort({ p: 2 }),
    () => new RandomAffine({ scale: 1 }),
    () => new Mosaic({ p: -1 }),
    () => new MixUp({ alpha: 0 }),
    () => new CopyPaste({ minScale: 2, maxScale: 1 }),
    () => new Cutout({ holes: 0 }),
  ])("bad options are errors that name the operation (%#)", (make) => {
    expect(errorOf(make).message).toMatch(/^(HsvJitter|PhotometricDistort|RandomAffine|Mosaic|MixUp|copyPaste|cutout)/);
  });
});

describe("from encoded images to a batch", () => {
  const codec = new DeviceImageCodec(device);
  const encoded = new Map(
    images.map((image) => {
      const { width, height } = image;
      return [image.id, codec.encode({ width, height, data: picture(image) }, 95)] as const;
    }),
  );
  const preprocessing = [new Normalize({ fill: [7, 9, 11] })];
  const augmentation = new Augmentation({ operations: augmentationPreset("yolo"), seed: 2 });
  const compositions = images.map((_, place) => augmentation.compose(set, place, 0, size));

  test("a slot holds what drawing the decoded images gives; each is decoded once", async () => {
    const [batchSize, [height, width]] = [4, size];
    using decoder = new DeviceCompositionDecoder(device, { batchSize, height, width, preprocessing });
    using resources = new DisposableStack();
    const tensors = new Map(
      [...encoded].map(([id, bytes]) => {
        const decoded = codec.decode(bytes);
        const shape = [decoded.height, decoded.width, 3];
        return [id, resources.use(Tensor.from(device, decoded.data, shape, "u8"))] as const;
      }),
    );
    using expected = Tensor.empty(device, [batchSize, height, width, 3]);
    const pixels = (id: number) => ({ address: tensors.get(id)!.address, pitch: 3 * tensors.get(id)!.shape[1]! });
    drawCompositions(expected, compositions, pixels, { preprocessing });
    // Two batches at a time, in two slots.
    const results = await Promise.all([0, 2].map((slot) => decoder.compose(slot, compositions, encoded)));
    expect(results).toEqual([
      { failures: [], blank: [] },
      { failures: [], blank: [] },
    ]);
    for (const slot of [0, 2]) expectSameBytes(decoder.images(slot).readBytes(), expected.readBytes(), `slot ${slot}`);
  });

  test("images that are damaged, missing or of another size are named; the others are drawn", async () => {
    const [height, width] = size;
    using decoder = new DeviceCompositionDecoder(device, { batchSize: 4, height, width, preprocessing });
    const plain = new Augmentation({ operations: [new Resize(), new Normalize()] });
    const whole = images.map((_, place) => plain.compose(set, place, 0, size));
    const damaged = new Map(encoded);
    damaged.set(100, damaged.get(100)!.slice(0, 300));
    damaged.set(101, damaged.get(102)!);
    damaged.delete(103);
    const { failures, blank } = await decoder.compose(1, whole, damaged);
    expect(blank).toEqual([0, 1, 3]);
    expect(failures.map(({ id }) => id).sort()).toEqual([100, 101, 103]);
    expect(failures.find(({ id }) => id === 101)!.message).toContain(
      "expected an image of 90 x 200 pixels, got one of 128 x 96",
    );
    const values = decoder.images(1).read() as Float32Array;
    const perImage = values.length / 4;
    const different = (i: number) => new Set(values.subarray(i * perImage, (i + 1) * perImage)).size;
    expect([0, 1, 3].map(different)).toEqual([3, 3, 3]);
    expect(different(2)).toBeGreaterThan(20);
  });

  test("what draws on an image that failed is blank as a whole", async () => {
    const [height, width] = size;
    using decoder = new DeviceCompositionDecoder(device, { batchSize: 1, height, width, preprocessing });
    const mosaic = compositions.find(({ layers }) => new Set(layers.map(({ source }) => source!.id)).size > 1)!;
    const some = new Map([...encoded].filter(([id]) => id !== mosaic.layers[0]!.source!.id));
    expect((await decoder.compose(0, [mosaic], some)).blank).toEqual([0]);
    expect(new Set(decoder.images(0).read()).size).toBe(3);
  });

  test("more pixels than the limit are an error that names both", async () => {
    const [height, width] = size;
    const options = { batchSize: 4, height, width, preprocessing, maxPixelBytes: 100_000 };
    using decoder = new DeviceCompositionDecoder(device, options);
    const error = await decoder.compose(0, compositions, encoded).catch((e) => e);
    expect(error.message).toContain("more than the limit of 100000");
  });
});

test("sizes of multi-scale training come from the list, by (seed, epoch, batch)", () => {
  const sizes = [320, 384, 448, 512].map((side) => [side, side] as const);
  const draws = Array.from({ length: 60 }, (_, batch) => multiScaleSize(sizes, { seed: 1, epoch: 0, batch }));
  expect(new Set(draws).size).toBe(4);
  expect(multiScaleSize(sizes, { seed: 1, epoch: 0, batch: 9 })).toBe(draws[9]!);
});

test("the layout of a layer is the header's", () => {
  expect([LAYER_NUMBERS, MAX_LAYERS]).toEqual([constants.LAYER_NUMBERS, constants.MAX_LAYERS]);
  expect(constants.LAYER_ANTIALIAS).toBe(1);
});

import { describe, expect, test } from "bun:test";
import {
  dropSmallBoxes,
  type ImagePlan,
  mapBoxesToImage,
  mappingOf,
  place,
  startPlan,
  writeTransform,
} from "../../lib/data/image-plan";
import { CounterRandom } from "../../lib/data/random";
import {
  HorizontalFlip,
  Normalize,
  normalizationOf,
  type PreprocessOp,
  parsePreprocessing,
  RandomCrop,
  Resize,
  ScaleJitter,
  VerticalFlip,
  withoutAugmentation,
} from "../../lib/data/transforms";

const random = (image: number, operation = 0): CounterRandom =>
  new CounterRandom({ seed: 1, epoch: 0, image, operation });

function start(width: number, height: number, output: [number, number], boxes: number[][] = []): ImagePlan {
  const labels = Int32Array.from(boxes, (_, i) => i);
  return startPlan(width, height, output[1], output[0], Float64Array.from(boxes.flat()), labels);
}

function run(ops: PreprocessOp[], plan: ImagePlan, image = 0): ImagePlan {
  return ops.reduce((p, op, i) => op.apply(p, random(image, i)), plan);
}

/**
 * What dlfs_preprocess draws, by the formula in dlfs.h and nearest neighbours: for each output pixel the source pixel's
 * value, or -1 for the fill colour.
 */
function draw(source: Int32Array, width: number, height: number, plan: ImagePlan): Int32Array {
  const t = new Float32Array(12);
  writeTransform(t, 0, plan);
  const [cropX, cropY, cropW, cropH, targetX, targetY, targetW, targetH, flipX, flipY] = [...t] as number[] as [
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  const out = new Int32Array(plan.outputWidth * plan.outputHeight).fill(-1);
  for (let v = 0; v < plan.outputHeight; v++) {
    for (let u = 0; u < plan.outputWidth; u++) {
      let dx = u + 0.5 - targetX;
      let dy = v + 0.5 - targetY;
      if (dx < 0 || dx >= targetW || dy < 0 || dy >= targetH) continue;
      if (flipX) dx = targetW - dx;
      if (flipY) dy = targetH - dy;
      const x = Math.round((dx * cropW) / targetW - 0.5 + cropX);
      const y = Math.round((dy * cropH) / targetH - 0.5 + cropY);
      if (x < 0 || x >= width || y < 0 || y >= height) continue;
      out[v * plan.outputWidth + u] = source[y * width + x] as number;
    }
  }
  return out;
}

/** Extent x1, y1, x2, y2 of the pixels of a value; null where there are none. */
function extent(pixels: Int32Array, width: number, value: number): number[] | null {
  const found = [Infinity, Infinity, -Infinity, -Infinity] as [number, number, number, number];
  for (const [at, pixel] of pixels.entries()) {
    if (pixel !== value) continue;
    const x = at % width;
    const y = Math.floor(at / width);
    found[0] = Math.min(found[0], x);
    found[1] = Math.min(found[1], y);
    found[2] = Math.max(found[2], x + 1);
    found[3] = Math.max(found[3], y + 1);
  }
  return found[2] > 0 ? found : null;
}

describe("plans move boxes as the drawn pixels move", () => {
  const cases: [string, PreprocessOp[]][] = [
    ["letterbox", [new Resize()]],
    ["letterbox in the corner", [new Resize({ align: "corner" })]],
    ["stretch", [new Resize({ mode: "stretch" })]],
    ["flips", [new HorizontalFlip(0.5), new VerticalFlip(0.5), new Resize()]],
    ["flips after resizing", [new Resize(), new HorizontalFlip(0.5), new VerticalFlip(0.5)]],
    ["jitter", [new ScaleJitter(0.4, 2.5, { minVisible: 0 }), new Resize()]],
    ["jitter after resizing", [new Resize(), new HorizontalFlip(1), new ScaleJitter(0.4, 2.5, { minVisible: 0 })]],
    ["crop", [new RandomCrop({ overlaps: [0] }), new Resize()]],
    [
      "crop of a mirrored image",
      [new HorizontalFlip(1), new VerticalFlip(1), new RandomCrop({ overlaps: [0] }), new Resize()],
    ],
    [
      "everything",
      [
        new ScaleJitter(0.5, 2, { minVisible: 0 }),
        new HorizontalFlip(),
        new RandomCrop(),
        new VerticalFlip(),
        new Resize(),
        new ScaleJitter(0.7, 1.4, { minVisible: 0 }),
        new HorizontalFlip(),
        new Normalize(),
      ],
    ],
  ];
  const [width, height] = [90, 60];
  const output: [number, number] = [64, 80];

  test.each(cases)("%s", (_, ops) => {
    let compared = 0;
    for (let image = 0; image < 60; image++) {
      const r = random(image, 99);
      const [w, h] = [r.integer(50) + 20, r.integer(30) + 15];
      const [x, y] = [r.integer(width - w + 1), r.integer(height - h + 1)];
      const source = new Int32Array(width * height);
      for (let row = y; row < y + h; row++) source.fill(1, row * width + x, row * width + x + w);
      const plan = run(ops, start(width, height, output, [[x, y, x + w, y + h]]), image);
      expect([plan.canvasWidth, plan.canvasHeight]).toEqual([output[1], output[0]]);
      const seen = extent(draw(source, width, height, plan), output[1], 1);
      if (plan.labels.length === 0) {
        // A crop drops boxes whose centre is out of sight, everything else only what cannot be seen.
        if (!ops.some((op) => op instanceof RandomCrop)) expect(seen).toBeNull();
        continue;
      }
      compared++;
      // A source pixel may cover several output pixels, so an edge lies that far off at most.
      const tolerance =
        0.51 * Math.max(1, plan.target.width / plan.crop.width, plan.target.height / plan.crop.height) + 0.5;
      for (let k = 0; k < 4; k++) {
        expect(Math.abs((plan.boxes[k] as number) - (seen as number[])[k]!)).toBeLessThanOrEqual(tolerance);
      }
    }
    expect(compared).toBeGreaterThan(10);
  });

  test.each(cases)("%s: the mapping to the input and back", (_, ops) => {
    for (let image = 0; image < 30; image++) {
      const plan = run(ops, start(width, height, output), image);
      const { crop, target } = plan;
      // The crop's corners fall on the target's.
      const m = mappingOf(plan);
      const xs = [crop.x * m.scaleX + m.offsetX, (crop.x + crop.width) * m.scaleX + m.offsetX].sort((a, b) => a - b);
      const ys = [crop.y * m.scaleY + m.offsetY, (crop.y + crop.height) * m.scaleY + m.offsetY].sort((a, b) => a - b);
      expect(xs[0]).toBeCloseTo(target.x, 6);
      expect(xs[1]).toBeCloseTo(target.x + target.width, 6);
      expect(ys[0]).toBeCloseTo(target.y, 6);
      expect(ys[1]).toBeCloseTo(target.y + target.height, 6);
      const box = Float64Array.from([target.x, target.y, target.x + target.width, target.y + target.height, 0.5, 7]);
      mapBoxesToImage(box, m, width, height, 6);
      expect(box[0]).toBeCloseTo(crop.x, 6);
      expect(box[3]).toBeCloseTo(crop.y + crop.height, 6);
      expect([box[4], box[5]]).toEqual([0.5, 7]);
    }
  });
});

describe("Resize", () => {
  test("letterboxes to whole pixels, centred", () => {
    const plan = run([new Resize()], start(640, 427, [320, 320], [[0, 0, 640, 427]]));
    expect(plan.target).toEqual({ x: 0, y: 53, width: 320, height: 214 });
    expect([...plan.boxes]).toEqual([0, 53, 320, 267]);
  });

  test("letterboxes into the corner", () => {
    expect(run([new Resize({ align: "corner" })], start(640, 427, [320, 320])).target.y).toBe(0);
  });

  test("stretches", () => {
    const plan = run([new Resize({ mode: "stretch" })], start(100, 50, [200, 300], [[10, 10, 20, 20]]));
    expect([...plan.boxes]).toEqual([30, 40, 60, 80]);
  });

  test("takes an image of one pixel, and one of a single column", () => {
    expect(run([new Resize()], start(1, 1, [64, 64])).target).toEqual({ x: 0, y: 0, width: 64, height: 64 });
    expect(run([new Resize()], start(1, 5000, [64, 64])).target).toEqual({ x: 31, y: 0, width: 1, height: 64 });
  });
});

describe("flips", () => {
  test("mirror with the given probability", () => {
    const count = (p: number): number => {
      const op = new HorizontalFlip(p);
      return Array.from({ length: 1000 }, (_, i) => op.apply(start(4, 4, [4, 4]), random(i))).filter((q) => q.flipX)
        .length;
    };
    expect(count(0)).toBe(0);
    expect(count(1)).toBe(1000);
    expect(Math.abs(count(0.3) - 300)).toBeLessThan(60);
  });

  test("twice is no change", () => {
    const plan = start(10, 8, [8, 10], [[1, 2, 4, 8]]);
    const twice = run([new HorizontalFlip(1), new HorizontalFlip(1), new VerticalFlip(1), new VerticalFlip(1)], plan);
    expect(twice).toEqual(plan);
    expect([...run([new HorizontalFlip(1)], plan).boxes]).toEqual([6, 2, 9, 8]);
    expect([...run([new VerticalFlip(1)], plan).boxes]).toEqual([1, 0, 4, 6]);
  });
});

describe("ScaleJitter", () => {
  test("keeps the canvas, and the image inside it or covering it", () => {
    const factors: number[] = [];
    for (let i = 0; i < 200; i++) {
      const { target, crop, canvasWidth, canvasHeight } = new ScaleJitter(0.5, 2).apply(
        start(80, 60, [1, 1]),
        random(i),
      );
      expect([canvasWidth, canvasHeight]).toEqual([80, 60]);
      const factor = target.width / crop.width;
      factors.push(factor);
      if (factor >= 1) expect(target).toEqual({ x: 0, y: 0, width: 80, height: 60 });
      else expect(crop).toEqual({ x: 0, y: 0, width: 80, height: 60 });
      expect(target.x >= 0 && target.y >= 0 && target.x + target.width <= 80 + 1e-9).toBe(true);
      expect(crop.x >= -1e-9 && crop.x + crop.width <= 80 + 1e-9 && crop.y + crop.height <= 60 + 1e-9).toBe(true);
    }
    expect(Math.min(...factors)).toBeLessThan(0.55);
    expect(Math.max(...factors)).toBeGreaterThan(1.8);
    // Log-uniform: as many below 1 as above.
    expect(Math.abs(factors.filter((f) => f < 1).length - 100)).toBeLessThan(30);
  });

  test("drops boxes of which too little stays visible", () => {
    let [kept, dropped] = [0, 0];
    for (let i = 0; i < 200; i++) {
      const plan = new ScaleJitter(2, 2, { minVisible: 0.5 }).apply(start(40, 40, [1, 1], [[0, 0, 20, 20]]), random(i));
      const fraction = (Math.max(0, 20 - plan.crop.x) * Math.max(0, 20 - plan.crop.y)) / 400;
      expect(plan.labels.length).toBe(fraction >= 0.5 ? 1 : 0);
      if (fraction >= 0.5) kept++;
      else dropped++;
    }
    expect(kept).toBeGreaterThan(20);
    expect(dropped).toBeGreaterThan(20);
  });
});

describe("RandomCrop", () => {
  const boxes = [
    [10, 10, 30, 40],
    [60, 5, 95, 50],
  ];

  test("keeps boxes whose centre is inside, and the overlap that it drew", () => {
    let crops = 0;
    for (let i = 0; i < 200; i++) {
      const plan = new RandomCrop({ overlaps: [0.3] }).apply(start(100, 60, [1, 1], boxes), random(i));
      const { crop } = plan;
      if (crop.width === 100 && crop.height === 60) continue;
      crops++;
      const aspect = crop.width / 100 / (crop.height / 60);
      expect(aspect >= 0.5 - 1e-9 && aspect <= 2 + 1e-9).toBe(true);
      expect(crop.x >= 0 && crop.y >= 0 && crop.x + crop.width <= 100 && crop.y + crop.height <= 60).toBe(true);
      const inside = boxes.filter(([x1, y1, x2, y2]) => {
        const [cx, cy] = [(x1! + x2!) / 2 - crop.x, (y1! + y2!) / 2 - crop.y];
        return cx >= 0 && cx < crop.width && cy >= 0 && cy < crop.height;
      });
      expect(plan.labels.length).toBe(inside.length);
      const overlap = inside.map(([x1, y1, x2, y2]) => {
        const w = Math.min(x2!, crop.x + crop.width) - Math.max(x1!, crop.x);
        const h = Math.min(y2!, crop.y + crop.height) - Math.max(y1!, crop.y);
        return (w * h) / ((x2! - x1!) * (y2! - y1!) + crop.width * crop.height - w * h);
      });
      expect(Math.max(...overlap)).toBeGreaterThanOrEqual(0.3 - 1e-9);
    }
    expect(crops).toBeGreaterThan(100);
  });

  test("crops an image without boxes, leaves one whole when 1 is drawn", () => {
    expect(new RandomCrop({ overlaps: [0.9] }).apply(start(100, 60, [1, 1]), random(3)).crop.width).toBeLessThan(100);
    const plan = start(100, 60, [1, 1], boxes);
    expect(new RandomCrop({ overlaps: [1] }).apply(plan, random(3))).toBe(plan);
  });

  test("crops within the image, not within what surrounds it", () => {
    for (let i = 0; i < 50; i++) {
      const plan = run([new ScaleJitter(0.3, 0.3), new RandomCrop({ overlaps: [0] })], start(100, 60, [1, 1]), i);
      expect(plan.target.width).toBeCloseTo(plan.canvasWidth, 6);
      expect(plan.target.height).toBeCloseTo(plan.canvasHeight, 6);
    }
  });
});

test("boxes are clipped where they are cut, dropped where nothing is left, and small ones on demand", () => {
  const plan = start(
    100,
    100,
    [1, 1],
    [
      [0, 0, 30, 30],
      [20, 20, 60, 60],
      [70, 70, 90, 90],
    ],
  );
  const cut = { scaleX: 1, scaleY: 1, shiftX: -25, shiftY: -25, canvasWidth: 40, canvasHeight: 40 };
  const all = place(plan, cut, 0);
  expect([...all.boxes]).toEqual([0, 0, 5, 5, 0, 0, 35, 35]);
  expect([...all.labels]).toEqual([0, 1]);
  expect([...place(plan, cut, 0.1).labels]).toEqual([1]);
  expect([...place(plan, cut, "center").labels]).toEqual([1]);
  const large = dropSmallBoxes(all, 6);
  expect([...large.boxes, ...large.labels]).toEqual([0, 0, 35, 35, 1]);
  expect(dropSmallBoxes(all, 5)).toBe(all);
});

test("normalisation is mean, standard deviation and fill colour", () => {
  const op = new Normalize({ mean: [0.5, 0.25, 0], std: [0.5, 1, 2] });
  expect([...normalizationOf([new Resize(), op])]).toEqual([0.5, 0.25, 0, 0.5, 1, 2, 127.5, 63.75, 0]);
  expect([...normalizationOf([])]).toEqual([0, 0, 0, 1, 1, 1, 0, 0, 0]);
  expect(() => normalizationOf([op, op])).toThrow("2 Normalize operations");
});

test("operations survive being written as JSON", () => {
  const ops = [
    new ScaleJitter(0.7, 1.4, { minVisible: 0.1 }),
    new RandomCrop({ minScale: 0.5, overlaps: [0, 0.5] }),
    new HorizontalFlip(0.25),
    new VerticalFlip(0.75),
    new Resize({ mode: "stretch" }),
    new Normalize({ std: [1, 1, 1] }),
  ];
  const copy = parsePreprocessing(JSON.parse(JSON.stringify(ops)));
  expect(copy).toEqual(ops);
  expect(withoutAugmentation(copy).map((op) => op.name)).toEqual(["resize", "normalize"]);
  expect(() => parsePreprocessing([{ name: "blur" }])).toThrow('preprocessing[0]: unknown operation "blur"');
});

test.each([
  [() => new HorizontalFlip(1.5), "HorizontalFlip: expected a number in 0 to 1, got 1.5"],
  [() => new ScaleJitter(2, 1), "ScaleJitter: needs 0 < min <= max, got 2 and 1"],
  [() => new ScaleJitter(Number.NaN, 1), "ScaleJitter: needs 0 < min <= max"],
  [() => new RandomCrop({ maxScale: 2 }), "RandomCrop: needs 0 < minScale <= maxScale <= 1"],
  [() => new Normalize({ std: [1, 0, 1] }), "Normalize: std must be > 0, got [1,0,1]"],
  [() => new Normalize({ mean: [1, 2] }), "Normalize: mean must be three numbers, got [1,2]"],
  [() => new Resize({ mode: "fit" as "stretch" }), 'Resize: mode is "letterbox" or "stretch", got fit'],
])("bad options are named: %p", (make, message) => {
  expect(make).toThrow(message);
});

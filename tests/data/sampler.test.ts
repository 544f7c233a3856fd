import { describe, expect, test } from "bun:test";
import { AspectRatioBatches } from "../../lib/data/batch-sampler";
import { EpochRandom, RandomOperation } from "../../lib/data/random";
import {
  ClassBalancedSampler,
  FirstImages,
  RepeatFactorSampler,
  type SampledImages,
  type Sampler,
  SequentialSampler,
  ShuffleSampler,
  WeightedSampler,
} from "../../lib/data/sampler";
import { errorOf } from "../support/errors";
import { failure } from "./fakes";

/** Images by the classes of their boxes. */
function imagesOf(boxes: readonly (readonly number[])[], aspectRatios?: readonly number[]): SampledImages {
  const starts = [0];
  for (const labels of boxes) starts.push((starts.at(-1) as number) + labels.length);
  return {
    length: boxes.length,
    ids: boxes.map((_, i) => 1000 + i),
    aspectRatios: aspectRatios ?? boxes.map(() => 1),
    classes: Math.max(0, ...boxes.flat()) + 1,
    starts,
    labels: boxes.flat(),
  };
}

/** 1,000 images: each has class 0, every 10th class 1 (twice), every 100th class 2, one class 3; the last 50 have no box. */
const longTail = imagesOf(
  Array.from({ length: 1000 }, (_, i) => {
    if (i >= 950) return [];
    return [0, ...(i % 10 === 0 ? [1, 1] : []), ...(i % 100 === 0 ? [2] : []), ...(i === 7 ? [3] : [])];
  }),
);

/** How often each image comes in an order. */
function timesOf(order: Uint32Array, length: number): number[] {
  const times = Array<number>(length).fill(0);
  for (const image of order) times[image] = (times[image] as number) + 1;
  return times;
}

const samplers: [string, () => Sampler][] = [
  ["SequentialSampler", () => new SequentialSampler()],
  ["ShuffleSampler", () => new ShuffleSampler()],
  ["WeightedSampler", () => new WeightedSampler({ weights: (i) => 1 + (i % 7) })],
  ["WeightedSampler without replacement", () => new WeightedSampler({ weights: (i) => i, replacement: false })],
  ["ClassBalancedSampler", () => new ClassBalancedSampler({ background: 0.1 })],
  ["RepeatFactorSampler", () => new RepeatFactorSampler({ threshold: 0.05 })],
];

describe.each(samplers)("%s", (name, make) => {
  test("gives the same pass again, from another instance and after other passes, and other passes otherwise", () => {
    const sampler = make();
    const passes = [0, 1, 2].map((epoch) => sampler.order(longTail, { seed: 3, epoch }));
    expect(sampler.order(longTail, { seed: 3, epoch: 1 })).toEqual(passes[1] as Uint32Array);
    expect(make().order(longTail, { seed: 3, epoch: 2 })).toEqual(passes[2] as Uint32Array);
    const others = [passes[0], passes[1], passes[2], sampler.order(longTail, { seed: 4, epoch: 0 })];
    const different = new Set(others.map(String)).size;
    expect(different).toBe(name === "SequentialSampler" ? 1 : 4);
    expect(make().toJSON().name).toBe(name.split(" ")[0] as string);
  });
});

describe("EpochRandom", () => {
  test("goes on past the numbers of one stream, and shuffles evenly", () => {
    const random = new EpochRandom(1, 2, RandomOperation.sample);
    const n = 300_000;
    let [sum, squares] = [0, 0];
    for (let i = 0; i < n; i++) {
      const value = random.uniform();
      sum += value;
      squares += value * value;
    }
    // The standard errors are 0.0005 and 0.0005.
    expect(Math.abs(sum / n - 1 / 2)).toBeLessThan(0.002);
    expect(Math.abs(squares / n - 1 / 3)).toBeLessThan(0.002);
    const counts = new Map<string, number>();
    for (let i = 0; i < 6000; i++) {
      const key = random.shuffle(Uint8Array.of(0, 1, 2)).join();
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    // 1000 each, with a standard deviation of 29.
    expect(counts.size).toBe(6);
    for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(120);
  });
});

describe("WeightedSampler", () => {
  const weights = Float64Array.from({ length: 10 }, (_, i) => (i === 3 || i === 9 ? 0 : i + 1));
  const ten = imagesOf(Array.from({ length: 10 }, () => [0]));
  const total = weights.reduce((sum, weight) => sum + weight, 0);

  test("draws images in proportion to their weights", () => {
    const samples = 50_000;
    const times = timesOf(new WeightedSampler({ weights, samples }).order(ten, { seed: 1, epoch: 0 }), 10);
    for (const [i, weight] of weights.entries()) {
      const p = weight / total;
      const deviation = Math.sqrt(samples * p * (1 - p));
      expect(Math.abs((times[i] as number) - samples * p)).toBeLessThanOrEqual(4 * deviation);
    }
  });

  test("without replacement, gives each image once, the first ones in proportion to their weights", () => {
    const sampler = new WeightedSampler({ weights, replacement: false });
    const first = Array<number>(10).fill(0);
    const second = Array<number>(10).fill(0);
    const passes = 20_000;
    for (let epoch = 0; epoch < passes; epoch++) {
      const order = sampler.order(ten, { seed: 2, epoch });
      first[order[0] as number]!++;
      second[order[1] as number]!++;
      if (epoch < 20) expect([...order].sort()).toEqual([0, 1, 2, 4, 5, 6, 7, 8]);
    }
    for (const [i, weight] of weights.entries()) {
      const p = weight / total;
      expect(Math.abs(first[i]! - passes * p)).toBeLessThanOrEqual(4 * Math.sqrt(passes * p * (1 - p)));
      // Second is i where any other was first, and i is drawn from what is left.
      let q = 0;
      for (const [j, other] of weights.entries()) if (j !== i) q += (other / total) * (weight / (total - other));
      expect(Math.abs(second[i]! - passes * q)).toBeLessThanOrEqual(4 * Math.sqrt(passes * q * (1 - q)));
    }
    const two = new WeightedSampler({ weights, replacement: false, samples: 2 });
    expect(two.order(ten, { seed: 2, epoch: 5 })).toEqual(sampler.order(ten, { seed: 2, epoch: 5 }).slice(0, 2));
  });

  test("never draws images of weight 0 at either end", () => {
    const order = new WeightedSampler({ weights: [0, 1, 0], samples: 1000 }).order(imagesOf([[0], [0], [0]]), {
      seed: 0,
      epoch: 0,
    });
    expect(new Set(order)).toEqual(new Set([1]));
  });

  test.each<[string, ConstructorParameters<typeof WeightedSampler>[0], string]>([
    ["another number of weights", { weights: [1, 2] }, "2 weights for 10 images"],
    ["a negative weight", { weights: (i) => 2 - i }, "the weight of image 1003 is -1, expected a number >= 0"],
    ["a weight that is no number", { weights: () => Number.NaN }, "the weight of image 1000 is NaN"],
    ["weights that are all 0", { weights: () => 0 }, "all weights are 0"],
    ["half a sample", { weights: () => 1, samples: 0.5 }, "samples must be an integer >= 1, got 0.5"],
    [
      "more samples than images without replacement",
      { weights, samples: 9, replacement: false },
      "9 samples without replacement, but 8 images have a weight above 0",
    ],
  ])("refuses %s", async (_, options, message) => {
    const error = await failure(() => new WeightedSampler(options).order(ten, { seed: 0, epoch: 0 }));
    expect(error.message).toContain(message);
  });
});

describe("ClassBalancedSampler", () => {
  test("lets classes take turns, and the images of each", () => {
    const order = new ClassBalancedSampler({ samples: 400 }).order(longTail, { seed: 1, epoch: 0 });
    // Of each four samples one is for each class. Images of class 3, 2 and 1 alone can be told apart from all.
    const times = timesOf(order, 1000);
    expect(times[7]).toBeGreaterThanOrEqual(100);
    expect(times[7]).toBeLessThanOrEqual(101); // once for class 0 at most
    const hundreds = times.filter((_, i) => i % 100 === 0 && i < 950);
    // Ten images share class 2's 100 turns exactly; class 1 and class 0 bring each at most three times more.
    for (const count of hundreds) {
      expect(count).toBeGreaterThanOrEqual(10);
      expect(count).toBeLessThanOrEqual(13);
    }
    for (let i = 950; i < 1000; i++) expect(times[i]).toBe(0);
    for (let at = 0; at < 400; at += 4) expect(order.subarray(at, at + 4)).toContain(7);
  });

  test("gives images without boxes the share asked for", () => {
    const order = new ClassBalancedSampler({ background: 0.25 }).order(longTail, { seed: 1, epoch: 0 });
    const times = timesOf(order, 1000);
    // 250 turns of 50 images.
    for (let i = 950; i < 1000; i++) expect(times[i]).toBe(5);
    const inFirstHalf = order.subarray(0, 500).filter((image) => image >= 950).length;
    expect(Math.abs(inFirstHalf - 125)).toBeLessThan(30);
  });

  test("refuses what cannot be balanced", async () => {
    const pass = { seed: 0, epoch: 0 };
    const none = await failure(() => new ClassBalancedSampler().order(imagesOf([[], []]), pass));
    expect(none.message).toBe("ClassBalancedSampler: no image has boxes");
    const full = await failure(() => new ClassBalancedSampler({ background: 0.5 }).order(imagesOf([[0]]), pass));
    expect(full.message).toContain("background is 0.5, but all images have boxes");
    expect(() => new ClassBalancedSampler({ background: 1 })).toThrow("background must be in [0, 1), got 1");
  });
});

describe("RepeatFactorSampler", () => {
  test("has the paper's factors", () => {
    const factors = new RepeatFactorSampler({ threshold: 0.05 }).factors(longTail);
    expect(factors[1]).toBe(1); // class 0: 95 % of the images
    expect(factors[10]).toBe(1); // class 1: 95 of 1,000, however many boxes
    expect(factors[100]).toBeCloseTo(Math.sqrt(0.05 / 0.01), 12); // class 2: 10 of 1,000
    expect(factors[7]).toBeCloseTo(Math.sqrt(0.05 / 0.001), 12); // class 3: one
    expect(factors[999]).toBe(1); // no class
  });

  test("rounds factors at random, right on average, by itself for each image and pass", () => {
    const sampler = new RepeatFactorSampler({ threshold: 0.05 });
    const passes = 1000;
    const sums = Array<number>(1000).fill(0);
    const pairs = new Map<string, number>();
    for (let epoch = 0; epoch < passes; epoch++) {
      const times = timesOf(sampler.order(longTail, { seed: 9, epoch }), 1000);
      for (const [i, count] of times.entries()) sums[i]! += count;
      expect(times[7] === 7 || times[7] === 8).toBe(true);
      const pair = `${times[100]} ${times[200]}`;
      pairs.set(pair, (pairs.get(pair) ?? 0) + 1);
    }
    expect(sums[1]).toBe(passes);
    expect(sums[999]).toBe(passes);
    // 2.236 and 7.071: four standard errors of the mean of 1,000 such roundings are 0.054 and 0.033.
    for (let i = 0; i < 950; i += 100) expect(Math.abs(sums[i]! / passes - Math.sqrt(5))).toBeLessThan(0.054);
    expect(Math.abs(sums[7]! / passes - Math.sqrt(50))).toBeLessThan(0.033);
    // Both rounded up: 0.236 squared, 56 of 1,000 with a standard deviation of 7.
    expect(Math.abs(pairs.get("3 3")! - 55.7)).toBeLessThan(29);
  });

  test("keeps the rounding of an image when others come", () => {
    const boxes = Array.from({ length: 40 }, (_, i) => (i % 10 === 0 ? [0, 1] : [0]));
    const sampler = new RepeatFactorSampler({ threshold: 0.25 });
    // Twice as many of both kinds leave the frequencies as they are.
    const few = timesOf(sampler.order(imagesOf(boxes), { seed: 1, epoch: 3 }), 40);
    const many = timesOf(sampler.order(imagesOf([...boxes, ...boxes]), { seed: 1, epoch: 3 }), 80);
    expect(many.slice(0, 40)).toEqual(few);
  });

  test("refuses a threshold that is no share", () => {
    for (const threshold of [0, -1, 1.5, Number.NaN]) {
      expect(() => new RepeatFactorSampler({ threshold })).toThrow(
        `threshold must be above 0 and at most 1, got ${threshold}`,
      );
    }
  });
});

describe("AspectRatioBatches", () => {
  test("has torchvision's groups", () => {
    // bisect_right of 2 ** linspace(-1, 1, 7) and of [1.0].
    const groups = [0.3, 0.5, 0.62, 0.63, 0.9, 1, 1.25, 1.26, 1.99, 2, 4].map((r) =>
      new AspectRatioBatches().groupOf(r),
    );
    expect(groups).toEqual([0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7]);
    expect([0.99, 1, 3].map((ratio) => new AspectRatioBatches({ k: 0 }).groupOf(ratio))).toEqual([0, 1, 1]);
  });

  // Expected: what GroupedBatchSampler of torchvision's references/detection/group_by_aspect_ratio.py gives for these.
  const ratios = [2.5, 0.4, 0.4, 2.5, 2.5, 0.4, 2.5, 1, 0.4, 2.5, 2.5, 2.5];
  const images = imagesOf(
    ratios.map(() => [0]),
    ratios,
  );
  const order = Uint32Array.from(ratios.keys());

  test("makes a batch each time a group has enough, then fills up the largest groups", () => {
    const arranged = new AspectRatioBatches().arrange(order, images, 3, false);
    expect([...arranged]).toEqual([0, 3, 4, 1, 2, 5, 6, 9, 10, 8, 1, 2]);
  });

  test("agrees with torchvision on more images", () => {
    const ratios = Array.from({ length: 101 }, (_, i) => 2 ** (((i * 29) % 53) / 13 - 2));
    const order = Uint32Array.from({ length: 101 }, (_, i) => (i * 37) % 101);
    const many = imagesOf(
      ratios.map(() => [0]),
      ratios,
    );
    expect([...new AspectRatioBatches().arrange(order, many, 8, false)]).toEqual([
      ...[0, 57, 77, 13, 97, 33, 53, 26, 84, 20, 40, 60, 80, 16, 73, 9, 46, 66, 2, 86, 22, 79, 15, 99, 93, 29, 49, 69],
      ...[5, 42, 62, 82, 74, 43, 12, 96, 32, 65, 1, 85, 47, 67, 100, 36, 89, 25, 78, 14, 35, 55, 75, 11, 68, 4, 88, 24],
      ...[3, 87, 23, 56, 76, 45, 98, 34, 18, 38, 58, 95, 31, 51, 71, 7, 37, 70, 6, 90, 59, 28, 48, 81, 10, 94, 30, 63],
      ...[83, 52, 41, 10, 50, 19, 39, 72, 8, 92, 61, 50],
    ]);
  });

  test("has every image where each must come", () => {
    const arranged = new AspectRatioBatches().arrange(order, images, 3, true);
    expect([...arranged]).toEqual([0, 3, 4, 1, 2, 5, 6, 9, 10, 8, 1, 2, 7, 7, 7, 11, 0, 3]);
  });

  test("gives as many batches as without grouping, each of one group", () => {
    const many = imagesOf(
      Array.from({ length: 500 }, () => [0]),
      Array.from({ length: 500 }, (_, i) => 2 ** (((i * 37) % 41) / 10 - 2)),
    );
    const batches = new AspectRatioBatches();
    const arranged = batches.arrange(new ShuffleSampler().order(many, { seed: 0, epoch: 0 }), many, 16, false);
    expect(arranged.length).toBe(16 * Math.floor(500 / 16));
    const groups = Array.from(arranged, (i) => batches.groupOf(many.aspectRatios[i] as number));
    for (let at = 0; at < groups.length; at += 16) expect(new Set(groups.slice(at, at + 16)).size).toBe(1);
  });
});

describe("FirstImages", () => {
  const pass = { seed: 3, epoch: 0 };

  test("has the first images alone, in an order of each pass, or always the same", () => {
    const shuffled = new FirstImages({ count: 20 });
    const first = shuffled.order(longTail, pass);
    expect([...first].sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => i));
    expect(shuffled.order(longTail, { seed: 3, epoch: 1 })).not.toEqual(first);
    expect([...new FirstImages({ count: 3, shuffle: false }).order(longTail, pass)]).toEqual([0, 1, 2]);
  });

  test("repeats them in turns where a pass is longer", () => {
    const order = [...new FirstImages({ count: 3, samples: 8 }).order(longTail, pass)];
    expect(order).toHaveLength(8);
    expect(new Set(order.slice(0, 3))).toEqual(new Set([0, 1, 2]));
    expect(order.slice(3)).toEqual(order.slice(0, 5));
  });

  test("needs as many, and refuses what is no count", () => {
    expect(errorOf(() => new FirstImages({ count: 1001 }).order(longTail, pass)).message).toContain(
      "at least 1001 images, got 1000",
    );
    expect(errorOf(() => new FirstImages({ count: 0 })).message).toContain("count must be an integer >= 1, got 0");
    expect(errorOf(() => new FirstImages({ count: 2, samples: 1.5 })).message).toContain(
      "samples must be an integer >= 1",
    );
  });
});

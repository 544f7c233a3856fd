/** The random cases of tests/golden/coco-eval/record_random.py, drawn again: the same numbers bit by bit. */

export interface RandomCase {
  images: number[];
  categories: number[];
  /** image, category, x, y, width, height, area, iscrowd, id */
  groundTruth: number[][];
  /** image, category, x, y, width, height, score */
  detections: number[][];
}

/** The linear congruential generator of Numerical Recipes; its upper bits. */
class Lcg {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
    for (let i = 0; i < 4; ++i) this.below(2);
  }

  /** An integer from 0 to n - 1. */
  below(n: number): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    // Below 2^24 times n: exact in a double.
    return Math.floor(((this.#state >>> 8) * n) / 2 ** 24);
  }

  chance(percent: number): boolean {
    return this.below(100) < percent;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)] as T;
  }
}

const edges = [
  [32, 32, 1024],
  [96, 96, 9216],
  [64, 16, 1024],
  [48, 192, 9216],
  [32, 32, 1024.0000000000002],
  [96, 96, 9215.999999999998],
] as const;

export function randomCase(seed: number): RandomCase {
  const rng = new Lcg(seed);
  const images = 1 + rng.below(6);
  const empty = rng.below(3);
  const firstImage = rng.pick([0, 1, 77]);
  const categories = 1 + rng.below(4);
  const categoryStep = rng.pick([1, 7]);
  const firstCategory = rng.pick([0, 1, 13]);
  const firstId = rng.pick([0, 1, 1000]);
  const unit = rng.pick([1, 8, 100, 65521]);
  const scoreSteps = rng.pick([1, 4, 10, 1000, 999983]);
  const objects = rng.below(7);
  const copies = rng.pick([0, 1, 1, 2, 12]);
  const crowd = rng.pick([0, 0, 15, 50]);
  const edge = rng.pick([0, 0, 60]);
  const flat = rng.pick([0, 0, 20]);
  const twin = rng.pick([0, 0, 50]);
  const missed = rng.pick([0, 20, 70]);
  const falsePositives = rng.pick([0, 2, 8, 45]);
  const jitter = rng.pick([0, 3, 15, 40]);

  const box = (): [box: number[], area: number] => {
    const [x, y] = [rng.below(600 * unit) / unit, rng.below(400 * unit) / unit];
    if (rng.chance(edge)) {
      const [w, h, area] = rng.pick(edges);
      return [[x, y, w, h], area];
    }
    const side = rng.pick([8, 30, 100, 300]);
    let [w, h] = [(1 + rng.below(side * unit)) / unit, (1 + rng.below(side * unit)) / unit];
    if (rng.chance(flat)) [w, h] = rng.chance(50) ? [0, h] : [w, 0];
    return [[x, y, w, h], w * h];
  };
  const moved = (value: number, scale: number) => value + (scale * (rng.below(2 * jitter + 1) - jitter)) / 100;
  const score = () => (1 + rng.below(scoreSteps)) / scoreSteps;

  const allImages = Array.from({ length: images + empty }, (_, i) => firstImage + 3 * i);
  const allCategories = Array.from({ length: categories + rng.below(2) }, (_, i) => firstCategory + categoryStep * i);
  const groundTruth: number[][] = [];
  const detections: number[][] = [];
  for (const image of allImages.slice(0, images)) {
    for (const category of allCategories.slice(0, categories)) {
      const count = rng.below(objects + 1);
      for (let i = 0; i < count; ++i) {
        const [shape, area] = box();
        const [x, y, w, h] = shape as [number, number, number, number];
        const places = rng.chance(twin) ? 2 : 1;
        for (let j = 0; j < places; ++j) {
          groundTruth.push([image, category, ...shape, area, rng.chance(crowd) ? 1 : 0, firstId + groundTruth.length]);
        }
        for (let j = 0; j < copies; ++j) {
          if (rng.chance(missed)) continue;
          const place = [moved(x, w), moved(y, h), moved(w, w), moved(h, h)];
          detections.push([image, category, ...place, score()]);
        }
      }
      const wrong = rng.below(falsePositives + 1);
      for (let i = 0; i < wrong; ++i) detections.push([image, category, ...box()[0], score()]);
    }
  }
  for (let i = detections.length - 1; i > 0; --i) {
    const j = rng.below(i + 1);
    [detections[i], detections[j]] = [detections[j]!, detections[i]!];
  }
  return { images: allImages, categories: allCategories, groundTruth, detections };
}

import type { AnnotationStore, CocoBox } from "./annotation-store";
import { type ProgressListener, showProgress } from "./progress";

/** Where COCO draws the line between small, medium and large boxes, in square pixels. */
const COCO_AREAS = { small: 32 ** 2, medium: 96 ** 2 };

/** How numbers are spread: extremes, quartiles and the tails, by nearest rank. */
export interface Spread {
  count: number;
  min: number;
  p05: number;
  p25: number;
  median: number;
  p75: number;
  p95: number;
  max: number;
}

export interface BoxStats {
  images: number;
  /** Boxes of usable images, crowds not included; the rest is of these. */
  boxes: number;
  crowds: number;
  withoutBoxes: number;
  /** Images of each size that is known, the most frequent first. */
  sizes: { width: number; height: number; images: number }[];
  perImage: Spread;
  /** Square roots of the boxes' areas in pixels of the image. */
  sides: Spread;
  /** Parts of the image's area, in percent; of images of known size. */
  coverage: Spread;
  /** Width / height. */
  aspectRatios: Spread;
  /** Boxes by COCO's areas: below 32 x 32 pixels, below 96 x 96, above. */
  areas: { small: number; medium: number; large: number };
  /** Boxes by category, in the order of the ids. */
  categories: { id: number; name: string; boxes: number; images: number }[];
}

/** The values of a Spread are found among at most this many, spread evenly over all. */
const SAMPLE = 1 << 20;

/** Keeps every n-th value, n growing with their number, so that memory does not. */
class Sample {
  readonly #values = new Float32Array(SAMPLE);
  #stride = 1;
  #seen = 0;
  #filled = 0;
  #min = Number.POSITIVE_INFINITY;
  #max = Number.NEGATIVE_INFINITY;

  add(value: number): void {
    this.#min = Math.min(this.#min, value);
    this.#max = Math.max(this.#max, value);
    if (this.#seen++ % this.#stride !== 0) return;
    if (this.#filled === SAMPLE) {
      for (let i = 0; i < SAMPLE / 2; i++) this.#values[i] = this.#values[2 * i] as number;
      this.#filled = SAMPLE / 2;
      this.#stride *= 2;
    }
    this.#values[this.#filled++] = value;
  }

  spread(): Spread {
    const sorted = this.#values.slice(0, this.#filled).sort();
    const at = (part: number): number =>
      sorted.length === 0 ? 0 : (sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] as number);
    const [min, max] = this.#seen === 0 ? [0, 0] : [this.#min, this.#max];
    const quantiles = { p05: at(0.05), p25: at(0.25), median: at(0.5), p75: at(0.75), p95: at(0.95) };
    return { count: this.#seen, min, ...quantiles, max };
  }
}

export interface BoxStatsOptions {
  /** Default: all images. */
  split?: string;
  /** Is given every box that is counted, with the size of its image (null: not known). */
  onBox?: (box: CocoBox, width: number | null, height: number | null) => void;
  progress?: ProgressListener;
}

const PAGE = 2000;

/** Measures the usable images and boxes of a store in one pass; what is in memory does not depend on how many there are. */
export function boxStats(store: AnnotationStore, options: BoxStatsOptions = {}): BoxStats {
  const { split, onBox, progress = showProgress() } = options;
  const query = { usable: true, ...(split === undefined ? {} : { split }) };
  const categories = store.categories().map(({ id, name }) => ({ id, name, boxes: 0, images: 0 }));
  const byId = new Map(categories.map((category) => [category.id, category]));
  const sizes = new Map<string, { width: number; height: number; images: number }>();
  const [perImage, sides, coverage, aspectRatios] = [new Sample(), new Sample(), new Sample(), new Sample()];
  const areas = { small: 0, medium: 0, large: 0 };
  const total = store.countImages(query);
  let [images, crowds, withoutBoxes] = [0, 0, 0];
  const label = "measuring boxes";
  progress(label, 0, total);
  for (let page = store.findImages(query, { limit: PAGE }); page.length > 0; ) {
    const lists = store.annotationsOfBatch(page.map((image) => image.id));
    for (const [i, { width, height }] of page.entries()) {
      if (width !== null && height !== null) {
        const key = `${width}x${height}`;
        const size = sizes.get(key) ?? { width, height, images: 0 };
        size.images++;
        sizes.set(key, size);
      }
      const named = new Set<number>();
      let count = 0;
      for (const { bbox, isCrowd, categoryId } of lists[i] ?? []) {
        if (isCrowd) {
          crowds++;
          continue;
        }
        count++;
        const [, , w, h] = bbox;
        sides.add(Math.sqrt(w * h));
        aspectRatios.add(w / h);
        if (width !== null && height !== null) coverage.add((100 * w * h) / (width * height));
        areas[w * h < COCO_AREAS.small ? "small" : w * h < COCO_AREAS.medium ? "medium" : "large"]++;
        const category = byId.get(categoryId);
        if (category) {
          category.boxes++;
          if (!named.has(categoryId)) category.images++;
        }
        named.add(categoryId);
        onBox?.(bbox, width, height);
      }
      perImage.add(count);
      if (count === 0) withoutBoxes++;
    }
    images += page.length;
    progress(label, images, total);
    page = store.findImages(query, { limit: PAGE, after: (page.at(-1) as { id: number }).id });
  }
  const bySize = [...sizes.values()].sort((a, b) => b.images - a.images || a.width - b.width || a.height - b.height);
  const spreads = {
    perImage: perImage.spread(),
    sides: sides.spread(),
    coverage: coverage.spread(),
    aspectRatios: aspectRatios.spread(),
  };
  return { images, boxes: spreads.sides.count, crowds, withoutBoxes, sizes: bySize, ...spreads, areas, categories };
}

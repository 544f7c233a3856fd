import { constant, type Value } from "../graph";
import { check } from "../native";

export interface DefaultBoxOptions {
  /** Width / height of each level's boxes besides squares; every ratio r gives a box of r and one of 1 / r. Finest first. */
  readonly aspectRatios: readonly (readonly number[])[];
  /** Side of the finest level's boxes as a part of the image's; the levels between lie at equal distances. Default 0.15. */
  readonly minRatio?: number;
  /** Of the coarsest level's. Default 0.9. */
  readonly maxRatio?: number;
  /** Sides by level and one more, instead of minRatio and maxRatio. */
  readonly scales?: readonly number[];
  /** Input pixels from cell to cell by level; default the image's size / the map's. */
  readonly steps?: readonly number[];
  /** Widths and heights are at most the image's (default true). */
  readonly clip?: boolean;
}

/** One scale a level, and one more for the square between the last level's and the next. */
function scalesOf({ aspectRatios, minRatio = 0.15, maxRatio = 0.9, scales }: DefaultBoxOptions): readonly number[] {
  const [op, levels] = ["DefaultBoxGenerator", aspectRatios.length];
  if (scales) {
    check(
      scales.length === levels + 1 && scales.every((scale) => scale > 0 && Number.isFinite(scale)),
      op,
      () => `expected ${levels + 1} positive scales, one more than levels, got [${scales.join(", ")}]`,
    );
    return scales;
  }
  check(
    minRatio > 0 && maxRatio >= minRatio && Number.isFinite(maxRatio),
    op,
    () => `expected 0 < minRatio <= maxRatio, got ${minRatio} and ${maxRatio}`,
  );
  if (levels === 1) return [minRatio, maxRatio];
  return [...aspectRatios.map((_, level) => minRatio + ((maxRatio - minRatio) * level) / (levels - 1)), 1];
}

/**
 * Makes the default boxes of SSD (Liu et al. 2016, section 2.2), as torchvision's DefaultBoxGenerator, in fp32. Each cell has
 * a square of the level's scale s, one of sqrt(s s') with s' of the next level (1 after the last, unless `scales` says
 * otherwise), and two boxes of each aspect ratio r: s sqrt(r) wide and s / sqrt(r) high, and the reverse. Sizes are parts of
 * the image's.
 */
export class DefaultBoxGenerator {
  /** How many boxes each cell of a level has. */
  readonly perCell: readonly number[];
  /** Widths and heights of each level's boxes, as parts of the image's. */
  readonly #sizes: readonly (readonly (readonly [w: number, h: number])[])[];

  constructor(readonly options: DefaultBoxOptions) {
    const { aspectRatios, steps, clip = true } = options;
    const op = "DefaultBoxGenerator";
    check(aspectRatios.length > 0, op, () => "expected aspect ratios of at least 1 level");
    check(
      aspectRatios.flat().every((ratio) => ratio > 0 && Number.isFinite(ratio)),
      op,
      () => "expected positive aspect ratios",
    );
    check(
      steps === undefined || (steps.length === aspectRatios.length && steps.every((step) => step > 0)),
      op,
      () => `expected ${aspectRatios.length} positive steps, one a level, got [${steps!.join(", ")}]`,
    );
    const scales = scalesOf(options);
    const limit = clip ? 1 : Number.POSITIVE_INFINITY;
    this.#sizes = aspectRatios.map((ratios, level) => {
      const [scale, next] = [scales[level] as number, scales[level + 1] as number];
      const between = Math.sqrt(scale * next);
      const pairs: [number, number][] = [
        [scale, scale],
        [between, between],
      ];
      for (const ratio of ratios) {
        const [long, short] = [scale * Math.sqrt(ratio), scale / Math.sqrt(ratio)];
        pairs.push([long, short], [short, long]);
      }
      return pairs.map(([w, h]) => [Math.min(Math.fround(w), limit), Math.min(Math.fround(h), limit)] as const);
    });
    this.perCell = this.#sizes.map(({ length }) => length);
  }

  /** Boxes (A, 4) in pixels of an image, by level, row, column and box; grids are the sizes of the levels' maps. */
  boxes(
    image: readonly [height: number, width: number],
    grids: readonly (readonly [rows: number, columns: number])[],
  ): Float32Array {
    check(
      grids.length === this.perCell.length,
      "DefaultBoxGenerator",
      () => `expected ${this.perCell.length} feature maps, got ${grids.length}`,
    );
    const f = Math.fround;
    const [height, width] = image;
    const count = grids.reduce((sum, [rows, columns], level) => sum + rows * columns * this.perCell[level]!, 0);
    const out = new Float32Array(4 * count);
    let at = 0;
    for (const [level, [rows, columns]] of grids.entries()) {
      const step = this.options.steps?.[level];
      const [across, down] = step ? [f(width / step), f(height / step)] : [columns, rows];
      for (let row = 0; row < rows; ++row) {
        for (let column = 0; column < columns; ++column) {
          const [x, y] = [f((column + 0.5) / across), f((row + 0.5) / down)];
          for (const [w, h] of this.#sizes[level]!) {
            out[at++] = f(x - 0.5 * w) * width;
            out[at++] = f(y - 0.5 * h) * height;
            out[at++] = f(x + 0.5 * w) * width;
            out[at++] = f(y + 0.5 * h) * height;
          }
        }
      }
    }
    return out;
  }

  /** Boxes (A, 4) in input pixels for feature maps (N, h, w, C) of an input image batch (N, H, W, 3). */
  forward(images: Value, features: readonly Value[]): Value {
    const size = ({ shape }: Value) => [shape[1] as number, shape[2] as number] as const;
    const boxes = this.boxes(size(images), features.map(size));
    return constant(boxes, [boxes.length / 4, 4]);
  }
}

import { applyOp, constant, expectShape, type Op, type Value } from "../graph";
import { check } from "../native";

export interface AnchorOptions {
  /** Side lengths in pixels, one list for each pyramid level. */
  readonly sizes: readonly (readonly number[])[];
  /** Height / width, the same for all levels. */
  readonly aspectRatios: readonly number[];
}

/** One pyramid level: its feature map's size and the input pixels per cell. */
export interface AnchorLevel {
  readonly height: number;
  readonly width: number;
  readonly strideH: number;
  readonly strideW: number;
}

/** Rounds halves to even, as torch.round. */
function roundHalfEven(x: number): number {
  const rounded = Math.round(x);
  return Math.abs(x % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/**
 * Anchors of a cell centred on 0, (sizes x ratios, 4) as x1, y1, x2, y2: ratio-major, rounded to whole pixels; torchvision's
 * AnchorGenerator.generate_anchors, in fp32.
 */
export function cellAnchors(sizes: readonly number[], aspectRatios: readonly number[]): Float32Array {
  const f = Math.fround;
  const boxes = aspectRatios.flatMap((ratio) => {
    const hRatio = f(Math.sqrt(f(ratio)));
    const wRatio = f(1 / hRatio);
    return sizes.flatMap((size) => {
      const [w, h] = [f(wRatio * size), f(hRatio * size)];
      return [-w / 2, -h / 2, w / 2, h / 2].map(roundHalfEven);
    });
  });
  return Float32Array.from(boxes);
}

/** The anchors of all levels, (A, 4), levels one after the other, each by row, column, cell anchor. */
const anchorGrid: Op<{ levels: readonly AnchorLevel[] }> = {
  kind: "anchor_grid",
  hoist: true,
  infer(cells, { levels }) {
    expectShape(
      cells.length === levels.length,
      () => `expected ${levels.length} levels of cell anchors, got ${cells.length}`,
    );
    const count = levels.reduce((sum, { height, width }, i) => sum + height * width * cells[i]!.shape[0]!, 0);
    return [{ shape: [count, 4], dtype: "f32" }];
  },
  emit(e, { inputs, outputs: [anchors], attrs: { levels } }) {
    let start = 0;
    for (const [i, { height, width, strideH, strideW }] of levels.entries()) {
      const perCell = inputs[i]!.shape[0]!;
      const [dst, cell] = [e.address(anchors!) + start * 16, e.address(inputs[i]!)];
      e.call(() => e.native.anchorGrid(e.stream, dst, cell, height, width, perCell, strideH, strideW));
      start += height * width * perCell;
    }
  },
};

/** Makes the anchors of feature pyramids, as torchvision's AnchorGenerator. */
export class AnchorGenerator {
  /** How many anchors each cell has; the same on all levels. */
  readonly perCell: number;
  readonly #cells: Float32Array[];

  constructor(readonly options: AnchorOptions) {
    const counts = new Set(options.sizes.map((sizes) => sizes.length));
    check(counts.size === 1, "AnchorGenerator", () => "expected equally many sizes on every level");
    check(
      [...options.sizes.flat(), ...options.aspectRatios].every((x) => x > 0),
      "AnchorGenerator",
      () => "expected positive sizes and aspect ratios",
    );
    this.perCell = (options.sizes[0]?.length ?? 0) * options.aspectRatios.length;
    this.#cells = options.sizes.map((sizes) => cellAnchors(sizes, options.aspectRatios));
  }

  /** Anchors (A, 4) in input pixels for feature maps (N, h, w, C) of an input image batch (N, H, W, 3). */
  forward(images: Value, features: readonly Value[]): Value {
    check(
      features.length === this.#cells.length,
      "AnchorGenerator",
      () => `expected ${this.#cells.length} feature maps, got ${features.length}`,
    );
    const [, imageH, imageW] = images.shape as [number, number, number];
    const levels = features.map(({ shape }) => {
      const [height, width] = [shape[1] as number, shape[2] as number];
      return { height, width, strideH: Math.floor(imageH / height), strideW: Math.floor(imageW / width) };
    });
    const cells = this.#cells.map((cell) => constant(cell, [cell.length / 4, 4]));
    return applyOp(anchorGrid, cells, { levels })[0] as Value;
  }
}

import type { Targets } from "../detection";
import { cast, concat, globalAvgPool2d, reshape, type Value } from "../graph";
import { Model } from "../layers";
import { check, ErrorCode } from "../native";

/** Mean and standard deviation of the channels R, G, B, of pixels from 0 to 1. */
export interface Normalization {
  readonly mean: readonly [number, number, number];
  readonly std: readonly [number, number, number];
}

/** ImageNet's statistics, which torchvision's ResNets and detectors on them use. */
export const imageNetNormalization: Normalization = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

/**
 * What training, inference and evaluation (lib/train) need of a detector: its losses by name and its detections, both as
 * symbolic computations of a batch of images (N, H, W, 3).
 */
export abstract class DetectionModel extends Model {
  /** How the model's images are normalised: (pixel - mean) / std. */
  readonly normalization: Normalization = imageNetNormalization;

  /** @param classes number of object classes; labels are 0 to classes - 1 */
  constructor(readonly classes: number) {
    super();
    check(
      Number.isInteger(classes) && classes > 0,
      this.constructor.name,
      () => `expected a positive number of classes, got ${classes}`,
    );
  }

  /** What the heads give for all anchors by name, each (N, A, columns). */
  abstract override forward(images: Value): { [name: string]: Value };

  /** What losses() and detect() read of the network: the heads' maps, of each level or joined, as the model uses them. */
  abstract maps(images: Value): Value[];

  /**
   * Maps (N, h, w, C) that say what is on images: the backbone's, before the heads. Default, for a model that does not tell its
   * backbone: the heads' own maps, where they are maps.
   */
  featureMaps(images: Value): Value[] {
    const maps = this.maps(images).filter(({ shape }) => shape.length === 4);
    check(maps.length > 0, this.constructor.name, () => "it has no feature maps: featureMaps() is not there");
    return maps;
  }

  /** The losses of a batch by name, scalars; training minimises their sum. */
  abstract losses(images: Value, targets: Targets): { [name: string]: Value };

  /**
   * Detections (N, maxDetections, 6): x1, y1, x2, y2, score, class, best first, zeros after the last of `counts` (N).
   *
   * @param imageSizes (N, 2) fp32: height and width that boxes are clipped to
   */
  abstract detect(images: Value, imageSizes: Value): { detections: Value; counts: Value };
}

/** An image as one row of numbers: the means of each channel of all feature maps, (N, sum of C), f32. */
export function pooledFeatures(model: DetectionModel, images: Value): Value {
  const rows = model.featureMaps(images).map((map) => {
    const [n, , , c] = map.shape as [number, number, number, number];
    return cast(reshape(globalAvgPool2d(map), [n, c]), "f32");
  });
  return rows.length === 1 ? (rows[0] as Value) : concat(rows, 1);
}

/** Checks the heads' maps of all levels: (N, h, w, perCell * columns), by name. */
export function checkMaps<K extends string>(
  maps: readonly { readonly [name in K]: Value }[],
  columns: { readonly [name in K]: number },
  perCell: number,
): void {
  const names = Object.keys(columns) as K[];
  for (const [level, heads] of maps.entries()) {
    const [n, h, w] = heads[names[0] as K].shape as [number, number, number];
    for (const name of names) {
      const { shape } = heads[name];
      const expected = [n, h, w, perCell * columns[name]];
      check(
        shape.join() === expected.join(),
        `heads, level ${level}`,
        () => `expected ${name} (${expected.join(", ")}), got (${shape.join(", ")})`,
        ErrorCode.shape,
      );
    }
  }
}

/** A head's maps (N, h, w, perCell * columns) of all levels as rows (N, A, columns), by level, row, column, anchor. */
export function joinLevels(maps: readonly Value[], columns: number): Value {
  const rows = maps.map((map) => {
    const [n, h, w, c] = map.shape as [number, number, number, number];
    return reshape(map, [n, (h * w * c) / columns, columns]);
  });
  return concat(rows, 1);
}

/** A head's map on every level. */
export function mapsOf<K extends string>(maps: readonly { readonly [name in K]: Value }[], name: K): Value[] {
  return maps.map((heads) => heads[name]);
}

/** How many anchors each level has. */
export function anchorCounts(maps: readonly Value[], perCell: number): number[] {
  return maps.map(({ shape }) => (shape[1] as number) * (shape[2] as number) * perCell);
}

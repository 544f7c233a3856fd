import { check } from "../native/error";
import {
  AugmentOp,
  CopyPaste,
  Cutout,
  HsvJitter,
  MixUp,
  Mosaic,
  PhotometricDistort,
  RandomAffine,
  ZoomOut,
} from "./augmentations";
import { applyPlanned, type Composition, type SourceImage, startComposition } from "./composition";
import { CounterRandom, RandomOperation } from "./random";
import {
  HorizontalFlip,
  Normalize,
  type PreprocessJson,
  type PreprocessOp,
  parsePreprocessing,
  RandomCrop,
  Resize,
  ScaleJitter,
} from "./transforms";

export interface AugmentationOptions {
  /** What is done to each image, in this order; it must end with a canvas of the network input's size. */
  operations: readonly PreprocessOp[];
  seed?: number;
  /** Epochs of the training, where the last ones are spared the operations that compose images. */
  epochs?: number;
  /** How many of the last epochs have no Mosaic, MixUp and CopyPaste. Default 0. */
  closeLast?: number;
}

/** The images that an Augmentation draws on, by place. */
export interface ImageSet {
  readonly length: number;
  at(place: number): SourceImage;
}

/**
 * Makes compositions of images by a list of operations. Every number that an operation draws is keyed by (seed, epoch, image,
 * place of the operation in the list), so a composition does not depend on who makes it, nor when or in what order.
 */
export class Augmentation {
  readonly operations: readonly PreprocessOp[];
  readonly seed: number;
  readonly #closedFrom: number;

  constructor({ operations, seed = 0, epochs, closeLast = 0 }: AugmentationOptions) {
    check(
      Number.isSafeInteger(closeLast) && closeLast >= 0,
      "Augmentation",
      () => `closeLast: expected an integer >= 0, got ${closeLast}`,
    );
    check(
      closeLast === 0 || (Number.isSafeInteger(epochs) && (epochs as number) >= 1),
      "Augmentation",
      () => `closeLast ${closeLast} needs the number of epochs, got ${epochs}`,
    );
    this.operations = operations;
    this.seed = seed;
    this.#closedFrom = closeLast > 0 ? (epochs as number) - closeLast : Number.POSITIVE_INFINITY;
  }

  /** Whether an epoch is spared the operations that compose images. */
  closed(epoch: number): boolean {
    return epoch >= this.#closedFrom;
  }

  /**
   * The composition of the image at a place, for a network input of a size. `repeat`: how often it came in this epoch before.
   */
  compose(
    images: ImageSet,
    place: number,
    epoch: number,
    size: readonly [height: number, width: number],
    repeat = 0,
  ): Composition {
    return this.#run(images, images.at(place), epoch, size, this.operations.length, repeat);
  }

  #run(
    images: ImageSet,
    image: SourceImage,
    epoch: number,
    size: readonly [height: number, width: number],
    until: number,
    repeat = 0,
  ): Composition {
    let composition = startComposition(image, size[1], size[0]);
    for (const [operation, op] of this.operations.slice(0, until).entries()) {
      const random = new CounterRandom({ seed: this.seed, epoch, image: image.id, operation, repeat });
      if (!(op instanceof AugmentOp)) {
        composition = applyPlanned(composition, op, random);
      } else if (!(op.composes && this.closed(epoch))) {
        composition = op.compose(composition, random, {
          image: (draw) => images.at(draw.integer(images.length)),
          prepared: (draw) => this.#run(images, images.at(draw.integer(images.length)), epoch, size, operation),
        });
      }
    }
    return composition;
  }
}

/** The network input's size of a batch in multi-scale training: one of a fixed list, by (seed, epoch, batch). */
export function multiScaleSize(
  sizes: readonly (readonly [height: number, width: number])[],
  { seed, epoch, batch }: { seed: number; epoch: number; batch: number },
): readonly [height: number, width: number] {
  check(sizes.length > 0, "multiScaleSize", () => "the list of sizes is empty");
  const random = new CounterRandom({ seed, epoch, image: batch, operation: RandomOperation.size });
  return sizes[random.integer(sizes.length)] as readonly [number, number];
}

export const augmentationPresets = ["ssd", "retinanet", "yolo"] as const;
export type AugmentationPreset = (typeof augmentationPresets)[number];

export interface PresetOptions {
  normalize?: Normalize;
  /** How the model that is trained expects images to be resized. */
  resize?: Resize;
}

/**
 * The operations of a preset.
 * - `ssd`: colours distorted, zoomed out, cropped by IoU, mirrored, stretched (Liu et al. 2016; torchvision's preset "ssd").
 * - `retinanet`: mirrored, letterboxed, scaled by 0.8 to 1.25.
 * - `yolo`: letterboxed, mosaic, affine, mixup, hue, saturation and value, mirrored (YOLOv5's and later ones' defaults).
 * `resize` and `normalize` stand in for the preset's own.
 */
export function augmentationPreset(name: AugmentationPreset, options: PresetOptions = {}): PreprocessOp[] {
  const { normalize = new Normalize(), resize = new Resize(name === "ssd" ? { mode: "stretch" } : {}) } = options;
  switch (name) {
    case "ssd":
      return [new PhotometricDistort(), new ZoomOut(), new RandomCrop(), new HorizontalFlip(), resize, normalize];
    case "retinanet":
      return [new HorizontalFlip(), resize, new ScaleJitter(0.8, 1.25), normalize];
    case "yolo":
      return [resize, new Mosaic(), new RandomAffine(), new MixUp(), new HsvJitter(), new HorizontalFlip(), normalize];
    default:
      return check(false, "augmentationPreset", () => `expected "ssd", "retinanet" or "yolo", got "${name}"`) as never;
  }
}

/** The operations of a list of toJSON results, those of parsePreprocessing among them. An unknown name is an error. */
export function parseAugmentation(json: readonly PreprocessJson[]): PreprocessOp[] {
  return json.map((one) => {
    const { name, ...options } = one;
    switch (name) {
      case "hsvJitter":
        return new HsvJitter(options);
      case "photometricDistort":
        return new PhotometricDistort(options);
      case "zoomOut":
        return new ZoomOut(options);
      case "randomAffine":
        return new RandomAffine(options);
      case "mosaic":
        return new Mosaic(options);
      case "mixUp":
        return new MixUp(options);
      case "copyPaste":
        return new CopyPaste(options);
      case "cutout":
        return new Cutout(options);
    }
    return parsePreprocessing([one])[0] as PreprocessOp;
  });
}

/** From the images of a batch to its network inputs: planned on the host, drawn by a decoder. */
import { check, ErrorCode } from "../native/error";
import type { ImageRecord } from "./annotation-store";
import type { Augmentation, ImageSet } from "./augmentation";
import { AugmentOp } from "./augmentations";
import type { BatchPlace } from "./batch-schedule";
import type { BatchDecoder, CompositionDecoder, EncodedImage, InputSize } from "./codec";
import type { Composition, SourceImage } from "./composition";
import {
  dropSmallBoxes,
  type ImagePlan,
  type InputMapping,
  mappingOf,
  startPlan,
  TRANSFORM_FLOATS,
  writeTransform,
} from "./image-plan";
import { CounterRandom } from "./random";
import type { Targets } from "./targets";
import type { PreprocessOp } from "./transforms";

/** An image of a batch: its place among the images, and how often it came in the epoch before. */
export interface BatchMember {
  readonly place: number;
  readonly repeat: number;
}

/** A network input as it is planned. */
export interface PlannedInput {
  /** (n, 4): x1, y1, x2, y2 in its pixels. */
  readonly boxes: Float64Array;
  readonly labels: Int32Array;
  /** Image pixels to its pixels; null where it is turned, or shows several images. */
  readonly toInput: InputMapping | null;
}

/** What drawing a batch has come to. */
export interface DrawnBatch {
  /** Images that could not be decoded, and why; `code` is ErrorCode.io where a file could not be read. */
  failures: { place: number; message: string; code?: number }[];
  /** Places in the batch that are the fill colour and have no boxes, because an image failed. */
  blank: number[];
}

export interface BatchPlan {
  readonly inputs: readonly PlannedInput[];
  /** The images that it needs, by place, each once. */
  readonly sources: readonly number[];
  /** Draws it into a slot of the decoder, from the encoded images by place; one that could not be read has no bytes. */
  draw(slot: number, encoded: ReadonlyMap<number, EncodedImage>): Promise<DrawnBatch>;
}

export interface BatchPlanner {
  /** Boxes that an input may have, where an image has `most` at most. */
  room(most: number): number;
  /** Plans a batch for inputs of a size. */
  plan(members: readonly BatchMember[], at: BatchPlace, size: InputSize): BatchPlan;
}

interface PlannerOptions {
  images: Targets;
  preprocessing: readonly PreprocessOp[];
  seed: number;
  /** Boxes that become narrower or lower than this are dropped. */
  minBoxSize: number;
}

/** Whether operations need compositions, rather than a crop, a resize and flips of one image. */
export function needCompositions(operations: readonly PreprocessOp[]): boolean {
  return operations.some((op) => op instanceof AugmentOp);
}

/** Inputs that are a crop of one image each, resized and mirrored: decoded and drawn image by image. */
export class PlanPlanner implements BatchPlanner {
  constructor(
    private readonly decoder: BatchDecoder,
    private readonly options: PlannerOptions,
  ) {}

  room(most: number): number {
    return most;
  }

  plan(members: readonly BatchMember[], at: BatchPlace, size: InputSize): BatchPlan {
    const plans = members.map((member) => this.#planOf(member, at, size));
    const draw = async (slot: number, encoded: ReadonlyMap<number, EncodedImage>): Promise<DrawnBatch> => {
      const transforms = new Float32Array(plans.length * TRANSFORM_FLOATS);
      for (const [i, plan] of plans.entries()) writeTransform(transforms, i, plan);
      const images = members.map(({ place }) => encoded.get(place) ?? new Uint8Array(0));
      const { failures } = await this.decoder.decode(slot, images, transforms, size);
      failures.sort((a, b) => a.index - b.index);
      const placeOf = (index: number) => (members[index] as BatchMember).place;
      return {
        failures: failures.map(({ index, message, code }) => ({ place: placeOf(index), message, code })),
        blank: failures.map(({ index }) => index),
      };
    };
    const inputs = plans.map((plan) => ({ boxes: plan.boxes, labels: plan.labels, toInput: mappingOf(plan) }));
    return { inputs, sources: [...new Set(members.map(({ place }) => place))], draw };
  }

  #planOf({ place, repeat }: BatchMember, at: BatchPlace, size: InputSize): ImagePlan {
    const { images, preprocessing, seed, minBoxSize } = this.options;
    const { width, height, sourceId, fileName } = images.records[place] as ImageRecord;
    const { boxes, labels } = images.boxesOf(place, at);
    const { epoch } = at;
    let plan = startPlan(width as number, height as number, size[1], size[0], boxes, labels);
    for (const [operation, op] of preprocessing.entries()) {
      plan = op.apply(plan, new CounterRandom({ seed, epoch, image: sourceId, operation, repeat }));
    }
    checkCanvas(fileName, plan.canvasWidth, plan.canvasHeight, size);
    return dropSmallBoxes(plan, minBoxSize);
  }
}

/** Inputs that are compositions of one or several images, by an Augmentation. */
export class CompositionPlanner implements BatchPlanner {
  /** Places by the id that compositions know an image by: its id in the data set, which keys its random numbers. */
  readonly #places = new Map<number, number>();

  constructor(
    private readonly decoder: CompositionDecoder,
    private readonly augmentation: Augmentation,
    private readonly options: Omit<PlannerOptions, "preprocessing" | "seed">,
  ) {
    this.#learnPlaces();
  }

  /** Of images that have come since the last call, too. */
  #learnPlaces(): void {
    const { records } = this.options.images;
    for (let place = this.#places.size; place < records.length; place++) {
      const { sourceId, fileName } = records[place] as ImageRecord;
      check(
        !this.#places.has(sourceId),
        "CocoDataLoader",
        () => `${fileName}: another image has its id ${sourceId}, too, and compositions go by those`,
      );
      this.#places.set(sourceId, place);
    }
  }

  room(most: number): number {
    const room = (boxes: number, op: PreprocessOp) => (op instanceof AugmentOp ? op.room(boxes) : boxes);
    return this.augmentation.operations.reduce(room, most);
  }

  plan(members: readonly BatchMember[], at: BatchPlace, size: InputSize): BatchPlan {
    const { images, minBoxSize } = this.options;
    const { epoch } = at;
    this.#learnPlaces();
    const set: ImageSet = { length: images.lengthAt(epoch), at: (place) => sourceImage(images, place, at) };
    const compositions = members.map(({ place, repeat }) => {
      const composition = this.augmentation.compose(set, place, epoch, size, repeat);
      checkCanvas((images.records[place] as ImageRecord).fileName, composition.width, composition.height, size);
      return dropSmallBoxes(composition, minBoxSize);
    });
    const placeOf = (id: number): number => this.#places.get(id) as number;
    const draw = async (slot: number, encoded: ReadonlyMap<number, EncodedImage>): Promise<DrawnBatch> => {
      const byId = new Map(
        [...encoded].map(([place, image]) => [(images.records[place] as ImageRecord).sourceId, image]),
      );
      const { failures, blank } = await this.decoder.compose(slot, compositions, byId);
      const failed = failures.map(({ id, message, code }) => ({ place: placeOf(id), message, code }));
      return { failures: failed.sort((a, b) => a.place - b.place), blank };
    };
    const sources = compositions.flatMap(({ layers }) => layers.flatMap(({ source }) => source?.id ?? []));
    const inputs = compositions.map((composition) => ({
      boxes: composition.boxes,
      labels: composition.labels,
      toInput: onlyMapping(composition),
    }));
    return { inputs, sources: [...new Set(sources)].map(placeOf), draw };
  }
}

/** Where a composition shows one image that is not turned, its mapping. */
function onlyMapping({ layers }: Composition): InputMapping | null {
  const [first, ...others] = layers.filter(({ source }) => source !== null);
  if (!first || others.length > 0) return null;
  const [scaleX, b, offsetX, d, scaleY, offsetY] = first.map;
  return b === 0 && d === 0 ? { scaleX, scaleY, offsetX, offsetY } : null;
}

function sourceImage(images: Targets, place: number, at: BatchPlace): SourceImage {
  const { sourceId, width, height } = images.records[place] as ImageRecord;
  return { id: sourceId, width: width as number, height: height as number, ...images.boxesOf(place, at) };
}

function checkCanvas(fileName: string, width: number, height: number, size: InputSize): void {
  check(
    width === size[1] && height === size[0],
    "CocoDataLoader",
    () =>
      `${fileName}: preprocessing ends with a canvas of ${width}x${height} (width x height) instead of ` +
      `${size[1]}x${size[0]}; operations that change the size belong before Resize`,
    ErrorCode.shape,
  );
}

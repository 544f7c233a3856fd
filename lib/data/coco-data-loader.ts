import { check, DlfsError, ErrorCode } from "../native/error";
import type { AnnotationStore, ImageRecord } from "./annotation-store";
import { Augmentation, multiScaleSize } from "./augmentation";
import {
  type BatchMember,
  type BatchPlanner,
  CompositionPlanner,
  needCompositions,
  PlanPlanner,
} from "./batch-planner";
import { BatchQueue } from "./batch-queue";
import type { BatchSampler } from "./batch-sampler";
import { type BatchPlace, BatchSchedule } from "./batch-schedule";
import { BatchSlots } from "./batch-slots";
import type { BatchDecoder, CompositionDecoder, EncodedImage, InputSize } from "./codec";
import { DataLoader, type LoaderState } from "./data-loader";
import type { DataSource } from "./data-source";
import type { InputMapping } from "./image-plan";
import { Semaphore } from "./queues";
import type { Sampler } from "./sampler";
import { type ImageBoxes, isBefore, type TargetChange, Targets, type TargetsStart } from "./targets";
import { Normalize, normalizationOf, type PreprocessOp, Resize } from "./transforms";

/** An image of a batch. */
export interface BatchImage {
  /** ImageRecord.id in the store, and the id in the data set (COCO's image_id). */
  imageId: number;
  sourceId: number;
  fileName: string;
  /** Size of the image file, in pixels. */
  width: number;
  height: number;
  /**
   * Image pixels to network input pixels; mapBoxesToImage goes the other way. Null where an augmentation has turned the image, or
   * put it together with others.
   */
  toInput: InputMapping | null;
  /**
   * How often it came in this pass before, on any rank, where it did: because a sampler repeats it, or to fill up a batch. A pass
   * that is to have each image once, such as an evaluation on several ranks, leaves those out.
   */
  repeat?: number;
}

/** A batch in device memory, with its boxes. The arrays are the loader's: they are valid until release(). */
export interface DetectionBatch extends Disposable {
  /** Slot of the decoder's ring that holds the network inputs. */
  readonly slot: number;
  /** Images in this batch; at most batchSize, fewer at the end of a pass without dropLast. */
  readonly n: number;
  readonly images: readonly BatchImage[];
  /** (batchSize, maxBoxes, 4): x1, y1, x2, y2 in network input pixels; zeros past the last box and past image n. */
  readonly boxes: Float32Array;
  /** (batchSize, maxBoxes): class indices; zeros where there is no box. */
  readonly labels: Int32Array;
  /** (batchSize): how many boxes each image has. */
  readonly counts: Int32Array;
  readonly epoch: number;
  /** Place of the batch in its epoch. */
  readonly index: number;
  /** Height and width of its network inputs. */
  readonly size: InputSize;
  /** Gives the slot and the arrays back; call it once nothing reads them any more. */
  release(): void;
}

/** An image that could not be read or decoded, and how often that was tried. */
export interface ImageFailure {
  imageId: number;
  fileName: string;
  message: string;
  count: number;
}

export interface CocoDataLoaderOptions {
  store: AnnotationStore;
  source: DataSource;
  split: string;
  /** A DeviceBatchDecoder, or a DeviceCompositionDecoder, which some operations need: those that are an AugmentOp. */
  decoder: BatchDecoder | CompositionDecoder;
  /** Images in a batch, of this rank. */
  batchSize: number;
  /** Height and width of the network input. */
  size: InputSize;
  /**
   * Multi-scale training: each batch has one of these sizes, drawn by (seed, epoch, batch), the same on all ranks; none of more
   * pixels than `size`. Default: all have `size`.
   */
  sizes?: readonly InputSize[];
  /** Default: letterbox, then ImageNet's mean and standard deviation. The decoder must normalise as it says. */
  preprocessing?: readonly PreprocessOp[];
  /** In the last `closeLast` (default 0) of so many epochs, operations that compose several images are left out. */
  epochs?: number;
  closeLast?: number;
  /** Whether each epoch has an order of its own; else it is that of the image ids. Default true; not beside `sampler`. */
  shuffle?: boolean;
  /** Decides which images an epoch has, how often, in which order. */
  sampler?: Sampler;
  /** Decides which images of an epoch make up a batch. Default: they are taken as they come. */
  batchSampler?: BatchSampler;
  /** This process among those that share the data, from 0, and how many they are; see BatchSchedule. Default 0 of 1. */
  rank?: number;
  ranks?: number;
  /** Of order and augmentation; the same on all ranks. */
  seed?: number;
  /** Whether images that do not fill a last batch of all ranks are left out. Default: unless the order is that of the ids. */
  dropLast?: boolean;
  /** Batches prepared ahead. */
  prefetch?: number;
  /** Files read at a time; those that the decoder reads itself (DataSource.pathOf) are read by its threads. */
  concurrency?: number;
  /**
   * Boxes that one image has room for. Default, and at least: the most that an image of the split has, and several times as many
   * with operations that compose images (AugmentOp.room).
   */
  maxBoxes?: number;
  /** Boxes that an image may come to have by changes. Default: as many as one image has at the start. */
  boxesPerImage?: number;
  /** What was taken in before, by change() of a loader of the same images: this one gives the batches that that one gave. */
  changes?: readonly TargetChange[];
  /** Boxes that become narrower or lower than this, in network input pixels, are dropped. */
  minBoxSize?: number;
  /**
   * What becomes of an image that can no longer be read or decoded: "skip" makes it an image of the fill colour without boxes,
   * counts it and goes on; "stop" makes getBatch fail with what is wrong with it. Default: skip.
   */
  failures?: "skip" | "stop";
  /**
   * The largest share of skipped images among those handed out, above which getBatch fails, once 100 images have been handed
   * out; 1 for no limit. Default 0.1. With a limit, getBatch also fails when whole batches of at least 16 images in a row could
   * not be used: their source is gone then, and training on nothing would undo what was learned.
   */
  maxFailureShare?: number;
  /** Told of each image that fails, when its batch is handed out, the first time. Default: a line on standard error. */
  onFailure?: (failure: ImageFailure) => void;
}

/** What an image is trained with from now on. */
export interface ImageChange {
  /** As the store has it; one that was not among the loader's images joins them. */
  image: ImageRecord;
  /** All its training targets. */
  boxes: ImageBoxes;
  atOnce?: boolean;
  /** How many times as often as others it is drawn. Default 1. */
  weight?: number;
}

/** Images handed out before their share of failures is judged. */
const LEAST_JUDGED = 100;

/** Images in a row, in whole batches of which none could be used: where that many fail, it is their source that is gone. */
const LOST_IN_A_ROW = 16;

interface Prepared {
  batch: DetectionBatch;
  /** Images that could not be read or decoded: their places in the loader's list, and why. */
  failed: [place: number, why: string][];
  /** Images of the batch that are blank for that. */
  blank: number;
}

/**
 * Batches of a split of an AnnotationStore. Crowds are no training targets; images without boxes are part of the data.
 * Reading, decoding and drawing go on while the caller computes; the event loop is never blocked for longer than it takes to
 * plan one batch. An image that fails, now that training runs, becomes an image of the fill colour without boxes, or an error:
 * see CocoDataLoaderOptions.failures.
 */
export class CocoDataLoader extends DataLoader<DetectionBatch> {
  override readonly preprocessing: readonly PreprocessOp[];
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  /** Boxes that an image has room for in a batch: the M of DetectionBatch. */
  readonly maxBoxes: number;
  readonly #targets: Targets;
  readonly #source: DataSource;
  readonly #readsFiles: boolean;
  readonly #schedule: BatchSchedule;
  readonly #planner: BatchPlanner;
  readonly #sizes: readonly InputSize[];
  readonly #seed: number;
  readonly #stopAtFailure: boolean;
  readonly #maxFailureShare: number;
  readonly #onFailure: (failure: ImageFailure) => void;
  readonly #slots: BatchSlots;
  readonly #reads: Semaphore;
  readonly #failures = new Map<number, ImageFailure>();
  readonly #queue: BatchQueue<Prepared>;
  readonly #boxesPerImage: number;
  /** Images handed out, and those of them that failed. */
  #images = 0;
  #skipped = 0;
  /** Skipped images since the last batch with one that could be used. */
  #lost = 0;

  constructor(options: CocoDataLoaderOptions) {
    super();
    const { store, source, split, decoder, batchSize, size } = options;
    const { seed = 0, prefetch = 4, concurrency = 16, minBoxSize = 1, maxFailureShare = 0.1 } = options;
    for (const [name, value, least] of [
      ["batchSize", batchSize, 1],
      ["height", size[0], 1],
      ["width", size[1], 1],
      ["prefetch", prefetch, 1],
      ["concurrency", concurrency, 1],
    ] as const) {
      const good = Number.isSafeInteger(value) && value >= least;
      check(good, "CocoDataLoader", () => `${name} must be an integer >= ${least}, got ${value}`);
    }
    check(
      maxFailureShare >= 0 && maxFailureShare <= 1,
      "CocoDataLoader",
      () => `maxFailureShare must be in [0, 1], got ${maxFailureShare}`,
    );
    check(
      decoder.height === size[0] && decoder.width === size[1] && decoder.batchSize >= batchSize && decoder.slots >= 1,
      "CocoDataLoader",
      () =>
        `the decoder's slots are ${decoder.slots} x ${decoder.batchSize} images of ${decoder.height}x${decoder.width}, ` +
        `expected at least 1 x ${batchSize} of ${size[0]}x${size[1]}`,
      ErrorCode.shape,
    );
    this.preprocessing = options.preprocessing ?? [new Resize(), new Normalize()];
    normalizationOf(this.preprocessing);
    const resizes = this.preprocessing.filter((op) => op instanceof Resize).length;
    // A composition may be resized again, as after the crop of a mosaic.
    check(
      resizes === 1 || (resizes > 1 && needCompositions(this.preprocessing)),
      "CocoDataLoader",
      () => `preprocessing has ${resizes} Resize operations, expected one`,
    );

    this.#source = source;
    this.#readsFiles = decoder.readsFiles === true;
    this.#stopAtFailure = options.failures === "stop";
    this.#maxFailureShare = maxFailureShare;
    this.#onFailure = options.onFailure ?? (({ message }) => console.warn(`warning: ${message}`));
    this.#reads = new Semaphore(concurrency);
    this.batchSize = batchSize;
    [this.height, this.width] = size;

    this.#targets = new Targets(store, split, options.changes);
    check(this.images.length > 0, "CocoDataLoader", () => `split "${split}" has no usable images`, ErrorCode.io);
    for (const { fileName, width, height } of this.images) {
      check(
        width !== null && height !== null,
        "CocoDataLoader",
        () => `${fileName}: size unknown, run checkImages first`,
      );
    }
    const most = Math.max(this.#targets.most, options.boxesPerImage ?? 0);
    this.#planner = plannerOf(options, this.#targets, this.preprocessing, { seed, minBoxSize });
    this.#seed = seed;
    this.#sizes = options.sizes ?? [size];
    for (const [h, w] of this.#sizes) {
      check(
        Number.isSafeInteger(h) && Number.isSafeInteger(w) && h > 0 && w > 0 && h * w <= size[0] * size[1],
        "CocoDataLoader",
        () => `sizes: expected sizes of no more pixels than ${size[0]}x${size[1]}, got ${h}x${w}`,
      );
    }
    check(this.#sizes.length > 0, "CocoDataLoader", () => "sizes: expected one at least");
    this.#boxesPerImage = most;
    const room = this.#planner.room(most);
    this.maxBoxes = options.maxBoxes ?? Math.max(1, room);
    check(
      this.maxBoxes >= room && this.maxBoxes >= 1,
      "CocoDataLoader",
      () =>
        `maxBoxes is ${this.maxBoxes}, but an image of split "${split}" has ${most} boxes` +
        (room > most ? `, and with others that are put together with it up to ${room}` : ""),
    );
    this.#slots = new BatchSlots(decoder.slots, batchSize, this.maxBoxes);
    const { shuffle, sampler, batchSampler, rank, ranks, dropLast } = options;
    const order = { images: this.#targets, shuffle, sampler, batchSampler, seed, batchSize, rank, ranks, dropLast };
    this.#schedule = new BatchSchedule({ name: "CocoDataLoader", data: `split "${split}"`, ...order });
    // An order that gives no batch is said here.
    this.#schedule.length(0);
    this.#queue = new BatchQueue<Prepared>(
      "CocoDataLoader",
      prefetch,
      this.#schedule,
      (place, signal) => this.#prepare(place, signal),
      ({ batch }) => batch.release(),
    );
  }

  /** The images of the passes to come, in the order that a loader without shuffle has; see change() for more of them. */
  get images(): readonly ImageRecord[] {
    return this.#targets.records;
  }

  override get length(): number {
    return this.#schedule.length(this.#queue.place.epoch);
  }

  override get waitSeconds(): number {
    return this.#queue.waitSeconds;
  }

  /** Images that could not be read or decoded, of the batches handed out since the loader was made. */
  get failures(): ImageFailure[] {
    return [...this.#failures.values()];
  }

  /** What the images were before all changes. */
  get start(): TargetsStart {
    return this.#targets.start;
  }

  /** Boxes that an image may have, or come to have by changes. */
  get boxesPerImage(): number {
    return this.#boxesPerImage;
  }

  /**
   * Takes in what an image's boxes are now, or an image that was not there: from the next batch on that is not prepared yet, and
   * in passes after this one for a new image, and for weights. `atOnce` puts the image into that batch, or one soon after it, in
   * another's place. The answer, given to a later loader with all others, makes that one give the same batches: keep it before the
   * next step is taken.
   *
   * @throws DlfsError naming the image: more boxes than it may have, no size, or a weight that is not above 0
   */
  change({ image, boxes, atOnce = false, weight = 1 }: ImageChange): TargetChange {
    const { id, fileName, width, height } = image;
    const op = `change of ${fileName}`;
    const [count, most] = [boxes.labels.length, this.#boxesPerImage];
    check(weight > 0 && weight < Number.POSITIVE_INFINITY, op, () => `weight: expected above 0, got ${weight}`);
    check(width !== null && height !== null, op, () => "its size is not known");
    check(count <= most, op, () => `${count} boxes, and the training was started with room for ${most} of an image`);
    // A loader that was given the changes of another one may have some that still lie ahead: they come first.
    const [next, ahead] = [this.#queue.frontier, this.#targets.latestFrom(id)];
    const from = ahead && isBefore(next, ahead) ? ahead : next;
    const seat = atOnce ? this.#seatFrom(from) : null;
    // A pass whose order is known stays as it is.
    const pass = Math.max(from.epoch, this.#schedule.newestPass) + 1;
    const change: TargetChange = { from, image, before: this.#targets.latestOf(id), after: boxes, pass, weight, seat };
    this.#targets.add(change);
    return change;
  }

  /**
   * Takes in what a loader of another rank has, at the same step: ranks whose loaders prepare as many batches ahead have come as far
   * then.
   *
   * @throws DlfsError where this loader has prepared a batch that the change is for
   */
  take(change: TargetChange): void {
    const { from, image } = change;
    const next = this.#queue.frontier;
    check(!isBefore(from, next), `change of ${image.fileName}`, () => {
      const text = ({ epoch, index }: BatchPlace) => `epoch ${epoch}, batch ${index}`;
      return `it counts from ${text(from)} on, and this rank has prepared what is before ${text(next)}`;
    });
    this.#targets.add(change);
  }

  /** A place in a batch that is not prepared yet; no more than half of a batch are given away. */
  #seatFrom(from: BatchPlace): { at: BatchPlace; slot: number } {
    for (let at = from; ; at = this.#schedule.after(at)) {
      const taken = this.#targets.insertionsAt(at).length;
      // One in every second place, so that the ranks share them.
      if (2 * taken < this.#schedule.sizeOf(at)) return { at, slot: 2 * taken };
    }
  }

  override getBatch(): Promise<DetectionBatch> {
    return this.#queue.next((prepared) => this.#handOut(prepared));
  }

  override state(): LoaderState {
    return this.#schedule.state(this.#queue.place);
  }

  /** The state after a batch, for callers that ask for batches ahead of using them. */
  stateAfter(batch: DetectionBatch): LoaderState {
    return this.#schedule.state(this.#schedule.after(batch));
  }

  override restore(state: LoaderState): void {
    this.#queue.checkOpen();
    this.#queue.seek(this.#schedule.placeOf(state));
  }

  override async dispose(): Promise<void> {
    this.#queue.close();
    this.#slots.close(new DlfsError(ErrorCode.handle, "CocoDataLoader", "the loader is disposed"));
    await this.#queue.settled();
  }

  #prepare({ epoch, index }: BatchPlace, signal: AbortSignal): Promise<Prepared> {
    return this.#slots.prepare(async (granted) => {
      const { members: places, repeats } = this.#schedule.batch({ epoch, index });
      const members = Array.from(places, (place, i): BatchMember => ({ place, repeat: repeats[i] as number }));
      const size = multiScaleSize(this.#sizes, { seed: this.#seed, epoch, batch: index });
      const plan = this.#planner.plan(members, { epoch, index }, size);
      const unreadable = new Map<number, string>();
      const encoded = new Map<number, EncodedImage>();
      const read = async (place: number): Promise<void> => {
        encoded.set(place, await this.#read(place, signal, (why) => unreadable.set(place, why)));
      };
      const locate = (place: number): Promise<void> | void => {
        const path = this.#pathOf(place);
        if (path === null) return read(place);
        encoded.set(place, path);
      };
      await Promise.all(plan.sources.map(locate));
      const slot = await granted();
      signal.throwIfAborted();

      let drawn = await plan.draw(slot, encoded);
      // A file may have been removed since its source named it, as copies are: then the source has the last word.
      const gone = new Set(
        drawn.failures
          .filter(({ place, code }) => code === ErrorCode.io && typeof encoded.get(place) === "string")
          .map(({ place }) => place),
      );
      await Promise.all([...gone].map(read));
      if ([...gone].some((place) => !unreadable.has(place))) drawn = await plan.draw(slot, encoded);
      const { failures, blank } = drawn;
      const arrays = this.#slots.fill(slot, plan.inputs, (i) => blank.includes(i));
      const images = members.map((member, i) => this.#describe(member, plan.inputs[i]?.toInput ?? null));
      return {
        batch: this.#slots.batch({ slot, n: members.length, images, ...arrays, epoch, index, size }),
        failed: failures.map(({ place, message }) => [place, unreadable.get(place) ?? message]),
        blank: blank.length,
      };
    });
  }

  /** The file of an image, where its source has one and the decoder reads it. */
  #pathOf(place: number): string | null {
    if (!this.#readsFiles) return null;
    try {
      return this.#source.pathOf((this.images[place] as ImageRecord).key);
    } catch (error) {
      if (!(error instanceof DlfsError)) throw error;
      return null; // what is wrong with the key is said when it is read
    }
  }

  /** The bytes of an image; none where it cannot be read. */
  async #read(place: number, signal: AbortSignal, unreadable: (why: string) => void): Promise<Uint8Array> {
    const { key } = this.images[place] as ImageRecord;
    await this.#reads.acquire();
    try {
      return await this.#source.read(key, { signal });
    } catch (error) {
      if (signal.aborted || !(error instanceof DlfsError)) throw error;
      unreadable(error.message);
      return new Uint8Array(0);
    } finally {
      this.#reads.release();
    }
  }

  #describe({ place, repeat }: BatchMember, toInput: InputMapping | null): BatchImage {
    const { id, sourceId, fileName, width, height } = this.images[place] as ImageRecord;
    const size = { width: width as number, height: height as number };
    return { imageId: id, sourceId, fileName, ...size, toInput, ...(repeat > 0 && { repeat }) };
  }

  /** Notes what failed. This goes by the order of batches, never by which was prepared first. */
  #handOut({ batch, failed, blank }: Prepared): DetectionBatch {
    try {
      this.#images += batch.n;
      this.#skipped += blank;
      for (const [place, why] of failed) this.#noteFailure(place, why);
      this.#lost = blank === batch.n ? this.#lost + blank : 0;
      check(
        this.#lost < LOST_IN_A_ROW || this.#maxFailureShare === 1,
        "CocoDataLoader",
        () => {
          const [place = 0, why] = failed.at(-1) ?? [];
          const { fileName } = this.images[place] as ImageRecord;
          return `the last ${this.#lost} images in a row could not be read or decoded; the last is ${fileName}: ${why}`;
        },
        ErrorCode.io,
      );
      check(
        this.#images < LEAST_JUDGED || this.#skipped <= this.#maxFailureShare * this.#images,
        "CocoDataLoader",
        () => this.#tooManyFailures(),
        ErrorCode.image,
      );
      return batch;
    } catch (error) {
      batch.release();
      throw error;
    }
  }

  #tooManyFailures(): string {
    const share = (100 * this.#skipped) / this.#images;
    const [first, ...others] = this.failures.map(({ message }) => message);
    const more = others.length > 0 ? `; and ${others.length} more ${others.length === 1 ? "file" : "files"}` : "";
    return (
      `${this.#skipped} of ${this.#images} images could not be read or decoded: ${share.toFixed(1)} %, more than ` +
      `maxFailureShare allows, ${100 * this.#maxFailureShare} %; ${first}${more}`
    );
  }

  #noteFailure(place: number, why: string): void {
    const { id, fileName, key } = this.images[place] as ImageRecord;
    const known = this.#failures.get(id);
    if (known) {
      known.count++;
      return;
    }
    // A source's own message names the object already.
    const location = this.#source.locate(key);
    const named = why.includes(location) ? why : `${location}: ${why}`;
    if (this.#stopAtFailure) throw new DlfsError(ErrorCode.image, "CocoDataLoader", named);
    const message = `${named}; trained as an image without boxes`;
    const failure = { imageId: id, fileName, message, count: 1 };
    this.#failures.set(id, failure);
    this.#onFailure({ ...failure });
  }
}

function plannerOf(
  { decoder, epochs, closeLast }: CocoDataLoaderOptions,
  images: Targets,
  operations: readonly PreprocessOp[],
  options: { seed: number; minBoxSize: number },
): BatchPlanner {
  if (!("compose" in decoder)) {
    const composing = operations.filter((op) => needCompositions([op])).map(({ name }) => name);
    check(
      composing.length === 0,
      "CocoDataLoader",
      () => `${composing.join(", ")}: the decoder draws no compositions, expected a DeviceCompositionDecoder`,
    );
    return new PlanPlanner(decoder, { images, preprocessing: operations, ...options });
  }
  const augmentation = new Augmentation({ operations, seed: options.seed, epochs, closeLast });
  return new CompositionPlanner(decoder, augmentation, { images, ...options });
}

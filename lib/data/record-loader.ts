import { check, DlfsError, ErrorCode } from "../native/error";
import type { AnnotationStore } from "./annotation-store";
import { BatchQueue } from "./batch-queue";
import type { BatchSampler } from "./batch-sampler";
import { type BatchPlace, BatchSchedule } from "./batch-schedule";
import { BatchSlots } from "./batch-slots";
import type { BatchImage, DetectionBatch, ImageFailure } from "./coco-data-loader";
import { DataLoader, type LoaderState } from "./data-loader";
import type { RecordFailure } from "./device-records";
import { dropSmallBoxes, type ImagePlan, mappingOf, TRANSFORM_FLOATS, writeTransform } from "./image-plan";
import { CounterRandom, shuffledOrder } from "./random";
import type { RecordSet } from "./record-set";
import { type SampledImages, type SampledPass, Sampler, type SamplerJson } from "./sampler";
import { Normalize, type PreprocessOp } from "./transforms";

/** Fills slots of device memory with records: DeviceRecordReader. */
export interface RecordReader {
  readonly records: RecordSet;
  readonly slots: number;
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  /** mean[3], std[3], fill[3] of the values. */
  readonly normalization: Float32Array;
  read(
    slot: number,
    members: ArrayLike<number>,
    transforms: Float32Array | null,
  ): Promise<{ failures: RecordFailure[] }>;
}

export interface RecordLoaderOptions {
  reader: RecordReader;
  /** Images in a batch, of this rank. */
  batchSize: number;
  /** Whether each epoch has an order of its own; else it is that of the records. Default true; not beside `sampler`. */
  shuffle?: boolean;
  /** Decides which records an epoch has, how often, in which order: ShardWindowSampler, or as for CocoDataLoader. */
  sampler?: Sampler;
  /** Decides which records of an epoch make up a batch. Default: they are taken as they come. */
  batchSampler?: BatchSampler;
  /**
   * The store that batches name images of (BatchImage.imageId), as an evaluation needs; its split must have all records' images
   * and its classes must be theirs. Default: the store that was packed from.
   */
  store?: AnnotationStore;
  /** The split in `store`. Default: the one that was packed. */
  split?: string;
  /** Of order and augmentation; the same on all ranks. */
  seed?: number;
  /** Whether records that do not fill a last batch of all ranks are left out. Default: unless the order is that of the records. */
  dropLast?: boolean;
  /** This process among those that share the data, from 0, and how many they are; see BatchSchedule. Default 0 of 1. */
  rank?: number;
  ranks?: number;
  /** Batches prepared ahead. Default 4. */
  prefetch?: number;
  /** What is random, applied to the records' geometry: it must keep the size of the network input. */
  augmentation?: readonly PreprocessOp[];
  /** Boxes that one image has room for. Default, and at least: the most that a record has. */
  maxBoxes?: number;
  /** Boxes that become narrower or lower than this by augmentation, in network input pixels, are dropped. Default 1. */
  minBoxSize?: number;
  /**
   * What becomes of a record that is damaged or cannot be read: "skip" makes it an image of the fill colour without boxes,
   * counts it and goes on; "stop" makes getBatch fail with what is wrong with it. Default: skip.
   */
  failures?: "skip" | "stop";
  /**
   * The largest share of skipped records among those handed out, above which getBatch fails, once 100 have been handed out; 1 for
   * no limit. Default 0.1.
   */
  maxFailureShare?: number;
  /** Told of each record that fails, when its batch is handed out, the first time. Default: a line on standard error. */
  onFailure?: (failure: ImageFailure) => void;
}

/** LoaderState, and which images and boxes were packed: PackDescription.data. */
export interface RecordLoaderState extends LoaderState {
  data: string;
}

/** Records handed out before their share of failures is judged. */
const LEAST_JUDGED = 100;

/** A batch and its records that could not be read: their places in it, and why. */
interface Prepared {
  batch: DetectionBatch;
  failures: readonly RecordFailure[];
}

/** Batches of record files, for the same training and evaluation as CocoDataLoader's: nothing is decoded. */
export class RecordLoader extends DataLoader<DetectionBatch> {
  override readonly preprocessing: readonly PreprocessOp[];
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  /** Boxes that an image has room for in a batch: the M of DetectionBatch. */
  readonly maxBoxes: number;
  readonly records: RecordSet;

  readonly #reader: RecordReader;
  readonly #schedule: BatchSchedule;
  readonly #seed: number;
  readonly #augmentation: readonly PreprocessOp[];
  readonly #minBoxSize: number;
  readonly #stopAtFailure: boolean;
  readonly #maxFailureShare: number;
  readonly #onFailure: (failure: ImageFailure) => void;
  readonly #slots: BatchSlots;
  readonly #failures = new Map<number, ImageFailure>();
  /** Images of the store, by the id in the data set; null: the records' own ids. */
  readonly #imageIds: ReadonlyMap<number, number> | null;
  readonly #queue: BatchQueue<Prepared>;
  /** Records handed out, and those of them that failed. */
  #handedOut = 0;
  #skipped = 0;

  constructor(options: RecordLoaderOptions) {
    super();
    const { reader, batchSize, seed = 0, prefetch = 4, maxFailureShare = 0.1 } = options;
    const { records } = reader;
    for (const [name, value] of Object.entries({ batchSize, prefetch })) {
      const good = Number.isSafeInteger(value) && value >= 1;
      check(good, "RecordLoader", () => `${name} must be an integer >= 1, got ${value}`);
    }
    check(
      maxFailureShare >= 0 && maxFailureShare <= 1,
      "RecordLoader",
      () => `maxFailureShare must be in [0, 1], got ${maxFailureShare}`,
    );
    check(
      reader.batchSize >= batchSize && reader.slots >= 1,
      "RecordLoader",
      () => `the reader's slots hold ${reader.slots} x ${reader.batchSize} images, expected at least 1 x ${batchSize}`,
      ErrorCode.shape,
    );
    this.#augmentation = options.augmentation ?? [];
    const { dtype, size } = records.description;
    check(
      dtype === "u8" || this.#augmentation.length === 0,
      "RecordLoader",
      () => `augmentation needs records of u8, those of ${records.folder} are ${dtype}`,
    );
    const normalize = this.#augmentation.some((op) => op instanceof Normalize);
    check(!normalize, "RecordLoader", () => "augmentation: Normalize is the reader's, see DeviceRecordReaderOptions");
    const values = Array.from(reader.normalization);
    const [mean, std, fill] = [values.slice(0, 3), values.slice(3, 6), values.slice(6, 9)];
    const packed = records.preprocessing.filter((op) => !(op instanceof Normalize));
    this.preprocessing = [...packed, ...this.#augmentation, new Normalize({ mean, std, fill })];

    this.records = records;
    this.#reader = reader;
    this.#seed = seed;
    this.#minBoxSize = options.minBoxSize ?? 1;
    this.#stopAtFailure = options.failures === "stop";
    this.#maxFailureShare = maxFailureShare;
    this.#onFailure = options.onFailure ?? (({ message }) => console.warn(`warning: ${message}`));
    this.batchSize = batchSize;
    [this.height, this.width] = size;
    this.maxBoxes = options.maxBoxes ?? records.maxBoxes;
    check(
      Number.isSafeInteger(this.maxBoxes) && this.maxBoxes >= records.maxBoxes,
      "RecordLoader",
      () => `maxBoxes is ${this.maxBoxes}, but a record of ${records.folder} has ${records.maxBoxes} boxes`,
    );
    this.#slots = new BatchSlots(reader.slots, batchSize, this.maxBoxes);
    this.#imageIds = options.store ? imageIdsOf(records, options.store, options.split) : null;
    const { shuffle, sampler, batchSampler, rank, ranks, dropLast } = options;
    const order = {
      images: sampledRecords(records),
      shuffle,
      sampler,
      batchSampler,
      seed,
      batchSize,
      rank,
      ranks,
      dropLast,
    };
    this.#schedule = new BatchSchedule({ name: "RecordLoader", data: records.folder, ...order });
    // An order that gives no batch is said here.
    this.#schedule.length(0);
    this.#queue = new BatchQueue<Prepared>(
      "RecordLoader",
      prefetch,
      this.#schedule,
      (place, signal) => this.#prepare(place, signal),
      ({ batch }) => batch.release(),
    );
  }

  override get length(): number {
    return this.#schedule.length(this.#queue.place.epoch);
  }

  override get waitSeconds(): number {
    return this.#queue.waitSeconds;
  }

  /** Records that were damaged or could not be read, of the batches handed out since the loader was made. */
  get failures(): ImageFailure[] {
    return [...this.#failures.values()];
  }

  override getBatch(): Promise<DetectionBatch> {
    return this.#queue.next((prepared) => this.#handOut(prepared));
  }

  override state(): RecordLoaderState {
    return this.#stateAt(this.#queue.place);
  }

  /** The state after a batch, for callers that ask for batches ahead of using them. */
  stateAfter(batch: DetectionBatch): RecordLoaderState {
    return this.#stateAt(this.#schedule.after(batch));
  }

  override restore(state: LoaderState): void {
    this.#queue.checkOpen();
    const { data } = this.records.description;
    const found = (state as Partial<RecordLoaderState>).data;
    check(found === data, "RecordLoader.restore", () => `data was ${found ?? "none"}, but this loader has ${data}`);
    this.#queue.seek(this.#schedule.placeOf(state));
  }

  /** Stops loading; the reader stays. */
  override async dispose(): Promise<void> {
    this.#queue.close();
    this.#slots.close(new DlfsError(ErrorCode.handle, "RecordLoader", "the loader is disposed"));
    await this.#queue.settled();
  }

  #stateAt(place: BatchPlace): RecordLoaderState {
    return { ...this.#schedule.state(place), data: this.records.description.data };
  }

  #prepare({ epoch, index }: BatchPlace, signal: AbortSignal): Promise<Prepared> {
    return this.#slots.prepare(async (granted) => {
      const size = [this.height, this.width] as const;
      const scheduled = this.#schedule.batch({ epoch, index });
      const members = Array.from(scheduled.members);
      const n = members.length;
      const drawn = members.map((member, i) => this.#draw(member, epoch, scheduled.repeats[i] as number));
      const plans = drawn.map(({ plan }) => plan);
      const augmented = this.#augmentation.length > 0;
      const transforms = augmented ? new Float32Array(n * TRANSFORM_FLOATS) : null;
      if (transforms) for (const [i, plan] of plans.entries()) writeTransform(transforms, i, plan);
      const slot = await granted();
      signal.throwIfAborted();
      const { failures } = await this.#reader.read(slot, members, transforms);
      const failed = new Set(failures.map(({ index: i }) => i));
      const arrays = this.#slots.fill(slot, plans, (i) => failed.has(i));
      const images = drawn.map(({ image }) => image);
      return { batch: this.#slots.batch({ slot, n, images, ...arrays, epoch, index, size }), failures };
    });
  }

  /** Where a record's pixels and boxes go in an epoch. */
  #draw(member: number, epoch: number, repeat: number): Drawn {
    const info = this.records.info(member);
    const { imageId, sourceId, fileName, width, height, x, y, storedWidth, storedHeight } = info;
    const { scaleX, scaleY, offsetX, offsetY } = info;
    let plan: ImagePlan = {
      width: storedWidth,
      height: storedHeight,
      outputWidth: this.width,
      outputHeight: this.height,
      canvasWidth: this.width,
      canvasHeight: this.height,
      crop: { x: 0, y: 0, width: storedWidth, height: storedHeight },
      target: { x, y, width: storedWidth, height: storedHeight },
      flipX: false,
      flipY: false,
      boxes: Float64Array.from(info.boxes),
      labels: info.labels,
    };
    const image = {
      ...{ sourceId, fileName, width, height },
      imageId: this.#imageIds?.get(sourceId) ?? imageId,
      ...(repeat > 0 && { repeat }),
    };
    if (this.#augmentation.length === 0)
      return { plan, image: { ...image, toInput: { scaleX, scaleY, offsetX, offsetY } } };
    for (const [operation, op] of this.#augmentation.entries()) {
      plan = op.apply(plan, new CounterRandom({ seed: this.#seed, epoch, image: sourceId, operation, repeat }));
    }
    check(
      plan.canvasWidth === this.width && plan.canvasHeight === this.height,
      "RecordLoader",
      () =>
        `${fileName}: augmentation ends with a canvas of ${plan.canvasWidth}x${plan.canvasHeight} (width x height) instead ` +
        `of ${this.width}x${this.height}; after an operation that changes the size a Resize is needed`,
      ErrorCode.shape,
    );
    plan = dropSmallBoxes(plan, this.#minBoxSize);
    // Image to stored pixels (the record's mapping, shifted by where they lay), then on to the input.
    const on = mappingOf(plan);
    const toInput = {
      scaleX: scaleX * on.scaleX,
      scaleY: scaleY * on.scaleY,
      offsetX: (offsetX - x) * on.scaleX + on.offsetX,
      offsetY: (offsetY - y) * on.scaleY + on.offsetY,
    };
    return { plan, image: { ...image, toInput } };
  }

  /** Notes what failed. This goes by the order of batches, never by which was prepared first. */
  #handOut({ batch, failures }: Prepared): DetectionBatch {
    try {
      this.#handedOut += batch.n;
      for (const { index, message } of failures) this.#noteFailure(batch.images[index] as BatchImage, message);
      const [skipped, all, limit] = [this.#skipped, this.#handedOut, this.#maxFailureShare];
      check(
        all < LEAST_JUDGED || skipped <= limit * all,
        "RecordLoader",
        () =>
          `${skipped} of ${all} records handed out were damaged or could not be read, more than the ${100 * limit} % that ` +
          `maxFailureShare allows; the first: ${this.failures[0]?.message}`,
        ErrorCode.io,
      );
      return batch;
    } catch (error) {
      batch.release();
      throw error;
    }
  }

  #noteFailure({ imageId, fileName }: BatchImage, why: string): void {
    if (this.#stopAtFailure) throw new DlfsError(ErrorCode.io, "RecordLoader", why);
    this.#skipped++;
    const known = this.#failures.get(imageId);
    if (known) {
      known.count++;
      return;
    }
    const failure = { imageId, fileName, message: `${why}; trained as an image without boxes`, count: 1 };
    this.#failures.set(imageId, failure);
    this.#onFailure({ ...failure });
  }
}

interface Drawn {
  plan: ImagePlan;
  image: BatchImage;
}

/** The ids in a store of the images that were packed, by their ids in the data set. */
function imageIdsOf(
  records: RecordSet,
  store: AnnotationStore,
  split = records.description.split,
): Map<number, number> {
  const [packed, present] = [records.classes.names, store.classes().names];
  check(
    packed.length === present.length && packed.every((name, i) => name === present[i]),
    "RecordLoader",
    () => `the records of ${records.folder} have the classes ${packed.join(", ")}, the store ${present.join(", ")}`,
    ErrorCode.io,
  );
  const ids = new Map(store.images(split).map(({ id, sourceId }) => [sourceId, id]));
  for (let i = 0; i < records.length; i++) {
    const { sourceId, fileName } = records.info(i);
    check(
      ids.has(sourceId),
      "RecordLoader",
      () => `split "${split}" of the store has no image ${sourceId} (${fileName}), which ${records.folder} has`,
      ErrorCode.io,
    );
  }
  return ids;
}

/** What samplers may go by, of all records. */
function sampledRecords(records: RecordSet): SampledImages {
  const { length } = records;
  const ids = new Float64Array(length);
  const aspectRatios = new Float64Array(length);
  const starts = new Uint32Array(length + 1);
  const labels: number[] = [];
  for (let i = 0; i < length; i++) {
    const info = records.info(i);
    ids[i] = info.sourceId;
    aspectRatios[i] = info.height / info.width;
    for (const label of info.labels) labels.push(label);
    starts[i + 1] = labels.length;
  }
  return { length, ids, aspectRatios, classes: records.classes.length, starts, labels: Int32Array.from(labels) };
}

/**
 * Each record once: the shards in an order of each epoch's own, the records of each `window` of them shuffled among each other. Reads
 * stay near each other that way, on disks where that matters.
 */
export class ShardWindowSampler extends Sampler {
  readonly #starts: Uint32Array;

  constructor(
    { starts }: Pick<RecordSet, "starts">,
    readonly window: number,
  ) {
    super();
    const good = Number.isSafeInteger(window) && window >= 1;
    check(good, "ShardWindowSampler", () => `window must be an integer >= 1, got ${window}`);
    this.#starts = starts;
  }

  override toJSON(): SamplerJson {
    return { name: "ShardWindowSampler", window: this.window };
  }

  override order({ length }: Pick<SampledImages, "length">, { seed, epoch }: SampledPass): Uint32Array {
    const starts = this.#starts;
    const shards = starts.length - 1;
    check(starts[shards] === length, "ShardWindowSampler", () => `made for ${starts[shards]} records, not ${length}`);
    // Both orders are drawn under different epochs, so that they do not follow from each other.
    const shardOrder = shuffledOrder(shards, seed, 2 * epoch);
    const order = new Uint32Array(length);
    let done = 0;
    for (let first = 0; first < shards; first += this.window) {
      const members: number[] = [];
      for (const shard of shardOrder.subarray(first, first + this.window)) {
        for (let i = starts[shard] as number; i < (starts[shard + 1] as number); i++) members.push(i);
      }
      const places = shuffledOrder(members.length, seed + first, 2 * epoch + 1);
      for (const place of places) order[done++] = members[place] as number;
    }
    return order;
  }
}

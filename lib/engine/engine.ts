/** A trained model that serves: images in, boxes out. */
import { DeviceBatchDecoder, DeviceImageCodec, type Pixels, TRANSFORM_FLOATS } from "../data";
import { SlotRing } from "../data/queues";
import { type BackendName, check, DlfsError, ErrorCode } from "../native";
import { Device, type Precision, precisionPolicy, type QuantizedDType, Tensor } from "../tensor";
import {
  autotune,
  type Detection,
  DetectStep,
  detectionsOnImage,
  FeatureStep,
  loadTrainedModel,
  powersOfTwo,
  type Quantization,
  type TrainedModel,
} from "../train";
import { type EngineImage, type PlannedImage, planImage } from "./image-input";
import { PixelDrawer } from "./pixel-drawer";

export interface EngineOptions {
  /** Where it runs, which stays the caller's. Default: a device of its own. */
  device?: Device;
  /** Of a device of its own: "cuda" or "cpu". Default: DLFS_BACKEND, else cuda where it finds a device. */
  backend?: BackendName;
  /** Default "fp16" where the device computes in it, else "fp32". */
  precision?: Precision;
  /** Convolutions of 8 bits, for a model file with a calibration; the rest stays in `precision`. */
  quantize?: QuantizedDType;
  /**
   * Batch sizes that have programs of their own, with folded weights and activations of their own; images that come together go
   * in batches of the largest, and a batch runs as the smallest that holds it. Default: 1, 2, 4, ... 32 on a GPU, to 8 on the CPU.
   */
  batchSizes?: readonly number[];
  /** Network input in pixels. Default: the model's. */
  size?: readonly [height: number, width: number];
  /** Batches that are decoded and detected on at a time. Default 3. */
  slots?: number;
  /** Decoding threads; 0 (default) chooses. */
  threads?: number;
  /** The share of images, in per cent, that a GPU's JPEG engines decode: see DeviceBatchDecoderOptions. */
  hardware?: number;
  /** Milliseconds for timing the candidates of a convolution, 0 for heuristics; see `autotune`, which says the default. */
  tuneMs?: number;
  /** Runs each batch size before load() returns, so that the first request is as fast as others. Default true. */
  warmUp?: boolean;
}

/** Where a batch's time went, in milliseconds. */
export interface EngineTimes {
  /** For batches that came before. */
  wait: number;
  /** From files or pixels to the network's input: decoding, resizing, normalization. */
  decode: number;
  /** The network, with its post-processing on the device, and waiting for those before. */
  infer: number;
  /** Boxes into the images' pixels. */
  postprocess: number;
}

export interface DetectOptions {
  /** Detections below it are left out. Default: what the model's post-processing keeps. */
  scoreThreshold?: number;
  /** Hears of each batch how long it took. */
  onTimes?: (times: EngineTimes) => void;
}

/** What was found on an image. */
export interface EngineResult {
  /** Of the image, in pixels, upright; 0 where that is not known. */
  width: number;
  height: number;
  /** In pixels of the image, best first. */
  detections: Detection[];
  /** Why there are none: the image is damaged, or none. */
  error: DlfsError | null;
}

/** What an image is like, or why that is not known. */
export interface ImageFeatures {
  /** A value of each channel of the backbone; null where there is an error. */
  features: Float32Array | null;
  /** The image is damaged, or none. */
  error: DlfsError | null;
}

/** Runs of a program until kernels are loaded and its graph is captured. */
const WARM_UP_RUNS = 3;

/**
 * A trained model, ready for images of any size: files are decoded on native threads, everything is drawn and detected on in
 * batches on the device, and boxes come back in the images' pixels. Decoding, detecting and reading of several batches overlap,
 * also of calls that are made at the same time. Several engines may share a device.
 */
export class Engine implements AsyncDisposable {
  readonly device: Device;
  readonly codec: DeviceImageCodec;
  /** Names of the classes, by label. */
  readonly classes: readonly string[];
  readonly size: readonly [height: number, width: number];
  readonly batchSizes: readonly number[];
  /** The most images of one batch. */
  readonly maxBatch: number;
  readonly precision: string;
  readonly #trained: TrainedModel;
  readonly #step: DetectStep;
  readonly #decoder: DeviceBatchDecoder;
  readonly #drawers: readonly PixelDrawer[];
  readonly #free: SlotRing;
  #features: FeatureStep | null = null;
  #owned = new DisposableStack();
  #running = new Set<Promise<unknown>>();
  #disposing: Promise<void> | null = null;

  /** What is made is disposed of with `owned`. */
  private constructor(device: Device, trained: TrainedModel, options: EngineOptions, owned: DisposableStack) {
    const { slots = 3, threads, hardware, quantize } = options;
    const { batchSizes = powersOfTwo(device.backend === "cuda" ? 32 : 8), size = trained.config.size } = options;
    this.device = device;
    this.codec = new DeviceImageCodec(device);
    this.classes = trained.config.classes;
    this.size = size;
    this.batchSizes = [...new Set(batchSizes)].sort((a, b) => a - b);
    check(
      this.batchSizes.length > 0 && this.batchSizes.every((n) => Number.isSafeInteger(n) && n > 0),
      "Engine",
      () => `batchSizes: expected whole numbers from 1, got ${JSON.stringify(batchSizes)}`,
    );
    check(
      size.length === 2 && size.every((side) => Number.isSafeInteger(side) && side > 0),
      "Engine",
      () => `size: expected height and width in pixels, got ${JSON.stringify(size)}`,
    );
    check(Number.isSafeInteger(slots) && slots > 0, "Engine", () => `slots: expected a number from 1, got ${slots}`);
    this.maxBatch = this.batchSizes.at(-1) as number;
    this.precision = quantize ?? trained.model.precision;
    this.#trained = trained;
    const shape = { batchSize: this.maxBatch, height: size[0], width: size[1] };
    const { preprocessing } = trained;
    const quantization = quantize && quantizationOf(trained, quantize);
    this.#step = owned.use(new DetectStep(trained.model, { ...shape, buckets: this.batchSizes, quantization }));
    const dtype = trained.model.precision;
    this.#decoder = owned.use(
      new DeviceBatchDecoder(device, { ...shape, slots, dtype, preprocessing, threads, hardware, prompt: true }),
    );
    this.#drawers = Array.from({ length: slots }, () => owned.use(new PixelDrawer(device, preprocessing)));
    this.#free = new SlotRing(slots);
  }

  /**
   * Makes an engine of a trained model.
   *
   * @param path a model file, a checkpoint, or the folder of a run, whose newest intact checkpoint is used
   * @throws DlfsError naming the file: one that is missing, damaged or of a newer version, or that lacks what is asked for; of
   *   code `memory` where the device has no room for the batch sizes
   */
  static async load(path: string, options: EngineOptions = {}): Promise<Engine> {
    using made = new DisposableStack();
    const device = options.device ?? made.use(new Device({ backend: options.backend }));
    if (options.tuneMs !== undefined) autotune(device, { ms: options.tuneMs });
    const precision = options.precision ?? (device.supports("conv.f16") ? "fp16" : "fp32");
    check(
      !precisionPolicy(precision).tf32 || device.tf32,
      "Engine",
      () => `precision tf32 is a mode of the device: pass one that was opened with { tf32: true }`,
    );
    const trained = made.use(await loadTrainedModel(path, device, { precision }));
    const engine = new Engine(device, trained, options, made);
    if (options.warmUp ?? true) await engine.#warmUp();
    engine.#owned = made.move();
    return engine;
  }

  /** The model file, or checkpoint. */
  get path(): string {
    return this.#trained.path;
  }

  /** Optimizer steps that the model had been trained for. */
  get iteration(): number {
    return this.#trained.iteration;
  }

  /** The most detections of an image. */
  get maxDetections(): number {
    return this.#step.maxDetections;
  }

  /** What an evaluation of the model measured, where there was one: "AP", ... */
  get metrics(): Readonly<Record<string, number>> {
    return this.#trained.metrics;
  }

  /** @throws DlfsError of code `image` where it is damaged, or none */
  async detect(image: EngineImage, options?: DetectOptions): Promise<EngineResult>;
  /** Of each image what was found, or why nothing could be: a bad image takes nothing from its neighbours. */
  async detect(images: readonly EngineImage[], options?: DetectOptions): Promise<EngineResult[]>;
  async detect(
    images: EngineImage | readonly EngineImage[],
    options: DetectOptions = {},
  ): Promise<EngineResult | EngineResult[]> {
    check(this.#disposing === null, "Engine", () => "used after dispose()", ErrorCode.handle);
    const list = Array.isArray(images) ? (images as readonly EngineImage[]) : null;
    const work = this.#detectAll(list ?? [images as EngineImage], options);
    this.#running.add(work);
    try {
      const results = await work;
      if (list) return results;
      const [result] = results as [EngineResult];
      if (result.error) throw result.error;
      return result;
    } finally {
      this.#running.delete(work);
    }
  }

  /**
   * What images are like: the means of the backbone's channels (`pooledFeatures`), by which images that are alike are near each
   * other. The program is made with the first call. A bad image takes nothing from its neighbours.
   */
  async features(images: readonly EngineImage[]): Promise<ImageFeatures[]> {
    check(this.#disposing === null, "Engine", () => "used after dispose()", ErrorCode.handle);
    const work = this.#featuresOf(images);
    this.#running.add(work);
    try {
      return await work;
    } finally {
      this.#running.delete(work);
    }
  }

  /** Waits for what is under way and frees all memory. */
  dispose(): Promise<void> {
    this.#disposing ??= (async () => {
      await Promise.allSettled([...this.#running]);
      this.#free.close(new DlfsError(ErrorCode.handle, "Engine", "used after dispose()"));
      this.#features?.dispose();
      this.#owned.dispose();
    })();
    return this.#disposing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #detectAll(images: readonly EngineImage[], options: DetectOptions): Promise<EngineResult[]> {
    const { scoreThreshold, onTimes } = options;
    const results: EngineResult[] = images.map(() => ({ width: 0, height: 0, detections: [], error: null }));
    const { batches, errors } = this.#plan(images);
    for (const [place, error] of errors) (results[place] as EngineResult).error = error;
    for (const { place, planned } of batches.flat()) {
      Object.assign(results[place] as EngineResult, { width: planned.width, height: planned.height });
    }
    await Promise.all(
      batches.map(async (batch) => {
        const found = await this.#detectBatch(
          batch.map(({ planned }) => planned),
          onTimes,
        );
        for (const [i, { place }] of batch.entries()) {
          const { detections, error } = found[i] as (typeof found)[0];
          const kept =
            scoreThreshold === undefined ? detections : detections.filter(({ score }) => score >= scoreThreshold);
          Object.assign(results[place] as EngineResult, { detections: kept, error });
        }
      }),
    );
    return results;
  }

  /** Images in batches, with their places; and what is wrong with which others. */
  #plan(images: readonly EngineImage[]) {
    const good: { place: number; planned: PlannedImage }[] = [];
    const errors = new Map<number, DlfsError>();
    for (const [place, image] of images.entries()) {
      try {
        good.push({ place, planned: planImage(image, this.codec, this.#trained.preprocessing, this.size) });
      } catch (error) {
        if (!(error instanceof DlfsError)) throw error;
        errors.set(place, error);
      }
    }
    const batches = Array.from({ length: Math.ceil(good.length / this.maxBatch) }, (_, i) =>
      good.slice(i * this.maxBatch, (i + 1) * this.maxBatch),
    );
    return { batches, errors };
  }

  async #featuresOf(images: readonly EngineImage[]): Promise<ImageFeatures[]> {
    const { batches, errors } = this.#plan(images);
    const results = images.map((_, i): ImageFeatures => ({ features: null, error: errors.get(i) ?? null }));
    const [height, width] = this.size;
    this.#features ??= new FeatureStep(this.#trained.model, { batchSize: this.maxBatch, height, width });
    const step = this.#features;
    const work = batches.map(async (batch) => {
      const slot = await this.#free.acquire();
      try {
        const planned = batch.map((one) => one.planned);
        const { order, errors } = await this.#fill(slot, planned);
        const rows = await step.run(this.#decoder.images(slot), batch.length);
        for (const [row, i] of order.entries()) {
          const error = errors.get(i) ?? null;
          results[(batch[i] as (typeof batch)[0]).place] = {
            features: error ? null : (rows[row] as Float32Array),
            error,
          };
        }
      } finally {
        this.#free.release(slot);
      }
    });
    // All are over before one that failed is reported: nothing runs on behind the caller's back.
    for (const part of await Promise.allSettled(work)) if (part.status === "rejected") throw part.reason;
    return results;
  }

  async #detectBatch(
    batch: readonly PlannedImage[],
    onTimes?: (times: EngineTimes) => void,
  ): Promise<Pick<EngineResult, "detections" | "error">[]> {
    const asked = performance.now();
    const slot = await this.#free.acquire();
    try {
      const granted = performance.now();
      const { order, errors } = await this.#fill(slot, batch);
      const filled = performance.now();
      const found = await this.#step.run(this.#decoder.images(slot), batch.length);
      const detected = performance.now();
      const results = batch.map((_, i) => ({ detections: [] as Detection[], error: errors.get(i) ?? null }));
      for (const [row, i] of order.entries()) {
        if (errors.has(i)) continue;
        const { toInput, width, height } = batch[i] as PlannedImage;
        (results[i] as EngineResult).detections = detectionsOnImage(found[row] as Detection[], toInput, width, height);
      }
      onTimes?.({
        ...{ wait: granted - asked, decode: filled - granted, infer: detected - filled },
        postprocess: performance.now() - detected,
      });
      return results;
    } finally {
      this.#free.release(slot);
    }
  }

  /** Draws a batch into a slot, files first: which image each row is, and what went wrong with which image. */
  async #fill(slot: number, batch: readonly PlannedImage[]) {
    const isFile = ({ image }: PlannedImage) => image instanceof Uint8Array;
    const all = batch.map((_, i) => i);
    const files = all.filter((i) => isFile(batch[i] as PlannedImage));
    const decoded = all.filter((i) => !isFile(batch[i] as PlannedImage));
    const order = [...files, ...decoded];
    const transforms = new Float32Array(order.length * TRANSFORM_FLOATS);
    for (const [row, i] of order.entries()) (batch[i] as PlannedImage).writeTransform(transforms, row);
    const split = files.length * TRANSFORM_FLOATS;
    const images = this.#decoder.images(slot);
    const errors = new Map<number, DlfsError>();
    const work: Promise<void>[] = [];
    if (files.length > 0) {
      const bytes = files.map((i) => (batch[i] as PlannedImage).image as Uint8Array);
      work.push(
        this.#decoder.decode(slot, bytes, transforms.subarray(0, split)).then(({ failures }) => {
          for (const { index, message, code } of failures) {
            errors.set(files[index] as number, new DlfsError(code ?? ErrorCode.image, "image", message));
          }
        }),
      );
    }
    if (decoded.length > 0) {
      const [, ...shape] = images.shape;
      const row = images.byteLength / (images.shape[0] as number);
      const rest = Tensor.at(
        this.device,
        images.address + files.length * row,
        [decoded.length, ...shape],
        images.dtype,
      );
      const pixels = decoded.map((i) => (batch[i] as PlannedImage).image as Pixels | Tensor);
      work.push((this.#drawers[slot] as PixelDrawer).draw(rest, pixels, transforms.subarray(split)));
    }
    // Both are over before one that failed is reported: the slot is free again then.
    for (const part of await Promise.allSettled(work)) if (part.status === "rejected") throw part.reason;
    return { order, errors };
  }

  /** Decoders start, and their memory is there, before the first image comes; each slot has as many as it can. */
  async #warmUpDecoding(): Promise<void> {
    if (!this.device.supports("jpeg.encode")) return;
    const file = this.codec.encode(noise(640, 480));
    const planned = planImage(file, this.codec, this.#trained.preprocessing, this.size);
    const full = Array.from({ length: this.maxBatch }, () => planned);
    await Promise.all(this.#drawers.map((_, slot) => this.#fill(slot, full)));
    await this.#fill(0, [planned]);
  }

  async #warmUp(): Promise<void> {
    this.#step.prepare();
    await this.#warmUpDecoding();
    const images = this.#decoder.images(0);
    for (const size of this.batchSizes) {
      for (let i = 0; i < WARM_UP_RUNS; i++) await this.#step.run(images, size);
    }
  }
}

/** As a photograph has about as many bytes for a JPEG. */
function noise(width: number, height: number): Pixels {
  const data = new Uint8Array(3 * width * height);
  let state = 1;
  for (let i = 0; i < data.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    data[i] = 112 + (state >>> 27);
  }
  return { width, height, data };
}

function quantizationOf({ calibration, path }: TrainedModel, dtype: QuantizedDType): Quantization {
  if (calibration) return { dtype, table: calibration };
  const message = `quantize: ${dtype} needs a calibration, and the file has none; dlfs eval --quantize ${dtype} makes one, dlfs export takes it along`;
  throw new DlfsError(ErrorCode.argument, path, message);
}

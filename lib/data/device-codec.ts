import { check, constants, ErrorCode } from "../native";
import { type Device, type DType, dtypeCode, NativeObject, outHandle, Tensor } from "../tensor";
import type { BatchDecoder, DecodeFailure, EncodedImage, ImageCodec, ImageFormat, ImageInfo, InputSize } from "./codec";
import { ENGINE_SHARE, finishJob, ImageStaging, JobTimes } from "./encoded-images";
import { antialiasOf, normalizationOf, type PreprocessOp } from "./transforms";

/** Pixels on the host: (height, width, 3) uint8 RGB, row by row. */
export interface Pixels {
  width: number;
  height: number;
  data: Uint8Array;
}

const FORMATS: ReadonlyMap<number, ImageFormat> = new Map([
  [constants.IMAGE_JPEG, "jpeg"],
  [constants.IMAGE_PNG, "png"],
  [constants.IMAGE_WEBP, "webp"],
]);

/** Reads and decodes single image files and encodes JPEGs with a device's library; each call waits for its result. */
export class DeviceImageCodec implements ImageCodec {
  readonly formats: readonly ImageFormat[];

  constructor(readonly device: Device) {
    this.formats = [...FORMATS.values()].filter((format) => device.supports(`${format}.decode`));
  }

  info(bytes: Uint8Array): ImageInfo {
    check(bytes.byteLength > 0, "image", () => "the file is empty", ErrorCode.image);
    const values = new Int32Array(8);
    this.device.native.imageInfoSync(values, bytes, bytes.byteLength);
    const [width = 0, height = 0, format = 0, components = 0, bits = 0, process = 0, orientation = 0] = values;
    return { width, height, format: FORMATS.get(format) as ImageFormat, components, bits, process, orientation };
  }

  /** All pixels of an image file, upright. Throws DlfsError for what is damaged or no image. */
  decode(bytes: Uint8Array): Pixels {
    const { width, height } = this.info(bytes);
    check(
      width * height <= 2 ** 28,
      "image",
      () => `${width} x ${height} pixels are more than the limit of 2^28`,
      ErrorCode.image,
    );
    const { native, stream } = this.device;
    using pixels = Tensor.empty(this.device, [height, width, 3], "u8");
    native.imageDecodeSync(stream.handle, pixels.address, bytes, bytes.byteLength, width, height);
    return { width, height, data: pixels.readBytes() };
  }

  /** A baseline JPEG, 4:2:0. quality 1 to 100. */
  encode({ width, height, data }: Pixels, quality = 90): Uint8Array {
    check(
      data.byteLength === width * height * 3,
      "jpeg",
      () => `expected ${width} x ${height} x 3 bytes, got ${data.byteLength}`,
      ErrorCode.shape,
    );
    const { native, stream } = this.device;
    using pixels = Tensor.empty(this.device, [height, width, 3], "u8");
    pixels.writeBytes(data);
    // A baseline JPEG of noise at quality 100 stays below 3 bytes a pixel; headers and small images need the rest.
    const out = new Uint8Array(width * height * 3 + 4096);
    const length = outHandle();
    native.jpegEncodeSync(stream.handle, out, length.view, pixels.address, out.byteLength, width, height, quality);
    return out.slice(0, length.value);
  }
}

export interface DeviceBatchDecoderOptions {
  batchSize: number;
  /** Size of the network's input. */
  height: number;
  width: number;
  /** Batches that can be in memory at a time. Default 7: four being prepared, two being trained on, one on its way. */
  slots?: number;
  /** Dtype of the network's input, or u8: the pixels as they are, in 0 to 255, without normalisation. Default "f32". */
  dtype?: Extract<DType, "f32" | "bf16" | "f16" | "u8">;
  /** The loader's operations: what they say of mean, standard deviation, fill colour and antialiasing is applied here. */
  preprocessing: readonly PreprocessOp[];
  /** Decoding threads; 0 chooses. */
  threads?: number;
  /**
   * The share of images, in per cent, that a GPU's JPEG engines decode beside the threads, where it has them (the device
   * supports "jpeg.hardware") and they take the image. Which images these are depends on the images alone. Default 100: the
   * threads decode what the engines do not take.
   */
  hardware?: number;
  /**
   * Jobs are expected to take as long as those before, and are asked about without pause around their end: an answer is late by
   * microseconds rather than by up to two milliseconds, for some of the processor's time. Default false.
   */
  prompt?: boolean;
}

/** A batch's memory as one of images of another size, of which it has room for as many. */
export function imagesOfSize(batch: Tensor, [height, width]: InputSize): Tensor {
  const [n, h, w, channels] = batch.shape as unknown as [number, number, number, number];
  if (h === height && w === width) return batch;
  check(
    Number.isSafeInteger(height) && Number.isSafeInteger(width) && height > 0 && width > 0 && height * width <= h * w,
    "images",
    () => `expected a size of at most ${h * w} pixels, as ${h}x${w}, got ${height}x${width}`,
    ErrorCode.shape,
  );
  return Tensor.at(batch.device, batch.address, [n, height, width, channels], batch.dtype);
}

/** Decodes on native threads into a ring of batches in device memory; the event loop is never blocked. */
export class DeviceBatchDecoder extends NativeObject implements BatchDecoder {
  readonly device: Device;
  readonly slots: number;
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  readonly readsFiles = true;
  readonly #ring: Tensor[];
  readonly #staging: ImageStaging[];
  readonly #normalization: Float32Array;
  readonly #dtype: number;
  readonly #flags: number;
  /** Of jobs before; null where nobody is in a hurry. */
  readonly #times: JobTimes | null;

  constructor(device: Device, options: DeviceBatchDecoderOptions) {
    const { batchSize, height, width, slots = 7, dtype = "f32", preprocessing } = options;
    const out = outHandle();
    device.native.decoderCreate(device.handle, out.view, options.threads ?? 0, options.hardware ?? ENGINE_SHARE);
    super(out.value, "DeviceBatchDecoder", (handle) => device.native.decoderDestroy(handle));
    // What is made is released again where a later part fails.
    using made = new DisposableStack();
    made.defer(() => super.dispose());
    this.device = device;
    this.slots = slots;
    this.batchSize = batchSize;
    this.height = height;
    this.width = width;
    this.#dtype = dtypeCode(dtype);
    this.#flags = antialiasOf(preprocessing) ? constants.PREPROCESS_ANTIALIAS : 0;
    this.#normalization = normalizationOf(preprocessing);
    this.#times = options.prompt ? new JobTimes() : null;
    const shape = [batchSize, height, width, 3];
    this.#ring = Array.from({ length: slots }, () => made.use(Tensor.zeros(device, shape, dtype)));
    this.#staging = Array.from({ length: slots }, () => new ImageStaging(device));
    device.stream.synchronize(); // the decoder writes from streams of its own
    made.move();
  }

  /** The images of a slot: (batchSize, height, width, 3), normalised; of the slots' size or a smaller one. */
  images(slot: number, size: InputSize = [this.height, this.width]): Tensor {
    return imagesOfSize(this.#ring[slot] as Tensor, size);
  }

  async decode(
    slot: number,
    images: EncodedImage[],
    transforms: Float32Array,
    size: InputSize = [this.height, this.width],
  ): Promise<{ failures: DecodeFailure[] }> {
    const n = images.length;
    check(n > 0 && n <= this.batchSize, "decode", () => `expected 1 to ${this.batchSize} images, got ${n}`);
    const expected = n * constants.TRANSFORM_FLOATS;
    check(
      transforms.length === expected,
      "decode",
      () => `expected ${expected} numbers as transforms, got ${transforms.length}`,
    );
    const { sources, lengths, paths, pathBytes } = (this.#staging[slot] as ImageStaging).stage(images);
    const job = outHandle();
    this.device.native.decoderSubmit(
      this.handle,
      job.view,
      this.images(slot, size).address,
      sources,
      lengths,
      paths,
      transforms,
      this.#normalization,
      pathBytes,
      n,
      size[0],
      size[1],
      3,
      this.#dtype,
      this.#flags,
    );
    if (!this.#times) return { failures: await finishJob(this.device, job.value, n) };
    const bytes = images.reduce((sum, image) => sum + (typeof image === "string" ? 0 : image.byteLength), 0);
    const started = performance.now();
    const failures = await finishJob(this.device, job.value, n, this.#times.expected(n, bytes));
    this.#times.learn(n, bytes, performance.now() - started);
    return { failures };
  }

  override dispose(): void {
    if (this.disposed) return;
    super.dispose(); // waits for the jobs
    for (const tensor of this.#ring) tensor.dispose();
    for (const staging of this.#staging) staging[Symbol.dispose]();
  }
}

import { check, DlfsError, ErrorCode } from "../native";
import { type Device, type DType, NativeObject, outHandle, Stream, Tensor } from "../tensor";
import type { CompositionDecoder, CompositionResult, EncodedImage, InputSize } from "./codec";
import type { Composition, SourceImage, SourcePixels } from "./composition";
import { drawCompositions } from "./device-augment";
import { imagesOfSize } from "./device-codec";
import { ENGINE_SHARE, finishJob, ImageStaging } from "./encoded-images";
import { SlotRing } from "./queues";
import { normalizationOf, type PreprocessOp } from "./transforms";

export interface DeviceCompositionDecoderOptions {
  batchSize: number;
  /** Size of the network's input. */
  height: number;
  width: number;
  /** Batches that can be in memory at a time. Default 7, as DeviceBatchDecoder's. */
  slots?: number;
  /** Batches that can be decoded at a time; each needs memory for all decoded pixels. Default 3. */
  decoding?: number;
  /** Dtype of the network's input. Default "f32". */
  dtype?: Extract<DType, "f32" | "bf16" | "f16">;
  /** What they say of mean, standard deviation, fill colour and antialiasing is applied. */
  preprocessing: readonly PreprocessOp[];
  /** Decoding threads; 0 chooses. */
  threads?: number;
  /** The share of images that a GPU's JPEG engines decode: see DeviceBatchDecoderOptions. Default 100. */
  hardware?: number;
  /** Most bytes of decoded pixels that a batch may need, 3 for each pixel of each image. Default 2 GiB. */
  maxPixelBytes?: number;
}

/** Memory for the images of one batch, as large as the largest batch so far needed. */
interface Sources {
  readonly encoded: ImageStaging;
  pixels: Tensor | null;
}

type Source = Pick<SourceImage, "id" | "width" | "height">;

const round = (bytes: number): number => Math.ceil(Math.max(1, bytes) / 256) * 256;

/**
 * Decodes the JPEGs that compositions draw on, each once a batch, and draws the compositions into a ring of batches in device
 * memory. Native threads decode, a stream of its own draws; the event loop is never blocked.
 */
export class DeviceCompositionDecoder extends NativeObject implements CompositionDecoder {
  readonly device: Device;
  readonly slots: number;
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  readonly readsFiles = true;
  readonly #options: DeviceCompositionDecoderOptions;
  readonly #stream: Stream;
  readonly #ring: Tensor[];
  /** What batches are decoded into, and who has which. */
  readonly #sources: Sources[];
  readonly #free: SlotRing;

  constructor(device: Device, options: DeviceCompositionDecoderOptions) {
    const { batchSize, height, width, slots = 7, decoding = 3, dtype = "f32" } = options;
    const out = outHandle();
    device.native.decoderCreate(device.handle, out.view, options.threads ?? 0, options.hardware ?? ENGINE_SHARE);
    super(out.value, "DeviceCompositionDecoder", (handle) => device.native.decoderDestroy(handle));
    // What is made is released again where a later part fails.
    using made = new DisposableStack();
    made.defer(() => super.dispose());
    normalizationOf(options.preprocessing);
    this.device = device;
    this.slots = slots;
    this.batchSize = batchSize;
    this.height = height;
    this.width = width;
    this.#options = options;
    this.#stream = made.use(new Stream(device));
    const shape = [batchSize, height, width, 3];
    this.#ring = Array.from({ length: slots }, () => made.use(Tensor.zeros(device, shape, dtype)));
    this.#sources = Array.from({ length: decoding }, () => ({ encoded: new ImageStaging(device), pixels: null }));
    this.#free = new SlotRing(decoding);
    device.stream.synchronize(); // batches are written from another stream
    made.move();
  }

  /** The images of a slot: (batchSize, height, width, 3), normalised; of the slots' size or a smaller one. */
  images(slot: number, size: InputSize = [this.height, this.width]): Tensor {
    return imagesOfSize(this.#ring[slot] as Tensor, size);
  }

  /**
   * Draws n <= batchSize compositions into a slot; resolves when they are written. `encoded` has each image that they draw on,
   * its bytes or the path of its file, by SourceImage.id; one that is missing, damaged or of another size than the composition
   * says is a failure, and what would be drawn on it with others is left blank, so that no picture shows objects whose boxes
   * are not known to be there. One call at a time for each slot; places n and up of the slot keep what they held.
   */
  async compose(
    slot: number,
    compositions: readonly Composition[],
    encoded: ReadonlyMap<number, EncodedImage>,
  ): Promise<CompositionResult> {
    check(slot in this.#ring, "compose", () => `there is no slot ${slot} among ${this.slots}`);
    const [first] = compositions;
    const batch = this.images(slot, first && [first.outputHeight, first.outputWidth]);
    const place = await this.#free.acquire();
    try {
      return await this.#compose(batch, this.#sources[place] as Sources, compositions, encoded);
    } finally {
      this.#free.release(place);
    }
  }

  async #compose(
    batch: Tensor,
    memory: Sources,
    compositions: readonly Composition[],
    encoded: ReadonlyMap<number, EncodedImage>,
  ): Promise<CompositionResult> {
    const sources = sourcesOf(compositions);
    const addresses = this.#reserve(memory, sources);
    const job = sources.length > 0 ? this.#submit(memory, sources, addresses, encoded) : null;
    const found = job === null ? [] : await finishJob(this.device, job, sources.length);
    const failures = found.map(({ index, ...what }) => ({ id: (sources[index] as Source).id, ...what }));
    const failed = new Set(failures.map(({ id }) => id));
    const decoded = new Map(
      sources.map(({ id, width }, i): [number, SourcePixels] => [
        id,
        { address: addresses[i] as number, pitch: 3 * width },
      ]),
    );
    for (const id of failed) decoded.delete(id);
    const whole = compositions.map(({ layers }) => layers.every(({ source }) => !source || decoded.has(source.id)));
    const drawn = compositions.map((composition, i) => (whole[i] ? composition : { ...composition, layers: [] }));
    drawCompositions(batch, drawn, (id) => decoded.get(id) ?? null, { ...this.#options, stream: this.#stream });
    await this.#stream.done();
    return { failures, blank: [...whole.keys()].filter((i) => !whole[i]) };
  }

  /** Where the pixels of each image go. */
  #reserve(memory: Sources, sources: readonly Source[]): number[] {
    let total = 0;
    const offsets = sources.map(({ width, height }) => {
      total += round(3 * width * height);
      return total - round(3 * width * height);
    });
    const most = this.#options.maxPixelBytes ?? 2 ** 31;
    check(
      total <= most,
      "compose",
      () => `a batch of ${sources.length} images needs ${total} bytes of pixels, more than the limit of ${most}`,
      ErrorCode.memory,
    );
    // Some room to spare, so that batches of varying size do not allocate again and again.
    if (!memory.pixels || (memory.pixels.shape[0] as number) < total) {
      memory.pixels?.dispose();
      memory.pixels = null;
      memory.pixels = Tensor.empty(this.device, [Math.min(Math.ceil(Math.max(1, total) * 1.25), most)], "u8");
    }
    const { address } = memory.pixels;
    return offsets.map((offset) => address + offset);
  }

  /** Starts decoding the images, each to its own size; the job. */
  #submit(
    { encoded: staging }: Sources,
    images: readonly Source[],
    addresses: readonly number[],
    encoded: ReadonlyMap<number, EncodedImage>,
  ): number {
    const staged = staging.stage(images.map(({ id }) => encoded.get(id) ?? new Uint8Array(0)));
    const job = outHandle();
    this.device.native.decoderSubmitPixels(
      this.handle,
      job.view,
      BigInt64Array.from(addresses, BigInt),
      staged.sources,
      staged.lengths,
      staged.paths,
      Int32Array.from(images.flatMap(({ width, height }) => [height, width])),
      staged.pathBytes,
      images.length,
    );
    return job.value;
  }

  override dispose(): void {
    if (this.disposed) return;
    super.dispose(); // waits for the jobs
    this.#stream.dispose();
    this.#free.close(new DlfsError(ErrorCode.handle, "DeviceCompositionDecoder", "the decoder is disposed"));
    for (const batch of this.#ring) batch.dispose();
    for (const { encoded, pixels } of this.#sources) {
      encoded[Symbol.dispose]();
      pixels?.dispose();
    }
  }
}

/** Each image that compositions draw on, once. */
function sourcesOf(compositions: readonly Composition[]): Source[] {
  const sources = new Map<number, Source>();
  for (const { layers } of compositions) {
    for (const { source } of layers) if (source) sources.set(source.id, source);
  }
  return [...sources.values()];
}

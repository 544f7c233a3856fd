import { check, constants, DlfsError, ErrorCode, fromCString } from "../native";
import {
  type Device,
  type DType,
  dtypeCode,
  NativeObject,
  outHandle,
  PinnedBuffer,
  Stream,
  Tensor,
  until,
} from "../tensor";
import type { CompositionDecoder, CompositionFailure, CompositionResult } from "./codec";
import type { Composition, SourceImage, SourcePixels } from "./composition";
import { drawCompositions } from "./device-augment";
import { DeviceImageCodec } from "./device-codec";
import { startPlan, writeTransform } from "./image-plan";
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
  /** Most bytes of decoded pixels that a batch may need, 3 for each pixel of each image. Default 2 GiB. */
  maxPixelBytes?: number;
}

/** Memory for the images of one batch, as large as the largest batch so far needed. */
interface Sources {
  encoded: PinnedBuffer | null;
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
  readonly #options: DeviceCompositionDecoderOptions;
  readonly #codec: DeviceImageCodec;
  readonly #stream: Stream;
  readonly #ring: Tensor[];
  /** What batches are decoded into, and who has which. */
  readonly #sources: Sources[];
  readonly #free: SlotRing;

  constructor(device: Device, options: DeviceCompositionDecoderOptions) {
    const { batchSize, height, width, slots = 7, decoding = 3, dtype = "f32" } = options;
    const out = outHandle();
    device.native.decoderCreate(device.handle, out.view, options.threads ?? 0);
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
    this.#codec = new DeviceImageCodec(device);
    this.#stream = made.use(new Stream(device));
    const shape = [batchSize, height, width, 3];
    this.#ring = Array.from({ length: slots }, () => made.use(Tensor.zeros(device, shape, dtype)));
    this.#sources = Array.from({ length: decoding }, () => ({ encoded: null, pixels: null }));
    this.#free = new SlotRing(decoding);
    device.stream.synchronize(); // batches are written from another stream
    made.move();
  }

  /** The images of a slot: (batchSize, height, width, 3), normalised. */
  images(slot: number): Tensor {
    return this.#ring[slot] as Tensor;
  }

  /**
   * Draws n <= batchSize compositions into a slot; resolves when they are written. `encoded` has the bytes of each image that
   * they draw on, by SourceImage.id; one that is missing, damaged or of another size than the composition says is a failure, and
   * what would be drawn on it with others is left blank, so that no picture shows objects whose boxes are not known to be there.
   * One call at a time for each slot; places n and up of the slot keep what they held.
   */
  async compose(
    slot: number,
    compositions: readonly Composition[],
    encoded: ReadonlyMap<number, Uint8Array>,
  ): Promise<CompositionResult> {
    const batch = this.#ring[slot];
    check(batch !== undefined, "compose", () => `there is no slot ${slot} among ${this.slots}`);
    const place = await this.#free.acquire();
    try {
      return await this.#compose(batch as Tensor, this.#sources[place] as Sources, compositions, encoded);
    } finally {
      this.#free.release(place);
    }
  }

  async #compose(
    batch: Tensor,
    memory: Sources,
    compositions: readonly Composition[],
    encoded: ReadonlyMap<number, Uint8Array>,
  ): Promise<CompositionResult> {
    const failures: CompositionFailure[] = [];
    const sources = this.#usable(compositions, encoded, failures);
    const places = this.#reserve(memory, sources, encoded);
    const jobs: [job: number, source: Source][] = [];
    try {
      for (const source of sources) {
        const place = places.get(source.id) as { bytes: number; pixels: number };
        jobs.push([this.#submit(source, place, (encoded.get(source.id) as Uint8Array).byteLength), source]);
      }
      await until(() => jobs.every(([job]) => this.device.native.jobQuery(job) === 0));
      for (const [job, { id }] of jobs) {
        const message = this.#messageOf(job);
        if (message === null) continue;
        failures.push({ id, message });
        places.delete(id);
      }
    } finally {
      for (const [job] of jobs) this.device.native.jobDestroy(job);
    }
    const widths = new Map(sources.map(({ id, width }) => [id, width]));
    const pixels = (id: number): SourcePixels | null => {
      const place = places.get(id);
      return place ? { address: place.pixels, pitch: 3 * (widths.get(id) as number) } : null;
    };
    const whole = compositions.map(({ layers }) => layers.every(({ source }) => !source || places.has(source.id)));
    const drawn = compositions.map((composition, i) => (whole[i] ? composition : { ...composition, layers: [] }));
    drawCompositions(batch, drawn, pixels, { ...this.#options, stream: this.#stream });
    await this.#stream.done();
    return { failures, blank: [...whole.keys()].filter((i) => !whole[i]) };
  }

  /** Each image that the compositions draw on, once, where its bytes can be decoded. */
  #usable(
    compositions: readonly Composition[],
    encoded: ReadonlyMap<number, Uint8Array>,
    failures: CompositionFailure[],
  ): Source[] {
    const sources = new Map<number, Source>();
    for (const { layers } of compositions) {
      for (const { source } of layers) if (source) sources.set(source.id, source);
    }
    return [...sources.values()].filter(({ id, width, height }) => {
      try {
        const info = this.#codec.info(encoded.get(id) ?? new Uint8Array(0));
        check(
          info.width === width && info.height === height,
          "compose",
          () => `expected an image of ${width}x${height}, got one of ${info.width}x${info.height}`,
          ErrorCode.image,
        );
        return true;
      } catch (error) {
        if (!(error instanceof DlfsError)) throw error;
        failures.push({ id, message: error.message });
        return false;
      }
    });
  }

  /** Where each image's bytes and pixels lie; the bytes are there, in pinned memory, afterwards. */
  #reserve(
    memory: Sources,
    sources: readonly Source[],
    encoded: ReadonlyMap<number, Uint8Array>,
  ): Map<number, { bytes: number; pixels: number }> {
    const places = new Map<number, { bytes: number; pixels: number }>();
    let [bytes, pixels] = [0, 0];
    for (const { id, width, height } of sources) {
      places.set(id, { bytes, pixels });
      bytes += round((encoded.get(id) as Uint8Array).byteLength);
      pixels += round(3 * width * height);
    }
    const most = this.#options.maxPixelBytes ?? 2 ** 31;
    check(
      pixels <= most,
      "compose",
      () => `a batch of ${sources.length} images needs ${pixels} bytes of pixels, more than the limit of ${most}`,
      ErrorCode.memory,
    );
    // Some room to spare, so that batches of varying size do not allocate again and again.
    if (!memory.encoded || memory.encoded.byteLength < bytes) {
      memory.encoded?.dispose();
      memory.encoded = null;
      memory.encoded = new PinnedBuffer(this.device, Math.ceil(Math.max(1, bytes) * 1.25));
    }
    if (!memory.pixels || (memory.pixels.shape[0] as number) < pixels) {
      memory.pixels?.dispose();
      memory.pixels = null;
      memory.pixels = Tensor.empty(this.device, [Math.min(Math.ceil(Math.max(1, pixels) * 1.25), most)], "u8");
    }
    for (const [id, place] of places) {
      memory.encoded.bytes.set(encoded.get(id) as Uint8Array, place.bytes);
      place.bytes += memory.encoded.address;
      place.pixels += memory.pixels.address;
    }
    return places;
  }

  /** Starts decoding one image to bytes of its own size. */
  #submit({ width, height }: Source, place: { bytes: number; pixels: number }, length: number): number {
    const transform = new Float32Array(constants.TRANSFORM_FLOATS);
    writeTransform(transform, 0, startPlan(width, height, width, height, new Float64Array(0), new Int32Array(0)));
    const job = outHandle();
    this.device.native.decoderSubmit(
      this.handle,
      job.view,
      place.pixels,
      BigInt64Array.of(BigInt(place.bytes)),
      BigInt64Array.of(BigInt(length)),
      transform,
      Float32Array.of(0, 0, 0, 1, 1, 1, 0, 0, 0),
      1,
      height,
      width,
      3,
      dtypeCode("u8"),
      0,
    );
    return job.value;
  }

  /** What went wrong with a finished job's image; null where nothing did. */
  #messageOf(job: number): string | null {
    const status = new Int32Array(1);
    this.device.native.jobResults(job, status);
    if (status[0] === 0) return null;
    const text = new Uint8Array(512);
    this.device.native.jobMessage(job, text, text.byteLength, 0);
    return fromCString(text);
  }

  override dispose(): void {
    if (this.disposed) return;
    super.dispose(); // waits for the jobs
    this.#stream.dispose();
    this.#free.close(new DlfsError(ErrorCode.handle, "DeviceCompositionDecoder", "the decoder is disposed"));
    for (const batch of this.#ring) batch.dispose();
    for (const { encoded, pixels } of this.#sources) {
      encoded?.dispose();
      pixels?.dispose();
    }
  }
}

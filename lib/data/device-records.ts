import { availableParallelism } from "node:os";
import { check, ErrorCode } from "../native";
import { align, type Device, dtypeCode, Event, encodeElements, PinnedBuffer, Stream, Tensor } from "../tensor";
import { TRANSFORM_FLOATS } from "./image-plan";
import { SlotRing } from "./queues";
import { RecordCopier, type RecordCopy } from "./record-copier";
import { RECORD_DTYPE_BYTES, type RecordDType, type RecordSet } from "./record-set";
import { type Normalize, normalizationOf } from "./transforms";

/** A record of a batch that could not be read. */
export interface RecordFailure {
  /** Its place in the batch. */
  index: number;
  message: string;
}

export interface DeviceRecordReaderOptions {
  batchSize: number;
  /** Dtype of the network's input; of records that are not u8 it must be theirs. Default: f32, or theirs. */
  dtype?: Exclude<RecordDType, "u8">;
  /** What pixels of u8 records become. Default: what they were packed for. */
  normalize?: Normalize;
  /** Batches that can be in memory at a time. Default 7: four being prepared, two being trained on, one on its way. */
  slots?: number;
  /** Batches that are copied to the device at a time: pinned memory, and device memory for their records. Default 3. */
  staging?: number;
  /** Threads that copy records to pinned memory; 0: the calling one. Default: half of the cores, at most 8. */
  workers?: number;
  /**
   * "map" maps the files into memory, the fastest; "read" reads them, for files that another process may shorten meanwhile:
   * touching a page that is gone ends the process. Default "map".
   */
  access?: "map" | "read";
  /** Which records' checksums are compared: each one's the first time that it is read, always, or never. Default "first". */
  verify?: "first" | "always" | "never";
}

/** What a batch passes through on its way to the device. */
interface Staging {
  pinned: PinnedBuffer;
  /** Records of u8 on the device; values are copied to their slot at once. */
  raw: Tensor | null;
  event: Event;
}

/** Copies records to pinned memory and on to a ring of batches in device memory; nothing is decoded. */
export class DeviceRecordReader implements AsyncDisposable {
  readonly slots: number;
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  readonly #ring: Tensor[];
  readonly #staging: Staging[];
  readonly #freeStaging: SlotRing;
  readonly #stream: Stream;
  readonly #copier: RecordCopier;
  readonly #normalization: Float32Array;
  readonly #dtype: Exclude<RecordDType, "u8">;
  readonly #verify: "first" | "always" | "never";
  /** Records whose checksum was right. */
  readonly #verified: Uint8Array;
  readonly #stride: number;
  #running = 0;
  #disposed = false;

  constructor(
    readonly device: Device,
    readonly records: RecordSet,
    options: DeviceRecordReaderOptions,
  ) {
    const { batchSize, slots = 7, staging = 3, verify = "first", access = "map" } = options;
    const workers = options.workers ?? Math.max(1, Math.min(8, availableParallelism() >> 1));
    for (const [name, value, least] of [
      ["batchSize", batchSize, 1],
      ["slots", slots, 1],
      ["staging", staging, 1],
      ["workers", workers, 0],
    ] as const) {
      const good = Number.isSafeInteger(value) && value >= least;
      check(good, "DeviceRecordReader", () => `${name} must be an integer >= ${least}, got ${value}`);
    }
    const { size, dtype: stored } = records.description;
    const dtype = options.dtype ?? (stored === "u8" ? "f32" : stored);
    check(
      stored === "u8" || dtype === stored,
      "DeviceRecordReader",
      () => `the records of ${records.folder} are ${stored} and cannot be read as ${dtype}`,
      ErrorCode.dtype,
    );
    check(
      stored === "u8" || options.normalize === undefined,
      "DeviceRecordReader",
      () => `normalize: the records of ${records.folder} are ${stored}, and normalised already`,
    );
    this.slots = slots;
    this.batchSize = batchSize;
    [this.height, this.width] = size;
    this.#dtype = dtype;
    this.#verify = verify;
    this.#verified = new Uint8Array(records.length);
    this.#normalization = normalizationOf([options.normalize ?? records.normalize]);
    this.#stride = align(this.height * this.width * 3 * RECORD_DTYPE_BYTES[stored]);

    // What is made is released again where a later part fails.
    using made = new DisposableStack();
    const shape = [batchSize, this.height, this.width, 3];
    this.#ring = Array.from({ length: slots }, () => made.use(Tensor.zeros(device, shape, dtype)));
    this.#staging = Array.from({ length: staging }, () => ({
      pinned: made.use(new PinnedBuffer(device, batchSize * this.#stride)),
      raw: stored === "u8" ? made.use(Tensor.empty(device, [batchSize * this.#stride], "u8")) : null,
      event: made.use(new Event(device)),
    }));
    this.#freeStaging = new SlotRing(staging);
    this.#stream = made.use(new Stream(device));
    device.stream.synchronize(); // the slots are written from a stream of their own
    this.#copier = new RecordCopier(
      records.shards,
      this.#staging.map(({ pinned }) => pinned),
      { workers, map: access === "map" },
    );
    made.move();
  }

  /** mean[3], std[3], fill[3] of the values in the slots: see normalizationOf. */
  get normalization(): Float32Array {
    return this.#normalization.slice();
  }

  /** The images of a slot: (batchSize, height, width, 3), normalised. */
  images(slot: number): Tensor {
    return this.#ring[slot] as Tensor;
  }

  /**
   * Fills slot `slot` with records (numbers in the set), n <= batchSize of them; resolves when all are in device memory.
   * `transforms`, (n, 12) as for dlfs_preprocess, draws each from its stored pixels; without it they are as stored. A record
   * that is damaged or cannot be read is the fill colour and is named in the result. Several slots may be filled at a time.
   * Places n and up keep what they held.
   */
  async read(
    slot: number,
    members: ArrayLike<number>,
    transforms: Float32Array | null,
  ): Promise<{ failures: RecordFailure[] }> {
    check(!this.#disposed, "DeviceRecordReader", () => "used after dispose()", ErrorCode.handle);
    const { length: n } = members;
    check(
      n > 0 && n <= this.batchSize,
      "DeviceRecordReader",
      () => `expected 1 to ${this.batchSize} records, got ${n}`,
    );
    this.#running++;
    try {
      const staging = await this.#freeStaging.acquire();
      try {
        return await this.#fill(slot, staging, members, transforms);
      } finally {
        this.#freeStaging.release(staging);
      }
    } finally {
      this.#running--;
    }
  }

  async #fill(slot: number, staging: number, members: ArrayLike<number>, transforms: Float32Array | null) {
    const { pinned, raw, event } = this.#staging[staging] as Staging;
    const copies: RecordCopy[] = [];
    const lengths: number[] = [];
    let to = 0;
    for (let i = 0; i < members.length; i++) {
      const member = members[i] as number;
      const { shard, index } = this.records.locate(member);
      const length = this.records.shards[shard]?.lengths[index] as number;
      const verify = this.#verify === "always" || (this.#verify === "first" && this.#verified[member] === 0);
      copies.push({ shard, index, to, verify });
      lengths.push(length);
      // Whole batches of values go to the device in one piece; records that are drawn begin where reads are fast.
      to += raw ? align(length) : length;
    }
    const results = await this.#copier.copy(staging, copies);
    const failures: RecordFailure[] = [];
    for (const [i, why] of results.entries()) {
      const { shard, index, to: start, verify } = copies[i] as RecordCopy;
      if (why === null) {
        if (verify) this.#verified[members[i] as number] = 1;
        continue;
      }
      const { path } = this.records.shards[shard] as { path: string };
      const { fileName } = this.records.info(members[i] as number);
      const where = why.includes(path) ? "" : `${path}: damaged: `;
      failures.push({ index: i, message: `${where}record ${index} (${fileName}): ${why}` });
      this.#fillColour(pinned.bytes.subarray(start, start + (lengths[i] as number)));
    }
    this.#upload(slot, { pinned, raw }, copies, members, to, transforms);
    event.record(this.#stream);
    await event.done();
    this.#stream.query(); // reports an error of the work
    return { failures };
  }

  #upload(
    slot: number,
    { pinned, raw }: { pinned: PinnedBuffer; raw: Tensor | null },
    copies: readonly RecordCopy[],
    members: ArrayLike<number>,
    bytes: number,
    transforms: Float32Array | null,
  ): void {
    const { native } = this.device;
    const stream = this.#stream.handle;
    const images = this.images(slot);
    if (!raw) {
      native.copyToDevice(stream, images.address, pinned.address, bytes);
      return;
    }
    native.copyToDevice(stream, raw.address, pinned.address, bytes);
    const dtype = dtypeCode(this.#dtype);
    const pixels = this.height * this.width;
    // Whole inputs, one behind the other, are one long row of pixels.
    if (transforms === null && this.records.description.padding === "stored" && 3 * pixels === this.#stride) {
      native.normalizePixels(stream, images.address, raw.address, this.#normalization, copies.length * pixels, dtype);
      return;
    }
    const sizes = new Int32Array(2 * copies.length);
    const drawn = transforms ?? new Float32Array(copies.length * TRANSFORM_FLOATS);
    for (let i = 0; i < copies.length; i++) {
      const { x, y, storedWidth, storedHeight } = this.records.info(members[i] as number);
      sizes.set([storedHeight, storedWidth], 2 * i);
      if (transforms === null)
        drawn.set([0, 0, storedWidth, storedHeight, x, y, storedWidth, storedHeight], i * TRANSFORM_FLOATS);
    }
    native.preprocess(
      stream,
      images.address,
      BigInt64Array.from(copies, ({ to }) => BigInt(raw.address + to)),
      sizes,
      drawn,
      this.#normalization,
      copies.length,
      this.height,
      this.width,
      3,
      dtype,
      0,
    );
  }

  /** The fill colour, as records hold it. */
  #fillColour(bytes: Uint8Array): void {
    const { dtype } = this.records.description;
    const values = [0, 1, 2].map((c) => {
      const [mean, std, fill] = [c, 3 + c, 6 + c].map((i) => this.#normalization[i] as number) as [
        number,
        number,
        number,
      ];
      return dtype === "u8" ? Math.round(fill) : (fill / 255 - mean) / std;
    });
    const pixel = encodeElements(values, dtype);
    bytes.set(pixel);
    for (let done = pixel.length; done < bytes.length; done *= 2)
      bytes.copyWithin(done, 0, Math.min(done, bytes.length - done));
  }

  /** Waits for what is under way, ends the threads and frees all memory. */
  async dispose(): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    while (this.#running > 0) await Bun.sleep(1);
    await this.#copier.close();
    this.#stream.synchronize();
    for (const { pinned, raw, event } of this.#staging) {
      pinned.dispose();
      raw?.dispose();
      event.dispose();
    }
    this.#stream.dispose();
    for (const tensor of this.#ring) tensor.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}

import { createHash } from "node:crypto";
import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { makeFolder, writeFileAtomic } from "../formats/atomic-file";
import { type RecordInfo, RecordShardWriter } from "../formats/record-shard";
import { check, DlfsError, ErrorCode } from "../native";
import { type Device, Event, PinnedBuffer } from "../tensor";
import type { AnnotationStore } from "./annotation-store";
import { type BatchImage, CocoDataLoader, type DetectionBatch, type ImageFailure } from "./coco-data-loader";
import type { DataSource } from "./data-source";
import { DeviceBatchDecoder } from "./device-codec";
import type { InputMapping } from "./image-plan";
import type { ProgressListener } from "./progress";
import {
  DESCRIPTION_FILE,
  differenceOf,
  formatDescription,
  openShard,
  type PackDescription,
  RECORD_DTYPE_BYTES,
  type RecordDType,
  readDescription,
  shardCount,
  shardName,
} from "./record-set";
import { Normalize, type PreprocessOp, Resize } from "./transforms";

export interface PackOptions {
  store: AnnotationStore;
  source: DataSource;
  split: string;
  /** Where the record files go; made where it is missing. */
  folder: string;
  /** Decodes and resizes. */
  device: Device;
  /** Height and width of the network input. */
  size: readonly [height: number, width: number];
  /**
   * u8 (default): pixels, decoded and resized, which a loader can still augment; else values as the network takes them, to which
   * nothing is done any more.
   */
  dtype?: RecordDType;
  /** Of u8: whether what surrounds a letterboxed image is stored with it, or drawn by the loader (default): smaller files. */
  padding?: "stored" | "drawn";
  /** Operations that are not random, Resize among them. Default: letterbox, then ImageNet's mean and standard deviation. */
  preprocessing?: readonly PreprocessOp[];
  /** Boxes that become narrower or lower than this, in network input pixels, are dropped. Default 1. */
  minBoxSize?: number;
  /** About how large a shard may be, in bytes. Default 1 GiB. */
  shardBytes?: number;
  /** What becomes of an image that cannot be read or decoded: left out and counted (default), or the end of the packing. */
  failures?: "skip" | "stop";
  /** Files read at a time, and decoding threads (0 chooses). */
  concurrency?: number;
  threads?: number;
  progress?: ProgressListener;
  /** Told of each image that is left out, and of shards that are written again. Default: a line on standard error. */
  warn?: (message: string) => void;
  signal?: AbortSignal;
}

export interface PackReport {
  folder: string;
  /** Shards of the folder; those written by this run; those that were damaged, and are among the written ones. */
  shards: number;
  written: number;
  rewritten: number;
  /** Records in all shards, and images left out of them. */
  records: number;
  leftOut: number;
  /** Bytes and images of the shards written by this run, and the seconds that it took. */
  bytes: number;
  images: number;
  seconds: number;
}

const OP = "packRecords";
/** Images decoded together; shards hold a multiple of it. */
const BATCH = 16;

/**
 * Writes a split as record files: each image decoded and resized once, with its boxes. Shards appear complete or not at all; a
 * second run into the same folder makes only those that are missing or damaged, and refuses a folder that was made with other
 * options or of other data, naming the difference.
 */
export async function packRecords(options: PackOptions): Promise<PackReport> {
  const { store, source, split, device, progress, signal } = options;
  const warn = options.warn ?? ((message: string) => console.warn(`warning: ${message}`));
  const started = performance.now();
  const folder = resolve(options.folder);
  const description = describe(options);
  const preprocessing = options.preprocessing ?? [new Resize(), new Normalize()];
  const missing = await prepareFolder(folder, description, warn, progress);
  const shards = shardCount(description);
  const report: PackReport = {
    folder,
    shards,
    written: 0,
    rewritten: missing.damaged,
    records: missing.records,
    leftOut: missing.leftOut,
    bytes: 0,
    images: 0,
    seconds: 0,
  };
  if (missing.shards.length > 0) {
    const [height, width] = description.size;
    const { dtype, recordsPerShard } = description;
    const batchSize = Math.min(BATCH, recordsPerShard);
    const { threads, concurrency, minBoxSize } = options;
    const shape = { batchSize, height, width, dtype, threads, slots: 4 };
    using decoder = new DeviceBatchDecoder(device, { ...shape, preprocessing });
    const reasons = new Map<number, string>();
    const onFailure = ({ imageId, message }: ImageFailure): void => {
      const reason = message.replace(/; trained as an image without boxes$/, "");
      reasons.set(imageId, reason);
      warn(`${reason}; left out`);
    };
    await using loader = new CocoDataLoader({
      ...{ store, source, split, decoder, batchSize, preprocessing, concurrency, minBoxSize, onFailure },
      size: description.size,
      shuffle: false,
      dropLast: false,
      prefetch: 3,
      failures: options.failures,
      maxFailureShare: 1,
    });
    using pixels = new BatchPixels(decoder, description);
    const identityText = JSON.stringify(description);
    const total = missing.shards.reduce((sum, shard) => sum + imagesOf(description, shard), 0);
    progress?.("packing images", 0, total);
    for (const shard of missing.shards) {
      const position = (shard * recordsPerShard) / batchSize;
      if (loader.state().position !== position) loader.restore({ ...loader.state(), epoch: 0, position });
      const writer = await RecordShardWriter.create(join(folder, shardName(shard, shards)));
      try {
        for (let left = imagesOf(description, shard); left > 0; ) {
          signal?.throwIfAborted();
          using batch = await loader.getBatch();
          await pixels.fetch(batch);
          for (const [i, image] of batch.images.entries()) {
            const reason = reasons.get(image.imageId);
            if (reason !== undefined) {
              writer.leaveOut({ imageId: image.imageId, fileName: image.fileName, reason });
              report.leftOut++;
              continue;
            }
            const record = pixels.record(batch, i, loader.maxBoxes);
            await writer.append(record.bytes, record.info);
            report.records++;
            report.bytes += record.bytes.length;
          }
          left -= batch.n;
          report.images += batch.n;
          progress?.("packing images", report.images, total);
        }
      } catch (error) {
        await writer.abort();
        throw error;
      }
      await writer.commit({ options: identityText, shard, shards });
      report.written++;
    }
  }
  report.seconds = (performance.now() - started) / 1000;
  return report;
}

function imagesOf({ images, recordsPerShard }: PackDescription, shard: number): number {
  return Math.min(recordsPerShard, images - shard * recordsPerShard);
}

/** Checks the options, and says what a folder made with them holds. */
function describe(options: PackOptions): PackDescription {
  const { store, split, size, dtype = "u8", minBoxSize = 1, shardBytes = 2 ** 30 } = options;
  const preprocessing = options.preprocessing ?? [new Resize(), new Normalize()];
  const padding = options.padding ?? (dtype === "u8" ? "drawn" : "stored");
  for (const [name, value] of Object.entries({ height: size[0], width: size[1], shardBytes })) {
    check(Number.isSafeInteger(value) && value >= 1, OP, () => `${name} must be an integer >= 1, got ${value}`);
  }
  check(Object.hasOwn(RECORD_DTYPE_BYTES, dtype), OP, () => `dtype is u8, bf16, f16 or f32, got ${dtype}`);
  check(padding === "stored" || padding === "drawn", OP, () => `padding is "stored" or "drawn", got ${padding}`);
  check(
    padding === "stored" || dtype === "u8",
    OP,
    () => `padding: records of ${dtype} hold whole inputs, expected "stored"`,
  );
  const random = preprocessing.find((op) => op.random);
  check(
    random === undefined,
    OP,
    () =>
      `preprocessing: ${random?.name} is random and would be the same each epoch; give it to the RecordLoader instead`,
  );
  const images = store.images(split, { usable: true });
  check(images.length > 0, OP, () => `split "${split}" has no usable images`, ErrorCode.io);
  const classes = store.classes();
  const perShard = Math.floor(shardBytes / (size[0] * size[1] * 3 * RECORD_DTYPE_BYTES[dtype]));
  return {
    split,
    classes: classes.names,
    categoryIds: classes.categoryIds,
    size,
    dtype,
    padding,
    minBoxSize,
    preprocessing: preprocessing.map((op) => op.toJSON()),
    images: images.length,
    recordsPerShard: perShard < BATCH ? Math.max(1, perShard) : perShard - (perShard % BATCH),
    data: hashOf(store, split, images),
  };
}

/** A hash of all that records take from the store. */
function hashOf(store: AnnotationStore, split: string, images: ReturnType<AnnotationStore["images"]>): string {
  const hash = createHash("sha256");
  for (const { id, sourceId, key, fileName, width, height } of images) {
    hash.update(`${JSON.stringify([id, sourceId, key, fileName, width, height])}\n`);
  }
  for (const { imageId, categoryId, bbox, isCrowd } of store.annotations(split)) {
    hash.update(`${JSON.stringify([imageId, categoryId, bbox, isCrowd])}\n`);
  }
  return hash.digest("hex").slice(0, 32);
}

/** Makes the folder, or looks at what an earlier run has left in it: which shards are to be written, and what the others hold. */
async function prepareFolder(
  folder: string,
  description: PackDescription,
  warn: (message: string) => void,
  progress: ProgressListener | undefined,
) {
  await makeFolder(folder);
  const found = await readDescription(folder);
  const names = await readdir(folder);
  if (found) {
    const difference = differenceOf(found, description);
    if (difference) {
      const { field, found: there, wanted } = difference;
      const what =
        field === "data" ? "the images or boxes of the split have changed" : `asked for ${wanted}, it has ${there}`;
      const advice = "choose another folder, or empty this one";
      throw new DlfsError(ErrorCode.argument, folder, `it was packed otherwise: ${field}: ${what}; ${advice}`);
    }
  } else {
    const stray = names.find((name) => name.endsWith(".dlrec"));
    check(
      stray === undefined,
      folder,
      () => `it has ${stray} but no ${DESCRIPTION_FILE} that says how that was made; choose another folder`,
    );
    await writeFileAtomic(join(folder, DESCRIPTION_FILE), formatDescription(description));
  }
  const left = { shards: [] as number[], damaged: 0, records: 0, leftOut: 0 };
  const options = JSON.stringify(description);
  const shards = shardCount(description);
  const present = new Set(names);
  for (let shard = 0; shard < shards; shard++) {
    progress?.("looking at the shards that are there", shard, shards);
    if (!present.has(shardName(shard, shards))) {
      left.shards.push(shard);
      continue;
    }
    try {
      const opened = await openShard(folder, description, options, shard);
      left.records += opened.length;
      left.leftOut += opened.leftOut.length;
    } catch (error) {
      if (!(error instanceof DlfsError) || error.code === ErrorCode.unsupported) throw error;
      warn(`${error.message}; written again`);
      left.shards.push(shard);
      left.damaged++;
    }
  }
  return left;
}

/** A batch's values on the host, and the part of them that each record stores. */
class BatchPixels implements Disposable {
  readonly #pinned: PinnedBuffer;
  readonly #event: Event;
  readonly #cut: Uint8Array;

  constructor(
    private readonly decoder: DeviceBatchDecoder,
    private readonly description: PackDescription,
  ) {
    const { device } = decoder;
    const bytes = decoder.images(0).byteLength;
    using made = new DisposableStack();
    this.#pinned = made.use(new PinnedBuffer(device, bytes));
    this.#event = made.use(new Event(device));
    this.#cut = new Uint8Array(bytes / decoder.batchSize);
    made.move();
  }

  /** Copies a batch from its slot. */
  async fetch({ slot }: DetectionBatch): Promise<void> {
    const { device } = this.decoder;
    const images = this.decoder.images(slot);
    device.native.copyToHost(device.stream.handle, this.#pinned.address, images.address, images.byteLength);
    this.#event.record(device.stream);
    await this.#event.done();
    device.stream.query(); // reports an error of the work before the copy
  }

  /** What is stored of image i of the batch; `bytes` is valid until the next call. */
  record(batch: DetectionBatch, i: number, maxBoxes: number): { bytes: Uint8Array; info: RecordInfo } {
    const { dtype, padding, size } = this.description;
    const [height, width] = size;
    const image = batch.images[i] as BatchImage;
    const count = batch.counts[i] as number;
    const first = i * maxBoxes;
    const part = padding === "stored" ? { x: 0, y: 0, width, height } : visiblePart(image, width, height);
    const { imageId, sourceId, fileName } = image;
    const toInput = mappingOfRecord(image);
    const info: RecordInfo = {
      ...{ imageId, sourceId, fileName, width: image.width, height: image.height, ...toInput },
      x: part.x,
      y: part.y,
      storedWidth: part.width,
      storedHeight: part.height,
      boxes: batch.boxes.subarray(4 * first, 4 * (first + count)),
      labels: batch.labels.subarray(first, first + count),
    };
    const row = width * 3 * RECORD_DTYPE_BYTES[dtype];
    const all = this.#pinned.bytes.subarray(i * height * row, (i + 1) * height * row);
    if (part.width === width) return { info, bytes: all.subarray(part.y * row, (part.y + part.height) * row) };
    const storedRow = part.width * 3;
    for (let y = 0; y < part.height; y++) {
      const from = (part.y + y) * row + 3 * part.x;
      this.#cut.set(all.subarray(from, from + storedRow), y * storedRow);
    }
    return { info, bytes: this.#cut.subarray(0, part.height * storedRow) };
  }

  [Symbol.dispose](): void {
    this.#event.dispose();
    this.#pinned.dispose();
  }
}

/** Records are of single images, which no operation of packing turns or combines. */
function mappingOfRecord({ fileName, toInput }: BatchImage): InputMapping {
  check(toInput !== null, "pack", () => `${fileName} is turned or combined with others, which a record cannot say`);
  return toInput;
}

/** The part of a network input that shows the image, in whole pixels. */
function visiblePart(image: BatchImage, inputWidth: number, inputHeight: number) {
  const { width, height } = image;
  const toInput = mappingOfRecord(image);
  // A mapping is a quotient of sizes: an edge that falls between pixels by rounding errors alone lies on the pixel's.
  const tolerance = 1e-6;
  const span = (scale: number, offset: number, length: number, limit: number): [number, number] => {
    const [a, b] = [offset, offset + length * scale];
    const from = Math.min(limit - 1, Math.max(0, Math.floor(Math.min(a, b) + tolerance)));
    const to = Math.max(from + 1, Math.min(limit, Math.ceil(Math.max(a, b) - tolerance)));
    return [from, to - from];
  };
  const [x, visibleWidth] = span(toInput.scaleX, toInput.offsetX, width, inputWidth);
  const [y, visibleHeight] = span(toInput.scaleY, toInput.offsetY, height, inputHeight);
  return { x, y, width: visibleWidth, height: visibleHeight };
}

/**
 * A shard of record files: images as a network takes them, each a section of its own with a checksum, and their boxes,
 * labels and origin in the index (schemas/records.fbs). The layout is that of aligned-file.ts, so sections can be
 * memory-mapped, and a shard is either complete or not there.
 */
import { Builder, ByteBuffer } from "flatbuffers";
import { DlfsError, ErrorCode } from "../native/error";
import {
  AlignedFileReader,
  AlignedFileWriter,
  type AlignedFormat,
  checksumOf,
  SECTION_ALIGNMENT,
  type Section,
} from "./aligned-file";
import { CheckedByteBuffer } from "./checked-buffer";
import * as fb from "./generated/records_generated";
import { IndexReader } from "./index-reader";

const FORMAT: AlignedFormat = { magic: "DLFSRECS", version: 1, what: "record shard" };

/** What a shard says of an image. */
export interface RecordInfo {
  /** In the store that it was packed from, and in the data set (COCO's image_id); integers from 0. */
  imageId: number;
  sourceId: number;
  fileName: string;
  /** Size of the image file, in pixels. */
  width: number;
  height: number;
  /** The part of the network input that is stored, in its pixels; the rest is the fill colour. */
  x: number;
  y: number;
  storedWidth: number;
  storedHeight: number;
  /** Image pixels to network input pixels: x becomes x * scaleX + offsetX, likewise y. */
  scaleX: number;
  scaleY: number;
  offsetX: number;
  offsetY: number;
  /** (n, 4): x1, y1, x2, y2 in network input pixels. */
  boxes: Float32Array;
  /** (n): class indices. */
  labels: Int32Array;
}

/** An image that is in no record, since it could not be read or decoded. */
export interface LeftOutImage {
  imageId: number;
  fileName: string;
  reason: string;
}

/** Which shard of which pack. */
export interface ShardIdentity {
  /** What the whole pack was made with, as JSON text. */
  options: string;
  /** From 0. */
  shard: number;
  shards: number;
}

/** xxHash64 of a pack's options: what its shards are known by. */
export function packIdOf(options: string): bigint {
  return checksumOf(new TextEncoder().encode(options));
}

/** Writes a shard record by record, in constant memory but for the index; ends with exactly one `commit()` or `abort()`. */
export class RecordShardWriter {
  readonly #records: { info: RecordInfo; section: Section }[] = [];
  readonly #leftOut: LeftOutImage[] = [];

  private constructor(
    readonly path: string,
    private readonly file: AlignedFileWriter,
  ) {}

  /** @throws DlfsError of code `io` where the file cannot be made */
  static async create(path: string): Promise<RecordShardWriter> {
    return new RecordShardWriter(path, await AlignedFileWriter.create(path, FORMAT));
  }

  /** Appends an image. `pixels` must not change until the promise is fulfilled, and is not kept after it. */
  async append(pixels: Uint8Array, info: RecordInfo): Promise<void> {
    const section = await this.file.append(pixels);
    this.#records.push({ info: { ...info, boxes: info.boxes.slice(), labels: info.labels.slice() }, section });
  }

  leaveOut(image: LeftOutImage): void {
    this.#leftOut.push(image);
  }

  /** Writes the index and puts the file in its place. */
  async commit({ options, shard, shards }: ShardIdentity): Promise<void> {
    const b = new Builder(256 * (this.#records.length + 16));
    // Zeros are written too: an absent field then means that an older dlfs did not know it.
    b.forceDefaults(true);
    const text = b.createString(options);
    const entries = this.#records.map(({ info, section }) => encodeRecord(b, info, section));
    const records = fb.Shard.createRecordsVector(b, entries);
    const left = this.#leftOut.map(({ imageId, fileName, reason }) =>
      fb.LeftOut.createLeftOut(b, BigInt(imageId), b.createString(fileName), b.createString(reason)),
    );
    const leftOut = fb.Shard.createLeftOutVector(b, left);
    const root = fb.Shard.createShard(b, packIdOf(options), text, shard, shards, records, leftOut);
    fb.Shard.finishShardBuffer(b, root);
    await this.file.commit(b.asUint8Array());
  }

  /** Leaves nothing behind. */
  async abort(): Promise<void> {
    await this.file.abort();
  }
}

function encodeRecord(b: Builder, info: RecordInfo, section: Section): number {
  const name = b.createString(info.fileName);
  const boxes = fb.Record.createBoxesVector(b, info.boxes);
  const labels = fb.Record.createLabelsVector(b, info.labels);
  fb.Record.startRecord(b);
  fb.Record.addImageId(b, BigInt(info.imageId));
  fb.Record.addSourceId(b, BigInt(info.sourceId));
  fb.Record.addFileName(b, name);
  fb.Record.addWidth(b, info.width);
  fb.Record.addHeight(b, info.height);
  fb.Record.addX(b, info.x);
  fb.Record.addY(b, info.y);
  fb.Record.addStoredWidth(b, info.storedWidth);
  fb.Record.addStoredHeight(b, info.storedHeight);
  fb.Record.addScaleX(b, info.scaleX);
  fb.Record.addScaleY(b, info.scaleY);
  fb.Record.addOffsetX(b, info.offsetX);
  fb.Record.addOffsetY(b, info.offsetY);
  fb.Record.addOffset(b, BigInt(section.offset));
  fb.Record.addLength(b, BigInt(section.length));
  fb.Record.addChecksum(b, section.checksum);
  fb.Record.addBoxes(b, boxes);
  fb.Record.addLabels(b, labels);
  return fb.Record.endRecord(b);
}

/** A shard's index in memory; the records' bytes stay in the file. All that it says was checked when it was opened. */
export class RecordShard {
  readonly path: string;
  readonly identity: ShardIdentity;
  readonly length: number;
  /** Bytes that the file must have. */
  readonly fileBytes: number;
  /** The most boxes of one record. */
  readonly maxBoxes: number;
  readonly leftOut: readonly LeftOutImage[];
  /** Of each record: bytes from the start of the file, how many, and what they hash to. */
  readonly offsets: Float64Array;
  readonly lengths: Float64Array;
  readonly checksums: BigUint64Array;
  readonly #root: fb.Shard;
  readonly #record = new fb.Record();

  private constructor(file: AlignedFileReader) {
    this.path = file.path;
    this.fileBytes = file.sectionsEnd + file.index.length;
    const found = new ShardDecoder(file).decode();
    this.identity = found.identity;
    this.leftOut = found.leftOut;
    this.maxBoxes = found.maxBoxes;
    this.length = found.sections.length;
    this.offsets = Float64Array.from(found.sections, ({ offset }) => offset);
    this.lengths = Float64Array.from(found.sections, ({ length }) => length);
    this.checksums = BigUint64Array.from(found.sections, ({ checksum }) => checksum);
    this.#root = fb.Shard.getRootAsShard(new ByteBuffer(file.index));
  }

  /**
   * Reads and checks header and index.
   *
   * @throws DlfsError of code `io` for a file that is missing, damaged or of another kind, and of code `unsupported` for one
   *   of a newer version or another byte order; each names file, field, what was expected and what came
   */
  static async open(path: string): Promise<RecordShard> {
    const file = await AlignedFileReader.open(path, FORMAT);
    try {
      return new RecordShard(file);
    } finally {
      await file.close();
    }
  }

  /** What the shard says of record i, 0 <= i < length. The arrays are views of the index. */
  info(i: number): RecordInfo {
    const record = this.#root.records(i, this.#record);
    if (!record) throw new DlfsError(ErrorCode.argument, this.path, `there is no record ${i} among its ${this.length}`);
    return readRecord(record);
  }
}

function readRecord(record: fb.Record): RecordInfo {
  return {
    imageId: Number(record.imageId()),
    sourceId: Number(record.sourceId()),
    fileName: record.fileName() ?? "",
    width: record.width(),
    height: record.height(),
    x: record.x(),
    y: record.y(),
    storedWidth: record.storedWidth(),
    storedHeight: record.storedHeight(),
    scaleX: record.scaleX(),
    scaleY: record.scaleY(),
    offsetX: record.offsetX(),
    offsetY: record.offsetY(),
    boxes: record.boxesArray() ?? new Float32Array(0),
    labels: record.labelsArray() ?? new Int32Array(0),
  };
}

/** Reads an index that may hold anything, once, from end to end. */
class ShardDecoder {
  private readonly reader: IndexReader;

  constructor(private readonly file: AlignedFileReader) {
    this.reader = new IndexReader(file.path);
  }

  decode() {
    const buffer = new CheckedByteBuffer(this.file.index);
    const root = this.reader.field("root", () => {
      if (!fb.Shard.bufferHasIdentifier(buffer)) throw new RangeError("it is no index of a record shard");
      return fb.Shard.getRootAsShard(buffer);
    });
    const options = this.reader.required("options", () => root.options());
    const pack = this.reader.field("pack", () => root.pack());
    const expected = packIdOf(options);
    if (pack !== expected)
      this.reader.fail("pack", `expected ${hex(expected)}, the hash of its options, got ${hex(pack)}`);
    const [shard, shards] = [
      this.reader.field("shard", () => root.shard()),
      this.reader.field("shards", () => root.shards()),
    ];
    if (shard >= shards)
      this.reader.fail("shard", `expected a number below ${shards}, the number of shards, got ${shard}`);

    const sections: Section[] = [];
    let maxBoxes = 0;
    const count = this.reader.field("records", () => root.recordsLength());
    for (let i = 0; i < count; i++) {
      const { section, boxes } = this.record(
        `records[${i}]`,
        this.reader.required(`records[${i}]`, () => root.records(i)),
      );
      sections.push(section);
      maxBoxes = Math.max(maxBoxes, boxes);
    }
    const leftOut: LeftOutImage[] = [];
    const left = this.reader.field("left_out", () => root.leftOutLength());
    for (let i = 0; i < left; i++) {
      const name = `left_out[${i}]`;
      const entry = this.reader.required(name, () => root.leftOut(i));
      leftOut.push({
        imageId: this.reader.count(`${name}.image_id`, () => entry.imageId()),
        fileName: this.reader.required(`${name}.file_name`, () => entry.fileName()),
        reason: this.reader.required(`${name}.reason`, () => entry.reason()),
      });
    }
    return { identity: { options, shard, shards }, sections, maxBoxes, leftOut };
  }

  private record(name: string, record: fb.Record): { section: Section; boxes: number } {
    const at = (field: string) => `${name}.${field}`;
    this.reader.count(at("image_id"), () => record.imageId());
    this.reader.count(at("source_id"), () => record.sourceId());
    this.reader.required(at("file_name"), () => record.fileName());
    // The lengths first: they are checked, the views that the generated code makes are not.
    const numbers = this.reader.field(at("boxes"), () => record.boxesLength());
    const boxes = this.reader.field(at("labels"), () => record.labelsLength());
    if (numbers !== 4 * boxes)
      this.reader.fail(at("boxes"), `expected ${4 * boxes} numbers for ${boxes} labels, got ${numbers}`);
    for (const [field, count] of [
      ["boxes", numbers],
      ["labels", boxes],
    ] as const) {
      // The last number of each vector lies in the buffer: an entry takes four bytes, the check of lengths counts one.
      if (count > 0) this.reader.field(at(field), () => record[field](count - 1));
    }
    const info = this.reader.field(name, () => readRecord(record));
    for (const field of ["width", "height", "storedWidth", "storedHeight"] as const) {
      if (info[field] === 0) this.reader.fail(at(field), "expected at least 1, got 0");
    }
    for (const field of ["scaleX", "scaleY", "offsetX", "offsetY"] as const) {
      if (!Number.isFinite(info[field])) this.reader.fail(at(field), `expected a number, got ${info[field]}`);
    }
    const bad = info.boxes.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) this.reader.fail(at(`boxes[${bad}]`), `expected a number, got ${info.boxes[bad]}`);
    const section = {
      offset: this.reader.count(at("offset"), () => record.offset()),
      length: this.reader.count(at("length"), () => record.length()),
      checksum: this.reader.field(at("checksum"), () => record.checksum()),
    };
    if (section.offset % SECTION_ALIGNMENT !== 0 || section.offset < SECTION_ALIGNMENT) {
      const wanted = `a multiple of ${SECTION_ALIGNMENT} from ${SECTION_ALIGNMENT}`;
      this.reader.fail(at("offset"), `expected ${wanted}, got ${section.offset}`);
    }
    const end = section.offset + section.length;
    if (end > this.file.sectionsEnd) {
      this.reader.fail(at("length"), `expected its end at ${this.file.sectionsEnd} at most, got ${end}`);
    }
    return { section, boxes };
  }
}

function hex(value: bigint): string {
  return value.toString(16).padStart(16, "0");
}

/**
 * Model files: what a trained model is, in one file. A flatbuffers index (schemas/model.fbs) over raw, 64-byte-aligned
 * tensors (`aligned-file.ts` has the layout), which are memory-mapped.
 */
import { Builder } from "flatbuffers";
import { check, DlfsError, ErrorCode } from "../native/error";
import { AlignedFileReader, AlignedFileWriter, type AlignedFormat, checksumOf, damaged } from "./aligned-file";
import { fileError } from "./atomic-file";
import { CheckedByteBuffer } from "./checked-buffer";
import type { CheckpointEntry, CheckpointTensorData, CheckpointVersions } from "./checkpoint-types";
import * as fb from "./generated/model_generated";
import { IndexReader } from "./index-reader";
import {
  checkTensor,
  decodeKeyValue,
  decodeNumber,
  decodeTensors,
  decodeVersions,
  encodeKeyValue,
  encodeNumbers,
  encodeTensor,
  encodeVersions,
} from "./index-tables";

const FORMAT: AlignedFormat = { magic: "DLFSMODL", version: 1, what: "model file" };

/** How a model's values are scaled to 8 bits; see CalibrationTable. */
export interface StoredCalibration {
  method: string;
  images: number;
  f8: Record<string, number>;
  i8: Record<string, number>;
}

/** Everything about a model but its tensors. */
export interface ModelFileMetadata {
  /** The network by its name and options: anything that JSON can hold. */
  architecture: unknown;
  /** Names of the classes, by class index. */
  classes: string[];
  /** Network input in pixels. */
  size: [height: number, width: number];
  /** From a decoded image to the network input: a list of operations that JSON can hold. */
  preprocessing: unknown;
  /** Milliseconds since 1970-01-01 UTC. */
  created: number;
  versions: CheckpointVersions;
  /** Where it comes from: "iteration", "data", ... */
  provenance: Record<string, string>;
  /** What was measured of it: "AP", ... */
  metrics: Record<string, number>;
  calibration?: StoredCalibration;
}

/**
 * Writes a model file atomically: on any failure the file that stood at `path` is as it was.
 *
 * @param path its folder must exist
 * @param tensors asked for one at a time; one buffer may serve for one tensor after the other
 * @throws DlfsError of code `io` when the file cannot be written
 */
export async function writeModelFile(
  path: string,
  metadata: ModelFileMetadata,
  tensors: Iterable<CheckpointTensorData> | AsyncIterable<CheckpointTensorData>,
): Promise<void> {
  const file = await AlignedFileWriter.create(path, FORMAT);
  try {
    const entries = new Map<string, CheckpointEntry>();
    for await (const { data, ...tensor } of tensors) {
      checkTensor(path, tensor, data.length);
      check(!entries.has(tensor.name), path, () => `tensor "${tensor.name}": added twice`);
      entries.set(tensor.name, { ...tensor, shape: [...tensor.shape], ...(await file.append(data)) });
    }
    await file.commit(encode(path, metadata, [...entries.values()]));
  } catch (error) {
    await file.abort();
    throw error;
  }
}

function encode(path: string, metadata: ModelFileMetadata, entries: readonly CheckpointEntry[]): Uint8Array {
  const fail = (field: string, message: string): never => {
    throw new DlfsError(ErrorCode.argument, path, `metadata.${field}: ${message}`);
  };
  const count = (field: string, value: number): bigint =>
    Number.isSafeInteger(value) && value >= 0
      ? BigInt(value)
      : fail(field, `expected a whole number from 0, got ${value}`);
  const b = new Builder(16 * 1024);
  // Zeros are written too: an absent field then means that an older dlfs did not know it.
  b.forceDefaults(true);
  const json = (field: string, value: unknown): number =>
    b.createString(JSON.stringify(value) ?? fail(field, "JSON cannot hold it"));
  const [height, width] = metadata.size;
  for (const side of [height, width]) {
    if (!(Number.isInteger(side) && side > 0 && side < 2 ** 32))
      fail("size", `expected pixels, got ${height}x${width}`);
  }
  const architecture = json("architecture", metadata.architecture);
  const classes = fb.Model.createClassesVector(
    b,
    metadata.classes.map((name) => b.createString(name)),
  );
  const preprocessing = json("preprocessing", metadata.preprocessing);
  const versions = encodeVersions(b, metadata.versions);
  const texts = Object.entries(metadata.provenance).map(([key, value]) => encodeKeyValue(b, key, value));
  const provenance = fb.Model.createProvenanceVector(b, texts);
  const metrics = fb.Model.createMetricsVector(b, encodeNumbers(b, metadata.metrics));
  const { calibration: found } = metadata;
  const images = count("calibration.images", found?.images ?? 0);
  let calibration = 0;
  if (found) {
    const f8 = fb.Calibration.createF8Vector(b, encodeNumbers(b, found.f8));
    const i8 = fb.Calibration.createI8Vector(b, encodeNumbers(b, found.i8));
    calibration = fb.Calibration.createCalibration(b, b.createString(found.method), images, f8, i8);
  }
  const tensors = fb.Model.createTensorsVector(
    b,
    entries.map((entry) => encodeTensor(b, entry)),
  );
  fb.Model.startModel(b);
  fb.Model.addArchitecture(b, architecture);
  fb.Model.addClasses(b, classes);
  fb.Model.addHeight(b, height);
  fb.Model.addWidth(b, width);
  fb.Model.addPreprocessing(b, preprocessing);
  fb.Model.addCreated(b, count("created", metadata.created));
  fb.Model.addVersions(b, versions);
  fb.Model.addProvenance(b, provenance);
  fb.Model.addMetrics(b, metrics);
  if (found) fb.Model.addCalibration(b, calibration);
  fb.Model.addTensors(b, tensors);
  fb.Model.finishModelBuffer(b, fb.Model.endModel(b));
  return b.asUint8Array();
}

/** An open model file: metadata in memory, tensors mapped. Close it, or declare it with `using`. */
export class ModelFile implements Disposable {
  readonly path: string;
  readonly metadata: ModelFileMetadata;
  /** By name, in the order in which they were written. */
  readonly tensors: ReadonlyMap<string, CheckpointEntry>;
  #mapped: Uint8Array | null;

  private constructor(file: AlignedFileReader) {
    const { metadata, tensors } = decode(file);
    this.path = file.path;
    this.metadata = metadata;
    this.tensors = new Map(tensors.map((tensor) => [tensor.name, tensor]));
    try {
      this.#mapped = Bun.mmap(file.path, { shared: false });
    } catch (error) {
      throw fileError(file.path, "map the model file", error);
    }
    // It may have been replaced since its header was read.
    const expected = file.sectionsEnd + file.index.length;
    if (this.#mapped.length !== expected) {
      throw damaged(file.path, "file length", `expected ${expected} bytes, the file has ${this.#mapped.length}`);
    }
  }

  /**
   * Opens a model file, reads its index, and maps its tensors. Writers put whole files in place of others; one that shortens
   * a file that is mapped takes the pages from under its readers.
   *
   * @throws DlfsError that names file and field: code `io` for a file that is missing, cut short, damaged or something else;
   *   code `unsupported` for an intact one of a newer format version
   */
  static async open(path: string): Promise<ModelFile> {
    const file = await AlignedFileReader.open(path, FORMAT);
    try {
      return new ModelFile(file);
    } finally {
      await file.close();
    }
  }

  /** A tensor's little-endian bytes, a view of the file, after its checksum was compared. Valid until close(). */
  read(name: string): Uint8Array {
    const entry = this.tensors.get(name);
    if (!entry) {
      throw new DlfsError(ErrorCode.argument, this.path, `there is no tensor "${name}" among its ${this.tensors.size}`);
    }
    if (!this.#mapped) throw new DlfsError(ErrorCode.handle, this.path, "used after close()");
    const data = this.#mapped.subarray(entry.offset, entry.offset + entry.length);
    const found = checksumOf(data);
    if (found !== entry.checksum) {
      const [is, was] = [found, entry.checksum].map((value) => value.toString(16).padStart(16, "0"));
      throw damaged(this.path, `tensor "${name}"`, `its checksum is ${is}, ${was} was recorded`);
    }
    return data;
  }

  /** Compares every checksum; throws at the first damage. */
  verify(): void {
    for (const name of this.tensors.keys()) this.read(name);
  }

  /** The mapping ends when no view of it is left. */
  close(): void {
    this.#mapped = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Whether a file begins as a model file does; false where it cannot be read. */
export async function isModelFile(path: string): Promise<boolean> {
  try {
    return (await Bun.file(path).slice(0, FORMAT.magic.length).text()) === FORMAT.magic;
  } catch {
    return false;
  }
}

function decode(file: AlignedFileReader): { metadata: ModelFileMetadata; tensors: CheckpointEntry[] } {
  const reader = new IndexReader(file.path);
  const buffer = new CheckedByteBuffer(file.index);
  const root = reader.field("root", () => {
    if (!fb.Model.bufferHasIdentifier(buffer)) throw new RangeError("it is no index of a model file");
    return fb.Model.getRootAsModel(buffer);
  });
  const numbers = (name: string, length: () => number, at: (i: number) => fb.NamedNumber | null) =>
    Object.fromEntries(reader.list(name, length, at, (entry, place) => decodeNumber(reader, entry, place)));
  const side = (name: "height" | "width"): number => {
    const pixels = reader.field(name, () => root[name]());
    return pixels > 0 ? pixels : reader.fail(name, "expected pixels, from 1, got 0");
  };
  const texts = reader.list(
    "provenance",
    () => root.provenanceLength(),
    root.provenance.bind(root),
    (entry, name) => decodeKeyValue(reader, entry, name),
  );
  const metadata: ModelFileMetadata = {
    architecture: reader.json("architecture", () => root.architecture()),
    classes: reader.list(
      "classes",
      () => root.classesLength(),
      (i) => root.classes(i),
      (name) => name as string,
    ),
    size: [side("height"), side("width")],
    preprocessing: reader.json("preprocessing", () => root.preprocessing()),
    created: reader.count("created", () => root.created()),
    versions: decodeVersions(
      reader,
      reader.required("versions", () => root.versions()),
    ),
    provenance: Object.fromEntries(texts.map(({ key, value }) => [key, value])),
    metrics: numbers("metrics", () => root.metricsLength(), root.metrics.bind(root)),
  };
  const found = reader.field("calibration", () => root.calibration());
  if (found) {
    metadata.calibration = {
      method: reader.required("calibration.method", () => found.method()),
      images: reader.count("calibration.images", () => found.images()),
      f8: numbers("calibration.f8", () => found.f8Length(), found.f8.bind(found)),
      i8: numbers("calibration.i8", () => found.i8Length(), found.i8.bind(found)),
    };
  }
  const tensors = decodeTensors(reader, file.sectionsEnd, () => root.tensorsLength(), root.tensors.bind(root));
  return { metadata, tensors };
}

/** Predictions files: what a detector found, image by image (schemas/predictions.fbs), appended and readable while they grow. */
import { existsSync } from "node:fs";
import { Builder, ByteBuffer } from "flatbuffers";
import { DlfsError, ErrorCode } from "../native/error";
import { CheckedByteBuffer } from "./checked-buffer";
import type { CheckpointVersions } from "./checkpoint-types";
import { type Frame, FramedFileReader, FramedFileWriter, type FramedFormat } from "./framed-stream";
import { Header } from "./generated/dlfs/predictions/header";
import { ImagePredictions } from "./generated/dlfs/predictions/image-predictions";
import { IndexReader } from "./index-reader";
import { decodeVersions, encodeVersions } from "./index-tables";

const FORMAT: FramedFormat = { magic: "DLFSPRED", version: 1, what: "predictions file" };
const HEADER = "DLPH";
const IMAGE = "DLPI";

/** What was run. */
export interface PredictionsHeader {
  /** Names of the classes, by label. */
  classes: string[];
  /** The model file or checkpoint by its name. */
  model: string;
  /** Optimizer steps that the model had been trained for. */
  iteration: number;
  /** Detections below it were left out. */
  scoreThreshold: number;
  /** Milliseconds since 1970-01-01 UTC. */
  created: number;
  versions: CheckpointVersions;
}

/** What was found on an image. */
export interface ImagePrediction {
  /** By what the image is known: its key in the source. */
  name: string;
  /** Its id in the data set, where it is of one. */
  imageId?: number;
  /** In pixels, upright; 0 where that is not known. */
  width: number;
  height: number;
  /** (n, 4): x1, y1, x2, y2 in pixels of the image, best first. */
  boxes: Float32Array;
  scores: Float32Array;
  /** Class indices. */
  labels: Uint32Array;
  /** Why nothing was detected. */
  error?: string;
}

/** The message of frame "DLPI". */
export function encodePrediction(prediction: ImagePrediction): Uint8Array {
  const { name, imageId, width, height, boxes, scores, labels, error } = prediction;
  const b = new Builder(128 + 24 * scores.length);
  b.forceDefaults(true);
  const text = b.createString(name);
  const boxesAt = ImagePredictions.createBoxesVector(b, boxes);
  const scoresAt = ImagePredictions.createScoresVector(b, scores);
  const labelsAt = ImagePredictions.createLabelsVector(b, labels);
  const errorAt = error === undefined ? 0 : b.createString(error);
  ImagePredictions.startImagePredictions(b);
  ImagePredictions.addName(b, text);
  if (imageId !== undefined) ImagePredictions.addImageId(b, BigInt(imageId));
  ImagePredictions.addWidth(b, width);
  ImagePredictions.addHeight(b, height);
  ImagePredictions.addBoxes(b, boxesAt);
  ImagePredictions.addScores(b, scoresAt);
  ImagePredictions.addLabels(b, labelsAt);
  if (error !== undefined) ImagePredictions.addError(b, errorAt);
  ImagePredictions.finishImagePredictionsBuffer(b, ImagePredictions.endImagePredictions(b));
  return b.asUint8Array();
}

/** @throws DlfsError naming `source` and the field where the message is none, or its parts do not fit each other */
export function decodePrediction(message: Uint8Array, source: string): ImagePrediction {
  const reader = new IndexReader(source);
  const checked = reader.field("root", () => {
    const buffer = new CheckedByteBuffer(message);
    if (!ImagePredictions.bufferHasIdentifier(buffer)) throw new RangeError("it is no prediction");
    return ImagePredictions.getRootAsImagePredictions(buffer);
  });
  const name = reader.required("name", () => checked.name());
  const imageId = reader.field("image_id", () => checked.imageId());
  const error = reader.field("error", () => checked.error());
  const [width, height] = [
    reader.field("width", () => checked.width()),
    reader.field("height", () => checked.height()),
  ];
  const scores = reader.field("scores", () => checked.scoresLength());
  for (const [field, length, expected] of [
    ["boxes", reader.field("boxes", () => checked.boxesLength()), 4 * scores],
    ["labels", reader.field("labels", () => checked.labelsLength()), scores],
  ] as const) {
    if (length !== expected) reader.fail(field, `expected ${expected} numbers for ${scores} scores, got ${length}`);
  }
  // The last number of each lies in the buffer: an entry takes four bytes, the check of lengths counts one.
  for (const field of ["boxes", "scores", "labels"] as const) {
    const last = (field === "boxes" ? 4 * scores : scores) - 1;
    if (last >= 0) reader.field(field, () => checked[field](last));
  }
  // Lengths were checked; the views that the generated code makes are not.
  const root = ImagePredictions.getRootAsImagePredictions(new ByteBuffer(message));
  return {
    ...{ name, width, height },
    ...(imageId !== null && { imageId: reader.count("image_id", () => imageId) }),
    boxes: (root.boxesArray() ?? new Float32Array(0)).slice(),
    scores: (root.scoresArray() ?? new Float32Array(0)).slice(),
    labels: (root.labelsArray() ?? new Uint32Array(0)).slice(),
    ...(error !== null && { error }),
  };
}

function encodeHeader(header: PredictionsHeader): Uint8Array {
  const b = new Builder(1024);
  b.forceDefaults(true);
  const names = header.classes.map((name) => b.createString(name));
  const classes = Header.createClassesVector(b, names);
  const model = b.createString(header.model);
  const versions = encodeVersions(b, header.versions);
  Header.startHeader(b);
  Header.addClasses(b, classes);
  Header.addModel(b, model);
  Header.addIteration(b, BigInt(header.iteration));
  Header.addScoreThreshold(b, header.scoreThreshold);
  Header.addCreated(b, BigInt(header.created));
  Header.addVersions(b, versions);
  b.finish(Header.endHeader(b), HEADER);
  return b.asUint8Array();
}

function decodeHeader(message: Uint8Array, source: string): PredictionsHeader {
  const reader = new IndexReader(source);
  const root = reader.field("root", () => {
    const buffer = new CheckedByteBuffer(message);
    if (!buffer.__has_identifier(HEADER)) throw new RangeError("it is no header of predictions");
    return Header.getRootAsHeader(buffer);
  });
  return {
    classes: reader.list(
      "classes",
      () => root.classesLength(),
      (i) => root.classes(i),
      (name) => name as string,
    ),
    model: reader.required("model", () => root.model()),
    iteration: reader.count("iteration", () => root.iteration()),
    scoreThreshold: reader.field("score_threshold", () => root.scoreThreshold()),
    created: reader.count("created", () => root.created()),
    versions: decodeVersions(
      reader,
      reader.required("versions", () => root.versions()),
    ),
  };
}

/** An open predictions file. Close it, or declare it with `await using`. */
export class PredictionsReader implements AsyncDisposable {
  #header: PredictionsHeader | null = null;

  private constructor(private readonly file: FramedFileReader) {}

  /** @throws DlfsError naming the file where it is missing */
  static async open(path: string): Promise<PredictionsReader> {
    return new PredictionsReader(await FramedFileReader.open(path, FORMAT));
  }

  get path(): string {
    return this.file.path;
  }

  /** Bytes that hold whole predictions, of which those that were read. */
  get position(): number {
    return this.file.position;
  }

  /** What was run; null before predictions() has come to it, and where its writer has not. */
  get header(): PredictionsHeader | null {
    return this.#header;
  }

  /**
   * The predictions from where the last call ended to the end of the file; another call goes on when the file has grown. Messages
   * of other kinds, of a later dlfs, are passed over.
   *
   * @throws DlfsError naming file and place where it is damaged, or of a newer version
   */
  async *predictions(): AsyncGenerator<ImagePrediction> {
    for (;;) {
      const start = this.file.position;
      const frames = this.file.frames();
      for await (const { kind, message } of frames) {
        if (kind === HEADER) this.#header = decodeHeader(message, this.path);
        else if (kind === IMAGE) yield decodePrediction(message, this.path);
      }
      if (this.file.position === start) return;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file[Symbol.asyncDispose]();
  }
}

/** Appends predictions to a file. */
export class PredictionsWriter implements AsyncDisposable {
  private constructor(private readonly file: FramedFileWriter) {}

  /**
   * Starts a predictions file, or goes on with one that is there, behind its last whole prediction.
   *
   * @param onFound called with each prediction that is there already
   * @throws DlfsError naming the file where it is damaged, or of another model or with other classes than `header` says
   */
  static async open(
    path: string,
    header: PredictionsHeader,
    onFound: (prediction: ImagePrediction) => void = () => {},
  ): Promise<PredictionsWriter> {
    let position = 0;
    if (existsSync(path)) {
      await using reader = await PredictionsReader.open(path);
      for await (const prediction of reader.predictions()) onFound(prediction);
      if (reader.header) {
        checkSame(path, reader.header, header);
        position = reader.position;
      }
    }
    const started = existsSync(path);
    const file = started
      ? await FramedFileWriter.append(path, FORMAT, position)
      : await FramedFileWriter.create(path, FORMAT);
    const writer = new PredictionsWriter(file);
    if (position === 0) await file.append([{ kind: HEADER, message: encodeHeader(header) }]);
    return writer;
  }

  async append(predictions: readonly ImagePrediction[]): Promise<void> {
    await this.file.append(
      predictions.map((prediction): Frame => ({ kind: IMAGE, message: encodePrediction(prediction) })),
    );
  }

  /** Has what was appended on the disk. */
  async sync(): Promise<void> {
    await this.file.sync();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file[Symbol.asyncDispose]();
  }
}

/** Predictions of two models in one file would be told apart by nobody. */
function checkSame(path: string, found: PredictionsHeader, wanted: PredictionsHeader): void {
  const differ = (field: string, was: unknown, is: unknown): never => {
    throw new DlfsError(
      ErrorCode.argument,
      path,
      `${field}: the file has predictions of ${JSON.stringify(was)}, these are of ${JSON.stringify(is)}; write to another file`,
    );
  };
  for (const field of ["model", "iteration", "scoreThreshold"] as const) {
    if (found[field] !== wanted[field]) differ(field, found[field], wanted[field]);
  }
  if (found.classes.join("\n") !== wanted.classes.join("\n")) differ("classes", found.classes, wanted.classes);
}

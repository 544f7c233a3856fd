/** Predictions files: what a detector found, image by image (schemas/predictions.fbs), appended and readable while they grow. */
import { existsSync } from "node:fs";
import { Builder } from "flatbuffers";
import { DlfsError, ErrorCode } from "../native/error";
import { CheckedByteBuffer } from "./checked-buffer";
import type { CheckpointVersions } from "./checkpoint-types";
import { type Frame, FramedFileReader, FramedFileWriter, type FramedFormat } from "./framed-stream";
import { Header } from "./generated/dlfs/predictions/header";
import { IndexReader } from "./index-reader";
import { decodeVersions, encodeVersions } from "./index-tables";
import { type ImagePrediction, predictionMessages } from "./messages/predictions";

const FORMAT: FramedFormat = { magic: "DLFSPRED", version: 1, what: "predictions file" };
const HEADER = "DLPH";

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

/**
 * The predictions of a file, of each image the last one alone: an image that had failed may have been tried again. Goes over the
 * file twice.
 *
 * @param onHeader hears what was run, before the first prediction
 * @throws DlfsError as PredictionsReader
 */
export async function* latestPredictions(
  path: string,
  onHeader: (header: PredictionsHeader | null) => void = () => {},
): AsyncGenerator<ImagePrediction> {
  /** How often those appear that have failed at some time. */
  const times = new Map<string, number>();
  {
    await using reader = await PredictionsReader.open(path);
    for await (const { name, error } of reader.predictions()) {
      const known = times.get(name);
      if (known !== undefined) times.set(name, known + 1);
      else if (error !== undefined) times.set(name, 1);
    }
    onHeader(reader.header);
  }
  await using reader = await PredictionsReader.open(path);
  for await (const prediction of reader.predictions()) {
    const left = times.get(prediction.name);
    if (left !== undefined) times.set(prediction.name, left - 1);
    if (left === undefined || left === 1) yield prediction;
  }
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
   * The predictions from where the last call ended to the end of the file; another call goes on when the file has grown. An image
   * that had failed and was tried again has several, of which the last holds: see latestPredictions(). Messages of other kinds, of a later dlfs, are passed over.
   *
   * @throws DlfsError naming file and place where it is damaged, or of a newer version
   */
  async *predictions(): AsyncGenerator<ImagePrediction> {
    for (;;) {
      const start = this.file.position;
      const frames = this.file.frames();
      for await (const { kind, message } of frames) {
        if (kind === HEADER) this.#header = decodeHeader(message, this.path);
        else if (kind === predictionMessages.kind) yield predictionMessages.decode(message, this.path);
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

  /** Of several predictions of an image, the last holds. */
  async append(predictions: readonly ImagePrediction[]): Promise<void> {
    await this.appendEncoded(predictions.map((prediction) => predictionMessages.encode(prediction)));
  }

  /** The same of messages that predictionMessages has made, here or in another process. */
  async appendEncoded(messages: readonly Uint8Array[]): Promise<void> {
    await this.file.append(messages.map((message): Frame => ({ kind: predictionMessages.kind, message })));
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

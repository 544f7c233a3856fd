import type { Dataset, DeviceImageCodec } from "../data";
import { type CocoResult, detectionCurves } from "../metrics";
import {
  EpochTable,
  type MeterReading,
  type MetricsLine,
  ProgressBar,
  type ProgressStream,
  predictionSheet,
  type RunFolder,
  ratesBetween,
  type SheetBox,
  type TensorBoardWriter,
  TrainingMeter,
} from "../monitor";
import { DlfsError } from "../native";
import { summarizeDataset } from "./dataset-summary";
import { EpochReports } from "./epoch-report";
import { EvaluationFiles } from "./evaluation-files";
import { type EvaluatedClasses, evaluatedClasses, writeMetricPictures } from "./evaluation-report";
import { collectForMetrics, type EvaluatedSplit, type ImageDetections } from "./evaluator";
import type { TrainerObserver } from "./observers";
import type { StepResult } from "./train-step";

export interface ReporterOptions {
  run: RunFolder;
  dataset: Dataset;
  codec: DeviceImageCodec;
  /** What is evaluated. Default: all of the data set's split for validation. */
  evaluated?: EvaluatedSplit;
  iterations: number;
  /** Iterations done before. */
  start: number;
  /** Steps between lines in metrics.jsonl. Default 10. */
  logEvery?: number;
  /** Images on the picture of predictions. Default 8. */
  pictures?: number;
  /** Has everything that metrics.jsonl has, and the pictures of predictions; closed by finish(). */
  tensorboard?: Pick<TensorBoardWriter, "scalars" | "image" | "close">;
  /** Is given the lines of metrics.jsonl and of the log, too. */
  also?: { line(line: MetricsLine, classes?: EvaluatedClasses): void; text(text: string): void };
  /** Bytes of device memory in use. */
  memory?: () => number;
  /** Where progress is shown. Default: `process.stdout`. */
  stream?: ProgressStream;
}

/** Milliseconds for which a figure of the memory in use is good. */
const MEMORY_MS = 1000;

/**
 * Shows a training on the terminal and writes it to the run folder: progress, a table of the epochs, metrics, the log, pictures of
 * predictions. What cannot be written, on a full disk or one that is gone, is told of, and training goes on.
 */
export class Reporter implements TrainerObserver {
  readonly #options: ReporterOptions & Required<Pick<ReporterOptions, "logEvery" | "pictures" | "evaluated">>;
  readonly #progress: ProgressBar;
  readonly #meter = new TrainingMeter();
  readonly #epochs = new EpochReports();
  readonly #table = new EpochTable();
  readonly #evaluations: EvaluationFiles;
  /** At the last line in metrics.jsonl. */
  #lineReading: MeterReading | null = null;
  #epoch = 0;
  #memory = { bytes: 0, at: Number.NEGATIVE_INFINITY };
  /** What could not be written at the last try, by its name, and why. */
  readonly #unwritten = new Map<string, string>();

  constructor(options: ReporterOptions) {
    const { iterations: total, start, stream, run, dataset } = options;
    const { evaluated = { split: dataset.valSplit as string } } = options;
    this.#evaluations = new EvaluationFiles(run, dataset, evaluated);
    this.#options = {
      ...options,
      evaluated,
      logEvery: options.logEvery ?? 10,
      pictures: options.pictures ?? 8,
    };
    this.#progress = new ProgressBar({ total, start, stream });
  }

  /** Prints lines for good and keeps them in the run's log. */
  print(text: string): void {
    this.#progress.print(text);
    this.#write("log.txt", () => this.#options.run.appendLog(text));
    this.#options.also?.text(text);
  }

  onStep(_iteration: number, images: number, waitSeconds: number, epoch: number): void {
    this.#epoch = epoch;
    this.#progress.step(images, waitSeconds);
    this.#meter.step(images, waitSeconds);
  }

  onEpochEnd(epoch: number, iteration: number): void {
    this.#epochs.end(epoch + 1, iteration, this.#meter.read());
  }

  onResult(result: StepResult): void {
    const { iteration, losses, rate, gradNorm, scaling, failed } = result;
    const scale = scaling && { lossScale: scaling.scale, overflows: scaling.overflows };
    const memory = this.#memoryInUse();
    this.#progress.set({ losses, learningRate: rate, gradNorm, ...scale, memory });
    const row = this.#epochs.add(result);
    if (row) {
      const { losses: means, imagesPerSecond, waitShare, ...rest } = row;
      const rates = { imagesPerSecond: rounded(imagesPerSecond), waitShare: rounded(waitShare) };
      const { secondsLeft } = this.#progress.rates();
      for (const line of this.#table.lines({ ...row, memory, secondsLeft })) this.print(line);
      this.#record({ kind: "epoch", ...means, ...rest, ...rates, ...scale, memory });
    }
    const { logEvery, iterations } = this.#options;
    if (iteration % logEvery !== 0 && iteration !== iterations - 1 && !failed) return;
    const reading = this.#meter.read();
    const { imagesPerSecond, waitShare } = ratesBetween(this.#lineReading, reading);
    this.#lineReading = reading;
    this.#record({
      ...{ kind: "train", iteration, epoch: this.#epoch, ...losses, learningRate: rate, gradNorm, ...scale },
      ...{ imagesPerSecond: rounded(imagesPerSecond), waitShare: rounded(waitShare), memory },
      secondsLeft: rounded(this.#progress.rates().secondsLeft),
    });
  }

  onEvaluationStart(_iteration: number, overlaps: boolean): void {
    if (!overlaps) {
      this.#progress.pause();
      this.#meter.pause();
    }
  }

  async onEvaluation(iteration: number, result: CocoResult, detections: ImageDetections[]): Promise<void> {
    const { also, run, dataset, evaluated } = this.#options;
    const { store, classes } = dataset;
    const evaluator = collectForMetrics(store, evaluated, detections);
    const curves = detectionCurves(evaluator);
    const of = also && evaluatedClasses(evaluator, result, curves, classes.names);
    this.#record({ kind: "evaluation", iteration, ...result.stats }, of);
    this.print(`iteration ${iteration}: ${statsLine(result)}`);
    // Labels may have come since.
    if (also) await this.#writeLater("dataset.json", () => run.writeDataset(summarizeDataset(dataset)));
    await this.#writeLater("evaluations", () => this.#evaluations.write(iteration, detections));
    await this.#writeLater("pictures", () => this.#draw(iteration, result, detections));
    await this.#writeLater("pictures", () => writeMetricPictures(run.picturesFolder, evaluator, classes.names, curves));
    this.#progress.resume();
    this.#meter.resume();
  }

  onCheckpoint(path: string): void {
    this.#write("log.txt", () => this.#options.run.appendLog(`checkpoint ${path}`));
  }

  onCheckpointError(error: Error, iteration: number): void {
    this.print(`warning: no checkpoint of iteration ${iteration}: ${error.message}; training goes on`);
  }

  /** Ends the progress line, and the file of TensorBoard. */
  finish(): void {
    this.#progress.finish();
    this.#write("tensorboard", () => this.#options.tensorboard?.close());
  }

  /** A line of metrics.jsonl; its numbers go to TensorBoard, too. */
  #record(line: MetricsLine, classes?: EvaluatedClasses): void {
    const { run, tensorboard } = this.#options;
    this.#write("metrics.jsonl", () => run.appendMetrics(line));
    this.#options.also?.line(line, classes);
    if (!tensorboard) return;
    const { kind, iteration, ...values } = line;
    // There, all is named by the steps done, so that a training that goes on from a checkpoint can hide what it does again.
    const step = kind === "train" ? iteration + 1 : iteration;
    const numbers = Object.entries(values).filter((entry): entry is [string, number] => typeof entry[1] === "number");
    const scalars = Object.fromEntries(numbers.map(([name, value]) => [`${kind}/${name}`, value]));
    this.#write("tensorboard", () => tensorboard.scalars(step, scalars));
  }

  #memoryInUse(): number | undefined {
    const { memory } = this.#options;
    if (!memory) return undefined;
    const now = performance.now();
    if (now - this.#memory.at >= MEMORY_MS) this.#memory = { bytes: memory(), at: now };
    return this.#memory.bytes;
  }

  /** Does what writes a file; where that fails, training goes on, and it is told of once for each reason. */
  #write(name: string, work: () => void): void {
    try {
      work();
      this.#unwritten.delete(name);
    } catch (error) {
      this.#notWritten(name, error);
    }
  }

  async #writeLater(name: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
      this.#unwritten.delete(name);
    } catch (error) {
      this.#notWritten(name, error);
    }
  }

  #notWritten(name: string, error: unknown): void {
    const isSystem = error instanceof Error && "code" in error && "syscall" in error;
    if (!(error instanceof DlfsError) && !isSystem) throw error;
    const { message } = error as Error;
    if (this.#unwritten.get(name) === message) return;
    this.#unwritten.set(name, message);
    this.#progress.print(`warning: ${message}; training goes on`);
  }

  /** Draws predictions beside ground truth of some images, the same ones each time. */
  async #draw(iteration: number, result: CocoResult, detections: ImageDetections[]): Promise<void> {
    const { dataset, codec, run, pictures, tensorboard } = this.#options;
    const { store, source, classes } = dataset;
    const chosen = spread(detections, pictures);
    const entries = [];
    for (const { imageId, fileName, detections: found } of chosen) {
      const record = store.image(imageId);
      if (!record) continue;
      const image = await source
        .read(record.key)
        .then((bytes) => codec.decode(bytes))
        .catch(() => null); // an image that cannot be decoded has been reported by the loader
      if (!image) continue;
      const truth = store.annotationsOf(imageId).map(({ bbox: [x, y, w, h], categoryId, isCrowd }): SheetBox => {
        return { box: [x, y, x + w, y + h], classIndex: classes.indexOf(categoryId), crowd: isCrowd };
      });
      const predictions = found.map(({ box, score, label }): SheetBox => ({ box, score, classIndex: label }));
      entries.push({ image, title: fileName, truth, predictions });
    }
    if (entries.length === 0) return;
    const heading = `iteration ${iteration}   ${statsLine(result)}`;
    const sheet = predictionSheet(entries, { classNames: classes.names, heading, scoreThreshold: 0.5 });
    const jpeg = codec.encode(sheet, 90);
    tensorboard?.image(iteration, "predictions", { bytes: jpeg, width: sheet.width, height: sheet.height });
    await Bun.write(run.picturePath(iteration), jpeg);
  }
}

/** Four decimals are enough for a log. */
function rounded(value: number | undefined): number | undefined {
  return value === undefined ? undefined : Math.round(1e4 * value) / 1e4;
}

/** "AP 0.123  AP50 0.456 ..." */
export function statsLine({ stats }: CocoResult): string {
  const names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"] as const;
  return names
    .filter((name) => stats[name] >= 0)
    .map((name) => `${name} ${stats[name].toFixed(3)}`)
    .join("  ");
}

/** `count` elements, evenly spread over a list. */
function spread<T>(list: readonly T[], count: number): T[] {
  if (list.length <= count) return [...list];
  return Array.from({ length: count }, (_, i) => list[Math.floor((i * list.length) / count)] as T);
}

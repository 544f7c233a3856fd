import type { Dataset, DeviceImageCodec } from "../data";
import type { CocoResult } from "../metrics";
import { ProgressBar, predictionSheet, type RunFolder, type SheetBox } from "../monitor";
import { writeMetricPictures } from "./evaluation-report";
import { collectForMetrics, type EvaluatedSplit, type ImageDetections } from "./evaluator";
import type { StepResult } from "./train-step";
import type { TrainerObserver } from "./trainer";

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
}

/** Shows a training on the terminal and writes it to the run folder: progress, metrics, the log, pictures of predictions. */
export class Reporter implements TrainerObserver {
  readonly #options: Required<ReporterOptions>;
  readonly #progress: ProgressBar;
  /** Since the last line in metrics.jsonl: its time, and the seconds for which training waited for data. */
  #since: number | null = null;
  #waited = 0;
  #evaluationStart = 0;

  constructor(options: ReporterOptions) {
    const evaluated = { split: options.dataset.valSplit as string };
    this.#options = { logEvery: 10, pictures: 8, evaluated, ...options };
    this.#progress = new ProgressBar({ total: options.iterations, start: options.start });
  }

  /** Prints lines for good and keeps them in the run's log. */
  print(text: string): void {
    this.#progress.print(text);
    this.#options.run.appendLog(text);
  }

  onStep(_iteration: number, images: number, waitSeconds: number): void {
    this.#progress.step(images, waitSeconds);
    this.#since ??= performance.now() - 1000 * waitSeconds;
    this.#waited += waitSeconds;
  }

  onResult({ iteration, losses, rate, gradNorm, scaling, failed }: StepResult): void {
    const scale = scaling && { lossScale: scaling.scale, overflows: scaling.overflows };
    this.#progress.set({ losses, learningRate: rate, ...scale });
    const { run, logEvery, iterations } = this.#options;
    if (iteration % logEvery !== 0 && iteration !== iterations - 1 && !failed) return;
    const norm = gradNorm === undefined ? {} : { gradNorm };
    run.appendMetrics({
      ...{ kind: "train", iteration, ...losses, learningRate: rate, ...norm, ...scale },
      waitShare: this.#takeWaitShare(),
    });
  }

  /** The share of time since the last call, evaluations apart, for which training waited for data. */
  #takeWaitShare(): number {
    const now = performance.now();
    const seconds = (now - (this.#since ?? now)) / 1000;
    const share = seconds > 0 ? Math.min(1, this.#waited / seconds) : 0;
    this.#since = now;
    this.#waited = 0;
    return Math.round(1e4 * share) / 1e4;
  }

  onEvaluationStart(): void {
    this.#evaluationStart = performance.now();
    this.#progress.pause();
  }

  async onEvaluation(iteration: number, result: CocoResult, detections: ImageDetections[]): Promise<void> {
    const { run } = this.#options;
    run.appendMetrics({ kind: "evaluation", iteration, ...result.stats });
    this.print(`iteration ${iteration}: ${statsLine(result)}`);
    await this.#draw(iteration, result, detections);
    await this.#drawMetrics(detections);
    this.#progress.resume();
    if (this.#since !== null) this.#since += performance.now() - this.#evaluationStart;
  }

  onCheckpoint(path: string): void {
    this.#options.run.appendLog(`checkpoint ${path}`);
  }

  onCheckpointError(error: Error, iteration: number): void {
    this.print(`warning: no checkpoint of iteration ${iteration}: ${error.message}; training goes on`);
  }

  /** Ends the progress line. */
  finish(): void {
    this.#progress.finish();
  }

  /** Draws predictions beside ground truth of some images, the same ones each time. */
  async #draw(iteration: number, result: CocoResult, detections: ImageDetections[]): Promise<void> {
    const { dataset, codec, run, pictures } = this.#options;
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
    await Bun.write(run.picturePath(iteration), codec.encode(sheet, 90));
  }

  /** Draws the confusion matrix and the curves of this evaluation over those of the one before. */
  async #drawMetrics(detections: ImageDetections[]): Promise<void> {
    const { dataset, run, evaluated } = this.#options;
    const { store, classes } = dataset;
    await writeMetricPictures(run.picturesFolder, collectForMetrics(store, evaluated, detections), classes.names);
  }
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

export type { Rgb } from "./color";
export { classColor } from "./color";
export type { Rect, RgbImage, StrokeOptions } from "./draw";
export { createImage, drawTag, drawText, fillRect, measureText, paste, resize, strokeRect } from "./draw";
export { type EpochRow, EpochTable } from "./epoch-table";
export { CounterMeter, DURATION_BOUNDS, HistogramMeter, type MeterOptions } from "./meters";
export { formatBytes, formatDuration } from "./number-format";
export type { DrawBoxesOptions, PredictionSheetOptions, SheetBox, SheetEntry } from "./prediction-sheet";
export { drawBoxes, predictionSheet } from "./prediction-sheet";
export type { ProgressBarOptions, ProgressRates, ProgressStream, ProgressValues } from "./progress-bar";
export { ProgressBar } from "./progress-bar";
export {
  type HistogramMetric,
  type Labels,
  type Metric,
  MetricsServer,
  type MetricsServerOptions,
  type NumberMetric,
  PROMETHEUS_CONTENT_TYPE,
  prometheusText,
} from "./prometheus";
export type { MetricsLine, RunFolderOptions } from "./run-folder";
export { evaluationOf, parseMetrics, RunFolder, readMetrics } from "./run-folder";
export { PAGE_HEADERS, PAGE_STYLE, PICTURE_HEADERS } from "./static-page";
export {
  type EncodedPicture,
  type Histogram,
  histogramOf,
  type TensorBoardOptions,
  TensorBoardWriter,
} from "./tensorboard";
export { type MeterRates, type MeterReading, ratesBetween, TrainingMeter } from "./training-meter";

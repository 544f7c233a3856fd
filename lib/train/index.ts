export { type BatchSearch, type FoundBatch, largestBatch, roundBatch } from "./batch-size";
export {
  type CalibrationBatch,
  type CalibrationMethod,
  type CalibrationOptions,
  type CalibrationTable,
  calibrate,
  type Quantization,
  readCalibration,
  rewriteOf,
  writeCalibration,
} from "./calibration";
export { CheckpointCopies, type CheckpointCopiesOptions } from "./checkpoint-copies";
export { describeConfig } from "./config/describe-config";
export { ConfigError } from "./config/kinds";
export { iterationAt, makeSchedule, type ScheduleConfig, type WarmupConfig } from "./config/schedule-settings";
export { parseTrainArguments, type ResumedRun, type TrainArguments } from "./config/train-arguments";
export {
  checkContradictions,
  chooseModel,
  resolveConfig,
  type TrainConfig,
  type TrainFacts,
} from "./config/train-config";
export { trainHelp, trainSchema } from "./config/train-help";
export { type TrainSettings, trainSettings } from "./config/train-settings";
export { type AutotuneOptions, autotune, plansFolder, showTuning } from "./convolution-tuning";
export { DataParallel, type DataParallelOptions } from "./data-parallel";
export { type Detection, DetectStep, type DetectStepOptions, detectionsOnImage, powersOfTwo } from "./detect-step";
export { type DryRun, describeDryRun, worstCaseTargets } from "./dry-run";
export { Ema, type EmaOptions, emaDecays } from "./ema";
export {
  type EvaluateModelOptions,
  evaluateModel,
  evaluateResultsFile,
  type ModelEvaluation,
} from "./evaluate";
export {
  type Evaluation,
  type EvaluationReport,
  formatQuantized,
  formatReport,
  reportOf,
  writeMetricPictures,
  writeReport,
} from "./evaluation-report";
export {
  collectForMetrics,
  type EvaluatedSplit,
  Evaluator,
  type EvaluatorOptions,
  type ImageDetections,
  measure,
} from "./evaluator";
export { FeatureStep, type FeatureStepOptions } from "./feature-step";
export { type FreezeRule, Freezing, matchesPath } from "./freezing";
export { keepWeights } from "./keep-weights";
export { LossScaler, type LossScaling, type LossScalingOptions } from "./loss-scaling";
export type { TrainerObserver } from "./observers";
export { ratePicture } from "./rate-picture";
export {
  findRate,
  RateJudge,
  type RatePoint,
  type RateRange,
  type RateRangeOptions,
  type RateRangeResult,
  rangeRates,
  steepestRate,
} from "./rate-range";
export { RemoteCheckpoints, type RemoteCheckpointsOptions } from "./remote-checkpoints";
export { Reporter, type ReporterOptions, statsLine } from "./reporter";
export {
  checkRecords,
  type Feed,
  openRecords,
  type Reading,
  type Records,
  trainingFeed,
  validationFeed,
} from "./run/data-feeds";
export { type InitialWeights, loadInitialWeights } from "./run/initial-weights";
export { copyLocation, fetchResumed, fetchRun } from "./run/remote-run";
export { restartArguments } from "./run/restart";
export { type StopSignals, stopOnSignals } from "./run/stop-signals";
export { trainerOptions } from "./run/trainer-options";
export { Training, type TrainingOptions } from "./run/training";
export { type SaveModelOptions, saveModel } from "./save-model";
export { type SaveWeightsOptions, saveTorchWeights } from "./save-weights";
export {
  chained,
  constantRate,
  cosine,
  cosineRestarts,
  exponential,
  exponentialWarmup,
  multiStep,
  type OneCycleOptions,
  oneCycle,
  type PlateauOptions,
  type PlateauState,
  polynomial,
  ReduceOnPlateau,
  type Schedule,
  scheduleTable,
  stepped,
  warmup,
} from "./schedule";
export { type ParameterGroup, SGD, type SGDOptions, withoutDecay } from "./sgd";
export { type HostTargets, parseRecompute, type StepResult, TrainStep, type TrainStepOptions } from "./train-step";
export { loadTrainedModel, type RunConfig, type TrainedModel, trainedMetadata } from "./trained-model";
export { Trainer, type TrainerOptions, type TrainingOutcome } from "./trainer";
export { TrainingMetrics, type TrainingMetricsOptions } from "./training-metrics";
export { TrainingRanks, type TrainingRanksOptions } from "./training-ranks";
export { versionsOf } from "./versions";
export { WeightHistograms } from "./weight-histograms";

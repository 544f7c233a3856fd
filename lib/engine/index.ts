export {
  type BatchInferenceOptions,
  type BatchInferenceResult,
  drawPrediction,
  runBatchInference,
} from "./batch-inference";
export { type DetectOptions, Engine, type EngineOptions, type EngineResult, type EngineTimes } from "./engine";
export { EngineWorker, type EngineWorkerImage, type EngineWorkerOptions } from "./engine-worker";
export type { EngineImage } from "./image-input";
export { type ImageList, type ListedImage, listImages } from "./image-list";
export { type Predicted, type PredictOptions, predict } from "./predict";
export {
  type ConvertOptions,
  convertPredictions,
  type PredictionFormat,
  predictionFormats,
} from "./prediction-formats";

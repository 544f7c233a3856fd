export {
  type BatchInferenceOptions,
  type BatchInferenceResult,
  runBatchInference,
} from "./batch-inference";
export { drawPrediction } from "./draw-prediction";
export {
  type DetectOptions,
  Engine,
  type EngineOptions,
  type EngineResult,
  type EngineTimes,
  type ImageFeatures,
} from "./engine";
export { EngineWorker, type EngineWorkerImage, type EngineWorkerOptions } from "./engine-worker";
export type { EngineImage } from "./image-input";
export { type FrameRequest, type ImageList, type ListedImage, type ListOptions, listImages } from "./image-list";
export { type Predicted, type PredictOptions, predict } from "./predict";
export { PredictProcesses, type PredictProcessesOptions } from "./predict-processes";
export {
  type ConvertOptions,
  convertPredictions,
  type PredictionFormat,
  predictionFormats,
} from "./prediction-formats";
export { RunPredictor, type RunPredictorOptions } from "./run-predictor";
export { type FrameChoice, isVideo, type VideoFrame, type VideoOptions, videoFrames } from "./video-frames";

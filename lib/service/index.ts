export type { Backoff } from "./engine-supervisor";
export { type GivenModelConfig, type ModelConfig, modelConfigSchema, type VersionPolicy } from "./model-config";
export { ModelRepository, type ModelRepositoryOptions } from "./model-repository";
export type { ServiceLog } from "./service-log";
export {
  type BatchStatistics,
  type EngineStatistics,
  type FailureReason,
  type HistogramData,
  type InferenceBackend,
  type InferenceReply,
  type InferenceRequest,
  type InferenceTimes,
  type ModelDescription,
  type ModelStatistics,
  ServiceError,
  type ServiceImage,
  type ServiceResult,
  type Stage,
} from "./types";

export { ApiKeys } from "./access";
export type { Backoff } from "./engine-supervisor";
export { defaultLimits, type ServiceLimits } from "./limits";
export { createLog, type LogLevel, logLevels } from "./log";
export { type GivenModelConfig, type ModelConfig, modelConfigSchema, type VersionPolicy } from "./model-config";
export { ModelRepository, type ModelRepositoryOptions } from "./model-repository";
export { runService, serviceLogOf } from "./run-service";
export { InferenceService, type ServiceOptions } from "./server";
export {
  type GivenServiceConfig,
  readServiceFile,
  type ServiceConfig,
  serviceConfigOf,
  serviceConfigSchema,
} from "./service-config";
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
export type { UrlFetchOptions } from "./url-fetch";

/** dlfs, Deep Learning from Scratch: trains and serves vision object detectors from TypeScript. */

export type { Rect } from "./data";
export * from "./data";
export * from "./detection";
export * from "./distributed";
export * from "./engine";
export * from "./export";
export * from "./formats";
export * from "./graph";
export * from "./layers";
export * from "./metrics";
export * from "./models";
export * from "./monitor";
export { type BackendName, DlfsError, ErrorCode, probeBackends } from "./native";
// By their names: what configures a served model is no model's configuration.
export {
  ApiKeys,
  createLog,
  defaultLimits,
  type GivenModelConfig,
  type InferenceBackend,
  type InferenceReply,
  type InferenceRequest,
  InferenceService,
  type ModelDescription,
  ModelRepository,
  type ModelRepositoryOptions,
  type ModelStatistics,
  runService,
  ServiceError,
  type ServiceImage,
  type ServiceLimits,
  type ServiceOptions,
  type ServiceResult,
  serviceConfigOf,
  serviceConfigSchema,
  serviceLogOf,
} from "./service";
export * from "./tensor";
export * from "./train";

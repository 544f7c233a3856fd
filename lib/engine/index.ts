export { type DetectOptions, Engine, type EngineOptions, type EngineResult } from "./engine";
export type { EngineImage } from "./image-input";

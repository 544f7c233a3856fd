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
export * from "./tensor";
export * from "./train";

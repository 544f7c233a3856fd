export * from "./activation";
export * from "./basic";
export { FrozenBatchNorm2d } from "./frozen-batch-norm";
export { GroupNorm } from "./group-norm";
export { Layer, type Values } from "./layer";
export { Linear, type LinearOptions } from "./linear";
export { Model, type ModelOptions } from "./model";
export { flopsOf, type LayerSummary, type ModelSummary, type SummaryOptions, summarize } from "./summary";

export type { CocoCurves } from "./coco-accumulate";
export type { CocoEvaluatorOptions, CocoResult } from "./coco-eval";
export { CocoEvaluator, evaluateCoco } from "./coco-eval";
export type { AreaRange, CocoDetection, CocoGroundTruth, CocoParams } from "./coco-params";
export { defaultCocoParams } from "./coco-params";
export type { CocoCategoryStats, CocoStats } from "./coco-summary";

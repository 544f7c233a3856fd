export { AnchorGenerator, type AnchorLevel, type AnchorOptions, cellAnchors } from "./anchors";
export {
  type Candidates,
  type LevelHeads,
  type LevelSelection,
  selectFromClasses,
  selectFromLevels,
} from "./candidates";
export { DefaultBoxGenerator, type DefaultBoxOptions } from "./default-boxes";
export type { LevelMaps } from "./levels";
export {
  type BoxCoder,
  type BoxCoderWeights,
  type BoxLossKind,
  type BoxLossOptions,
  binaryCrossEntropyLoss,
  boxLoss,
  boxLossKinds,
  type CrossEntropyLossOptions,
  centernessLoss,
  crossEntropyLoss,
  type FocalLossOptions,
  focalLoss,
  type LossNormalization,
  type Matched,
} from "./losses";
export {
  type MatcherOptions,
  matchAnchors,
  matchPoints,
  type PointMatcherOptions,
  type Targets,
} from "./matcher";
export { normalizePixels } from "./pixels";
export {
  type HeadRows,
  type PointPostprocessOptions,
  type PostprocessOptions,
  postprocess,
  postprocessPoints,
  postprocessSoftmax,
  type SoftmaxPostprocessOptions,
} from "./postprocess";
export { type SoftNmsOptions, type SuppressionOptions, suppressCandidates } from "./suppression";

export { type Box, type FoundBox, iouOf, pairBoxes } from "./boxes";
export { type GreedyChoice, type GreedyOptions, kCenterGreedy } from "./diversity";
export {
  checkSameClasses,
  type Gathered,
  type GatheredImage,
  type GatherOptions,
  gatherCandidates,
  gatherFeatures,
  type ImageJudge,
  mirrorPixels,
  type ReadableImage,
} from "./gather";
export {
  type Aggregation,
  aggregate,
  aggregations,
  balance,
  classWeights,
  committeeDisagreement,
  disagreement,
  margin,
  mirrored,
  scoreEntropy,
  uncertainty,
} from "./informativeness";
export {
  type Candidate,
  type Criterion,
  criteria,
  normalised,
  type RankedImage,
  type RankOptions,
  rankImages,
} from "./rank-images";
export {
  formatRanking,
  type RankingFormat,
  type RankingOptions,
  rankingFormatOf,
  rankingFormats,
  writeRanking,
} from "./write-ranking";

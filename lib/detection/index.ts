export { AnchorGenerator, type AnchorLevel, type AnchorOptions, cellAnchors } from "./anchors";
export { type BoxCoderWeights, boxLoss, focalLoss } from "./losses";
export {
  type MatcherOptions,
  matchAnchors,
  matchPoints,
  type PointMatcherOptions,
  type Targets,
} from "./matcher";
export { type PostprocessOptions, postprocess } from "./postprocess";

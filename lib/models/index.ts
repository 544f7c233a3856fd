export {
  BasicBlock,
  CompactDetector,
  type CompactDetectorOptions,
  ConvNormReLU,
  octaveAnchors,
} from "./compact-detector";
export { Detector, type DetectorOptions, type HeadOutput } from "./detector";

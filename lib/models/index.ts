export { loadBackboneWeights } from "./backbone-weights";
export {
  BasicBlock,
  CompactDetector,
  type CompactDetectorOptions,
  ConvNormReLU,
  octaveAnchors,
} from "./compact-detector";
export { Detector, type DetectorOptions, type HeadOutput } from "./detector";
export { FeaturePyramid, LastLevelP6P7 } from "./fpn";
export {
  type CompactConfig,
  type ModelConfig,
  modelFromConfig,
  modelNames,
  type RetinaNetConfig,
} from "./model-config";
export { detectorNames, type NamedModel, namedModel } from "./model-names";
export { ResNet, type ResNetName, type ResNetOptions, resNetNames } from "./resnet";
export {
  type PyramidBackbone,
  ResNetPyramid,
  RetinaNet,
  type RetinaNetOptions,
  retinaNetAnchors,
} from "./retinanet";
export {
  describeLoaded,
  type LoadedWeights,
  type LoadTorchOptions,
  loadTorchWeights,
  type NameFilter,
  type TorchWeight,
  type TorchWeightSource,
  torchWeights,
} from "./torch-names";

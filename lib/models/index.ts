export { loadBackboneWeights } from "./backbone-weights";
export type { NormOptions } from "./blocks";
export {
  BasicBlock,
  CompactDetector,
  type CompactDetectorOptions,
  ConvNormReLU,
  octaveAnchors,
} from "./compact-detector";
export { DetectionModel, imageNetNormalization, type Normalization, pooledFeatures } from "./detection-model";
export { Detector, type DetectorOptions, type HeadOutput } from "./detector";
export { FCOS, type FCOSOptions } from "./fcos";
export { FeaturePyramid, LastLevelMaxPool, LastLevelP6P7 } from "./fpn";
export {
  InvertedResidual,
  MobileNetV2,
  type MobileNetV2ClassifierOptions,
  MobileNetV2Features,
  type MobileNetV2FeaturesOptions,
  type MobileNetV2Options,
} from "./mobilenet-v2";
export {
  type CompactConfig,
  type FCOSConfig,
  type ModelConfig,
  modelFromConfig,
  modelNames,
  type RegisteredConfig,
  type RetinaNetConfig,
  registerModel,
  type SSDLiteConfig,
} from "./model-config";
export { detectorNames, type NamedModel, namedModel } from "./model-names";
export {
  type BackboneName,
  backboneNames,
  MobileNetPyramid,
  type MobileNetPyramidOptions,
  type P6Source,
  type PyramidBackbone,
  type PyramidOptions,
  pyramidBackbone,
  ResNetPyramid,
} from "./pyramid-backbone";
export { ResNet, type ResNetName, type ResNetOptions, resNetNames } from "./resnet";
export { RetinaNet, type RetinaNetOptions, retinaNetAnchors } from "./retinanet";
export { SSDLite, type SSDLiteOptions } from "./ssdlite";
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

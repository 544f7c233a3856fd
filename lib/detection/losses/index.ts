export {
  type BoxCoder,
  type BoxCoderWeights,
  type BoxLossKind,
  type BoxLossOptions,
  boxLoss,
  boxLossKinds,
} from "./box";
export { centernessLoss } from "./centerness";
export type { LossNormalization, Matched } from "./common";
export { type CrossEntropyLossOptions, crossEntropyLoss } from "./cross-entropy";
export { binaryCrossEntropyLoss, type FocalLossOptions, focalLoss } from "./focal";

export { ALIGNMENT, Arena, align } from "./arena";
export { Communicator, type CommunicatorOptions, type CommunicatorProgress } from "./communicator";
export { Device, type DeviceOptions, type Feature, type MemoryInfo } from "./device";
export {
  type DType,
  decodeElements,
  dtypeCode,
  dtypeSize,
  elementCount,
  encodeElements,
  isQuantized,
  parseDType,
  type QuantizedDType,
} from "./dtype";
export { NativeObject, outHandle } from "./native-object";
export { PinnedBuffer } from "./pinned";
export {
  type ActivationDType,
  checkPrecision,
  type Precision,
  type PrecisionPolicy,
  precisionNames,
  precisionPolicy,
  precisionText,
} from "./precision";
export { Event, Stream, until } from "./stream";
export { checkShape, Tensor } from "./tensor";

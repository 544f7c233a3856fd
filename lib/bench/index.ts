export { benchImages, drawPicture } from "./bench-images";
export {
  type BenchData,
  benchLoaders,
  benchTrainingData,
  type DataRow,
  type DataSettings,
  dataPeerTable,
  dataTable,
  dataTitle,
  openBenchData,
} from "./data";
export { DataPeer, type DataPeerSettings } from "./data-peer";
export {
  benchDecode,
  DECODE_WORKS,
  type DecodeRow,
  type DecodeSet,
  type DecodeSettings,
  type DecodeWork,
  decodePeerTable,
  decodeTable,
  decodeTitle,
  openDecodeSet,
} from "./decode";
export { type LayerBench, type LayerTiming, layerBenches, layerLine, measureLayer } from "./layers";
export {
  bytesOf,
  type Ceilings,
  captured,
  ceilings,
  expectFinite,
  fillNormal,
  line,
  type Precision,
  type Timing,
  time,
  timingOf,
  title,
  type Work,
} from "./measure";
export {
  benchInference,
  benchTraining,
  makeModel,
  type NetworkBench,
  type NetworkSettings,
  networkName,
  timeNetwork,
} from "./network";
export {
  besideTable,
  type PeerOperations,
  type PeerResult,
  type PeerRow,
  peerTable,
  runDecodePeers,
  runOperationPeers,
  runPeers,
} from "./peers";
export { benchNms, benchPostprocess, type NmsCase, nmsCases } from "./postprocess";
export {
  type CallTiming,
  chromeTrace,
  layerGroup,
  profileCalls,
  profileSummary,
  profileTable,
  workOfCalls,
} from "./profile";
export {
  type BenchChange,
  type BenchResult,
  type BenchRow,
  benchResult,
  compareResults,
  comparisonTable,
  readBenchResult,
  resultTable,
  writeBenchResult,
} from "./results";
export { benchSizes, type SizeCases, sizeCases } from "./sizes";
export { floorOf, type NodeWork, nodeWork } from "./work";

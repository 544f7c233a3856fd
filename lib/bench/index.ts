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
export { benchInference, benchTraining, type NetworkBench, type NetworkSettings, networkName } from "./network";
export {
  besideTable,
  type PeerOperations,
  type PeerResult,
  type PeerRow,
  peerTable,
  runOperationPeers,
  runPeers,
} from "./peers";
export { benchNms, benchPostprocess, type NmsCase, nmsCases } from "./postprocess";
export { type CallTiming, chromeTrace, layerGroup, profileCalls, profileSummary, profileTable } from "./profile";
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
export { floorOf, type NodeWork, nodeWork } from "./work";

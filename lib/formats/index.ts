export { makeFolder, writeFileAtomic, writeTextAtomic } from "./atomic-file";
export { Checkpoint, CheckpointWriter, readCheckpoint, writeCheckpoint } from "./checkpoint";
export type { CheckpointStoreOptions, StoredCheckpoint } from "./checkpoint-store";
export { CheckpointStore } from "./checkpoint-store";
export type {
  BestMetric,
  CheckpointEntry,
  CheckpointMetadata,
  CheckpointTensor,
  CheckpointTensorData,
  CheckpointVersions,
  LoaderPosition,
  MetricsRecord,
  RandomCounter,
  ScheduleState,
  StoredDType,
} from "./checkpoint-types";
export type { FileBytesOptions } from "./file-bytes";
export { decodeFrame, encodeFrame, type Frame } from "./framed-stream";
export { loadWeights } from "./load-weights";
export * from "./messages";
export { isModelFile, ModelFile, type ModelFileMetadata, type StoredCalibration, writeModelFile } from "./model-file";
export type { NumpyFileOptions } from "./numpy";
export { NumpyFile, readNumpy } from "./numpy";
export { OnnxFile, type OnnxReadAttribute, type OnnxReadModel, type OnnxReadNode, readOnnx } from "./onnx-read";
export type { OnnxAttribute, OnnxGraph, OnnxModel, OnnxNode, OnnxValueInfo } from "./onnx-types";
export { writeOnnx } from "./onnx-write";
export {
  latestPredictions,
  type PredictionsHeader,
  PredictionsReader,
  PredictionsWriter,
} from "./predictions-file";
export type { WeightSource } from "./safetensors";
export { readSafetensors, SafetensorsFile, writeSafetensors } from "./safetensors";
export { crc32c, decodeTfRecords, encodeTfRecord } from "./tfrecord";
export type { TorchFileOptions } from "./torch-file";
export { readTorchFile, TorchFile } from "./torch-file";
export type { WeightDType, WeightFile, WeightValue } from "./weights";
export { toFloat32, WeightTensor, weightDTypeSize } from "./weights";

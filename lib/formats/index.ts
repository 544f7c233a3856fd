export { writeFileAtomic } from "./atomic-file";
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
} from "./checkpoint-types";

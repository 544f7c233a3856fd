export * from "./audit/index";
export { type LabelConfig, parseLabelConfig } from "./label-config";
export { intoAll, intoDataset, intoTraining, type LabelTarget } from "./label-targets";
export * from "./rank/index";
export { boxesOf, type NamedBox, regionOf } from "./regions";
export { Retraining, type RetrainingOptions } from "./retraining";
export { type DetectedImage, type Detector, StudioBackend, type StudioBackendOptions } from "./studio-backend";
export { TaskImages, type TaskImagesOptions } from "./task-images";

export {
  type AnnotationRecord,
  type AnnotationSource,
  AnnotationStore,
  type AnnotationUpdate,
  type AssignSplitsOptions,
  type Attribution,
  type Category,
  type Change,
  ClassMap,
  type CocoBox,
  type FileFacts,
  type ImageQuery,
  type ImageRecord,
  type ImageUpdate,
  type ImportRecord,
  type NewAnnotation,
  type NewImage,
  type PageOptions,
  type SplitShares,
  type StoreCounts,
} from "./annotation-store";
export {
  Augmentation,
  type AugmentationOptions,
  type AugmentationPreset,
  augmentationPreset,
  augmentationPresets,
  type ImageSet,
  multiScaleSize,
  parseAugmentation,
} from "./augmentation";
export {
  AugmentOp,
  CopyPaste,
  type CopyPasteOptions,
  Cutout,
  type CutoutOptions,
  HsvJitter,
  type HsvJitterOptions,
  MixUp,
  type MixUpOptions,
  Mosaic,
  type OtherImages,
  PhotometricDistort,
  type PhotometricDistortOptions,
  RandomAffine,
  type RandomAffineOptions,
  ZoomOut,
  type ZoomOutOptions,
} from "./augmentations";
export { needCompositions } from "./batch-planner";
export { AspectRatioBatches, type AspectRatioBatchesOptions, BatchSampler } from "./batch-sampler";
export { type BatchPlace, BatchSchedule, type ScheduledBatch, type ScheduleOptions } from "./batch-schedule";
export { type BoxStats, type BoxStatsOptions, boxStats, type Spread } from "./box-stats";
export { cacheFolder } from "./cache";
export { CachedDataSource, type CacheOptions, type CacheStats, parseBytes } from "./cached-data-source";
export { type CheckImagesOptions, type CheckReport, checkImages } from "./check-images";
export { type CheckRowsOptions, type CheckRowsReport, checkRows, type Finding } from "./check-rows";
export {
  type BatchImage,
  CocoDataLoader,
  type CocoDataLoaderOptions,
  type DetectionBatch,
  type ImageChange,
  type ImageFailure,
} from "./coco-data-loader";
export { importCoco } from "./coco-import";
export {
  type AnnotatedObject,
  type AnnotationFile,
  formatCocoResults,
  type ResultRow,
  readCocoAnnotations,
  readCocoResults,
} from "./coco-results";
export type {
  BatchDecoder,
  CompositionDecoder,
  CompositionFailure,
  CompositionResult,
  DecodeFailure,
  EncodedImage,
  ImageCodec,
  ImageFormat,
  ImageInfo,
} from "./codec";
export {
  type Composition,
  type CompositionLayer,
  cover as coverComposition,
  move as moveComposition,
  packCompositions,
  type SourceImage,
  type SourcePixels,
  startComposition,
  withBoxes as withCompositionBoxes,
} from "./composition";
export { DataLoader, type LoaderState } from "./data-loader";
export {
  type ByteRange,
  type CallOptions,
  DataSource,
  type ObjectInfo,
  type ReadOptions,
  SourceError,
  type SourceFailure,
} from "./data-source";
export { type Dataset, describeDataset, type LoadDatasetOptions, loadDataset, openKeptStore } from "./dataset";
export { DEMO_VERSION, type DemoOptions, demoFolder, generateDemo } from "./demo";
export type { BatchImages, DetectionLoader } from "./detection-loader";
export { type DrawOptions, drawCompositions } from "./device-augment";
export { DeviceBatchDecoder, type DeviceBatchDecoderOptions, DeviceImageCodec, type Pixels } from "./device-codec";
export {
  DeviceCompositionDecoder,
  type DeviceCompositionDecoderOptions,
} from "./device-composition-decoder";
export { DeviceRecordReader, type DeviceRecordReaderOptions, type RecordFailure } from "./device-records";
export { DiskCache, type DiskCacheOptions } from "./disk-cache";
export {
  type DatasetArchive,
  type DatasetArchives,
  type DownloadOptions,
  type DownloadReport,
  downloadDataset,
  publishedDatasets,
  readDatasetArchives,
} from "./download";
export * from "./exchange/index";
export { type GcsCredentials, GcsDataSource, type GcsOptions } from "./gcs-data-source";
export { HttpDataSource, type HttpOptions } from "./http-data-source";
export {
  type ImagePlan,
  type InputMapping,
  mapBoxesToImage,
  mappingOf,
  type Rect,
  startPlan,
  TRANSFORM_FLOATS,
  writeTransform,
} from "./image-plan";
export type { ImportOptions, ImportReport } from "./import-content";
export { LocalDataSource } from "./local-data-source";
export { type DataSourceOptions, dataSource, isRemoteLocation } from "./open-data-source";
export { type PackOptions, type PackReport, packRecords } from "./pack";
export { planInput } from "./plan-input";
export { type Problem, type ProblemAction, ProblemList } from "./problems";
export { type ProgressListener, showProgress } from "./progress";
export {
  CounterRandom,
  EpochRandom,
  philox4x32,
  type RandomKey,
  shuffledOrder,
} from "./random";
export {
  RecordLoader,
  type RecordLoaderOptions,
  type RecordLoaderState,
  type RecordReader,
  ShardWindowSampler,
} from "./record-loader";
export { type PackDescription, type RecordDType, RecordSet } from "./record-set";
export type { RemoteOptions, RemoteStats } from "./remote-data-source";
export { type RetryOptions, retrying, TransientError } from "./retry";
export { S3DataSource, type S3Options } from "./s3-data-source";
export {
  ClassBalancedSampler,
  type ClassBalancedSamplerOptions,
  FirstImages,
  type FirstImagesOptions,
  RepeatFactorSampler,
  type RepeatFactorSamplerOptions,
  type SampledImages,
  type SampledPass,
  Sampler,
  type SamplerJson,
  SequentialSampler,
  ShuffleSampler,
  WeightedSampler,
  type WeightedSamplerOptions,
} from "./sampler";
export { seededFraction, splitOf } from "./split-hash";
export { SQLiteAnnStore } from "./sqlite-ann-store";
export { type ImageBoxes, type TargetChange, type TargetsStart, targetsOf } from "./targets";
export {
  HorizontalFlip,
  IMAGENET_MEAN,
  IMAGENET_STD,
  Normalize,
  type NormalizeOptions,
  normalizationOf,
  type PreprocessJson,
  PreprocessOp,
  parsePreprocessing,
  RandomCrop,
  type RandomCropOptions,
  Resize,
  type ResizeOptions,
  ScaleJitter,
  type ScaleJitterOptions,
  VerticalFlip,
  withoutAugmentation,
} from "./transforms";
export { serveDataset, type ViewOptions } from "./view-server";

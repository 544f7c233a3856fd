import type { Tensor } from "../tensor";
import type { DetectionBatch } from "./coco-data-loader";
import type { InputSize } from "./codec";
import type { DataLoader, LoaderState } from "./data-loader";

/** Batches for training a detector, from images (CocoDataLoader) or from record files (RecordLoader). */
export interface DetectionLoader extends DataLoader<DetectionBatch> {
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  /** Boxes that an image has room for in a batch. */
  readonly maxBoxes: number;
  /** The state after a batch, for callers that ask for batches ahead of using them. */
  stateAfter(batch: DetectionBatch): LoaderState;
}

/** What holds the images of a loader's batches in device memory: DeviceBatchDecoder or DeviceRecordReader. */
export interface BatchImages {
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  /** The images of a slot: (batchSize, height, width, 3), normalised. `size`: that of its batch, where batches differ in it. */
  images(slot: number, size?: InputSize): Tensor;
}

/** What the committed files of format version 1 hold. */
import type { ImagePrediction, ModelFileMetadata, PredictionsHeader } from "../../../lib/formats";
import type { CompactConfig } from "../../../lib/models";

const versions = { dlfs: "0.1.0", bun: "1.4.5", backend: "cpu", libraries: { oneDNN: "3.1.0" } };

/** A detector of some thousand parameters. */
export const architecture: CompactConfig = {
  ...{ name: "compact", classes: 2, width: 4, depths: [1, 1, 1, 1], pyramidChannels: 8, headConvs: 1 },
  postprocess: { scoreThreshold: 0, topK: 50, maxDetections: 10 },
};

export const modelMetadata: ModelFileMetadata = {
  architecture,
  classes: ["red", "grün"],
  size: [64, 96],
  preprocessing: [
    { name: "resize", antialias: false },
    { name: "normalize", mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], fill: [123.675, 116.28, 103.53] },
  ],
  created: 1_700_000_000_123,
  versions,
  provenance: { iteration: "9000", data: "cells" },
  metrics: { AP: 0.42, APs: -1 },
  calibration: { method: "mse", images: 128, f8: { "": 2.5, "stem.0": 0.25 }, i8: { "": 2 } },
};

/** A picture of 48x32 with a gradient and a square. */
export function picture() {
  const [width, height] = [48, 32];
  const data = new Uint8Array(3 * width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const inside = x >= 10 && x < 26 && y >= 8 && y < 24;
      data.set(inside ? [220, 40, 30] : [4 * x, 6 * y, 90], 3 * (y * width + x));
    }
  }
  return { width, height, data };
}

export const predictionsHeader: PredictionsHeader = {
  ...{ classes: ["red", "grün"], model: "model.dlfs", iteration: 9000, scoreThreshold: 0.3 },
  ...{ created: 1_700_000_000_123, versions },
};

/** With and without an id, without detections, and failed. */
export const predictions: ImagePrediction[] = [
  {
    ...{ name: "val/1.jpg", imageId: 2 ** 40, width: 640, height: 480 },
    boxes: Float32Array.of(1, 2, 30.5, 40.25, 5, 6, 7, 8),
    scores: Float32Array.of(0.9, 0.31),
    labels: Uint32Array.of(1, 0),
  },
  {
    ...{ name: "val/zwei ü.jpg", width: 33, height: 201 },
    ...{ boxes: new Float32Array(0), scores: new Float32Array(0), labels: new Uint32Array(0) },
  },
  {
    ...{ name: "val/3.jpg", imageId: 0, width: 0, height: 0, error: "image: damaged: it ends after 300 bytes" },
    ...{ boxes: new Float32Array(0), scores: new Float32Array(0), labels: new Uint32Array(0) },
  },
];

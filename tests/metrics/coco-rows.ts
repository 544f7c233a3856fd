/** The rows in which record.py and record_random.py write objects and detections. */
import type { CocoDetection, CocoGroundTruth } from "../../lib/metrics/index";

/** From [image, category, x, y, w, h, area, iscrowd, id]. */
export function truthOf(row: readonly number[]): CocoGroundTruth {
  return {
    imageId: row[0]!,
    categoryId: row[1]!,
    bbox: row.slice(2, 6),
    area: row[6]!,
    iscrowd: row[7]!,
    id: row[8]!,
  };
}

/** From [image, category, x, y, w, h, score]. */
export function detectionOf(row: readonly number[]): CocoDetection {
  return { imageId: row[0]!, categoryId: row[1]!, bbox: row.slice(2, 6), score: row[6]! };
}

/** SHA-256 of the numbers' bytes, as the recorders' digest(). */
export function digest(values: Float64Array): string {
  return new Bun.CryptoHasher("sha256")
    .update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
    .digest("hex");
}

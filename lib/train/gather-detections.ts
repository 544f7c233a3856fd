import type { ProcessGroup } from "../distributed";
import type { Detection } from "./detect-step";
import type { ImageDetections } from "./evaluator";

/** Numbers of an image and of a detection. */
const IMAGE = 2;
const DETECTION = 6;

/**
 * All ranks' detections, on all of them, by ascending image id: what one rank would have found on all images. Numbers keep their
 * bytes.
 *
 * @param nameOf an image's file name
 */
export async function gatherDetections(
  group: ProcessGroup,
  own: readonly ImageDetections[],
  nameOf: (imageId: number) => string,
): Promise<ImageDetections[]> {
  const parts = await group.exchange("detections", encode(own));
  return parts.flatMap((bytes) => decode(bytes, nameOf)).sort((a, b) => a.imageId - b.imageId);
}

/** (image id, number of detections), then of each its box, score and label. */
function encode(images: readonly ImageDetections[]): Uint8Array {
  const count = images.reduce((sum, { detections }) => sum + IMAGE + DETECTION * detections.length, 0);
  const values = new Float64Array(count);
  let at = 0;
  for (const { imageId, detections } of images) {
    values.set([imageId, detections.length], at);
    at += IMAGE;
    for (const { box, score, label } of detections) {
      values.set([...box, score, label], at);
      at += DETECTION;
    }
  }
  return new Uint8Array(values.buffer);
}

function decode(bytes: Uint8Array, nameOf: (imageId: number) => string): ImageDetections[] {
  const values = new Float64Array(bytes.slice().buffer); // aligned
  const images: ImageDetections[] = [];
  for (let at = 0; at < values.length; ) {
    const [imageId, count] = values.subarray(at, at + IMAGE) as unknown as [number, number];
    at += IMAGE;
    const detections = Array.from({ length: count }, (_, i): Detection => {
      const from = at + DETECTION * i;
      const box = [...values.subarray(from, from + 4)] as Detection["box"];
      return { box, score: values[from + 4]!, label: values[from + 5]! };
    });
    at += DETECTION * count;
    images.push({ imageId, fileName: nameOf(imageId), detections });
  }
  return images;
}

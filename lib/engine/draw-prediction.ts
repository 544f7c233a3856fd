/** Pictures of images with what was found on them. */
import type { Pixels } from "../data";
import type { ImagePrediction } from "../formats";
import { classColor, drawTag, type RgbImage, strokeRect } from "../monitor";
import type { Engine } from "./engine";

/** A picture with boxes, classes and scores on it, as a JPEG. `content`: the image's file, or its pixels, which are drawn on. */
export function drawPrediction(
  { codec, classes }: Pick<Engine, "codec" | "classes">,
  content: Uint8Array | Pixels,
  prediction: ImagePrediction,
): Uint8Array {
  const image: RgbImage = content instanceof Uint8Array ? codec.decode(content) : content;
  const { boxes, scores, labels } = prediction;
  const stroke = Math.max(1, Math.round(Math.max(image.width, image.height) / 400));
  // The best are drawn last, on top.
  for (let i = scores.length - 1; i >= 0; i--) {
    const [x1, y1, x2, y2] = boxes.subarray(4 * i, 4 * i + 4) as unknown as [number, number, number, number];
    const label = labels[i] as number;
    const color = classColor(label);
    strokeRect(image, { x: x1, y: y1, width: x2 - x1, height: y2 - y1 }, color, { thickness: stroke });
    drawTag(image, `${classes[label] ?? label} ${(scores[i] as number).toFixed(2)}`, x1, y1, color);
  }
  return codec.encode(image);
}

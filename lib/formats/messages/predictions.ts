/** What was found on an image (schemas/predictions.fbs). */
import { Builder } from "flatbuffers";
import { ImagePredictions } from "../generated/dlfs/predictions/image-predictions";
import type { IndexReader } from "../index-reader";
import { type MessageCodec, MessageReader, optionalText } from "./codec";

/** What was found on an image. */
export interface ImagePrediction {
  /** By what the image is known: its key in the source. */
  name: string;
  /** Its id in the data set, where it is of one. */
  imageId?: number;
  /** In pixels, upright; 0 where that is not known. */
  width: number;
  height: number;
  /** (n, 4): x1, y1, x2, y2 in pixels of the image, best first. */
  boxes: Float32Array;
  scores: Float32Array;
  /** Class indices. */
  labels: Uint32Array;
  /** Why nothing was detected. */
  error?: string;
  /** With an error: the image could not be read, so that another try may find it; false, or missing, where it is damaged. */
  unreadable?: boolean;
  /** Of a video: which of its frames, from 0. */
  frame?: number;
  /** Of a video: seconds from its start. */
  time?: number;
}

/** A prediction as a part of a message; its place. */
export function encodePredictionTable(b: Builder, prediction: ImagePrediction): number {
  const { name, imageId, width, height, boxes, scores, labels, error, unreadable, frame, time } = prediction;
  const text = b.createString(name);
  const boxesAt = ImagePredictions.createBoxesVector(b, boxes);
  const scoresAt = ImagePredictions.createScoresVector(b, scores);
  const labelsAt = ImagePredictions.createLabelsVector(b, labels);
  const errorAt = optionalText(b, error);
  ImagePredictions.startImagePredictions(b);
  ImagePredictions.addName(b, text);
  if (imageId !== undefined) ImagePredictions.addImageId(b, BigInt(imageId));
  ImagePredictions.addWidth(b, width);
  ImagePredictions.addHeight(b, height);
  ImagePredictions.addBoxes(b, boxesAt);
  ImagePredictions.addScores(b, scoresAt);
  ImagePredictions.addLabels(b, labelsAt);
  if (error !== undefined) ImagePredictions.addError(b, errorAt);
  if (unreadable) ImagePredictions.addUnreadable(b, true);
  if (frame !== undefined) ImagePredictions.addFrame(b, BigInt(frame));
  if (time !== undefined) ImagePredictions.addTime(b, time);
  return ImagePredictions.endImagePredictions(b);
}

/** The reader's errors name fields with `place` before them. */
export function decodePredictionTable(
  reader: IndexReader & Pick<MessageReader<ImagePredictions>, "numbers" | "expectLength">,
  table: ImagePredictions,
  place = "",
): ImagePrediction {
  const at = (field: string) => `${place}${field}`;
  const imageId = reader.field(at("image_id"), () => table.imageId());
  const error = reader.field(at("error"), () => table.error());
  const unreadable = reader.field(at("unreadable"), () => table.unreadable());
  const frame = reader.field(at("frame"), () => table.frame());
  const time = reader.field(at("time"), () => table.time());
  const boxes = reader.numbers(at("boxes"), () => table.boxesArray()) ?? new Float32Array(0);
  const scores = reader.numbers(at("scores"), () => table.scoresArray()) ?? new Float32Array(0);
  const labels = reader.numbers(at("labels"), () => table.labelsArray()) ?? new Uint32Array(0);
  const why = `${scores.length} scores`;
  reader.expectLength(at("boxes"), boxes.length, 4 * scores.length, why);
  reader.expectLength(at("labels"), labels.length, scores.length, why);
  return {
    name: reader.required(at("name"), () => table.name()),
    width: reader.field(at("width"), () => table.width()),
    height: reader.field(at("height"), () => table.height()),
    ...(imageId !== null && { imageId: reader.count(at("image_id"), () => imageId) }),
    ...{ boxes, scores, labels },
    ...(error !== null && { error }),
    ...(unreadable && { unreadable }),
    ...(frame !== null && { frame: reader.count(at("frame"), () => frame) }),
    ...(time !== null && { time }),
  };
}

export const predictionMessages: MessageCodec<ImagePrediction> = {
  kind: "DLPI",

  encode(prediction) {
    const b = new Builder(128 + 24 * prediction.scores.length);
    b.forceDefaults(true);
    b.finish(encodePredictionTable(b, prediction), this.kind);
    return b.asUint8Array();
  },

  decode(message, source) {
    const reader = new MessageReader(message, source, this.kind, "prediction", ImagePredictions);
    return decodePredictionTable(reader, reader.root);
  },
};

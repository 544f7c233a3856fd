/** What a model in training makes of one image, beside what is known of it (schemas/sample.fbs). */
import { Builder } from "flatbuffers";
import { check } from "../../native/error";
import { Sample } from "../generated/sample_generated";
import { type MessageCodec, MessageReader, optionalText } from "./codec";
import { decodePredictionTable, encodePredictionTable, type ImagePrediction } from "./predictions";

/** The boxes of an image as the data set has them. */
export interface GroundTruth {
  /** (n, 4): x1, y1, x2, y2 in pixels of the image. */
  boxes: Float64Array;
  /** Class indices. */
  labels: Uint32Array;
  /** The ids by which the data set knows the boxes. */
  ids: Float64Array;
  /** (n): 1 for boxes around groups. */
  crowd: Uint8Array;
}

export interface SampleMessage {
  /** Optimizer steps that the model had been trained for. */
  iteration: number;
  /** Milliseconds since 1970-01-01 UTC. */
  time: number;
  split?: string;
  /** The image and what was found; boxes are in pixels of the image, not of the thumbnail. */
  predictions: ImagePrediction;
  /** A JPEG of the image, smaller; left out where readers have it by its name. */
  thumbnail?: Uint8Array;
  truth: GroundTruth;
  /** The loss of the image where it is known. */
  loss?: number;
}

export const sampleMessages: MessageCodec<SampleMessage> = {
  kind: "DLSM",

  encode({ iteration, time, split, predictions, thumbnail, truth, loss }) {
    const { boxes, labels, ids, crowd } = truth;
    const n = labels.length;
    check(
      boxes.length === 4 * n && ids.length === n && crowd.length === n,
      `sample ${predictions.name}`,
      () => `truth: ${n} labels need ${4 * n} numbers of boxes, ${n} ids and crowd flags`,
    );
    const b = new Builder(512 + (thumbnail?.length ?? 0) + 24 * predictions.scores.length + 48 * n);
    b.forceDefaults(true);
    const thumbnailAt = thumbnail === undefined ? 0 : Sample.createThumbnailVector(b, thumbnail);
    const boxesAt = Sample.createBoxesVector(b, boxes);
    const labelsAt = Sample.createLabelsVector(b, labels);
    const idsAt = Sample.createIdsVector(b, Array.from(ids, BigInt));
    const crowdAt = Sample.createCrowdVector(
      b,
      Array.from(crowd, (flag) => flag !== 0),
    );
    const splitAt = optionalText(b, split);
    const predictionsAt = encodePredictionTable(b, predictions);
    Sample.startSample(b);
    Sample.addIteration(b, BigInt(iteration));
    Sample.addTime(b, BigInt(time));
    if (split !== undefined) Sample.addSplit(b, splitAt);
    Sample.addPredictions(b, predictionsAt);
    if (thumbnail !== undefined) Sample.addThumbnail(b, thumbnailAt);
    Sample.addBoxes(b, boxesAt);
    Sample.addLabels(b, labelsAt);
    Sample.addIds(b, idsAt);
    Sample.addCrowd(b, crowdAt);
    if (loss !== undefined) Sample.addLoss(b, loss);
    b.finish(Sample.endSample(b), this.kind);
    return b.asUint8Array();
  },

  decode(message, source) {
    const reader = new MessageReader(message, source, this.kind, "sample", Sample);
    const { root } = reader;
    const split = reader.field("split", () => root.split());
    const loss = reader.field("loss", () => root.loss());
    const thumbnail = reader.numbers("thumbnail", () => root.thumbnailArray());
    const predictions = reader.required("predictions", () => root.predictions());
    const boxes = reader.numbers("boxes", () => root.boxesArray()) ?? new Float64Array(0);
    const labels = reader.numbers("labels", () => root.labelsArray()) ?? new Uint32Array(0);
    const crowd = reader.numbers("crowd", () => root.crowdArray()) ?? new Int8Array(0);
    const idCount = reader.field("ids", () => root.idsLength());
    const why = `${labels.length} labels`;
    reader.expectLength("boxes", boxes.length, 4 * labels.length, why);
    reader.expectLength("ids", idCount, labels.length, why);
    reader.expectLength("crowd", crowd.length, labels.length, why);
    const ids = Float64Array.from({ length: idCount }, (_, i) =>
      reader.count(`ids[${i}]`, () => root.ids(i) as bigint),
    );
    return {
      iteration: reader.count("iteration", () => root.iteration()),
      time: reader.count("time", () => root.time()),
      ...(split !== null && { split }),
      predictions: decodePredictionTable(reader, predictions, "predictions."),
      ...(thumbnail && { thumbnail }),
      truth: { boxes, labels, ids, crowd: Uint8Array.from(crowd, Number) },
      ...(loss !== null && { loss }),
    };
  },
};

/** Figures of a training at one iteration (schemas/metrics.fbs). */
import { Builder } from "flatbuffers";
import * as fb from "../generated/metrics_generated";
import { decodeNumber, encodeNumbers } from "../index-tables";
import { type MessageCodec, MessageReader } from "./codec";

/** One class in an evaluation. */
export interface ClassMetrics {
  category: string;
  /** Boxes of the class, crowds left out. */
  objects: number;
  /** 0 to 1; NaN where the class has no boxes. */
  ap: number;
  ap50: number;
  /** Precision at the recalls 0, 0.01 ... 1 with an IoU of 0.5; empty where it is not known. */
  precision: Float32Array;
}

export interface MetricsMessage {
  what: "train" | "epoch" | "evaluation" | (string & {});
  /** Optimizer steps done, from 1. */
  iteration: number;
  /** Passes over the data begun, from 0. */
  epoch: number;
  /** Milliseconds since 1970-01-01 UTC. */
  time: number;
  values: Readonly<Record<string, number>>;
  /** Of an evaluation. */
  classes?: readonly ClassMetrics[];
  /**
   * (classes + 1, classes + 1): rows are true classes, columns detected ones, the last of each stands for none; of detections with a
   * score above 0.25, at an IoU above 0.5. Left out of more than 255 classes.
   */
  confusion?: Uint32Array;
}

export const metricsMessages: MessageCodec<MetricsMessage> = {
  kind: "DLME",

  encode({ what, iteration, epoch, time, values, classes, confusion }) {
    const b = new Builder(512);
    b.forceDefaults(true);
    const whatAt = b.createString(what);
    const valuesAt = fb.Metrics.createValuesVector(b, encodeNumbers(b, values));
    const classesAt = classes
      ? fb.Metrics.createClassesVector(
          b,
          classes.map((one) => encodeClass(b, one)),
        )
      : 0;
    const confusionAt = confusion ? fb.Metrics.createConfusionVector(b, confusion) : 0;
    fb.Metrics.startMetrics(b);
    fb.Metrics.addWhat(b, whatAt);
    fb.Metrics.addIteration(b, BigInt(iteration));
    fb.Metrics.addEpoch(b, epoch);
    fb.Metrics.addTime(b, BigInt(time));
    fb.Metrics.addValues(b, valuesAt);
    if (classes) fb.Metrics.addClasses(b, classesAt);
    if (confusion) fb.Metrics.addConfusion(b, confusionAt);
    b.finish(fb.Metrics.endMetrics(b), this.kind);
    return b.asUint8Array();
  },

  decode(message, source) {
    const reader = new MessageReader(message, source, this.kind, "message of metrics", fb.Metrics);
    const { root } = reader;
    const values = reader.list(
      "values",
      () => root.valuesLength(),
      (i) => root.values(i),
      (entry, name) => decodeNumber(reader, entry, name),
    );
    const classes = reader.list(
      "classes",
      () => root.classesLength(),
      (i) => root.classes(i),
      (entry, name) => decodeClass(reader, entry, name),
    );
    const confusion = reader.numbers("confusion", () => root.confusionArray());
    if (confusion) {
      reader.expectLength("confusion", confusion.length, (classes.length + 1) ** 2, `${classes.length} classes`);
    }
    return {
      what: reader.required("what", () => root.what()),
      iteration: reader.count("iteration", () => root.iteration()),
      epoch: reader.field("epoch", () => root.epoch()),
      time: reader.count("time", () => root.time()),
      values: Object.fromEntries(values),
      ...(classes.length > 0 && { classes }),
      ...(confusion && { confusion }),
    };
  },
};

function encodeClass(b: Builder, { category, objects, ap, ap50, precision }: ClassMetrics): number {
  const [categoryAt, precisionAt] = [b.createString(category), fb.ClassResult.createPrecisionVector(b, precision)];
  return fb.ClassResult.createClassResult(b, categoryAt, objects, ap, ap50, precisionAt);
}

function decodeClass(reader: MessageReader<fb.Metrics>, entry: fb.ClassResult, place: string): ClassMetrics {
  return {
    category: reader.required(`${place}.category`, () => entry.category()),
    objects: reader.field(`${place}.objects`, () => entry.objects()),
    ap: reader.field(`${place}.ap`, () => entry.ap()),
    ap50: reader.field(`${place}.ap50`, () => entry.ap50()),
    precision: reader.numbers(`${place}.precision`, () => entry.precisionArray()) ?? new Float32Array(0),
  };
}

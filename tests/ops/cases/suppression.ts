/** Non-maximum suppression: hard, and soft (with decaying scores). */

import { constants } from "../../../lib/native";
import { outHandle } from "../../../lib/tensor";
import * as reference from "../reference/postprocess";
import type { Input, Numbers, OpCase } from "./case";

const f32 = { kind: "f32" } as const;
const i32 = { kind: "i32" } as const;
const fp32Only: Pick<OpCase, "dtypes"> = { dtypes: ["f32"] };

interface NmsOptions {
  n: number;
  k: number;
  maxOut: number;
  threshold: number;
  classes?: number;
  classAware?: boolean;
  /** Extent of the boxes: the smaller, the more overlap. */
  extent?: number;
  scores?: Input["values"];
  boxes?: Input["values"];
  labels?: Input["values"];
}

export function nms(name: string, options: NmsOptions): OpCase {
  const { n, k, maxOut, threshold, classes = 4, classAware = true, extent = 60 } = options;
  return {
    op: "nms",
    name,
    ...fp32Only,
    inputs: {
      boxes: { shape: [n, k, 4], ...f32, values: options.boxes ?? ((random, size) => random.boxes(size / 4, extent)) },
      scores: { shape: [n, k], ...f32, values: options.scores ?? ((random, size) => random.distinct(size, 0, 1)) },
      labels: {
        shape: [n, k],
        ...i32,
        values: options.labels ?? ((random, size) => random.integers(size, -1, classes)),
      },
    },
    outputs: { keep: { shape: [n, maxOut], ...i32 }, counts: { shape: [n], ...i32 } },
    prepare(c) {
      const bytes = outHandle();
      c.native.nmsWorkspace(c.device.handle, bytes.view, n, k);
      const scratch = c.workspace(bytes.value);
      const [keep, counts, boxes, scores, labels] = ["keep", "counts", "boxes", "scores", "labels"].map((operand) =>
        c.address(operand),
      );
      return () =>
        void c.native.nms(
          c.stream,
          keep!,
          counts!,
          boxes!,
          scores!,
          labels!,
          scratch,
          n,
          k,
          maxOut,
          threshold,
          classAware ? 1 : 0,
        );
    },
    reference({ boxes, scores, labels }) {
      const keep = new Int32Array(n * maxOut).fill(-1);
      const counts = new Int32Array(n);
      const rowOf = (values: Numbers, row: number, size: number) =>
        Array.from(values).slice(row * size, (row + 1) * size);
      for (let row = 0; row < n; ++row) {
        const kept = reference.nms(
          rowOf(boxes!, row, k * 4),
          rowOf(scores!, row, k),
          rowOf(labels!, row, k),
          threshold,
          classAware,
          maxOut,
        );
        keep.set(kept, row * maxOut);
        counts[row] = kept.length;
      }
      return { keep, counts };
    },
  };
}

interface SoftNmsOptions extends Omit<NmsOptions, "threshold"> {
  kind?: "linear" | "gaussian";
  iouThreshold?: number;
  sigma?: number;
  minScore?: number;
}

export function softNms(name: string, options: SoftNmsOptions): OpCase {
  const { n, k, maxOut, kind = "gaussian", iouThreshold = 0.3, sigma = 0.5, minScore = 0.001 } = options;
  const { classAware = true } = options;
  const { inputs, outputs } = nms(name, { ...options, threshold: iouThreshold });
  return {
    op: "soft_nms",
    name: `${kind}: ${name}`,
    ...fp32Only,
    inputs,
    // a few roundings for each time that a score was decayed
    outputs: { ...outputs, keepScores: { shape: [n, maxOut], ...f32, tolerance: { rtol: 2e-5, atol: 0 } } },
    prepare(c) {
      const bytes = outHandle();
      c.native.softNmsWorkspace(c.device.handle, bytes.view, n, k);
      const scratch = c.workspace(bytes.value);
      const [keep, counts, keepScores, boxes, scores, labels] = [
        "keep",
        "counts",
        "keepScores",
        "boxes",
        "scores",
        "labels",
      ].map((operand) => c.address(operand));
      const method = kind === "linear" ? constants.SOFT_NMS_LINEAR : constants.SOFT_NMS_GAUSSIAN;
      const rules = [method, iouThreshold, sigma, minScore, classAware ? 1 : 0] as const;
      return () =>
        void c.native.softNms(
          c.stream,
          keep!,
          counts!,
          keepScores!,
          boxes!,
          scores!,
          labels!,
          scratch,
          n,
          k,
          maxOut,
          ...rules,
        );
    },
    reference({ boxes, scores, labels }) {
      const [keep, keepScores] = [new Int32Array(n * maxOut).fill(-1), new Float64Array(n * maxOut)];
      const counts = new Int32Array(n);
      const rules = { kind, iouThreshold, sigma, minScore, classAware, most: maxOut };
      for (let row = 0; row < n; ++row) {
        const own = (values: Numbers, size: number) => Array.from(values).slice(row * size, (row + 1) * size);
        const taken = reference.softNms(own(boxes!, k * 4), own(scores!, k), own(labels!, k), rules);
        keep.set(taken.keep, row * maxOut);
        keepScores.set(taken.scores, row * maxOut);
        counts[row] = taken.keep.length;
      }
      return { keep, counts, keepScores };
    },
  };
}

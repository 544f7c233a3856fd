/** Losses of class logits, with their gradients. */
import { outHandle } from "../../../lib/tensor";
import * as reference from "../reference/losses";
import type { Arrays, OpCase } from "./case";
import { LevelMaps } from "./level-maps";
import {
  drawMatches,
  f32,
  foregroundOf,
  gradScaleOf,
  i32,
  type LossOptions,
  lossTolerance,
  normalizationCode,
  sumWorkspace,
  timesOf,
} from "./loss-inputs";

export interface ClassLossOptions extends LossOptions {
  classes: number;
  /** Of the logits; default 3. */
  deviation?: number;
}

export function focalLoss(name: string, options: ClassLossOptions & { alpha?: number; gamma?: number }): OpCase {
  const { n, anchors, maxBoxes, classes, alpha = 0.25, gamma = 2, gradFactor = 1, deviation = 3 } = options;
  const { lossOnly = false, normalization = "image" } = options;
  const shared = { n, anchors, classes, maxBoxes, alpha, gamma, normalization };
  const maps = new LevelMaps(n, anchors, classes, options);
  const compute = ({ logits, matches, labels }: Arrays) =>
    reference.focalLoss({ logits: maps.toRows(logits!), matches: matches!, labels: labels!, ...shared });
  return {
    op: "focal_loss",
    name,
    inputs: {
      logits: maps.input((random, size) => random.normal(size, -1, deviation)),
      matches: drawMatches(options),
      labels: { shape: [n, maxBoxes], ...i32, values: (random, size) => random.integers(size, 0, classes) },
      foreground: foregroundOf(options),
      ...gradScaleOf(options),
    },
    outputs: {
      loss: { shape: [1], ...f32, tolerance: lossTolerance },
      ...(!lossOnly && { dlogits: { shape: maps.shape } }),
    },
    prepare(c) {
      const scratch = sumWorkspace(c, n, anchors, classes);
      const loss = c.address("loss");
      const [dlogits, { at: logits, cells, pitches }] = [maps.arrays(c, "dlogits"), maps.arrays(c, "logits")];
      const [matches, labels, foreground] = ["matches", "labels", "foreground"].map((operand) => c.address(operand));
      return () =>
        void c.native.focalLoss(
          c.stream,
          loss!,
          dlogits.at,
          logits,
          matches!,
          labels!,
          foreground!,
          c.address("gradScale"),
          scratch,
          cells,
          pitches,
          cells.length,
          n,
          maps.perCell,
          classes,
          maxBoxes,
          c.dtype,
          alpha,
          gamma,
          normalizationCode(normalization),
          gradFactor,
        );
    },
    reference(inputs) {
      const { loss, dlogits } = compute(inputs);
      return { loss: [loss], dlogits: maps.toMaps(dlogits.map((value) => value * timesOf(options))) };
    },
    gradients: lossOnly
      ? undefined
      : [{ output: "dlogits", of: "logits", loss: (inputs) => timesOf(options) * compute(inputs).loss }],
  };
}

export interface CrossEntropyOptions extends ClassLossOptions {
  /** Below 0: every anchor counts. */
  negativeRatio: number;
  /** Logits are even numbers, so that many losses are equal: then the choice of negatives has no derivative. */
  tied?: boolean;
}

/** `classes` counts the background. */
export function crossEntropyLoss(name: string, options: CrossEntropyOptions): OpCase {
  const { n, anchors, maxBoxes, classes, negativeRatio, gradFactor = 1, deviation = 2, tied = false } = options;
  const { lossOnly = false, normalization = "batch" } = options;
  const shared = { n, anchors, classes, maxBoxes, negativeRatio, normalization };
  const compute = ({ logits, matches, labels }: Arrays) =>
    reference.crossEntropyLoss({ logits: logits!, matches: matches!, labels: labels!, ...shared });
  return {
    op: "cross_entropy_loss",
    name,
    inputs: {
      logits: {
        shape: [n, anchors, classes],
        values(random, size) {
          const values = random.normal(size, 0, deviation);
          return tied ? values.map((value) => 2 * Math.round(value / 2)) : values;
        },
      },
      matches: drawMatches(options),
      labels: { shape: [n, maxBoxes], ...i32, values: (random, size) => random.integers(size, 0, classes - 1) },
      foreground: foregroundOf(options),
      ...gradScaleOf(options),
    },
    outputs: {
      loss: { shape: [1], ...f32, tolerance: lossTolerance },
      ...(!lossOnly && { dlogits: { shape: [n, anchors, classes] } }),
    },
    prepare(c) {
      const bytes = outHandle();
      c.native.crossEntropyLossWorkspace(c.device.handle, bytes.view, n, anchors, negativeRatio);
      const scratch = c.workspace(bytes.value);
      const [loss, dlogits, logits] = ["loss", "dlogits", "logits"].map((operand) => c.address(operand));
      const [matches, labels, foreground] = ["matches", "labels", "foreground"].map((operand) => c.address(operand));
      return () =>
        void c.native.crossEntropyLoss(
          c.stream,
          loss!,
          dlogits!,
          logits!,
          matches!,
          labels!,
          foreground!,
          c.address("gradScale"),
          scratch,
          n,
          anchors,
          classes,
          maxBoxes,
          c.dtype,
          negativeRatio,
          normalizationCode(normalization),
          gradFactor,
        );
    },
    reference(inputs) {
      const { loss, dlogits } = compute(inputs);
      return { loss: [loss], dlogits: dlogits.map((value) => value * timesOf(options)) };
    },
    gradients:
      lossOnly || tied
        ? undefined
        : [{ output: "dlogits", of: "logits", loss: (inputs) => timesOf(options) * compute(inputs).loss }],
  };
}

/** Losses of the foreground anchors' boxes, with their gradients. */
import { constants } from "../../../lib/native";
import * as boxes from "../reference/boxes";
import * as reference from "../reference/losses";
import { boxesOf, unit, type Weights } from "./boxes";
import type { Arrays, Input, OpCase } from "./case";
import { LevelMaps } from "./level-maps";
import {
  drawMatches,
  f32,
  foregroundOf,
  gradScaleOf,
  type LossOptions,
  lossTolerance,
  normalizationCode,
  sumWorkspace,
  timesOf,
} from "./loss-inputs";

const kindCodes: Record<reference.BoxLossKind, number> = {
  l1: constants.BOX_LOSS_SMOOTH_L1,
  smooth_l1: constants.BOX_LOSS_SMOOTH_L1,
  iou: constants.BOX_LOSS_IOU,
  giou: constants.BOX_LOSS_GIOU,
  diou: constants.BOX_LOSS_DIOU,
  ciou: constants.BOX_LOSS_CIOU,
};

export interface BoxLossOptions extends LossOptions {
  kind?: reference.BoxLossKind;
  coder?: reference.Coder;
  weights?: Weights;
  beta?: number;
}

/** Predictions scattered around the matched boxes' deltas, so that most predicted boxes meet their own; all have extent. */
function drawDeltas({ n, anchors, maxBoxes, coder, weights = unit, ...options }: BoxLossOptions): Input {
  return new LevelMaps(n, anchors, 4, options).input((random, size, { anchors: grid, matches, boxes: truth }) => {
    const values = random.normal(size, 0, 0.4);
    if (!grid?.length || !truth?.length) return values; // a benchmark's, drawn on the device
    for (let row = 0; row < n * anchors; ++row) {
      const match = matches![row]!;
      if (match < 0) continue;
      const anchor = boxes.box(grid, row % anchors);
      const box = boxes.box(truth, Math.floor(row / anchors) * maxBoxes + match);
      const encoded = coder === "linear" ? boxes.encodeLinear(box, anchor) : boxes.encode(box, anchor, weights);
      for (let i = 0; i < 4; ++i) {
        const scattered = encoded[i]! + values[row * 4 + i]! * (coder === "linear" ? 1 : weights[i]!);
        values[row * 4 + i] = coder === "linear" ? Math.max(0.01, scattered) : scattered;
      }
    }
    return values;
  });
}

export function boxLoss(name: string, options: BoxLossOptions): OpCase {
  const { n, anchors, maxBoxes, kind = "l1", coder = "centre", weights = unit, beta = 0, gradFactor = 1 } = options;
  const { lossOnly = false, normalization = "image" } = options;
  const shared = { n, maxBoxes, kind, coder, weights, beta, normalization };
  const maps = new LevelMaps(n, anchors, 4, options);
  const compute = ({ deltas, anchors: grid, matches, boxes: truth }: Arrays) =>
    reference.boxLoss({ deltas: maps.toRows(deltas!), anchors: grid!, matches: matches!, boxes: truth!, ...shared });
  const ofDeltas = kind === "l1" || kind === "smooth_l1";
  return {
    op: "box_loss",
    name,
    inputs: {
      anchors: { shape: [anchors, 4], ...f32, values: boxesOf() },
      matches: drawMatches(options),
      boxes: { shape: [n, maxBoxes, 4], ...f32, values: boxesOf() },
      foreground: foregroundOf(options),
      ...gradScaleOf(options),
      deltas: drawDeltas(options),
    },
    outputs: {
      loss: { shape: [1], ...f32, tolerance: lossTolerance },
      // Sides of a pixel or more are differences of coordinates up to 100, which carry errors of 2^-24 of these.
      ...(!lossOnly && { ddeltas: { shape: maps.shape, terms: ofDeltas ? 1 : 100 } }),
    },
    prepare(c) {
      const scratch = sumWorkspace(c, n, anchors, 1);
      const loss = c.address("loss");
      const [ddeltas, { at: deltas, cells, pitches }] = [maps.arrays(c, "ddeltas"), maps.arrays(c, "deltas")];
      const [grid, matches, truth] = ["anchors", "matches", "boxes"].map((operand) => c.address(operand));
      const foreground = c.address("foreground");
      const code = coder === "linear" ? constants.CODER_LINEAR : constants.CODER_CENTRE;
      return () =>
        void c.native.boxLoss(
          c.stream,
          loss!,
          ddeltas.at,
          deltas,
          grid!,
          matches!,
          truth!,
          foreground,
          c.address("gradScale"),
          scratch,
          cells,
          pitches,
          cells.length,
          n,
          maps.perCell,
          maxBoxes,
          c.dtype,
          kindCodes[kind],
          code,
          ...weights,
          beta,
          normalizationCode(normalization),
          gradFactor,
        );
    },
    reference(inputs) {
      const { loss, ddeltas } = compute(inputs);
      return { loss: [loss], ddeltas: maps.toMaps(ddeltas.map((value) => value * timesOf(options))) };
    },
    // CIoU's gradient is that of alpha held fixed, which the reference knows.
    gradients:
      lossOnly || kind === "ciou"
        ? undefined
        : [{ output: "ddeltas", of: "deltas", loss: (inputs) => timesOf(options) * compute(inputs).loss }],
  };
}

export function centernessLoss(name: string, options: LossOptions): OpCase {
  const { n, anchors, maxBoxes, gradFactor = 1, lossOnly = false, normalization = "batch" } = options;
  const maps = new LevelMaps(n, anchors, 1, options);
  const compute = ({ logits, anchors: grid, matches, boxes: truth }: Arrays) =>
    reference.centernessLoss({
      logits: maps.toRows(logits!),
      anchors: grid!,
      matches: matches!,
      boxes: truth!,
      n,
      maxBoxes,
      normalization,
    });
  return {
    op: "centerness_loss",
    name,
    inputs: {
      logits: maps.input((random, size) => random.normal(size, 0, 4)),
      anchors: { shape: [anchors, 4], ...f32, values: boxesOf() },
      matches: drawMatches(options),
      // Large, so that many centres lie inside; some do not.
      boxes: { shape: [n, maxBoxes, 4], ...f32, values: (random, size) => random.boxes(size / 4, 200) },
      foreground: foregroundOf(options),
      ...gradScaleOf(options),
    },
    outputs: {
      loss: { shape: [1], ...f32, tolerance: lossTolerance },
      // Targets are roots of differences of coordinates up to 200.
      ...(!lossOnly && { dlogits: { shape: maps.shape, terms: 100 } }),
    },
    prepare(c) {
      const scratch = sumWorkspace(c, n, anchors, 1);
      const loss = c.address("loss");
      const [dlogits, { at: logits, cells, pitches }] = [maps.arrays(c, "dlogits"), maps.arrays(c, "logits")];
      const [grid, matches, truth] = ["anchors", "matches", "boxes"].map((operand) => c.address(operand));
      const foreground = c.address("foreground");
      return () =>
        void c.native.centernessLoss(
          c.stream,
          loss!,
          dlogits.at,
          logits,
          grid!,
          matches!,
          truth!,
          foreground,
          c.address("gradScale"),
          scratch,
          cells,
          pitches,
          cells.length,
          n,
          maps.perCell,
          maxBoxes,
          c.dtype,
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

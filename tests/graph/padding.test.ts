/** Convolutions padded to more channels compute what they do without, for all that reads level maps. */
import { describe, expect, test } from "bun:test";
import { boxLoss, centernessLoss, focalLoss, postprocessPoints } from "../../lib/detection";
import { conv2d, type Program, paddedChannels, relu, useParameter, type Value } from "../../lib/graph";
import type { Device } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { Random } from "../support/random";
import { type Given, kinds, numbers, parameter, program } from "./support";

const plain = testDevice({ padChannels: false });
const padding = testDevice({ padChannels: true });

const [n, perCell, classes, channels] = [2, 3, 5, 8];
const grids = [
  [4, 5],
  [2, 3],
] as const;
const anchors = grids.reduce((sum, [h, w]) => sum + h * w * perCell, 0);
const random = new Random("padding");
const matches = Array.from({ length: n * anchors }, (_, i) => (i % 7 === 0 ? 0 : i % 5 === 0 ? -2 : -1));
const foreground = [0, 1].map(
  (image) => matches.slice(image * anchors, (image + 1) * anchors).filter((match) => match >= 0).length,
);
const inputs: Record<string, Given> = {
  ...Object.fromEntries(
    grids.map(([h, w], level) => {
      const values = random.normal(n * h * w * channels);
      return [`x${level}`, { shape: [n, h, w, channels], values }];
    }),
  ),
  anchors: { shape: [anchors, 4], values: random.boxes(anchors, 40) },
  boxes: { shape: [n, 1, 4], values: [3, 4, 30, 35, 10, 2, 28, 20] },
  labels: { shape: [n, 1], values: [1, 4], dtype: "i32" },
  counts: { shape: [n], values: [1, 1], dtype: "i32" },
  matches: { shape: [n, anchors], values: matches, dtype: "i32" },
  foreground: { shape: [n], values: foreground, dtype: "i32" },
  sizes: { shape: [n, 2], values: [40, 40, 40, 40] },
};

type Values = Record<string, Value>;
type Owned = ReturnType<typeof parameter>;

/** Heads of all levels with the same weights. */
function heads(v: Values, weights: Record<string, Owned>): Record<"logits" | "deltas" | "centerness", Value[]> {
  const apply = (name: string) =>
    grids.map((_, level) =>
      conv2d(v[`x${level}`]!, useParameter(weights[`${name}.w`]!), useParameter(weights[`${name}.b`]!), { padding: 1 }),
    );
  return { logits: apply("logits"), deltas: apply("deltas").map(relu), centerness: apply("centerness") };
}

/** Runs a program on a device; what it gives and the gradients of the weights. */
function run(
  device: Device,
  forward: (v: Values, weights: Record<string, Owned>) => Record<string, Value>,
  training: boolean,
): { results: Record<string, number[]>; gradients: Record<string, number[]>; made: Pick<Program, "calls"> } {
  const columns = { logits: perCell * classes, deltas: perCell * 4, centerness: perCell };
  const weights: Record<string, Owned> = {};
  for (const [name, k] of Object.entries(columns)) {
    weights[`${name}.w`] = parameter(device, { shape: [k, 3, 3, channels] }, `${name}.w`);
    weights[`${name}.b`] = parameter(device, { shape: [k] }, `${name}.b`);
  }
  const options = training ? ({ training, seeds: "sum" } as const) : {};
  const made = program(device, inputs, (v) => forward(v, weights), options);
  made.run();
  const results = Object.fromEntries(Object.entries(made.results).map(([name, tensor]) => [name, numbers(tensor)]));
  const gradients = Object.fromEntries(
    Object.entries(weights).map(([name, { grad }]) => [name, training ? numbers(grad!) : []]),
  );
  made.dispose();
  for (const weight of Object.values(weights)) weight[Symbol.dispose]();
  return { results, gradients, made };
}

const losses = (v: Values, weights: Record<string, Owned>) => {
  const { logits, deltas, centerness } = heads(v, weights);
  const matched = { matches: v.matches!, foreground: v.foreground! };
  const targets = { boxes: v.boxes!, labels: v.labels!, counts: v.counts! };
  return {
    classification: focalLoss(logits, matched, targets),
    boxRegression: boxLoss(deltas, v.anchors!, matched, targets, { kind: "giou", coder: "linear" }),
    centerness: centernessLoss(centerness, v.anchors!, matched, targets),
  };
};

const detect = (v: Values, weights: Record<string, Owned>) => {
  const options = { scoreThreshold: 0.05, topK: 30, nmsThreshold: 0.6, maxDetections: 20 };
  return postprocessPoints({ ...heads(v, weights), anchors: v.anchors!, imageSizes: v.sizes! }, options);
};

/** Channels of the results of convolutions. */
const widths = ({ calls }: Pick<Program, "calls">) =>
  new Set(calls.filter(({ kind }) => kind === "conv2d").map(({ outputs }) => outputs[0]!.shape.at(-1)));

describe("padded channels", () => {
  test("losses and gradients are those without", () => {
    const [own, expected] = [run(padding, losses, true), run(plain, losses, true)];
    for (const [name, values] of Object.entries(expected.results)) {
      expect(values[0]).toBeGreaterThan(0.01);
      expectClose(own.results[name]!, values, { rtol: 1e-5, atol: 1e-7 }, name);
    }
    for (const [name, values] of Object.entries(expected.gradients)) {
      expect(values.some((value) => value !== 0)).toBe(true);
      expectClose(own.gradients[name]!, values, { rtol: 1e-4, atol: 1e-6 }, name);
    }
    expect(widths(expected.made)).toEqual(new Set([15, 12, 3]));
    expect(widths(own.made)).toEqual(new Set([16, 8]));
    // once for each weight and bias, not for each level
    expect(kinds(own.made as Program).filter((kind) => kind === "pad_rows").length).toBe(2 * 6);
  });

  test("detections are those without, and the weights are padded ahead of the runs", () => {
    const [own, expected] = [run(padding, detect, false), run(plain, detect, false)];
    expect(expected.results.counts!.every((count) => count > 3)).toBe(true);
    expect(own.results.counts).toEqual(expected.results.counts!);
    expectClose(own.results.detections!, expected.results.detections!, { rtol: 1e-4, atol: 1e-4 });
    expect(widths(own.made)).toEqual(new Set([16, 8]));
    expect(kinds(own.made as Program).some((kind) => kind.startsWith("pad_rows"))).toBe(false);
  });

  test("a map that something else reads, or that is a result, keeps its channels", () => {
    const both = (v: Values, weights: Record<string, Owned>) => {
      const { logits, deltas, centerness } = heads(v, weights);
      const matched = { matches: v.matches!, foreground: v.foreground! };
      const targets = { boxes: v.boxes!, labels: v.labels!, counts: v.counts! };
      return { loss: focalLoss(logits, matched, targets), map: logits[0]!, deltas: deltas[0]!, other: centerness[1]! };
    };
    const { results, made } = run(padding, both, false);
    expect(results.map!.length).toBe(n * 4 * 5 * perCell * classes);
    expect(widths(made)).toEqual(new Set([15, 12, 3, 16])); // of logits, the second level's alone is padded
    const { results: expected } = run(plain, both, false);
    expectClose(results.loss!, expected.loss!, { rtol: 1e-5, atol: 1e-7 });
  });

  test("small numbers of channels become multiples of 8, large ones of 32", () => {
    expect([1, 8, 27, 36, 40, 720, 819].map(paddedChannels)).toEqual([8, 8, 32, 40, 40, 720, 832]);
  });
});

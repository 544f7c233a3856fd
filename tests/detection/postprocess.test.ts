/** Post-processing inside programs: SSD's and FCOS's against torchvision's, low precision, and what does not fit. */
import { describe, expect, test } from "bun:test";
import { postprocessPoints, postprocessSoftmax, type SoftNmsOptions } from "../../lib/detection";
import { cast, split, type Value } from "../../lib/graph";
import type { DType } from "../../lib/tensor";
import { type Given, numbers, program } from "../graph/support";
import { iou } from "../ops/reference/boxes";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { type GoldenCase, loadGolden } from "../support/golden";

const device = testDevice();

interface Params {
  task: "ssd" | "fcos";
  score_thresh: number;
  topk_candidates: number;
  nms_thresh: number;
  detections_per_img: number;
  levels: number[];
}

const cases = loadGolden<Params>("detection").filter(({ params }) => ["ssd", "fcos"].includes(params.task));

type Inputs = Record<string, Value>;

function detect(
  params: Params,
  inputs: Inputs,
  suppression: { classAware?: boolean; softNms?: SoftNmsOptions } = {},
): { detections: Value; counts: Value } {
  const options = {
    scoreThreshold: params.score_thresh,
    topK: params.topk_candidates,
    nmsThreshold: params.nms_thresh,
    maxDetections: params.detections_per_img,
    ...suppression,
  };
  const { logits, deltas, anchors, sizes: imageSizes, centerness } = inputs as Record<string, Value> & Inputs;
  const rows = { logits: logits!, deltas: deltas!, anchors: anchors!, imageSizes: imageSizes! };
  if (params.task === "ssd") return postprocessSoftmax(rows, options);
  const levels = (value: Value) => (value.shape[1] === anchors!.shape[0] ? split(value, params.levels, 1) : value);
  const maps = { logits: levels(logits!), deltas: levels(deltas!), centerness: levels(centerness!) };
  return postprocessPoints({ ...rows, ...maps }, options);
}

function inputsOf(golden: GoldenCase<Params>): Record<string, Given> {
  const names = ["logits", "deltas", "anchors", "sizes", "centerness"].filter((name) => golden.has(name));
  return Object.fromEntries(
    names.map((name) => [name, { shape: golden.shape(name), values: golden.array(name) }] as const),
  );
}

/** Detections of each image, those that are real. */
function run(
  golden: GoldenCase<Params>,
  forward: (inputs: Inputs) => { detections: Value; counts: Value },
): { rows: number[][]; rest: number[] } {
  using made = program(device, inputsOf(golden), (inputs) => ({ ...forward(inputs) }));
  made.run();
  const all = numbers(made.results.detections);
  const counts = numbers(made.results.counts);
  const row = all.length / counts.length;
  return {
    rows: counts.map((count, image) => all.slice(image * row, image * row + count * 6)),
    rest: counts.flatMap((count, image) => all.slice(image * row + count * 6, (image + 1) * row)),
  };
}

describe("detections are torchvision's", () => {
  test.each(cases.map((golden) => [golden.name, golden] as const))("%s", (_name, golden) => {
    const { rows, rest } = run(golden, (inputs) => detect(golden.params, inputs));
    const counts = golden.array("counts");
    expect(rows.map((row) => row.length / 6)).toEqual(Array.from(counts));
    // torchvision counts the background as label 0
    const first = golden.params.task === "ssd" ? 1 : 0;
    const got = rows.flat().map((x, i) => (i % 6 === 5 ? x + first : x));
    const found = golden.array("detections");
    const column = (values: ArrayLike<number>, from: number, to: number) =>
      Array.from(values).filter((_, i) => i % 6 >= from && i % 6 < to);
    expect(column(got, 5, 6)).toEqual(column(found, 5, 6));
    expectClose(column(got, 4, 5), column(found, 4, 5), { rtol: 2e-6, atol: 1e-7 }, "scores");
    expectClose(column(got, 0, 4), column(found, 0, 4), { rtol: 3e-6, atol: 1e-4 }, "boxes");
    expect(rest.every((x) => x === 0)).toBe(true);
  });

  test.each(["SSD", "FCOS"])("%s: boxes of other classes suppress each other where classAware is false", (name) => {
    const golden = cases.find((other) => other.name === name)!;
    const largest = (classAware: boolean) => {
      const { rows } = run(golden, (inputs) => detect(golden.params, inputs, { classAware }));
      expect(Math.min(...rows.map(({ length }) => length / 6))).toBeGreaterThan(5);
      return Math.max(...rows.map(largestOverlap));
    };
    expect(largest(true)).toBeGreaterThan(golden.params.nms_thresh + 0.01);
    expect(largest(false)).toBeLessThanOrEqual(golden.params.nms_thresh + 1e-6);
  });
});

/** The largest IoU of two detections of an image. */
function largestOverlap(row: readonly number[]): number {
  const boxes = Array.from({ length: row.length / 6 }, (_, i) => row.slice(6 * i, 6 * i + 4));
  return Math.max(...boxes.flatMap((a, i) => boxes.slice(0, i).map((b) => iou(a, 0, b, 0))));
}

describe("soft suppression", () => {
  const golden = cases.find(({ name }) => name === "FCOS")!;
  const column = (rows: number[][], at: number) => rows.map((row) => row.filter((_, i) => i % 6 === at));

  test("with a decay that changes nothing gives the candidates in the order of their scores", () => {
    const soft = { kind: "linear", iouThreshold: 1, minScore: 0 } as const;
    const { rows } = run(golden, (inputs) => detect(golden.params, inputs, { softNms: soft }));
    const hard = run(golden, (inputs) => detect({ ...golden.params, nms_thresh: 1 }, inputs));
    expect(rows).toEqual(hard.rows);
  });

  test.each(["linear", "gaussian"] as const)("%s: boxes stay, with lower scores, above the least", (kind) => {
    const soft = { kind, minScore: 0.25 } as const;
    const { rows } = run(golden, (inputs) => detect(golden.params, inputs, { softNms: soft }));
    const hard = run(golden, (inputs) => detect(golden.params, inputs));
    for (const [image, scores] of column(rows, 4).entries()) {
      expect(scores).toEqual([...scores].sort((a, b) => b - a));
      expect(scores.at(-1)).toBeGreaterThan(0.25);
      // nothing is better than the best, which no other lowers
      expect(scores[0]).toBe(column(hard.rows, 4)[image]![0]!);
      const total = (values: number[]) => values.reduce((sum, x) => sum + x, 0) / values.length;
      expect(total(scores)).toBeLessThan(total(column(hard.rows, 4)[image]!));
    }
    expect(Math.max(...rows.map(largestOverlap))).toBeGreaterThan(0);
  });

  test("options that cannot be are named", () => {
    const fails = (softNms: SoftNmsOptions) =>
      errorOf(() => run(golden, (inputs) => detect(golden.params, inputs, { softNms }))).message;
    expect(fails({ kind: "gaussian", sigma: 0 })).toContain("softNms.sigma above 0, got 0");
    expect(fails({ kind: "linear", iouThreshold: 2 })).toContain("softNms.iouThreshold from 0 to 1, got 2");
    expect(fails({ kind: "linear", minScore: -1 })).toContain("softNms.minScore of at least 0, got -1");
  });
});

describe("head outputs of low precision are computed with in fp32", () => {
  const low = (["bf16", "f16"] as const).filter((dtype) => device.supports(dtype));
  test.each(low.flatMap((dtype) => cases.map((golden) => [dtype, golden.name, golden] as const)))(
    "%s: %s",
    (dtype, _name, golden) => {
      const rounded = (inputs: Inputs, back: DType) => {
        const to = (name: string): [string, Value] => [name, cast(cast(inputs[name]!, dtype), back)];
        const heads = ["logits", "deltas", "centerness"].filter((name) => name in inputs);
        return { ...inputs, ...Object.fromEntries(heads.map(to)) };
      };
      const got = run(golden, (inputs) => detect(golden.params, rounded(inputs, dtype)));
      const expected = run(golden, (inputs) => detect(golden.params, rounded(inputs, "f32")));
      expect(got).toEqual(expected);
      expect(got.rows.flat().length).toBeGreaterThan(60);
    },
  );
});

describe("operands that do not fit", () => {
  const [ssd, fcos] = ["ssd", "fcos"].map((task) => cases.find(({ params }) => params.task === task)!);
  const fails = (golden: GoldenCase<Params>, name: string, shape: number[]) => {
    const inputs = { ...inputsOf(golden), [name]: { shape } };
    return errorOf(() => program(device, inputs, (values) => ({ ...detect(golden.params, values) }))).message;
  };
  test("are named with the shapes expected and found", () => {
    const a = ssd!.shape("anchors")[0]!;
    expect(fails(ssd!, "deltas", [2, a, 3])).toContain(`box deltas should have shape (2, ${a}, 4), got (2, ${a}, 3)`);
    expect(fails(ssd!, "anchors", [a - 1, 4])).toContain(`anchors should have shape (${a}, 4), got (${a - 1}, 4)`);
    expect(fails(ssd!, "sizes", [1, 2])).toContain("image sizes should have shape (2, 2), got (1, 2)");
    expect(fails(ssd!, "logits", [2, a, 1])).toContain(`should have shape (N, 1 + classes, A), got (2, 1, ${a})`);
    const points = fcos!.shape("anchors")[0]!;
    expect(fails(fcos!, "centerness", [2, points, 2])).toContain("centre-ness should have shape (N, A, 1), got");
  });
});

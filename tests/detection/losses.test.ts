/** Detection losses as operations of a graph: gradients, degenerate predictions, and errors that name what is wrong. */
import { describe, expect, test } from "bun:test";
import {
  type BoxLossOptions,
  binaryCrossEntropyLoss,
  boxLoss,
  type CrossEntropyLossOptions,
  centernessLoss,
  crossEntropyLoss,
  type FocalLossOptions,
  focalLoss,
  type Targets,
} from "../../lib/detection";
import { scale, type Value } from "../../lib/graph";
import { type Given, numbers, program } from "../graph/support";
import * as reference from "../ops/reference/losses";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();

/** Two images of two boxes and none; four anchors: two foreground, one background, one ignored. */
const anchors = [0, 0, 10, 10, 5, 5, 25, 15, 30, 0, 40, 40, 0, 20, 20, 40];
const boxes = [1, 2, 11, 9, 3, 4, 30, 20, 0, 0, 0, 0, 0, 0, 0, 0];
const matches = [0, 1, -1, -2, -1, -1, -1, -2];
const labels = [2, 0, 0, 0];
const scene: Record<string, Given> = {
  anchors: { shape: [4, 4], values: anchors },
  boxes: { shape: [2, 2, 4], values: boxes },
  far: { shape: [2, 2, 4], values: [100, 100, 120, 130, 5, 100, 60, 130, 0, 0, 0, 0, 0, 0, 0, 0] },
  labels: { shape: [2, 2], values: labels, dtype: "i32" },
  objects: { shape: [2, 2], values: [1, 0, 0, 0], dtype: "i32" },
  counts: { shape: [2], values: [2, 0], dtype: "i32" },
  matches: { shape: [2, 4], values: matches, dtype: "i32" },
  foreground: { shape: [2], values: [2, 0], dtype: "i32" },
};
const deltas = [0.1, 0.2, 0.1, -0.3, 0.2, 0.1, 0.3, 0.2, ...new Array(24).fill(0.5)];
const logits = [1, -2, 0.5, -1, 0.3, 2, ...new Array(18).fill(-0.4)];

type Values = Record<string, Value>;
type Loss = (v: Values, matched: { matches: Value; foreground: Value }, targets: Targets) => Value;

/** The loss and the gradient of what is called `of`, with an upstream gradient of `seed`. */
function run(of: string, given: Given, loss: Loss, seed: number): { loss: number; gradient: number[] } {
  const body = (v: Values) => ({
    loss: loss(v, v as unknown as { matches: Value; foreground: Value }, v as unknown as Targets),
  });
  using made = program(device, { ...scene, [of]: given }, body, {
    training: true,
    seeds: { loss: seed },
    inputGradients: [of],
  });
  made.run();
  return { loss: numbers(made.results.loss)[0]!, gradient: numbers(made.results[`grad.${of}`]) };
}

const boxLossOf = (options: BoxLossOptions, values: readonly number[] = deltas, seed = 1) =>
  run("deltas", { shape: [2, 4, 4], values }, (v, m, t) => boxLoss(v.deltas!, v.anchors!, m, t, options), seed);

const focalLossOf = (options: FocalLossOptions, seed = 1) =>
  run("logits", { shape: [2, 4, 3], values: logits }, (v, m, t) => focalLoss(v.logits!, m, t, options), seed);

const crossEntropyOf = (options: CrossEntropyLossOptions, given: Given = { shape: [2, 4, 3], values: logits }) =>
  run("logits", given, (v, m, t) => crossEntropyLoss(v.logits!, m, t, options), 1);

const margin = { rtol: 1e-4, atol: 1e-6 };

describe("values and gradients", () => {
  const optionLists: BoxLossOptions[] = [
    {},
    { kind: "smooth_l1" },
    { kind: "smooth_l1", beta: 0.1, normalization: "batch", weights: [10, 10, 5, 5] },
    { kind: "giou", coder: "linear", normalization: "batch" },
    { kind: "ciou" },
    { kind: "diou", coder: "linear" },
    { kind: "iou" },
  ];
  test.each(optionLists.map((options) => [JSON.stringify(options), options] as const))("boxLoss(%s)", (_, options) => {
    const { kind = "l1", coder = "centre", weights = [1, 1, 1, 1], normalization = "image" } = options;
    const beta = kind === "smooth_l1" ? (options.beta ?? 1) : 0;
    const shared = { kind, coder, weights, beta, normalization, n: 2, maxBoxes: 2 };
    const expected = reference.boxLoss({ deltas, anchors, matches, boxes, ...shared });
    const { loss, gradient } = boxLossOf(options, deltas, 0.25);
    expectClose([loss], [expected.loss], margin, "loss");
    expectClose(
      gradient,
      expected.ddeltas.map((d) => 0.25 * d),
      margin,
      "gradient",
    );
  });

  test.each(["image", "batch"] as const)("focalLoss and binaryCrossEntropyLoss by %s", (normalization) => {
    const shared = { logits, matches, labels, n: 2, anchors: 4, classes: 3, maxBoxes: 2, normalization };
    const focal = reference.focalLoss({ ...shared, alpha: 0.25, gamma: 2 });
    const own = focalLossOf({ normalization }, 3);
    expectClose([own.loss], [focal.loss], margin);
    expectClose(
      own.gradient,
      focal.dlogits.map((d) => 3 * d),
      margin,
    );
    const binary = reference.focalLoss({ ...shared, alpha: -1, gamma: 0 });
    const entropy = run(
      "logits",
      { shape: [2, 4, 3], values: logits },
      (v, m, t) => binaryCrossEntropyLoss(v.logits!, m, t, { normalization }),
      1,
    );
    expectClose([entropy.loss], [binary.loss], margin);
    expectClose(entropy.gradient, binary.dlogits, margin);
  });

  test.each<CrossEntropyLossOptions>([{}, { negativeRatio: 0.5, normalization: "image" }, { negativeRatio: "all" }])(
    "crossEntropyLoss(%p)",
    (options) => {
      const { negativeRatio = 3, normalization = "batch" } = options;
      // with three classes, the background first, labels are 0 and 1
      const shared = {
        logits,
        matches,
        labels: [1, 0, 0, 0],
        n: 2,
        anchors: 4,
        classes: 3,
        maxBoxes: 2,
        normalization,
      };
      const expected = reference.crossEntropyLoss({
        ...shared,
        negativeRatio: negativeRatio === "all" ? -1 : negativeRatio,
      });
      const own = run(
        "logits",
        { shape: [2, 4, 3], values: logits },
        (v, m, t) => crossEntropyLoss(v.logits!, m, { ...t, labels: v.objects! }, options),
        2,
      );
      expectClose([own.loss], [expected.loss], margin);
      expectClose(
        own.gradient,
        expected.dlogits.map((d) => 2 * d),
        margin,
      );
    },
  );

  test.each(["image", "batch"] as const)("centernessLoss by %s", (normalization) => {
    const values = [2, -1, 0.5, 3, 0, 0, 0, 0];
    const expected = reference.centernessLoss({
      logits: values,
      anchors,
      matches,
      boxes,
      n: 2,
      maxBoxes: 2,
      normalization,
    });
    const own = run(
      "logits",
      { shape: [2, 4], values },
      (v, m, t) => centernessLoss(v.logits!, v.anchors!, m, t, { normalization }),
      1,
    );
    expectClose([own.loss], [expected.loss], margin);
    expectClose(own.gradient, expected.dlogits, margin);
    expect(own.gradient.filter((g) => g !== 0).length).toBe(2);
  });

  test("an upstream gradient known only at run time scales the loss's own", () => {
    const half = run(
      "deltas",
      { shape: [2, 4, 4], values: deltas },
      (v, m, t) => scale(boxLoss(v.deltas!, v.anchors!, m, t, { kind: "giou" }), 0.5),
      1,
    );
    const whole = boxLossOf({ kind: "giou" });
    expectClose(
      half.gradient,
      whole.gradient.map((g) => g / 2),
      margin,
    );
  });
});

describe("degenerate predictions give numbers", () => {
  const kinds = ["l1", "iou", "giou", "diou", "ciou"] as const;
  const extremes: Record<string, readonly number[]> = {
    "the matched box itself": [0.1, 0.05, 0, Math.log(0.7)],
    "shrunk to a point": [0, 0, -200, -200],
    "a line": [0, 0, -200, 0],
    "tiny and equal sides": [-0.5, -0.5, -45, -45],
    "larger than any clip": [0, 0, 1e6, 1e6],
    "far away": [1e6, -1e6, 0, 0],
    "at the end of fp32": [3e38, -3e38, 3e38, -3e38],
    infinite: [Infinity, -Infinity, Infinity, -Infinity],
    "no distances": [0, 0, 0, 0],
    "turned inside out": [-1, -2, -3, -1],
  };
  for (const kind of kinds) {
    for (const coder of ["centre", "linear"] as const) {
      test.each(Object.entries(extremes))(`${kind}, ${coder}: %s`, (_name, values) => {
        if (kind === "l1" && values.some((value) => Math.abs(value) > 1e38)) return; // infinite, as torch's
        const { loss, gradient } = boxLossOf({ kind, coder }, [...values, ...values, ...new Array(24).fill(0)]);
        expect(loss).toBeFinite();
        expect(gradient.every(Number.isFinite)).toBe(true);
        const inside = coder === "centre" || values.every((value) => value >= 0);
        if (kind !== "l1" && inside) expect(loss).toBeGreaterThanOrEqual(0);
      });
    }
  }

  test("a NaN stays one", () => {
    for (const kind of kinds) {
      for (let i = 0; i < 4; ++i) {
        const values = deltas.map((value, j) => (i === j ? Number.NaN : value));
        const { loss, gradient } = boxLossOf({ kind }, values);
        expect(loss).toBeNaN();
        expect(gradient[i]).toBeNaN();
        expect(gradient.slice(4).every(Number.isFinite)).toBe(true);
      }
    }
  });

  test("logits of any size, and a point outside its box", () => {
    const huge = [1e38, -1e38, 0, -3e38, 3e38, 0, ...new Array(18).fill(1e30)];
    for (const negativeRatio of [1, "all"] as const) {
      const { gradient } = run(
        "logits",
        { shape: [2, 4, 3], values: huge.map((value) => value / 4) },
        (v, m, t) => crossEntropyLoss(v.logits!, m, { ...t, labels: v.objects! }, { negativeRatio }),
        1,
      );
      expect(gradient.every(Number.isFinite)).toBe(true);
    }
    const outside = run(
      "logits",
      { shape: [2, 4], values: [1e38, -1e38, 0, 0, 0, 0, 0, 0] },
      (v, m, t) => centernessLoss(v.logits!, v.anchors!, m, { ...t, boxes: v.far! }),
      1,
    );
    expect(outside.loss).toBeFinite();
    expect(outside.gradient.slice(0, 2)).toEqual([0.5, 0]); // targets of 0
  });

  test("a label beyond the classes makes the cross-entropy NaN", () => {
    expect(crossEntropyOf({}).loss).toBeNaN(); // label 2 would be class 3 of 0 to 2
    expect(crossEntropyOf({}).gradient.every(Number.isFinite)).toBe(true);
  });

  test("dw and dh beyond the clip have no gradient", () => {
    const { gradient } = boxLossOf({ kind: "diou" }, [0.3, 0.2, 5, 6, ...deltas.slice(4)]);
    expect(gradient.slice(0, 4).map((g) => g === 0)).toEqual([false, false, true, true]);
  });
});

describe("errors name what is wrong", () => {
  const message = (body: () => unknown) => errorOf(body).message;
  const bad = (options: object) => message(() => boxLossOf(options as BoxLossOptions));

  test("options", () => {
    expect(bad({ kind: "huber" })).toBe(
      'boxLoss: expected kind to be one of l1, smooth_l1, iou, giou, diou, ciou, got "huber"',
    );
    expect(bad({ coder: "corners" })).toBe('boxLoss: expected coder to be one of centre, linear, got "corners"');
    expect(bad({ normalization: "mean" })).toBe(
      'boxLoss: expected normalization to be one of image, batch, got "mean"',
    );
    expect(bad({ kind: "giou", beta: 1 })).toBe("boxLoss: beta is of kind smooth_l1, got 1 for giou");
    expect(bad({ kind: "smooth_l1", beta: -1 })).toBe("boxLoss: expected a finite beta of at least 0, got -1");
    expect(bad({ weights: [1, 1, 0, 1] })).toBe("boxLoss: expected four finite weights above 0, got 1, 1, 0, 1");
    expect(message(() => focalLossOf({ alpha: 2 }))).toBe(
      "focalLoss: expected alpha up to 1, or below 0 for none, got 2",
    );
    expect(message(() => focalLossOf({ gamma: -1 }))).toBe("focalLoss: expected gamma from 0 to 1000, got -1");
  });

  test("options of the cross-entropy", () => {
    const entropy = (options: object) => message(() => crossEntropyOf(options));
    expect(entropy({ negativeRatio: -1 })).toBe(
      'crossEntropyLoss: expected a negativeRatio of at least 0 or "all", got -1',
    );
    expect(entropy({ negativeRatio: Number.NaN })).toContain("got NaN");
    expect(entropy({ normalization: "none" })).toContain("crossEntropyLoss: expected normalization to be one of");
    expect(message(() => crossEntropyOf({}, { shape: [2, 4, 1] }))).toBe(
      "cross_entropy_loss: expected logits of 2 to 10240 classes, the background first, got 1",
    );
    expect(
      message(() => run("logits", { shape: [2, 4, 2] }, (v, m, t) => centernessLoss(v.logits!, v.anchors!, m, t), 1)),
    ).toBe("centerness_loss: centre-ness logits should have shape (N, A, 1), got (2, 4, 2)");
  });

  test("shapes", () => {
    const shaped = (shape: number[]) =>
      message(() => run("deltas", { shape }, (v, m, t) => boxLoss(v.deltas!, v.anchors!, m, t), 1));
    expect(shaped([2, 4, 5])).toBe("box_loss: box deltas should have shape (N, A, 4), got (2, 4, 5)");
    expect(shaped([2, 3, 4])).toBe("box_loss: expected 3 anchors (3, 4), got f32 (4, 4)");
    expect(shaped([3, 4, 4])).toBe("box_loss: expected matches of shape (3, 4), got i32 (2, 4)");
    expect(message(() => run("logits", { shape: [2, 4] }, (v, m, t) => focalLoss(v.logits!, m, t), 1))).toBe(
      "focal_loss: logits should have shape (N, A, classes), got (2, 4)",
    );
  });

  test("codes that the library does not know", () => {
    const { native, stream, handle } = device;
    const address = device.malloc(1 << 16);
    const call = (kind: number, coder: number, normalization: number) => () =>
      native.boxLoss(
        ...([stream.handle, address, new BigInt64Array(1), BigInt64Array.of(BigInt(address))] as const),
        ...([address, address, address, address, null, address, Int32Array.of(1), Int32Array.of(4), 1] as const),
        ...([1, 1, 1, 0, kind, coder, 1, 1, 1, 1, 0, normalization, 1] as const),
      );
    try {
      expect(handle).toBeGreaterThan(0);
      expect(message(call(5, 0, 0))).toContain("expected a box loss of kind 0 (smooth L1)");
      expect(message(call(0, 2, 0))).toContain("expected box coder 0 (centre) or 1 (linear), got 2");
      expect(message(call(0, 0, 2))).toContain("expected normalization 0 (per image) or 1 (whole batch), got 2");
    } finally {
      device.free(address);
    }
  });
});

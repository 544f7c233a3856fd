/** Dynamic loss scaling inside the captured step: the gradients' scale, left out steps, and what is reported of them. */
import { expect, test } from "bun:test";
import { Parameter, Program, scale, useParameter, type Value } from "../../lib/graph";
import { BatchNorm2d, Model } from "../../lib/layers";
import { CompactDetector } from "../../lib/models";
import { type Precision, precisionPolicy, Tensor } from "../../lib/tensor";
import {
  constantRate,
  Ema,
  LossScaler,
  type LossScalingOptions,
  SGD,
  type SGDOptions,
  type StepResult,
  TrainStep,
  type TrainStepOptions,
} from "../../lib/train";
import { expectClose } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const device = testDevice({ deterministic: true });
const targets = { boxes: Float32Array.of(4, 4, 30, 30), labels: new Int32Array(1), counts: Int32Array.of(1) };
const noise = new Random("noise").normal(64 * 64 * 3);
/** Activations in 16 bits, where the device has such; fp16 is what all this is for. */
const half = (["fp16", "bf16"] as const).find((name) => {
  const { dtype } = precisionPolicy(name);
  return dtype !== "f32" && !missing(device, dtype, [`conv.${dtype}`]);
});

/** A detector with losses, and gradients, 1024 times those of others. */
class Loud extends CompactDetector {
  override losses(...given: Parameters<CompactDetector["losses"]>) {
    const { classification, boxRegression } = super.losses(...given);
    return { classification: scale(classification, 1024), boxRegression: scale(boxRegression, 1024) };
  }
}

interface Training {
  model?: typeof CompactDetector;
  precision?: Precision;
  options?: Partial<SGDOptions>;
  step?: Partial<TrainStepOptions>;
  ema?: boolean;
  /** Images of each batch; default: the noise. */
  images?: (batch: number) => ArrayLike<number>;
}

/** Trains on one image for some steps; what they reported, and the weights before the first and after each. */
async function train(steps: number, { precision = "fp32", options = {}, step: more, ema, ...given }: Training) {
  const { model: Detector = CompactDetector, images } = given;
  using model = new Detector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 4, precision });
  using optimizer = new SGD(model, { schedule: constantRate(0.01), iterations: steps, ...options });
  using averages = ema ? new Ema(model, { decay: 0.5, warmup: 0 }) : undefined;
  const shape = { batchSize: 1, height: 64, width: 64, maxBoxes: 1 };
  using step = new TrainStep(model, optimizer, { ...shape, ...more, ema: averages });
  using batch = Tensor.empty(device, [1, 64, 64, 3], model.precision);
  const read = (tensors: Iterable<Tensor>) => [...tensors].map((tensor) => Buffer.from(tensor.readBytes()));
  const weights = () => read(model.parameters().map(({ tensor }) => tensor));
  const trained = [weights()];
  const averaged = averages ? [read(averages.averages.values())] : [];
  const reports: StepResult[] = [];
  for (let i = 0; i < steps; i++) {
    for (let part = 0; part < (more?.accumulate ?? 1); part++) {
      batch.write(images?.(i * (more?.accumulate ?? 1) + part) ?? noise);
      await step.submit(batch, targets);
      reports.push(...(await step.drain()));
    }
    trained.push(weights());
    if (averages) averaged.push(read(averages.averages.values()));
  }
  return { reports, trained, averaged, step: optimizer.step.read()[0] };
}

/** Loud's gradients overflow in fp32 at first. */
const huge: LossScalingOptions = { initial: 2 ** 127, backoff: 2 ** -20 };

test("a scale that is a power of two changes no bit of a training, clipped or not", async () => {
  for (const options of [{}, { clipNorm: 0.01 }]) {
    const plain = await train(3, { options });
    const scaled = await train(3, { options: { ...options, lossScaling: { initial: 1024, interval: 2 } } });
    expect(scaled.trained).toEqual(plain.trained);
    expect(scaled.reports.map(({ losses }) => losses)).toEqual(plain.reports.map(({ losses }) => losses));
    expect(scaled.reports.map(({ scaling }) => scaling!.scale)).toEqual([1024, 2048, 2048]);
  }
});

test("the norm of the gradients is reported without the scale", async () => {
  const plain = await train(2, { options: { clipNorm: 1e9 } });
  const scaled = await train(2, { options: { lossScaling: { initial: 2 ** 20 } } });
  const norms = (reports: StepResult[]) => reports.map(({ gradNorm }) => gradNorm!);
  expect(norms(scaled.reports)).toEqual(norms(plain.reports));
});

test("steps that overflow are left out, counted and shown, and the scale falls until they do not", async () => {
  const { reports, trained, step, averaged } = await train(4, {
    model: Loud,
    options: { schedule: constantRate(1e-6), lossScaling: huge },
    ema: true,
  });
  const skipped = reports.map(({ scaling }) => scaling!.skipped);
  const count = skipped.lastIndexOf(true) + 1;
  expect([1, 2, 3]).toContain(count);
  expect(skipped).toEqual([0, 1, 2, 3].map((i) => i < count));
  expect(reports.map(({ failed }) => failed)).toEqual([false, false, false, false]);
  for (const [i, { scaling }] of reports.entries()) {
    const overflows = Math.min(i + 1, count);
    expect(scaling).toEqual({ scale: 2 ** (127 - 20 * overflows), skipped: i < count, overflows });
  }
  for (let i = 0; i < 4; i++) {
    expect(trained[i + 1]!.every((bytes, j) => bytes.equals(trained[i]![j]!))).toBe(i < count);
    // Statistics move in any step, but their averages wait too.
    expect(averaged[i + 1]!.every((bytes, j) => bytes.equals(averaged[i]![j]!))).toBe(i < count);
  }
  // The schedule goes on, as torch's scheduler.step() after each scaler.step().
  expect(step).toBe(4);
});

test("a batch that is not finite costs one step, and none changes a weight after too many of them", async () => {
  const nan = noise.map(() => Number.NaN);
  const patience = { initial: 4, backoff: 0.25, patience: 2 };
  const { reports, trained } = await train(6, {
    options: { lossScaling: patience },
    images: (batch) => ([1, 3, 4].includes(batch) ? nan : noise),
  });
  expect(reports.map(({ scaling }) => scaling!.skipped)).toEqual([false, true, false, true, true, true]);
  expect(reports.map(({ failed }) => failed)).toEqual([false, false, false, false, true, true]);
  expect(reports.map(({ scaling }) => scaling!.scale)).toEqual([4, 1, 1, 1, 1, 1]);
  expect(reports.at(-1)!.scaling!.overflows).toBe(3);
  expect(trained[2]).toEqual(trained[1]!);
  expect(trained[3]).not.toEqual(trained[2]!);
  expect(trained[6]).toEqual(trained[3]!);
});

test("what has overflowed in the forward pass is not remembered by running statistics", () => {
  class Norm extends Model {
    norm = new BatchNorm2d(3);
    forward(x: Value): Value {
      return this.norm.forward(x);
    }
  }
  using model = new Norm().to(device);
  const x = new Random("x").normal(2 * 4 * 4 * 3);
  const statistics = (bad?: number) => {
    for (const [name, { tensor }] of model.namedState()) tensor.write(name.endsWith("mean") ? [0, 0, 0] : [1, 1, 1]);
    const values = Float32Array.from(x);
    if (bad !== undefined) values[3 * 5 + 1] = bad; // of the second channel
    using images = Tensor.from(device, values, [2, 4, 4, 3]);
    model.call(images);
    return ["norm.running_mean", "norm.running_var"].map(
      (name) => [...model.stateDict().get(name)!.read()] as number[],
    );
  };
  const [means, variances] = statistics() as [number[], number[]];
  for (const bad of [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN]) {
    expect(statistics(bad)).toEqual([
      [means[0]!, 0, means[2]!],
      [variances[0]!, 1, variances[2]!],
    ]);
  }
});

test("one overflow among accumulated batches leaves out their step", async () => {
  const nan = noise.map(() => Number.NaN);
  const { reports, trained } = await train(3, {
    options: { lossScaling: { initial: 8 } },
    step: { accumulate: 2 },
    images: (batch) => (batch === 2 ? nan : noise),
  });
  expect(reports.map(({ scaling }) => scaling!.skipped)).toEqual([false, true, false]);
  expect(reports.map(({ scaling }) => scaling!.scale)).toEqual([8, 4, 4]);
  expect(trained[2]).toEqual(trained[1]!);
  expect(trained[3]).not.toEqual(trained[2]!);
});

test.if(half !== undefined)("activations of 16 bits train with a scale as without one", async () => {
  const options = (lossScaling: SGDOptions["lossScaling"]) => ({
    precision: half,
    options: { lossScaling, clipNorm: 1e9 },
  });
  const plain = await train(2, options(false));
  const scaled = await train(2, options({ initial: 256 }));
  expect(scaled.reports.map(({ scaling }) => scaling!.skipped)).toEqual([false, false]);
  const norms = (reports: StepResult[]) => reports.map(({ gradNorm }) => gradNorm!);
  // In fp16 the small gradients that are lost without a scale are what differs.
  expectClose(norms(scaled.reports), norms(plain.reports), { rtol: 2e-2, atol: 0 }, "the norms of the gradients");
});

test("models in fp16 are trained with loss scaling, others only on request", () => {
  for (const precision of ["fp32", "bf16", "fp16"] as const) {
    const { dtype } = precisionPolicy(precision);
    if (dtype !== "f32" && missing(device, dtype, [`conv.${dtype}`])) continue;
    using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
    model.to(device, { precision });
    const schedule = { schedule: constantRate(0.1), iterations: 1 };
    using given = new SGD(model, schedule);
    expect(given.scaler !== null).toBe(precision === "fp16");
    expect(given.scaler?.scale.read()[0] ?? 65536).toBe(65536);
    using off = new SGD(model, { ...schedule, lossScaling: false });
    expect(off.scaler).toBeNull();
  }
});

/** Losses that are computed from parameters by scaling: constant gradients that become values. */
class Line extends Model {
  w = new Parameter([], { kind: "constant", value: 3 });
  forward(): Value {
    return scale(scale(useParameter(this.w), 0.5), 10);
  }
}

test("the scale multiplies gradients that no loss kernel computes, and only those of the losses", () => {
  using model = new Line().to(device);
  using scaler = new LossScaler(device, { initial: 32 });
  using program = new Program(device, {}, () => ({ loss: model.forward(), other: scale(useParameter(model.w), 7) }), {
    training: true,
    seeds: { loss: 1 },
    gradientScale: scaler.scale,
  });
  program.run();
  expect(program.results.loss!.read()[0]).toBe(15);
  expect(model.w.grad!.read()[0]).toBe(32 * 5);
  scaler.scale.write([2]);
  program.run();
  expect(model.w.grad!.read()[0]).toBe(2 * 5);
});

test("an optimizer and a program that disagree about the scale are refused", () => {
  using model = new Line().to(device);
  using optimizer = new SGD(model, { schedule: constantRate(1), iterations: 1, lossScaling: true });
  const make = (gradientScale?: Tensor) =>
    new Program(device, {}, () => ({ loss: model.forward() }), {
      ...{ training: true, seeds: { loss: 1 }, gradientScale },
      after: (made) => optimizer.updateCalls(made),
    });
  expect(errorOf(() => make()).message).toBe(
    "SGD: the program's gradientScale is not that of the optimizer's loss scaling, which is on",
  );
  using other = Tensor.zeros(device, [2]);
  expect(errorOf(() => make(other)).message).toBe("Program: gradientScale: expected an f32 scalar, got f32 (2)");
  make(optimizer.scaler!.scale).dispose();
});

test.each([
  [{ initial: 0.5 }, "initial: expected a number from 1 that fp32 has, got 0.5"],
  [{ initial: 1e39 }, "initial: expected a number from 1 that fp32 has, got 1e+39"],
  [{ growth: 0.9 }, "growth: expected a number >= 1, got 0.9"],
  [{ backoff: 0 }, "backoff: expected a number above 0 and up to 1, got 0"],
  [{ interval: 1.5 }, "interval: expected an integer >= 1, got 1.5"],
  [{ least: 0 }, "least: expected a number above 0 that fp32 has, got 0"],
  [{ patience: 0 }, "patience: expected an integer >= 1, got 0"],
])("%p is refused", (options, message) => {
  expect(errorOf(() => new LossScaler(device, options)).message).toBe(`lossScaling: ${message}`);
});

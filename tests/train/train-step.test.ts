import { expect, test } from "bun:test";
import { Parameter, Program, scale, useParameter, type Value } from "../../lib/graph";
import { FrozenBatchNorm2d, Model } from "../../lib/layers";
import { CompactDetector } from "../../lib/models";
import { Device, Tensor } from "../../lib/tensor";
import { constantRate, parseRecompute, SGD, type SGDOptions, type StepResult, TrainStep } from "../../lib/train";
import { expectClose } from "../support/compare";
import { backend, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const device = testDevice();
const targets = { boxes: Float32Array.of(4, 4, 30, 30), labels: new Int32Array(1), counts: Int32Array.of(1) };

test("disposing of a step in flight releases its images and leaves nothing behind that fails later", async () => {
  const rejected: unknown[] = [];
  const listen = (reason: unknown): void => void rejected.push(reason);
  process.on("unhandledRejection", listen);
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device);
  using optimizer = new SGD(model, { schedule: constantRate(0.001), iterations: 3 });
  using images = Tensor.zeros(device, [1, 64, 64, 3]);
  const released: number[] = [];
  {
    using step = new TrainStep(model, optimizer, { batchSize: 1, height: 64, width: 64, maxBoxes: 1 });
    for (let i = 0; i < 3; ++i) {
      const { copied } = await step.submit(images, targets);
      copied.then(() => released.push(i));
    }
    expect(released).toEqual([0]);
  }
  await Bun.sleep(20);
  process.off("unhandledRejection", listen);
  expect(released.sort()).toEqual([0, 1, 2]);
  expect(rejected).toEqual([]);
});

/** Runs steps on one image of noise and gives the reports, the last gradients and the weights before and after the last. */
async function trainNoise(options: Partial<SGDOptions>, steps: number, image: ArrayLike<number>) {
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 4 });
  using optimizer = new SGD(model, { schedule: constantRate(0.5), iterations: steps, momentum: 0, ...options });
  using images = Tensor.from(device, image, [1, 64, 64, 3]);
  using step = new TrainStep(model, optimizer, { batchSize: 1, height: 64, width: 64, maxBoxes: 1 });
  const read = (of: "tensor" | "grad") => model.parameters().map((parameter) => Array.from(parameter[of]!.read()));
  const reports: StepResult[] = [];
  let before = read("tensor");
  for (let i = 0; i < steps; ++i) {
    before = read("tensor");
    await step.submit(images, targets);
    reports.push(...(await step.drain()));
  }
  return { reports, gradients: read("grad"), before, after: read("tensor") };
}

const norm = (vectors: number[][]) => Math.sqrt(vectors.flat().reduce((sum, value) => sum + value * value, 0));

test("clipNorm scales the gradients of a captured step to that norm and reports the one they had", async () => {
  const noise = new Random("noise").normal(64 * 64 * 3);
  const clipNorm = 0.01;
  // The second step is the captured one.
  const { reports, gradients, before, after } = await trainNoise({ clipNorm, weightDecay: 0 }, 3, noise);
  const expected = norm(gradients);
  expect(expected).toBeGreaterThan(10 * clipNorm);
  expectClose([reports[2]!.gradNorm!], [expected], { rtol: 1e-5, atol: 0 }, "the norm of the gradients");
  const factor = (0.5 * clipNorm) / expected;
  for (const [i, weights] of after.entries()) {
    const moved = before[i]!.map((weight, j) => weight - factor * gradients[i]![j]!);
    expectClose(weights, moved, { rtol: 1e-6, atol: 1e-7 }, `parameter ${i}`);
  }
  expect(reports.map(({ failed }) => failed)).toEqual([false, false, false]);
});

test("without clipNorm no norm is taken, and one above the gradients' changes nothing", async () => {
  const noise = new Random("noise").normal(64 * 64 * 3);
  const free = await trainNoise({}, 2, noise);
  const loose = await trainNoise({ clipNorm: 1e9 }, 2, noise);
  expect(free.reports[1]).not.toHaveProperty("gradNorm");
  expect(loose.reports[1]!.gradNorm).toBeGreaterThan(0);
  expect(loose.after).toEqual(free.after);
});

test("the folded weights of a frozen layer follow the model's refresh()", async () => {
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  Object.assign(model.stem, { norm: new FrozenBatchNorm2d(4) });
  const weight = model.stem.conv.weight;
  weight.requiresGrad = false;
  model.to(device);
  using optimizer = new SGD(model, { schedule: constantRate(0), iterations: 9 });
  using images = Tensor.from(device, new Random("noise").normal(64 * 64 * 3), [1, 64, 64, 3]);
  using step = new TrainStep(model, optimizer, { batchSize: 1, height: 64, width: 64, maxBoxes: 1 });
  const losses = async (factor: number) => {
    weight.tensor.write(initial.map((value) => factor * value));
    model.refresh();
    await step.submit(images, targets);
    return (await step.drain())[0]!.losses;
  };
  const initial = Array.from(weight.tensor.read());
  const first = await losses(1);
  expect(await losses(-2)).not.toEqual(first);
  expect(await losses(1)).toEqual(first);
});

test("steps on images of several sizes run in the memory of the largest, as if each had its own", async () => {
  const sizes = [
    [64, 96],
    [64, 64],
    [32, 96],
  ] as const;
  const order = [0, 1, 1, 2, 0, 0, 2, 1, 0];
  const exact = testDevice({ deterministic: true });
  const train = async (apart: boolean) => {
    using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
    // What is folded ahead of the steps is folded again where another size's step has overwritten it.
    Object.assign(model.stem, { norm: new FrozenBatchNorm2d(4) });
    model.stem.conv.weight.requiresGrad = false;
    model.to(exact, { seed: 4 });
    using optimizer = new SGD(model, { schedule: constantRate(0.01), iterations: order.length });
    using resources = new DisposableStack();
    const make = ([height, width]: readonly [number, number]) =>
      resources.use(new TrainStep(model, optimizer, { batchSize: 1, height, width, maxBoxes: 1 }));
    const first = make(sizes[0]);
    const { allocated } = exact.memory();
    const steps = apart ? [first, make(sizes[1]), make(sizes[2])] : [first, first, first];
    const losses: Record<string, number>[] = [];
    for (const [i, size] of order.entries()) {
      const [height, width] = sizes[size] as readonly [number, number];
      using images = Tensor.from(exact, new Random(`noise ${i}`).normal(height * width * 3), [1, height, width, 3]);
      await steps[size]!.submit(images, targets);
      losses.push(...(await steps[size]!.drain()).map((result) => result.losses));
    }
    const more = exact.memory().allocated - allocated;
    return { losses, weights: model.parameters().map(({ tensor }) => tensor.readBytes()), more };
  };
  const [shared, separate] = [await train(false), await train(true)];
  expect([shared.more, separate.more > 0]).toEqual([0, true]);
  expect(shared.losses.length).toBe(order.length);
  expect(shared.losses).toEqual(separate.losses);
  for (const [i, bytes] of shared.weights.entries()) expect(Buffer.compare(bytes, separate.weights[i]!)).toBe(0);
});

test("a norm that is not finite changes no weight and raises the flag, though the loss is finite", () => {
  /** Loss 0 at w = 0, with a slope that fp32 cannot hold. */
  class Steep extends Model {
    w = new Parameter([1], { kind: "constant", value: 0 });
    forward(): Value {
      return scale(scale(useParameter(this.w), 1e30), 1e30);
    }
  }
  using model = new Steep().to(device);
  using optimizer = new SGD(model, { schedule: constantRate(1), iterations: 1, clipNorm: 1 });
  using program = new Program(device, {}, () => ({ loss: model.forward() }), {
    training: true,
    seeds: { loss: 1 },
    before: (made) => optimizer.scheduleCalls(made),
    after: (made) => [...optimizer.checkCalls(made, ["loss"]), ...optimizer.updateCalls(made)],
  });
  program.run();
  expect(program.results.loss!.read()[0]).toBe(0);
  expect(optimizer.gradNorm!.read()[0]).toBe(Number.POSITIVE_INFINITY);
  expect(optimizer.failed.read()[0]).toBe(1);
  expect(model.w.tensor.read()[0]).toBe(0);
});

test.each([0, -1, Number.NaN, Number.POSITIVE_INFINITY])("clipNorm %p is refused", (clipNorm) => {
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device);
  const make = () => new SGD(model, { schedule: constantRate(0.1), iterations: 1, clipNorm });
  expect(errorOf(make).message).toBe(`SGD: expected clipNorm > 0, got ${clipNorm}`);
});

test("the memory of a step can be planned without taking it, with recomputation and without", () => {
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device);
  using optimizer = new SGD(model, { schedule: constantRate(0.1), iterations: 1 });
  const options = { batchSize: 2, height: 64, width: 64, maxBoxes: 1 };
  const before = device.memory().allocated;
  const kept = TrainStep.plan(model, options);
  const repeated = TrainStep.plan(model, { ...options, recompute: true });
  expect(device.memory().allocated).toBe(before);
  expect(repeated.bytes).toBeLessThan(kept.bytes);
  expect(kept.atPeak().reduce((sum, { bytes }) => sum + bytes, 0)).toBe(kept.needed);
  using step = new TrainStep(model, optimizer, options);
  expect(step.program.arenaBytes).toBe(kept.bytes);
});

test("iterations or rates that no schedule can have are refused before anything is allocated", () => {
  using own = new Device({ backend }); // disposing of it names what has not been released
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(own);
  for (const iterations of [0, -1, 2.5, Number.NaN]) {
    const make = () => new SGD(model, { schedule: constantRate(0.1), iterations });
    expect(errorOf(make).message).toBe(`SGD: expected a positive whole number of iterations, got ${iterations}`);
  }
  const falling = () => new SGD(model, { schedule: (iteration) => 1 - iteration, iterations: 3 });
  expect(errorOf(falling).message).toBe("schedule: expected a rate >= 0 for iteration 2, got -1");
});

test("what to recompute is read from words and sizes", () => {
  expect(["all", "none", "10GiB", "1.5MiB"].map(parseRecompute)).toEqual([true, false, 10 * 2 ** 30, 1.5 * 2 ** 20]);
  for (const text of ["", "10", "10GB", "-1GiB", "GiB", "every"]) expect(parseRecompute(text)).toBeNull();
});

import { expect, test } from "bun:test";
import { CompactDetector } from "../../lib/models";
import { Tensor } from "../../lib/tensor";
import { constantRate, Ema, emaDecays, SGD, TrainStep, withoutDecay } from "../../lib/train";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const device = testDevice();
const targets = { boxes: Float32Array.of(4, 4, 30, 30), labels: new Int32Array(1), counts: Int32Array.of(1) };
const shape = { batchSize: 1, height: 64, width: 64, maxBoxes: 1 };

test("decays grow to the largest, and stay there", () => {
  const table = emaDecays({ decay: 0.9998, warmup: 2000 });
  // torch.exp(torch.tensor(-1 / 2000, dtype=torch.float64))
  expect(table[0]!).toBeCloseTo(0.9998 * (1 - 0.9995001249791693), 9);
  expect(table[1999]!).toBeCloseTo(0.9998 * (1 - Math.exp(-1)), 7);
  expect(table.at(-1)).toBe(Math.fround(0.9998));
  expect([...emaDecays({ decay: 0.5, warmup: 0 })]).toEqual([0.5]);
  expect(errorOf(() => emaDecays({ decay: 1 })).message).toContain("decay: expected a number between 0 and 1, got 1");
  expect(errorOf(() => emaDecays({ warmup: -1 })).message).toContain("warmup: expected an integer >= 0, got -1");
});

test("averages follow weights and running statistics over captured steps; swapped, the model has them", async () => {
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 4 });
  const options = { decay: 0.8, warmup: 2 };
  using ema = new Ema(model, options);
  using optimizer = new SGD(model, { schedule: constantRate(0.05), iterations: 6 });
  using step = new TrainStep(model, optimizer, { ...shape, ema });
  using images = Tensor.from(device, new Random("noise").normal(64 * 64 * 3), [1, 64, 64, 3]);
  const read = (tensors: Iterable<[string, Tensor]>) =>
    new Map([...tensors].map(([name, tensor]) => [name, Float64Array.from(tensor.read() as Float32Array)]));
  const expected = read(model.stateDict());
  const decays = emaDecays(options);
  for (let i = 0; i < 6; i++) {
    await step.submit(images, targets);
    await step.drain();
    for (const [name, values] of read(model.stateDict())) {
      const average = expected.get(name)!;
      for (const [j, value] of values.entries()) average[j] = decays[i]! * average[j]! + (1 - decays[i]!) * value;
    }
  }
  const averages = read(ema.averages);
  expect([...averages.keys()].some((name) => name.includes("running_var"))).toBe(true);
  for (const [name, values] of averages) expectClose(values, expected.get(name)!, { rtol: 1e-5, atol: 1e-6 }, name);
  const weights = read(model.stateDict());
  ema.swap();
  expect(read(model.stateDict())).toEqual(averages);
  expect(read(ema.averages)).toEqual(weights);
  ema.swap();
  expect(read(model.stateDict())).toEqual(weights);
});

test("groups set decay and rate of the parameters that they match", async () => {
  const train = async (options: Partial<ConstructorParameters<typeof SGD>[1]>) => {
    using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
    model.to(device, { seed: 4 });
    const read = () =>
      new Map([...model.namedParameters()].map(([name, { tensor, grad }]) => [name, [tensor.read(), grad!.read()]]));
    const before = read();
    const common = { schedule: constantRate(0.5), iterations: 3, momentum: 0, weightDecay: 0.1 };
    using optimizer = new SGD(model, { ...common, ...options });
    using step = new TrainStep(model, optimizer, shape);
    using images = Tensor.from(device, new Random("noise").normal(64 * 64 * 3), [1, 64, 64, 3]);
    await step.submit(images, targets);
    await step.drain();
    return {
      before,
      after: read(),
      dimensions: new Map([...model.namedParameters()].map(([n, p]) => [n, p.shape.length])),
    };
  };
  const groups = [
    { match: /^stem\./, rate: 0 },
    { match: /^box_head\..*weight$/, rate: 0.5, weightDecay: 0.2 },
    withoutDecay,
  ];
  const { before, after, dimensions } = await train({ groups });
  const seen = new Set<string>();
  for (const [name, [weights, gradient]] of after) {
    const [rate, decay] = name.startsWith("stem.")
      ? [0, 0.1]
      : /^box_head\..*weight$/.test(name)
        ? [0.5, 0.2]
        : [1, dimensions.get(name)! <= 1 ? 0 : 0.1];
    seen.add(`${rate} ${decay}`);
    const expected = Float64Array.from(before.get(name)![0]!, (w, i) => {
      return Number(w) - 0.5 * rate * (Number(gradient![i]) + decay * Number(w));
    });
    expectClose(weights as Float32Array, expected, { rtol: 1e-5, atol: 1e-6 }, name);
  }
  expect(seen.size).toBe(4);
  const wrong = await train({ groups: [{ match: /^steem/ }] }).catch((e: Error) => e);
  expect(String(wrong)).toContain("groups[0]: /^steem/ matches no parameter that trains");
  const negative = await train({ groups: [{ match: /./, rate: -1 }] }).catch((e: Error) => e);
  expect(String(negative)).toContain("groups[0]: expected numbers >= 0, got weightDecay 0, rate -1");
});

test("a step of several batches takes the mean of their gradients, and reports the mean of their losses", async () => {
  const noise = [0, 1, 2, 3, 4, 5].map((i) => new Random(`noise ${i}`).normal(64 * 64 * 3));
  const train = async (accumulate: number, rate: number, batches: readonly number[], options = {}) => {
    using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
    model.to(device, { seed: 4 });
    const settings = { schedule: constantRate(rate), iterations: 9, momentum: 0, weightDecay: 0.1, clipNorm: 1e9 };
    using optimizer = new SGD(model, { ...settings, ...options });
    using step = new TrainStep(model, optimizer, { ...shape, accumulate });
    const reports = [];
    for (const i of batches) {
      using images = Tensor.from(device, noise[i]!, [1, 64, 64, 3]);
      const { finished, copied } = await step.submit(images, targets);
      if (finished) reports.push(finished);
      void copied;
      reports.push(...(await step.drain()));
    }
    const read = (of: "tensor" | "grad") =>
      model.parameters().flatMap((parameter) => Array.from(parameter[of]!.read() as Float32Array));
    return { reports, weights: read("tensor"), gradients: read("grad"), iteration: step.iteration };
  };
  // Weights that never move: the gradients of each batch by itself.
  const alone = await Promise.all([0, 1, 2].map((i) => train(1, 0, [i])));
  const start = alone[0]!.weights;
  const three = await train(3, 0.5, [0, 1, 2]);
  expect([three.reports.length, three.iteration]).toEqual([1, 1]);
  const mean = start.map((_, i) => alone.reduce((sum, { gradients }) => sum + gradients[i]!, 0) / 3);
  const expected = start.map((weight, i) => weight - 0.5 * (mean[i]! + 0.1 * weight));
  expectClose(three.weights, expected, { rtol: 1e-5, atol: 1e-6 }, "weights");
  const [report] = three.reports;
  for (const [name, value] of Object.entries(report!.losses)) {
    const losses = alone.map(({ reports }) => reports[0]!.losses[name]!);
    expect(value).toBeCloseTo(losses.reduce((sum, loss) => sum + loss, 0) / 3, 4);
  }
  const norm = Math.sqrt(mean.reduce((sum, g) => sum + g * g, 0));
  expectClose([report!.gradNorm!], [norm], { rtol: 1e-4, atol: 0 }, "the norm of the mean");
  // Captured, and clipped by the norm of the mean: the second step takes up no gradient of the first.
  const twice = await train(3, 0.5, [0, 1, 2, 0, 1, 2], { weightDecay: 0, clipNorm: 1e-9 });
  expect(twice.reports.map(({ iteration }) => iteration)).toEqual([0, 1]);
  expectClose(
    twice.reports.map(({ gradNorm }) => gradNorm!),
    [norm, norm],
    { rtol: 1e-3, atol: 0 },
    "norms",
  );
  const wrong = await train(0, 0, []).catch((e: Error) => e);
  expect(String(wrong)).toContain("accumulate: expected an integer >= 1, got 0");
});

test("the rate's factor holds from the next step on, in a captured step too", async () => {
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 4 });
  using optimizer = new SGD(model, { schedule: (i) => 0.01 * (i + 1), iterations: 9 });
  using step = new TrainStep(model, optimizer, shape);
  using images = Tensor.zeros(device, [1, 64, 64, 3]);
  const rates: number[] = [];
  for (let i = 0; i < 5; i++) {
    if (i === 3) optimizer.rateFactor = 0.1;
    await step.submit(images, targets);
    rates.push(...(await step.drain()).map(({ rate }) => rate));
  }
  for (const [i, rate] of [0.01, 0.02, 0.03, 0.004, 0.005].entries()) expect(rates[i]!).toBeCloseTo(rate, 7);
  expect(() => {
    optimizer.rateFactor = Number.NaN;
  }).toThrow("rateFactor: expected a number >= 0, got NaN");
});

/** Dropout: what is dropped, when draws repeat and when not, and where its counter is kept. */
import { afterEach, describe, expect, test } from "bun:test";
import { Program, type Value } from "../../lib/graph";
import { Conv2d, Dropout, Model, Sequential } from "../../lib/layers";
import { loadTorchWeights, torchWeights } from "../../lib/models";
import { Tensor } from "../../lib/tensor";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const owned: Disposable[] = [];
afterEach(() => {
  for (const item of owned.splice(0).reverse()) item[Symbol.dispose]();
});

/** Two layers of dropout, the first of them applied twice. */
class Net extends Model {
  first: Dropout;
  second: Dropout;
  constructor(p = 0.25, seed = 0) {
    super();
    this.first = new Dropout(p, { seed });
    this.second = new Dropout(p, { seed });
  }
  forward(x: Value): Value[] {
    return [this.first.forward(x), this.first.forward(x), this.second.forward(x)];
  }
}

const size = 8192;
const made = (net: Net): Net => {
  owned.push(net.to(device));
  return net;
};
function ones(): Tensor {
  const x = Tensor.full(device, [1, 1, 1, size], 1);
  owned.push(x);
  return x;
}
const draw = (net: Net): string[] => {
  const results = net.call(ones()) as Tensor[];
  return results.map((result) => result.read().join());
};

describe("in training", () => {
  test("keeps 1 - p of the elements, scaled by 1 / (1 - p)", () => {
    const [y] = made(new Net(0.25)).call(ones()) as Tensor[];
    const values = Array.from(y!.read());
    const scaled = Math.fround(1 / 0.75);
    expect(values.every((value) => value === 0 || value === scaled)).toBe(true);
    const share = values.filter((value) => value !== 0).length / size;
    // Five standard deviations of the mean of as many draws.
    expect(Math.abs(share - 0.75)).toBeLessThan(5 * Math.sqrt((0.25 * 0.75) / size));
  });

  test("the gradient passes where the element was kept", () => {
    const net = made(new Net());
    const upstream = [ones(), ones(), ones()];
    const results = (net.call(ones()) as Tensor[]).map((result) => Array.from(result.read()));
    const [dx] = net.backward(...upstream);
    const sum = results[0]!.map((value, i) => value + results[1]![i]! + results[2]![i]!);
    for (const [i, value] of Array.from(dx!.read()).entries()) expect(value).toBeCloseTo(sum[i]!, 5);
  });

  test("layers, applications and runs drop different elements, also in a captured graph", () => {
    const net = made(new Net());
    net.assignNames();
    using program = new Program(
      device,
      { x: { shape: [1, 1, 1, size], dtype: "f32" } },
      ({ x }) => Object.fromEntries(net.forward(x!).map((y, i) => [`${i}`, y])),
      { training: true },
    );
    program.inputs.x!.write(new Float32Array(size).fill(1));
    const seen = new Set<string>();
    for (let run = 0; run < 4; ++run) {
      program.run();
      for (const result of Object.values(program.results)) seen.add(result.read().join());
    }
    expect(seen.size).toBe(12);
  });

  test("another seed drops others, the same seed the same", () => {
    const first = draw(made(new Net(0.25, 1)));
    expect(draw(made(new Net(0.25, 1)))).toEqual(first);
    expect(draw(made(new Net(0.25, 2)))[0]).not.toBe(first[0]);
  });

  test("goes on from a saved counter as if it had not stopped", () => {
    const net = made(new Net());
    draw(net);
    const saved = new Map([...net.stateDict()].map(([name, tensor]) => [name, Array.from(tensor.read())]));
    expect([...saved]).toEqual([
      ["first.counter", [2]],
      ["second.counter", [1]],
    ]);
    const next = draw(net);
    const resumed = made(new Net());
    resumed.loadStateDict(saved);
    expect(draw(resumed)).toEqual(next);
  });
});

test("in inference it is the identity and costs no call", () => {
  const net = made(new Net()).eval();
  const x = ones();
  for (const result of net.call(x) as Tensor[]) expect(Array.from(result.read())).toEqual(Array.from(x.read()));
  using program = new Program(device, { x: { shape: [1, 1, 1, size], dtype: "f32" } }, ({ x: v }) => ({
    y: net.first.forward(v!),
  }));
  expect(program.calls).toHaveLength(0);
  expect(net.stateDict().get("first.counter")!.read()[0]).toBe(0);
});

test("its counter is in the state, and not in exported weights", () => {
  class Classifier extends Model {
    layers = new Sequential(new Dropout(0.2), new Conv2d(3, 2, 1));
    forward(x: Value): Value {
      return this.layers.forward(x);
    }
  }
  using model = new Classifier().to(device);
  expect([...model.stateDict().keys()]).toEqual(["layers.0.counter", "layers.1.weight", "layers.1.bias"]);
  const weights = torchWeights(model);
  expect([...weights.keys()]).toEqual(["layers.1.weight", "layers.1.bias"]);
  expect(loadTorchWeights(model, weights).missing).toEqual([]);
  // Weights from elsewhere have none: the counter keeps its value.
  model.loadStateDict(new Map([...weights].map(([name, { data }]) => [name, data])));
});

test.each([1, -0.1, Number.NaN])("p = %p is refused", (p) => {
  expect(errorOf(() => new Dropout(p)).message).toBe(`Dropout: expected p in [0, 1), got ${p}`);
});

test.each([-1, 0.5, 2 ** 20])("the seed %p is refused", (seed) => {
  expect(errorOf(() => new Dropout(0.5, { seed })).message).toBe(
    `Dropout: expected a seed from 0 to 2^20 - 1, got ${seed}`,
  );
});

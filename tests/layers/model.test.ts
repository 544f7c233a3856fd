/** Model: state, modes, call and backward, with PyTorch's semantics. */
import { afterEach, describe, expect, test } from "bun:test";
import { add, relu, type Value } from "../../lib/graph";
import {
  Add,
  BatchNorm2d,
  Conv2d,
  InputLayer,
  Layer,
  Model,
  type ModelOptions,
  Sequential,
  SiLU,
} from "../../lib/layers";
import { DlfsError, ErrorCode } from "../../lib/native";
import { Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const device = testDevice();
const owned: Disposable[] = [];
afterEach(() => {
  for (const item of owned.splice(0).reverse()) item[Symbol.dispose]();
});

function own<T extends Disposable>(item: T): T {
  owned.push(item);
  return item;
}

const tensor = (shape: number[], seed = "x", dtype: "f32" | "bf16" = "f32") =>
  own(Tensor.from(device, new Random(seed).normal(shape.reduce((a, b) => a * b)), shape, dtype));
const onDevice = <M extends Model>(model: M, options?: ModelOptions): M => own(model.to(device, options));
const read = (from: Tensor | Tensor[]) => Array.from((from as Tensor).read());

class Block extends Layer {
  conv1: Conv2d;
  batchNorm: BatchNorm2d;
  constructor(channels: number) {
    super();
    this.conv1 = new Conv2d(channels, channels, 3, { padding: 1, bias: false });
    this.batchNorm = new BatchNorm2d(channels);
  }
  forward(x: Value): Value {
    return relu(add(this.batchNorm.forward(this.conv1.forward(x)), x));
  }
}

class Net extends Model {
  stem = new Conv2d(3, 4, 3, { stride: 2, padding: 1 });
  blocks = [new Block(4), new Block(4)];
  head = new Sequential(new SiLU(), new Conv2d(4, 2, 1));
  forward(x: Value): Value {
    return this.head.forward(this.blocks.reduce((y, block) => block.forward(y), this.stem.forward(x)));
  }
}

describe("names", () => {
  const names = [
    "stem.weight",
    "stem.bias",
    "blocks.0.conv1.weight",
    "blocks.0.batch_norm.weight",
    "blocks.0.batch_norm.bias",
    "blocks.0.batch_norm.running_mean",
    "blocks.0.batch_norm.running_var",
    "blocks.1.conv1.weight",
    "blocks.1.batch_norm.weight",
    "blocks.1.batch_norm.bias",
    "blocks.1.batch_norm.running_mean",
    "blocks.1.batch_norm.running_var",
    "head.1.weight",
    "head.1.bias",
  ];

  test("are PyTorch's paths", () => {
    const net = new Net();
    expect([...net.namedState().keys()]).toEqual(names);
    expect([...net.namedParameters().keys()]).toEqual(names.filter((name) => !name.includes("running")));
    expect(net.parameters()).toHaveLength(10);
    net.assignNames();
    expect(net.parameters().map((parameter) => parameter.name)).toEqual([...net.namedParameters().keys()]);
  });

  test("a layer used in two places is listed once", () => {
    class Shared extends Model {
      first = new Conv2d(2, 2, 1);
      second = this.first;
      forward(x: Value): Value {
        return this.second.forward(this.first.forward(x));
      }
    }
    expect([...new Shared().namedState().keys()]).toEqual(["first.weight", "first.bias"]);
  });
});

describe("initial weights", () => {
  test("have torch's bounds, and depend on the seed and the place alone", () => {
    const weightsOf = (seed: number) => {
      const net = new Net().to(device, { seed });
      const values = new Map([...net.stateDict()].map(([name, t]) => [name, read(t)]));
      net.dispose();
      return values;
    };
    const [a, again, b] = [weightsOf(1), weightsOf(1), weightsOf(2)];
    expect(again).toEqual(a);
    expect(b.get("stem.weight")).not.toEqual(a.get("stem.weight"));
    expect(a.get("blocks.0.conv1.weight")).not.toEqual(a.get("blocks.1.conv1.weight"));
    const bound = 1 / Math.sqrt(27);
    expect(Math.max(...a.get("stem.weight")!.map(Math.abs))).toBeLessThanOrEqual(bound);
    expect(Math.max(...a.get("stem.weight")!.map(Math.abs))).toBeGreaterThan(0.9 * bound);
    expect(a.get("blocks.1.batch_norm.running_var")).toEqual([1, 1, 1, 1]);
    expect(a.get("blocks.1.batch_norm.bias")).toEqual([0, 0, 0, 0]);
  });
});

describe("stateDict and loadStateDict", () => {
  const stateOf = (net: Model) => new Map([...net.stateDict()].map(([name, t]) => [name, t.read() as Float32Array]));

  test("carry a model over to another", () => {
    const [from, to] = [onDevice(new Net(), { seed: 1 }), onDevice(new Net(), { seed: 2 })];
    const x = tensor([1, 8, 8, 3]);
    const [before, wanted] = [read(to.eval().call(x)), read(from.eval().call(x))];
    expect(before).not.toEqual(wanted);
    to.loadStateDict(stateOf(from));
    expectClose(read(to.call(x)), wanted, { rtol: 1e-6, atol: 1e-6 });
  });

  test("stateDict's tensors are the parameters themselves", () => {
    const net = onDevice(new Net());
    net.stateDict().get("head.1.bias")!.write([5, 6]);
    expect(Array.from(net.namedState().get("head.1.bias")!.tensor.read())).toEqual([5, 6]);
  });

  test("missing and unexpected names are both listed", () => {
    const net = onDevice(new Net());
    const state = stateOf(net);
    state.delete("stem.bias");
    state.set("neck.weight", new Float32Array(3));
    const error = errorOf(() => net.loadStateDict(state));
    expect(error.message).toBe("Net.loadStateDict: missing: stem.bias; unexpected: neck.weight");
    net.loadStateDict(state, { strict: false });
  });

  test("a wrong number of values names the parameter and its shape, and changes nothing", () => {
    const net = onDevice(new Net(), { seed: 3 });
    const before = stateOf(net);
    const state = new Map(
      [...before].map(([name, values]): [string, Float32Array] => [name, values.map((v) => v + 1)]),
    );
    state.set("head.1.weight", new Float32Array(9));
    expect(errorOf(() => net.loadStateDict(state)).message).toBe(
      "head.1.weight: expected 8 values for (2, 1, 1, 4), got 9",
    );
    expect(stateOf(net)).toEqual(before);
  });
});

describe("training and evaluation", () => {
  test("train() and eval() reach all layers and return the model", () => {
    const net = new Net();
    expect(net.eval()).toBe(net);
    expect([...net.namedLayers()].every(([, layer]) => !layer.training)).toBe(true);
    net.train();
    expect([...net.namedLayers()].every(([, layer]) => layer.training)).toBe(true);
  });

  test("running statistics move in training only; results follow the mode", () => {
    const net = onDevice(new Net());
    const mean = () => read(net.stateDict().get("blocks.0.batch_norm.running_mean")!);
    const x = tensor([2, 8, 8, 3]);
    const evaluated = read(net.eval().call(x));
    expect(mean()).toEqual([0, 0, 0, 0]);
    const trained = read(net.train().call(x));
    const moved = mean();
    expect(moved).not.toEqual([0, 0, 0, 0]);
    expect(trained).not.toEqual(evaluated);
    net.eval().call(x);
    expect(mean()).toEqual(moved);
  });

  test("a part may be in another mode than the rest, from one call to the next", () => {
    const net = onDevice(new Net());
    const mean = (block: number) => read(net.stateDict().get(`blocks.${block}.batch_norm.running_mean`)!);
    const x = tensor([2, 8, 8, 3]);
    for (const parameter of net.parameters()) parameter.requiresGrad = false;
    net.head.layers[1]!.namedState().get("weight")!.requiresGrad = true;
    net.call(x);
    const [first, second] = [mean(0), mean(1)];
    net.blocks[0]!.eval();
    net.call(x);
    expect(mean(0)).toEqual(first);
    expect(mean(1)).not.toEqual(second);
  });

  test("a parameter frozen between two calls gets no more gradients", () => {
    const net = onDevice(new Net());
    const [x, weight] = [tensor([2, 8, 8, 3]), net.namedParameters().get("head.1.weight")!];
    const dy = own(Tensor.full(device, (net.call(x) as Tensor).shape, 1));
    net.backward(dy);
    const before = read(weight.grad!);
    expect(before.some((g) => g !== 0)).toBe(true);
    weight.requiresGrad = false;
    net.call(x);
    net.backward(dy);
    expect(read(weight.grad!)).toEqual(before);
  });

  test("evaluation sees weights and statistics that changed since its program was made", () => {
    const net = onDevice(new Net());
    const x = tensor([2, 8, 8, 3]);
    const first = read(net.eval().call(x));
    net.train().call(x);
    const second = read(net.eval().call(x));
    expect(second).not.toEqual(first);
    const other = onDevice(new Net());
    other.loadStateDict(new Map([...net.stateDict()].map(([name, t]) => [name, t.read() as Float32Array])));
    expectClose(second, read(other.eval().call(x)), { rtol: 1e-5, atol: 1e-5 });
  });
});

describe("backward()", () => {
  class Scale extends Model {
    conv = new Conv2d(1, 1, 1, { bias: false });
    forward(x: Value): Value {
      return this.conv.forward(x);
    }
  }
  const scaleBy = (factor: number) => {
    const model = onDevice(new Scale());
    model.loadStateDict(new Map([["conv.weight", [factor]]]));
    return model;
  };

  test("adds to the gradients, as torch does, until zeroGrad()", () => {
    const model = scaleBy(3);
    const x = own(Tensor.from(device, [1, 2, 3, 4], [1, 2, 2, 1]));
    const dy = own(Tensor.from(device, [1, 1, 1, 1], [1, 2, 2, 1]));
    const gradient = () => read(model.parameters()[0]!.grad!);
    expect(read(model.call(x))).toEqual([3, 6, 9, 12]);
    expect(read(model.backward(dy)[0]!)).toEqual([3, 3, 3, 3]);
    expect(gradient()).toEqual([10]);
    model.call(x);
    model.backward(dy);
    expect(gradient()).toEqual([20]);
    model.zeroGrad();
    expect(gradient()).toEqual([0]);
    model.call(x);
    model.backward(dy);
    expect(gradient()).toEqual([10]);
  });

  test("needs a call in training mode before it, and one gradient for each result", () => {
    const model = scaleBy(1);
    const x = tensor([1, 2, 2, 1]);
    expect(errorOf(() => model.backward(x)).message).toBe(
      "Scale: backward() needs a call() in training mode before it",
    );
    model.eval().call(x);
    expect(errorOf(() => model.backward(x)).message).toContain("needs a call() in training mode");
    model.train().call(x);
    expect(errorOf(() => model.backward(x, x)).message).toBe("backward: expected 1 gradients, got 2");
    expect(errorOf(() => model.backward(tensor([1, 2, 2, 2]))).code).toBe(ErrorCode.shape);
  });

  test("of several results and inputs, in their order", () => {
    class Two extends Model {
      join = new Add();
      forward(a: Value, b: Value): { sum: Value; a: Value } {
        const sum = this.join.forward(a, b);
        return { sum, a: this.join.forward(a, a) };
      }
    }
    const model = onDevice(new Two());
    const [a, b] = [own(Tensor.from(device, [1, 2], [2])), own(Tensor.from(device, [10, 20], [2]))];
    const results = model.call(a, b) as Tensor[];
    expect(results.map(read)).toEqual([
      [11, 22],
      [2, 4],
    ]);
    const gradients = model.backward(own(Tensor.from(device, [1, 1], [2])), own(Tensor.from(device, [100, 1000], [2])));
    expect(gradients.map(read)).toEqual([
      [201, 2001],
      [1, 1],
    ]);
  });

  test("of an input that no result depends on is zero, in its place", () => {
    class First extends Model {
      forward(a: Value, b: Value, c: Value): Value {
        relu(b);
        return add(a, c);
      }
    }
    const model = onDevice(new First());
    const inputs = [tensor([3], "a"), tensor([4], "b"), tensor([3], "c")];
    model.call(...inputs);
    const gradients = model.backward(own(Tensor.from(device, [1, 2, 3], [3])));
    expect(gradients.map(read)).toEqual([
      [1, 2, 3],
      [0, 0, 0, 0],
      [1, 2, 3],
    ]);
  });
});

describe("programs of call()", () => {
  test("are built once per shape and mode, and the least recently used goes first", () => {
    let traces = 0;
    class Counting extends Model {
      conv = new Conv2d(1, 1, 1);
      forward(x: Value): Value {
        ++traces;
        return this.conv.forward(x);
      }
    }
    const model = onDevice(new Counting()).eval();
    const sizes = [1, 2, 3, 4, 5, 6, 7, 8].map((n) => tensor([n, 2, 2, 1]));
    for (const x of sizes) model.call(x);
    expect(traces).toBe(8);
    for (const x of sizes) model.call(x);
    expect(traces).toBe(8);
    model.call(tensor([9, 2, 2, 1])); // takes the place of the first
    model.call(sizes[1]!);
    expect(traces).toBe(9);
    model.call(sizes[0]!); // and this that of the third
    expect(traces).toBe(10);
    model.call(sizes[1]!);
    expect(traces).toBe(10);
    model.call(sizes[2]!);
    expect(traces).toBe(11);
    model.train().call(sizes[0]!);
    expect(traces).toBe(12);
  });

  test("keep their memory within the cap", () => {
    const model = onDevice(new Net()).eval();
    const run = (round: number) => {
      for (let n = 1; n <= 12; ++n) {
        const x = Tensor.from(device, new Random(`${round}`).normal(n * 192), [n, 8, 8, 3]);
        model.call(x);
        x.dispose();
      }
      return device.memory().allocated;
    };
    expect(run(1)).toBe(run(2));
  });

  test("give the same numbers in every run", () => {
    const model = onDevice(new Net()).eval();
    const x = tensor([2, 8, 8, 3]);
    const first = read(model.call(x));
    for (let i = 0; i < 4; ++i) expectClose(read(model.call(x)), first, { rtol: 1e-6, atol: 1e-6 });
  });
});

describe("errors", () => {
  test("before to(device)", () => {
    const net = new Net();
    expect(errorOf(() => net.call(tensor([1, 8, 8, 3]))).message).toBe("Net: is on no device: call to(device) first");
    net.assignNames();
    expect(errorOf(() => net.stateDict()).message).toContain(
      "stem.weight: has no memory yet: call model.to(device) first",
    );
  });

  test("to() twice", () => {
    const net = onDevice(new Net());
    expect(errorOf(() => net.to(device)).message).toBe("Net: is on a device already");
  });

  test("a wrong number of channels names the layer", () => {
    const net = onDevice(new Net());
    expect(errorOf(() => net.call(tensor([1, 8, 8, 4]))).message).toBe("stem: expected 3 channels, got 4");
    // and the model still works
    expect((net.call(tensor([1, 8, 8, 3])) as Tensor).shape).toEqual([1, 4, 4, 2]);
  });

  test("an input layer names what it expects", () => {
    class Strict extends Model {
      input = new InputLayer(3, [8, 8]);
      forward(x: Value): Value {
        return this.input.forward(x);
      }
    }
    const model = onDevice(new Strict());
    const error = errorOf(() => model.call(tensor([1, 8, 9, 3])));
    expect(error.message).toContain("expected (N, 8, 8, 3), got (1, 8, 9, 3)");
    expect(error).toBeInstanceOf(DlfsError);
    expect((model.call(tensor([2, 8, 8, 3])) as Tensor).shape).toEqual([2, 8, 8, 3]);
  });

  test("channels that groups do not divide, when the layer is made", () => {
    expect(errorOf(() => new Conv2d(6, 8, 3, { groups: 4 })).message).toBe(
      "Conv2d: expected channels divisible by 4 groups, got 6 in and 8 out",
    );
  });

  test("a precision that the device lacks", () => {
    const reason = missing(device, "f16", ["conv.f16"]);
    if (!reason) return void onDevice(new Net(), { precision: "f16" });
    const error = errorOf(() => new Net().to(device, { precision: "f16" }));
    expect(error.code).toBe(ErrorCode.unsupported);
    expect(error.message).toContain("precision fp16 is not supported by");
  });
});

describe("bf16", () => {
  const reason = missing(device, "bf16", ["conv.bf16"]);
  (reason ? test.skip : test)("activations are bf16, parameters and their gradients fp32", () => {
    const model = onDevice(new Net(), { precision: "bf16" });
    const x = tensor([2, 8, 8, 3], "x", "bf16");
    const y = model.call(x) as Tensor;
    expect(y.dtype).toBe("bf16");
    model.backward(own(Tensor.full(device, y.shape, 1, "bf16")));
    for (const [name, parameter] of model.namedParameters()) {
      expect([parameter.tensor.dtype, parameter.grad!.dtype, parameter.copy!.dtype], name).toEqual([
        "f32",
        "f32",
        "bf16",
      ]);
    }
    const exact = onDevice(new Net());
    const z = exact.call(own(Tensor.from(device, x.read(), x.shape))) as Tensor;
    expectClose(read(y), read(z), { rtol: 0.05, atol: 0.1 });
  });

  (reason ? test.skip : test)("a model of fp32 given bf16 says what to do", () => {
    const model = onDevice(new Net());
    expect(errorOf(() => model.call(tensor([1, 8, 8, 3], "x", "bf16"))).message).toContain(
      'call model.to(device, { precision: "bf16" })',
    );
  });

  (reason ? test.skip : test)("loadStateDict refreshes the copies", () => {
    const model = onDevice(new Net(), { precision: "bf16" });
    const state = new Map(
      [...model.stateDict()].map(([name, t]): [string, Float32Array] => [name, (t.read() as Float32Array).fill(0.5)]),
    );
    model.loadStateDict(state);
    expect(read(model.parameters()[0]!.copy!)[0]).toBe(0.5);
  });
});

describe("dispose()", () => {
  test("gives back all memory", () => {
    new Net().to(device).dispose(); // plans and other caches exist from here on
    const before = device.memory().allocated;
    const net = new Net().to(device);
    const x = Tensor.zeros(device, [1, 8, 8, 3]);
    net.call(x);
    net.backward(net.call(x) as Tensor);
    net.eval().call(x);
    x.dispose();
    net.dispose();
    net.dispose();
    expect(device.memory().allocated).toBe(before);
    expect(errorOf(() => net.device).message).toContain("is on no device");
  });
});

/** Weights by PyTorch's names: layouts, the way there and back, and what does not fit. */
import { afterEach, describe, expect, test } from "bun:test";
import type { Value } from "../../lib/graph";
import { BatchNorm2d, Conv2d, ConvTranspose2d, FrozenBatchNorm2d, Layer, Model } from "../../lib/layers";
import { describeLoaded, FeaturePyramid, loadTorchWeights, type TorchWeight, torchWeights } from "../../lib/models";
import { DlfsError, ErrorCode } from "../../lib/native";
import { Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";

const device = testDevice();
const owned: Disposable[] = [];
afterEach(() => {
  for (const item of owned.splice(0).reverse()) item[Symbol.dispose]();
});

class Block extends Layer {
  conv1 = new Conv2d(2, 3, [3, 2], { bias: false });
  bn1 = new BatchNorm2d(3);

  forward(x: Value): Value {
    return this.bn1.forward(this.conv1.forward(x));
  }
}

class Net extends Model {
  body = new Block();
  head = new Conv2d(3, 4, 1);

  forward(x: Value): Value {
    return this.head.forward(this.body.forward(x));
  }
}

function net(): Net {
  const made = new Net().to(device, { seed: 3 });
  owned.push(made);
  return made;
}

/** Entries with random values. */
function stateDict(shapes: Record<string, number[]>): Map<string, TorchWeight> {
  return new Map(
    Object.entries(shapes).map(([name, shape]) => [
      name,
      { shape, data: new Random(name).normal(shape.reduce((a, b) => a * b, 1)) },
    ]),
  );
}

const blockShapes = {
  "conv1.weight": [3, 2, 3, 2],
  "bn1.weight": [3],
  "bn1.bias": [3],
  "bn1.running_mean": [3],
  "bn1.running_var": [3],
};
const netShapes = {
  ...Object.fromEntries(Object.entries(blockShapes).map(([name, shape]) => [`body.${name}`, shape])),
  "head.weight": [4, 3, 1, 1],
  "head.bias": [4],
};
const values = (model: Model) => new Map([...model.stateDict()].map(([name, tensor]) => [name, [...tensor.read()]]));

describe("loadTorchWeights", () => {
  test("puts every entry in its place, convolution weights as (out, height, width, in)", () => {
    const model = net();
    const weights = stateDict(netShapes);
    weights.set("body.bn1.num_batches_tracked", { shape: [], data: Float32Array.of(7) });
    const { loaded, missing, skipped } = loadTorchWeights(model, weights);
    expect(loaded.sort()).toEqual(Object.keys(netShapes).sort());
    expect([missing, skipped]).toEqual([[], []]);
    const conv = weights.get("body.conv1.weight")!.data;
    const got = values(model).get("body.conv1.weight")!;
    // weight[k][c][r][s] of (3, 2, 3, 2) is here weight[k][r][s][c]
    for (let k = 0; k < 3; ++k)
      for (let c = 0; c < 2; ++c)
        for (let r = 0; r < 3; ++r)
          for (let s = 0; s < 2; ++s)
            expect(got[((k * 3 + r) * 2 + s) * 2 + c]).toBe(conv[((k * 2 + c) * 3 + r) * 2 + s]!);
    expect(values(model).get("body.bn1.running_var")).toEqual([...weights.get("body.bn1.running_var")!.data]);
  });

  test("torchWeights gives the same entries back", () => {
    const model = net();
    const weights = stateDict(netShapes);
    loadTorchWeights(model, weights);
    const back = torchWeights(model);
    expect([...back.keys()].sort()).toEqual([...weights.keys()].sort());
    for (const [name, { shape, data }] of back) {
      expect(shape).toEqual(weights.get(name)!.shape);
      expect(data).toEqual(weights.get(name)!.data);
    }
    expect([...torchWeights(model, { from: "body" }).keys()].sort()).toEqual(Object.keys(blockShapes).sort());
    expect(errorOf(() => torchWeights(model, { from: "neck" })).message).toContain('"neck"');
  });

  test("what layers share has each of its names, as in PyTorch, and is loaded by any of them", () => {
    class Tied extends Model {
      first = new Conv2d(2, 2, 1, { bias: false });
      second = new Conv2d(2, 2, 1);

      constructor() {
        super();
        Object.assign(this.second, { weight: this.first.weight });
      }

      forward(x: Value): Value {
        return this.second.forward(this.first.forward(x));
      }
    }
    const model = new Tied().to(device, { seed: 1 });
    owned.push(model);
    const weights = torchWeights(model);
    expect([...weights.keys()]).toEqual(["first.weight", "second.weight", "second.bias"]);
    expect(weights.get("second.weight")).toEqual(weights.get("first.weight")!);

    const shape = [2, 2, 1, 1];
    const weight = { shape, data: Float32Array.of(1, 2, 3, 4) };
    const bias = { shape: [2], data: Float32Array.of(5, 6) };
    const both = { "second.weight": weight, "first.weight": { ...weight }, "second.bias": bias };
    const report = loadTorchWeights(model, new Map(Object.entries(both)));
    expect(report).toMatchObject({ loaded: ["first.weight", "second.bias"], missing: [], unexpected: [], skipped: [] });
    expect(values(model).get("first.weight")).toEqual([1, 2, 3, 4]);

    const other = { shape, data: Float32Array.of(7, 8, 9, 10) };
    loadTorchWeights(model, new Map(Object.entries({ "second.weight": other, "second.bias": bias })));
    expect(values(model).get("first.weight")).toEqual([7, 8, 9, 10]);
    loadTorchWeights(model, new Map(Object.entries({ weight, bias })), { into: "second" });
    expect(values(model).get("first.weight")).toEqual([1, 2, 3, 4]);

    const apart = new Map(Object.entries({ ...both, "first.weight": other }));
    expect(errorOf(() => loadTorchWeights(model, apart)).message).toBe(
      "loadTorchWeights: second.weight: the model shares this parameter with first.weight, which has other values",
    );
    expect(values(model).get("first.weight")).toEqual([1, 2, 3, 4]);
  });

  test("takes the weights of a model in DataParallel, unless the names are meant", () => {
    const wrapped = new Map([...stateDict(netShapes)].map(([name, weight]) => [`module.${name}`, weight]));
    expect(loadTorchWeights(net(), wrapped)).toMatchObject({ missing: [], unexpected: [] });
    expect(loadTorchWeights(net(), wrapped, { from: "module.body", into: "body" }).loaded).toHaveLength(5);
    wrapped.set("extra", wrapped.get("module.head.bias")!);
    expect(errorOf(() => loadTorchWeights(net(), wrapped)).message).toContain("7 missing: body.conv1.weight");
  });

  test("loads one part and leaves the rest, skipping what is asked", () => {
    const model = net();
    const before = values(model);
    const weights = stateDict({ ...blockShapes, "fc.weight": [10, 3], "fc.bias": [10] });
    const { loaded } = loadTorchWeights(model, weights, { into: "body", skip: (name) => name.startsWith("fc.") });
    expect(loaded.sort()).toEqual(
      Object.keys(blockShapes)
        .map((name) => `body.${name}`)
        .sort(),
    );
    const after = values(model);
    expect(after.get("head.weight")).toEqual(before.get("head.weight")!);
    expect(after.get("body.bn1.bias")).toEqual([...weights.get("bn1.bias")!.data]);
    expect(errorOf(() => loadTorchWeights(model, weights, { into: "neck" })).message).toContain('"neck"');
  });

  test("not strict, keeps what is missing and says so; a wrong shape is an error all the same", () => {
    const model = net();
    const before = values(model);
    const weights = stateDict({ "head.bias": [4], "neck.weight": [3] });
    const report = loadTorchWeights(model, weights, { strict: false });
    expect(report.loaded).toEqual(["head.bias"]);
    expect(report.missing.sort()).toEqual(
      Object.keys(netShapes)
        .filter((name) => name !== "head.bias")
        .sort(),
    );
    expect(report.unexpected).toEqual(["neck.weight"]);
    expect(values(model).get("head.weight")).toEqual(before.get("head.weight")!);
    const error = errorOf(() => loadTorchWeights(model, stateDict({ "head.bias": [5] }), { strict: false }));
    expect(error.code).toBe(ErrorCode.shape);
    expect(error.message).toBe("loadTorchWeights: 1 of another shape: head.bias: expected (4), got (5)");
  });

  test("ignoreMismatched leaves a head for other classes as it was, and says so", () => {
    const model = net();
    const before = values(model);
    const weights = stateDict({ ...netShapes, "head.weight": [7, 3, 1, 1], "head.bias": [7] });
    const report = loadTorchWeights(model, weights, { ignoreMismatched: true });
    expect(report.mismatched).toEqual([
      { name: "head.weight", expected: [4, 3, 1, 1], got: [7, 3, 1, 1] },
      { name: "head.bias", expected: [4], got: [7] },
    ]);
    expect(report.missing).toEqual([]);
    expect(values(model).get("head.bias")).toEqual(before.get("head.bias")!);
    expect(values(model).get("body.bn1.bias")).toEqual([...weights.get("body.bn1.bias")!.data]);
    expect(describeLoaded(report)).toEqual([
      "5 loaded",
      "2 of another shape, which keep their values: head.weight (4, 3, 1, 1), got (7, 3, 1, 1), head.bias (4), got (7)",
    ]);
    const short = stateDict(netShapes);
    short.set("head.bias", { shape: [4], data: new Float32Array(3) });
    expect(errorOf(() => loadTorchWeights(model, short, { ignoreMismatched: true })).message).toContain("got 3");
  });

  test("only and skip choose on both sides, by prefixes of whole parts or by a test", () => {
    const weights = stateDict({ ...netShapes, "head.bias": [9], "body.conv10.weight": [1], "neck.weight": [1] });
    const names = Object.keys(netShapes).filter((name) => name.startsWith("body."));
    const model = net();
    const skipping = loadTorchWeights(model, weights, { skip: ["head", "neck", "body.conv10"] });
    expect(skipping.loaded.sort()).toEqual([...names].sort());
    expect(skipping.skipped.sort()).toEqual(["body.conv10.weight", "head.bias", "head.weight", "neck.weight"]);
    expect(skipping.missing).toEqual([]);
    expect(loadTorchWeights(model, weights, { only: "body", skip: "body.conv10" }).loaded.sort()).toEqual(names.sort());
    expect(loadTorchWeights(model, weights, { only: (name) => name.endsWith("bn1.bias") }).loaded).toEqual([
      "body.bn1.bias",
    ]);
    // "body.conv1" is no prefix of "body.conv10".
    expect(errorOf(() => loadTorchWeights(model, weights, { only: "body", skip: "body.conv1" })).message).toBe(
      "loadTorchWeights: 1 unexpected: body.conv10.weight",
    );
  });

  test("takes a part of the weights, under names of the caller's", () => {
    const model = net();
    const weights = stateDict({
      ...Object.fromEntries(Object.entries(blockShapes).map(([name, shape]) => [`trunk.${name}`, shape])),
      "neck.weight": [1],
    });
    const { loaded } = loadTorchWeights(model, weights, { from: "trunk", into: "body" });
    expect(loaded.length).toBe(5);
    expect(values(model).get("body.bn1.bias")).toEqual([...weights.get("trunk.bn1.bias")!.data]);
    expect(errorOf(() => loadTorchWeights(model, weights, { from: "tail", into: "body" })).message).toContain(
      'there are no weights under "tail"',
    );
    const rename = (name: string) => name.replace(/^trunk\./, "body.").replace(/^neck\.weight$/, "head.bias");
    const report = loadTorchWeights(net(), weights, { rename, strict: false, ignoreMismatched: true });
    expect([report.loaded.length, report.missing, report.mismatched.length]).toEqual([5, ["head.weight"], 1]);
  });

  test("reads a file's tensors only when all fits, and all of them before it replaces one", () => {
    const model = net();
    const before = values(model);
    let reads = 0;
    const weights = new Map(
      [...stateDict(netShapes)].map(([name, { shape, data }]) => {
        const toFloat32 = () => {
          if (++reads === 7) throw new DlfsError(ErrorCode.io, "net.pth", "damaged");
          return data.slice();
        };
        return [name, { shape, toFloat32 }] as const;
      }),
    );
    errorOf(() => loadTorchWeights(model, weights, { into: "body" }));
    expect(reads).toBe(0);
    expect(errorOf(() => loadTorchWeights(model, weights, { from: "fc" })).message).toBe(
      'loadTorchWeights: there are no weights under "fc"',
    );
    expect(errorOf(() => loadTorchWeights(model, weights)).op).toBe("net.pth");
    expect(values(model)).toEqual(before);
    expect(loadTorchWeights(model, weights).loaded.length).toBe(7);
  });

  test("weights of which none fits are an error in any case, which names their file", () => {
    const options = { strict: false, ignoreMismatched: true };
    const model = net();
    expect(errorOf(() => loadTorchWeights(model, stateDict({ "fc.bias": [2] }), options)).message).toBe(
      "loadTorchWeights: none of the weights fits: the model has body.conv1.weight, body.bn1.weight, body.bn1.bias, ...",
    );
    const tensor = { path: "fc.pth", shape: [2], toFloat32: () => new Float32Array(2) };
    expect(errorOf(() => loadTorchWeights(model, new Map([["fc.bias", tensor]]))).op).toBe("fc.pth");
    expect(errorOf(() => loadTorchWeights(model, new Map())).message).toBe("loadTorchWeights: there are no weights");
  });

  test("names everything that does not fit in one error, and changes nothing", () => {
    const model = net();
    const before = values(model);
    const weights = stateDict({ ...netShapes, "head.weight": [4, 3, 3, 3], "neck.weight": [1], "fc.bias": [2] });
    weights.delete("body.bn1.bias");
    weights.delete("body.conv1.weight");
    weights.set("head.bias", { shape: [4], data: new Float32Array(3) });
    const error = errorOf(() => loadTorchWeights(model, weights));
    expect(error).toBeInstanceOf(DlfsError);
    expect(error.message).toBe(
      "loadTorchWeights: 2 missing: body.conv1.weight, body.bn1.bias; 2 unexpected: neck.weight, fc.bias; " +
        "2 of another shape: head.weight: expected (4, 3, 1, 1), got (4, 3, 3, 3), head.bias: expected 4 values, got 3",
    );
    expect(values(model)).toEqual(before);
  });

  test("brings the weights that inference holds up to date", () => {
    const model = net().eval();
    const x = Tensor.from(device, new Random("x").normal(2 * 5 * 6 * 2), [2, 5, 6, 2]);
    owned.push(x);
    const first = [...(model.call(x) as Tensor).read()];
    const weights = stateDict(netShapes);
    weights.set("body.bn1.running_var", { shape: [3], data: Float32Array.of(0.5, 1, 2) });
    loadTorchWeights(model, weights);
    const second = [...(model.call(x) as Tensor).read()];
    expect(second).not.toEqual(first);
    const again = net().eval();
    loadTorchWeights(again, weights);
    expectClose(second, [...(again.call(x) as Tensor).read()], { rtol: 1e-6, atol: 1e-6 });
  });

  test("understands the names of checkpoints before torchvision 0.13", () => {
    class Pyramid extends Model {
      fpn = new FeaturePyramid([2, 3], 4);
      classificationHead = new Tower();
      forward(x: Value): Value {
        return x;
      }
    }
    class Tower extends Layer {
      conv = [0, 1].map(() => new Wrapped());
      forward(x: Value): Value {
        return x;
      }
    }
    class Wrapped extends Layer {
      inner = new Conv2d(4, 4, 3);
      override namedChildren(): [string, Layer][] {
        return [["0", this.inner]];
      }
      forward(x: Value): Value {
        return x;
      }
    }
    const model = new Pyramid().to(device);
    owned.push(model);
    const old = stateDict({
      "fpn.inner_blocks.0.weight": [4, 2, 1, 1],
      "fpn.inner_blocks.0.bias": [4],
      "fpn.inner_blocks.1.weight": [4, 3, 1, 1],
      "fpn.inner_blocks.1.bias": [4],
      "fpn.layer_blocks.0.weight": [4, 4, 3, 3],
      "fpn.layer_blocks.0.bias": [4],
      "fpn.layer_blocks.1.weight": [4, 4, 3, 3],
      "fpn.layer_blocks.1.bias": [4],
      "classification_head.conv.0.weight": [4, 4, 3, 3],
      "classification_head.conv.0.bias": [4],
      "classification_head.conv.2.weight": [4, 4, 3, 3],
      "classification_head.conv.2.bias": [4],
    });
    loadTorchWeights(model, old);
    const now = torchWeights(model);
    expect(now.get("fpn.layer_blocks.1.0.weight")).toEqual(old.get("fpn.layer_blocks.1.weight")!);
    expect(now.get("classification_head.conv.1.0.bias")).toEqual(old.get("classification_head.conv.2.bias")!);
    const twice = new Map([...old, ["fpn.inner_blocks.0.0.bias", old.get("fpn.inner_blocks.0.bias")!]]);
    expect(errorOf(() => loadTorchWeights(model, twice)).message).toContain(
      "1 unexpected: fpn.inner_blocks.0.0.bias (besides fpn.inner_blocks.0.bias)",
    );
  });
});

describe("ConvTranspose2d", () => {
  class Up extends Model {
    up = new ConvTranspose2d(4, 6, [2, 3], { groups: 2, stride: [2, 3] });
    forward(x: Value): Value {
      return this.up.forward(x);
    }
  }

  test("takes PyTorch's weight (in, out / groups, height, width) and gives it back", () => {
    const model = new Up().to(device);
    owned.push(model);
    const weights = stateDict({ "up.weight": [4, 3, 2, 3], "up.bias": [6] });
    loadTorchWeights(model, weights);
    expect(torchWeights(model).get("up.weight")).toEqual(weights.get("up.weight")!);
    const { data } = weights.get("up.weight")!;
    const bias = weights.get("up.bias")!.data;
    // The image of one input channel alone is that channel's weights, in the channels of its group.
    for (let channel = 0; channel < 4; ++channel) {
      const x = Tensor.from(
        device,
        [0, 1, 2, 3].map((c) => (c === channel ? 1 : 0)),
        [1, 1, 1, 4],
      );
      owned.push(x);
      const y = model.call(x) as Tensor;
      expect(y.shape).toEqual([1, 2, 3, 6]);
      const expected = Array.from({ length: 36 }, (_, i) => {
        const [pixel, out] = [Math.floor(i / 6), i % 6];
        const own = Math.floor(out / 3) === Math.floor(channel / 2);
        return bias[out]! + (own ? data[(channel * 3 + (out % 3)) * 6 + pixel]! : 0);
      });
      expectClose(y.read(), expected, { rtol: 1e-6, atol: 1e-6 }, `channel ${channel}`);
    }
    const other = stateDict({ "up.weight": [6, 2, 2, 3], "up.bias": [6] });
    expect(errorOf(() => loadTorchWeights(model, other)).message).toContain(
      "up.weight: expected (4, 3, 2, 3), got (6, 2, 2, 3)",
    );
  });
});

describe("FrozenBatchNorm2d", () => {
  class Frozen extends Model {
    conv = new Conv2d(3, 2, 1, { bias: false });
    norm = new FrozenBatchNorm2d(2, { eps: 1e-3 });
    forward(x: Value): Value {
      return this.norm.forward(this.conv.forward(x));
    }
  }

  test("has BatchNorm2d's names, all of them buffers", () => {
    const model = new Frozen();
    expect([...model.namedState().keys()]).toEqual([
      "conv.weight",
      "norm.weight",
      "norm.bias",
      "norm.running_mean",
      "norm.running_var",
    ]);
    expect([...model.namedParameters().keys()]).toEqual(["conv.weight"]);
  });

  test("is the same affine map in training as in inference, and training leaves its statistics", () => {
    const model = new Frozen().to(device);
    owned.push(model);
    const affine = { weight: [2, -1], bias: [0.5, 3], running_mean: [1, -2], running_var: [4, 0.25] };
    const state = new Map(Object.entries(affine).map(([name, data]) => [`norm.${name}`, data]));
    model.loadStateDict(new Map([...state, ["conv.weight", [1, 0, 0, 0, 1, 0]]]));
    const pixels = new Random("pixels").normal(2 * 3 * 3 * 3);
    const x = Tensor.from(device, pixels, [2, 3, 3, 3]);
    owned.push(x);
    const expected = Array.from({ length: 36 }, (_, i) => {
      const c = i % 2;
      const value = pixels[Math.floor(i / 2) * 3 + c]!;
      return (
        ((value - affine.running_mean[c]!) / Math.sqrt(affine.running_var[c]! + 1e-3)) * affine.weight[c]! +
        affine.bias[c]!
      );
    });
    for (const training of [true, false]) {
      model.train(training);
      expectClose((model.call(x) as Tensor).read(), expected, { rtol: 1e-5, atol: 1e-5 }, `training ${training}`);
    }
    for (const [name, data] of state) expect([...model.stateDict().get(name)!.read()]).toEqual(data);
  });
});

/** Every layer against torch.nn: forward, gradients of inputs and parameters, running statistics. */
import { describe, expect, test } from "bun:test";
import { add, maxPool2d, relu, sigmoid, type Value } from "../../lib/graph";
import {
  AdaptiveAvgPool2d,
  Add,
  AvgPool2d,
  BatchNorm2d,
  ChannelShuffle,
  Concat,
  Conv2d,
  ConvTranspose2d,
  Dropout,
  GlobalAvgPool2d,
  GroupNorm,
  Hardsigmoid,
  Hardswish,
  Layer,
  LeakyReLU,
  Linear,
  MaxPool2d,
  Model,
  Multiply,
  ReLU,
  ReLU6,
  SeparableConv2d,
  Sequential,
  Sigmoid,
  SiLU,
  Softmax,
  Split,
  SqueezeExcitation,
  Upsample,
} from "../../lib/layers";
import { Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { type GoldenCase, loadGolden } from "../support/golden";

const device = testDevice();

type AnyLayer = Layer & { forward(...x: Value[]): Value | Value[] };

/** A model of one layer, whose parameters keep the layer's own names. */
class Single extends Model {
  constructor(readonly layer: AnyLayer) {
    super();
  }

  override namedChildren(): [string, Layer][] {
    return this.layer.namedChildren();
  }

  override *namedLayers(prefix = ""): Generator<[string, Layer]> {
    yield* this.layer.namedLayers(prefix);
  }

  forward(...x: Value[]): Value | Value[] {
    return this.layer.forward(...x);
  }
}

/** The block that record.py calls Residual, in this library's terms. */
class Residual extends Layer {
  conv1 = new Conv2d(3, 6, 3, { stride: 2, padding: 1, bias: false });
  bn1 = new BatchNorm2d(6);
  conv2 = new Conv2d(6, 6, 3, { padding: 1, bias: false });
  bn2 = new BatchNorm2d(6);
  head = new Conv2d(6, 4, 1);
  add = new Add();

  forward(x: Value): Value[] {
    const stem = relu(this.bn1.forward(this.conv1.forward(x)));
    const y = relu(this.add.forward(this.bn2.forward(this.conv2.forward(stem)), stem));
    return [this.head.forward(y), this.head.forward(maxPool2d(y, 3, { stride: 2, padding: 1 }))];
  }
}

/** One layer applied twice, two layers with one weight, and a value that three layers read; as record_linear.py's Shared. */
class Shared extends Layer {
  stem = new Linear(4, 6);
  twice = new Linear(6, 6);
  tied = Object.assign(new Linear(6, 6), { weight: this.twice.weight });
  head = new Linear(6, 3);

  forward(x: Value): Value[] {
    const y = sigmoid(this.stem.forward(x));
    const z = sigmoid(this.twice.forward(sigmoid(this.twice.forward(y))));
    return [this.head.forward(add(add(z, this.tied.forward(y)), y)), this.head.forward(y)];
  }
}

const layers: Record<string, () => AnyLayer> = {
  Conv2d: () => new Conv2d(4, 6, 3, { stride: 2, padding: 1 }),
  "Conv2d in groups without bias": () =>
    new Conv2d(4, 8, [3, 1], { padding: [2, 0], dilation: [2, 1], groups: 4, bias: false }),
  SeparableConv2d: () => new SeparableConv2d(4, 5, 3, { padding: 1 }),
  BatchNorm2d: () => new BatchNorm2d(4, { eps: 1e-3, momentum: 0.2 }),
  "BatchNorm2d, eval": () => new BatchNorm2d(4, { eps: 1e-3, momentum: 0.2 }),
  GroupNorm: () => new GroupNorm(4, 8, { eps: 1e-3 }),
  "GroupNorm, eval": () => new GroupNorm(2, 8),
  "GroupNorm in a head": () => new Sequential(new Conv2d(8, 6, 3, { padding: 1 }), new GroupNorm(3, 6), new ReLU()),
  ReLU: () => new ReLU(),
  SiLU: () => new SiLU(),
  Sigmoid: () => new Sigmoid(),
  ReLU6: () => new ReLU6(),
  LeakyReLU: () => new LeakyReLU(),
  "LeakyReLU of another slope": () => new LeakyReLU(0.3),
  Hardswish: () => new Hardswish(),
  Hardsigmoid: () => new Hardsigmoid(),
  Softmax: () => new Softmax(),
  Multiply: () => new Multiply(),
  "Multiply by channel": () => new Multiply(),
  ChannelShuffle: () => new ChannelShuffle(3),
  Split: () => new Split(3),
  "Split into sizes": () => new Split([1, 5, 2]),
  SqueezeExcitation: () => new SqueezeExcitation(8, 3),
  "SqueezeExcitation of MobileNetV3": () =>
    new SqueezeExcitation(8, 3, { activation: new Hardswish(), scaleActivation: new Hardsigmoid() }),
  AvgPool2d: () => new AvgPool2d(3, { stride: 2, padding: 1 }),
  "AvgPool2d, padding not counted": () => new AvgPool2d([3, 2], { padding: 1, countIncludePad: false }),
  AdaptiveAvgPool2d: () => new AdaptiveAvgPool2d([2, 5]),
  GlobalAvgPool2d: () => new GlobalAvgPool2d(),
  "Dropout, eval": () => new Dropout(),
  MaxPool2d: () => new MaxPool2d(3, { stride: 2, padding: 1 }),
  "MaxPool2d, default stride": () => new MaxPool2d(2),
  Upsample: () => new Upsample(2),
  "Upsample, nearest to a size": () => new Upsample({ size: [9, 10] }),
  "Upsample, bilinear": () => new Upsample({ scale: 2, mode: "bilinear" }),
  "Upsample, bilinear to a size with corners aligned": () =>
    new Upsample({ size: [9, 11], mode: "bilinear", alignCorners: true }),
  "Upsample, bilinear by a fraction": () => new Upsample({ scale: [1.4, 2.5], mode: "bilinear" }),
  ConvTranspose2d: () => new ConvTranspose2d(4, 6, 3, { stride: 2, padding: 1, outputPadding: 1 }),
  "ConvTranspose2d in groups without bias": () =>
    new ConvTranspose2d(4, 2, [3, 2], { stride: [2, 1], padding: [0, 1], groups: 2, bias: false, dilation: [1, 2] }),
  "ConvTranspose2d, norm, ReLU": () =>
    new Sequential(new ConvTranspose2d(4, 6, 2, { stride: 2 }), new BatchNorm2d(6), new ReLU()),
  Add: () => new Add(),
  Concat: () => new Concat(),
  Sequential: () =>
    new Sequential(new Conv2d(4, 6, 3, { bias: false }), new BatchNorm2d(6), new SiLU(), new Conv2d(6, 2, 1)),
  Residual: () => new Residual(),
  "Residual, eval": () => new Residual(),
  "BatchNorm2d, frozen": () => new BatchNorm2d(4, { eps: 1e-3, momentum: 0.2 }),
  "Residual, frozen": () => new Residual(),
  "Linear on (3, 5)": () => new Linear(5, 7),
  "Linear on (2, 3, 4, 6)": () => new Linear(6, 4),
  "Linear on (4) without bias": () => new Linear(4, 3, { bias: false }),
  Shared: () => new Shared(),
  "Shared, the first layer frozen": () => new Shared(),
};

/** Whether the layers were in training mode, whether gradients were recorded, and the names of layers that were frozen. */
interface Params {
  training: boolean;
  backward: boolean;
  frozen?: string[];
}
type Golden = GoldenCase<Params>;
const goldens = ["layers", "linear", "layers-elementwise", "layers-norm", "layers-upsampling"].flatMap((name) =>
  loadGolden<Params>(name),
);

/** Arrays "prefix0", "prefix1", ... on the device, in a dtype. */
function tensors(golden: Golden, prefix: string, dtype: "f32" | "bf16"): Tensor[] {
  const names = golden.names.filter((name) => name.startsWith(prefix));
  return names.map((name) => Tensor.from(device, golden.array(name), golden.shape(name), dtype));
}

/** The parts of the arrays' names after a prefix, with the arrays. */
function named(golden: Golden, prefix: string): Map<string, Float32Array> {
  return new Map(
    golden.names
      .filter((name) => name.startsWith(prefix))
      .map((name) => [name.slice(prefix.length), golden.array(name) as Float32Array]),
  );
}

/** What fp32 leaves of sums of some 50 products, or, in bf16, of several layers that round to 2^-8 each. */
const margins = { f32: { rtol: 2e-5, atol: 2e-5 }, bf16: { rtol: 0.05, atol: 0.15 } };

function check(golden: Golden, precision: "f32" | "bf16"): void {
  const model = new Single(layers[golden.name]!()).to(device, { precision });
  const owned: Tensor[] = [];
  try {
    model.train(golden.params.training);
    // The model as a whole trains wherever it is differentiated, though its layers may be in inference mode.
    model.training = golden.params.backward;
    model.loadStateDict(named(golden, "state."));
    for (const [name, layer] of model.namedChildren()) {
      if (golden.params.frozen?.includes(name)) for (const weight of layer.parameters()) weight.requiresGrad = false;
    }
    const inputs = tensors(golden, "input.", precision);
    const upstream = tensors(golden, "upstream.", precision);
    owned.push(...inputs, ...upstream);
    const compare = (tensor: Tensor, key: string) =>
      expectClose(tensor.read(), golden.array(key), margins[precision], `${golden.name}: ${key}`, golden.shape(key));

    const results = [model.call(...inputs)].flat();
    expect(results.map((result) => result.shape)).toEqual(
      golden.names.filter((name) => name.startsWith("output.")).map((name) => golden.shape(name)),
    );
    for (const [i, result] of results.entries()) compare(result, `output.${i}`);
    if (!golden.params.backward) return;
    for (const [i, gradient] of model.backward(...upstream).entries()) compare(gradient, `dinput.${i}`);
    const gradients = named(golden, "grad.");
    expect([...model.namedParameters().keys()].sort()).toEqual([...gradients.keys()].sort());
    for (const [name, parameter] of model.namedParameters()) compare(parameter.grad!, `grad.${name}`);
    for (const name of named(golden, "after.").keys()) compare(model.stateDict().get(name)!, `after.${name}`);
  } finally {
    for (const tensor of owned) tensor.dispose();
    model.dispose();
  }
}

describe("layers compute what torch.nn computes", () => {
  test("every recorded layer is built here", () => {
    expect(Object.keys(layers).sort()).toEqual(goldens.map((golden) => golden.name).sort());
  });

  for (const golden of goldens) {
    test(`${golden.name} in fp32`, () => check(golden, "f32"));
    const reason = missing(device, "bf16", ["conv.bf16"]);
    // Statistics of 60 values and sums of gradients that cancel say little in bf16.
    if (reason) test.skip(`${golden.name} in bf16 (skipped: ${reason})`, () => {});
    else if (!/Batch|Group|norm|Sequential|Residual/.test(golden.name) || !golden.params.backward)
      test(`${golden.name} in bf16`, () => check(golden, "bf16"));
  }
});

/** Single layers, timed forward and backward at the shapes they have in a detector (RetinaNet with ResNet-50 at 640x640). */
import { type Parameter, Program, rowsAndChannels, type Value } from "../graph";
import {
  Add,
  BatchNorm2d,
  ChannelShuffle,
  Concat,
  Conv2d,
  ConvTranspose2d,
  Dropout,
  FrozenBatchNorm2d,
  GlobalAvgPool2d,
  GroupNorm,
  Hardsigmoid,
  Hardswish,
  type Layer,
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
  SqueezeExcitation,
  Upsample,
} from "../layers";
import type { Device, Tensor } from "../tensor";
import {
  bytesOf,
  captured,
  expectFinite,
  fillNormal,
  line,
  type Precision,
  type Timing,
  time,
  type Work,
} from "./measure";

type AnyLayer = Layer & { forward(...x: Value[]): Value };

/** A layer with the shapes of its inputs. */
export interface LayerBench {
  name: string;
  layer: () => AnyLayer;
  /** The same in PyTorch, for scripts/peers/operations.py. */
  torch: string;
  /** Shapes of the inputs, without the batch. */
  inputs: (readonly number[])[];
  /** Pixels of an image that weights are applied to; default: those of the result. */
  pixels?: number;
}

const conv = (name: string, c: number, k: number, kernel: number, size: number, stride = 1): LayerBench => ({
  name: `Conv2d ${name}: ${kernel}x${kernel}${stride > 1 ? `/${stride}` : ""} ${c} -> ${k}, ${size}x${size}`,
  layer: () => new Conv2d(c, k, kernel, { stride, padding: kernel >> 1 }),
  torch: `nn.Conv2d(${c}, ${k}, ${kernel}, stride=${stride}, padding=${kernel >> 1})`,
  inputs: [[size, size, c]],
});

const simple = (name: string, layer: () => AnyLayer, torch: string, ...inputs: (readonly number[])[]): LayerBench => ({
  name: `${name}, ${inputs.map((shape) => shape.join("x")).join(" + ")}`,
  layer,
  torch,
  inputs,
});

/** Of 256 channels in; its weights are multiplied by the pixels of the input. */
const transposed = (name: string, layer: () => ConvTranspose2d, torch: string, size: number): LayerBench => ({
  ...simple(`ConvTranspose2d ${name}`, layer, `nn.ConvTranspose2d(256, ${torch})`, [size, size, 256]),
  pixels: size * size,
});

export const layerBenches: readonly LayerBench[] = [
  conv("stem", 3, 64, 7, 640, 2),
  conv("stage 1, narrow", 256, 64, 1, 160),
  conv("stage 1", 64, 64, 3, 160),
  conv("stage 2", 128, 128, 3, 80),
  conv("stage 3, downsampling", 512, 256, 1, 80, 2),
  conv("stage 4", 512, 512, 3, 20),
  conv("head", 256, 256, 3, 80),
  conv("class scores", 256, 819, 3, 40),
  simple(
    "Conv2d 3x3 depthwise",
    () => new Conv2d(256, 256, 3, { padding: 1, groups: 256 }),
    "nn.Conv2d(256, 256, 3, padding=1, groups=256)",
    [80, 80, 256],
  ),
  simple(
    "SeparableConv2d 3x3 256 -> 256",
    () => new SeparableConv2d(256, 256, 3, { padding: 1 }),
    "nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, groups=256, bias=False), nn.Conv2d(256, 256, 1))",
    [80, 80, 256],
  ),
  transposed("2x2/2 256 -> 128", () => new ConvTranspose2d(256, 128, 2, { stride: 2 }), "128, 2, stride=2", 40),
  transposed(
    "4x4/2 256 -> 256",
    () => new ConvTranspose2d(256, 256, 4, { stride: 2, padding: 1 }),
    "256, 4, stride=2, padding=1",
    20,
  ),
  transposed(
    "4x4/2 depthwise",
    () => new ConvTranspose2d(256, 256, 4, { stride: 2, padding: 1, groups: 256 }),
    "256, 4, stride=2, padding=1, groups=256",
    40,
  ),
  simple(
    "Conv2d 3x3 in 32 groups of 4, as ResNeXt's",
    () => new Conv2d(128, 128, 3, { padding: 1, groups: 32 }),
    "nn.Conv2d(128, 128, 3, padding=1, groups=32)",
    [160, 160, 128],
  ),
  simple("Linear 1280 -> 1000", () => new Linear(1280, 1000), "nn.Linear(1280, 1000)", [1280]),
  simple("Linear 256 -> 819 (a head of 1x1)", () => new Linear(256, 819), "nn.Linear(256, 819)", [40, 40, 256]),
  simple("BatchNorm2d", () => new BatchNorm2d(256), "nn.BatchNorm2d(256)", [80, 80, 256]),
  simple("FrozenBatchNorm2d", () => new FrozenBatchNorm2d(256), "FrozenBatchNorm2d(256)", [80, 80, 256]),
  simple("GroupNorm, 32 groups", () => new GroupNorm(32, 256), "nn.GroupNorm(32, 256)", [80, 80, 256]),
  simple("ReLU", () => new ReLU(), "nn.ReLU()", [80, 80, 256]),
  simple("SiLU", () => new SiLU(), "nn.SiLU()", [80, 80, 256]),
  simple("Sigmoid", () => new Sigmoid(), "nn.Sigmoid()", [80, 80, 256]),
  simple("ReLU6", () => new ReLU6(), "nn.ReLU6()", [80, 80, 256]),
  simple("LeakyReLU", () => new LeakyReLU(), "nn.LeakyReLU()", [80, 80, 256]),
  simple("Hardswish", () => new Hardswish(), "nn.Hardswish()", [80, 80, 256]),
  simple("Softmax", () => new Softmax(), "nn.Softmax(1)", [80, 80, 256]),
  simple("Hardsigmoid", () => new Hardsigmoid(), "nn.Hardsigmoid()", [80, 80, 256]),
  simple("MaxPool2d 3x3/2", () => new MaxPool2d(3, { stride: 2, padding: 1 }), "nn.MaxPool2d(3, 2, 1)", [320, 320, 64]),
  simple("Upsample x2", () => new Upsample(2), "nn.Upsample(scale_factor=2)", [40, 40, 256]),
  simple(
    "Upsample x2, bilinear",
    () => new Upsample({ scale: 2, mode: "bilinear" }),
    "nn.Upsample(scale_factor=2, mode='bilinear')",
    [40, 40, 256],
  ),
  simple("Add", () => new Add(), "Add()", [80, 80, 256], [80, 80, 256]),
  simple("Multiply", () => new Multiply(), "Multiply()", [80, 80, 256], [80, 80, 256]),
  {
    ...simple(
      "SqueezeExcitation 72 / 24",
      () => new SqueezeExcitation(72, 24),
      "SqueezeExcitation(72, 24)",
      [80, 80, 72],
    ),
    pixels: 1,
  },
  simple("ChannelShuffle in 2 groups", () => new ChannelShuffle(2), "nn.ChannelShuffle(2)", [40, 40, 116]),
  simple("GlobalAvgPool2d", () => new GlobalAvgPool2d(), "nn.AdaptiveAvgPool2d(1)", [20, 20, 2048]),
  simple("GlobalAvgPool2d", () => new GlobalAvgPool2d(), "nn.AdaptiveAvgPool2d(1)", [7, 7, 1280]),
  simple("Dropout", () => new Dropout(), "nn.Dropout()", [80, 80, 256]),
  simple("Concat", () => new Concat(), "Concat()", [80, 80, 128], [80, 80, 128]),
  simple(
    "Sequential: conv 3x3 128 -> 128, norm, ReLU",
    () => new Sequential(new Conv2d(128, 128, 3, { padding: 1, bias: false }), new BatchNorm2d(128), new ReLU()),
    "nn.Sequential(nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU())",
    [80, 80, 128],
  ),
];

/** Whether a parameter multiplies activations, in their dtype: of a convolution or a linear layer. */
const isMatrix = ({ shape }: Parameter): boolean => shape.length === 4 || shape.length === 2;

/** A layer as a model, so that its parameters have memory. */
class Single extends Model {
  constructor(readonly layer: AnyLayer) {
    super();
  }
  forward(...x: Value[]): Value {
    return this.layer.forward(...x);
  }
}

/** One pass of a layer, with what it does at least; null where it has no calls, since the gradient is passed on. */
export interface LayerTiming {
  name: string;
  pass: "forward" | "backward";
  measured: { timing: Timing; work: Work } | null;
}

/**
 * Times a layer's forward and backward pass, each as one captured graph where the device can. The work counts the multiplications
 * and additions of convolutions and linear layers, and the bytes of every operand moved once: forward inputs, parameters and
 * results; backward those, the gradients of the results, and all gradients written.
 *
 * @throws Error where a result or a gradient is not finite
 */
export function measureLayer(
  device: Device,
  { name, layer, inputs, pixels }: LayerBench,
  batch: number,
  dtype: Precision,
): LayerTiming[] {
  using model = new Single(layer()).to(device, { precision: dtype });
  const specs = Object.fromEntries(inputs.map((shape, i) => [`${i}`, { shape: [batch, ...shape], dtype }]));
  using program = new Program(
    device,
    specs,
    (values) => ({ "0": model.forward(...inputs.map((_, i) => values[`${i}`]!)) }),
    {
      training: true,
      seeds: "inputs",
      inputGradients: Object.keys(specs),
      // The backward pass is repeated alone, so it must not overwrite what forward left.
      keepAll: true,
    },
  );
  for (const tensor of Object.values(program.inputs)) fillNormal(device, tensor);
  const forward = captured(device, program.stream, () => program.runCalls(0, program.backwardStart));
  const backward = captured(device, program.stream, () => program.runCalls(program.backwardStart));
  const timings = [
    time(device, program.stream, forward.launch),
    time(device, program.stream, backward.launch),
  ] as const;
  forward.release();
  backward.release();

  const parameters = model.parameters();
  const gradients = parameters.map((one): [string, Tensor] => [`gradient of ${one.name}`, one.grad!]);
  expectFinite(device, [...Object.entries(program.results), ...gradients]);

  const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
  const read = sum(inputs.map((shape) => bytesOf([batch, ...shape], dtype)));
  const written = program.results["0"]!.byteLength;
  const weights = sum(parameters.map((weight) => bytesOf(weight.shape, isMatrix(weight) ? dtype : "f32")));
  const weightGradients = sum(parameters.map(({ shape }) => bytesOf(shape, "f32")));
  // 2 operations for each weight and output pixel (or image).
  const rows = pixels ? batch * pixels : rowsAndChannels(program.results["0"]!.shape)[0];
  const flops = sum(parameters.map((weight) => (isMatrix(weight) ? 2 * rows * weight.size : 0)));
  const hasBackward = program.backwardStart < program.calls.length;
  return [
    {
      name,
      pass: "forward",
      measured: { timing: timings[0], work: { flops, bytes: read + weights + written } },
    },
    {
      name,
      pass: "backward",
      measured: hasBackward
        ? { timing: timings[1], work: { flops: 2 * flops, bytes: 2 * read + weights + written + weightGradients } }
        : null,
    },
  ];
}

/** A timing as a line of text. */
export function layerLine(device: Device, dtype: Precision, { name, pass, measured }: LayerTiming): string {
  if (!measured) return `${name} ${pass}: no calls, the gradient is passed on`;
  return line(device, dtype, `${name} ${pass}`, measured.timing, measured.work);
}

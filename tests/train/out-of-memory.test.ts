/** Out of memory: an error that says what was asked for and what would fit, after which the device can be used as before. */
import { describe, expect, test } from "bun:test";
import { DeviceBatchDecoder, Normalize, Resize } from "../../lib/data";
import { conv2d, Parameter, Program, relu, useParameter } from "../../lib/graph";
import { CompactDetector } from "../../lib/models";
import { ErrorCode } from "../../lib/native";
import { Device, Tensor } from "../../lib/tensor";
import { constantRate, DetectStep, SGD, TrainStep } from "../../lib/train";
import { backend } from "../support/device";
import { errorOf } from "../support/errors";

const MIB = 2 ** 20;
const size = { height: 64, width: 64 };

const makeModel = () => new CompactDetector({ classes: 2, width: 4, headConvs: 1 });

/** Everything that a training with evaluation allocates, released again; the most that it took. */
function buildAll(device: Device): number {
  using made = new DisposableStack();
  const model = made.use(makeModel().to(device));
  const preprocessing = [new Resize(), new Normalize()];
  made.use(new DeviceBatchDecoder(device, { batchSize: 2, ...size, slots: 2, preprocessing }));
  const optimizer = made.use(new SGD(model, { schedule: constantRate(0.1), iterations: 10, clipNorm: 1 }));
  made.use(new DetectStep(model, { batchSize: 2, ...size }));
  made.use(new TrainStep(model, optimizer, { batchSize: 2, ...size, maxBoxes: 4 }));
  return device.memory().allocated;
}

describe("a memory limit", () => {
  test("is a device of that size", () => {
    using device = new Device({ backend, memoryLimit: 8 * MIB });
    expect(device.memory()).toMatchObject({ free: 8 * MIB, total: 8 * MIB, allocated: 0 });
    using held = Tensor.zeros(device, [6 * MIB], "u8");
    expect(device.memory().free).toBe(2 * MIB);
    const error = errorOf(() => Tensor.empty(device, [3 * MIB], "u8"));
    expect(error.code).toBe(ErrorCode.memory);
    expect(error.message).toContain(`asked for ${3 * MIB} bytes, ${6 * MIB} are in use`);
    Tensor.empty(device, [2 * MIB], "u8").dispose();
    expect(held.byteLength).toBe(6 * MIB);
  });

  test("must be a number of bytes", () => {
    expect(errorOf(() => new Device({ backend, memoryLimit: -1 })).message).toContain(
      "memoryLimit: expected bytes from 0, got -1",
    );
  });
});

describe("out of memory", () => {
  test("of a program says what it takes, what is free, which values are large and which batch fits", () => {
    using device = new Device({ backend, memoryLimit: 40 * MIB });
    using w = Tensor.full(device, [16, 3, 3, 4], 0.1);
    const weight = new Parameter([16, 3, 3, 4], { kind: "constant", value: 0 });
    weight.tensor = w;
    // An image takes 1 MiB in and 4 MiB out.
    const build = (batch: number) =>
      new Program(device, { x: { shape: [batch, 256, 256, 4], dtype: "f32" } }, ({ x }) => ({
        y: conv2d(x!, useParameter(weight), null, { padding: 1 }),
      }));
    const before = device.memory().allocated;
    const error = errorOf(() => build(32));
    expect(error.code).toBe(ErrorCode.memory);
    expect(error.message).toMatch(
      /^Program: out of memory: the arena of this program takes 1\d\d\.\d MiB for a batch of 32; /,
    );
    expect(error.message).toContain(`40.0 MiB of 40.0 MiB are free on ${device.info.name}`);
    expect(error.message).toContain("largest values: outside of layers (conv2d, f32 32x256x256x16) 128.0 MiB");
    const fits = Number(/a batch of (\d+) fits/.exec(error.message)?.[1]);
    expect(fits).toBeGreaterThan(1);
    expect(device.memory().allocated).toBe(before);
    build(fits).dispose();
    expect(errorOf(() => build(fits + 1)).code).toBe(ErrorCode.memory);
  });

  test("of a training step names layers, and the process goes on with the batch that fits", () => {
    using device = new Device({ backend, memoryLimit: 24 * MIB });
    using model = makeModel().to(device);
    using optimizer = new SGD(model, { schedule: constantRate(0.01), iterations: 10 });
    const build = (batchSize: number) => new TrainStep(model, optimizer, { batchSize, ...size, maxBoxes: 4 });
    const error = errorOf(() => build(256));
    expect(error.message).toContain("the arena of this training program takes");
    expect(error.message).toMatch(/largest values: (\S+ )?\w*\.?\w+ \(/);
    const fits = Number(/a batch of (\d+) fits/.exec(error.message)?.[1]);
    expect(fits).toBeGreaterThan(0);
    using step = build(fits);
    const { inputs, results } = step.program;
    for (const input of Object.values(inputs)) {
      device.native.memset(device.stream.handle, input.address, input.byteLength, 0);
    }
    step.program.run();
    expect(Number.isFinite(results.classification!.read()[0])).toBe(true);
  });

  test("where not even one image fits says what one would take", () => {
    using device = new Device({ backend, memoryLimit: MIB });
    const specs = { x: { shape: [8, 512, 512, 4], dtype: "f32" as const } };
    const error = errorOf(() => new Program(device, specs, ({ x }) => ({ y: relu(x!) })));
    expect(error.message).toContain("a batch of 1 would take 8.0 MiB");
  });

  test("of a model's weights says what they take", () => {
    using device = new Device({ backend, memoryLimit: 64 * 1024 });
    const model = makeModel();
    const error = errorOf(() => model.to(device));
    expect(error.code).toBe(ErrorCode.memory);
    expect(error.message).toMatch(
      /^CompactDetector: out of memory: asked for [\d.]+ MiB for parameters, [\d.]+ MiB for gradients/,
    );
    expect(device.memory().allocated).toBe(0);
    // Not half on the device: another one can take it.
    using large = new Device({ backend });
    model.to(large).dispose();
  });

  test("anywhere in building a training leaves nothing behind", () => {
    using unlimited = new Device({ backend });
    const most = buildAll(unlimited);
    expect(unlimited.memory().allocated).toBe(0);
    for (let i = 1; i < 24; ++i) {
      // Disposing of the device is an error where anything of it is left.
      using device = new Device({ backend, memoryLimit: Math.floor((most * i) / 24) });
      expect(errorOf(() => buildAll(device)).code).toBe(ErrorCode.memory);
      expect(device.memory().allocated).toBe(0);
    }
  });
});

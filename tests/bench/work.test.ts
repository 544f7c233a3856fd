/** What the floor counts: the flops and bytes of nodes, from graphs small enough to count by hand. */
import { describe, expect, test } from "bun:test";
import { floorOf, layerGroup, makeModel, nodeWork, profileCalls, timeNetwork } from "../../lib/bench";
import {
  add,
  conv2d,
  linear,
  Parameter,
  Program,
  paddedChannels,
  relu,
  useParameter,
  type Value,
} from "../../lib/graph";
import type { CompactDetector } from "../../lib/models";
import { Device, Tensor } from "../../lib/tensor";
import { testDevice } from "../support/device";

const device = testDevice();

/** A weight with memory and a gradient. */
function weight(shape: number[], owned: Tensor[]): Parameter {
  const parameter = new Parameter(shape, { kind: "constant", value: 0 });
  parameter.tensor = Tensor.full(device, shape, 0.1);
  parameter.grad = Tensor.zeros(device, shape);
  owned.push(parameter.tensor, parameter.grad);
  return parameter;
}

/** The work of a program's calls by kind. */
function works(
  forward: (x: Value, parameter: (shape: number[]) => Value) => Value,
  shape: number[],
  training = false,
): Map<string, ReturnType<typeof nodeWork>> {
  const owned: Tensor[] = [];
  try {
    using program = new Program(
      device,
      { x: { shape, dtype: "f32" } },
      ({ x }) => ({ y: forward(x!, (size) => useParameter(weight(size, owned))) }),
      training ? { training, seeds: "inputs", inputGradients: ["x"] } : {},
    );
    return new Map(program.calls.flatMap(({ kind, outputs: [y] }) => (y?.node ? [[kind, nodeWork(y.node)]] : [])));
  } finally {
    for (const tensor of owned) tensor.dispose();
  }
}

describe("work", () => {
  test("of a convolution is the same in its three directions", () => {
    // 2 x 5 x 3 outputs of 8 channels, 3 x 3 x 4 products each.
    const found = works((x, w) => conv2d(x, w([8, 3, 3, 4]), null, { stride: [2, 3], padding: 1 }), [2, 9, 9, 4], true);
    const flops = 2 * (2 * 5 * 3) * 8 * 36;
    for (const kind of ["conv2d", "conv2d_backward_data", "conv2d_backward_weight"]) {
      expect(found.get(kind)?.flops).toBe(flops);
    }
    const [x, w, y] = [2 * 81 * 4, 8 * 36, 2 * 15 * 8].map((size) => 4 * size) as [number, number, number];
    expect(found.get("conv2d")).toMatchObject({ bytes: x + w + y, floorBytes: x + w + y });
    expect(found.get("conv2d_backward_weight")?.bytes).toBe(x + w + y);
  });

  test("of groups counts each group's channels", () => {
    const found = works((x, w) => conv2d(x, w([8, 3, 3, 1]), null, { padding: 1, groups: 4 }), [1, 6, 6, 4], true);
    const flops = 2 * 36 * 8 * 9;
    expect([...found.values()].map((work) => work.flops)).toEqual([flops, flops, flops]);
  });

  test("of a linear map is that of its matrix product", () => {
    const found = works((x, w) => linear(x, w([7, 5]), null), [6, 5], true);
    for (const { flops } of found.values()) expect(flops).toBe(2 * 6 * 7 * 5);
    expect(found.size).toBe(3);
  });

  test("of an elementwise node counts for the floor by what it adds to its neighbours'", () => {
    const bytes = 4 * 3 * 8;
    const found = works((x) => add(relu(x), x), [3, 8]);
    expect(found.get("activation")).toEqual({ flops: 0, bytes: 2 * bytes, floorBytes: 0 });
    expect(found.get("add")).toEqual({ flops: 0, bytes: 3 * bytes, floorBytes: bytes });
    // A bit for each element says where the gradient flows.
    expect(works((x) => relu(x), [3, 8], true).get("activation_backward")?.floorBytes).toBe(24 / 8);
  });

  test("of a data gradient counts the ReLU's result that masks it as a bit an element", () => {
    const found = works((x, w) => conv2d(relu(x), w([8, 1, 1, 4]), null), [1, 3, 3, 4], true);
    const [x, w, dy] = [36, 32, 72];
    const { bytes, floorBytes } = found.get("conv2d_backward_data")!;
    expect([bytes, floorBytes]).toEqual([4 * (dy + w + 2 * x), 4 * (dy + w + x) + x / 8]);
    expect(found.has("activation_backward")).toBeFalse();
  });

  test("takes as long as its slower part", () => {
    const ceilings = { gflops: 1000, gbytes: 10 };
    expect(floorOf({ flops: 5e9, bytes: 0, floorBytes: 1e6 }, ceilings)).toBeCloseTo(5);
    expect(floorOf({ flops: 5e6, bytes: 0, floorBytes: 1e6 }, ceilings)).toBeCloseTo(0.1);
    expect(floorOf({ flops: 5e9, bytes: 0, floorBytes: 1e6, speed: 2 }, ceilings)).toBeCloseTo(2.5);
  });
});

test("a profile has every call once, with its direction and its part of the floor", () => {
  const owned: Tensor[] = [];
  using program = new Program(
    device,
    { x: { shape: [1, 6, 6, 4], dtype: "f32" } },
    ({ x }) => ({ y: relu(conv2d(x!, useParameter(weight([8, 3, 3, 4], owned)), null, { padding: 1 })) }),
    { training: true, seeds: "inputs", after: () => [{ kind: "sgd", path: "", outputs: [], run: () => {} }] },
  );
  const ceilings = { gflops: 1, gbytes: 1, how: "" };
  const extra = { sgd: { flops: 0, bytes: 9, floorBytes: 9 } };
  const calls = profileCalls(program, ceilings, { runs: 1, extra });
  expect(calls.map(({ index }) => index)).toEqual(program.calls.map((_, i) => i));
  expect(calls.map(({ kind }) => kind)).toEqual(program.calls.map(({ kind }) => kind));
  expect(new Set(calls.slice(0, program.backwardStart).map(({ direction }) => direction))).toEqual(
    new Set(["forward"]),
  );
  expect(calls.find(({ kind }) => kind === "conv2d_backward_weight")?.direction).toBe("backward");
  expect(calls.at(-1)).toMatchObject({ kind: "sgd", direction: "update", bytes: 9, floorMs: 9e-6 });
  for (const { ms } of calls) expect(ms).toBeGreaterThanOrEqual(0);
  for (const tensor of owned) tensor.dispose();
});

test("layers are grouped by the part of the network that they belong to", () => {
  const group = (path: string, direction: "forward" | "update" = "forward") => layerGroup({ path, direction });
  expect(group("backbone.body.layer3.4.conv1")).toBe("backbone.body.layer3");
  expect(group("backbone.body.conv1")).toBe("backbone.body");
  expect(group("head.classification_head.conv.0.0")).toBe("head.classification_head");
  expect(group("")).toBe("outside of layers");
  expect(group("classification", "update")).toBe("update");
});

test("the network alone ends at its maps, padded where the device pads channels", () => {
  using padding = new Device({ backend: device.backend, padChannels: true });
  const settings = {
    model: "compact",
    batch: 1,
    size: [64, 96],
    classes: 3,
    precision: "f32",
    repetitions: 1,
  } as const;
  using model = makeModel(settings, padding);
  const [kinds, channels] = timeNetwork(
    model,
    settings,
    { gflops: 1, gbytes: 1, how: "" },
    ({ program: { calls } }) => [
      new Set(calls.map(({ kind }) => kind)),
      new Set(calls.flatMap(({ kind, outputs: [y] }) => (kind === "conv2d" ? [y!.shape.at(-1) as number] : []))),
    ],
  );
  for (const kind of ["concat", "slice", "select_candidates"]) expect(kinds).not.toContain(kind);
  const perCell = (model as CompactDetector).anchorGenerator.perCell;
  expect(channels).toContain(paddedChannels(perCell * 3));
  expect(channels).not.toContain(perCell * 3);
});

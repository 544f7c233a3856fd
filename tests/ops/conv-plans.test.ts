/** Convolution plans: picks, tuning, what a plan refuses, and its lifetime. */
import { afterAll, describe, expect, test } from "bun:test";
import {
  conv2d,
  convPicks,
  Parameter,
  Program,
  restoreConvPicks,
  tuneConvolutions,
  useParameter,
} from "../../lib/graph";
import type { ConvKey } from "../../lib/graph/conv-plans";
import { constants, cString, ErrorCode, fromCString } from "../../lib/native";
import { Device, outHandle, Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { backend, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";
import * as reference from "./reference/conv";

const device = testDevice();
const { native } = device;
const shape: reference.ConvShape = {
  n: 2,
  h: 8,
  w: 7,
  c: 16,
  k: 32,
  r: 3,
  s: 3,
  stride: [1, 1],
  padding: [1, 1],
  dilation: [1, 1],
  groups: 1,
};

const owned: Disposable[] = [];
afterAll(() => {
  for (const item of owned.reverse()) item[Symbol.dispose]();
});
const tensor = (name: string, ...sizes: number[]): Tensor => {
  const made = Tensor.from(
    device,
    new Random(name).normal(
      sizes.reduce((a, b) => a * b),
      0,
      0.3,
    ),
    sizes,
  );
  owned.push(made);
  return made;
};

const [x, w, y, dx] = [
  tensor("x", 2, 8, 7, 16),
  tensor("w", 32, 3, 3, 16),
  tensor("y", 2, 8, 7, 32),
  tensor("dx", 2, 8, 7, 16),
];
const [bias, residual, dw] = [tensor("bias", 32), tensor("residual", 2, 8, 7, 32), tensor("dw", 32, 3, 3, 16)];
const expected = reference.convForward(x.read(), w.read(), shape);

function create(direction: number, pick = "", flags = 0): number {
  const out = outHandle();
  const sizes = [2, 8, 7, 16, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1] as const;
  native.convCreate(
    device.handle,
    out.view,
    cString(pick),
    direction,
    constants.F32,
    ...sizes,
    flags,
    constants.ACT_NONE,
  );
  return out.value;
}

function pickOf(conv: number): string {
  const text = new Uint8Array(256);
  native.convPick(conv, text, text.byteLength);
  return fromCString(text);
}

/** Runs a plan with a workspace of exactly the size it asks for. */
function run(conv: number, call: (workspace: number | null) => void): void {
  const bytes = outHandle();
  native.convWorkspace(conv, bytes.view);
  if (bytes.value === 0) call(null);
  else {
    using workspace = Tensor.full(device, [Math.ceil(bytes.value / 4)], 1e30);
    call(workspace.address);
    device.stream.synchronize();
  }
}

const forward = (conv: number, b: Tensor | null = null, z: Tensor | null = null) =>
  run(conv, (workspace) =>
    native.convForward(
      device.stream.handle,
      conv,
      y.address,
      x.address,
      w.address,
      b?.address ?? null,
      z?.address ?? null,
      workspace,
    ),
  );

describe("picks", () => {
  test.each([
    ["forward", 0],
    ["backward data", 1],
    ["backward weight", 2],
  ])("of a %s plan make the same plan again", (_name, direction) => {
    const first = create(direction);
    const pick = pickOf(first);
    expect(pick.length).toBeGreaterThan(0);
    expect(pick.length).toBeLessThan(256);
    const second = create(direction, pick);
    expect(pickOf(second)).toBe(pick);
    native.convDestroy(first);
    native.convDestroy(second);
  });

  test("of another direction are refused", () => {
    const conv = create(constants.CONV_FORWARD);
    const pick = `${pickOf(conv)} but different`;
    native.convDestroy(conv);
    expect(errorOf(() => create(constants.CONV_FORWARD, pick)).code).toBe(ErrorCode.argument);
  });

  test("a buffer too small for the text is an error, not an overrun", () => {
    const conv = create(constants.CONV_FORWARD);
    const text = new Uint8Array(8).fill(7);
    try {
      native.convPick(conv, text.subarray(0, 2), 2);
    } catch (error) {
      expect(error).toBeInstanceOf(Error);
    }
    expect(Array.from(text.subarray(2))).toEqual([7, 7, 7, 7, 7, 7]);
    native.convDestroy(conv);
  });
});

describe("tuning", () => {
  test("keeps the results right, and its pick can be used again", () => {
    const conv = create(constants.CONV_FORWARD);
    native.convTuneSync(device.stream.handle, conv, 20);
    forward(conv);
    expectClose(y.read(), expected, { rtol: 1e-4, atol: 1e-4 }, "y");
    const again = create(constants.CONV_FORWARD, pickOf(conv));
    forward(again);
    expectClose(y.read(), expected, { rtol: 1e-4, atol: 1e-4 }, "y of the pick");
    native.convDestroy(conv);
    native.convDestroy(again);
  });

  test("needs a positive budget", () => {
    const conv = create(constants.CONV_FORWARD);
    expect(errorOf(() => native.convTuneSync(device.stream.handle, conv, -1)).code).toBe(ErrorCode.argument);
    native.convDestroy(conv);
  });
});

describe("a plan refuses", () => {
  test("a direction that is not its own", () => {
    const [f, d, g] = [create(0), create(1), create(2)];
    const s = device.stream.handle;
    const refused = [
      () => native.convForward(s, d, y.address, x.address, w.address, null, null, null),
      () => native.convBackwardData(s, g, dx.address, y.address, w.address, null, null, null),
      () => native.convBackwardWeight(s, f, dw.address, x.address, y.address, null),
    ];
    for (const call of refused) expect(errorOf(call).code).toBe(ErrorCode.argument);
    for (const conv of [f, d, g]) native.convDestroy(conv);
  });

  test("a bias or residual that it has no flag for, and their absence where it has", () => {
    const plain = create(0);
    const full = create(0, "", constants.CONV_BIAS | constants.CONV_RESIDUAL);
    expect(errorOf(() => forward(plain, bias)).message).toContain("bias");
    expect(errorOf(() => forward(plain, null, residual)).message).toContain("residual");
    expect(errorOf(() => forward(full, null, residual)).message).toContain("bias");
    expect(errorOf(() => forward(full, bias, null)).message).toContain("residual");
    forward(full, bias, residual);
    const [b, z] = [bias.read(), residual.read()];
    expectClose(
      y.read(),
      expected.map((v, i) => v + b[i % 32]! + z[i]!),
      { rtol: 1e-4, atol: 1e-4 },
      "y",
    );
    for (const conv of [plain, full]) native.convDestroy(conv);
  });

  test("a residual or x that a data gradient has no flag for, and their absence where it has", () => {
    const plain = create(1);
    const full = create(1, "", constants.CONV_RESIDUAL | constants.CONV_RELU_MASK);
    const s = device.stream.handle;
    const backward = (conv: number, z: Tensor | null, mask: Tensor | null) =>
      run(conv, (workspace) =>
        native.convBackwardData(
          s,
          conv,
          dx.address,
          y.address,
          w.address,
          z?.address ?? null,
          mask?.address ?? null,
          workspace,
        ),
      );
    expect(errorOf(() => backward(plain, x, null)).message).toContain("residual");
    expect(errorOf(() => backward(plain, null, x)).message).toContain("x ");
    expect(errorOf(() => backward(full, null, x)).message).toContain("residual");
    expect(errorOf(() => backward(full, x, null)).message).toContain("x ");
    for (const conv of [plain, full]) native.convDestroy(conv);
  });

  test("flags that its direction does not take", () => {
    for (const [direction, flag] of [
      [0, constants.CONV_RELU_MASK],
      [1, constants.CONV_BIAS],
      [2, constants.CONV_RESIDUAL],
      [0, 1 << 20],
    ] as const) {
      const error = errorOf(() => create(direction, "", flag));
      expect(error.code).toBe(ErrorCode.argument);
      expect(error.message).toContain(`flags ${flag}`);
    }
  });

  test("work after it was destroyed", () => {
    const conv = create(0);
    native.convDestroy(conv);
    expect(errorOf(() => native.convWorkspace(conv, outHandle().view)).code).toBe(ErrorCode.handle);
    expect(errorOf(() => native.convDestroy(conv)).code).toBe(ErrorCode.handle);
  });
});

test("a captured graph stays valid when its plan is destroyed", () => {
  if (!device.supports("graph")) return;
  const conv = create(0);
  const bytes = outHandle();
  native.convWorkspace(conv, bytes.view);
  using workspace = Tensor.zeros(device, [Math.max(1, bytes.value)], "u8");
  forward(conv); // loads kernels outside of the capture
  const graph = outHandle();
  native.graphBegin(device.stream.handle);
  native.convForward(
    device.stream.handle,
    conv,
    y.address,
    x.address,
    w.address,
    null,
    null,
    bytes.value > 0 ? workspace.address : null,
  );
  native.graphEnd(device.stream.handle, graph.view);
  native.convDestroy(conv);
  native.memset(device.stream.handle, y.address, y.byteLength, 255);
  native.graphLaunch(device.stream.handle, graph.value);
  expectClose(y.read(), expected, { rtol: 1e-4, atol: 1e-4 }, "y");
  native.graphDestroy(graph.value);
});

describe("several plans at once", () => {
  const key = (direction: number, k: number) => [direction, 0, 1, 6, 6, 4, k, 3, 3, 1, 1, 1, 1, 1, 1, 1, 0, 0];
  const createMany = (keys: number[][], picks: string[], bytes?: number) => {
    const out = new BigInt64Array(keys.length).fill(-1n);
    const text = cString(picks.join("\0"));
    const { handle } = device;
    native.convCreateMany(handle, out, text, Int32Array.from(keys.flat()), bytes ?? text.byteLength, keys.length);
    return Array.from(out, Number);
  };
  const pickOf = (conv: number) => {
    const text = new Uint8Array(256);
    native.convPick(conv, text, text.byteLength);
    return fromCString(text);
  };
  const destroy = (convs: number[]) => {
    for (const conv of convs) if (conv !== 0) native.convDestroy(conv);
  };

  test("are those that are made one by one, and their picks make them again", () => {
    const keys = [key(0, 8), key(1, 8), key(2, 8), key(0, 16)];
    const made = createMany(
      keys,
      keys.map(() => ""),
    );
    const single = keys.map((numbers) => {
      const out = outHandle();
      native.convCreate(device.handle, out.view, cString(""), ...(numbers as ConvKey));
      return out.value;
    });
    expect(made.map(pickOf)).toEqual(single.map(pickOf));
    const again = createMany(keys, made.map(pickOf));
    expect(again.map(pickOf)).toEqual(made.map(pickOf));
    destroy([...made, ...single, ...again]);
  });

  test("are made but for those that cannot be", () => {
    const made = createMany([key(0, 8), key(7, 8), key(0, 8)], ["", "", "no such algorithm"]);
    expect(made[0]).toBeGreaterThan(0);
    expect(made.slice(1)).toEqual([0, 0]);
    destroy(made);
  });

  test("need a pick each", () => {
    const message = "expected 2 NUL-terminated picks in 1 bytes, got 1";
    expect(errorOf(() => createMany([key(0, 8), key(0, 8)], [""], 1)).message).toContain(message);
  });

  test("can be built ahead of their tuning, or not", () => {
    const [conv] = createMany([key(0, 8)], [""]) as [number];
    native.convTuneAhead(conv);
    native.convTuneAhead(conv);
    native.convTuneSync(device.stream.handle, conv, 20);
    expect(pickOf(conv).length).toBeGreaterThan(0);
    native.convTuneAhead(conv); // dropped with the plan
    destroy([conv]);
    expect(errorOf(() => native.convTuneAhead(conv)).code).toBe(ErrorCode.handle);
  });
});

test("a device's picks restore its plans on another, as a checkpoint does", () => {
  const build = (on: Device) => {
    const weight = new Parameter([8, 3, 3, 4], { kind: "constant", value: 0 });
    const values = Tensor.full(on, weight.shape, 0.1);
    weight.tensor = values;
    const spec = { x: { shape: [1, 6, 6, 4], dtype: "f32" as const } };
    new Program(on, spec, ({ x: v }) => ({ y: conv2d(v!, useParameter(weight), null, { padding: 1 }) })).dispose();
    values.dispose();
    return convPicks(on);
  };
  using tuned = new Device({ backend });
  let done = 0;
  tuneConvolutions(tuned, {
    ms: 5,
    onProgress: (progress) => {
      done = progress.done;
    },
  });
  const picks = build(tuned);
  expect(picks).toHaveLength(1);
  expect(done).toBe(1);
  using restored = new Device({ backend });
  restoreConvPicks(restored, picks);
  expect(build(restored)).toEqual(picks);
});

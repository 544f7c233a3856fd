/** Recomputation: less memory, the same bytes. */
import { describe, expect, test } from "bun:test";
import { add, batchNorm, conv2d, dropout, Program, relu, upsample, useParameter, type Value } from "../../lib/graph";
import type { Device, Tensor } from "../../lib/tensor";
import { expectSameBytes } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { kinds, parameter, program } from "./support";

const exact = testDevice({ deterministic: true });
const x = { shape: [2, 16, 16, 8] };

/** Residual blocks with batch normalization, a dropout and an upsampling. */
function residual(on: Device) {
  const blocks = 8;
  const shapes: Record<string, number[]> = {
    w: [8, 3, 3, 8],
    gain: [8],
    shift: [8],
    mean: [8],
    variance: [8],
    counter: [],
  };
  const made = Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => [name, parameter(on, { shape }, name)]),
  );
  for (const name of ["mean", "variance", "counter"]) made[name]!.requiresGrad = false;
  made.variance!.tensor.write(new Float32Array(8).fill(1));
  made.counter!.tensor.write([0]);
  const use = (name: string) => useParameter(made[name]!);
  const norm = (v: Value) => batchNorm(v, use("gain"), use("shift"), use("mean"), use("variance"), { training: true });
  const conv = (v: Value) => conv2d(v, use("w"), null, { padding: 1 });
  return {
    forward: ({ x: v }: Record<string, Value>) => {
      let y = v!;
      for (let i = 0; i < blocks; ++i) y = relu(add(norm(conv(relu(norm(conv(y))))), y));
      y = dropout(y, use("counter"), { p: 0.25, seed: 3 });
      return { y: conv(relu(conv(upsample(y, { scale: 2 })))) };
    },
    bytes: (results: Record<string, Tensor>): Map<string, Uint8Array> =>
      new Map([
        ...Object.entries(results).map(([name, tensor]) => [name, tensor.readBytes()] as const),
        ...Object.entries(made).map(([name, { tensor }]) => [name, tensor.readBytes()] as const),
        ...Object.entries(made).map(([name, { grad }]) => [`gradient of ${name}`, grad!.readBytes()] as const),
      ]),
    [Symbol.dispose]: () => Object.values(made).forEach((owned) => void owned[Symbol.dispose]()),
  };
}

/** Two runs: what they leave, the arena's size, and how often each operation is called. */
function outcome(recompute: boolean | number, lanes = 1) {
  using net = residual(exact);
  using made = program(exact, { x }, net.forward, {
    training: true,
    seeds: "inputs",
    inputGradients: ["x"],
    recompute,
    lanes,
  });
  made.run();
  made.run();
  const count = (kind: string) => kinds(made).filter((other) => other === kind).length;
  return { left: net.bytes(made.results), bytes: made.arenaBytes, norms: count("batch_norm"), drops: count("dropout") };
}

describe("recomputation", () => {
  const kept = outcome(false);
  const expectSame = ({ left }: ReturnType<typeof outcome>) => {
    expect([...left.keys()]).toEqual([...kept.left.keys()]);
    for (const [name, bytes] of kept.left) expectSameBytes(left.get(name)!, bytes, name);
  };

  test.each([1, 3])("of all that is cheap takes less memory and gives the same bytes, with %i lanes", (lanes) => {
    const found = outcome(true, lanes);
    expectSame(found);
    expect(found.norms).toBeGreaterThan(kept.norms);
    expect(found.drops).toBe(kept.drops);
    expect(found.bytes).toBeLessThan(outcome(false, lanes).bytes);
  });

  test("repeats no more than a given size needs", () => {
    const all = outcome(true);
    const wanted = Math.round((kept.bytes + all.bytes) / 2);
    const found = outcome(wanted);
    expectSame(found);
    expect(found.bytes).toBeLessThanOrEqual(wanted);
    expect(found.norms).toBeLessThan(all.norms);
    expect(outcome(kept.bytes).norms).toBe(kept.norms);
  });

  test("says what is needed where a size cannot be reached", () => {
    const error = errorOf(() => outcome(1000));
    expect(error.message).toMatch(/recompute: expected 1000 bytes to be enough, but \d+ are needed even so/);
  });

  test("leaves inference as it is: there is nothing to keep", () => {
    using net = residual(exact);
    using made = new Program(exact, { x: { ...x, dtype: "f32" } }, net.forward, { recompute: true });
    using plain = new Program(exact, { x: { ...x, dtype: "f32" } }, net.forward);
    expect(kinds(made)).toEqual(kinds(plain));
  });
});

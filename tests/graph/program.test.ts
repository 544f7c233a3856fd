import { describe, expect, test } from "bun:test";
import {
  add,
  applyOp,
  batchNorm,
  type Call,
  cast,
  concat,
  constant,
  conv2d,
  type Op,
  Program,
  relu,
  reshape,
  scale,
  sigmoid,
  silu,
  useParameter,
  type Value,
  withPath,
} from "../../lib/graph";
import { type Device, dtypeCode, elementCount, Stream, Tensor } from "../../lib/tensor";
import { expectClose, expectSameBytes } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { kinds, numbers, parameter, program } from "./support";

const device = testDevice();
const exact = testDevice({ deterministic: true });
const x = { shape: [2, 8, 8, 4] };

/** A small network with all that a step has: convolutions, statistics, a join, several results. Its parameters come along. */
function network(on: Device) {
  const shapes: Record<string, number[]> = {
    w1: [8, 3, 3, 4],
    w2: [8, 3, 3, 8],
    w3: [5, 1, 1, 16],
    b3: [5],
    gain: [8],
    shift: [8],
    mean: [8],
    variance: [8],
  };
  const p = Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, parameter(on, { shape }, name)]));
  for (const name of ["mean", "variance"]) p[name]!.requiresGrad = false;
  p.variance!.tensor.write(new Float32Array(8).fill(1));
  const forward = ({ x: v }: Record<string, Value>): Record<string, Value> => {
    const use = (name: string) => useParameter(p[name]!);
    const a = relu(
      batchNorm(conv2d(v!, use("w1"), null, { padding: 1 }), use("gain"), use("shift"), use("mean"), use("variance"), {
        training: true,
      }),
    );
    const b = silu(conv2d(a, use("w2"), null, { padding: 1 }));
    return { y: conv2d(concat([add(a, b), b]), use("w3"), use("b3")), mid: b };
  };
  return {
    parameters: p,
    forward,
    [Symbol.dispose]: () => Object.values(p).forEach((owned) => void owned[Symbol.dispose]()),
  };
}

describe("capture", () => {
  const reason = missing(device, "f32", ["graph"]);
  (reason ? test.skip : test)("a captured launch gives the bytes of running the calls one by one", () => {
    const runs = (captured: boolean): { bytes: Map<string, Uint8Array>; graph: boolean } => {
      using net = network(exact);
      using made = program(exact, { x }, net.forward, { training: true, seeds: "inputs", inputGradients: ["x"] });
      for (let i = 0; i < 4; ++i) {
        if (captured) made.run();
        else made.runCalls();
      }
      const tensors = [
        ...Object.entries(made.results),
        ...Object.entries(net.parameters).flatMap(([name, p]): [string, Tensor][] => [
          [name, p.tensor],
          [`grad of ${name}`, p.grad!],
        ]),
      ];
      return { bytes: new Map(tensors.map(([name, tensor]) => [name, tensor.readBytes()])), graph: made.captured };
    };
    const [launched, called] = [runs(true), runs(false)];
    expect([launched.graph, called.graph]).toEqual([true, false]);
    expect(launched.bytes.size).toBe(3 + 16);
    for (const [name, bytes] of called.bytes) expectSameBytes(launched.bytes.get(name)!, bytes, name);
  });

  (reason ? test.skip : test)(
    "a program may be captured before its first run, and its inputs change between launches",
    () => {
      using made = program(device, { x: { shape: [4] } }, ({ x: v }) => ({ y: scale(v!, 2) }));
      made.capture();
      made.capture();
      for (const value of [1, 2, 3]) {
        made.inputs.x!.write([value, 0, 0, -value]);
        made.run();
        expect(numbers(made.results.y)).toEqual([2 * value, 0, 0, -2 * value]);
      }
    },
  );

  (reason ? test.skip : test)("a steady step makes no garbage on the device: memory stays as it is", () => {
    using net = network(device);
    using made = program(device, { x }, net.forward, { training: true, seeds: "inputs" });
    made.run();
    made.run();
    const before = device.memory().allocated;
    for (let i = 0; i < 20; ++i) made.run();
    device.stream.synchronize();
    expect(device.memory().allocated).toBe(before);
  });

  (reason ? test.skip : test)(
    "an error during capture names the operation, and the program can go on call by call",
    () => {
      let broken = true;
      const moody: Op = {
        kind: "moody",
        infer: ([v]) => [v!],
        emit(e, { inputs: [v], outputs: [y] }) {
          const [dst, src] = [e.address(y!), e.address(v!)];
          e.call(() => e.native.add(e.stream, dst, src, src, broken ? -1 : 4, 0, 0));
        },
      };
      using made = program(device, { x: { shape: [4], values: [1, 2, 3, 4] } }, ({ x: v }) => ({
        y: applyOp(moody, [v!], {})[0]!,
      }));
      expect(errorOf(() => made.capture()).message).toContain("dlfs_add");
      broken = false;
      made.runCalls();
      expect(numbers(made.results.y)).toEqual([2, 4, 6, 8]);
      made.run();
      made.run();
      expect(made.captured).toBe(true);
      expect(numbers(made.results.y)).toEqual([2, 4, 6, 8]);
    },
  );
});

describe("inputs and results", () => {
  test("a result that is an input, a view of one, or named twice", () => {
    using made = program(device, { x: { shape: [2, 2], values: [1, 2, 3, 4] } }, ({ x: v }) => {
      const y = scale(v!, 3);
      return { same: v!, flat: reshape(v!, [4]), y, again: y };
    });
    made.run();
    expect(Object.entries(made.results).map(([name, tensor]) => [name, tensor.shape, numbers(tensor)])).toEqual([
      ["same", [2, 2], [1, 2, 3, 4]],
      ["flat", [4], [1, 2, 3, 4]],
      ["y", [2, 2], [3, 6, 9, 12]],
      ["again", [2, 2], [3, 6, 9, 12]],
    ]);
  });

  test("an input that nothing reads still has a place", () => {
    using made = program(device, { x: { shape: [2], values: [1, 2] }, unused: { shape: [3] } }, ({ x: v }) => ({
      y: relu(v!),
    }));
    made.inputs.unused!.write([7, 8, 9]);
    made.run();
    expect(numbers(made.results.y)).toEqual([1, 2]);
  });

  test("what no result depends on is not computed, but effects are", () => {
    using net = network(device);
    using made = program(
      device,
      { x },
      (inputs) => {
        const { mid } = net.forward(inputs);
        sigmoid(mid!);
        const [gain, shift, mean, variance] = ["gain", "shift", "mean", "variance"].map((name) =>
          useParameter(net.parameters[name]!),
        );
        batchNorm(mid!, gain!, shift!, mean!, variance!, { training: true });
        return { mid: mid! };
      },
      { fuse: false },
    );
    expect(kinds(made)).toEqual(["conv2d", "batch_norm", "activation", "conv2d", "activation", "batch_norm"]);
  });

  test("constants are uploaded once and keep their dtype", () => {
    using made = program(device, { x: { shape: [3], values: [1, 2, 3] } }, ({ x: v }) => ({
      y: add(v!, constant([10, 20, 30], [3])),
      i: constant([-1, 2 ** 31 - 1], [2], "i32"),
    }));
    for (let i = 0; i < 3; ++i) made.run();
    expect(kinds(made)).toEqual(["add"]);
    expect(numbers(made.results.y)).toEqual([11, 22, 33]);
    expect(numbers(made.results.i)).toEqual([-1, 2147483647]);
  });

  test("inputs keep what was written until it is replaced, run after run", () => {
    using made = program(device, { x: { shape: [1000] } }, ({ x: v }) => ({ y: silu(scale(silu(relu(v!)), 2)) }));
    const before = numbers(made.inputs.x);
    for (let i = 0; i < 3; ++i) made.run();
    expect(numbers(made.inputs.x)).toEqual(before);
  });
});

describe("calls around a program's own", () => {
  test("run before and after it in each run, on its addresses", () => {
    const log: string[] = [];
    const call = (kind: string, run: () => void): Call => ({ kind, path: "", run, outputs: [] });
    using counter = Tensor.zeros(device, [1]);
    using one = Tensor.full(device, [1], 1);
    using made = program(device, { x: { shape: [1], values: [5] } }, ({ x: v }) => ({ y: scale(v!, 2) }), {
      before: (p) => [
        call("count", () =>
          p.device.native.add(p.stream.handle, counter.address, counter.address, one.address, 1, 0, 0),
        ),
      ],
      after: (p) => {
        log.push(...Object.keys(p.results));
        return [
          call("sum", () =>
            p.device.native.add(p.stream.handle, p.results.y!.address, p.results.y!.address, counter.address, 1, 0, 0),
          ),
        ];
      },
    });
    expect([kinds(made), log, made.backwardStart]).toEqual([["count", "scale", "sum"], ["y"], 2]);
    for (let i = 1; i <= 4; ++i) {
      made.run();
      expect([numbers(counter), numbers(made.results.y)]).toEqual([[i], [10 + i]]);
    }
  });
});

describe("debugging", () => {
  test("keepAll keeps every value readable after a run; without it memory is shared", () => {
    const build = (keepAll: boolean) =>
      program(
        device,
        { x: { shape: [3], values: [-1, 0, 2] } },
        ({ x: v }) => ({ y: scale(relu(scale(v!, 4)), 0.5) }),
        { keepAll },
      );
    using kept = build(true);
    using shared = build(false);
    kept.run();
    shared.run();
    expect(kept.calls.map((_, i) => Array.from(kept.readValue(i)))).toEqual([
      [-4, 0, 8],
      [0, 0, 8],
      [0, 0, 4],
    ]);
    expect(numbers(shared.results.y)).toEqual([0, 0, 4]);
    expect(kept.arenaBytes).toBeGreaterThan(shared.arenaBytes);
    expect(kept.memory.unshared).toBe(kept.arenaBytes);
    expect(errorOf(() => kept.readValue(3)).message).toBe("Program: call 3 has no output 0");
    expect(errorOf(() => kept.readValue(0, 1)).message).toBe("Program: call 0 has no output 1");
  });

  test("profile() times every call, names it, and finds the first value that is not finite", () => {
    using made = program(device, { x: { shape: [4], values: [1, 2, 3, 3e38] } }, ({ x: v }) => ({
      y: sigmoid(scale(scale(v!, 0.5), 10)),
    }));
    const lines = made.profile();
    expect(lines.map(({ kind, finite }) => [kind, finite])).toEqual([
      ["scale", true],
      ["scale", false],
      ["activation", true],
    ]);
    expect(lines.every(({ milliseconds }) => milliseconds >= 0)).toBe(true);
    made.inputs.x!.write([1, 2, 3, 4]);
    expect(made.profile().every(({ finite }) => finite)).toBe(true);
  });

  test("a failing call's error carries the layer's path and the operation's kind", () => {
    const failing: Op = {
      kind: "failing",
      infer: ([v]) => [v!],
      emit(e, { outputs: [y] }) {
        const dst = e.address(y!);
        e.call(() => e.native.fill(e.stream, dst, -5, 0, 0));
      },
    };

    using made = program(device, { x: { shape: [4] } }, ({ x: v }) => ({
      y: withPath("neck", () => withPath("p5", () => applyOp(failing, [v!], {})[0]!)),
    }));
    const error = errorOf(() => made.run());
    expect(error.message).toStartWith("neck.p5: failing: dlfs_fill: ");
    expect(error.op).toBe("neck.p5");
  });
});

describe("an operation of the user's own", () => {
  /** y = x^2 + x for positive factors, from the library's native calls; the backward rule is an operation too. */
  const squarePlus: Op<{ factor: number }> = {
    kind: "square_plus",
    infer([v], { factor }) {
      if (!(factor > 0)) throw new RangeError("factor must be positive");
      return [{ shape: v!.shape, dtype: v!.dtype }];
    },
    gradient: (builder, { inputs: [v], outputs: [y], attrs }, [dy]) =>
      builder.apply(squarePlusBackward, [builder.value(dy!, y!), v!], attrs),
    emit(e, { inputs: [v], outputs: [y], attrs: { factor } }) {
      const [dst, src, n, dtype] = [e.address(y!), e.address(v!), elementCount(v!.shape), dtypeCode(v!.dtype)];
      e.call(() => e.native.scale(e.stream, dst, src, null, n, dtype, factor));
      e.call(() => e.native.add(e.stream, dst, dst, src, n, dtype, 0));
    },
  };
  const squarePlusBackward: Op<{ factor: number }> = {
    kind: "square_plus_backward",
    infer: ([dy]) => [dy!],
    emit(e, { inputs: [dy], outputs: [dx], attrs: { factor } }) {
      const [dst, src, n, dtype] = [e.address(dx!), e.address(dy!), elementCount(dy!.shape), dtypeCode(dy!.dtype)];
      e.call(() => e.native.scale(e.stream, dst, src, null, n, dtype, factor + 1));
    },
  };

  test("brings its own forward and backward, and works with the others", () => {
    using w = parameter(device, { shape: [2], values: [1, 2] }, "w");
    using made = program(device, {}, () => ({ y: relu(applyOp(squarePlus, [useParameter(w)], { factor: 3 })[0]!) }), {
      training: true,
      seeds: "inputs",
    });
    made.inputs["grad.y"]!.write([10, 100]);
    for (let i = 0; i < 3; ++i) made.run();
    expect(numbers(made.results.y)).toEqual([4, 8]);
    expect(numbers(w.grad!)).toEqual([40, 400]);
    expect(kinds(made)).toEqual([
      "square_plus",
      "square_plus",
      "activation",
      "activation_backward",
      "square_plus_backward",
    ]);
  });

  test("has scratch memory where it asks for it", () => {
    const sums: Op = {
      kind: "sums",
      infer: ([v]) => [{ shape: [v!.shape.at(-1)!], dtype: "f32" }],
      prepare(on, { inputs: [v] }) {
        const out = new BigInt64Array(1);
        on.native.channelSumWorkspace(on.handle, out, 300, v!.shape[1]!, 0);
        return { workspace: Number(out[0]) + 512, state: "mine" };
      },
      emit(e, { inputs: [v], outputs: [y] }) {
        expect([e.state, e.workspace! % 256]).toEqual(["mine", 0]);
        const [dst, src, workspace] = [e.address(y!), e.address(v!), e.workspace];
        e.call(() => e.native.channelSum(e.stream, dst, src, workspace, 300, 3, 0));
      },
    };
    using made = program(device, { x: { shape: [300, 3], values: new Float32Array(900).fill(0.5) } }, ({ x: v }) => ({
      y: applyOp(sums, [v!], {})[0]!,
    }));
    made.run();
    expectClose(numbers(made.results.y), [150, 150, 150], { rtol: 1e-6, atol: 0 });
  });
});

describe("lifetime", () => {
  test("dispose() frees the arena and the graph; a second one does nothing", () => {
    using net = network(device);
    // convolution plans stay cached with the device: the first program makes them
    program(device, { x }, net.forward).dispose();
    const before = device.memory().allocated;
    const made = program(device, { x }, net.forward);
    made.run();
    made.run();
    expect(device.memory().allocated).toBeGreaterThan(before);
    made.dispose();
    made.dispose();
    expect(device.memory().allocated).toBe(before);
  });

  test("a program that cannot be built leaves no memory behind", () => {
    const before = device.memory().allocated;
    const broken: Op = {
      kind: "broken",
      infer: ([v]) => [v!],
      emit() {
        throw new RangeError("no");
      },
    };
    expect(() => program(device, { x }, ({ x: v }) => ({ y: applyOp(broken, [v!], {})[0]! }))).toThrow(RangeError);
    expect(device.memory().allocated).toBe(before);
  });

  test("a program may have a stream of its own", () => {
    using stream = new Stream(device);
    using made = program(device, { x: { shape: [4], values: [1, 2, 3, 4] } }, ({ x: v }) => ({ y: scale(v!, 2) }), {
      stream,
    });
    for (let i = 0; i < 3; ++i) made.run();
    expect(Array.from(made.results.y!.read(stream))).toEqual([2, 4, 6, 8]);
  });
});

describe("bf16 activations", () => {
  const reason = missing(device, "bf16", ["conv.bf16"]);
  (reason ? test.skip : test)("come from casts, keep fp32 gradients of fp32 parameters", () => {
    using w = parameter(device, { shape: [3, 1, 1, 2], values: [1, 2, 3, 4, 5, 6] }, "w");
    using made = new Program(
      device,
      { x: { shape: [1, 1, 1, 2], dtype: "f32" } },
      ({ x: v }) => ({ y: cast(conv2d(cast(v!, "bf16"), cast(useParameter(w), "bf16"), null), "f32") }),
      { training: true, seeds: "inputs" },
    );
    made.inputs.x!.write([1 + 2 ** -9, 2]);
    made.inputs["grad.y"]!.write([1, 2, 3]);
    made.run();
    expect(numbers(made.results.y)).toEqual([5, 11, 17]);
    expect(numbers(w.grad!)).toEqual([1, 2, 2, 4, 3, 6]);
  });
});

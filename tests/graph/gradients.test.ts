/** Backward passes of composed operations. */
import { describe, expect, test } from "bun:test";
import {
  add,
  applyOp,
  avgPool2d,
  cast,
  channelShuffle,
  concat,
  conv2d,
  globalAvgPool2d,
  groupNorm,
  hardsigmoid,
  hardswish,
  leakyRelu,
  linear,
  maxPool2d,
  multiply,
  type Op,
  relu,
  reshape,
  scale,
  sigmoid,
  silu,
  slice,
  softmax,
  split,
  transpose,
  upsample,
  useParameter,
  type Value,
} from "../../lib/graph";
import { elementCount } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";
import { expectGradients, numbers, parameter, program } from "./support";

const device = testDevice();
const x = { shape: [2, 4, 4, 3] };

describe("gradients agree with finite differences", () => {
  const unary: [string, (x: Value) => Value][] = [
    ["a value used three times", (v) => add(add(silu(v), sigmoid(v)), v)],
    ["a value added to itself", (v) => silu(add(v, v))],
    ["a chain of uses of one value", (v) => add(silu(add(v, scale(v, 0.5))), v)],
    ["concat of one value twice", (v) => silu(concat([v, v]))],
    ["concat along rows", (v) => silu(concat([scale(v, 2), v], 1))],
    ["concat along the batch", (v) => silu(concat([scale(v, 2), v, scale(v, 3)], 0))],
    ["a slice of channels", (v) => silu(slice(v, 3, 1, 2))],
    ["slices that overlap", (v) => add(slice(v, 2, 0, 3), slice(v, 2, 1, 3))],
    ["a slice of images", (v) => silu(slice(v, 0, 1, 1))],
    ["a reshape in the middle", (v) => silu(reshape(silu(reshape(v, [8, 12])), [96]))],
    ["a reshape of a value that is used too", (v) => add(reshape(silu(reshape(v, [96])), [2, 4, 4, 3]), v)],
    ["hardswish, inside its curve", (v) => hardswish(scale(v, 0.5))],
    ["hardsigmoid, inside its slope", (v) => hardsigmoid(scale(silu(v), 0.5))],
    ["leaky ReLU below 0", (v) => leakyRelu(scale(sigmoid(v), -1), 0.2)],
    ["leaky ReLU of a negative slope below 0", (v) => leakyRelu(scale(sigmoid(v), -1), -0.3)],
    ["softmax", (v) => softmax(v)],
    ["softmax of a transposition", (v) => softmax(transpose(silu(reshape(v, [2, 16, 3]))))],
    ["a transposition of images", (v) => silu(transpose(v))],
    ["a product", (v) => multiply(silu(v), sigmoid(v))],
    ["a square", (v) => multiply(v, v)],
    ["channels scaled by their means", (v) => multiply(sigmoid(globalAvgPool2d(v)), silu(v))],
    ["a shuffle of channels", (v) => silu(channelShuffle(concat([v, scale(v, 2)]), 3))],
    ["parts, joined in another order", (v) => silu(concat(split(silu(v), [2, 1]).reverse()))],
    ["rows, one of them left out", (v) => silu(split(v, 3, 1)[0]!)],
    ["scaling", (v) => scale(silu(v), -0.7)],
    ["average pooling", (v) => silu(avgPool2d(silu(v), 3, { stride: 1, padding: 1, countIncludePad: false }))],
    ["bilinear upsampling", (v) => silu(upsample(silu(v), { size: [7, 5], mode: "bilinear" }))],
    [
      "bilinear upsampling by a factor, corners aligned",
      (v) => silu(upsample(silu(v), { scale: [2, 1.6], mode: "bilinear", alignCorners: true })),
    ],
    ["upsampling", (v) => silu(upsample(silu(v), { size: [7, 5] }))],
    ["down and up again, joined", (v) => add(upsample(avgPool2d(silu(v), 2), { scale: 2 }), v)],
  ];
  test.each(unary)("%s", (_name, body) => {
    expectGradients(device, { x }, ({ x: v }) => ({ y: body(v!) }));
  });

  test("a convolution's operands and bias", () => {
    using w = parameter(device, { shape: [5, 3, 3, 3] }, "w");
    using b = parameter(device, { shape: [5] }, "b");
    expectGradients(
      device,
      { x },
      ({ x: v }) => ({ y: silu(conv2d(v!, useParameter(w), useParameter(b), { stride: 2, padding: 1 })) }),
      [w, b],
    );
  });

  test("group normalization", () => {
    using w = parameter(device, { shape: [4], values: [0.5, 2, -1, 1.5] }, "w");
    using b = parameter(device, { shape: [4], values: [0.2, -0.3, 0.4, 0.1] }, "b");
    expectGradients(
      device,
      { x: { shape: [2, 3, 4, 4] } },
      ({ x: v }) => ({ y: silu(groupNorm(v!, useParameter(w), useParameter(b), 2)) }),
      [w, b],
    );
  });

  test("a parameter shared by two convolutions of different sizes", () => {
    using w = parameter(device, { shape: [4, 3, 3, 3] }, "w");
    using b = parameter(device, { shape: [4] }, "b");
    const head = (v: Value) => silu(conv2d(v, useParameter(w), useParameter(b), { padding: 1 }));
    expectGradients(device, { x }, ({ x: v }) => ({ large: head(v!), small: head(avgPool2d(v!, 2)) }), [w, b]);
  });

  test.each([[[3]], [[5, 3]], [[2, 4, 3]], [[2, 4, 5, 3]]])("a linear map of a tensor (%p)", (shape) => {
    using w = parameter(device, { shape: [4, 3] }, "w");
    using b = parameter(device, { shape: [4] }, "b");
    expectGradients(
      device,
      { x: { shape } },
      ({ x: v }) => ({ y: silu(linear(v!, useParameter(w), useParameter(b))) }),
      [w, b],
    );
  });

  test("a value that three convolutions read, and one of them twice", () => {
    const made = ["a", "b", "c"].map((name) => parameter(device, { shape: [3, 1, 1, 3] }, name));
    expectGradients(
      device,
      { x },
      ({ x: v }) => {
        const [a, b, c] = made.map((w) => (u: Value) => silu(conv2d(u, useParameter(w), null))) as ((
          u: Value,
        ) => Value)[];
        const y = sigmoid(v!);
        return { y: add(add(a!(y), b!(y)), a!(c!(y))) };
      },
      made,
    );
    for (const w of made) w[Symbol.dispose]();
  });

  test("a convolution whose weight is computed", () => {
    using w = parameter(device, { shape: [3, 1, 1, 3] }, "w");
    expectGradients(device, { x }, ({ x: v }) => ({ y: conv2d(v!, scale(useParameter(w), 0.5), null) }), [w]);
  });

  test("several inputs and results, with a result that is used inside too", () => {
    expectGradients(device, { a: x, b: x }, ({ a, b }) => {
      const sum = silu(add(a!, b!));
      return { sum, product: silu(add(sum, a!)) };
    });
  });

  test("max pooling away from ties", () => {
    const values = new Random("max pool").distinct(elementCount(x.shape), -4, 4);
    expectGradients(device, { x: { ...x, values } }, ({ x: v }) => ({
      y: maxPool2d(v!, 3, { stride: 2, padding: 1 }),
    }));
  });
});

describe("exact gradients", () => {
  const gradientOf = (body: (x: Value) => Value, values: number[], upstream: number[]): number[] => {
    using made = program(device, { x: { shape: [values.length], values } }, ({ x: v }) => ({ y: body(v!) }), {
      training: true,
      seeds: "inputs",
      inputGradients: ["x"],
    });
    made.inputs["grad.y"]!.write(upstream);
    made.run();
    return numbers(made.results["grad.x"]);
  };

  test("of x + x + x is 3", () => {
    expect(gradientOf((v) => add(add(v, v), v), [1, -2], [1, 10])).toEqual([3, 30]);
  });

  test("of relu(x) + x is 2 where x > 0, else 1; at 0 it is 1", () => {
    expect(gradientOf((v) => add(relu(v), v), [3, -3, 0], [1, 1, 1])).toEqual([2, 1, 1]);
  });

  test("of a value that is returned as it is", () => {
    expect(gradientOf((v) => v, [1, 2], [5, 6])).toEqual([5, 6]);
  });

  test("of a slice is zero outside it", () => {
    expect(gradientOf((v) => slice(v, 0, 1, 2), [1, 2, 3, 4], [7, 8])).toEqual([0, 7, 8, 0]);
  });

  test("parts that lead nowhere do not change it", () => {
    expect(
      gradientOf(
        (v) => {
          silu(add(v, v));
          return scale(v, 2);
        },
        [1, 2],
        [1, 1],
      ),
    ).toEqual([2, 2]);
  });
});

/** The sum of all elements, as an operation of the user's own: a scalar loss from one convolution-free call. */
const total: Op<object> = {
  kind: "total",
  infer: () => [{ shape: [1], dtype: "f32" }],
  gradient(builder, { inputs: [v] }, [dy]) {
    // a constant upstream gradient fills the whole; nothing need be read
    return [typeof dy === "number" ? dy : builder.apply(spread, [dy!], { shape: v!.shape })[0]!];
  },
  prepare(on, { inputs: [v] }) {
    const out = new BigInt64Array(1);
    on.native.channelSumWorkspace(on.handle, out, elementCount(v!.shape), 1, 0);
    return { workspace: Number(out[0]) };
  },
  emit(e, { inputs: [v], outputs: [y] }) {
    const [dst, src, workspace, n] = [e.address(y!), e.address(v!), e.workspace, elementCount(v!.shape)];
    e.call(() => e.native.channelSum(e.stream, dst, src, workspace, n, 1, 0));
  },
};

const spread: Op<{ shape: readonly number[] }> = {
  kind: "spread",
  infer: (_, { shape }) => [{ shape, dtype: "f32" }],
  emit(e, { inputs: [s], outputs: [y] }) {
    const [dst, src, n] = [e.address(y!), e.address(s!), elementCount(y!.shape)];
    e.call(() => e.native.fill(e.stream, dst, n, 0, 1));
    e.call(() => e.native.scale(e.stream, dst, dst, src, n, 0, 1));
  },
};

describe("scalar losses with constant seeds", () => {
  test("the seed scales the gradients, losses add up", () => {
    using w = parameter(device, { shape: [4], values: [1, 2, 3, 4] }, "w");
    using made = program(
      device,
      { x: { shape: [4], values: [1, 1, 1, 1] } },
      ({ x: v }) => ({
        a: applyOp(total, [add(v!, useParameter(w))], {})[0]!,
        b: applyOp(total, [scale(useParameter(w), 3)], {})[0]!,
      }),
      { training: true, seeds: { a: 1, b: 0.5 } },
    );
    made.run();
    expect([numbers(made.results.a), numbers(made.results.b)]).toEqual([[14], [30]]);
    expect(numbers(w.grad!)).toEqual([2.5, 2.5, 2.5, 2.5]);
  });

  test("one loss of two can be differentiated", () => {
    using w = parameter(device, { shape: [2], values: [1, 2] }, "w");
    using made = program(
      device,
      {},
      () => ({
        a: applyOp(total, [useParameter(w)], {})[0]!,
        b: applyOp(total, [scale(useParameter(w), 100)], {})[0]!,
      }),
      {
        training: true,
        seeds: { a: 1 },
      },
    );
    made.run();
    expect(numbers(w.grad!)).toEqual([1, 1]);
  });

  test("a result that is no scalar needs a gradient, and one that is not there is named", () => {
    using w = parameter(device, { shape: [2] }, "w");
    const body = () => ({ y: scale(useParameter(w), 2) });
    expect(errorOf(() => program(device, {}, body, { seeds: { y: 1 } })).message).toBe(
      'Program: expected a scalar loss for "y", got (2)',
    );
    expect(errorOf(() => program(device, {}, body, { seeds: { z: 1 } })).message).toBe(
      'Program: no result named "z" to differentiate',
    );
    expect(errorOf(() => program(device, {}, body, { seeds: { y: "input" }, inputGradients: ["x"] })).message).toBe(
      'Program: no input named "x"',
    );
  });
});

describe("what is not trained", () => {
  test("a parameter with requiresGrad false keeps its gradient untouched, and its branch costs no backward calls", () => {
    using frozen = parameter(device, { shape: [4, 1, 1, 3] }, "frozen");
    using trained = parameter(device, { shape: [4, 1, 1, 4] }, "trained");
    frozen.requiresGrad = false;
    using made = program(
      device,
      { x },
      ({ x: v }) => ({ y: conv2d(conv2d(v!, useParameter(frozen), null), useParameter(trained), null) }),
      { training: true, seeds: "inputs" },
    );
    made.run();
    expect(made.calls.map((call) => call.kind)).toEqual(["conv2d", "conv2d", "conv2d_backward_weight"]);
    expect(numbers(frozen.grad!).every((g) => g === 0)).toBe(true);
    expect(numbers(trained.grad!).some((g) => g !== 0)).toBe(true);
  });

  test("gradients pass through a frozen layer to a trained one before it", () => {
    using first = parameter(device, { shape: [4, 1, 1, 3] }, "first");
    using frozen = parameter(device, { shape: [4, 1, 1, 4] }, "frozen");
    using bias = parameter(device, { shape: [4] }, "bias");
    using last = parameter(device, { shape: [2, 1, 1, 4] }, "last");
    const body = ({ x: v }: Record<string, Value>) => {
      const y = silu(conv2d(v!, useParameter(first), null));
      return { y: conv2d(silu(conv2d(y, useParameter(frozen), useParameter(bias))), useParameter(last), null) };
    };
    frozen.requiresGrad = bias.requiresGrad = false;
    using made = program(device, { x }, body, { training: true, seeds: "inputs" });
    made.run();
    const backward = made.calls.slice(made.backwardStart).map((call) => call.kind);
    expect(backward.filter((kind) => kind === "conv2d_backward_weight")).toHaveLength(2);
    expect(backward.filter((kind) => kind === "conv2d_backward_data")).toHaveLength(2);
    expect(backward).not.toContain("channel_sum");
    const gradients = [first, last].map((p) => numbers(p.grad!));
    for (const p of [frozen, bias]) expect(numbers(p.grad!).every((g) => g === 0)).toBe(true);

    frozen.requiresGrad = bias.requiresGrad = true;
    using all = program(device, { x }, body, { training: true, seeds: "inputs" });
    all.run();
    for (const [i, p] of [first, last].entries()) {
      expectClose(numbers(p.grad!), gradients[i]!, { rtol: 1e-6, atol: 1e-6 }, p.name);
    }
    for (const p of [frozen, bias]) expect(numbers(p.grad!).some((g) => g !== 0)).toBe(true);
  });

  test("upstream of frozen layers nothing is computed backward, and nothing is kept for it", () => {
    const shapes = { stem: [4, 3, 3, 3], body: [4, 3, 3, 4], head: [2, 1, 1, 4] };
    const made = Object.entries(shapes).map(([name, shape]) => parameter(device, { shape }, name));
    const [stem, body, head] = made as [(typeof made)[0], (typeof made)[0], (typeof made)[0]];
    const build = () =>
      program(
        device,
        { x: { shape: [1, 32, 32, 3] } },
        ({ x: v }) => {
          const deep = [1, 2, 3].reduce(
            (y) => silu(conv2d(y, useParameter(body), null, { padding: 1 })),
            silu(conv2d(v!, useParameter(stem), null, { padding: 1 })),
          );
          return { y: conv2d(deep, useParameter(head), null) };
        },
        { training: true, seeds: "inputs" },
      );
    using all = build();
    stem.requiresGrad = body.requiresGrad = false;
    using frozen = build();
    expect(frozen.calls.slice(frozen.backwardStart).map((call) => call.kind)).toEqual(["conv2d_backward_weight"]);
    expect(frozen.memory.unshared).toBeLessThan(all.memory.unshared);
    expect(frozen.arenaBytes).toBeLessThan(all.arenaBytes);
    for (const p of made) p[Symbol.dispose]();
  });

  test("an operation without a gradient is named, with its path", () => {
    const opaque: Op = { kind: "opaque", infer: ([v]) => [v!], emit() {} };
    const error = errorOf(() =>
      program(device, { x }, ({ x: v }) => ({ y: applyOp(opaque, [v!], {})[0]! }), {
        seeds: "inputs",
        inputGradients: ["x"],
      }),
    );
    expect(error.message).toBe("opaque: opaque has no gradient");
  });

  test("a parameter without gradient memory is named", () => {
    using w = parameter(device, { shape: [3] }, "head.weight");
    w.grad = null;
    expect(
      errorOf(() => program(device, {}, () => ({ y: scale(useParameter(w), 2) }), { seeds: "inputs" })).message,
    ).toContain("head.weight: has no gradient memory");
  });
});

describe("gradients of parameters", () => {
  const build = (accumulate: boolean, w: ReturnType<typeof parameter>) =>
    program(
      device,
      { x: { shape: [3], values: [1, 2, 3] } },
      ({ x: v }) => ({ y: add(scale(useParameter(w), 2), v!) }),
      { training: true, seeds: "inputs", accumulate },
    );

  test("replace what was there", () => {
    using w = parameter(device, { shape: [3] }, "w");
    w.grad!.write([100, 100, 100]);
    using made = build(false, w);
    made.inputs["grad.y"]!.write([1, 2, 3]);
    made.run();
    made.run();
    expect(numbers(w.grad!)).toEqual([2, 4, 6]);
  });

  test("add to it when asked", () => {
    using w = parameter(device, { shape: [3] }, "w");
    w.grad!.write([100, 100, 100]);
    using made = build(true, w);
    made.inputs["grad.y"]!.write([1, 2, 3]);
    made.run();
    made.run();
    expect(numbers(w.grad!)).toEqual([104, 108, 112]);
  });

  test("that are the same value for two parameters reach both", () => {
    using a = parameter(device, { shape: [3] }, "a");
    using b = parameter(device, { shape: [3] }, "b");
    using made = program(device, {}, () => ({ y: add(useParameter(a), useParameter(b)) }), {
      training: true,
      seeds: "inputs",
    });
    made.inputs["grad.y"]!.write([1, 2, 3]);
    made.run();
    expect([numbers(a.grad!), numbers(b.grad!)]).toEqual([
      [1, 2, 3],
      [1, 2, 3],
    ]);
  });

  test("of a parameter that is a result itself", () => {
    using w = parameter(device, { shape: [2], values: [5, 6] }, "w");
    using made = program(device, {}, () => ({ y: useParameter(w) }), { training: true, seeds: "inputs" });
    made.inputs["grad.y"]!.write([1, 2]);
    made.run();
    expect([numbers(made.results.y), numbers(w.grad!)]).toEqual([
      [5, 6],
      [1, 2],
    ]);
  });

  const bf16 = missing(device, "bf16", ["conv.bf16"]);
  (bf16 ? test.skip : test)("of an fp32 weight used through its bf16 copy and directly are added, in fp32", () => {
    using w = parameter(device, { shape: [2, 1, 1, 3], values: [1, 2, 3, 4, 5, 6] }, "w");
    using copy = parameter(device, { shape: [2, 1, 1, 3] }, "copy");
    using made = program(
      device,
      { x: { shape: [1, 1, 1, 3], values: [1, 1, 1] } },
      ({ x: v }) => {
        const exact = conv2d(v!, useParameter(w), null);
        return { y: add(cast(conv2d(cast(v!, "bf16"), cast(useParameter(w), "bf16"), null), "f32"), exact) };
      },
      { training: true, seeds: "inputs" },
    );
    made.inputs["grad.y"]!.write([1, 10]);
    made.run();
    expectClose(numbers(w.grad!), [2, 2, 2, 20, 20, 20], { rtol: 0, atol: 0 });
    expect(numbers(made.results.y)).toEqual([12, 30]);
    expect(copy.size).toBe(6);
  });
});

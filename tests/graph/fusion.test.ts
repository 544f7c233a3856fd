/** Fused and unfused programs compute the same. */
import { describe, expect, test } from "bun:test";
import {
  add,
  avgPool2d,
  batchNorm,
  conv2d,
  groupNorm,
  hardswish,
  leakyRelu,
  linear,
  type Parameter,
  type ProgramOptions,
  relu,
  relu6,
  scale,
  sigmoid,
  silu,
  useParameter,
  type Value,
} from "../../lib/graph";
import type { Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { Random } from "../support/random";
import { kinds, numbers, parameter, program } from "./support";

const device = testDevice();
const epilogue = device.supports("conv.epilogue");
const channels = 8;
const x = { shape: [2, 6, 5, channels] };

type Owned = Parameter & Disposable;

/** Parameters by name, made at first use; buffers are not trained. */
class Store implements Disposable {
  readonly all = new Map<string, Owned>();

  get(name: string, shape: number[], low = -0.5, high = 0.5, buffer = false): Value {
    let found = this.all.get(name);
    if (!found) {
      const size = shape.reduce((a, b) => a * b);
      found = parameter(device, { shape, values: new Random(name).uniform(size, low, high) }, name);
      found.requiresGrad = !buffer;
      this.all.set(name, found);
    }
    return useParameter(found);
  }

  conv(v: Value, name: string, bias = false, stride = 1): Value {
    return conv2d(
      v,
      this.get(`${name}.w`, [channels, 3, 3, channels]),
      bias ? this.get(`${name}.b`, [channels]) : null,
      { padding: 1, stride },
    );
  }

  pointwise(v: Value, name: string, stride = 1): Value {
    return conv2d(v, this.get(`${name}.w`, [channels, 1, 1, channels]), null, { stride });
  }

  linear(v: Value, name: string): Value {
    return linear(v, this.get(`${name}.w`, [channels, channels]), this.get(`${name}.b`, [channels]));
  }

  /** @param frozen weight and bias are not trained either */
  norm(v: Value, name: string, training: boolean, frozen = false): Value {
    const of = (key: string, low: number, high: number, buffer: boolean) =>
      this.get(`${name}.${key}`, [channels], low, high, buffer);
    return batchNorm(
      v,
      of("weight", 0.5, 1.5, frozen),
      of("bias", -1, 1, frozen),
      of("mean", -1, 1, true),
      of("var", 0.5, 2, true),
      { training },
    );
  }

  frozen(v: Value, name: string): Value {
    return this.norm(v, name, false, true);
  }

  [Symbol.dispose](): void {
    for (const owned of this.all.values()) owned[Symbol.dispose]();
  }
}

type Body = (store: Store, x: Value, training: boolean) => Record<string, Value>;

interface Expected {
  /** Kinds of the forward calls after fusion; with and without fused convolution epilogues. */
  train?: string[];
  infer?: string[];
  /** Kinds of the backward calls, in any order. */
  backward?: string[];
}

const yes = <T>(value: T): T | undefined => (epilogue ? value : undefined);

const bodies: [string, Body, Expected][] = [
  [
    "conv, norm, relu",
    (s, v, t) => ({ y: relu(s.norm(s.conv(v, "c"), "n", t)) }),
    { train: ["conv2d", "batch_norm"], infer: yes(["conv2d"]) },
  ],
  [
    "1x1 conv that gives the moments, norm, relu",
    (s, v, t) => ({ y: relu(s.norm(s.pointwise(v, "c"), "n", t)) }),
    { train: ["conv2d", "batch_norm"], infer: yes(["conv2d"]) },
  ],
  [
    "1x1 conv with stride that gives the moments, norm, add of another",
    (s, v, t) => ({ y: add(s.norm(s.pointwise(v, "c", 2), "n", t), s.norm(s.pointwise(v, "d", 2), "m", t)) }),
    { train: ["conv2d", "conv2d", ...Array(3).fill("batch_norm_join")], infer: yes(["conv2d", "conv2d"]) },
  ],
  [
    "conv with bias, norm",
    (s, v, t) => ({ y: s.norm(s.conv(v, "c", true), "n", t) }),
    { train: ["conv2d", "batch_norm"], infer: ["conv2d"] },
  ],
  [
    "conv, norm, add, relu",
    (s, v, t) => ({ y: relu(add(s.norm(s.conv(v, "c"), "n", t), v)) }),
    { train: ["conv2d", "batch_norm"], infer: yes(["conv2d"]) },
  ],
  [
    "add with the norm second",
    (s, v, t) => ({ y: relu(add(v, s.norm(s.conv(v, "c"), "n", t))) }),
    { train: ["conv2d", "batch_norm"], infer: yes(["conv2d"]) },
  ],
  [
    "norm of an input, relu",
    (s, v, t) => ({ y: relu(s.norm(v, "n", t)) }),
    { train: ["batch_norm"], infer: ["batch_norm_infer"] },
  ],
  [
    "conv, group norm, relu",
    (s, v) => ({
      y: relu(groupNorm(s.conv(v, "c"), s.get("g.weight", [channels], 0.5, 1.5), s.get("g.bias", [channels]), 2)),
    }),
    { train: ["conv2d", "group_norm"], infer: ["conv2d", "group_norm"] },
  ],
  [
    "group norm plus its own input, relu",
    (s, v) => ({
      y: relu(add(groupNorm(v, s.get("g.weight", [channels], 0.5, 1.5), s.get("g.bias", [channels]), 4), v)),
    }),
    { train: ["group_norm", "add"], infer: ["group_norm", "add"] },
  ],
  [
    "norm plus its own input",
    (s, v, t) => ({ y: relu(add(s.norm(v, "n", t), v)) }),
    { train: ["batch_norm"], infer: ["batch_norm_infer"] },
  ],
  [
    "conv with bias, relu",
    (s, v) => ({ y: relu(s.conv(v, "c", true)) }),
    { train: yes(["conv2d"]), infer: yes(["conv2d"]) },
  ],
  [
    "linear with bias, relu",
    (s, v) => ({ y: relu(s.linear(v, "l")) }),
    { train: yes(["linear"]), infer: yes(["linear"]) },
  ],
  [
    "linear, add, sigmoid",
    (s, v) => ({ y: sigmoid(add(v, s.linear(v, "l"))) }),
    { train: yes(["linear"]), infer: yes(["linear"]) },
  ],
  ["conv, sigmoid", (s, v) => ({ y: sigmoid(s.conv(v, "c")) }), { train: yes(["conv2d"]), infer: yes(["conv2d"]) }],
  [
    "conv, silu",
    (s, v) => ({ y: silu(s.conv(v, "c", true)) }),
    { train: ["conv2d", "activation"], infer: yes(["conv2d"]) },
  ],
  [
    "conv with bias, relu6 (scaled, so that some values are beyond 6)",
    (s, v) => ({ y: relu6(s.conv(scale(v, 4), "c", true)) }),
    { train: yes(["scale", "conv2d"]), infer: yes(["scale", "conv2d"]) },
  ],
  [
    "conv, norm, relu6",
    (s, v, t) => ({ y: relu6(s.norm(s.conv(v, "c"), "n", t)) }),
    { train: ["conv2d", "batch_norm", "activation"], infer: yes(["conv2d"]) },
  ],
  ["add, relu6", (_s, v) => ({ y: relu6(add(scale(v, 4), v)) }), { train: ["scale", "add"], infer: ["scale", "add"] }],
  [
    "conv, hardswish: an activation that nothing else ends in",
    (s, v) => ({ y: hardswish(s.conv(v, "c", true)) }),
    { train: ["conv2d", "activation"], infer: ["conv2d", "activation"] },
  ],
  [
    "add, leaky relu",
    (_s, v) => ({ y: leakyRelu(add(scale(v, 4), v), 0.2) }),
    { train: ["scale", "add", "activation"], infer: ["scale", "add", "activation"] },
  ],
  [
    "conv, norm, silu",
    (s, v, t) => ({ y: silu(s.norm(s.conv(v, "c"), "n", t)) }),
    { train: ["conv2d", "batch_norm", "activation"], infer: yes(["conv2d"]) },
  ],
  [
    "conv, add, relu",
    (s, v) => ({ y: relu(add(s.conv(v, "c", true), v)) }),
    { train: yes(["conv2d"]), infer: yes(["conv2d"]) },
  ],
  [
    "two convs added",
    (s, v) => ({ y: relu(add(s.conv(v, "c"), s.conv(v, "d"))) }),
    { train: yes(["conv2d", "conv2d"]), infer: yes(["conv2d", "conv2d"]) },
  ],
  [
    "two norms added",
    (s, v, t) => ({ y: relu(add(s.norm(s.conv(v, "c"), "n", t), s.norm(s.conv(v, "d"), "m", t))) }),
    { train: ["conv2d", "conv2d", ...Array(3).fill("batch_norm_join")] },
  ],
  [
    "two norms added, without an activation",
    (s, v, t) => ({ y: add(s.norm(v, "n", t), s.norm(s.conv(v, "d"), "m", t)) }),
    { train: ["conv2d", ...Array(3).fill("batch_norm_join")] },
  ],
  [
    "two norms added, one of which is read elsewhere too",
    (s, v, t) => {
      const n = s.norm(v, "n", t);
      return { y: add(relu(add(n, s.norm(s.conv(v, "d"), "m", t))), n) };
    },
    { train: ["batch_norm", "conv2d", "batch_norm", "add"] },
  ],
  [
    "add, relu",
    (_s, v) => ({ y: relu(add(v, avgPool2d(v, 3, { stride: 1, padding: 1 }))) }),
    { train: ["avg_pool", "add"], infer: ["avg_pool", "add"] },
  ],
  [
    "add of a value to itself, relu",
    (s, v) => {
      const c = s.conv(v, "c");
      return { y: relu(add(c, c)) };
    },
    { train: ["conv2d", "add"], infer: ["conv2d", "add"] },
  ],
  [
    "a conv that is read twice",
    (s, v) => {
      const c = s.conv(v, "c");
      return { y: add(relu(c), sigmoid(c)) };
    },
    { train: ["conv2d", "activation", "activation", "add"] },
  ],
  [
    "a conv that is a result too",
    (s, v) => {
      const c = s.conv(v, "c");
      return { c, y: relu(c) };
    },
    { train: ["conv2d", "activation"], infer: ["conv2d", "activation"] },
  ],
  [
    "a norm that is a result too",
    (s, v, t) => {
      const n = s.norm(s.conv(v, "c"), "n", t);
      return { n, y: relu(n) };
    },
    { train: ["conv2d", "batch_norm", "activation"] },
  ],
  ["relu twice", (s, v) => ({ y: relu(relu(s.conv(v, "c"))) }), {}],
  ["sigmoid of relu", (s, v) => ({ y: sigmoid(relu(s.conv(v, "c"))) }), { train: yes(["conv2d", "activation"]) }],
  [
    "residual blocks",
    (s, v, t) => {
      let y = v;
      for (const block of ["p", "q"]) {
        const inner = relu(s.norm(s.conv(y, `${block}1`), `${block}n1`, t));
        y = relu(add(s.norm(s.conv(inner, `${block}2`), `${block}n2`, t), y));
      }
      return { y };
    },
    { train: Array(4).fill(["conv2d", "batch_norm"]).flat(), infer: yes(Array(4).fill("conv2d")) },
  ],
  [
    "conv, frozen norm, relu",
    (s, v) => ({ y: relu(s.frozen(s.conv(v, "c"), "n")) }),
    {
      train: yes(["batch_norm_fold", "conv2d"]),
      infer: yes(["conv2d"]),
      backward: ["activation_backward", "conv2d_backward_data", "conv2d_backward_weight", "batch_norm_fold_backward"],
    },
  ],
  [
    "conv with bias, frozen norm, add, relu",
    (s, v) => ({ y: relu(add(v, s.frozen(s.conv(v, "c", true), "n"))) }),
    { train: yes(["batch_norm_fold", "conv2d"]), infer: yes(["conv2d"]) },
  ],
  [
    "a norm without training whose weight is trained",
    (s, v) => ({ y: relu(s.norm(s.conv(v, "c"), "n", false)) }),
    { train: ["conv2d", "batch_norm_infer"] },
  ],
  [
    "frozen residual blocks: the joins and ReLUs of the backward pass are in its data gradients",
    (s, v) => {
      let y = v;
      for (const block of ["p", "q"]) {
        const inner = relu(s.frozen(s.conv(y, `${block}1`), `${block}n1`));
        y = relu(add(s.frozen(s.conv(inner, `${block}2`), `${block}n2`), y));
      }
      return { y };
    },
    {
      train: yes(Array(4).fill(["batch_norm_fold", "conv2d"]).flat()),
      backward: yes([
        "activation_backward",
        ...Array(4).fill(["conv2d_backward_data", "conv2d_backward_weight", "batch_norm_fold_backward"]).flat(),
      ]),
    },
  ],
  [
    "a block with a strided shortcut",
    (s, v) => {
      const x = relu(s.conv(v, "a"));
      const inner = relu(s.conv(s.pointwise(x, "p"), "c", false, 2));
      return { y: relu(add(s.pointwise(inner, "q"), s.pointwise(x, "shortcut", 2))) };
    },
    {
      backward: yes([
        "activation_backward",
        ...Array(5)
          .fill(["data", "weight"])
          .flat()
          .map((of) => `conv2d_backward_${of}`),
      ]),
    },
  ],
  [
    "conv plus its own input: the sum of its data gradient with the gradient that it is made of",
    (s, v) => ({ y: add(s.conv(v, "c"), v) }),
    { backward: ["conv2d_backward_data", "conv2d_backward_weight"] },
  ],
  [
    "linear layers with a join",
    (s, v) => {
      const x = relu(s.linear(v, "l"));
      return { y: add(s.linear(x, "m"), x) };
    },
    { backward: yes(Array(2).fill(["conv2d_backward_data", "conv2d_backward_weight", "channel_sum"]).flat()) },
  ],
  [
    "a gradient that is read twice",
    (s, v) => {
      const x = s.conv(v, "c");
      return { y: s.conv(relu(x), "d"), z: sigmoid(x) };
    },
    {},
  ],
  [
    "a head shared by two levels, each with its own norm",
    (s, v, t) => {
      const head = (level: Value, name: string) => relu(s.norm(s.conv(level, "shared"), name, t));
      return { large: head(v, "n1"), small: head(avgPool2d(v, 2), "n2") };
    },
    { infer: yes(["conv2d", "avg_pool", "conv2d"]) },
  ],
];

/** Runs a body; all results, gradients and running statistics by name. */
function outcome(
  body: Body,
  training: boolean,
  fuse: boolean,
): { values: Record<string, number[]>; forward: string[]; backward: string[] } {
  using store = new Store();
  const options: ProgramOptions = training ? { training, seeds: "inputs", inputGradients: ["x"], fuse } : { fuse };
  using made = program(device, { x }, ({ x: v }) => body(store, v!, training), options);
  made.run();
  const read = (tensors: Iterable<[string, Tensor]>) =>
    [...tensors].map(([name, tensor]): [string, number[]] => [name, numbers(tensor)]);
  const state = [...store.all].flatMap(([name, p]): [string, Tensor][] => [
    [`state ${name}`, p.tensor],
    [`grad of ${name}`, p.grad!],
  ]);
  return {
    values: Object.fromEntries([...read(Object.entries(made.results)), ...read(state)]),
    forward: kinds(made).slice(0, made.backwardStart),
    backward: kinds(made).slice(made.backwardStart),
  };
}

describe.each([
  ["training", true],
  ["inference", false],
] as const)("%s", (_mode, training) => {
  test.each(bodies)("%s", (_name, body, expected) => {
    const plain = outcome(body, training, false);
    const fused = outcome(body, training, true);
    expect(Object.keys(fused.values)).toEqual(Object.keys(plain.values));
    // The order of roundings differs; sums of 72 products of magnitude 1 and statistics of 60 values lie in between.
    for (const [name, values] of Object.entries(plain.values))
      expectClose(fused.values[name]!, values, { rtol: 1e-4, atol: 5e-5 }, name);
    const wanted = training ? expected.train : expected.infer;
    if (wanted) expect(fused.forward).toEqual(wanted);
    if (training && expected.backward) expect(fused.backward.toSorted()).toEqual(expected.backward.toSorted());
    expect(fused.forward.length + fused.backward.length).toBeLessThanOrEqual(
      plain.forward.length + plain.backward.length,
    );
  });
});

test("a 1x1 convolution gives the moments of what is normalised, where the device can", () => {
  using store = new Store();
  const body = ({ x: v }: Record<string, Value>) => ({ y: store.norm(store.pointwise(v!, "c"), "n", true) });
  using made = program(device, { x }, body, { training: true });
  expect(made.calls[0]!.outputs.length).toBe(device.supports("conv.moments.f32") ? 2 : 1);
});

test("both 1x1 convolutions of a sum of two normalizations give their moments, where the device can", () => {
  using store = new Store();
  const branch = (v: Value, conv: string, norm: string) => store.norm(store.pointwise(v, conv, 2), norm, true);
  const body = ({ x: v }: Record<string, Value>) => ({ y: add(branch(v!, "c", "n"), branch(v!, "d", "m")) });
  using made = program(device, { x }, body, { training: true });
  const outputs = device.supports("conv.moments.f32") ? 2 : 1;
  expect(made.calls.slice(0, 2).map((call) => call.outputs.length)).toEqual([outputs, outputs]);
});

describe("folded weights", () => {
  test("are computed ahead of the runs, and again after refresh()", () => {
    using store = new Store();
    const body = (fuse: boolean) =>
      program(device, { x }, ({ x: v }) => ({ y: store.norm(store.conv(v!, "c"), "n", false) }), { fuse });
    using fused = body(true);
    using plain = body(false);
    const agree = () => {
      fused.run();
      plain.run();
      expectClose(numbers(fused.results.y), numbers(plain.results.y), { rtol: 1e-4, atol: 2e-5 }, "y");
    };
    for (let i = 0; i < 3; ++i) agree();
    const before = numbers(fused.results.y);
    store.all.get("n.weight")!.tensor.write(new Float32Array(channels).fill(3));
    fused.run();
    expect(numbers(fused.results.y)).toEqual(before);
    fused.refresh();
    for (let i = 0; i < 3; ++i) agree();
    expect(numbers(fused.results.y)).not.toEqual(before);
  });

  test("in training are computed in each run where the weight is trained, else ahead of the runs", () => {
    using store = new Store();
    const body = ({ x: v }: Record<string, Value>) => ({ y: store.frozen(store.conv(v!, "c"), "n") });
    const make = () => program(device, { x }, body, { training: true, seeds: "inputs" });
    using trained = make();
    expect(kinds(trained).filter((kind) => kind === "batch_norm_fold")).toHaveLength(1);
    const weight = store.all.get("c.w")!;
    weight.requiresGrad = false;
    using frozen = make();
    expect(kinds(frozen).filter((kind) => kind === "batch_norm_fold")).toEqual([]);
    const run = (made: typeof frozen) => {
      made.run();
      return numbers(made.results.y);
    };
    const before = run(trained);
    expect(run(frozen)).toEqual(before);
    weight.tensor.write(numbers(weight.tensor).map((value) => 2 * value));
    const after = run(trained);
    expect(after).not.toEqual(before);
    expect(run(frozen)).toEqual(before);
    frozen.refresh();
    expect(run(frozen)).toEqual(after);
  });
});

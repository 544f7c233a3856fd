/** Recording forward(): shapes, paths in messages, and what is refused. */
import { describe, expect, test } from "bun:test";
import {
  add,
  applyOp,
  batchNorm,
  concat,
  conv2d,
  Graph,
  isTracing,
  maxPool2d,
  type Op,
  relu,
  reshape,
  slice,
  trace,
  upsample,
  useParameter,
  type Value,
  withPath,
} from "../../lib/graph";
import { BatchNorm2d, Concat, Conv2d, Layer, Sequential } from "../../lib/layers";
import { DlfsError, ErrorCode } from "../../lib/native";
import { Tensor } from "../../lib/tensor";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const spec = (...shape: number[]) => ({ shape, dtype: "f32" as const });

/** The shape that `body` gives for an input x. */
function shapeOf(shape: number[], body: (x: Value) => Value): readonly number[] {
  return trace({ x: spec(...shape) }, ({ x }) => body(x!)).result.shape;
}

describe("shapes", () => {
  const cases: [string, number[], (x: Value) => Value, number[]][] = [
    ["max pooling rounds down", [2, 9, 8, 3], (x) => maxPool2d(x, 3, { stride: 2, padding: 1 }), [2, 5, 4, 3]],
    ["upsampling by a factor", [1, 3, 4, 2], (x) => upsample(x, { scale: 2 }), [1, 6, 8, 2]],
    ["upsampling by a fraction rounds down", [1, 3, 5, 2], (x) => upsample(x, { scale: 1.5 }), [1, 4, 7, 2]],
    ["upsampling to a size", [1, 3, 4, 2], (x) => upsample(x, { size: [7, 5] }), [1, 7, 5, 2]],
    [
      "bilinear by a factor for each axis",
      [1, 3, 5, 2],
      (x) => upsample(x, { scale: [2, 1.5], mode: "bilinear" }),
      [1, 6, 7, 2],
    ],
    ["joining channels", [1, 3, 4, 2], (x) => concat([x, x, x]), [1, 3, 4, 6]],
    ["joining rows", [1, 3, 4, 2], (x) => concat([x, x], 1), [1, 6, 4, 2]],
    ["a slice", [1, 3, 4, 5], (x) => slice(x, 3, 1, 3), [1, 3, 4, 3]],
    ["another view", [2, 3, 4, 5], (x) => reshape(x, [2, 12, 5]), [2, 12, 5]],
  ];
  test.each(cases)("%s", (_name, shape, body, expected) => {
    expect(shapeOf(shape, body)).toEqual(expected);
  });
});

class Bottleneck extends Layer {
  conv1: Conv2d;
  constructor(channels: number) {
    super();
    this.conv1 = new Conv2d(channels, 8, 1);
  }
  forward(x: Value): Value {
    return relu(this.conv1.forward(x));
  }
}

class Backbone extends Layer {
  layer2: Bottleneck[] = [new Bottleneck(256), new Bottleneck(8)];
  forward(x: Value): Value {
    return this.layer2.reduce((y, layer) => layer.forward(y), x);
  }
}

class Detector extends Layer {
  backbone = new Backbone();
  mixedCase = new Conv2d(8, 4, 3);
  forward(x: Value): Value {
    return this.mixedCase.forward(this.backbone.forward(x));
  }
}

function traced(layer: Layer & { forward(x: Value): Value }, ...shape: number[]): Value {
  layer.assignNames();
  return trace({ x: spec(...shape) }, ({ x }) => layer.forward(x!)).result;
}

describe("dimension errors name the layer's path", () => {
  test("in arrays of layers", () => {
    const error = errorOf(() => traced(new Detector(), 1, 4, 4, 128));
    expect(error.message).toBe("backbone.layer2.0.conv1: expected 256 channels, got 128");
    expect(error.op).toBe("backbone.layer2.0.conv1");
    expect(error.code).toBe(ErrorCode.shape);
  });

  test("in snake_case, as PyTorch's names", () => {
    expect(errorOf(() => traced(new Detector(), 1, 2, 2, 256)).message).toBe(
      "mixed_case: the 3x3 kernel (dilation 1x1, padding 0x0) is larger than the image, 2x2",
    );
  });

  test("in a Sequential, by position", () => {
    const layers = new Sequential(new Conv2d(3, 8, 3), new BatchNorm2d(9));
    expect(errorOf(() => traced(layers, 1, 5, 5, 3)).message).toBe("1: expected 9 channels (weight), got 8");
  });

  test("in an operation applied in a layer's own forward()", () => {
    class Join extends Layer {
      forward(x: Value): Value {
        return add(x, slice(x, 3, 0, 1));
      }
    }
    class Outer extends Layer {
      join = new Join();
      forward(x: Value): Value {
        return this.join.forward(x);
      }
    }
    expect(errorOf(() => traced(new Outer(), 1, 2, 2, 3)).message).toBe(
      "join: expected two tensors of one shape and dtype, got f32 (1, 2, 2, 3) and f32 (1, 2, 2, 1)",
    );
  });

  test("the path is that of the layer again after an error inside another", () => {
    class Careful extends Layer {
      inner = new Conv2d(5, 5, 1);
      after = new Conv2d(7, 5, 1);
      forward(x: Value): Value {
        try {
          this.inner.forward(x);
        } catch {}
        return this.after.forward(x);
      }
    }
    expect(errorOf(() => traced(new Careful(), 1, 1, 1, 3)).message).toBe("after: expected 7 channels, got 3");
  });

  const refused: [string, (x: Value) => unknown, RegExp][] = [
    [
      "an image batch without channels",
      (x) => conv2d(reshape(x, [2, 48]), x, null),
      /expected an image batch of shape \(N, H, W, C\), got \(2, 48\)/,
    ],
    ["a view of another size", (x) => reshape(x, [5, 5]), /cannot view \(2, 4, 4, 3\) as \(5, 5\): 96 and 25 elements/],
    ["a slice beyond the end", (x) => slice(x, 3, 2, 2), /cannot take 2 from 2 along axis 3 of \(2, 4, 4, 3\)/],
    ["an axis that is not there", (x) => concat([x, x], 4), /expected an axis from 0 to 3, got 4/],
    ["joining nothing", () => concat([]), /at least one tensor/],
    [
      "joining what does not fit",
      (x) => concat([x, slice(x, 1, 0, 2)]),
      /tensor 1: expected f32 \(2, 4, 4, any\), got f32 \(2, 2, 4, 3\)/,
    ],
    [
      "a window larger than the image",
      (x) => maxPool2d(x, 6),
      /the 6x6 window with padding 0x0 is larger than the image/,
    ],
    [
      "padding of more than half the window",
      (x) => maxPool2d(x, 3, { padding: 2 }),
      /at most half the window 3x3, got 2x2/,
    ],
    ["upsampling to nothing", (x) => upsample(x, { scale: 0.1 }), /expected a positive size, got 0x0/],
    [
      "batch statistics of one value a channel",
      (x) => {
        const one = slice(slice(slice(x, 0, 0, 1), 1, 0, 1), 2, 0, 1);
        const c = reshape(one, [3]);
        return batchNorm(one, c, c, c, c, { training: true });
      },
      /more than one value per channel when training, got \(1, 1, 1, 3\)/,
    ],
  ];
  test.each(refused)("%s", (_name, body, message) => {
    const error = errorOf(() => trace({ x: spec(2, 4, 4, 3) }, ({ x }) => withPath("head", () => body(x!))));
    expect(error.message).toMatch(message);
    expect(error.message).toStartWith("head: ");
    expect(error.code).toBe(ErrorCode.shape);
  });

  test("an input that is no batch for joined layers", () => {
    const layer = new Concat();
    const message = errorOf(() =>
      trace({ a: spec(1, 2, 2, 3), b: spec(1, 3, 2, 3) }, ({ a, b }) => layer.forward(a!, b!)),
    ).message;
    expect(message).toContain("tensor 1: expected f32 (1, 2, 2, any), got f32 (1, 3, 2, 3)");
  });
});

describe("reading a value inside forward() is a named error", () => {
  const reads: [string, (x: Value) => unknown][] = [
    ["data", (x) => x.data],
    ["read()", (x) => x.read()],
    ["item()", (x) => x.item()],
    ["arithmetic", (x) => (x as unknown as number) + 1],
    ["comparison", (x) => (x as unknown as number) > 0],
    ["Number()", (x) => Number(x)],
  ];
  test.each(reads)("%s", (_name, read) => {
    const error = errorOf(() => trace({ x: spec(1, 2, 2, 3) }, ({ x }) => read(x!)));
    expect(error).toBeInstanceOf(DlfsError);
    expect(error.message).toContain(
      "a symbolic tensor has no numbers; forward() describes the computation and runs before it",
    );
  });

  test("its text is its dtype and shape", () => {
    const text = trace({ x: { shape: [1, 2, 3], dtype: "bf16" } }, ({ x }) => `${x}`).result;
    expect(text).toBe("bf16 (1, 2, 3)");
  });
});

describe("operations belong inside forward()", () => {
  test("an operation outside says so", () => {
    const outside = trace({ x: spec(1, 2, 2, 3) }, ({ x }) => x!).result;
    expect(errorOf(() => relu(outside)).message).toContain("belong inside a layer's forward()");
    expect(isTracing()).toBe(false);
  });

  test("a layer called on a tensor says what to call instead", () => {
    using tensor = Tensor.zeros(testDevice(), [1, 2, 2, 3]);
    expect(errorOf(() => new Conv2d(3, 4, 1).forward(tensor as never)).message).toBe(
      "Conv2d: forward() works on symbolic tensors; to run a model on tensors use call()",
    );
    const inside = errorOf(() => trace({}, () => relu(tensor as never)));
    expect(inside.message).toContain("expected a symbolic tensor, got a Tensor (use model.call() to run on tensors)");
  });

  test("undefined operands are named", () => {
    expect(errorOf(() => trace({ x: spec(2, 2) }, ({ y }) => relu(y!))).message).toBe(
      "activation: expected a symbolic tensor, got undefined",
    );
  });

  test("a trace inside a trace leaves the outer one as it was", () => {
    const { graph } = trace({ x: spec(1, 2, 2, 3) }, ({ x }) => {
      const inner = trace({ y: spec(4, 4) }, ({ y }) => relu(y!));
      expect(inner.graph.nodes).toHaveLength(1);
      return relu(relu(x!));
    });
    expect(graph.nodes).toHaveLength(2);
    expect(isTracing()).toBe(false);
  });

  test("an error inside forward() ends the trace", () => {
    expect(() =>
      trace({}, () => {
        throw new TypeError("mine");
      }),
    ).toThrow(TypeError);
    expect(isTracing()).toBe(false);
  });

  test("two inputs of one name are refused", () => {
    const graph = new Graph();
    graph.input("x", spec(1));
    expect(errorOf(() => graph.input("x", spec(1))).message).toContain('two inputs are named "x"');
  });

  test("an operation's own bug is not taken for a shape error", () => {
    const broken: Op = {
      kind: "broken",
      infer() {
        throw new RangeError("a bug");
      },
      emit() {},
    };
    expect(() => trace({ x: spec(1) }, ({ x }) => applyOp(broken, [x!], {}))).toThrow(RangeError);
  });

  test("a parameter is one operand, however often it is used", () => {
    const layer = new Conv2d(3, 4, 1);
    trace({ x: spec(1, 2, 2, 3) }, () => {
      const [a, b] = [useParameter(layer.weight), useParameter(layer.weight)];
      const c = useParameter(layer.weight, "bf16");
      expect(a).toBe(b);
      expect(c).not.toBe(a);
      expect(c.dtype).toBe("bf16");
    });
  });
});

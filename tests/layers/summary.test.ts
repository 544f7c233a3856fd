/** The layer table, against numbers worked out by hand. No test here opens a device. */
import { describe, expect, test } from "bun:test";
import { add, applyOp, avgPool2d, type Op, relu, type Value } from "../../lib/graph";
import {
  BatchNorm2d,
  Conv2d,
  ConvTranspose2d,
  GroupNorm,
  Linear,
  MaxPool2d,
  Model,
  Sequential,
  SiLU,
  Upsample,
} from "../../lib/layers";
import { CompactDetector } from "../../lib/models";
import { ErrorCode } from "../../lib/native";
import { errorOf } from "../support/errors";

class Net extends Model {
  stem = new Sequential(new Conv2d(3, 4, 3, { stride: 2, padding: 1 }), new BatchNorm2d(4), new SiLU());
  /** Depthwise, applied twice. */
  shared = new Conv2d(4, 4, 3, { padding: 1, groups: 4, bias: false });
  pool = new MaxPool2d(2);

  forward(x: Value): { fine: Value; coarse: Value } {
    const y = this.stem.forward(x);
    const fine = relu(add(this.shared.forward(y), y));
    return { fine, coarse: avgPool2d(this.shared.forward(this.pool.forward(fine)), 2) };
  }
}

const rows = (net: Model, shape = [2, 8, 8, 3]) =>
  Object.fromEntries(net.summary([shape]).layers.map(({ path, ...row }) => [path, row]));

describe("summary", () => {
  test("shapes, parameters, FLOPs and memory of each layer", () => {
    const table = rows(new Net().eval());
    expect(Object.keys(table)).toEqual(["stem.0", "stem.1", "stem.2", "shared", "", "pool"]);
    const half = 2 * 4 * 4 * 4;
    expect(table["stem.0"]).toEqual({
      type: "Conv2d",
      outputs: [[2, 4, 4, 4]],
      trained: 4 * 27 + 4,
      frozen: 0,
      buffers: 0,
      flops: half * (2 * 27 + 1),
      activationBytes: 4 * half,
    });
    expect(table["stem.1"]).toMatchObject({ type: "BatchNorm2d", trained: 8, buffers: 8, flops: 2 * half });
    expect(table["stem.2"]).toMatchObject({ type: "SiLU", trained: 0, flops: half });
    expect(table.shared).toMatchObject({
      outputs: [
        [2, 4, 4, 4],
        [2, 2, 2, 4],
      ],
      trained: 36,
      flops: 2 * 9 * (half + half / 4),
      activationBytes: 4 * (half + half / 4),
    });
    // The model's own: an addition and a ReLU, then the pooling over windows of 4.
    expect(table[""]).toMatchObject({
      type: "Net",
      outputs: [
        [2, 4, 4, 4],
        [2, 1, 1, 4],
      ],
      flops: half + 2 * 4 * 4,
      activationBytes: 4 * (2 * half + 8),
    });
    // The winners' positions, a byte each, are memory too.
    expect(table.pool).toMatchObject({ flops: 0, activationBytes: 5 * (half / 4) });
  });

  test("the total is the sum of the rows; the memory in use at once lies below it", () => {
    const { layers, total, inputs, outputs } = new Net().summary([[2, 8, 8, 3]]);
    for (const name of ["trained", "frozen", "buffers", "flops", "activationBytes"] as const) {
      expect(total[name]).toBe(layers.reduce((sum, row) => sum + row[name], 0));
    }
    expect(total.trained).toBe(4 * 27 + 4 + 8 + 36);
    expect(total.parameterBytes).toBe(4 * (total.trained + 8));
    expect(inputs).toEqual([[2, 8, 8, 3]]);
    expect(outputs).toEqual([
      [2, 4, 4, 4],
      [2, 1, 1, 4],
    ]);
    expect(total.peakBytes).toBeGreaterThanOrEqual(4 * (2 * 8 * 8 * 3 + 128));
    expect(total.peakBytes).toBeLessThan(4 * 2 * 8 * 8 * 3 + total.activationBytes);
  });

  test("FLOPs grow with the batch, parameters do not", () => {
    const [one, four] = [1, 4].map((n) => new Net().summary([[n, 16, 16, 3]]).total);
    expect(four!.flops).toBe(4 * one!.flops);
    expect(four!.trained).toBe(one!.trained);
  });

  test("frozen parameters have a column of their own, where there are any", () => {
    const net = new Net();
    expect(String(net.summary([[1, 8, 8, 3]]))).not.toContain("frozen");
    for (const [, parameter] of net.stem.namedParameters()) parameter.requiresGrad = false;
    const summary = net.summary([[1, 8, 8, 3]]);
    expect(summary.total).toMatchObject({ trained: 36, frozen: 4 * 27 + 4 + 8, buffers: 8 });
    expect(String(summary)).toContain("frozen");
  });

  test("in 16 bits activations take half, parameters stay", () => {
    const net = new Net().eval();
    const [wide, narrow] = (["f32", "bf16"] as const).map((precision) => net.summary([[2, 8, 8, 3]], { precision }));
    const positions = 2 * 2 * 2 * 4;
    expect(2 * (narrow!.total.activationBytes - positions)).toBe(wide!.total.activationBytes - positions);
    expect(narrow!.total.flops).toBe(wide!.total.flops);
    expect(narrow!.total.parameterBytes).toBe(wide!.total.parameterBytes);
  });

  test("a linear layer: 2 for each weight and row, 1 for each bias", () => {
    class Head extends Model {
      fc = new Linear(6, 5);
      forward(x: Value): Value {
        return this.fc.forward(x);
      }
    }
    const { layers, uncounted } = new Head().summary([[2, 3, 6]]);
    expect(layers).toHaveLength(1);
    expect(layers[0]).toMatchObject({ path: "fc", type: "Linear", outputs: [[2, 3, 5]], trained: 35 });
    expect(layers[0]).toMatchObject({ flops: 6 * (2 * 30 + 5), activationBytes: 6 * 5 * 4 });
    expect(uncounted).toEqual([]);
  });

  test("a transposed convolution: 2 for each weight and input pixel, 1 for each bias; bilinear upsampling: 7", () => {
    class Head extends Model {
      up = new ConvTranspose2d(6, 4, 2, { stride: 2, groups: 2 });
      norm = new GroupNorm(2, 4);
      resize = new Upsample({ scale: 2, mode: "bilinear" });
      forward(x: Value): Value {
        return this.resize.forward(this.norm.forward(this.up.forward(x)));
      }
    }
    const { layers, uncounted } = new Head().summary([[1, 3, 5, 6]]);
    const [pixels, elements] = [15 * 6, 6 * 10 * 4];
    expect(layers[0]).toMatchObject({ path: "up", outputs: [[1, 6, 10, 4]], trained: 6 * 2 * 2 * 2 + 4 });
    expect(layers[0]!.flops).toBe(pixels * 2 * (2 * 2 * 2) + elements);
    expect(layers[1]).toMatchObject({ path: "norm", trained: 8, flops: 2 * elements });
    expect(layers[2]).toMatchObject({ path: "resize", outputs: [[1, 12, 20, 4]], flops: 7 * 4 * elements });
    expect(uncounted).toEqual([]);
  });

  test("neither allocates nor changes the mode", () => {
    const net = new Net().eval();
    net.summary([[1, 8, 8, 3]]);
    expect(net.parameters().some((parameter) => parameter.allocated)).toBe(false);
    expect(net.stem.training).toBe(false);
    expect(errorOf(() => net.device).message).toContain("is on no device");
  });

  test("as text: a line for each layer, aligned, and the total", () => {
    const text = String(new Net().eval().summary([[2, 8, 8, 3]]));
    const lines = text.split("\n");
    expect(lines[0]).toBe("Net: f32 (2, 8, 8, 3) -> (2, 4, 4, 4), (2, 1, 1, 4)");
    expect(lines[1]).toMatch(/^layer +type +output +trained +FLOPs +activations$/);
    expect(lines[3]).toMatch(/^stem\.0 +Conv2d +\(2, 4, 4, 4\) +112 +7\.04 k +512 B$/);
    expect(lines[6]).toMatch(/^shared +Conv2d +\(2, 4, 4, 4\), \(2, 2, 2, 4\) +36 /);
    expect(lines.at(-2)).toMatch(/^total +Net +156 /);
    expect(new Set(lines.slice(3, 9).map((line) => line.length)).size).toBe(1);
    expect(text).not.toContain("not known");
  });

  test("names operations whose cost it does not know", () => {
    const twice: Op<object> = { kind: "twice", infer: ([x]) => [x!], emit() {} };
    class Own extends Model {
      forward(x: Value): Value {
        return applyOp(twice, [x], {})[0]!;
      }
    }
    const summary = new Own().summary([[1, 2, 2, 3]]);
    expect(summary.uncounted).toEqual(["twice"]);
    expect(summary.total.flops).toBe(0);
    expect(String(summary)).toEndWith("FLOPs not known and counted as 0: twice");
  });

  test("a detector: what forward does not need is not counted, shared heads are counted once", () => {
    const model = new CompactDetector({ classes: 2, width: 4 });
    const { layers, outputs, total, uncounted } = model.summary([[1, 64, 64, 3]]);
    expect(outputs).toEqual([
      [1, 756, 2],
      [1, 756, 4],
    ]);
    expect(total.trained).toBe(model.parameters().reduce((sum, { size }) => sum + size, 0));
    expect(layers.find(({ path }) => path === "class_head.last")!.outputs).toHaveLength(3);
    expect(uncounted).toEqual([]);
  });

  test("a layer that does not accept what reaches it is named", () => {
    const error = errorOf(() => new Net().summary([[1, 8, 8, 4]]));
    expect(error.code).toBe(ErrorCode.shape);
    expect(error.message).toBe("stem.0: expected 3 channels, got 4");
  });

  test.each([[[]], [[[1, 8.5, 8, 3]]], [[[1, 0, 8, 3]]]])("refuses the shapes %j", (shapes) => {
    expect(errorOf(() => new Net().summary(shapes)).message).toBe(
      `Net.summary: expected shapes of positive integers such as [[1, 640, 640, 3]], got ${JSON.stringify(shapes)}`,
    );
  });
});

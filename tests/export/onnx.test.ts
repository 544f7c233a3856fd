/**
 * Models exported to ONNX, read again by our reader. That the numbers are right is for scripts/check-onnx.ts, which runs the files
 * in ONNX Runtime; those it has agreed with are in tests/golden/onnx, and what is exported now is compared with them.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { exportOnnx, type OnnxOptions } from "../../lib/export";
import { loadWeights, type OnnxFile, readOnnx } from "../../lib/formats";
import { add, applyOp, constant, maxPool2d, type Op, relu, reshape, type Value } from "../../lib/graph";
import { Conv2d, Layer, Model } from "../../lib/layers";
import { CompactDetector, loadTorchWeights, torchWeights } from "../../lib/models";
import { EveryOperation, goldenCases, withWeights } from "../golden/onnx/models";
import { testDevice } from "../support/device";

const folder = mkdtempSync(join(tmpdir(), "dlfs-export-"));
afterAll(() => rmSync(folder, { recursive: true }));
let files = 0;

/** Exports a model and opens the file. */
async function exported(model: Model, options: OnnxOptions): Promise<OnnxFile> {
  const path = join(folder, `${++files}.onnx`);
  await exportOnnx(model, path, options);
  return await readOnnx(path);
}

const detector = () => withWeights(new CompactDetector({ classes: 3, width: 4, headConvs: 1 }), testDevice());
const countOf = (file: OnnxFile, opType: string) =>
  file.model.graph.nodes.filter((node) => node.opType === opType).length;

/** A model of one function. */
class Small extends Model {
  readonly inner: Layer & { forward(x: Value): Value };

  constructor(forward: (x: Value) => Value) {
    super();
    this.inner = new (class extends Layer {
      forward(x: Value): Value {
        return forward(x);
      }
    })();
  }

  forward(images: Value): Value {
    return this.inner.forward(images);
  }
}

const small = (forward: (x: Value) => Value) => new Small(forward);

describe("what ONNX Runtime has agreed with is exported still", () => {
  for (const { name, model, size, options, golden } of goldenCases(testDevice())) {
    test(name, async () => {
      using file = await exported(model, { ...options, size });
      using expected = await readOnnx(join(import.meta.dir, "../golden/onnx", golden!));
      expect({ ...file.model, producer: null }).toEqual({ ...expected.model, producer: null });
      const tensors = ({ tensors }: OnnxFile) =>
        [...tensors.values()].map((tensor) => [tensor.name, tensor.dtype, tensor.shape, tensor.bytes().toHex()]);
      expect(tensors(file)).toEqual(tensors(expected));
      model.dispose();
    });
  }
});

describe("the graph", () => {
  test("has names, sizes and an open batch for inputs and outputs", async () => {
    using model = detector();
    using file = await exported(model, { size: [64, 96], metadata: { names: '["a","b","c"]' } });
    const anchors = 9 * (8 * 12 + 4 * 6 + 2 * 3);
    expect(file.model).toMatchObject({ opset: 17, irVersion: 8, producer: { name: "dlfs" } });
    expect(file.model.graph.inputs).toEqual([{ name: "images", dtype: "f32", shape: ["batch", 3, 64, 96] }]);
    expect(file.model.graph.outputs).toEqual([
      { name: "logits", dtype: "f32", shape: ["batch", anchors, 3] },
      { name: "deltas", dtype: "f32", shape: ["batch", anchors, 4] },
    ]);
    expect(Object.fromEntries(file.values)).toEqual({
      "dlfs.model": "CompactDetector",
      "dlfs.size": "[64,96]",
      "dlfs.layout": "nchw",
      names: '["a","b","c"]',
    });
  });

  test("with post-processing it has detect's outputs, padded where there are fewer candidates", async () => {
    using model = detector();
    using file = await exported(model, { size: [32, 32], layout: "nhwc", postprocess: true });
    expect(file.model.graph.inputs).toEqual([
      { name: "images", dtype: "f32", shape: ["batch", 32, 32, 3] },
      { name: "image_sizes", dtype: "f32", shape: ["batch", 2] },
    ]);
    expect(file.model.graph.outputs).toEqual([
      { name: "detections", dtype: "f32", shape: ["batch", 300, 6] },
      { name: "counts", dtype: "i32", shape: ["batch"] },
    ]);
    expect(countOf(file, "NonMaxSuppression")).toBe(1);
  });

  test("is in order, of ai.onnx alone, each name given once, and the batch is nowhere a number", async () => {
    using model = detector();
    for (const postprocess of [false, true]) {
      using file = await exported(model, { size: [64, 96], postprocess });
      const { nodes, inputs, outputs } = file.model.graph;
      const known = new Set(["", ...inputs.map(({ name }) => name), ...file.tensors.keys()]);
      for (const node of nodes) {
        expect([node.name, node.domain, node.inputs.filter((name) => !known.has(name))]).toEqual([node.name, "", []]);
        for (const name of node.outputs) {
          expect(known.has(name)).toBe(false);
          known.add(name);
        }
      }
      expect(outputs.every(({ name }) => known.has(name))).toBe(true);
      expect(new Set(nodes.map(({ name }) => name)).size).toBe(nodes.length);
      const read = new Set(nodes.flatMap((node) => [...node.inputs]));
      expect([...file.tensors.keys()].filter((name) => !read.has(name))).toEqual([]);
      for (const tensor of file.tensors.values()) {
        if (tensor.dtype === "i64") expect(tensor.toFloat32().every((value) => Math.abs(value) < 900_000)).toBe(true);
      }
    }
  });

  test("transposes nothing but the heads' maps, and the images where they come as (N, H, W, C)", async () => {
    using model = detector();
    using nchw = await exported(model, { size: [64, 96] });
    expect(countOf(nchw, "Transpose")).toBe(2 * 3);
    using nhwc = await exported(model, { size: [64, 96], layout: "nhwc" });
    expect(countOf(nhwc, "Transpose")).toBe(2 * 3 + 1);
    using pooled = withWeights(new EveryOperation(), testDevice());
    using file = await exported(pooled, { size: [25, 38] });
    // Two maps become rows; the pooled vector needs no Transpose. The others are a linear weight's and the model's own.
    expect(countOf(file, "Transpose")).toBe(4);
  });

  test("has batch normalization in the convolutions, or as nodes with the weights of the model by torch's names", async () => {
    using model = detector();
    using folded = await exported(model, { size: [64, 96] });
    expect(countOf(folded, "BatchNormalization")).toBe(0);
    using file = await exported(model, { size: [64, 96], foldBatchNorm: false });
    expect(countOf(file, "BatchNormalization")).toBeGreaterThan(0);
    for (const [name, { shape, data }] of torchWeights(model)) {
      const tensor = file.tensors.get(name);
      expect([name, tensor?.shape]).toEqual([name, shape]);
      expect<Float32Array>(tensor!.toFloat32()).toEqual(data);
    }
  });

  test("gives its weights to another model by name", async () => {
    using model = detector();
    const path = join(folder, "weights.onnx");
    await exportOnnx(model, path, { size: [64, 96], foldBatchNorm: false });
    using file = await loadWeights(path);
    using other = new CompactDetector({ classes: 3, width: 4, headConvs: 1 }).to(testDevice(), { seed: 9 });
    const names = new Set(torchWeights(model).keys());
    const weights = [...file.tensors.values()].filter(({ name }) => names.has(name));
    loadTorchWeights(
      other,
      new Map(weights.map((tensor) => [tensor.name, { shape: tensor.shape, data: tensor.toFloat32() }])),
    );
    expect(torchWeights(other)).toEqual(torchWeights(model));
  });

  test("is that of inference, and the model stays in training mode", async () => {
    using model = detector();
    using expected = await exported(model, { size: [32, 32] });
    model.train();
    using file = await exported(model, { size: [32, 32] });
    expect(file.model).toEqual(expected.model);
    expect([...model.namedLayers()].every(([, layer]) => layer.training)).toBe(true);
  });

  test("names the results of any model: one value, lists, and what is nested", async () => {
    using one = small((x) => relu(x));
    using file = await exported(one, { size: [4, 6] });
    expect(file.model.graph.outputs).toEqual([{ name: "output", dtype: "f32", shape: ["batch", 3, 4, 6] }]);
    class Many extends Model {
      forward(x: Value): unknown {
        return { list: [x, relu(x)], same: x };
      }
    }
    using several = await exported(new Many(), { size: [4, 6], channels: 2, layout: "nhwc" });
    expect(several.model.graph.outputs.map(({ name }) => name)).toEqual(["list.0", "list.1", "same"]);
    expect(several.model.graph.inputs[0]!.shape).toEqual(["batch", 4, 6, 2]);
  });
});

describe("an operation of one's own", () => {
  const cube = (onnx?: Op<object>["onnx"]): Op<object> => ({
    kind: "cube",
    infer: ([x]) => [x!],
    emit() {},
    ...(onnx && { onnx }),
  });

  test("is written by its rule, in the layout that is there", async () => {
    const op = cube((b, { inputs: [x], outputs: [y] }) => {
      const layout = b.layoutOf(x!);
      b.output(y!, b.add("Pow", [b.input(x!, layout), b.floats(3)]), layout);
    });
    using model = small((x) => maxPool2d(applyOp(op, [maxPool2d(x, 2)], {})[0]!, 2));
    using file = await exported(model, { size: [8, 8] });
    expect(file.model.graph.nodes.map(({ name, opType }) => `${opType} ${name}`)).toEqual([
      "MaxPool inner/MaxPool",
      "Pow inner/Pow",
      "MaxPool inner/MaxPool_2",
    ]);
  });

  test("without a rule is an error that names the layer, and what stood at the path stays", async () => {
    using model = small((x) => applyOp(cube(), [x], {})[0]!);
    const path = join(folder, "kept.onnx");
    writeFileSync(path, "old");
    await expect(exportOnnx(model, path, { size: [8, 8] })).rejects.toThrow(
      'inner: the operation cube has no rule for ONNX; an operation of one\'s own brings it as "onnx"',
    );
    expect(readFileSync(path, "utf8")).toBe("old");
  });
});

describe("what cannot be exported is an error that says so", () => {
  const refused = (forward: (x: Value) => Value, options: Partial<OnnxOptions> = {}) =>
    exportOnnx(small(forward), join(folder, "none.onnx"), { size: [8, 8], ...options });

  test("options", async () => {
    await expect(refused(relu, { opset: 16 })).rejects.toThrow("opset: expected one of 17, 18, 19, 20, 21, 22, got 16");
    await expect(refused(relu, { size: [0, 8] })).rejects.toThrow("expected a height, a width and channels, got 0x8");
    await expect(refused(relu, { postprocess: true })).rejects.toThrow("Small has no detect() to export");
  });

  test("what depends on the batch size itself", async () => {
    const ofBatch = (x: Value) => add(x, constant(new Float32Array(3), [1, 1, 1, 3]));
    await expect(refused(ofBatch)).rejects.toThrow("inner: expected two tensors of one shape");
    const pairs: Op<object> = {
      kind: "pairs",
      infer: ([x]) => [{ shape: [x!.shape[0]!, x!.shape[0]!], dtype: "f32" }],
      emit() {},
      onnx: (b, { inputs: [x], outputs: [y] }) => b.output(y!, b.input(x!)),
    };
    const twice = (x: Value) => reshape(applyOp(pairs, [x], {})[0]!, [x.shape[0]!, 1, x.shape[0]!]);
    await expect(refused(twice)).rejects.toThrow("inner: a shape with the batch in two of its dimensions");
    using file = await exported(
      small((x) => reshape(x, [x.shape[0]! * 8, 24])),
      { size: [8, 8] },
    );
    expect([...file.tensors.get("constant")!.toFloat32()]).toEqual([-1, 24]);
    expect(file.model.graph.outputs[0]!.shape).toEqual(["8*batch", 24]);
  });

  test("soft suppression", async () => {
    const hard = { scoreThreshold: 0.1, topK: 10, nmsThreshold: 0.5, maxDetections: 10 };
    const model = new CompactDetector({ classes: 2, width: 4, postprocess: { ...hard, softNms: { kind: "linear" } } });
    const path = join(folder, "none.onnx");
    await expect(exportOnnx(model, path, { size: [32, 32], postprocess: true })).rejects.toThrow(
      "soft suppression cannot be exported, ONNX has no operator for it",
    );
  });

  test("a model without weights yet", async () => {
    class OneConv extends Model {
      readonly conv = new Conv2d(3, 4, 1);
      forward(x: Value): Value {
        return this.conv.forward(x);
      }
    }
    const path = join(folder, "none.onnx");
    await expect(exportOnnx(new OneConv(), path, { size: [8, 8] })).rejects.toThrow(
      "has no memory yet: call model.to(device) first",
    );
  });
});

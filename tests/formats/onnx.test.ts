/** ONNX files: what the onnx package wrote is read to the last bit, what is written comes back, and nothing is believed. */
import { beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { loadWeights, type OnnxModel, readOnnx, type WeightSource, writeOnnx } from "../../lib/formats/index";
import { ProtoWriter } from "../../lib/formats/protobuf";
import { ErrorCode } from "../../lib/native/error";
import { bytesOf, contentOf, type Expected, errorOf, le, temporaryFolder, tryToLoad } from "./weights-sample";

const golden = join(import.meta.dir, "../golden/onnx");
const temporary = temporaryFolder();
let expected: Expected;

beforeAll(async () => {
  expected = ((await Bun.file(join(golden, "expected.json")).json()) as { tensors: Expected }).tensors;
});

/** The bytes of a message. */
function message(build: (out: ProtoWriter) => unknown): Uint8Array<ArrayBuffer> {
  const out = new ProtoWriter();
  build(out);
  return bytesOf(...out.parts.map((part) => part as Uint8Array));
}

/** A model whose graph is made of the fields given. */
function modelOf(build: (graph: ProtoWriter) => unknown): Uint8Array<ArrayBuffer> {
  return message((out) =>
    out
      .int(1, 8)
      .text(2, "test")
      .message(7, (graph) => void build(graph))
      .message(8, (set) => set.text(1, "").int(2, 17)),
  );
}

/** A model with one initializer made of the fields given. */
const tensorOf = (build: (tensor: ProtoWriter) => unknown) =>
  modelOf((graph) => graph.message(5, (out) => void build(out)));

describe("what the onnx package wrote", () => {
  test.each(["raw.onnx", "typed.onnx", "external.onnx"])("%s: all element types, bit by bit", async (name) => {
    for (const map of [true, false]) {
      using file = await loadWeights(join(golden, name), { map });
      expect(file.format).toBe("onnx");
      expect(contentOf(file)).toEqual(expected);
      expect(Object.fromEntries(file.values)).toEqual({ note: "all element types" });
      expect([...file.tensors.get("f16")!.toFloat32()]).toEqual([1, -65504, Math.fround(2 ** -24), 0.5, 0, 2]);
    }
  });

  test("the model's own fields", async () => {
    using file = await readOnnx(join(golden, "raw.onnx"));
    expect(file.model).toMatchObject({ opset: 17, producer: { name: "record.py", version: "" } });
    expect(file.model.graph).toEqual({ name: "tensors", nodes: [], inputs: [], outputs: [] });
  });
});

describe("what is written", () => {
  const model: OnnxModel = {
    irVersion: 8,
    opset: 17,
    producer: { name: "dlfs", version: "1" },
    metadata: { classes: "Katze\ncat", empty: "" },
    graph: {
      name: "g",
      nodes: [
        {
          name: "n",
          opType: "Conv",
          inputs: ["x", "", "w"],
          outputs: ["y"],
          attributes: {
            pads: { ints: [0, -1, 2 ** 40, 300] },
            none: { ints: [] },
            alpha: { float: 0.5 },
            axis: { int: -3 },
            mode: { text: "floor" },
            scales: { floats: [1, 2.5] },
          },
        },
      ],
      inputs: [{ name: "x", dtype: "f32", shape: ["batch", 3, 640, 0] }],
      outputs: [{ name: "y", dtype: "i64", shape: [] }],
    },
  };

  test("comes back", async () => {
    const path = join(temporary.folder, "written.onnx");
    const big = new Float32Array(400_000).map((_, i) => i);
    const tensors: WeightSource[] = [
      { name: "w", dtype: "f32", shape: [400, 1000], data: new Uint8Array(big.buffer) },
      { name: "later", dtype: "i64", shape: [1], data: async () => new Uint8Array(BigInt64Array.of(-2n).buffer) },
      { name: "empty", dtype: "u8", shape: [0], data: new Uint8Array(0) },
    ];
    await writeOnnx(path, model, tensors);
    using file = await readOnnx(path);
    const nodes = model.graph.nodes.map((node) => ({ ...node, domain: "" }));
    expect(file.model).toEqual({ ...model, graph: { ...model.graph, nodes } });
    expect([...file.tensors.values()].map(({ name, dtype, shape }) => ({ name, dtype, shape }))).toEqual(
      tensors.map(({ name, dtype, shape }) => ({ name, dtype, shape })),
    );
    expect(file.tensors.get("w")!.toFloat32()).toEqual(big);
    expect([...file.tensors.get("later")!.toFloat32()]).toEqual([-2]);
  });

  test("appears complete or not at all", async () => {
    const path = temporary.file("kept.onnx", "old");
    const w: WeightSource = { name: "w", dtype: "f32", shape: [2], data: new Uint8Array(8) };
    const write = (...tensors: WeightSource[]) => writeOnnx(path, model, tensors);
    await expect(write(w, { ...w })).rejects.toThrow(`${path}: initializer "w": the name occurs twice`);
    await expect(write({ ...w, shape: [3] })).rejects.toThrow('initializer "w": f32 [3] has 12 bytes, got 8');
    await expect(write({ ...w, shape: [-1] })).rejects.toThrow('initializer "w": impossible shape [-1]');
    expect(readFileSync(path, "utf8")).toBe("old");
    expect(readdirSync(temporary.folder).filter((name) => name.includes("dlfs-tmp"))).toEqual([]);
  });

  test("beyond 2 GiB it is refused before anything is made", async () => {
    const path = join(temporary.folder, "huge.onnx");
    const data = (): never => {
      throw new Error("asked for");
    };
    const huge: WeightSource = { name: "w", dtype: "f32", shape: [2 ** 29], data };
    await expect(writeOnnx(path, model, [huge])).rejects.toMatchObject({
      code: ErrorCode.unsupported,
      message: expect.stringContaining("an ONNX file holds at most 2147483647"),
    });
  });
});

describe("files that are not what they claim", () => {
  const raw = (out: ProtoWriter, dims: number[], type: number, bytes: number) =>
    out.ints(1, dims).int(2, type).text(8, "w").bytes(9, new Uint8Array(bytes));
  const cases: [string, Uint8Array, string][] = [
    ["no model", message((out) => out.int(1, 8).text(2, "x")), "graph: expected one, got 0"],
    ["no version", message((out) => out.message(7, () => {})), "ir_version: missing"],
    ["no operator set", message((out) => out.int(1, 8).message(7, () => {})), "opset_import: no version of ai.onnx"],
    ["a message beyond the end", bytesOf(8, 8, 0x3a, 100, 1), "damaged: 100 bytes are claimed, 1 are left"],
    ["a length beyond 2^53", bytesOf(8, 8, 0x3a, new Uint8Array(9).fill(255), 1), "bytes are claimed"],
    ["an endless number", bytesOf(8, new Uint8Array(20).fill(255)), "a number has more than 10 bytes"],
    ["a group", bytesOf(8, 8, 0x3b), "wire type 3 is not supported"],
    ["field 0", bytesOf(8, 8, 0), "there is no field of key 0x0"],
    ["text that is none", modelOf((graph) => graph.bytes(2, bytesOf(0xff))), "graph: name: it is not UTF-8"],
    [
      "a number for a message",
      modelOf((graph) => graph.int(1, 5)),
      "graph: node: 0: expected a message, got wire type 0",
    ],
    ["a node without a type", modelOf((graph) => graph.message(1, (node) => node.text(3, "a"))), "node: 0: op_type"],
    [
      "an attribute without a value",
      modelOf((graph) => graph.message(1, (node) => node.text(4, "Conv").message(5, (out) => out.text(1, "pads")))),
      'attribute: "pads": it has no value',
    ],
    [
      "less data than its shape",
      tensorOf((out) => raw(out, [2, 3], 1, 8)),
      '"w": raw_data: f32 (2, 3) has 24 bytes, got 8',
    ],
    ["a shape beyond 2^53", tensorOf((out) => raw(out, [2 ** 30, 2 ** 30], 1, 4)), '"w": dims: impossible sizes'],
    ["a negative size", tensorOf((out) => raw(out, [-1], 1, 4)), '"w": dims: impossible sizes (-1)'],
    ["too many dimensions", tensorOf((out) => raw(out, new Array(65).fill(1), 1, 4)), "more than 64 dimensions"],
    ["no element type", tensorOf((out) => raw(out, [1], 0, 4)), '"w": there is no element type 0'],
    ["an unknown element type", tensorOf((out) => raw(out, [1], 99, 4)), '"w": there is no element type 99'],
    [
      "no data",
      tensorOf((out) =>
        out
          .ints(1, [2 ** 40])
          .int(2, 1)
          .text(8, "w"),
      ),
      '"w": f32 (1099511627776) has 1099511627776',
    ],
    [
      "too few numbers",
      tensorOf((out) => out.ints(1, [3]).int(2, 7).text(8, "w").ints(7, [1, 300])),
      '"w": int64_data: i64 (3) has 3 elements, got 2',
    ],
    [
      "a number that is cut off",
      tensorOf((out) => out.ints(1, [1]).int(2, 7).text(8, "w").bytes(7, bytesOf(0x80))),
      '"w": a number is cut off',
    ],
    [
      "bytes that are no floats",
      tensorOf((out) =>
        out
          .ints(1, [1])
          .int(2, 1)
          .text(8, "w")
          .bytes(4, bytesOf(1, 2, 3)),
      ),
      '"w": 3 bytes are no numbers of 4 bytes',
    ],
    [
      "another type's field",
      tensorOf((out) => out.ints(1, [1]).int(2, 1).text(8, "w").ints(7, [1])),
      '"w": int64_data: it holds i64, the tensor is f32',
    ],
    ["data twice", tensorOf((out) => raw(out, [1], 1, 4).floats(4, [1])), '"w": its elements are there twice'],
    ["no name", tensorOf((out) => out.ints(1, [0]).int(2, 1)), "initializer: 0: it has no name"],
    [
      "a name twice",
      modelOf((graph) => graph.message(5, (out) => raw(out, [1], 1, 4)).message(5, (out) => raw(out, [1], 1, 4))),
      '"w": the name occurs twice',
    ],
  ];
  test.each(cases)("%s", async (name, bytes, text) => {
    const path = temporary.file(`${name.replaceAll(" ", "-")}.onnx`, bytes);
    const error = await errorOf(path, readOnnx);
    expect(error.message).toContain(text);
    expect(error.code).toBe(ErrorCode.io);
  });

  test.each<[string, Uint8Array, string]>([
    ["strings", tensorOf((out) => raw(out, [1], 8, 4)), 'initializer "w": element type STRING is not supported'],
    ["sparse", modelOf((graph) => graph.message(15, () => {})), "sparse initializers are not supported"],
    ["segments", tensorOf((out) => out.message(3, () => {})), "a tensor in segments is not supported"],
  ])("%s are said to be unsupported", async (name, bytes, text) => {
    const error = await errorOf(temporary.file(`${name}.onnx`, bytes), readOnnx);
    expect(error).toMatchObject({ code: ErrorCode.unsupported, message: expect.stringContaining(text) });
  });

  test("a file cut anywhere, or with any byte changed, is read or refused by a named error", async () => {
    for (const name of ["typed.onnx", "raw.onnx"]) {
      const whole = readFileSync(join(golden, name));
      for (let length = 0; length < whole.length; ++length) {
        const path = temporary.file("cut.onnx", whole.subarray(0, length));
        const content = await tryToLoad(path, () => readOnnx(path, { map: false }));
        // A message may end behind any of its fields: only the metadata and the operator set follow the graph.
        if (content) expect([whole.length - length < 50, content]).toEqual([true, expected]);
      }
      for (let i = 0; i < whole.length; ++i) {
        const changed = Uint8Array.from(whole);
        changed[i] = changed[i]! ^ (1 << (i % 8));
        const path = temporary.file("changed.onnx", changed);
        await tryToLoad(path, () => readOnnx(path, { map: false }));
      }
    }
  });
});

describe("tensors in files beside the model", () => {
  const external = (location: string, entries: Record<string, string> = {}) =>
    tensorOf((out) => {
      out.ints(1, [2]).int(2, 1).text(8, "w").int(14, 1);
      for (const [key, value] of Object.entries({ location, ...entries })) {
        out.message(13, (entry) => entry.text(1, key).text(2, value));
      }
    });

  beforeAll(() => {
    mkdirSync(join(temporary.folder, "models/data"), { recursive: true });
    temporary.file("secret.bin", new Uint8Array(64));
    temporary.file("models/data/w.bin", new Uint8Array(Float32Array.of(1, 2, 3).buffer));
    copyFileSync(join(golden, "external.bin"), join(temporary.folder, "models/external.bin"));
    symlinkSync("../secret.bin", join(temporary.folder, "models/link.bin"));
  });

  test("are read from folders below", async () => {
    const path = temporary.file("models/good.onnx", external("data/w.bin", { offset: "4", length: "8" }));
    using file = await readOnnx(path);
    expect([...file.tensors.get("w")!.toFloat32()]).toEqual([2, 3]);
  });

  test.each<[string, Uint8Array, string]>([
    ["above", external("../secret.bin"), 'location "../secret.bin": expected a path within the file\'s folder'],
    ["hidden above", external("data/../../secret.bin"), "expected a path within the file's folder"],
    ["absolute", external("/etc/passwd"), "expected a path within the file's folder"],
    ["with a zero byte", external("data\0/w.bin"), "expected a path within the file's folder"],
    ["behind a link", external("link.bin"), 'location "link.bin": it leads out of the file\'s folder'],
    ["without a location", external("", {}), 'location "": expected a path'],
    ["beyond the end", external("data/w.bin", { offset: "8" }), 'go beyond the end of "data/w.bin", which has 12'],
    ["of another length", external("data/w.bin", { length: "12" }), "length: f32 (2) has 8 bytes, got 12"],
    ["at no number", external("data/w.bin", { offset: "-4" }), 'offset: expected a whole number, got "-4"'],
  ])("%s are refused", async (name, bytes, text) => {
    const path = temporary.file(`models/${name.replaceAll(" ", "-")}.onnx`, bytes);
    expect((await errorOf(path, readOnnx)).message).toContain(text);
  });
});

test("a safetensors file whose header length looks like the start of a model is still one", async () => {
  const header = `{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`.padEnd(0x120108);
  const path = temporary.file("alike.safetensors", bytesOf(le(0x120108, 8), header, 7));
  using file = await loadWeights(path);
  expect([file.format, ...file.tensors.get("w")!.bytes()]).toEqual(["safetensors", 7]);
});

test("entries belong to checkpoints of PyTorch", async () => {
  const path = join(golden, "raw.onnx");
  await expect(loadWeights(path, { entry: "model" })).rejects.toThrow("an onnx file has no dicts to choose from");
});

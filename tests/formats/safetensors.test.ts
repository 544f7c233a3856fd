import { describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { WeightDType, WeightSource } from "../../lib/formats/index";
import { loadWeights, readSafetensors, toFloat32, writeSafetensors } from "../../lib/formats/index";
import { DlfsError, ErrorCode } from "../../lib/native/error";
import { bytesOf, contentOf, errorOf, expectedOf, golden, le, temporaryFolder, tryToLoad } from "./weights-sample";

const temporary = temporaryFolder();

/** A file with this header, as it is or as JSON, and this many bytes of data. */
function file(header: unknown, dataBytes = 0): Uint8Array {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  return bytesOf(le(text.length, 8), text, new Uint8Array(dataBytes));
}

async function sources(): Promise<WeightSource[]> {
  return Object.entries(await expectedOf("all.safetensors")).map(([name, { dtype, shape, data }]) => ({
    name,
    dtype: dtype as WeightDType,
    shape,
    data: Uint8Array.fromBase64(data),
  }));
}

describe("safetensors", () => {
  test.each([true, false])("reads what the Python library wrote (mapped: %p)", async (map) => {
    using weights = await readSafetensors(join(golden, "all.safetensors"), { map });
    expect(contentOf(weights)).toEqual(await expectedOf("all.safetensors"));
    expect(Object.fromEntries(weights.values)).toEqual({ format: "pt" });
  });

  test("writes the bytes that the Python library writes", async () => {
    const path = join(temporary.folder, "written.safetensors");
    await writeSafetensors(path, (await sources()).reverse(), { format: "pt" });
    const written = await Bun.file(path).bytes();
    expect(written).toEqual(await Bun.file(join(golden, "all.safetensors")).bytes());
  });

  test("writes and reads every dtype, names of any kind, nothing at all, and data made when needed", async () => {
    const dtypes: Record<WeightDType, number> = {
      ...{ f64: 8, f32: 4, f16: 2, bf16: 2, f8e5m2: 1, f8e4m3: 1 },
      ...{ i64: 8, i32: 4, i16: 2, i8: 1, u64: 8, u32: 4, u16: 2, u8: 1, bool: 1 },
    };
    const tensors = Object.entries(dtypes).map(([dtype, size], i) => ({
      name: ["", "7", "__proto__", 'a"b\\c', "ü\n", "toString"][i] ?? dtype,
      dtype: dtype as WeightDType,
      shape: [3, 1],
      data: async () => new Uint8Array(3 * size).fill(i + 1),
    }));
    const path = join(temporary.folder, "dtypes.safetensors");
    await writeSafetensors(path, tensors);
    using weights = await readSafetensors(path);
    expect(weights.tensors.size).toBe(tensors.length);
    for (const { name, dtype, shape, data } of tensors) {
      const tensor = weights.tensors.get(name)!;
      expect([tensor.dtype, tensor.shape, tensor.bytes()]).toEqual([dtype, shape, await data()]);
    }
    await writeSafetensors(path, []);
    using empty = await readSafetensors(path);
    expect(empty.tensors.size).toBe(0);
  });

  test("views of the mapping leave the file alone, and nothing is read after closing", async () => {
    const path = temporary.file("mapped.safetensors", await Bun.file(join(golden, "all.safetensors")).bytes());
    const before = await Bun.file(path).bytes();
    for (const map of [true, false]) {
      const weights = await readSafetensors(path, { map });
      weights.tensors.get("all.f32")!.bytes().fill(255);
      weights.tensors.get("all.f32")!.toFloat32().fill(1);
      expect(await Bun.file(path).bytes()).toEqual(before);
      weights.close();
      expect(() => weights.tensors.get("all.f32")!.bytes()).toThrow(`${path}: tensor "all.f32": the file is closed`);
    }
  });

  test("a write that fails leaves the old file and nothing else", async () => {
    const path = temporary.file("kept.safetensors", "old");
    const write = (...tensors: WeightSource[]) => writeSafetensors(path, tensors);
    const good = { name: "a", dtype: "f32", shape: [2], data: new Uint8Array(8) } as const;
    await expect(write(good, { ...good, name: "b", shape: [3] })).rejects.toThrow(
      `${path}: tensor "b": f32 [3] has 12 bytes, got 8`,
    );
    await expect(write(good, good)).rejects.toThrow('tensor "a": the name occurs twice');
    await expect(write({ ...good, name: "__metadata__" })).rejects.toThrow("this name is reserved");
    await expect(write({ ...good, shape: [-2] })).rejects.toThrow('tensor "a": impossible shape [-2]');
    await expect(write({ ...good, shape: [2 ** 40, 2 ** 40] })).rejects.toThrow("impossible shape");
    await expect(write({ ...good, dtype: "f4" as WeightDType })).rejects.toThrow('tensor "a": unknown dtype "f4"');
    await expect(
      write({
        ...good,
        data: () => {
          throw new Error("no data");
        },
      }),
    ).rejects.toThrow("no data");
    expect(await Bun.file(path).text()).toBe("old");
    expect(readdirSync(temporary.folder).filter((name) => name.includes("dlfs-tmp"))).toEqual([]);
  });
});

test("every dtype becomes float32, from any alignment", () => {
  const cases: [WeightDType, ArrayBufferView, number[]][] = [
    ["f64", Float64Array.of(0.1, -2, Number.POSITIVE_INFINITY), [Math.fround(0.1), -2, Number.POSITIVE_INFINITY]],
    ["f32", Float32Array.of(1.5, Number.NaN, -0), [1.5, Number.NaN, -0]],
    ["f16", Uint16Array.of(0x3c00, 0x0001, 0xfbff, 0x7c00), [1, 2 ** -24, -65504, Number.POSITIVE_INFINITY]],
    ["bf16", Uint16Array.of(0x3f80, 0xc049, 0x7fc0, 0xff80), [1, -3.140625, Number.NaN, Number.NEGATIVE_INFINITY]],
    ["f8e5m2", Uint8Array.of(0x3c, 0x01, 0xfb, 0x7c), [1, 2 ** -16, -57344, Number.POSITIVE_INFINITY]],
    ["f8e4m3", Uint8Array.of(0x38, 0x01, 0xfe, 0x7f, 0x08), [1, 2 ** -9, -448, Number.NaN, 2 ** -6]],
    ["i64", BigInt64Array.of(-5n, 2n ** 40n), [-5, 2 ** 40]],
    ["u64", BigUint64Array.of(5n, 2n ** 63n), [5, 2 ** 63]],
    ["i32", Int32Array.of(-7, 2 ** 30), [-7, 2 ** 30]],
    ["u32", Uint32Array.of(7, 2 ** 31), [7, 2 ** 31]],
    ["i16", Int16Array.of(-300, 300), [-300, 300]],
    ["u16", Uint16Array.of(65535, 1), [65535, 1]],
    ["i8", Int8Array.of(-128, 127), [-128, 127]],
    ["u8", Uint8Array.of(255, 1), [255, 1]],
    ["bool", Uint8Array.of(0, 1, 2), [0, 1, 1]],
  ];
  for (const [dtype, view, expected] of cases) {
    const bytes = new Uint8Array(view.buffer as ArrayBuffer);
    const shifted = new Uint8Array(bytes.length + 1);
    shifted.set(bytes, 1);
    for (const input of [bytes, shifted.subarray(1)]) {
      const before = input.slice();
      const out = toFloat32(input, dtype);
      expect([dtype, ...out]).toEqual([dtype, ...expected]);
      out.fill(9);
      expect(input).toEqual(before);
    }
  }
  expect(() => toFloat32(new Uint8Array(3), "f16")).toThrow("f16 has 2 bytes per element, got 3 bytes");
});

describe("broken safetensors", () => {
  const f32 = (begin: unknown, end: unknown, shape: unknown = [1]) => ({
    dtype: "F32",
    shape,
    data_offsets: [begin, end],
  });

  test.each<[string, Uint8Array, string]>([
    ["nothing", bytesOf(), "header length: it takes 8 bytes, the file has 0"],
    ["half a length", new Uint8Array(7), "header length: it takes 8 bytes, the file has 7"],
    ["no header", bytesOf(le(0, 8)), 'header: it is JSON that starts with "{", here it starts with nothing'],
    ["length beyond the file", bytesOf(le(9, 8), "{}"), "header length: 9 bytes go beyond the end of the file"],
    ["length over the limit", bytesOf(le(100_000_001, 8), "{}"), "100000001 bytes, at most 100000000 are allowed"],
    ["length of 64 bits", bytesOf(le(2n ** 64n - 1n, 8), "{}"), "18446744073709551615 bytes, at most 100000000"],
    ["not an object", file("[1]"), 'header: it is JSON that starts with "{", here it starts with byte 0x5b'],
    ["not JSON", file('{"a": '), "header: "],
    ["deep nesting", file(`{"a":${"[".repeat(500_000)}`), "header: "],
    ["not UTF-8", bytesOf(le(5, 8), '{"', 0xff, '"}'), "header: "],
    ["name twice", file('{"a":{"dtype":"U8"},"a":{}}'), 'header: the key "a" occurs twice'],
    ["name twice, escaped", file('{"a\\"\\\\":1,"\\u0061\\"\\\\":2}'), 'the key "a\\"\\\\" occurs twice'],
    ["field twice", file('{"a":{"shape":[],"shape":[1]}}'), 'the key "shape" occurs twice'],
    ["metadata key twice", file('{"__metadata__":{"k":"1","k":"2"}}'), 'the key "k" occurs twice'],
    ["metadata of no strings", file({ __metadata__: { k: 1 } }), '__metadata__: "k": expected a string, got 1'],
    ["metadata of no object", file({ __metadata__: ["k"] }), '__metadata__: expected an object of strings, got ["k"]'],
    ["tensor of no object", file({ w: 3 }), 'tensor "w": expected an object, got 3'],
    ["unknown field", file({ w: { ...f32(0, 4), x: 1 } }, 4), 'tensor "w": unknown field "x"'],
    ["no dtype", file({ w: {} }), 'tensor "w": dtype: expected a string, got nothing'],
    ["no shape", file({ w: { dtype: "U8" } }), 'tensor "w": shape: expected a list of whole numbers from 0, got noth'],
    ["negative size", file({ w: f32(0, 4, [-1]) }, 4), 'tensor "w": shape: expected a list of whole numbers from 0'],
    ["fractional size", file({ w: f32(0, 4, [1.5]) }, 4), 'tensor "w": shape: expected a list of whole numbers'],
    ["one offset", file({ w: { ...f32(0, 4), data_offsets: [0] } }, 4), 'tensor "w": data_offsets: expected two'],
    ["negative offset", file({ w: f32(-4, 0) }, 4), 'tensor "w": data_offsets: expected two whole numbers from 0'],
    ["text offset", file({ w: f32("0", 4) }, 4), 'tensor "w": data_offsets: expected two whole numbers from 0'],
    ["offset beyond 2^53", file('{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1e300]}}'), "expected two whole"],
    ["reversed offsets", file({ w: f32(4, 0) }, 4), 'tensor "w": data_offsets: it begins at 4 and ends before, at 0'],
    ["size mismatch", file({ w: f32(0, 8) }, 8), 'tensor "w": F32 [1] has 4 bytes, data_offsets give it 8'],
    [
      "overflowing shape",
      file({ w: f32(0, 0, [2 ** 32, 2 ** 32]) }),
      'tensor "w": F32 [4294967296,4294967296] has more than 2^53 bytes',
    ],
    ["huge claim", file({ w: f32(0, 4e12, [1e12]) }, 4), 'tensor "w": its bytes end at 4000000000000, beyond the end'],
    ["overlap", file({ v: f32(0, 4), w: f32(2, 6) }, 6), 'tensor "w": its bytes from 2 overlap those of "v"'],
    ["same place", file({ v: f32(0, 4), w: f32(0, 4) }, 4), 'tensor "w": its bytes from 0 overlap those of "v"'],
    ["gap", file({ v: f32(0, 4), w: f32(6, 10) }, 10), 'tensor "w": 2 bytes before it belong to no tensor'],
    ["gap at the start", file({ w: f32(1, 5) }, 5), 'tensor "w": 1 bytes before it belong to no tensor'],
    ["bytes at the end", file({ w: f32(0, 4) }, 7), "data: 3 bytes at the end belong to no tensor"],
    ["long name", file({ ["n".repeat(10_000)]: 3 }), `tensor "${"n".repeat(200)}...": expected an object`],
  ])("%s", async (name, bytes, message) => {
    const path = temporary.file(`${name}.safetensors`, bytes);
    for (const map of [true, false]) {
      const error = await errorOf(path, (path) => readSafetensors(path, { map }));
      expect(error.message).toStartWith(`${path}: damaged: `);
      expect(error.message).toContain(message);
      expect(error.message.length).toBeLessThan(1000);
      expect(error.code).toBe(ErrorCode.io);
    }
  });

  test.each(["F4", "C64", "F8_E8M0", "toString", ""])("dtype %p is told", async (dtype) => {
    const path = temporary.file("dtype.safetensors", file({ w: { ...f32(0, 4), dtype } }, 4));
    const error = await errorOf(path, readSafetensors);
    expect(error.code).toBe(ErrorCode.unsupported);
    expect(error.message).toContain(`tensor "w": dtype "${dtype}" is not supported, these are: BOOL, U8`);
  });

  test("sizes of 0 are no damage", async () => {
    const path = temporary.file("empty.safetensors", file({ v: f32(0, 0, [0, 2 ** 50, 2 ** 50]), w: f32(0, 4) }, 4));
    using weights = await readSafetensors(path);
    expect(weights.tensors.get("v")!.toFloat32()).toEqual(new Float32Array(0));
  });

  test("truncated anywhere", async () => {
    const intact = await Bun.file(join(golden, "all.safetensors")).bytes();
    for (let length = 0; length < intact.length; length++) {
      const path = temporary.file("truncated.safetensors", intact.subarray(0, length));
      const error = await errorOf(path, (path) => readSafetensors(path, { map: length % 2 === 0 }));
      expect([length, error.code]).toEqual([length, ErrorCode.io]);
    }
  });

  test("any byte changed: an error, or tensors of the sizes that the header says", async () => {
    const intact = await Bun.file(join(golden, "all.safetensors")).bytes();
    let told = 0;
    for (let i = 0; i < intact.length; i++) {
      const bytes = intact.slice();
      bytes[i] = bytes[i]! ^ (1 << (i % 8));
      const path = temporary.file("changed.safetensors", bytes);
      const content = await tryToLoad(path, () => readSafetensors(path, { map: i % 2 === 0 }));
      if (!content) told++;
    }
    expect(told).toBeGreaterThan(intact.length / 3);
  });
});

describe("loadWeights", () => {
  test("tells formats by content", async () => {
    const bytes = await Bun.file(join(golden, "all.safetensors")).bytes();
    using weights = await loadWeights(temporary.file("odd.pth", bytes));
    expect(weights.format).toBe("safetensors");
    using torch = await loadWeights(join(golden, "all.pth"));
    expect(torch.format).toBe("torch");
    await expect(loadWeights(weights.path, { entry: "model" })).rejects.toThrow('entry "model": a safetensors file');
  });

  test.each([
    ["", "it is empty"],
    ["DLFSCKPT...............", "it is a checkpoint of dlfs"],
    ["version https://git-lfs", "it is a Git LFS pointer"],
    ["<!DOCTYPE html><html>", "it starts with bytes 3c21444f43545950452068746d6c3e3c"],
  ])("%p is neither", async (text, message) => {
    const error = await errorOf(temporary.file("other", text), loadWeights);
    expect(error.code).toBe(ErrorCode.unsupported);
    expect(error.message).toContain(`neither safetensors nor a file of torch.save, NumPy or ONNX: ${message}`);
  });

  test("a folder, and no file", async () => {
    expect((await errorOf(temporary.folder, loadWeights)).message).toContain(
      "a file of weights is a file, this is none",
    );
    const error = await errorOf(join(temporary.folder, "missing"), loadWeights);
    expect(error).toBeInstanceOf(DlfsError);
    expect(error.message).toContain("cannot open the file of weights: no such file or folder (ENOENT)");
  });
});

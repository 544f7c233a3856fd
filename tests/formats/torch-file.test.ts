import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { loadWeights, readTorchFile } from "../../lib/formats/index";
import { ErrorCode } from "../../lib/native/error";
import {
  bytesOf,
  contentOf,
  errorOf,
  expectedOf,
  golden,
  le,
  pickle,
  temporaryFolder,
  torchArchive,
  tryToLoad,
  zip,
} from "./weights-sample";

const temporary = temporaryFolder();
const { text, int, global, tuple, dict, call, storage, tensor, program } = pickle;
const none = bytesOf("N");
const eightBytes = Uint8Array.of(0, 0, 128, 63, 0, 0, 0, 64);
const pair = tensor(storage("FloatStorage", "0", 2), 0, [2n], [1n]);

describe("files of torch.save", () => {
  test.each([
    ["all.pth", true],
    ["all.pth", false],
    ["strided.pth", true],
    ["strided.pth", false],
    ["protocol4.pth", true],
  ])("reads %s as PyTorch does (mapped: %p)", async (name, map) => {
    using weights = await readTorchFile(join(golden, name), { map });
    expect(contentOf(weights)).toEqual(await expectedOf(name));
    expect(weights.entry).toBe("");
    expect(weights.entries).toEqual([""]);
  });

  test("contiguous tensors are views of the mapping, shared storages are shared", async () => {
    using weights = await readTorchFile(join(golden, "strided.pth"));
    const whole = weights.tensors.get("whole")!;
    expect(whole.bytes().buffer).toBe(weights.tensors.get("parameter")!.bytes().buffer);
    expect(weights.tensors.get("transposed")!.bytes().buffer).not.toBe(whole.bytes().buffer);
    expect([...weights.tensors.get("transposed")!.toFloat32().subarray(0, 7)]).toEqual([0, 4, 8, 12, 16, 20, 1]);
  });

  test("a checkpoint can be looked into", async () => {
    const path = join(golden, "checkpoint.pth");
    using weights = await readTorchFile(path);
    expect(weights.entry).toBe("model");
    expect(weights.entries).toEqual(["model", ...[0, 1, 2, 3].map((i) => `optimizer.state.${i}`)]);
    expect(contentOf(weights)).toEqual(await expectedOf("checkpoint.pth"));
    expect(weights.values.get("epoch")).toBe(3);
    expect(weights.values.get("name")).toBe("tiny");
    expect(weights.values.get("best")).toBeNull();
    expect(weights.values.get("optimizer.param_groups.0.lr")).toBe(0.125);

    using optimizer = await readTorchFile(path, { entry: "optimizer" });
    expect(contentOf(optimizer)).toEqual(await expectedOf("checkpoint.pth optimizer"));
    using all = await loadWeights(path, { entry: "" });
    expect(all.tensors.size).toBe(11);
    expect(all.tensors.has("model.conv.weight")).toBe(true);
    await expect(readTorchFile(path, { entry: "ema" })).rejects.toThrow(
      `${path}: entry "ema": there is no such dict; tensors are in: "model", "optimizer.state.0"`,
    );
  });

  test("which dict is meant follows from the file, or has to be said", async () => {
    const open = async (value: Uint8Array) => {
      using weights = await readTorchFile(temporary.file("entry.pth", torchArchive(value, { 0: eightBytes })));
      return [weights.entry, ...weights.tensors.keys()];
    };
    const weights = dict(["w", pair]);
    expect(await open(dict(["net", dict(["inner", weights])], ["epoch", int(1)]))).toEqual(["net.inner", "w"]);
    expect(await open(dict(["ema", weights], ["state_dict", weights]))).toEqual(["state_dict", "w"]);
    expect(await open(dict(["ema", weights], ["w", pair]))).toEqual(["", "ema.w", "w"]);
    expect(await open(pair)).toEqual(["", ""]);
    expect(await open(dict())).toEqual([""]);
    const path = temporary.file("unclear.pth", torchArchive(dict(["a", weights], ["b", weights]), { 0: eightBytes }));
    const error = await errorOf(path, readTorchFile);
    expect(error.message).toContain('entry: which dict holds the weights must be said, one of: "a", "b"');
    expect(error.code).toBe(ErrorCode.argument);
  });

  test("zip64, the byte order's entry, and the types of newer versions", async () => {
    const v3 = call(
      "torch._utils",
      "_rebuild_tensor_v3",
      bytesOf(tuple(text("storage"), global("torch.storage", "UntypedStorage"), text("0"), text("cpu"), int(8)), "Q"),
      int(1),
      tuple(int(2), int(2)),
      tuple(int(1), int(3)),
      bytesOf(0x89),
      call("collections", "OrderedDict"),
      global("torch", "float8_e4m3fn"),
    );
    const value = dict(["w", pair], ["f8", v3], ["size", call("torch", "Size", tuple(int(4), int(5)))]);
    const parts = [
      { name: "a/", data: bytesOf() },
      { name: "a/data.pkl", data: program(value) },
      { name: "a/byteorder", data: bytesOf("little") },
      { name: "a/data/0", data: eightBytes },
    ];
    for (const zip64 of [false, true]) {
      using weights = await readTorchFile(temporary.file("new.pth", zip(parts, zip64)));
      expect([...weights.tensors.get("w")!.toFloat32()]).toEqual([1, 2]);
      const f8 = weights.tensors.get("f8")!;
      expect([f8.dtype, f8.shape, [...f8.bytes()]]).toEqual(["f8e4m3", [2, 2], [0, 0, 128, 0]]);
      expect(weights.values.get("size.1")).toBe(5);
    }
    parts[2]!.data = bytesOf("big");
    const error = await errorOf(temporary.file("big.pth", zip(parts)), readTorchFile);
    expect(error.message).toContain('byteorder: expected "little", got "big"');
  });

  test("numbers of every kind", async () => {
    const value = dict(
      ["long", bytesOf(0x8a, 9, le(0n, 8), 1)],
      ["negative", bytesOf(0x8a, 2, 0, 255)],
      ["zero", bytesOf(0x8a, 0)],
      ["float", bytesOf("G", 0xbf, 0xf8, 0, 0, 0, 0, 0, 0)],
      ["short", bytesOf("M", 1, 1)],
      ["signed", int(-2)],
      ["true", bytesOf(0x88)],
    );
    using weights = await readTorchFile(temporary.file("numbers.pth", torchArchive(value)));
    expect(Object.fromEntries(weights.values)).toEqual({
      ...{ long: 2n ** 64n, negative: -256, zero: 0, float: -1.5, short: 257, signed: -2, true: true },
    });
  });
});

describe("what is not read is named", () => {
  test("a global that would run code", async () => {
    const error = await errorOf(join(golden, "evil.pth"), readTorchFile);
    expect(error.code).toBe(ErrorCode.unsupported);
    expect(error.message).toContain('at "evil": it needs the Python global "posix.mkdir", which is not allowed here');
    expect(existsSync(join(golden, "dlfs-ran-code"))).toBe(false);
    expect(existsSync("dlfs-ran-code")).toBe(false);
  });

  test.each([
    ["module.pth", '"torch.nn.modules.linear.Linear", which is not allowed'],
    ["complex.pth", 'at "weight": it needs the Python global "torch.ComplexFloatStorage", which is not allowed'],
    [
      "legacy.pth",
      "PyTorch's format before version 1.6; save it again with PyTorch 1.6 or later: torch.save(torch.load(\"",
    ],
    ["script.pt", 'a TorchScript program; save its weights alone: torch.save(torch.jit.load("'],
  ])("%s", async (name, message) => {
    const error = await errorOf(join(golden, name), loadWeights);
    expect(error.code).toBe(ErrorCode.unsupported);
    expect(error.message).toContain(message);
  });

  test.each<[string, Uint8Array, string]>([
    ["builtins", global("builtins", "eval"), '"builtins.eval"'],
    ["constructor", global("constructor", "constructor"), '"constructor.constructor"'],
    ["stack global", bytesOf(text("os"), text("system"), 0x93), '"os.system"'],
    ["protocol 0", bytesOf("S'x'\n"), "pickle operation 0x53 is not allowed"],
    ["new object", bytesOf(global("collections", "OrderedDict"), ")", 0x81), "pickle operation 0x81 is not allowed"],
    ["extension", bytesOf(0x82, 1), "pickle operation 0x82 is not allowed"],
    ["protocol", bytesOf(0x80, 6), "pickle protocol 6, 2 to 5 are read"],
    ["storage called", bytesOf(call("torch", "FloatStorage")), "a call of StorageType"],
    ["text called", bytesOf(text("os.system"), ")R"), "a call of str"],
    ["attributes", bytesOf("]", dict(["a", none]), "b"), "attributes set on list are not allowed"],
    ["tuple as key", bytesOf("}", tuple(none), none, "s"), "tuple as a dict's key"],
    ["huge integer", bytesOf(0x8b, le(65, 4), new Uint8Array(65)), "an integer of 65 bytes"],
    ["too many objects", new Uint8Array(1_000_001).fill(0x5d), "more than 1000000 objects"],
    ["empty stack", bytesOf("0"), "it takes a value from an empty stack"],
    ["pop below a mark", bytesOf("N(", 0x85), "it takes a value from an empty stack"],
    ["no mark", bytesOf("Nt"), "it closes a mark that was not set"],
    ["left over", bytesOf("NN"), "it ends with values left over"],
    ["mark left over", bytesOf("N("), "it ends with values left over"],
    ["unknown memo", bytesOf("h", 7), "it recalls value 7, which was not stored"],
    ["append to a dict", bytesOf("}Na"), "an append to dict"],
    ["item on a list", bytesOf("]NNs"), "an item set on list"],
    ["key without value", bytesOf("}(NNNu"), "a dict's key without a value"],
    ["bad text", bytesOf("X", le(1, 4), 255), "a string that is not UTF-8"],
    ["text beyond the end", bytesOf("X", le(2 ** 32 - 1, 4)), "4294967295 bytes are expected, 1 are left"],
    ["bytes beyond the end", bytesOf(0x8e, le(2n ** 63n, 8)), "bytes are expected, 1 are left: it is truncated"],
    ["line without end", bytesOf("cos"), "a line without an end"],
    ["bytes after the end", bytesOf("N.N"), "2 bytes follow its end"],
    ["global's name", bytesOf("NN", 0x93), "a global's name is no string"],
    ["persistent id", bytesOf("NQ"), "persistent id: expected a storage with type and key"],
    ["persistent text", bytesOf(tuple(text("storage"), text("t"), text("0")), "Q"), "expected a storage with type"],
    ["missing storage", storage("FloatStorage", "7", 2), 'storage "7" is not in the archive'],
    ["storage's path", storage("FloatStorage", "../data.pkl", 2), 'storage "../data.pkl" is not in the archive'],
    ["storage too small", storage("FloatStorage", "0", 3), 'storage "0" should have 12 bytes, the archive has 8'],
    ["storage too large", storage("FloatStorage", "0", 1), 'storage "0" should have 4 bytes, the archive has 8'],
    ["storage negative", storage("FloatStorage", "0", -2), 'storage "0" should have -8 bytes, the archive has 8'],
  ])("pickle: %s", async (name, value, message) => {
    const path = temporary.file(`${name}.pth`, torchArchive(value, { 0: eightBytes }));
    const error = await errorOf(path, readTorchFile);
    expect(error.message).toContain('"a/data.pkl", byte ');
    expect(error.message).toContain(message);
  });

  test.each<[string, number, bigint[], bigint[], string]>([
    ["too large", 0, [3n], [1n], "sizes (3), strides (1) and offset 0 reach element 2, storage 0 has 2"],
    ["too far", 1, [2n], [1n], "sizes (2), strides (1) and offset 1 reach element 2, storage 0 has 2"],
    ["offset", -1, [2n], [1n], "impossible storage offset -1"],
    ["negative size", 0, [-2n], [1n], "impossible sizes (-2)"],
    ["negative stride", 1, [2n], [-1n], "impossible strides (-1)"],
    ["ranks", 0, [2n], [1n, 1n], "sizes (2) do not go with strides (1,1)"],
    ["overflow", 0, [2n ** 52n, 2n ** 52n], [0n, 0n], "impossible sizes"],
    ["huge stride", 0, [2n], [2n ** 52n], "reach element 4503599627370496"],
    ["beyond 2^53", 0, [2n ** 60n], [1n], "expected a whole number"],
    ["expanded", 0, [2n ** 40n], [0n], "sizes (1099511627776) repeat the 2 elements of storage 0 too often"],
  ])("tensor: %s", async (_, offset, shape, strides, message) => {
    const value = dict(["conv.weight", tensor(storage("FloatStorage", "0", 2), offset, shape, strides)]);
    const error = await errorOf(temporary.file("t.pth", torchArchive(value, { 0: eightBytes })), readTorchFile);
    expect(error.message).toContain('"a/data.pkl", byte ');
    expect(error.message).toContain(', at "conv.weight": torch._utils._rebuild_tensor_v2: ');
    expect(error.message).toContain(message);
  });

  test("a reversed and an empty tensor at the storage's end are fine", async () => {
    const last = tensor(storage("FloatStorage", "0", 2), 1, [1n, 1n], [99n, 7n]);
    const empty = tensor(storage("FloatStorage", "0", 2), 50, [0n, 3n], [3n, 1n]);
    const value = dict(["last", last], ["empty", empty]);
    using weights = await readTorchFile(temporary.file("edge.pth", torchArchive(value, { 0: eightBytes })));
    expect([...weights.tensors.get("last")!.toFloat32()]).toEqual([2]);
    expect(weights.tensors.get("empty")!.bytes()).toEqual(new Uint8Array(0));
  });

  test("names twice, endless nesting, and parts shared too often", async () => {
    const open = (value: Uint8Array) =>
      errorOf(temporary.file("n.pth", torchArchive(value, { 0: eightBytes })), readTorchFile);
    const twice = await open(dict(["a", dict(["b", pair])], ["a.b", pair]));
    expect(twice.message).toContain('"a.b": the name occurs twice');
    // A list that contains itself.
    expect((await open(bytesOf("]q", 0, "h", 0, "a"))).message).toContain("nested deeper than 64");
    // Thirty levels of lists, each twice in the next one: 2^30 values.
    const shared = bytesOf("]", ...Array.from({ length: 30 }, (_, i) => bytesOf("q", i, "0](h", i, "h", i, "e")));
    expect((await open(shared)).message).toContain("the file has more than 500000 values");
  });
});

describe("broken archives", () => {
  const data = program(dict(["w", pair]));
  const good = [
    { name: "a/data.pkl", data },
    { name: "a/data/0", data: eightBytes },
  ] as const;

  /** A changed field: `size` bytes at `at`, counted from the `nth` signature. */
  const patched = (bytes: Uint8Array<ArrayBuffer>, signature: string, at: number, value: Uint8Array, nth = 0) => {
    let start = -1;
    for (let i = 0; i <= nth; i++) start = Buffer.from(bytes).indexOf(signature, start + 1, "latin1");
    bytes.set(value, start + at);
    return bytes;
  };

  test.each<[string, () => Uint8Array, string]>([
    ["nothing", () => bytesOf(), "zip end record: there is none, the file is truncated"],
    ["no pickle", () => zip([good[1]]), "a zip archive without data.pkl is no PyTorch file"],
    ["two pickles", () => zip([...good, { name: "b/data.pkl", data }]), "it has 2 data.pkl"],
    ["same name", () => zip([...good, good[1]]), 'zip entry "a/data/0": the name occurs twice'],
    ["checksum", () => zip([{ ...good[0], crc32: 5 }, good[1]]), "its checksum is"],
    ["encrypted", () => zip([good[0], { ...good[1], flags: 1 }]), 'zip entry "a/data/0" is encrypted'],
    ["compressed", () => zip([{ ...good[0], method: 8 }, good[1]]), '"a/data.pkl" is compressed (method 8)'],
    ["other name", () => zip([good[0], { ...good[1], localName: "a/data/1" }]), 'its local header names it "a/data/1"'],
    ["place", () => patched(zip([...good]), "PK\x01\x02", 42, le(1, 4)), "there is no local header at 1"],
    ["overlap", () => patched(zip([...good]), "PK\x01\x02", 20, bytesOf(le(280, 4), le(280, 4))), "overlap"],
    ["two sizes", () => patched(zip([...good]), "PK\x01\x02", 20, le(7, 4)), "stored without compression take 7 bytes"],
    [
      "size",
      () => patched(zip([...good]), "PK\x01\x02", 20, bytesOf(le(9999, 4), le(9999, 4))),
      "beyond the directory",
    ],
    ["count", () => patched(zip([...good]), "PK\x05\x06", 10, le(3, 2)), "entry 2: the directory ends before it"],
    ["fewer", () => patched(zip([...good]), "PK\x05\x06", 10, le(1, 2)), "zip directory: 1 entries take"],
    ["directory", () => patched(zip([...good]), "PK\x05\x06", 16, le(99999, 4)), "go beyond the end record"],
    ["disks", () => patched(zip([...good]), "PK\x05\x06", 4, le(1, 2)), "split over several files"],
    ["no zip64", () => patched(zip([...good]), "PK\x05\x06", 16, le(0xffffffff, 4)), "zip64 locator: there is none"],
    ["zip64 place", () => patched(zip([...good], true), "PK\x06\x07", 8, le(99999, 8)), "zip64 end record: 99999"],
    ["zip64 number", () => patched(zip([...good], true), "PK\x06\x07", 8, le(2n ** 60n, 8)), "is beyond 2^53"],
    ["zip64 field", () => patched(zip([...good], true), "PK\x01\x02", 30, le(7, 2)), "zip64 field is missing"],
    ["zip64 size", () => patched(zip([...good], true), "PK\x06\x06", 40, le(2n ** 50n, 8)), "go beyond the end record"],
  ])("%s", async (name, bytes, message) => {
    const path = temporary.file(`${name}.pth`, bytes());
    for (const map of [true, false]) {
      const error = await errorOf(path, (path) => readTorchFile(path, { map }));
      expect(error.message).toContain(message);
    }
  });

  test("a changed tensor is named when it is read, unless checksums are not to be compared", async () => {
    const path = temporary.file("crc.pth", zip([good[0], { ...good[1], crc32: 1 }]));
    for (const map of [true, false]) {
      using weights = await readTorchFile(path, { map });
      expect(() => weights.tensors.get("w")!.toFloat32()).toThrow(
        `${path}: damaged: tensor "w", zip entry "a/data/0": its checksum is `,
      );
      using unverified = await readTorchFile(path, { map, verify: false });
      expect([...unverified.tensors.get("w")!.toFloat32()]).toEqual([1, 2]);
    }
  });

  test("truncated anywhere", async () => {
    const intact = await Bun.file(join(golden, "strided.pth")).bytes();
    for (let length = 0; length < intact.length; length++) {
      const path = temporary.file("truncated.pth", intact.subarray(0, length));
      const error = await errorOf(path, (path) => readTorchFile(path, { map: length % 2 === 0 }));
      expect([length, error.code]).toEqual([length, ErrorCode.io]);
    }
  });

  test("any byte changed: an error, or what was written", async () => {
    for (const name of ["strided.pth", "checkpoint.pth"]) {
      const intact = await Bun.file(join(golden, name)).bytes();
      const expected = await expectedOf(name);
      for (let i = 0; i < intact.length; i++) {
        const bytes = intact.slice();
        bytes[i] = bytes[i]! ^ (1 << (i % 8));
        const path = temporary.file("changed.pth", bytes);
        const content = await tryToLoad(path, () => readTorchFile(path, { map: i % 2 === 0 }));
        if (content) expect([i, content]).toEqual([i, expected]);
      }
    }
  });

  test("a changed byte of the pickle under a right checksum never breaks the reader", async () => {
    const archive = await Bun.file(join(golden, "strided.pth")).bytes();
    const start = Buffer.from(archive).indexOf("\x80\x02ccollections", 0, "latin1");
    let loaded = 0;
    for (let i = 0; i < 813; i++) {
      for (const value of [0, 255, 0x28, 0x52, archive[start + i]! ^ (1 << (i % 8))]) {
        const bytes = archive.slice();
        bytes[start + i] = value;
        const path = temporary.file("pickle.pth", bytes);
        if (await tryToLoad(path, () => readTorchFile(path, { verify: false }))) loaded++;
      }
    }
    expect(loaded).toBeGreaterThan(0);
    expect(loaded).toBeLessThan(5 * 813);
  });
});

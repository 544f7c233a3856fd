/** NumPy's files: what NumPy wrote is read as NumPy reads it, and files that lie about themselves are named errors. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadWeights, readNumpy } from "../../lib/formats/index";
import { ErrorCode } from "../../lib/native/error";
import {
  bytesOf,
  contentOf,
  type Expected,
  errorOf,
  golden,
  le,
  temporaryFolder,
  tryToLoad,
  zip,
} from "./weights-sample";

const temporary = temporaryFolder();
const expected = JSON.parse(readFileSync(join(golden, "expected-numpy.json"), "utf8")) as Record<string, Expected>;

/** A .npy file, its header as given. */
function npy(header: string, data: Uint8Array = bytesOf(), version = 1): Uint8Array<ArrayBuffer> {
  return bytesOf(0x93, "NUMPY", version, 0, le(header.length, version === 1 ? 2 : 4), header, data);
}

const header = (descr: string, shape: string, fortran = "False") =>
  `{'descr': ${descr}, 'fortran_order': ${fortran}, 'shape': ${shape}, }\n`;
const pair = npy(header("'<f4'", "(2,)"), bytesOf(0, 0, 128, 63, 0, 0, 0, 64));

describe("NumPy's files", () => {
  test.each([
    ["arrays.npz", true],
    ["arrays.npz", false],
    ["column-major.npy", true],
  ])("reads %s as NumPy does (mapped: %p)", async (name, map) => {
    using file = await readNumpy(join(golden, name), { map });
    expect(contentOf(file)).toEqual(expected[name]!);
  });

  test("loadWeights tells them by their content", async () => {
    for (const name of Object.keys(expected)) {
      using file = await loadWeights(temporary.file("renamed.bin", readFileSync(join(golden, name))));
      expect(file.format).toBe("numpy");
    }
    const path = temporary.file("entry.npz", zip([{ name: "w.npy", data: pair }]));
    const error = await errorOf(path, (file) => loadWeights(file, { entry: "model" }));
    expect(error.message).toContain('entry "model": a numpy file has no dicts');
  });

  test("headers of every version and of other writers", async () => {
    const data = bytesOf(0, 0, 128, 63, 0, 0, 0, 64);
    const headers: [string, number][] = [
      ["{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 2],
      ["{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 3],
      ['{"shape": (2L,), "fortran_order": False, "descr": "<f4"}', 1],
      ["{'fortran_order':True,'descr':'=f4','shape':(2,)}   \n", 1],
    ];
    for (const [text, version] of headers) {
      using file = await readNumpy(temporary.file("w.npy", npy(text, data, version)));
      const tensor = file.tensors.get("w")!;
      expect([tensor.shape, [...tensor.toFloat32()]]).toEqual([[2], [1, 2]]);
    }
  });

  test.each([
    ["objects", npy(header("'|O'", "(2,)"), new Uint8Array(16)), "Python objects are pickles and are not read", true],
    ["records", npy(header("[('x', '<f4')]", "(2,)"), new Uint8Array(8)), "records are not read", true],
    ["complex numbers", npy(header("'<c8'", "(1,)"), new Uint8Array(8)), 'type "<c8" is not supported', true],
    ["a member of Object.prototype", npy(header("'<constructor'", "(1,)")), "is not supported", true],
    ["big-endian numbers", npy(header("'>f4'", "(1,)"), new Uint8Array(4)), "must be little-endian", true],
    ["a new version", npy(header("'<f4'", "()"), new Uint8Array(4), 9), "format version 9.0 is not read", true],
    ["missing elements", npy(header("'<f4'", "(3,)"), new Uint8Array(8)), "<f4 (3) has 12 bytes, 8 follow", false],
    ["surplus bytes", npy(header("'<f4'", "(1,)"), new Uint8Array(8)), "has 4 bytes, 8 follow", false],
    ["sizes beyond 2^53", npy(header("'<f4'", "(9007199254740993, 9)")), "more than 2^53 bytes", false],
    ["a negative size", npy(header("'<f4'", "(-1,)")), "expected a dict", false],
    ["no sizes", npy(header("'<f4'", "(,)")), "shape: expected sizes", false],
    ["many dimensions", npy(header("'<f4'", `(${"1,".repeat(65)})`)), "65 dimensions, at most 64", false],
    ["code", npy("__import__('os').system('true')\n"), "expected a dict of descr, fortran_order and shape", false],
    ["another entry", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), 'x': 1}"), "and shape alone", false],
    ["an entry twice", npy(header("'<f4', 'descr': '<f8'", "()"), new Uint8Array(4)), "and shape alone", false],
    ["a header beyond the end", bytesOf(0x93, "NUMPY", 1, 0, le(500, 2), "{"), "500 bytes go beyond the end", false],
    ["a huge header", bytesOf(0x93, "NUMPY", 2, 0, le(0xffffffff, 4)), "4294967295 bytes, at most 10000", false],
    ["no header", bytesOf(0x93, "NUMPY", 1), "too few for a header", false],
    ["a short length", bytesOf(0x93, "NUMPY", 2, 0, 1, 0), "too few for a header", false],
  ] as const)("refuses %s, alone and in an archive", async (_, bytes, message, unsupported) => {
    for (const path of [
      temporary.file("w.npy", bytes),
      temporary.file("w.npz", zip([{ name: "w.npy", data: bytes }])),
    ]) {
      const error = await errorOf(path, readNumpy);
      expect(error.message).toContain('array "w"');
      expect(error.message).toContain(message);
      expect(error.code).toBe(unsupported ? ErrorCode.unsupported : ErrorCode.io);
    }
  });

  test("refuses archives that are compressed, hold other files, or a name twice", async () => {
    const compressed = await errorOf(join(golden, "compressed.npz"), readNumpy);
    expect(compressed.code).toBe(ErrorCode.unsupported);
    expect(compressed.message).toContain('zip entry "zeros.npy" is compressed');
    const other = temporary.file(
      "other.npz",
      zip([
        { name: "w.npy", data: pair },
        { name: "notes.txt", data: pair },
      ]),
    );
    expect((await errorOf(other, readNumpy)).message).toContain('"notes.txt" is no array');
    const twice = temporary.file(
      "twice.npz",
      zip([
        { name: "w.npy", data: pair },
        { name: "w.npy", data: pair },
      ]),
    );
    expect((await errorOf(twice, readNumpy)).message).toContain("the name occurs twice");
    const foreign = temporary.file("foreign.npz", zip([{ name: "w.npy", data: bytesOf("hello, this is text") }]));
    expect((await errorOf(foreign, readNumpy)).message).toContain("it starts with bytes 68656c6c6f");
  });

  test("compares an array with its checksum when it is loaded, unless told not to", async () => {
    const path = temporary.file("sum.npz", zip([{ name: "w.npy", data: pair, crc32: 1 }]));
    using file = await readNumpy(path);
    expect(() => file.tensors.get("w")!.bytes()).toThrow('zip entry "w.npy": its checksum is');
    using unchecked = await readNumpy(path, { verify: false });
    expect([...unchecked.tensors.get("w")!.toFloat32()]).toEqual([1, 2]);
  });

  test("a file cut anywhere is a named error, one changed anywhere loads or is one", async () => {
    const whole = new Uint8Array(
      zip([
        { name: "a.npy", data: pair },
        { name: "b.npy", data: pair },
      ]),
    );
    const content = await tryToLoad(temporary.file("cut.npz", whole), () =>
      readNumpy(join(temporary.folder, "cut.npz")),
    );
    expect(Object.keys(content!)).toEqual(["a", "b"]);
    for (let at = 0; at < whole.length; at++) {
      const cut = temporary.file("cut.npz", whole.slice(0, at));
      expect(await tryToLoad(cut, () => readNumpy(cut))).toBeUndefined();
      const changed = whole.slice();
      changed[at]! ^= 0x55;
      const path = temporary.file("changed.npz", changed);
      await tryToLoad(path, () => readNumpy(path));
    }
  });
});

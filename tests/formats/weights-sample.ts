/** Files of weights as they should not be, made byte by byte, for the tests of their readers. */
import { afterAll, expect } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { WeightFile } from "../../lib/formats/index";
import { DlfsError } from "../../lib/native/error";

export const golden = join(import.meta.dir, "../golden/weights");

/** What PyTorch reads from a file of tests/golden/weights: name -> type, shape and base64 of the bytes. */
export type Expected = Record<string, { dtype: string; shape: number[]; data: string }>;

export async function expectedOf(name: string): Promise<Expected> {
  const all = (await Bun.file(join(golden, "expected.json")).json()) as Record<string, Expected>;
  return all[name]!;
}

/** All that a file holds, as expected.json has it. */
export function contentOf(file: WeightFile): Expected {
  return Object.fromEntries(
    [...file.tensors].map(([name, { dtype, shape, ...tensor }]) => {
      expect(tensor.name).toBe(name);
      return [name, { dtype, shape: [...shape], data: file.tensors.get(name)!.bytes().toBase64() }];
    }),
  );
}

/** A folder that is removed after the tests, and files in it. */
export function temporaryFolder() {
  const folder = mkdtempSync(join(tmpdir(), "dlfs-weights-"));
  afterAll(() => rmSync(folder, { recursive: true }));
  return {
    folder,
    file(name: string, bytes: Uint8Array | string): string {
      const path = join(folder, name);
      writeFileSync(path, bytes);
      return path;
    },
  };
}

/** The error that opening gives; any other than a DlfsError naming the file fails the test. */
export async function errorOf(path: string, open: (path: string) => Promise<WeightFile>): Promise<DlfsError> {
  try {
    (await open(path)).close();
  } catch (error) {
    if (!(error instanceof DlfsError)) throw error;
    expect(error.op).toBe(path);
    return error;
  }
  throw new Error(`${path} was opened`);
}

/**
 * Opens a file and loads all of it.
 *
 * @returns its content, or undefined where a DlfsError said what is wrong
 */
export async function tryToLoad(path: string, open: () => Promise<WeightFile>): Promise<Expected | undefined> {
  try {
    using file = await open();
    for (const tensor of file.tensors.values()) {
      expect(tensor.bytes().length).toBe(tensor.byteLength);
      expect(tensor.toFloat32().length).toBe(tensor.elements);
    }
    return contentOf(file);
  } catch (error) {
    if (!(error instanceof DlfsError)) throw error;
    expect(error.op).toBe(path);
    return undefined;
  }
}

type Part = number | string | Uint8Array | readonly Part[];

/** Bytes from numbers (one byte each), ASCII text, and other bytes. */
export function bytesOf(...parts: Part[]): Uint8Array<ArrayBuffer> {
  const bytes = (part: Part): number[] => {
    if (typeof part === "number") return [part];
    if (typeof part === "string") return [...new TextEncoder().encode(part)];
    return part instanceof Uint8Array ? [...part] : part.flatMap(bytes);
  };
  return Uint8Array.from(parts.flatMap(bytes));
}

/** A little-endian unsigned integer. */
export function le(value: number | bigint, size: 2 | 4 | 8): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes.slice(0, size);
}

/** Pieces of pickles (protocol 2). */
export const pickle = {
  text: (text: string) => bytesOf("X", le(new TextEncoder().encode(text).length, 4), text),
  int: (value: number) => bytesOf("J", le(value >>> 0, 4)),
  long: (value: bigint) => bytesOf(0x8a, 8, le(BigInt.asUintN(64, value), 8)),
  global: (module: string, name: string) => bytesOf("c", module, "\n", name, "\n"),
  tuple: (...items: Uint8Array[]) => bytesOf("(", ...items, "t"),
  dict: (...items: [string, Uint8Array][]) =>
    bytesOf("}(", ...items.map(([key, value]) => bytesOf(pickle.text(key), value)), "u"),
  call: (module: string, name: string, ...args: Uint8Array[]) =>
    bytesOf(pickle.global(module, name), pickle.tuple(...args), "R"),
  storage: (type: string, key: string, count: number) =>
    bytesOf(
      pickle.tuple(
        pickle.text("storage"),
        pickle.global("torch", type),
        pickle.text(key),
        pickle.text("cpu"),
        pickle.int(count),
      ),
      "Q",
    ),
  tensor: (storage: Uint8Array, offset: number, shape: bigint[], strides: bigint[]) =>
    pickle.call(
      "torch._utils",
      "_rebuild_tensor_v2",
      storage,
      pickle.int(offset),
      pickle.tuple(...shape.map(pickle.long)),
      pickle.tuple(...strides.map(pickle.long)),
      bytesOf(0x89),
      pickle.call("collections", "OrderedDict"),
    ),
  program: (value: Uint8Array) => bytesOf(0x80, 2, value, "."),
};

export interface ZipPart {
  name: string;
  data: Uint8Array;
  /** Written instead of the true values. */
  crc32?: number;
  method?: number;
  flags?: number;
  localName?: string;
}

/** A stored zip archive; with `zip64`, all that can be is in its 64-bit fields. */
export function zip(parts: ZipPart[], zip64 = false): Uint8Array<ArrayBuffer> {
  const local: Uint8Array[] = [];
  const central: Uint8Array[] = [];
  let at = 0;
  for (const { name, data, crc32 = Bun.hash.crc32(data), method = 0, flags = 0, localName = name } of parts) {
    const common = [le(45, 2), le(flags, 2), le(method, 2), le(0, 4), le(crc32, 4)];
    const sizes = zip64 ? [le(0xffffffff, 4), le(0xffffffff, 4)] : [le(data.length, 4), le(data.length, 4)];
    // Another field comes before the zip64 one, as archives may have it.
    const other = bytesOf("FB", le(3, 2), "ZZZ");
    const wide = zip64 ? bytesOf(le(1, 2), le(24, 2), le(data.length, 8), le(data.length, 8), le(at, 8)) : bytesOf();
    const header = bytesOf(
      "PK\x03\x04",
      ...common,
      ...sizes,
      le(localName.length, 2),
      le(other.length, 2),
      localName,
      other,
    );
    central.push(
      bytesOf(
        "PK\x01\x02",
        le(45, 2),
        ...common,
        ...sizes,
        le(name.length, 2),
        le(other.length + wide.length, 2),
        new Uint8Array(10),
        le(zip64 ? 0xffffffff : at, 4),
        name,
        other,
        wide,
      ),
    );
    local.push(header, data);
    at += header.length + data.length;
  }
  const directory = bytesOf(...central);
  const count = parts.length;
  const record = bytesOf(
    "PK\x06\x06",
    le(44, 8),
    le(45, 2),
    le(45, 2),
    new Uint8Array(8),
    le(count, 8),
    le(count, 8),
    le(directory.length, 8),
    le(at, 8),
    "PK\x06\x07",
    new Uint8Array(4),
    le(at + directory.length, 8),
    le(1, 4),
  );
  return bytesOf(
    ...local,
    directory,
    zip64 ? record : bytesOf(),
    "PK\x05\x06",
    new Uint8Array(4),
    le(zip64 ? 0xffff : count, 2),
    le(zip64 ? 0xffff : count, 2),
    le(zip64 ? 0xffffffff : directory.length, 4),
    le(zip64 ? 0xffffffff : at, 4),
    le(0, 2),
  );
}

/** A file of `torch.save` with this pickled value and these storages. */
export function torchArchive(value: Uint8Array, storages: Record<string, Uint8Array> = {}, zip64 = false) {
  const parts = Object.entries(storages).map(([key, data]) => ({ name: `a/data/${key}`, data }));
  return zip([{ name: "a/data.pkl", data: pickle.program(value) }, ...parts], zip64);
}

/**
 * safetensors: named tensors behind a JSON header. All numbers little-endian:
 *
 * | bytes     | content                                                                                          |
 * |-----------|--------------------------------------------------------------------------------------------------|
 * | 0 .. 8    | u64 length N of the header, at most 100 MB                                                       |
 * | 8 .. 8+N  | JSON: `{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}`, with an  |
 * |           | optional `"__metadata__": {"key": "text"}`, padded with spaces                                   |
 * | 8+N ..    | the tensors, row-major; offsets count from here, without gap or overlap, to the end of the file  |
 *
 * The format has no checksums. What is written is laid out as the reference implementation does: by descending dtype,
 * then by name, the header padded to a multiple of 8.
 */
import { check, DlfsError, ErrorCode } from "../native/error";
import { AtomicFile } from "./atomic-file";
import type { FileBytesOptions } from "./file-bytes";
import { FileBytes } from "./file-bytes";
import { parseUniqueJson } from "./unique-json";
import type { WeightDType } from "./weights";
import { countElements, OpenWeightFile, quoteName, WeightTensor, weightDTypeSize } from "./weights";

const MAX_HEADER_BYTES = 100_000_000;
const METADATA = "__metadata__";

/** The format's names, in the order of its reference implementation's enumeration, by which tensors are laid out. */
const dtypesByName = {
  BOOL: "bool",
  U8: "u8",
  I8: "i8",
  F8_E5M2: "f8e5m2",
  F8_E4M3: "f8e4m3",
  I16: "i16",
  U16: "u16",
  F16: "f16",
  BF16: "bf16",
  I32: "i32",
  U32: "u32",
  F32: "f32",
  F64: "f64",
  I64: "i64",
  U64: "u64",
} as const satisfies Record<string, WeightDType>;
const namesByDType = new Map(Object.entries(dtypesByName).map(([name, dtype]) => [dtype as WeightDType, name]));
const layoutOrder = new Map(Object.values(dtypesByName).map((dtype, index) => [dtype as WeightDType, index]));

/** An open safetensors file; its tensors are loaded when they are asked for. */
export class SafetensorsFile extends OpenWeightFile {
  readonly format = "safetensors";

  constructor(
    file: FileBytes,
    readonly tensors: ReadonlyMap<string, WeightTensor>,
    /** The metadata. */
    readonly values: ReadonlyMap<string, string>,
  ) {
    super(file);
  }
}

/**
 * Opens a safetensors file and checks all that its header claims.
 *
 * @throws DlfsError naming the file and, where it is about one, the tensor: of code `io` for a file that is missing or
 *   damaged, `unsupported` for a dtype that is not among F64, F32, F16, BF16, F8_E5M2, F8_E4M3, I64 to I8, U64 to U8
 *   and BOOL
 */
export async function readSafetensors(path: string, options: FileBytesOptions = {}): Promise<SafetensorsFile> {
  const file = FileBytes.open(path, "safetensors file", options);
  try {
    return load(file);
  } catch (error) {
    file.close();
    throw error;
  }
}

interface Place {
  name: string;
  dtype: WeightDType;
  shape: number[];
  begin: number;
  end: number;
}

function load(file: FileBytes): SafetensorsFile {
  const { path, size } = file;
  if (size < 8) throw damaged(path, `header length: it takes 8 bytes, the file has ${size}`);
  const lengthBytes = file.slice(0, 8, "header length");
  const length = new DataView(lengthBytes.buffer, lengthBytes.byteOffset).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw damaged(path, `header length: ${length} bytes, at most ${MAX_HEADER_BYTES} are allowed`);
  }
  const headerBytes = Number(length);
  if (headerBytes > size - 8) {
    throw damaged(path, `header length: ${headerBytes} bytes go beyond the end of the file, which has ${size}`);
  }
  const header = parseHeader(path, file.slice(8, headerBytes, "header"));
  const places: Place[] = [];
  let values = new Map<string, string>();
  for (const [name, value] of Object.entries(header)) {
    if (name === METADATA) values = parseMetadata(path, value);
    else places.push(parsePlace(path, name, value));
  }
  places.sort((a, b) => a.begin - b.begin || a.end - b.end);
  const start = 8 + headerBytes;
  checkPlaces(path, places, size - start);
  const tensors = new Map<string, WeightTensor>();
  for (const { name, dtype, shape, begin, end } of places) {
    const read = () => file.slice(start + begin, end - begin, `tensor ${quoteName(name)}`);
    tensors.set(name, new WeightTensor(path, name, dtype, shape, read));
  }
  return new SafetensorsFile(file, tensors, values);
}

function parseHeader(path: string, bytes: Uint8Array): Record<string, unknown> {
  if (bytes[0] !== 0x7b) {
    throw damaged(path, `header: it is JSON that starts with "{", here it starts with ${firstByte(bytes)}`);
  }
  let header: unknown;
  try {
    header = parseUniqueJson(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw damaged(path, `header: ${error instanceof Error ? error.message : error}`, error);
  }
  if (!isObject(header)) throw damaged(path, "header: expected an object");
  return header;
}

function parseMetadata(path: string, value: unknown): Map<string, string> {
  if (!isObject(value)) throw damaged(path, `${METADATA}: expected an object of strings, got ${describe(value)}`);
  const entries = Object.entries(value).map(([key, text]): [string, string] => {
    if (typeof text === "string") return [key, text];
    throw damaged(path, `${METADATA}: ${quoteName(key)}: expected a string, got ${describe(text)}`);
  });
  return new Map(entries);
}

function parsePlace(path: string, name: string, value: unknown): Place {
  const fail = (message: string) => damaged(path, `tensor ${quoteName(name)}: ${message}`);
  if (!isObject(value)) throw fail(`expected an object, got ${describe(value)}`);
  for (const key of Object.keys(value)) {
    if (!["dtype", "shape", "data_offsets"].includes(key)) throw fail(`unknown field ${quoteName(key)}`);
  }
  const { dtype: dtypeName, shape, data_offsets: offsets } = value;
  if (typeof dtypeName !== "string") throw fail(`dtype: expected a string, got ${describe(dtypeName)}`);
  const dtype = Object.hasOwn(dtypesByName, dtypeName)
    ? dtypesByName[dtypeName as keyof typeof dtypesByName]
    : undefined;
  if (dtype === undefined) {
    const known = Object.keys(dtypesByName).join(", ");
    throw new DlfsError(
      ErrorCode.unsupported,
      path,
      `tensor ${quoteName(name)}: dtype ${quoteName(dtypeName)} is not supported, these are: ${known}`,
    );
  }
  if (!isSizes(shape)) throw fail(`shape: expected a list of whole numbers from 0, got ${describe(shape)}`);
  if (!isSizes(offsets) || offsets.length !== 2) {
    throw fail(`data_offsets: expected two whole numbers from 0, got ${describe(offsets)}`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) throw fail(`data_offsets: it begins at ${begin} and ends before, at ${end}`);
  const bytes = countElements(shape) * weightDTypeSize(dtype);
  if (bytes !== end - begin) {
    const size = Number.isNaN(bytes) ? "more than 2^53" : bytes;
    throw fail(`${dtypeName} ${describe(shape)} has ${size} bytes, data_offsets give it ${end - begin}`);
  }
  return { name, dtype, shape, begin, end };
}

/** Sorted places follow each other from 0 to the end of the data. */
function checkPlaces(path: string, places: readonly Place[], dataBytes: number): void {
  let previous = 0;
  let before = "";
  for (const { name, begin, end } of places) {
    if (end > dataBytes) {
      const message = `its bytes end at ${end}, beyond the end of the data at ${dataBytes}: the file is truncated`;
      throw damaged(path, `tensor ${quoteName(name)}: ${message}`);
    }
    if (begin < previous) {
      const message = `its bytes from ${begin} overlap those of ${quoteName(before)}, which end at ${previous}`;
      throw damaged(path, `tensor ${quoteName(name)}: ${message}`);
    }
    if (begin > previous) {
      const message = `${begin - previous} bytes before it belong to no tensor (it begins at ${begin})`;
      throw damaged(path, `tensor ${quoteName(name)}: ${message}`);
    }
    previous = end;
    before = name;
  }
  if (previous < dataBytes) {
    throw damaged(path, `data: ${dataBytes - previous} bytes at the end belong to no tensor`);
  }
}

/** A tensor to be written. */
export interface WeightSource {
  name: string;
  dtype: WeightDType;
  /** From the outermost dimension; empty for a scalar. */
  shape: readonly number[];
  /** Row-major, little-endian bytes, or a function that gives them when their turn has come, to keep memory small. */
  data: Uint8Array | (() => Uint8Array | Promise<Uint8Array>);
}

/**
 * Writes a safetensors file, tensor by tensor; it appears complete or not at all.
 *
 * @param metadata texts to keep beside the tensors; PyTorch users' tools expect `{ format: "pt" }`
 * @throws DlfsError of code `argument` naming the tensor (a name twice, a wrong dtype or shape, data of another size),
 *   `io` where writing fails
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<WeightSource>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const sorted = [...tensors];
  const names = new Set<string>();
  for (const { name, dtype, shape } of sorted) {
    const fail = (message: string) => `tensor ${quoteName(name)}: ${message}`;
    check(name !== METADATA, path, () => fail("this name is reserved"));
    check(!names.has(name), path, () => fail("the name occurs twice"));
    names.add(name);
    check(namesByDType.has(dtype), path, () => fail(`unknown dtype "${dtype}"`), ErrorCode.dtype);
    check(!Number.isNaN(countElements(shape)), path, () => fail(`impossible shape [${shape}]`), ErrorCode.shape);
  }
  for (const [key, text] of Object.entries(metadata)) {
    check(typeof text === "string", path, () => `metadata ${quoteName(key)}: expected a string, got ${describe(text)}`);
  }
  const order = ({ dtype }: WeightSource) => layoutOrder.get(dtype)!;
  sorted.sort((a, b) => order(b) - order(a) || (a.name < b.name ? -1 : 1));
  const header = encodeHeader(sorted, metadata);
  check(header.length - 8 <= MAX_HEADER_BYTES, path, () => `the header has ${header.length - 8} bytes, too many`);

  const file = await AtomicFile.create(path);
  try {
    await file.append(header);
    for (const { name, dtype, shape, data } of sorted) {
      const bytes = typeof data === "function" ? await data() : data;
      const expected = countElements(shape) * weightDTypeSize(dtype);
      const mismatch = () =>
        `tensor ${quoteName(name)}: ${dtype} [${shape}] has ${expected} bytes, got ${bytes.length}`;
      check(bytes.length === expected, path, mismatch, ErrorCode.shape);
      await file.append(bytes);
    }
  } catch (error) {
    await file.abort();
    throw error;
  }
  await file.commit();
}

/** Length and JSON, built from text pieces so that the order of names stays ("7" would come first in an object). */
function encodeHeader(tensors: readonly WeightSource[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const fields: string[] = [];
  if (Object.keys(metadata).length > 0) fields.push(`"${METADATA}":${JSON.stringify(metadata)}`);
  let begin = 0;
  for (const { name, dtype, shape } of tensors) {
    const end = begin + countElements(shape) * weightDTypeSize(dtype);
    const value = { dtype: namesByDType.get(dtype), shape, data_offsets: [begin, end] };
    fields.push(`${JSON.stringify(name)}:${JSON.stringify(value)}`);
    begin = end;
  }
  const json = new TextEncoder().encode(`{${fields.join(",")}}`);
  const padded = Math.ceil(json.length / 8) * 8;
  const header = new Uint8Array(8 + padded).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(padded), true);
  header.set(json, 8);
  return header;
}

function damaged(path: string, message: string, cause?: unknown): DlfsError {
  return new DlfsError(ErrorCode.io, path, `damaged: ${message}`, cause === undefined ? undefined : { cause });
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

function describe(value: unknown): string {
  if (value === undefined) return "nothing";
  const text = JSON.stringify(Array.isArray(value) ? value.slice(0, 20) : value);
  return text.length > 100 ? `${text.slice(0, 100)}...` : text;
}

function firstByte(bytes: Uint8Array): string {
  return bytes.length === 0 ? "nothing" : `byte 0x${bytes[0]!.toString(16).padStart(2, "0")}`;
}

/**
 * Reads arrays that NumPy saved (NEP 1, numpy.lib.format 1.0 to 3.0). A `.npy` file is one array:
 *
 * | bytes  | content                                                                                             |
 * |--------|-----------------------------------------------------------------------------------------------------|
 * | 0 .. 6 | "\x93NUMPY"                                                                                         |
 * | 6, 7   | the format's version                                                                                |
 * | 8 ..   | length N of the header: u16 in version 1, u32 after it, little-endian                               |
 * | ..     | a Python dict: `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, padded with spaces    |
 * | ..     | the elements, row-major, or column-major in Fortran's order, to the end of the file                 |
 *
 * A `.npz` file is a zip archive of them, `NAME.npy` for the array NAME. Arrays of Python objects are pickles and are refused.
 */
import { basename } from "node:path";
import { DlfsError, ErrorCode } from "../native/error";
import type { FileBytesOptions } from "./file-bytes";
import { FileBytes } from "./file-bytes";
import { gather } from "./strided";
import type { WeightDType, WeightValue } from "./weights";
import { countElements, OpenWeightFile, quoteName, WeightTensor, weightDTypeSize } from "./weights";
import type { ZipEntry } from "./zip";
import { readZipDirectory, readZipEntry } from "./zip";

export const NUMPY_MAGIC = "\x93NUMPY";
const PREFIX_BYTES = 8;
/** NumPy itself writes headers of some hundred bytes and refuses to read longer ones. */
const MAX_HEADER_BYTES = 10_000;
/** NumPy's limit since version 2. */
const MAX_DIMENSIONS = 64;

/** NumPy's type codes without the byte order in front. */
const dtypesByCode: Readonly<Record<string, WeightDType>> = {
  f8: "f64",
  f4: "f32",
  f2: "f16",
  i8: "i64",
  i4: "i32",
  i2: "i16",
  i1: "i8",
  u8: "u64",
  u4: "u32",
  u2: "u16",
  u1: "u8",
  b1: "bool",
};

export interface NumpyFileOptions extends FileBytesOptions {
  /** Compare the zip archive's checksums (default). */
  verify?: boolean;
}

/** An open `.npz` or `.npy` file; its arrays are loaded when they are asked for. */
export class NumpyFile extends OpenWeightFile {
  readonly format = "numpy";
  /** The formats hold nothing beside arrays. */
  readonly values: ReadonlyMap<string, WeightValue> = new Map();

  constructor(
    file: FileBytes,
    readonly tensors: ReadonlyMap<string, WeightTensor>,
  ) {
    super(file);
  }
}

/**
 * Opens what `numpy.savez` or `numpy.save` wrote and checks what its headers claim. The array of a `.npy` file is named after
 * the file: "weights" in "weights.npy".
 *
 * @throws DlfsError naming the file and, where it is about one, the array: of code `io` for a file that is missing or
 *   damaged, `unsupported` for a compressed archive (`savez_compressed`), big-endian numbers, and types that are not integers of
 *   8 to 64 bits, floating point of 16 to 64 bits, or bool
 */
export async function readNumpy(path: string, options: NumpyFileOptions = {}): Promise<NumpyFile> {
  const file = FileBytes.open(path, "NumPy file", options);
  try {
    const magic = file.slice(0, Math.min(file.size, NUMPY_MAGIC.length), "magic");
    if (String.fromCharCode(...magic) === NUMPY_MAGIC) {
      const name = basename(path).replace(/\.npy$/i, "");
      const { size } = file;
      const slice = (offset: number, length: number, field: string) => file.slice(offset, length, field);
      return new NumpyFile(file, new Map([[name, readArray(path, name, size, slice)]]));
    }
    const tensors = new Map<string, WeightTensor>();
    for (const entry of readZipDirectory(file).values()) {
      if (!entry.name.endsWith(".npy")) {
        const message = `zip entry ${quoteName(entry.name)} is no array, in an .npz file all are named NAME.npy`;
        throw new DlfsError(ErrorCode.unsupported, path, message);
      }
      const name = entry.name.slice(0, -".npy".length);
      const slice = entryReader(file, entry, options.verify !== false);
      tensors.set(name, readArray(path, name, entry.length, slice));
    }
    return new NumpyFile(file, tensors);
  } catch (error) {
    file.close();
    throw error;
  }
}

type Slice = (offset: number, length: number, field: string) => Uint8Array<ArrayBuffer>;

/** Reads an archive's entry; the whole of it is compared with its checksum once, when its elements are asked for. */
function entryReader(file: FileBytes, entry: ZipEntry, verify: boolean): Slice {
  let verified = !verify;
  return (offset, length, field) => {
    // The header must not be trusted to be small, nor the entry to be stored: both are checked without reading all of it.
    const whole = offset + length === entry.length;
    const bytes = readZipEntry(file, whole ? entry : { ...entry, length: offset + length }, whole && !verified, field);
    if (whole) verified = true;
    return bytes.subarray(offset, offset + length);
  };
}

function readArray(path: string, name: string, size: number, slice: Slice): WeightTensor {
  const field = `array ${quoteName(name)}`;
  const fail = (message: string, code: number = ErrorCode.io) =>
    new DlfsError(code, path, code === ErrorCode.io ? `damaged: ${field}: ${message}` : `${field}: ${message}`);

  if (size < PREFIX_BYTES + 2) throw fail(`it has ${size} bytes, too few for a header`);
  const prefix = slice(0, PREFIX_BYTES + 2, field);
  if (String.fromCharCode(...prefix.subarray(0, NUMPY_MAGIC.length)) !== NUMPY_MAGIC) {
    throw fail(`an array starts with "\\x93NUMPY", it starts with bytes ${prefix.toHex()}`);
  }
  const [major, minor] = [prefix[6] as number, prefix[7] as number];
  if (major < 1 || major > 3) throw fail(`format version ${major}.${minor} is not read`, ErrorCode.unsupported);
  const lengthBytes = major === 1 ? 2 : 4;
  const start = PREFIX_BYTES + lengthBytes;
  if (size < start) throw fail(`it has ${size} bytes, too few for a header`);
  const length = slice(PREFIX_BYTES, lengthBytes, field).reduce((sum, byte, i) => sum + byte * 256 ** i, 0);
  if (length > MAX_HEADER_BYTES) throw fail(`header: ${length} bytes, at most ${MAX_HEADER_BYTES} are read`);
  if (start + length > size) throw fail(`header: ${length} bytes go beyond the end of the array's ${size}`);

  const { descr, fortranOrder, shape } = parseHeader(slice(start, length, field), fail);
  const dtype = parseDescr(descr, (message) => fail(message, ErrorCode.unsupported));
  const expected = countElements(shape) * weightDTypeSize(dtype);
  if (start + length + expected !== size) {
    const claimed = Number.isNaN(expected) ? "more than 2^53" : expected;
    throw fail(`${descr} (${shape.join(", ")}) has ${claimed} bytes, ${size - start - length} follow the header`);
  }
  const load = (): Uint8Array<ArrayBuffer> => {
    const bytes = slice(start + length, expected, field);
    if (!fortranOrder || shape.length < 2 || expected === 0) return bytes;
    const strides = shape.map((_, i) => shape.slice(0, i).reduce((a, b) => a * b, 1));
    return gather(bytes, weightDTypeSize(dtype), 0, shape, strides, countElements(shape));
  };
  return new WeightTensor(path, name, dtype, shape, load);
}

interface Header {
  descr: string;
  fortranOrder: boolean;
  shape: number[];
}

/** The three entries of the dict, in any order, and nothing else. */
function parseHeader(bytes: Uint8Array, fail: (message: string, code?: number) => DlfsError): Header {
  const text = String.fromCharCode(...bytes);
  const shown = quoteName(text.trim());
  let rest = text;
  const take = (key: string, value: RegExp): string => {
    const found = new RegExp(`(?<=[{,]\\s*)(['"])${key}\\1\\s*:\\s*(?:${value.source})\\s*(?:,|(?=\\}))`).exec(rest);
    if (!found) throw fail(`header: expected a dict of descr, fortran_order and shape, got ${shown}`);
    rest = rest.slice(0, found.index) + rest.slice(found.index + found[0].length);
    return found[2] as string;
  };
  if (/(['"])descr\1\s*:\s*\[/.test(text)) {
    throw fail(`header: records are not read, only arrays of numbers: ${shown}`, ErrorCode.unsupported);
  }
  const descr = take("descr", /['"]([^'"]*)['"]/);
  const fortranOrder = take("fortran_order", /(True|False)/) === "True";
  const sizes = take("shape", /\(([\d\s,L]*)\)/);
  if (!/^\{\s*\}\s*$/.test(rest)) throw fail(`header: expected descr, fortran_order and shape alone, got ${shown}`);
  if (!/^\s*(?:\d+L?\s*(?:,\s*\d+L?\s*)*,?\s*)?$/.test(sizes))
    throw fail(`header: shape: expected sizes, got ${shown}`);
  const shape = [...sizes.matchAll(/\d+/g)].map(([size]) => Number(size));
  if (shape.length > MAX_DIMENSIONS) {
    throw fail(`header: shape: ${shape.length} dimensions, at most ${MAX_DIMENSIONS} are read`);
  }
  return { descr, fortranOrder, shape };
}

function parseDescr(descr: string, fail: (message: string) => DlfsError): WeightDType {
  const [order, code] = [descr.slice(0, 1), descr.slice(1)];
  if (code.startsWith("O")) throw fail(`type ${quoteName(descr)}: Python objects are pickles and are not read`);
  const dtype = Object.hasOwn(dtypesByCode, code) ? dtypesByCode[code] : undefined;
  if (dtype === undefined) {
    throw fail(`type ${quoteName(descr)} is not supported, these are: ${Object.keys(dtypesByCode).join(", ")}`);
  }
  const little = order === "<" || order === "=" || (order === "|" && weightDTypeSize(dtype) === 1);
  if (!little) throw fail(`type ${quoteName(descr)}: numbers must be little-endian ("<")`);
  return dtype;
}

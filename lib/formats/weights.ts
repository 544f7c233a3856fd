/** What files of weights have in common: named tensors, their types, and their values as float32. */
import { DlfsError, ErrorCode } from "../native/error";
import type { FileBytes } from "./file-bytes";

/** Element types of weights in files, named as in PyTorch's short forms. The two `f8` are those of the OCP standard. */
export type WeightDType =
  | "f64"
  | "f32"
  | "f16"
  | "bf16"
  | "f8e5m2"
  | "f8e4m3"
  | "i64"
  | "i32"
  | "i16"
  | "i8"
  | "u64"
  | "u32"
  | "u16"
  | "u8"
  | "bool";

const sizes: Record<WeightDType, number> = {
  f64: 8,
  f32: 4,
  f16: 2,
  bf16: 2,
  f8e5m2: 1,
  f8e4m3: 1,
  i64: 8,
  i32: 4,
  i16: 2,
  i8: 1,
  u64: 8,
  u32: 4,
  u16: 2,
  u8: 1,
  bool: 1,
};

/** Bytes of one element. */
export function weightDTypeSize(dtype: WeightDType): number {
  return sizes[dtype];
}

/** Elements of a shape; NaN where a size is no whole number from 0, or where the number is beyond 2^53. */
export function countElements(shape: readonly number[]): number {
  if (shape.some((size) => !Number.isSafeInteger(size) || size < 0)) return Number.NaN;
  if (shape.includes(0)) return 0;
  const count = shape.reduce((product, size) => product * size, 1);
  return Number.isSafeInteger(count) ? count : Number.NaN;
}

/** A name from a file in quotes, escaped and shortened: what a file claims must not flood a message. */
export function quoteName(name: string): string {
  return JSON.stringify(name.length > 200 ? `${name.slice(0, 200)}...` : name);
}

/** A named tensor in a file; its bytes are loaded when they are asked for. */
export class WeightTensor {
  constructor(
    /** The file. */
    readonly path: string,
    /** "backbone.body.conv1.weight". */
    readonly name: string,
    readonly dtype: WeightDType,
    /** From the outermost dimension; empty for a scalar. */
    readonly shape: readonly number[],
    private readonly load: () => Uint8Array<ArrayBuffer>,
  ) {}

  get elements(): number {
    return countElements(this.shape);
  }

  get byteLength(): number {
    return this.elements * sizes[this.dtype];
  }

  /**
   * The elements, row-major and little-endian. It may be a view of the mapped file, at any alignment: not to be written
   * to.
   *
   * @throws DlfsError naming file and tensor where the bytes cannot be read or are damaged
   */
  bytes(): Uint8Array<ArrayBuffer> {
    return this.load();
  }

  /**
   * The elements as float32 in a new array, row-major. f64 and integers beyond 2^24 are rounded; bool becomes 0 and 1.
   */
  toFloat32(): Float32Array<ArrayBuffer> {
    return toFloat32(this.load(), this.dtype);
  }
}

/** A number, text or flag that a file holds beside its tensors. */
export type WeightValue = string | number | bigint | boolean | null;

/** An open file of weights. Close it, or declare it with `using`. */
export interface WeightFile extends Disposable {
  readonly path: string;
  readonly format: "safetensors" | "torch" | "numpy" | "onnx";
  /** By name, in the file's order. */
  readonly tensors: ReadonlyMap<string, WeightTensor>;
  /** What the file holds beside tensors: the metadata of safetensors and ONNX, or a checkpoint's numbers and strings ("epoch"). */
  readonly values: ReadonlyMap<string, WeightValue>;
  close(): void;
}

/** What the formats' open files share: where the bytes are, and how they are given back. */
export abstract class OpenWeightFile implements WeightFile {
  abstract readonly format: WeightFile["format"];
  abstract readonly tensors: ReadonlyMap<string, WeightTensor>;
  abstract readonly values: ReadonlyMap<string, WeightValue>;

  constructor(private readonly file: FileBytes) {}

  get path(): string {
    return this.file.path;
  }

  close(): void {
    this.file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Little-endian elements of any alignment as float32, in a new array. */
export function toFloat32(bytes: Uint8Array<ArrayBuffer>, dtype: WeightDType): Float32Array<ArrayBuffer> {
  const size = sizes[dtype];
  if (bytes.length % size !== 0) {
    const message = `${dtype} has ${size} bytes per element, got ${bytes.length} bytes`;
    throw new DlfsError(ErrorCode.argument, "toFloat32", message);
  }
  // Typed arrays start at a multiple of their element's size. f32 is copied in any case.
  const aligned = bytes.byteOffset % size === 0 && dtype !== "f32" ? bytes : bytes.slice();
  const { buffer, byteOffset } = aligned;
  const count = bytes.length / size;
  switch (dtype) {
    case "f32":
      return new Float32Array(buffer, byteOffset, count);
    case "f64":
      return Float32Array.from(new Float64Array(buffer, byteOffset, count));
    case "f16":
      return new Float32Array(new Float16Array(buffer, byteOffset, count));
    case "bf16": {
      const out = new Float32Array(count);
      const from = new Uint16Array(buffer, byteOffset, count);
      const bits = new Uint32Array(out.buffer);
      for (let i = 0; i < count; i++) bits[i] = from[i]! << 16;
      return out;
    }
    case "f8e5m2":
      // The upper byte of a float16.
      return new Float32Array(new Float16Array(Uint16Array.from(aligned, (byte) => byte << 8).buffer));
    case "f8e4m3":
      return Float32Array.from(aligned, fromFloat8E4M3);
    case "i64":
      return Float32Array.from(new BigInt64Array(buffer, byteOffset, count), Number);
    case "u64":
      return Float32Array.from(new BigUint64Array(buffer, byteOffset, count), Number);
    case "i32":
      return new Float32Array(new Int32Array(buffer, byteOffset, count));
    case "u32":
      return new Float32Array(new Uint32Array(buffer, byteOffset, count));
    case "i16":
      return new Float32Array(new Int16Array(buffer, byteOffset, count));
    case "u16":
      return new Float32Array(new Uint16Array(buffer, byteOffset, count));
    case "i8":
      return new Float32Array(new Int8Array(buffer, byteOffset, count));
    case "u8":
      return new Float32Array(aligned);
    case "bool":
      return Float32Array.from(aligned, (byte) => (byte === 0 ? 0 : 1));
  }
}

/** Four bits of exponent (bias 7), three of mantissa, no infinities, all ones is NaN. */
function fromFloat8E4M3(byte: number): number {
  const exponent = (byte >> 3) & 15;
  const mantissa = byte & 7;
  if (exponent === 15 && mantissa === 7) return Number.NaN;
  const magnitude = exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10);
  return byte & 128 ? -magnitude : magnitude;
}

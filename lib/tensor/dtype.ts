import { constants, DlfsError, ErrorCode } from "../native";

/** Element types, named as in PyTorch's short forms. */
export type DType = "f32" | "bf16" | "f16" | "i32" | "u8" | "i64";

const codes: Record<DType, number> = {
  f32: constants.F32,
  bf16: constants.BF16,
  f16: constants.F16,
  i32: constants.I32,
  u8: constants.U8,
  i64: constants.I64,
};
const sizes: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, i32: 4, u8: 1, i64: 8 };

/** The dlfs_dtype of dlfs.h. */
export function dtypeCode(dtype: DType): number {
  return codes[dtype];
}

/** Bytes of one element. */
export function dtypeSize(dtype: DType): number {
  return sizes[dtype];
}

/** Checks a name that came from outside (an option, a file). */
export function parseDType(text: string, op: string): DType {
  if (text in codes) return text as DType;
  throw new DlfsError(ErrorCode.dtype, op, `expected a dtype of ${Object.keys(codes).join(", ")}, got "${text}"`);
}

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** float32 -> bfloat16 bits, rounding to nearest even; NaN stays NaN. */
export function toBf16(value: number): number {
  scratchFloat[0] = value;
  const bits = scratchBits[0] as number;
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

export function fromBf16(bits: number): number {
  scratchBits[0] = bits << 16;
  return scratchFloat[0] as number;
}

const scratch = new ArrayBuffer(4);
const scratchFloat = new Float32Array(scratch);
const scratchBits = new Uint32Array(scratch);

type Numbers = ArrayLike<number>;

/** The bytes of values converted to a dtype. */
export function encodeElements(values: Numbers, dtype: DType): Uint8Array {
  const n = values.length;
  switch (dtype) {
    case "f32":
      return bytesOf(values instanceof Float32Array ? values : Float32Array.from(values));
    case "i32":
      return bytesOf(values instanceof Int32Array ? values : Int32Array.from(values));
    case "u8":
      return bytesOf(values instanceof Uint8Array ? values : Uint8Array.from(values));
    case "i64":
      return bytesOf(BigInt64Array.from(Array.from(values, BigInt)));
    case "f16":
      return bytesOf(Float16Array.from(values));
    case "bf16": {
      const out = new Uint16Array(n);
      for (let i = 0; i < n; ++i) out[i] = toBf16(values[i] as number);
      return bytesOf(out);
    }
  }
}

/** Elements of a dtype as numbers: Float32Array for the floating-point types, Int32Array, Uint8Array, or Float64Array (i64). */
export function decodeElements(
  bytes: Uint8Array<ArrayBuffer>,
  dtype: DType,
): Float32Array | Int32Array | Uint8Array | Float64Array {
  const { buffer, byteOffset, byteLength } = bytes;
  switch (dtype) {
    case "f32":
      return new Float32Array(buffer, byteOffset, byteLength / 4);
    case "i32":
      return new Int32Array(buffer, byteOffset, byteLength / 4);
    case "u8":
      return bytes;
    case "i64":
      return Float64Array.from(new BigInt64Array(buffer, byteOffset, byteLength / 8), Number);
    case "f16":
      return Float32Array.from(new Float16Array(buffer, byteOffset, byteLength / 2));
    case "bf16":
      return Float32Array.from(new Uint16Array(buffer, byteOffset, byteLength / 2), fromBf16);
  }
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

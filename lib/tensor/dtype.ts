import { constants, DlfsError, ErrorCode } from "../native";

/** Element types, named as in PyTorch's short forms; f8 is E4M3 without infinity ("float8_e4m3fn"). */
export type DType = "f32" | "bf16" | "f16" | "i32" | "u8" | "i64" | "f8" | "i8";

/** Dtypes of 8 bits; their numbers stand for themselves times a scale kept elsewhere. */
export type QuantizedDType = Extract<DType, "f8" | "i8">;

export function isQuantized(dtype: DType): dtype is QuantizedDType {
  return dtype === "f8" || dtype === "i8";
}

const codes: Record<DType, number> = {
  f32: constants.F32,
  bf16: constants.BF16,
  f16: constants.F16,
  i32: constants.I32,
  u8: constants.U8,
  i64: constants.I64,
  f8: constants.F8E4M3,
  i8: constants.I8,
};
const sizes: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, i32: 4, u8: 1, i64: 8, f8: 1, i8: 1 };

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

/** float32 -> E4M3 bits, rounding to nearest even; what is beyond 448 becomes 448, NaN stays NaN. */
export function toF8(value: number): number {
  if (Number.isNaN(value)) return 0x7f;
  const magnitude = Math.min(Math.abs(Math.fround(value)), 448);
  // The unit of the mantissa is 2^-9 up to 2^-6, and a sixteenth of the next power of two above.
  const exponent = Math.max(-6, magnitude > 0 ? Math.floor(Math.log2(magnitude)) : -6);
  const units = magnitude * 2 ** (3 - exponent);
  const below = Math.floor(units);
  const rounded = units - below > 0.5 || (units - below === 0.5 && below % 2 === 1) ? below + 1 : below;
  // Eight units are the implicit bit of normal numbers; a carry makes the next exponent by itself.
  const bits = (exponent + 6) * 8 + rounded;
  return Math.min(bits, 0x7e) | (value < 0 || Object.is(value, -0) ? 0x80 : 0);
}

export function fromF8(bits: number): number {
  const [sign, exponent, mantissa] = [bits & 0x80 ? -1 : 1, (bits >> 3) & 15, bits & 7];
  if (exponent === 15 && mantissa === 7) return Number.NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10));
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
    case "i8":
      return bytesOf(Int8Array.from(values));
    case "f8":
      return Uint8Array.from(values, toF8);
    case "bf16": {
      const out = new Uint16Array(n);
      for (let i = 0; i < n; ++i) out[i] = toBf16(values[i] as number);
      return bytesOf(out);
    }
  }
}

/** Elements of a dtype as numbers: Float32Array for the floating-point types, Int32Array (i8 too), Uint8Array, or Float64Array (i64). */
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
    case "i8":
      return Int32Array.from(new Int8Array(buffer, byteOffset, byteLength));
    case "f8":
      return Float32Array.from(bytes, fromF8);
    case "bf16":
      return Float32Array.from(new Uint16Array(buffer, byteOffset, byteLength / 2), fromBf16);
  }
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

/**
 * The wire format of protocol buffers (protobuf.dev/programming-guides/encoding): a message is a sequence of fields, each a
 * varint of `number * 8 + wire type` and a value.
 *
 * | wire type | value                                                                                         |
 * |-----------|-----------------------------------------------------------------------------------------------|
 * | 0         | varint: 7 bits a byte, least first, the highest bit says that more follow; 64 bits at most      |
 * | 1, 5      | 8 or 4 bytes, little-endian                                                                    |
 * | 2         | a varint length and as many bytes: text, bytes, a message, or numbers one after the other      |
 *
 * The reader trusts nothing: every length is checked against the bytes that are there, and nothing is allocated for a claim.
 */

/** What is wrong with a message; who reads it adds file and field. */
export class ProtoError extends Error {}

/** Most numbers that are read into an array at once: they take more memory there than in the file. */
const MAX_NUMBERS = 1_000_000;

const decoder = new TextDecoder("utf-8", { fatal: true });

/** Goes through the fields of one message; the accessors are about the field that `next` came to. */
export class ProtoReader {
  /** Number of the field. */
  field = 0;
  private wire = 0;
  /** A varint's lower and upper 32 bits. */
  private low = 0;
  private high = 0;
  /** Where the value's bytes lie, after its length. */
  private from = 0;
  private at: number;

  constructor(
    private readonly data: Uint8Array<ArrayBuffer>,
    begin = 0,
    private readonly end = data.length,
  ) {
    this.at = begin;
  }

  /** Moves to the next field; false at the end of the message. */
  next(): boolean {
    if (this.at === this.end) return false;
    this.varint();
    const key = this.low;
    this.field = key >>> 3;
    this.wire = key & 7;
    if (this.high !== 0 || this.field === 0) throw new ProtoError(`there is no field of key 0x${key.toString(16)}`);
    this.from = this.at;
    switch (this.wire) {
      case 0:
        this.varint();
        return true;
      case 1:
        this.advance(8);
        return true;
      case 2: {
        const length = this.varint();
        this.from = this.at;
        this.advance(length);
        return true;
      }
      case 5:
        this.advance(4);
        return true;
    }
    throw new ProtoError(`wire type ${this.wire} is not supported`);
  }

  private advance(length: number): void {
    const left = this.end - this.at;
    if (!(length >= 0 && length <= left)) throw new ProtoError(`${length} bytes are claimed, ${left} are left`);
    this.at += length;
  }

  /** Reads a varint into low and high; gives it as an unsigned number, rounded beyond 2^53. */
  private varint(): number {
    let [low, high] = [0, 0];
    for (let shift = 0; shift < 70; shift += 7) {
      if (this.at >= this.end) throw new ProtoError("a number is cut off");
      const byte = this.data[this.at++]!;
      const bits = byte & 127;
      if (shift < 28) low |= bits << shift;
      else if (shift === 28) [low, high] = [low | (bits << 28), bits >>> 4];
      else high |= bits << (shift - 32);
      if (byte < 128) {
        [this.low, this.high] = [low >>> 0, high >>> 0];
        return this.high * 2 ** 32 + this.low;
      }
    }
    throw new ProtoError("a number has more than 10 bytes");
  }

  private expect(wire: number, what: string): void {
    if (this.wire !== wire) throw new ProtoError(`expected ${what}, got wire type ${this.wire}`);
  }

  private signed(): number {
    return (this.high | 0) * 2 ** 32 + this.low;
  }

  /** A signed 64-bit integer; beyond 2^53 it is rounded. */
  int(): number {
    this.expect(0, "a number");
    return this.signed();
  }

  /** A 32-bit floating-point number. */
  float(): number {
    this.expect(5, "4 bytes");
    return this.view().getFloat32(0, true);
  }

  /** Signed 64-bit integers, rounded beyond 2^53: one, or as many as were packed together. */
  ints(): number[] {
    if (this.wire === 0) return [this.signed()];
    this.expect(2, "numbers");
    const values: number[] = [];
    const inner = new ProtoReader(this.data, this.from, this.at);
    while (inner.at < inner.end) {
      if (values.length === MAX_NUMBERS) throw new ProtoError(`more than ${MAX_NUMBERS} numbers`);
      inner.varint();
      values.push(inner.signed());
    }
    return values;
  }

  /** 32-bit floating-point numbers: one, or as many as were packed together. */
  floats(): number[] {
    if (this.wire === 5) return [this.float()];
    const view = this.view();
    if (view.byteLength % 4 !== 0) throw new ProtoError(`${view.byteLength} bytes are no 4-byte numbers`);
    if (view.byteLength > 4 * MAX_NUMBERS) throw new ProtoError(`more than ${MAX_NUMBERS} numbers`);
    return Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
  }

  /** The bytes of text, of bytes or of a message: a view. */
  bytes(): Uint8Array<ArrayBuffer> {
    this.expect(2, "bytes");
    return this.data.subarray(this.from, this.at);
  }

  /**
   * The bytes of numbers as they were written, packed together or a single one: a view.
   *
   * @param wire the wire type of a single one
   */
  numberBytes(wire: 0 | 1 | 5): Uint8Array<ArrayBuffer> {
    if (this.wire !== wire) this.expect(2, "numbers");
    return this.data.subarray(this.from, this.at);
  }

  private view(): DataView {
    const bytes = this.numberBytes(5);
    return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  text(): string {
    this.expect(2, "text");
    try {
      return decoder.decode(this.bytes());
    } catch {
      throw new ProtoError("it is not UTF-8");
    }
  }

  message(): ProtoReader {
    this.expect(2, "a message");
    return new ProtoReader(this.data, this.from, this.at);
  }
}

/** How many varints lie in some bytes; throws where the last one is cut off or one is too long. */
export function countVarints(bytes: Uint8Array): number {
  let [count, length] = [0, 0];
  for (const byte of bytes) {
    if (++length > 10) throw new ProtoError("a number has more than 10 bytes");
    if (byte >= 128) continue;
    ++count;
    length = 0;
  }
  if (length > 0) throw new ProtoError("a number is cut off");
  return count;
}

/** Writes the varints in some bytes, cut to `size` bytes each, into `out` from element `start`; gives the element after the last. */
export function decodeVarints(bytes: Uint8Array, out: Uint8Array, size: number, start: number): number {
  let element = start;
  let [low, high, shift] = [0, 0, 0];
  for (const byte of bytes) {
    const bits = byte & 127;
    if (shift < 28) low |= bits << shift;
    else if (shift === 28) [low, high] = [low | (bits << 28), bits >>> 4];
    else high |= bits << (shift - 32);
    shift += 7;
    if (byte >= 128) continue;
    for (let i = 0; i < size; ++i) out[element * size + i] = i < 4 ? low >>> (8 * i) : high >>> (8 * (i - 4));
    ++element;
    [low, high, shift] = [0, 0, 0];
  }
  return element;
}

/** Bytes that are made when they are written. */
export interface LazyBytes {
  readonly length: number;
  readonly load: () => Uint8Array | Promise<Uint8Array>;
}

const encoder = new TextEncoder();

/** Builds one message, in the order of the calls. Bytes that are given are kept, not copied. */
export class ProtoWriter {
  /** Bytes of the message so far. */
  length = 0;
  readonly parts: (Uint8Array | LazyBytes)[] = [];

  private push(part: Uint8Array | LazyBytes): void {
    this.parts.push(part);
    this.length += part.length;
  }

  private key(field: number, wire: number, length?: number): void {
    const key = varint(field * 8 + wire);
    this.push(Uint8Array.from(length === undefined ? key : [...key, ...varint(length)]));
  }

  /** A signed integer within 2^53. */
  int(field: number, value: number): this {
    this.push(Uint8Array.from([...varint(field * 8), ...varint(value)]));
    return this;
  }

  float(field: number, value: number): this {
    this.key(field, 5);
    this.push(new Uint8Array(Float32Array.of(value).buffer));
    return this;
  }

  double(field: number, value: number): this {
    this.key(field, 1);
    this.push(new Uint8Array(Float64Array.of(value).buffer));
    return this;
  }

  bytes(field: number, value: Uint8Array | LazyBytes): this {
    this.key(field, 2, value.length);
    this.push(value);
    return this;
  }

  text(field: number, value: string): this {
    return this.bytes(field, encoder.encode(value));
  }

  /** Integers packed together. */
  ints(field: number, values: readonly number[]): this {
    return this.bytes(field, Uint8Array.from(values.flatMap(varint)));
  }

  /** 32-bit floating-point numbers packed together. */
  floats(field: number, values: readonly number[]): this {
    return this.bytes(field, new Uint8Array(Float32Array.from(values).buffer));
  }

  /** 64-bit floating-point numbers packed together. */
  doubles(field: number, values: readonly number[]): this {
    return this.bytes(field, new Uint8Array(Float64Array.from(values).buffer));
  }

  message(field: number, build: (inner: ProtoWriter) => void): this {
    const inner = new ProtoWriter();
    build(inner);
    this.key(field, 2, inner.length);
    for (const part of inner.parts) this.push(part);
    return this;
  }
}

/** Negative numbers take 10 bytes, as 64-bit two's complement. */
function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  bytes.push(Number(rest));
  return bytes;
}

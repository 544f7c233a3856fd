import { ByteBuffer } from "flatbuffers";

/**
 * A flatbuffers buffer that may hold anything. The runtime of flatbuffers trusts its input: beyond the end it reads
 * zeros, and a few bytes that point at each other can claim gigabytes. Here every read is checked against the buffer,
 * and the bytes of strings and entries of vectors handed out are bounded by a small multiple of the buffer's size.
 * Failures are RangeErrors (or TypeErrors for text that is not UTF-8), which the decoder turns into named ones.
 */
export class CheckedByteBuffer extends ByteBuffer {
  private readonly size: number;
  private budget: number;
  private readonly decoder = new TextDecoder("utf-8", { fatal: true });

  constructor(data: Uint8Array) {
    super(data);
    this.size = data.length;
    // Each byte is handed out about once; vectors ask for their length more than once.
    this.budget = 8 * data.length;
  }

  private require(offset: number, count: number): void {
    if (!(offset >= 0 && count >= 0 && offset + count <= this.size)) {
      throw new RangeError(`${count} bytes at ${offset} lie outside of the ${this.size} bytes`);
    }
  }

  private spend(count: number): void {
    this.budget -= count;
    if (this.budget < 0) throw new RangeError(`its parts claim far more than the ${this.size} bytes`);
  }

  override readUint8(offset: number): number {
    this.require(offset, 1);
    return super.readUint8(offset);
  }

  override readUint16(offset: number): number {
    this.require(offset, 2);
    return super.readUint16(offset);
  }

  // All wider reads of the base class are made of this one.
  override readInt32(offset: number): number {
    this.require(offset, 4);
    return super.readInt32(offset);
  }

  override __string(offset: number): string {
    const at = offset + this.readInt32(offset);
    const length = this.readInt32(at);
    this.require(at + 4, length);
    this.spend(length);
    return this.decoder.decode(this.bytes().subarray(at + 4, at + 4 + length));
  }

  override __vector_len(offset: number): number {
    const at = offset + this.readInt32(offset);
    const length = this.readInt32(at);
    // An entry takes at least one byte.
    this.require(at + 4, length);
    this.spend(length);
    return length;
  }
}

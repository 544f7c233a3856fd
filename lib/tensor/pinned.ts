import { type Address, borrowHostMemory, DlfsError, ErrorCode } from "../native";
import type { Device } from "./device";
import { NativeObject, outHandle } from "./native-object";

/** Pinned host memory that asynchronous copies and decoders use; `bytes` views it. Dispose after the work that uses it. */
export class PinnedBuffer extends NativeObject {
  static #allocated = 0;

  /** Bytes of all buffers that have not been disposed of, of this thread's. */
  static get allocatedBytes(): number {
    return PinnedBuffer.#allocated;
  }

  readonly address: Address;
  readonly #bytes: Uint8Array<ArrayBuffer>;

  constructor(
    readonly device: Device,
    readonly byteLength: number,
  ) {
    const out = outHandle();
    device.native.hostMalloc(device.handle, out.view, byteLength);
    super(out.value, `PinnedBuffer of ${byteLength} bytes`, (address) => {
      PinnedBuffer.#allocated -= byteLength;
      return device.native.hostFree(device.handle, address);
    });
    PinnedBuffer.#allocated += byteLength;
    this.address = out.value;
    this.#bytes = new Uint8Array(borrowHostMemory(this.address, byteLength));
  }

  /** The memory. Do not keep it beyond dispose(). */
  get bytes(): Uint8Array<ArrayBuffer> {
    if (this.disposed) throw new DlfsError(ErrorCode.handle, "PinnedBuffer", "used after dispose()");
    return this.#bytes;
  }

  float32(): Float32Array {
    return new Float32Array(this.bytes.buffer, 0, this.byteLength >> 2);
  }

  int32(): Int32Array {
    return new Int32Array(this.bytes.buffer, 0, this.byteLength >> 2);
  }
}

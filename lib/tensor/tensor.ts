import { type Address, check, DlfsError, ErrorCode } from "../native";
import type { Device } from "./device";
import { type DType, decodeElements, dtypeCode, dtypeSize, elementCount, encodeElements } from "./dtype";
import { unwatchLeak, watchLeak } from "./leaks";
import { PinnedBuffer } from "./pinned";
import { Event, type Stream } from "./stream";

/**
 * A packed array in device memory. Activations are (N, H, W, C). A tensor owns its memory unless it was made by `at()`, which
 * views memory that something else (an arena, a program) owns.
 */
export class Tensor implements Disposable {
  readonly size: number;
  readonly byteLength: number;
  #address: Address;
  readonly #owned: boolean;

  private constructor(
    readonly device: Device,
    readonly shape: readonly number[],
    readonly dtype: DType,
    address: Address,
    owned: boolean,
  ) {
    this.size = elementCount(shape);
    this.byteLength = this.size * dtypeSize(dtype);
    this.#address = address;
    this.#owned = owned;
    if (owned) watchLeak(this, `Tensor ${dtype} (${shape.join(", ")})`);
  }

  /** A new tensor whose content is undefined. Every size must be a positive integer. */
  static empty(device: Device, shape: readonly number[], dtype: DType = "f32"): Tensor {
    checkShape(shape, "Tensor");
    return new Tensor(device, [...shape], dtype, device.malloc(elementCount(shape) * dtypeSize(dtype)), true);
  }

  /** A new tensor with every element set to a value. */
  static full(device: Device, shape: readonly number[], value: number, dtype: DType = "f32"): Tensor {
    return initialised(Tensor.empty(device, shape, dtype), (tensor) => {
      device.native.fill(device.stream.handle, tensor.address, tensor.size, dtypeCode(dtype), value);
    });
  }

  static zeros(device: Device, shape: readonly number[], dtype: DType = "f32"): Tensor {
    return initialised(Tensor.empty(device, shape, dtype), (tensor) => {
      device.native.memset(device.stream.handle, tensor.address, tensor.byteLength, 0);
    });
  }

  /** A new tensor with the values given in row-major order, converted to the dtype. */
  static from(device: Device, values: ArrayLike<number>, shape: readonly number[], dtype: DType = "f32"): Tensor {
    return initialised(Tensor.empty(device, shape, dtype), (tensor) => tensor.write(values));
  }

  /** A view of memory owned elsewhere. */
  static at(device: Device, address: Address, shape: readonly number[], dtype: DType): Tensor {
    checkShape(shape, "Tensor");
    return new Tensor(device, [...shape], dtype, address, false);
  }

  get address(): Address {
    if (this.#address === 0) {
      throw new DlfsError(ErrorCode.handle, `Tensor (${this.shape.join(", ")})`, "used after dispose()");
    }
    return this.#address;
  }

  /** Replaces the content by values in row-major order; waits until they are there. */
  write(values: ArrayLike<number>, stream: Stream = this.device.stream): void {
    check(
      values.length === this.size,
      "Tensor.write",
      () => `expected ${this.size} values for shape (${this.shape.join(", ")}), got ${values.length}`,
      ErrorCode.shape,
    );
    this.writeBytes(encodeElements(values, this.dtype), stream);
  }

  /** Replaces the content by raw bytes; waits until they are there. */
  writeBytes(bytes: Uint8Array, stream: Stream = this.device.stream): void {
    check(
      bytes.byteLength === this.byteLength,
      "Tensor.writeBytes",
      () => `expected ${this.byteLength} bytes, got ${bytes.byteLength}`,
      ErrorCode.shape,
    );
    this.device.native.uploadSync(stream.handle, this.address, bytes, bytes.byteLength);
  }

  /** The content as numbers; waits for the stream's work. i64 comes as Float64Array, bf16 and f16 as Float32Array. */
  read(stream: Stream = this.device.stream): Float32Array | Int32Array | Uint8Array | Float64Array {
    return decodeElements(this.readBytes(stream), this.dtype);
  }

  readBytes(stream: Stream = this.device.stream): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(new ArrayBuffer(this.byteLength));
    this.device.native.downloadSync(stream.handle, bytes, this.address, this.byteLength);
    return bytes;
  }

  /** As readBytes(), without blocking the event loop. */
  async readBytesAsync(stream: Stream = this.device.stream): Promise<Uint8Array<ArrayBuffer>> {
    using pinned = new PinnedBuffer(this.device, this.byteLength);
    using event = new Event(this.device);
    this.device.native.copyToHost(stream.handle, pinned.address, this.address, this.byteLength);
    event.record(stream);
    await event.done();
    stream.query(); // reports an error of the work before the copy
    return pinned.bytes.slice();
  }

  /** Copies another tensor of the same shape and dtype, on the device. */
  copyFrom(source: Tensor, stream: Stream = this.device.stream): void {
    check(
      source.dtype === this.dtype && source.shape.join() === this.shape.join(),
      "Tensor.copyFrom",
      () => `expected ${this.dtype} (${this.shape.join(", ")}), got ${source.dtype} (${source.shape.join(", ")})`,
      ErrorCode.shape,
    );
    this.device.native.copy(stream.handle, this.address, source.address, this.byteLength);
  }

  dispose(): void {
    const address = this.#address;
    if (address === 0) return;
    this.#address = 0;
    if (!this.#owned) return;
    unwatchLeak(this);
    this.device.free(address);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Fills a new tensor; frees it where that fails. */
function initialised(tensor: Tensor, fill: (tensor: Tensor) => void): Tensor {
  try {
    fill(tensor);
    return tensor;
  } catch (error) {
    tensor.dispose();
    throw error;
  }
}

export function checkShape(shape: readonly number[], op: string): void {
  for (const size of shape) {
    check(
      Number.isSafeInteger(size) && size > 0,
      op,
      () => `expected positive sizes, got (${shape.join(", ")})`,
      ErrorCode.shape,
    );
  }
}

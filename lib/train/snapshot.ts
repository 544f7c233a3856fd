import type { CheckpointTensorData, StoredDType } from "../formats";
import { align, type Device, Event, PinnedBuffer, type Tensor } from "../tensor";

/**
 * Copies of tensors in pinned host memory, taken between two steps while more steps are enqueued behind: the device pauses for the
 * copies alone, and what is written from them is as it was at that point. One snapshot at a time; its memory is kept for all.
 */
export class Snapshot implements Disposable {
  readonly #device: Device;
  readonly #tensors: ReadonlyMap<string, Tensor>;
  readonly #offsets: ReadonlyMap<string, number>;
  readonly #event: Event;
  readonly #pinned: PinnedBuffer;

  constructor(device: Device, tensors: Iterable<[string, Tensor]>) {
    this.#device = device;
    this.#tensors = new Map(tensors);
    const offsets = new Map<string, number>();
    let at = 0;
    for (const [name, { byteLength }] of this.#tensors) {
      offsets.set(name, at);
      at += align(byteLength);
    }
    this.#offsets = offsets;
    // Before training starts: pinning takes longer than the steps that are enqueued ahead.
    this.#pinned = new PinnedBuffer(device, Math.max(1, at));
    this.#event = new Event(device);
  }

  /** Enqueues the copies behind the work enqueued so far. */
  take(): void {
    const { native, stream } = this.#device;
    for (const [name, { address, byteLength }] of this.#tensors) {
      const to = this.#pinned.address + (this.#offsets.get(name) as number);
      native.copyToHost(stream.handle, to, address, byteLength);
    }
    this.#event.record(stream);
  }

  /** Resolves when the copies are there. */
  async taken(): Promise<void> {
    await this.#event.done();
    this.#device.stream.query(); // reports an error of the work before the copies
  }

  /** A tensor's copy, valid until the next take(). */
  bytes(name: string): Uint8Array<ArrayBuffer> {
    const offset = this.#offsets.get(name) as number;
    const { byteLength } = this.#tensors.get(name) as Tensor;
    return this.#pinned.bytes.subarray(offset, offset + byteLength);
  }

  /** The copies of all tensors but some, as a checkpoint has them. */
  *data(without: ReadonlySet<string>): Generator<CheckpointTensorData> {
    for (const [name, { dtype, shape }] of this.#tensors) {
      if (without.has(name)) continue;
      yield { name, dtype: dtype as StoredDType, shape, data: this.bytes(name) };
    }
  }

  dispose(): void {
    this.#event.dispose();
    this.#pinned.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

import { type Address, check, DlfsError, ErrorCode } from "../native";
import type { Device } from "./device";
import { unwatchLeak, watchLeak } from "./leaks";

export const ALIGNMENT = 256;

export function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

/** One block of device memory that is handed out from its start and freed as a whole. */
export class Arena implements Disposable {
  readonly address: Address;
  #used = 0;
  #live = true;

  /** @param byteLength at least 1; rounded up to 256. */
  constructor(
    readonly device: Device,
    readonly byteLength: number,
  ) {
    this.address = device.malloc(align(Math.max(1, byteLength)));
    watchLeak(this, `Arena of ${byteLength} bytes`);
  }

  get used(): number {
    return this.#used;
  }

  /** The address of the next `bytes` bytes, 256-byte aligned. */
  take(bytes: number): Address {
    const offset = this.#used;
    check(
      offset + align(bytes) <= align(this.byteLength),
      "Arena",
      () => `${bytes} bytes wanted, ${this.byteLength - offset} of ${this.byteLength} left`,
      ErrorCode.memory,
    );
    this.#used = offset + align(bytes);
    return this.at(offset);
  }

  /** The address `offset` bytes from the start. */
  at(offset: number): Address {
    if (!this.#live) throw new DlfsError(ErrorCode.handle, "Arena", "used after dispose()");
    return this.address + offset;
  }

  dispose(): void {
    if (!this.#live) return;
    this.#live = false;
    unwatchLeak(this);
    this.device.free(this.address);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

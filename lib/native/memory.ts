import { type Pointer, toArrayBuffer } from "bun:ffi";
import type { Address } from "./symbols.generated";

/**
 * The pinned host memory at an address (dlfs_host_malloc) as an ArrayBuffer. The memory stays native: the garbage collector
 * neither moves nor frees it, and the buffer must not be used once it has been freed (PinnedBuffer keeps that rule).
 */
export function borrowHostMemory(address: Address, byteLength: number): ArrayBuffer {
  return toArrayBuffer(address as Pointer, 0, byteLength);
}

import { check, constants, cString } from "../native";
import type { Device } from "./device";
import { dtypeCode } from "./dtype";
import { NativeObject, outHandle } from "./native-object";
import { type Stream, until } from "./stream";
import type { Tensor } from "./tensor";

export interface CommunicatorOptions {
  /** This process's place, from 0 to world - 1. */
  rank: number;
  /** How many processes take part. */
  world: number;
  /** The address by which the others reach this process (CPU). Default: the one that the machine's name stands for. */
  host?: string;
  /** A collective that takes longer fails, on the CPU. Default 30 minutes: who watches the ranks ends it sooner. */
  timeoutMs?: number;
}

/** What a rank's device has come to. */
export interface CommunicatorProgress {
  /** Collectives begun. */
  begun: number;
  /** Name of the last one; null before the first. */
  collective: string | null;
}

/**
 * Collective operations of several processes, each with a device of its own: NCCL on CUDA, Gloo on the CPU. All ranks must call
 * the same ones in the same order. They run beside the stream's work, behind what the stream was given before, and can be captured;
 * what they read and write may be touched again behind wait(). The device must support "collectives".
 */
export class Communicator extends NativeObject {
  readonly rank: number;
  readonly world: number;
  /** The collectives' names, by their labels. */
  readonly names: string[] = [];
  readonly #labels = new Map<string, number>();
  #connected = false;

  constructor(
    readonly device: Device,
    { rank, world, host = "", timeoutMs = 30 * 60_000 }: CommunicatorOptions,
  ) {
    const out = outHandle();
    device.native.commCreate(device.handle, out.view, rank, world, cString(host), timeoutMs);
    super(out.value, `Communicator of rank ${rank}`, (handle) => {
      // One that never connected waits for nobody, and has nobody who takes leave.
      if (!this.#connected) device.native.commAbort(handle);
      device.native.commDestroy(handle);
    });
    this.rank = rank;
    this.world = world;
  }

  /** What the other ranks must be told to reach this one. */
  address(): Uint8Array {
    const bytes = new Uint8Array(128 + 256 * this.world);
    const size = outHandle();
    this.device.native.commAddress(this.handle, bytes, bytes.byteLength, size.view);
    return bytes.slice(0, size.value);
  }

  /** Connects to all ranks, given what address() said on each; resolves when that is done, and throws where it fails. */
  async connect(addresses: readonly Uint8Array[]): Promise<void> {
    check(
      addresses.length === this.world,
      "Communicator",
      () => `expected ${this.world} addresses, got ${addresses.length}`,
    );
    // A byte more: an empty view is none.
    const all = new Uint8Array(addresses.reduce((sum, { byteLength }) => sum + byteLength, 0) + 1);
    let at = 0;
    for (const address of addresses) {
      all.set(address, at);
      at += address.byteLength;
    }
    const sizes = BigInt64Array.from(addresses, ({ byteLength }) => BigInt(byteLength));
    this.device.native.commConnect(this.handle, all, sizes);
    await until(() => this.device.native.commQuery(this.handle) === 0);
    this.#connected = true;
  }

  /** Throws where a collective has failed. */
  check(): void {
    this.device.native.commQuery(this.handle);
  }

  /** The number that stands for a collective's name, to those who read progress. */
  labelOf(name: string): number {
    let label = this.#labels.get(name);
    if (label === undefined) {
      label = this.names.length;
      this.names.push(name);
      this.#labels.set(name, label);
    }
    return label;
  }

  /** Every element becomes its sum, or average, over all ranks: the same bytes on all. The tensors are of one floating dtype. */
  allReduce(stream: Stream, tensors: readonly Tensor[], name: string, operation: "sum" | "average" = "sum"): void {
    const dtype = tensors[0]?.dtype ?? "f32";
    check(
      tensors.length > 0 && tensors.every((tensor) => tensor.dtype === dtype),
      "allReduce",
      () => `expected tensors of one dtype, got ${tensors.map((tensor) => tensor.dtype).join(", ") || "none"}`,
    );
    this.device.native.commAllReduce(
      stream.handle,
      this.handle,
      BigInt64Array.from(tensors, ({ address }) => BigInt(address)),
      BigInt64Array.from(tensors, ({ size }) => BigInt(size)),
      tensors.length,
      dtypeCode(dtype),
      operation === "sum" ? constants.REDUCE_SUM : constants.REDUCE_AVERAGE,
      this.labelOf(name),
    );
  }

  /** Every tensor becomes a copy of rank root's. */
  broadcast(stream: Stream, tensors: readonly Tensor[], name: string, root = 0): void {
    this.device.native.commBroadcast(
      stream.handle,
      this.handle,
      BigInt64Array.from(tensors, ({ address }) => BigInt(address)),
      BigInt64Array.from(tensors, ({ byteLength }) => BigInt(byteLength)),
      tensors.length,
      root,
      this.labelOf(name),
    );
  }

  /** `out` (world, ...) becomes all ranks' `input`, rank 0's first. */
  allGather(stream: Stream, out: Tensor, input: Tensor, name: string): void {
    check(
      out.byteLength === this.world * input.byteLength,
      "allGather",
      () => `expected room for ${this.world} times ${input.byteLength} bytes, got ${out.byteLength}`,
    );
    this.device.native.commAllGather(
      stream.handle,
      this.handle,
      BigInt64Array.of(BigInt(out.address)),
      BigInt64Array.of(BigInt(input.address)),
      BigInt64Array.of(BigInt(input.byteLength)),
      1,
      this.labelOf(name),
    );
  }

  /** Is done once all ranks have come to it. */
  barrier(stream: Stream, name: string): void {
    this.device.native.commBarrier(stream.handle, this.handle, this.labelOf(name));
  }

  /** Later work of the stream waits for the collectives enqueued so far. */
  wait(stream: Stream): void {
    this.device.native.commWait(stream.handle, this.handle);
  }

  progress(): CommunicatorProgress {
    const values = new BigInt64Array(2);
    this.device.native.commProgress(this.handle, values);
    const [begun, label] = Array.from(values, Number) as [number, number];
    return { begun, collective: label < 0 ? null : (this.names[label] ?? null) };
  }

  /** Ends the collectives that wait for other ranks, with an error; there can be no more. */
  abort(): void {
    this.device.native.commAbort(this.handle);
    this.#connected = false;
  }
}

import {
  type Address,
  type BackendName,
  check,
  chooseBackend,
  cString,
  type DeviceInfo,
  DlfsError,
  ErrorCode,
  listDevices,
  loadLibrary,
  type NativeFunctions,
} from "../native";
import { NativeObject, outHandle } from "./native-object";
import { Stream } from "./stream";

export interface DeviceOptions {
  /** "cuda" or "cpu"; default: DLFS_BACKEND, else CUDA when it finds a device, else the CPU. */
  backend?: string;
  /** Which device of the backend. Default 0. */
  index?: number;
  /** Only algorithms that give the same bytes each run. Default false. */
  deterministic?: boolean;
  /** fp32 convolutions may round their inputs to TF32, where the device has it (the precision "tf32"). Default false. */
  tf32?: boolean;
  /** Compute threads of the CPU backend; 0 uses all cores. */
  threads?: number;
  /** The most bytes of device memory that malloc() gives out at one time. Default: what the device has. */
  memoryLimit?: number;
  /** Whether graphs pad the channels of convolutions (the feature "conv.pad8"). Default: where the device gains by it. */
  padChannels?: boolean;
}

/** Features that dlfs_supports answers. */
export type Feature =
  | "bf16"
  | "f16"
  | "tf32"
  | "conv.bf16"
  | "conv.f16"
  | "conv.epilogue"
  | "conv.f8"
  | "conv.i8"
  | "conv.pad8"
  | "conv.moments.f32"
  | "conv.moments.bf16"
  | "conv.moments.f16"
  | "graph"
  | "graph.lanes"
  | "jpeg.decode"
  | "jpeg.encode"
  | "jpeg.cmyk"
  | "jpeg.hardware"
  | "png.decode"
  | "webp.decode"
  | "collectives";

/** Bytes of device memory; `free` and `total` are within the device's `memoryLimit`. */
export interface MemoryInfo {
  free: number;
  total: number;
  allocated: number;
  peak: number;
}

let announced = false;

/** One GPU, or the CPU: where tensors live and programs run. Everything created from it must be disposed of before it. */
export class Device extends NativeObject {
  readonly backend: BackendName;
  readonly info: DeviceInfo;
  readonly native: NativeFunctions;
  readonly deterministic: boolean;
  readonly tf32: boolean;
  /** Why this backend was chosen. */
  readonly reason: string;
  /** The stream that work goes to unless another is given. */
  readonly stream: Stream;
  readonly #memoryLimit: number;
  readonly #dependents: (() => void)[] = [];
  readonly #lanes: Stream[] = [];

  /** Opens a device. `log` receives one line that names it, once per process. */
  constructor(options: DeviceOptions = {}, log?: (line: string) => void) {
    const { name, reason } = chooseBackend(options.backend);
    const library = loadLibrary(name);
    const index = options.index ?? 0;
    const devices = listDevices(library);
    const info = devices[index];
    if (!info) {
      throw new DlfsError(
        ErrorCode.argument,
        `backend ${name}`,
        `expected a device index below ${devices.length}, got ${index}`,
      );
    }
    const out = outHandle();
    library.functions.contextCreate(out.view, index);
    super(out.value, `Device ${name}:${index}`, (handle) => library.functions.contextDestroy(handle));
    this.backend = name;
    this.info = info;
    this.native = library.functions;
    this.reason = reason;
    this.deterministic = options.deterministic ?? false;
    this.tf32 = options.tf32 ?? false;
    this.#memoryLimit = options.memoryLimit ?? Number.POSITIVE_INFINITY;
    try {
      check(this.#memoryLimit >= 0, "memoryLimit", () => `expected bytes from 0, got ${options.memoryLimit}`);
      this.setOption("deterministic", this.deterministic ? 1 : 0);
      this.setOption("tf32", this.tf32 ? 1 : 0);
      if (options.threads !== undefined) this.setOption("threads", options.threads);
      if (options.padChannels !== undefined) this.setOption("conv.pad8", options.padChannels ? 1 : 0);
      this.stream = new Stream(this);
    } catch (error) {
      super.dispose();
      throw error;
    }
    if (log && !announced) {
      announced = true;
      log(`backend: ${name} (${reason}), ${info.name}`);
    }
  }

  private setOption(name: string, value: number): void {
    this.native.contextOption(this.handle, cString(name), value);
  }

  /** Whether this device has a feature. */
  supports(feature: Feature): boolean {
    const out = new Int32Array(1);
    this.native.supports(this.handle, out, cString(feature));
    return out[0] === 1;
  }

  memory(): MemoryInfo {
    const values = new BigInt64Array(4);
    this.native.memoryInfo(this.handle, values);
    const [free, total, allocated, peak] = Array.from(values, Number) as [number, number, number, number];
    const limit = this.#memoryLimit;
    return { free: Math.max(0, Math.min(free, limit - allocated)), total: Math.min(total, limit), allocated, peak };
  }

  /** Allocates device memory, 256-byte aligned; what holds it must call free(). Tensor and Arena are the usual owners. */
  malloc(bytes: number): Address {
    if (this.#memoryLimit !== Number.POSITIVE_INFINITY) {
      const { allocated } = this.memory();
      check(
        allocated + bytes <= this.#memoryLimit,
        "Device.malloc",
        () => `asked for ${bytes} bytes, ${allocated} are in use and the memory limit is ${this.#memoryLimit}`,
        ErrorCode.memory,
      );
    }
    const out = outHandle();
    this.native.malloc(this.handle, out.view, bytes);
    return out.value;
  }

  free(address: Address): void {
    this.native.free(this.handle, address);
  }

  /** Further streams, from 1 on, that captured programs are spread over; the device owns them. */
  lane(index: number): Stream {
    while (this.#lanes.length < index) this.#lanes.push(new Stream(this));
    return this.#lanes[index - 1] as Stream;
  }

  /** Releases something that belongs to the device just before the device itself goes. */
  onDispose(release: () => void): void {
    this.#dependents.push(release);
  }

  override dispose(): void {
    if (this.disposed) return;
    this.stream.synchronize();
    for (const release of this.#dependents.splice(0).reverse()) release();
    for (const stream of this.#lanes.splice(0)) stream.dispose();
    this.stream.dispose();
    super.dispose();
  }
}

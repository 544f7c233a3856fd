/**
 * The device that tests run on: the backend that DLFS_BACKEND names, else the CPU, so that a test run means the same on
 * every machine. Opened once per process and kept to its end (a second context on a GPU costs half a second).
 */
import { listDevices, loadLibrary } from "../../lib/native";
import { Device, type DeviceOptions, type DType, type Feature } from "../../lib/tensor";

// Tests say so where they tune; the others' results must not depend on what was measured.
process.env.DLFS_TUNE_MS ??= "0";

/** Under a global symbol, because test files may each have their own copy of this module. */
const shared = Symbol.for("dlfs.tests.devices");
const globals = globalThis as typeof globalThis & { [shared]?: Map<string, Device> };
globals[shared] ??= new Map();
const devices: Map<string, Device> = globals[shared];

/** The backend under test. */
export const backend: string = process.env.DLFS_BACKEND ?? "cpu";

/** The test process's device with these options. Not to be disposed of. */
export function testDevice(options: Omit<DeviceOptions, "backend"> = {}): Device {
  const key = JSON.stringify(options);
  let device = devices.get(key);
  if (!device) {
    device = new Device({ ...options, backend });
    devices.set(key, device);
  }
  return device;
}

/** How many ranks can train together in tests: as many as there are GPUs, up to 4; processes on the CPU are as many as wanted. */
export const mostRanks: number = backend === "cuda" ? Math.min(4, listDevices(loadLibrary("cuda")).length) : 4;

/** Why the device cannot run operations on a dtype or needing features; null where it can. */
export function missing(device: Device, dtype: DType, features: readonly Feature[] = []): string | null {
  const needed: Feature[] = dtype === "bf16" || dtype === "f16" ? [dtype, ...features] : [...features];
  const absent = needed.filter((feature) => !device.supports(feature));
  return absent.length > 0 ? `${device.backend} device ${device.info.name} lacks ${absent.join(", ")}` : null;
}

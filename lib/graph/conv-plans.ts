import { cString, fromCString } from "../native";
import { type Device, outHandle } from "../tensor";

/** A planned convolution of a device; shared by all programs with the same shape, dtype and fusion. */
export interface ConvPlan {
  readonly handle: number;
  readonly workspace: number;
}

/** Arguments of dlfs_conv_create from `direction` on, in order. */
export type ConvKey = [
  direction: number,
  dtype: number,
  n: number,
  h: number,
  w: number,
  c: number,
  k: number,
  r: number,
  s: number,
  strideH: number,
  strideW: number,
  padH: number,
  padW: number,
  dilationH: number,
  dilationW: number,
  groups: number,
  flags: number,
  activation: number,
];

interface Cache {
  plans: Map<string, ConvPlan>;
  /** Algorithms to use instead of the heuristic's choice, by key: from tuning or a checkpoint. */
  picks: Map<string, string>;
  tuneMs: number;
  onTune?: (done: number) => void;
}

const caches = new WeakMap<Device, Cache>();

function cacheOf(device: Device): Cache {
  const known = caches.get(device);
  if (known) return known;
  const cache: Cache = { plans: new Map(), picks: new Map(), tuneMs: 0 };
  caches.set(device, cache);
  device.onDispose(() => {
    for (const { handle } of cache.plans.values()) device.native.convDestroy(handle);
  });
  return cache;
}

/** The device's plan for a convolution, made on first use: with the pick known for it, else tuned, else by heuristics. */
export function convPlan(device: Device, key: ConvKey): ConvPlan {
  const cache = cacheOf(device);
  const name = key.join(",");
  const known = cache.plans.get(name);
  if (known) return known;
  const pick = cache.picks.get(name) ?? "";
  const out = outHandle();
  device.native.convCreate(device.handle, out.view, cString(pick), ...key);
  const handle = out.value;
  if (!pick && cache.tuneMs > 0) {
    device.native.convTuneSync(device.stream.handle, handle, cache.tuneMs);
    cache.onTune?.(cache.plans.size + 1);
  }
  const bytes = outHandle();
  device.native.convWorkspace(handle, bytes.view);
  const plan = { handle, workspace: bytes.value };
  cache.plans.set(name, plan);
  return plan;
}

/** How plans of this device are chosen from now on: by timing the candidates for `ms` each (0: by heuristics). */
export function tuneConvolutions(device: Device, ms: number, onTune?: (done: number) => void): void {
  Object.assign(cacheOf(device), { tuneMs: ms, onTune });
}

/** The algorithms in use, as "key=pick" lines that restoreConvPicks takes: what a checkpoint stores. */
export function convPicks(device: Device): string[] {
  const text = new Uint8Array(256);
  return [...cacheOf(device).plans].map(([name, { handle }]) => {
    device.native.convPick(handle, text, text.byteLength);
    return `${name}=${fromCString(text)}`;
  });
}

/** Uses stored algorithms for convolutions planned from now on. */
export function restoreConvPicks(device: Device, picks: readonly string[]): void {
  const cache = cacheOf(device);
  for (const line of picks) {
    const split = line.indexOf("=");
    if (split > 0) cache.picks.set(line.slice(0, split), line.slice(split + 1));
  }
}

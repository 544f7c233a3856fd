/**
 * Finds, checks and opens the native libraries. This folder is the only one that imports bun:ffi; what leaves it are plain
 * functions on numbers and views (NativeFunctions). Opening is lazy: nothing is loaded by importing the package.
 *
 * Rules kept here (they hold for bun:ffi on Bun 1.4): views are passed as `buffer` arguments and never kept as pointers,
 * arguments are validated because the FFI hardly checks them, a library is never closed.
 */

import { dlopen } from "bun:ffi";
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { DlfsError, ErrorCode } from "./error";
import { argumentNames, constants, headerHash, type NativeFunctions, symbols } from "./symbols.generated";

export type BackendName = "cpu" | "cuda";
export const backendNames: readonly BackendName[] = ["cuda", "cpu"];

/** One opened native library. */
export interface NativeLibrary {
  readonly name: BackendName;
  readonly path: string;
  /** "key=value" lines of dlfs_build_info, without backend and header: libraries and their versions. */
  readonly versions: string;
  readonly functions: NativeFunctions;
}

/** What was found when looking for one backend; `tried` lists the paths in order. */
export interface BackendProbe {
  name: BackendName;
  path: string | null;
  tried: string[];
  status: "ok" | "missing" | "stale" | "error";
  message: string;
  versions: string;
  devices: DeviceInfo[];
}

/** A device of a backend: `memoryBytes` in total, `units` multiprocessors or CPU threads. */
export interface DeviceInfo {
  index: number;
  name: string;
  memoryBytes: number;
  units: number;
  computeCapability: number;
}

const packageRoot = fileURLToPath(new URL("../../", import.meta.url));

/** Absolute paths where a backend's library may be: DLFS_NATIVE_PATH (a folder), then the package's build folder. */
function candidatePaths(name: BackendName): string[] {
  const file = `libdlfs_${name}.so`;
  const folders = process.env.DLFS_NATIVE_PATH ? [resolve(process.env.DLFS_NATIVE_PATH)] : [`${packageRoot}build`];
  return folders.map((folder) => `${folder}/${file}`);
}

const text = new TextDecoder();
const encoder = new TextEncoder();

/** A NUL-terminated copy of a string, for `const char *` arguments. */
export function cString(value: string): Uint8Array {
  return encoder.encode(`${value}\0`);
}

/** The text up to the first NUL of a buffer that native code filled. */
export function fromCString(buffer: Uint8Array): string {
  const end = buffer.indexOf(0);
  return text.decode(end < 0 ? buffer : buffer.subarray(0, end));
}

type FfiKind = "i32" | "i64" | "f64" | "buffer" | "ptr";

function describe(value: unknown): string {
  return ArrayBuffer.isView(value) ? value.constructor.name : String(value);
}

/** True when a value may be passed as an argument of this kind. */
function accepts(kind: FfiKind, value: unknown): boolean {
  switch (kind) {
    case "i32":
      return typeof value === "number" && (value | 0) === value;
    case "i64":
      return Number.isSafeInteger(value);
    case "f64":
      return typeof value === "number" && !Number.isNaN(value);
    case "ptr":
      return value === null || (Number.isSafeInteger(value) && (value as number) > 0);
    case "buffer":
      // A transferred (detached) view would arrive as NULL, an empty one as a junk address.
      return ArrayBuffer.isView(value) && value.byteLength > 0;
  }
}

const expectations: Record<FfiKind, string> = {
  i32: "a 32-bit integer",
  i64: "a safe integer",
  f64: "a number",
  ptr: "a device address or null",
  buffer: "a view of at least one byte",
};

/** "dlfs_conv_create" -> "convCreate". */
function functionName(symbol: string): string {
  return symbol.slice("dlfs_".length).replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

type RawFunction = (...args: unknown[]) => number;

/** Wraps one symbol: checks the arguments' types and ranges, calls, turns a negative status into DlfsError. */
function checked(symbol: string, raw: RawFunction, kinds: readonly FfiKind[], lastError: () => string): RawFunction {
  const names = argumentNames[symbol] ?? [];
  return (...args) => {
    if (args.length !== kinds.length) {
      throw new DlfsError(ErrorCode.argument, symbol, `expected ${kinds.length} arguments, got ${args.length}`);
    }
    for (let i = 0; i < kinds.length; ++i) {
      const kind = kinds[i] as FfiKind;
      if (!accepts(kind, args[i])) {
        throw new DlfsError(
          ErrorCode.argument,
          symbol,
          `argument ${names[i]}: expected ${expectations[kind]}, got ${describe(args[i])}`,
        );
      }
    }
    const status = raw(...args);
    if (status < 0) {
      const message = lastError();
      const colon = message.indexOf(": ");
      throw new DlfsError(
        status,
        colon > 0 ? message.slice(0, colon) : symbol,
        colon > 0 ? message.slice(colon + 2) : message,
      );
    }
    return status;
  };
}

function wrap(raw: Record<string, (...args: never[]) => unknown>): NativeFunctions {
  const lastError = () => String((raw.dlfs_last_error as () => unknown)());
  const functions: Record<string, RawFunction> = {};
  for (const [symbol, { args, returns }] of Object.entries(symbols)) {
    if (returns === "cstring" || symbol === "dlfs_abi_version") continue;
    functions[functionName(symbol)] = checked(symbol, raw[symbol] as unknown as RawFunction, args, lastError);
  }
  return functions as unknown as NativeFunctions;
}

class StaleLibrary extends DlfsError {}

function openLibrary(name: BackendName, path: string): NativeLibrary {
  let raw: Record<string, (...args: never[]) => unknown>;
  try {
    raw = dlopen(path, symbols).symbols as never;
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    if (/Symbol "/.test(reason)) {
      throw new StaleLibrary(ErrorCode.internal, path, `${reason}; rebuild it with \`bash scripts/build.sh ${name}\``);
    }
    const hint =
      name === "cuda"
        ? "the CUDA libraries it needs (libcudart, libcudnn, libnvjpeg, libcublasLt) must be on the loader's path, e.g. through LD_LIBRARY_PATH"
        : "libdnnl, libgomp, libjpeg and, where it was built with them, libpng, libwebp and libgloo must be installed (npm run setup does that)";
    throw new DlfsError(ErrorCode.io, path, `cannot be loaded: ${reason}; ${hint}`, { cause });
  }
  const abi = (raw.dlfs_abi_version as () => number)();
  const functions = wrap(raw);
  const info = new Uint8Array(4096);
  functions.buildInfo(info, info.byteLength);
  const lines = fromCString(info).trim().split("\n");
  const builtFrom = lines.find((line) => line.startsWith("header="))?.slice("header=".length);
  if (abi !== constants.ABI_VERSION || builtFrom !== headerHash) {
    throw new StaleLibrary(
      ErrorCode.internal,
      path,
      `was built from another dlfs.h (${builtFrom}, this package has ${headerHash}); rebuild it with \`bash scripts/build.sh ${name}\``,
    );
  }
  const versions = lines.filter((line) => !/^(header|backend)=/.test(line)).join(", ");
  return { name, path, versions, functions };
}

const opened = new Map<BackendName, NativeLibrary>();

/** Opens a backend's library, once per process. Throws DlfsError when it is missing, stale or cannot be loaded. */
export function loadLibrary(name: BackendName): NativeLibrary {
  const known = opened.get(name);
  if (known) return known;
  const tried = candidatePaths(name);
  const path = tried.find((candidate) => existsSync(candidate));
  if (!path) {
    throw new DlfsError(
      ErrorCode.io,
      `backend ${name}`,
      `no library found (looked for ${tried.join(", ")}); build it with \`bash scripts/build.sh ${name}\``,
    );
  }
  const library = openLibrary(name, path);
  opened.set(name, library);
  return library;
}

/** The devices that a library can use. */
export function listDevices(library: NativeLibrary): DeviceInfo[] {
  const count = new Int32Array(1);
  library.functions.deviceCount(count);
  return Array.from({ length: count[0] as number }, (_, index) => {
    const name = new Uint8Array(256);
    const values = new BigInt64Array(4);
    library.functions.deviceInfo(name, name.byteLength, values, index);
    const [memoryBytes, units, computeCapability] = Array.from(values, Number) as [number, number, number];
    return { index, name: fromCString(name), memoryBytes, units, computeCapability };
  });
}

function probe(name: BackendName): BackendProbe {
  const tried = candidatePaths(name);
  const path = tried.find((candidate) => existsSync(candidate)) ?? null;
  const result: BackendProbe = { name, path, tried, status: "missing", message: "", versions: "", devices: [] };
  if (!path) return { ...result, message: `not built; \`bash scripts/build.sh ${name}\` builds it` };
  try {
    const library = loadLibrary(name);
    return { ...result, status: "ok", versions: library.versions, devices: listDevices(library) };
  } catch (error) {
    const status = error instanceof StaleLibrary ? "stale" : "error";
    return { ...result, status, message: error instanceof Error ? error.message : String(error) };
  }
}

/** Looks at both backends without choosing one for the process: what `dlfs doctor` prints. */
export function probeBackends(): { probes: BackendProbe[]; chosen: BackendName | null; reason: string } {
  const probes = backendNames.map(probe);
  try {
    const { name, reason } = chooseBackend();
    return { probes, chosen: name, reason };
  } catch (error) {
    return { probes, chosen: null, reason: error instanceof Error ? error.message : String(error) };
  }
}

/**
 * The backend to use: the one asked for, else DLFS_BACKEND, else CUDA when its library loads and finds a device, else the
 * CPU. One that was asked for by name is used or fails; there is no silent fallback.
 */
export function chooseBackend(wanted?: string): { name: BackendName; reason: string } {
  const asked = wanted ?? process.env.DLFS_BACKEND;
  if (asked) {
    const source = wanted === undefined ? "DLFS_BACKEND" : "asked for";
    if (!backendNames.includes(asked as BackendName)) {
      throw new DlfsError(ErrorCode.argument, "backend", `expected one of ${backendNames.join(", ")}, got "${asked}"`);
    }
    const name = asked as BackendName;
    if (listDevices(loadLibrary(name)).length === 0) {
      throw new DlfsError(ErrorCode.unsupported, `backend ${name}`, "no device found (is the driver installed?)");
    }
    return { name, reason: `${source}` };
  }
  const cuda = probe("cuda");
  if (cuda.status === "ok" && cuda.devices.length > 0) return { name: "cuda", reason: "found a device" };
  const why =
    cuda.status === "ok" ? "CUDA found no device" : cuda.status === "missing" ? "no CUDA library built" : cuda.message;
  loadLibrary("cpu");
  return { name: "cpu", reason: why };
}

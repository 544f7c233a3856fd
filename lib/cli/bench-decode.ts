/** The decode bench of `dlfs bench`: its settings from the options, and what it prints. */
import { availableParallelism } from "node:os";
import {
  benchDecode,
  type DecodeRow,
  type DecodeSettings,
  decodePeerTable,
  decodeTable,
  decodeTitle,
  openDecodeSet,
  type PeerResult,
  type Precision,
  runDecodePeers,
} from "../bench";
import { ENGINE_SHARE } from "../data/encoded-images";
import type { Device } from "../tensor";
import { positiveInteger, UsageError } from "./arguments";

export interface DecodeArgs {
  images?: string;
  files?: string;
  batch?: string;
  threads?: string;
  hardware?: string;
  sweep?: boolean;
  repetitions?: string;
}

/** The value of --hardware; default what decoders take. 0 where the device has no JPEG engines. */
export function hardwareOf(device: Device, text = `${ENGINE_SHARE}`): number {
  const hardware = Number(text);
  if (!Number.isInteger(hardware) || hardware < 0 || hardware > 100 || text === "") {
    throw new UsageError(`--hardware: expected a share from 0 to 100 (per cent), got "${text}"`);
  }
  return device.supports("jpeg.hardware") ? hardware : 0;
}

/** What is given, else a GPU's usual work, or what a CPU does in a minute. */
export function decodeSettingsOf(
  args: DecodeArgs,
  device: Device,
  { size, precision }: { size: readonly [number, number]; precision: Precision },
): DecodeSettings {
  const cuda = device.backend === "cuda";
  const number = (name: "files" | "batch" | "threads" | "repetitions", otherwise: number): number =>
    args[name] === undefined ? otherwise : positiveInteger(name, args[name]);
  return {
    images: args.images,
    files: number("files", cuda ? 1024 : 256),
    batch: number("batch", 64),
    size,
    precision,
    // A GPU's engines leave the threads little to do.
    threads: number("threads", Math.max(1, availableParallelism() >> (device.supports("jpeg.hardware") ? 1 : 0))),
    hardware: hardwareOf(device, args.hardware),
    repetitions: number("repetitions", cuda ? 15 : 7),
    sweep: args.sweep ?? false,
  };
}

/** Times decoding, beside torchvision's where there is a Python that has it. */
export async function runDecode(
  device: Device,
  settings: DecodeSettings,
  python: string | undefined,
): Promise<{ rows: DecodeRow[]; peers: PeerResult[] }> {
  const set = await openDecodeSet(device, settings);
  console.log(`decode\n${decodeTitle(set)}`);
  const rows: DecodeRow[] = [];
  for await (const row of benchDecode(device, set, settings)) {
    rows.push(row);
    console.error(`decode: ${row.name}`);
  }
  for (const line of decodeTable(rows)) console.log(line);
  if (python === undefined) return { rows, peers: [] };
  const found = await runDecodePeers(python, device.backend, settings, set.paths, console.error);
  for (const line of ["", ...decodePeerTable(rows, found)]) console.log(line);
  return { rows, peers: [found] };
}

/** Results of benchmarks: as tables, as files, and beside those of an earlier run. */
import { readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import packageJson from "../../package.json";
import { check, DlfsError, ErrorCode, loadLibrary } from "../native";
import type { Device } from "../tensor";
import type { Ceilings, Precision, Timing } from "./measure";
import { milliseconds, share, table, teraflops } from "./table";

const FORMAT = "dlfs-bench 1";

/** One measured piece of work. */
export interface BenchRow extends Timing {
  /** Which bench: "train". */
  bench: string;
  /** What was run, with all that tells it from other rows of the bench. */
  name: string;
  /** Runs before the repetitions. */
  warmUp: number;
  /** Images that a run takes. */
  images?: number;
  /** Multiplications and additions of convolutions and linear maps. */
  flops?: number;
  /** See lib/bench/work.ts. */
  floorMs?: number;
  /** Device memory held for it: parameters, gradients, momentum, the program's arena, its input. */
  memoryBytes?: number;
}

/** What a result file holds. */
export interface BenchResult {
  format: string;
  date: string;
  /** Of the source checkout, with "+" where it has changes; null outside of one. */
  commit: string | null;
  command: string;
  device: { backend: string; name: string; computeCapability: number; memoryBytes: number; units: number };
  /** dlfs, Bun, the driver and the libraries. */
  versions: Record<string, string>;
  /** Model, batch, shapes, precision and the like. */
  settings: Record<string, unknown>;
  ceilings: Partial<Record<Precision, Ceilings>>;
  rows: BenchRow[];
  /** Those of other programs, beside the rows. */
  peers?: unknown[];
}

/** The commit of the source checkout that this file is in; "+" after it where files have changed. */
function commitHere(): string | null {
  const cwd = fileURLToPath(new URL("../../", import.meta.url));
  const git = (...args: string[]) => Bun.spawnSync(["git", ...args], { cwd, stderr: "ignore" });
  if (!Bun.which("git")) return null;
  const head = git("rev-parse", "HEAD");
  if (head.exitCode !== 0) return null;
  const changed = git("status", "--porcelain", "--untracked-files=no").stdout.length > 0;
  return head.stdout.toString().trim() + (changed ? "+" : "");
}

function driverVersion(): string | null {
  try {
    return (
      /Kernel Module.*?(\d+\.\d+(?:\.\d+)?)/.exec(readFileSync("/proc/driver/nvidia/version", "utf8"))?.[1] ?? null
    );
  } catch {
    return null;
  }
}

/** Rows with everything that says how they came about. */
export function benchResult(
  device: Device,
  fields: Pick<BenchResult, "command" | "settings" | "ceilings" | "rows" | "peers">,
): BenchResult {
  const { name, computeCapability, memoryBytes, units } = device.info;
  const libraries = loadLibrary(device.backend).versions.split(", ");
  const driver = device.backend === "cuda" ? driverVersion() : null;
  return {
    format: FORMAT,
    date: new Date().toISOString(),
    commit: commitHere(),
    device: { backend: device.backend, name, computeCapability, memoryBytes, units },
    versions: {
      dlfs: packageJson.version,
      bun: Bun.version,
      ...(driver ? { driver } : {}),
      ...Object.fromEntries(libraries.map((entry) => entry.split("=", 2) as [string, string])),
    },
    ...fields,
  };
}

export function writeBenchResult(path: string, result: BenchResult): void {
  try {
    writeFileSync(path, `${JSON.stringify(result, null, 1)}\n`);
  } catch (error) {
    throw new DlfsError(ErrorCode.io, path, `cannot be written: ${reason(error)} (folder ${dirname(path)})`);
  }
}

/** @throws DlfsError naming the file where it is missing or no result of `dlfs bench` */
export function readBenchResult(path: string): BenchResult {
  let result: Partial<BenchResult> | null;
  try {
    result = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new DlfsError(ErrorCode.io, path, `cannot be read: ${reason(error)}`);
  }
  check(
    result?.format === FORMAT && Array.isArray(result.rows),
    path,
    () => `format: expected "${FORMAT}", got ${JSON.stringify(result?.format)}`,
    ErrorCode.io,
  );
  return result as BenchResult;
}

/** Time, images a second, memory, and the shares of the ceiling and of the floor. */
export function resultTable(rows: readonly BenchRow[], ceilings: Ceilings): string[] {
  const cells = rows.map(({ name, ms, low, high, images, flops, floorMs, memoryBytes, repetitions, runs }) => [
    name,
    milliseconds(ms),
    `${milliseconds(low)} to ${milliseconds(high)}`,
    images === undefined ? "" : ((1000 * images) / ms).toFixed(1),
    memoryBytes === undefined ? "" : (memoryBytes / 2 ** 30).toFixed(2),
    teraflops(flops, ms),
    flops ? share(flops / ms / 1e6, ceilings.gflops) : "",
    floorMs === undefined ? "" : milliseconds(floorMs),
    share(floorMs, ms),
    runs === 1 ? String(repetitions) : `${repetitions} x ${runs}`,
  ]);
  return table(
    ["", "ms", "quartiles", "img/s", "GiB", "TFLOP/s", "of ceiling", "floor ms", "of floor", "median of"],
    cells,
  );
}

/** One row of two results. */
export interface BenchChange {
  bench: string;
  name: string;
  before: number;
  now: number;
  /** now / before - 1. */
  change: number;
  /** Whether the change is larger than what repetitions differ by. */
  beyondNoise: boolean;
}

/**
 * Rows that both results have. A change is beyond the noise where it is larger than 1 % and than the distance of the quartiles of
 * either row.
 */
export function compareResults(before: readonly BenchRow[], now: readonly BenchRow[]): BenchChange[] {
  const earlier = new Map(before.map((row) => [`${row.bench}\t${row.name}`, row]));
  return now.flatMap((row): BenchChange[] => {
    const old = earlier.get(`${row.bench}\t${row.name}`);
    if (!old) return [];
    const noise = Math.max(0.01 * old.ms, old.high - old.low, row.high - row.low);
    return [
      {
        bench: row.bench,
        name: row.name,
        before: old.ms,
        now: row.ms,
        change: row.ms / old.ms - 1,
        beyondNoise: Math.abs(row.ms - old.ms) > noise,
      },
    ];
  });
}

/** The regression table: what became slower and faster than in an earlier result, and what the two have not in common. */
export function comparisonTable(before: BenchResult, now: BenchResult): string[] {
  const changes = compareResults(before.rows, now.rows);
  const differing = (["device", "settings"] as const).filter((field) => !Bun.deepEquals(before[field], now[field]));
  const known = new Set(changes.map(({ bench, name }) => `${bench}\t${name}`));
  const only = (rows: readonly BenchRow[]) => rows.filter(({ bench, name }) => !known.has(`${bench}\t${name}`));
  const names = (rows: readonly BenchRow[]) => rows.map(({ bench, name }) => `${bench}: ${name}`).join("; ");
  const lines = [`compared with ${before.date}, commit ${before.commit?.slice(0, 12) ?? "unknown"}`];
  for (const field of differing) {
    lines.push(`not alike: ${field} was ${JSON.stringify(before[field])}, is ${JSON.stringify(now[field])}`);
  }
  const rows = changes.map(({ bench, name, before: then, now: ms, change, beyondNoise }) => [
    bench,
    name,
    milliseconds(then),
    milliseconds(ms),
    `${change > 0 ? "+" : ""}${(100 * change).toFixed(1)} %`,
    beyondNoise ? (change > 0 ? "SLOWER" : "faster") : "",
  ]);
  lines.push(...table(["bench", "", "ms before", "ms now", "change", ""], rows, 2));
  if (only(before.rows).length > 0) lines.push(`only before: ${names(only(before.rows))}`);
  if (only(now.rows).length > 0) lines.push(`only now: ${names(only(now.rows))}`);
  return lines;
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

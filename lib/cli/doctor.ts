/** `dlfs doctor`: what was found on this machine, what was not, where it was looked for and how to get it. */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import packageJson from "../../package.json";
import { type BackendProbe, type DeviceInfo, probeBackends } from "../native/index";
import type { Verb } from "./main";

/** Everything that the report says. */
export interface Findings {
  readonly bun: { version: string; path: string };
  readonly probes: readonly BackendProbe[];
  readonly chosen: string | null;
  readonly reason: string;
  /**
   * Lines of scripts/find-cuda.sh (`found: ...`, `missing: ...`, `searched: ...`, `to get it: ...`); empty where it has not been
   * run.
   */
  readonly cudaSearch: readonly string[];
}

function formatDevice({ index, name, memoryBytes, units, computeCapability }: DeviceInfo): string {
  const memory = `${(memoryBytes / 2 ** 30).toFixed(1)} GiB`;
  const compute =
    computeCapability > 0
      ? `compute capability ${Math.floor(computeCapability / 10)}.${computeCapability % 10}, ${units} multiprocessors`
      : `${units} threads`;
  return `device ${index}: ${name}, ${memory}, ${compute}`;
}

/** The lines about one library: the first says whether it is there, the others are details. */
function describeLibrary(probe: BackendProbe, cudaSearch: readonly string[]): string[] {
  const { status, path, tried, message, versions, devices } = probe;
  switch (status) {
    case "ok":
      return [
        String(path),
        ...(versions ? [versions] : []),
        ...(devices.length > 0
          ? devices.map(formatDevice)
          : ["no device found (nvidia-smi says whether the driver sees one)"]),
      ];
    case "missing":
      return [
        "not found",
        ...tried.map((place) => `looked for ${place}`),
        ...(message ? [message] : []),
        ...(probe.name === "cuda" ? cudaSearch : []),
      ];
    case "stale":
      return [`${path} (stale)`, message];
    case "error":
      return [`${path} (cannot be used)`, message];
  }
}

/** The report as text: a label column, then details. */
export function formatFindings({ bun, probes, chosen, reason, cudaSearch }: Findings): string {
  const required = packageJson.engines.bun.replace(/^>=/, "");
  const bunNote = Bun.semver.satisfies(bun.version, packageJson.engines.bun) ? "" : ` (too old: ${required} is needed)`;
  const sections: [string, string[]][] = [
    ["dlfs", [packageJson.version]],
    ["bun", [`${bun.version}${bunNote}`, bun.path]],
    ...probes.map((probe): [string, string[]] => [probe.name, describeLibrary(probe, cudaSearch)]),
    ["backend", [chosen === null ? `none: ${reason}` : `${chosen}: ${reason}`]],
  ];
  const width = Math.max(...sections.map(([label]) => label.length)) + 2;
  return sections
    .flatMap(([label, lines]) => lines.map((line, i) => `${(i === 0 ? label : "").padEnd(width)}${line}`))
    .join("\n");
}

/** Asks the build's own search for CUDA what is there, in a source checkout. */
function searchCuda(): string[] {
  const script = fileURLToPath(new URL("../../scripts/find-cuda.sh", import.meta.url));
  if (!existsSync(script) || !Bun.which("bash")) return [];
  const { stdout } = Bun.spawnSync(["bash", script], { stderr: "ignore" });
  return stdout.toString().trim().split("\n").filter(Boolean);
}

const help = `dlfs doctor: prints Bun, the native libraries with their versions, the devices, and the backend that is used.
For what was not found, it prints where it was looked for and how to get it. Exits with 1 when no backend can be used.

Usage: dlfs doctor

Environment:
  DLFS_BACKEND      cpu or cuda: the backend to use
  DLFS_NATIVE_PATH  the folder of the native libraries, instead of build/`;

export const verb: Verb = {
  help,
  run(args) {
    parseArgs({ args, options: {}, strict: true, allowPositionals: false });
    const { probes, chosen, reason } = probeBackends();
    const needsSearch = probes.some(({ name, status }) => name === "cuda" && status === "missing");
    const bun = { version: Bun.version, path: process.execPath };
    console.log(formatFindings({ bun, probes, chosen, reason, cudaSearch: needsSearch ? searchCuda() : [] }));
    return chosen === null ? 1 : 0;
  },
};

/** `dlfs launch`: runs a program as several ranks that train together. */
import { parseArgs } from "node:util";
import { launch, parseAddress } from "../distributed";
import { chooseBackend, DlfsError, listDevices, loadLibrary } from "../native";
import { positiveInteger, UsageError } from "./arguments";
import type { Verb } from "./main";

const help = `Runs a program as several processes, ranks, that train together: one for each GPU of this machine, or several on the CPU.

Usage: dlfs launch [options] -- SCRIPT [arguments]

SCRIPT ending in .ts or .js is run by Bun, anything else as a program.

  --gpus N            processes on this machine; default: as many as there are GPUs. On the CPU: any number
  --nodes N           machines, each of which runs this command with the same options; default 1
  --node-rank N       which of them this is, from 0
  --rendezvous HOST:PORT
                      where rank 0 listens, for several machines: the first one's address and a free port of it; default: a free port
                      of this machine
  --max-restarts N    start all ranks again when one fails, at most so often; a training goes on from its last checkpoint; default 0
  --min-gpus N        restart without the GPUs of ranks that failed, while so many are left; default: always with all

When a rank fails, all end within half a minute. Their environment is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, ...), besides
DLFS_RENDEZVOUS. torchrun, srun and mpirun start a training just as well: see docs/distributed.md.`;

const options = {
  gpus: { type: "string" },
  nodes: { type: "string" },
  "node-rank": { type: "string" },
  rendezvous: { type: "string" },
  "max-restarts": { type: "string" },
  "min-gpus": { type: "string" },
} as const;

function count(name: string, text: string): number {
  return text === "0" ? 0 : positiveInteger(name, text);
}

function address(text: string): { host: string; port: number } {
  try {
    return parseAddress(text);
  } catch (error) {
    if (error instanceof DlfsError) throw new UsageError(`--rendezvous: expected HOST:PORT, got "${text}"`);
    throw error;
  }
}

/** As many as there are GPUs. */
function devices(): number {
  const { name } = chooseBackend();
  if (name === "cpu") throw new UsageError("--gpus: needed on the CPU: how many processes are to train together?");
  return listDevices(loadLibrary(name)).length;
}

type LaunchValues = { -readonly [K in keyof typeof options]?: string };

/** The options of this verb among another's arguments, and the rest; null where there is no --gpus. */
export function takeLaunchOptions(argv: readonly string[]): { values: LaunchValues; rest: string[] } | null {
  const values: LaunchValues = {};
  const rest: string[] = [];
  for (let i = 0; i < argv.length; i++) {
    const [, name, value] = /^--([a-z-]+)(?:=(.*))?$/.exec(argv[i] as string) ?? [];
    if (name === undefined || !Object.hasOwn(options, name)) {
      rest.push(argv[i] as string);
      continue;
    }
    const given = value ?? argv[++i];
    if (given === undefined) throw new UsageError(`--${name}: expected a value`);
    values[name as keyof LaunchValues] = given;
  }
  if (Object.keys(values).length === 0) return null;
  if (values.gpus === undefined) throw new UsageError(`--${Object.keys(values)[0]}: needs --gpus`);
  return { values, rest };
}

/** Runs a program, a file of TypeScript or another, with its arguments, as the options say. */
export async function launchRanks(values: LaunchValues, [program, ...args]: readonly string[]): Promise<number> {
  if (program === undefined) throw new UsageError("expected a program behind --");
  const command = /\.[jt]s$/.test(program) ? [process.execPath, "run", program, ...args] : [program, ...args];
  const nodes = positiveInteger("nodes", values.nodes ?? "1");
  const nodeRank = count("node-rank", values["node-rank"] ?? "0");
  if (nodeRank >= nodes) throw new UsageError(`--node-rank: expected 0 to ${nodes - 1}, got ${nodeRank}`);
  if (nodes > 1 && values.rendezvous === undefined) throw new UsageError("--rendezvous: needed with several --nodes");
  const ranks = values.gpus === undefined ? devices() : positiveInteger("gpus", values.gpus);
  const least = values["min-gpus"];
  const minRanks = least === undefined ? ranks : positiveInteger("min-gpus", least);
  if (minRanks > ranks) throw new UsageError(`--min-gpus: expected at most --gpus, ${ranks}, got ${minRanks}`);
  if (nodes > 1 && minRanks < ranks) throw new UsageError("--min-gpus: of one machine alone");
  return await launch({
    ...{ command, ranks, nodes, nodeRank, minRanks },
    maxRestarts: count("max-restarts", values["max-restarts"] ?? "0"),
    ...(values.rendezvous !== undefined && { rendezvous: address(values.rendezvous) }),
  });
}

export const verb: Verb = {
  help,
  async run(args) {
    const { values, positionals } = parseArgs({ args, options, strict: true, allowPositionals: true });
    return await launchRanks(values, positionals);
  },
};

/** A run's copy in a bucket: made while it trains, and what it goes on from where its folder is gone. */
import { basename, join, resolve } from "node:path";
import { type DataSource, dataSource, isRemoteLocation, SourceError } from "../../data";
import { CheckpointStore, makeFolder, writeFileAtomic } from "../../formats";
import { CheckpointCopies } from "../checkpoint-copies";
import { ConfigError } from "../config/kinds";
import type { TrainConfig } from "../config/train-config";
import { RemoteCheckpoints } from "../remote-checkpoints";

/** Milliseconds without a sign of the other side after which a request is given up: a part may take long on a slow line. */
const TIMEOUT = 120_000;

/** The files of a run's folder that are copied with its checkpoints. */
const FILES = ["config.json", "metrics.jsonl"] as const;

const open = (location: string, warn?: (message: string) => void): DataSource =>
  dataSource(location, { cache: false, timeout: TIMEOUT, warn });

/** Where the copy of a run is: below the location that `copyTo` names, by the name of the run's folder. */
export function copyLocation(copyTo: string, run: string): string {
  return isRemoteLocation(copyTo) ? `${copyTo.replace(/\/+$/, "")}/${basename(run)}` : join(copyTo, basename(run));
}

/**
 * What copies a run's checkpoints to where `copyTo` says; null where it says nothing. Tries the destination: that it can be written,
 * and, for a new run, that no other run is there.
 */
export async function openCopies(
  { copyTo, keep, keepEvery }: TrainConfig,
  { path, resumed }: { path: string; resumed: boolean },
  { print, at }: { print: (line: string) => void; at: string },
): Promise<CheckpointCopies | null> {
  if (copyTo === undefined) return null;
  const location = copyLocation(copyTo, path);
  const source = open(location, (message) => print(`warning: ${message}`));
  const remote = new RemoteCheckpoints(source, { keepLast: keep, keepEvery });
  if (!resumed && (await remote.list()).length > 0) {
    throw new ConfigError(at, `there are checkpoints of another run at ${location}; choose another place or --out`);
  }
  await remote.saveFiles([join(path, "config.json")]);
  return new CheckpointCopies(remote, {
    files: [join(path, "metrics.jsonl")],
    onCopied: (to) => print(`checkpoint copied to ${to}`),
    onError: ({ message }, iteration) =>
      print(`warning: the checkpoint of iteration ${iteration} is in ${path}, but was not copied: ${message}`),
  });
}

/**
 * A folder on this machine with the newest state of a run: its own where that is as new as the copy, else with what the copy has.
 *
 * @param location of the copy: gs://BUCKET/runs/cells-1
 * @param root folder that run folders are made in
 */
export async function fetchRun(location: string, root: string, log: (line: string) => void): Promise<string> {
  const trimmed = location.replace(/\/+$/, "");
  const source = open(trimmed, (message) => log(`warning: ${message}`));
  const remote = new RemoteCheckpoints(source);
  const newest = (await remote.list()).at(-1);
  if (newest === undefined) throw new ConfigError("--resume", `there is no checkpoint at ${trimmed}`);
  const run = join(resolve(root), basename(trimmed));
  const folder = join(run, "checkpoints");
  const own = (await new CheckpointStore(folder).list()).at(-1)?.iteration ?? -1;
  if (own >= newest) {
    log(`${run} is as new as ${trimmed}: it goes on from there`);
    return run;
  }
  await makeFolder(folder);
  const fetched = await remote.fetchLatest(folder);
  for (const error of fetched?.damaged ?? []) log(`warning: ${error.message}; using the one before`);
  for (const name of FILES) {
    const bytes = await source.read(name).catch((error: unknown) => {
      if (error instanceof SourceError && error.reason === "missing" && name !== "config.json") return null;
      throw error;
    });
    if (bytes) await writeFileAtomic(join(run, name), new TextDecoder().decode(bytes));
  }
  log(`fetched the checkpoint of iteration ${fetched?.iteration} from ${trimmed} into ${run}`);
  return run;
}

/** The arguments with the folder of a run in place of the address of its copy after --resume, which is fetched. */
export async function fetchResumed(
  argv: readonly string[],
  log: (line: string) => void = console.log,
): Promise<readonly string[]> {
  const at = argv.findIndex((argument) => /^--resume(=|$)/.test(argument));
  if (at < 0) return argv;
  const inside = (argv[at] as string).includes("=");
  const location = inside ? (argv[at] as string).slice("--resume=".length) : (argv[at + 1] ?? "");
  if (!/^(gs|s3):\/\//i.test(location)) return argv;
  const out = argv.flatMap((argument, i) =>
    argument === "--out"
      ? [argv[i + 1] ?? "runs"]
      : /^(--)?out=/.test(argument)
        ? [argument.replace(/^(--)?out=/, "")]
        : [],
  );
  const run = await fetchRun(location, out.at(-1) ?? "runs", log);
  return [...argv.slice(0, at), "--resume", run, ...argv.slice(at + (inside ? 1 : 2))];
}

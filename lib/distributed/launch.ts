import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Subprocess } from "bun";
import { check } from "../native/error";
import { exitCodes } from "./process-group";

export interface LaunchOptions {
  /** Program and arguments, the same for all ranks. */
  command: readonly string[];
  /** Processes on this machine: one for each GPU, or of a CPU as many as wanted. */
  ranks: number;
  /** Machines, each of which runs a launcher with the same options, and which of them this is. Default 1 and 0. */
  nodes?: number;
  nodeRank?: number;
  /** Where rank 0 listens; needed where there are several machines. Default: a free port of this one. */
  rendezvous?: { host: string; port: number };
  /** How often the ranks are started again after one failed. Default 0. */
  maxRestarts?: number;
  /**
   * A restart goes without the devices of ranks that failed, down to so many ranks. Default: with all of them. On one machine.
   */
  minRanks?: number;
  /** Besides this process' own. */
  env?: Readonly<Record<string, string>>;
  /** Hears what the launcher does. Default: standard error. */
  log?: (line: string) => void;
  /** Ends all ranks: they get SIGTERM. */
  signal?: AbortSignal;
}

/** What the ranks are given to end by themselves once one has failed, then after SIGTERM, in milliseconds. */
const GRACE = 6000; // more than what a rank's own thread gives it
const TERM_GRACE = 1000;
/** What they are given to save their state after a signal. */
const SAVE_GRACE = 120_000;

interface Outcome {
  /** 0 when all ranks ended well. */
  exitCode: number;
  /** The places of the ranks that failed by themselves. */
  failed: number[];
  /** A signal to the launcher ended them. */
  interrupted: boolean;
}

/**
 * Runs a program as several ranks on this machine, which find their places in their environment (ranksFromEnvironment). When one
 * fails the others end within half a minute, and all are started again, as often as `maxRestarts` says; a program that trains goes on
 * from its last checkpoint. Resolves to the exit code: 0, or that of the rank that failed first.
 */
export async function launch(options: LaunchOptions): Promise<number> {
  const { ranks, nodes = 1, nodeRank = 0, maxRestarts = 0, minRanks = ranks, signal } = options;
  const log = options.log ?? ((line: string) => console.error(`dlfs launch: ${line}`));
  check(Number.isSafeInteger(ranks) && ranks >= 1, "launch", () => `ranks: expected an integer >= 1, got ${ranks}`);
  check(nodes >= 1 && nodeRank >= 0 && nodeRank < nodes, "launch", () => `node ${nodeRank} of ${nodes} makes no sense`);
  check(nodes === 1 || options.rendezvous !== undefined, "launch", () => "several nodes need a rendezvous, HOST:PORT");
  check(
    minRanks >= 1 && minRanks <= ranks && (nodes === 1 || minRanks === ranks),
    "launch",
    () => `minRanks: expected 1 to ${ranks}, of one machine, got ${minRanks}`,
  );
  let devices = Array.from({ length: ranks }, (_, i) => i);
  const folder = mkdtempSync(join(tmpdir(), "dlfs-launch-"));
  using _ = { [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) };
  for (let attempt = 0; ; attempt++) {
    const rendezvous = options.rendezvous ?? { host: "127.0.0.1", port: await freePort() };
    const { exitCode, failed, interrupted } = await start(
      options,
      devices,
      attempt,
      rendezvous,
      join(folder, "restart"),
      log,
    );
    if (exitCode === 0 || exitCode === exitCodes.usage || interrupted || signal?.aborted) return exitCode;
    if (attempt === maxRestarts) {
      if (maxRestarts > 0) log(`${maxRestarts} restarts did not help`);
      return exitCode;
    }
    const left = devices.filter((_, place) => !failed.includes(place));
    if (left.length >= minRanks && left.length < devices.length && minRanks < ranks) {
      log(`going on without device ${devices.filter((device) => !left.includes(device)).join(", ")}`);
      devices = left;
    }
    log(`restart ${attempt + 1} of ${maxRestarts}, ${devices.length} rank${devices.length === 1 ? "" : "s"}`);
  }
}

async function start(
  options: LaunchOptions,
  devices: readonly number[],
  attempt: number,
  rendezvous: { host: string; port: number },
  restartFile: string,
  log: (line: string) => void,
): Promise<Outcome> {
  const { command, nodes = 1, nodeRank = 0, env, signal } = options;
  const count = devices.length;
  const children = devices.map((_, localRank) => {
    const rank = nodeRank * count + localRank;
    return Bun.spawn([...command], {
      env: {
        ...process.env,
        ...env,
        ...visibleDevices(devices, options.ranks),
        RANK: String(rank),
        WORLD_SIZE: String(nodes * count),
        LOCAL_RANK: String(localRank),
        LOCAL_WORLD_SIZE: String(count),
        DLFS_RENDEZVOUS: rendezvous.host.includes(":")
          ? `[${rendezvous.host}]:${rendezvous.port}`
          : `${rendezvous.host}:${rendezvous.port}`,
        DLFS_LAUNCHER: "dlfs launch",
        DLFS_LAUNCHER_PID: String(process.pid),
        DLFS_RESTARTS: String(attempt),
        DLFS_RESTART_FILE: restartFile,
      },
      stdin: "ignore",
      stdout: rank === 0 ? "inherit" : "pipe",
      stderr: rank === 0 ? "inherit" : "pipe",
    });
  });
  const printed = children.flatMap((child, i) =>
    nodeRank * count + i === 0
      ? []
      : [
          forward(child.stdout, process.stdout, nodeRank * count + i),
          forward(child.stderr, process.stderr, nodeRank * count + i),
        ],
  );
  const terminate = () => kill(children, "SIGTERM");
  signal?.addEventListener("abort", terminate);
  const signals = ["SIGTERM", "SIGINT", "SIGHUP"] as const;
  let interrupted = false;
  const passOn = (name: NodeJS.Signals) => {
    interrupted = true;
    // A terminal's Ctrl-C reaches the ranks by itself.
    if (name !== "SIGINT" || !process.stdin.isTTY) kill(children, name);
  };
  for (const name of signals) process.on(name, passOn);
  const killed = new Set<number>();
  try {
    const first = await firstFailure(children);
    if (first === null) return { exitCode: 0, failed: [], interrupted };
    if (interrupted) await allWithin(children, SAVE_GRACE);
    else log(`rank ${nodeRank * count + first} ${ending(children[first]!)}; the others have ${GRACE / 1000} s to end`);
    await allWithin(children, GRACE);
    terminate();
    await allWithin(children, TERM_GRACE);
    for (const [i, child] of children.entries())
      if (child.exitCode === null && child.signalCode === null) killed.add(i);
    kill(children, "SIGKILL");
    await Promise.all(children.map((child) => child.exited));
    const failed = [...children.keys()].filter(
      (i) => killed.has(i) || (children[i]!.exitCode !== 0 && children[i]!.exitCode !== exitCodes.peer),
    );
    return { exitCode: codeOf(children[failed[0] ?? first]!), failed, interrupted };
  } finally {
    signal?.removeEventListener("abort", terminate);
    for (const name of signals) process.off(name, passOn);
    await Promise.all(printed);
  }
}

/** What a program keeps for its next start, such as where it writes; of an earlier start of dlfs launch, null at the first. */
export function restartNote(env: Readonly<Record<string, string | undefined>> = process.env): string | null {
  const { DLFS_RESTARTS: restarts = "0", DLFS_RESTART_FILE: file } = env;
  return Number(restarts) > 0 && file !== undefined && existsSync(file) ? readFileSync(file, "utf8") : null;
}

/** Keeps it; on one rank of each machine. Does nothing where dlfs launch did not start the process. */
export function keepRestartNote(note: string, env: Readonly<Record<string, string | undefined>> = process.env): void {
  if (env.DLFS_RESTART_FILE !== undefined) writeFileSync(env.DLFS_RESTART_FILE, note);
}

type Child = Subprocess<"ignore", "inherit" | "pipe", "inherit" | "pipe">;

/** The place of the first that ends badly; null when all end well. */
function firstFailure(children: readonly Child[]): Promise<number | null> {
  return new Promise((resolve) => {
    let running = children.length;
    for (const [i, child] of children.entries()) {
      void child.exited.then(() => {
        if (child.exitCode !== 0) resolve(i);
        if (--running === 0) resolve(null);
      });
    }
  });
}

async function allWithin(children: readonly Child[], milliseconds: number): Promise<void> {
  const timeout = Promise.withResolvers<void>();
  const timer = setTimeout(() => timeout.resolve(), milliseconds);
  await Promise.race([Promise.all(children.map((child) => child.exited)), timeout.promise]);
  clearTimeout(timer);
}

function kill(children: readonly Child[], signal: NodeJS.Signals): void {
  for (const child of children) if (child.exitCode === null && child.signalCode === null) child.kill(signal);
}

/** As a shell gives it: 128 and the signal's number where a signal ended the process. */
function codeOf(child: Child): number {
  return child.exitCode ?? 128 + (signalNumbers[String(child.signalCode)] ?? 0);
}

const signalNumbers: Readonly<Record<string, number>> = {
  ...{ SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGILL: 4, SIGABRT: 6, SIGBUS: 7, SIGFPE: 8, SIGKILL: 9, SIGSEGV: 11 },
  SIGTERM: 15,
};

function ending(child: Child): string {
  return child.signalCode === null ? `ended with ${child.exitCode}` : `was ended by ${child.signalCode}`;
}

/** GPUs left, where some are left out: theirs of CUDA_VISIBLE_DEVICES, or their indices. */
function visibleDevices(devices: readonly number[], all: number): Record<string, string> {
  if (devices.length === all) return {};
  const visible = process.env.CUDA_VISIBLE_DEVICES?.split(",") ?? [];
  return { CUDA_VISIBLE_DEVICES: devices.map((device) => visible[device] ?? String(device)).join(",") };
}

/** Prints what a rank prints, each line with its rank before it. */
async function forward(from: Child["stdout"], to: NodeJS.WriteStream, rank: number): Promise<void> {
  if (!(from instanceof ReadableStream)) return;
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of from) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) to.write(`[${rank}] ${line}\n`);
  }
  if (rest !== "") to.write(`[${rank}] ${rest}\n`);
}

/** A port that nothing listens on at the moment. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}

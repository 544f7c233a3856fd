/**
 * Starts a training of two ranks on the CPU by each launcher that is installed, and says what was started and what came of it.
 *
 *   bun run scripts/check-launchers.ts [--python PYTHON]
 *
 * - `dlfs launch`, and mpirun (Open MPI: Debian's openmpi-bin)
 * - torchrun, of a Python with PyTorch (--python; default /usr/bin/python3, which Debian's python3-torch is for)
 * - srun (Slurm: Debian's slurmctld, slurmd, slurm-client and munge). Where no cluster is configured, one of this machine alone is
 *   started for the check in a temporary folder, which needs root.
 *
 * Of each: that two ranks train together and rank 0 alone writes, that SIGTERM to one of them ends both with a checkpoint, and that
 * both end when one is killed. A launcher that is missing is named and skipped. Ends with 1 where something is not as it should be.
 */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values: args } = parseArgs({ options: { python: { type: "string", default: "/usr/bin/python3" } } });
const program = fileURLToPath(new URL("../lib/cli/main.ts", import.meta.url));
const work = mkdtempSync(join(tmpdir(), "dlfs-launchers-"));
const runs = join(work, "runs");
const services: Bun.Subprocess[] = [];
/** A launcher that takes longer has failed. */
const LIMIT_MS = 120_000;
/** All ranks must have ended so long after one of them. */
const END_MS = 30_000;

interface Launcher {
  name: string;
  /** What dlfs says of it. */
  said: string;
  /** Before the program that the ranks run. */
  command: string[];
  env?: Record<string, string>;
}

interface Ended {
  status: number;
  output: string;
}

class Unlike extends Error {}

/** The process of a rank of this check: Bun with the check's folder among its arguments, and that rank in its environment. */
function processOf(rank: number): number | null {
  const variables = ["RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"].map((name) => `${name}=${rank}`);
  for (const entry of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      if (readlinkSync(`/proc/${entry}/exe`) !== readlinkSync("/proc/self/exe")) continue;
      const words = readFileSync(`/proc/${entry}/cmdline`, "utf8").split("\0");
      if (!words.includes(runs) || !words.includes("train") || words.includes("launch")) continue;
      if (
        readFileSync(`/proc/${entry}/environ`, "utf8")
          .split("\0")
          .some((word) => variables.includes(word))
      ) {
        return Number(entry);
      }
    } catch {
      // It has ended meanwhile.
    }
  }
  return null;
}

/** Starts the training; `act` is called once all ranks are in their steps. */
async function start({ command, env }: Launcher, options: string[], act?: () => void): Promise<Ended> {
  rmSync(runs, { recursive: true, force: true });
  const train = [process.execPath, "run", program, "train", "--data", "demo", "--out", runs, "--size", "64"];
  const child = Bun.spawn([...command, ...train, "--batch", "4", "--no-eval", "--log-every", "1", ...options], {
    env: { ...process.env, DLFS_BACKEND: "cpu", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const timer = setTimeout(() => child.kill("SIGKILL"), LIMIT_MS);
  let output = "";
  const read = async (stream: ReadableStream<Uint8Array>) => {
    const decoder = new TextDecoder();
    for await (const part of stream) output += decoder.decode(part, { stream: true });
  };
  const reading = Promise.all([read(child.stdout), read(child.stderr)]);
  if (act) {
    const steps = () =>
      existsSync(runs) && [...new Bun.Glob("*/metrics.jsonl").scanSync({ cwd: runs, absolute: true })];
    const begun = () => (steps() || []).some((path) => readFileSync(path, "utf8").includes('"iteration":5'));
    while (!begun() && child.exitCode === null && child.signalCode === null) await Bun.sleep(50);
    act();
  }
  const status = await child.exited;
  clearTimeout(timer);
  await Promise.race([reading, Bun.sleep(2000)]); // a rank that is left over holds the streams open
  return { status: child.signalCode === null ? status : -1, output };
}

function expect(good: boolean, what: string, { output }: Ended): void {
  if (!good)
    throw new Unlike(`expected ${what}; its output ends with\n${output.trim().split("\n").slice(-6).join("\n")}`);
}

async function check(launcher: Launcher): Promise<void> {
  console.log(`${launcher.name}: ${launcher.command.join(" ")} bun run dlfs train ...`);
  const whole = await start(launcher, ["--iterations", "6"]);
  const { output } = whole;
  const both = `ranks: 2, started by ${launcher.said}; 2 images of each batch on each`;
  expect(whole.status === 0 && output.split(both).length === 2, `"${both}", once, and status 0`, whole);
  expect(output.split("trained 6 iterations").length === 2, "a training of 6 iterations", whole);
  expect(readdirSync(runs).length === 1, "one run folder", whole);
  console.log("  two ranks train together, and write one run folder");

  const endless = ["--iterations", "100000", "--checkpoint-every", "100000"];
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    let begun = 0;
    const ended = await start(launcher, endless, () => {
      const pid = processOf(1);
      if (pid === null) throw new Unlike("rank 1 was not found");
      begun = performance.now();
      process.kill(pid, signal);
    });
    const seconds = ((performance.now() - begun) / 1000).toFixed(1);
    while (processOf(0) !== null && performance.now() - begun < END_MS) await Bun.sleep(50);
    expect(processOf(0) === null && performance.now() - begun < END_MS, `both ranks to end within 30 s`, ended);
    if (signal === "SIGTERM") {
      const kept = [...new Bun.Glob("*/checkpoints/*.dlck").scanSync({ cwd: runs })];
      expect(
        kept.length === 1 && /^.*stopped at iteration \d+ of/m.test(ended.output),
        "a checkpoint after SIGTERM",
        ended,
      );
      console.log(`  SIGTERM to rank 1 ends both with a checkpoint, after ${seconds} s with status ${ended.status}`);
    } else {
      expect(ended.status !== 0, "a status that is not 0 after SIGKILL", ended);
      const said =
        /rank 1 \(process \d+ on [^)]*\) (ended|failed)[^;:\n]*/.exec(ended.output)?.[0] ?? "the launcher ends it";
      console.log(`  SIGKILL to rank 1 ends both, after ${seconds} s with status ${ended.status}: ${said}`);
    }
  }
}

/** Ports that nobody listens at. */
function freePorts(count: number): number[] {
  const socket = { data() {} };
  const servers = Array.from({ length: count }, () => Bun.listen({ hostname: "127.0.0.1", port: 0, socket }));
  const ports = servers.map(({ port }) => port);
  for (const server of servers) server.stop();
  return ports;
}

/** A cluster of this machine alone; a text says why there is none. */
async function startSlurm(): Promise<Record<string, string> | string> {
  if (process.getuid?.() !== 0) return "a cluster for the check needs root";
  const missing = ["munged", "slurmctld", "slurmd"].filter((name) => !Bun.which(name));
  if (missing.length > 0) return `there is no ${missing.join(", ")}, and no cluster is configured`;
  const folder = join(work, "slurm");
  for (const name of ["state", "spool"]) mkdirSync(join(folder, name), { recursive: true });
  const at = (name: string) => join(folder, name);
  writeFileSync(at("key"), crypto.getRandomValues(new Uint8Array(1024)), { mode: 0o400 });
  const run = (name: string, ...command: string[]) => {
    services.push(
      Bun.spawn(command, { stdout: Bun.file(at(`${name}.log`)), stderr: Bun.file(at(`${name}.errors`)), env }),
    );
  };
  const env = { ...process.env, SLURM_CONF: at("slurm.conf") } as Record<string, string>;
  const files = [`--key-file=${at("key")}`, `--socket=${at("munge")}`, `--pid-file=${at("munge.pid")}`];
  run(
    "munged",
    "munged",
    "--foreground",
    "--force",
    ...files,
    `--log-file=${at("munge.log")}`,
    `--seed-file=${at("seed")}`,
  );
  const [host, [control, node]] = [hostname().split(".")[0], freePorts(2)];
  const settings = {
    ...{ ClusterName: "check", SlurmctldHost: `${host}(127.0.0.1)`, SlurmUser: "root" },
    ...{ SlurmctldPort: control, SlurmdPort: node, AuthType: "auth/munge", AuthInfo: `socket=${at("munge")}` },
    ...{ StateSaveLocation: at("state"), SlurmdSpoolDir: at("spool"), SlurmctldPidFile: at("slurmctld.pid") },
    ...{ SlurmdPidFile: at("slurmd.pid"), ProctrackType: "proctrack/linuxproc", TaskPlugin: "task/none" },
    ...{ SelectType: "select/linear", SchedulerType: "sched/builtin", MpiDefault: "none", ReturnToService: 2 },
    SlurmdParameters: "config_overrides",
  };
  const lines = Object.entries(settings).map(([name, value]) => `${name}=${value}`);
  lines.push(`NodeName=${host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN`);
  lines.push(`PartitionName=all Nodes=${host} Default=YES State=UP`);
  writeFileSync(at("slurm.conf"), `${lines.join("\n")}\n`);
  await Bun.sleep(500);
  run("slurmctld", "slurmctld", "-D");
  run("slurmd", "slurmd", "-D", "-N", host as string);
  for (let tries = 0; tries < 100; tries++) {
    if (Bun.spawnSync(["sinfo", "-h", "-o", "%T"], { env }).stdout.includes("idle")) return env;
    await Bun.sleep(200);
  }
  const said = ["munged", "slurmctld", "slurmd"].map((name) => readFileSync(at(`${name}.errors`), "utf8").trim());
  return `Slurm did not start: ${said.join("; ")}`;
}

/** A process with all that it has started, and those have. */
function familyOf(pid: number): number[] {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
    return [pid, ...(children === "" ? [] : children.split(" ")).flatMap((child) => familyOf(Number(child)))];
  } catch {
    return [];
  }
}

/** Ends the cluster. A daemon of a node waits for steps that hang, so that what is left is killed. */
async function endServices(): Promise<void> {
  const families = services.flatMap(({ pid }) => familyOf(pid));
  for (const service of services.toReversed()) service.kill();
  await Promise.race([Promise.all(services.map(({ exited }) => exited)), Bun.sleep(3000)]);
  for (const pid of families) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has ended.
    }
  }
}

/** Those that are there; `skip` hears which are not. */
async function launchers(skip: (name: string, why: string) => void): Promise<Launcher[]> {
  const own = [process.execPath, "run", program, "launch", "--gpus", "2", "--"];
  const found: Launcher[] = [{ name: "dlfs launch", said: "dlfs launch", command: own }];
  if (Bun.which("mpirun")) {
    const root = process.getuid?.() === 0 ? ["--allow-run-as-root"] : [];
    found.push({ name: "mpirun", said: "Open MPI", command: ["mpirun", ...root, "--oversubscribe", "-np", "2"] });
  } else skip("mpirun", "it is not installed (Debian: openmpi-bin)");
  const torchrun = [args.python, "-m", "torch.distributed.run"];
  const options = ["--no_python", "--nproc_per_node", "2", "--master_port", `${freePorts(1)[0]}`];
  // PyTorch's before 2.0 does not run with Python 3.11.
  const tried = Bun.which(args.python) ? Bun.spawnSync([...torchrun, ...options, "true"]) : null;
  if (tried?.exitCode === 0) found.push({ name: "torchrun", said: "torchrun", command: [...torchrun, ...options] });
  else {
    const why = tried ? (tried.stderr.toString().trim().split("\n").at(-1) ?? "") : "there is no such program";
    skip("torchrun", `${args.python}: ${why} (--python names another, with PyTorch)`);
  }
  if (!Bun.which("srun")) skip("srun", "it is not installed (Debian: slurmctld, slurmd, slurm-client and munge)");
  else {
    const configured = Bun.spawnSync(["sinfo", "-h"]).exitCode === 0;
    const env = configured ? {} : await startSlurm();
    if (typeof env === "string") skip("srun", env);
    else found.push({ name: "srun", said: "Slurm", command: ["srun", "-n", "2", "--overcommit"], env });
  }
  return found;
}

const skipped: string[] = [];
const failed: string[] = [];
const good: string[] = [];
try {
  for (const launcher of await launchers((name, why) => skipped.push(`${name}: ${why}`))) {
    try {
      await check(launcher);
      good.push(launcher.name);
    } catch (error) {
      if (!(error instanceof Unlike)) throw error;
      console.log(`  FAILED: ${error.message}`);
      failed.push(launcher.name);
    }
  }
} finally {
  await endServices();
  rmSync(work, { recursive: true, force: true });
}
for (const line of skipped) console.log(`not checked, ${line}`);
console.log(`as they should be: ${good.join(", ") || "none"}${failed.length > 0 ? `; not: ${failed.join(", ")}` : ""}`);
process.exit(failed.length > 0 ? 1 : 0);

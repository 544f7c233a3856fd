import { check, DlfsError, ErrorCode } from "../native/error";

/** Where a process stands among those that train together, and where they meet. */
export interface Ranks {
  /** From 0 to world - 1. */
  rank: number;
  world: number;
  /** The same among the processes of this machine: its GPU's index. */
  localRank: number;
  localWorld: number;
  /** Where rank 0 listens, for the others. */
  rendezvous: { host: string; port: number };
  /** What started the processes: for messages. */
  launcher: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** The first of the ports that are derived where none is given: above well-known ones, below those of outgoing connections. */
const FIRST_PORT = 20_000;
const PORTS = 12_000;

/**
 * The place that a launcher gave this process by its environment, or null where there is none: dlfs launch and torchrun (RANK,
 * WORLD_SIZE, LOCAL_RANK, MASTER_ADDR), Open MPI (OMPI_COMM_WORLD_...), Slurm's srun (SLURM_PROCID, ...). DLFS_RENDEZVOUS, HOST:PORT,
 * says where rank 0 listens. Without it that follows from what the launcher says: torchrun's MASTER_ADDR, with a port of our
 * own, as MASTER_PORT belongs to torchrun's agent; the first host of a Slurm step, with a port by the job; this machine for
 * mpirun on one host. mpirun on several hosts needs it.
 */
export function ranksFromEnvironment(env: Environment = process.env): Ranks | null {
  const place = fromTorchrun(env) ?? fromOpenMpi(env) ?? fromSlurm(env);
  if (!place) return null;
  const { rank, world, localRank, localWorld } = place;
  check(
    rank < world && localRank < localWorld && localWorld <= world,
    place.launcher,
    () => `rank ${rank} of ${world}, local rank ${localRank} of ${localWorld} make no sense in the environment`,
  );
  const given = env.DLFS_RENDEZVOUS;
  return { ...place, rendezvous: given === undefined ? place.rendezvous() : parseAddress(given) };
}

type Place = Omit<Ranks, "rendezvous"> & { rendezvous: () => Ranks["rendezvous"] };

/** "HOST:PORT" or "[IPv6]:PORT". */
export function parseAddress(text: string): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:\s]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  check(
    match !== null && port >= 1 && port <= 65_535,
    "DLFS_RENDEZVOUS",
    () => `expected HOST:PORT, or [IPv6]:PORT, got "${text}"`,
  );
  return { host: (match[1] ?? match[2]) as string, port };
}

function integer(env: Environment, name: string, least: number): number {
  const text = env[name];
  const value = Number(text);
  if (text !== undefined && /^\d+$/.test(text) && value >= least) return value;
  throw new DlfsError(
    ErrorCode.argument,
    name,
    `expected an integer from ${least} in the environment, got ${text === undefined ? "nothing" : `"${text}"`}`,
  );
}

function fromTorchrun(env: Environment): Place | null {
  if (env.RANK === undefined || env.WORLD_SIZE === undefined) return null;
  const [rank, world] = [integer(env, "RANK", 0), integer(env, "WORLD_SIZE", 1)];
  const localRank = env.LOCAL_RANK === undefined ? rank : integer(env, "LOCAL_RANK", 0);
  const localWorld = env.LOCAL_WORLD_SIZE === undefined ? world : integer(env, "LOCAL_WORLD_SIZE", 1);
  const rendezvous = () => {
    const host = env.MASTER_ADDR;
    check(
      host !== undefined,
      "MASTER_ADDR",
      () => "RANK is set, but neither MASTER_ADDR nor DLFS_RENDEZVOUS (HOST:PORT, where rank 0 listens)",
    );
    const taken = env.MASTER_PORT === undefined ? 29_500 : integer(env, "MASTER_PORT", 1);
    return { host, port: taken + 101 <= 65_535 ? taken + 101 : taken - 101 };
  };
  return { rank, world, localRank, localWorld, rendezvous, launcher: env.DLFS_LAUNCHER ?? "torchrun" };
}

function fromOpenMpi(env: Environment): Place | null {
  if (env.OMPI_COMM_WORLD_RANK === undefined) return null;
  const place = {
    rank: integer(env, "OMPI_COMM_WORLD_RANK", 0),
    world: integer(env, "OMPI_COMM_WORLD_SIZE", 1),
    localRank: integer(env, "OMPI_COMM_WORLD_LOCAL_RANK", 0),
    localWorld: integer(env, "OMPI_COMM_WORLD_LOCAL_SIZE", 1),
  };
  const rendezvous = () => {
    check(
      place.localWorld === place.world,
      "Open MPI",
      () =>
        "says which rank this is, but not where rank 0 is: give it to all of them, mpirun -x DLFS_RENDEZVOUS=HOST:PORT ...",
    );
    // All ranks are of this machine; what names the job is the same for them and for no other.
    const job = env.PMIX_NAMESPACE ?? env.OMPI_MCA_ess_base_jobid ?? `${process.ppid}`;
    return { host: "127.0.0.1", port: portOf(job) };
  };
  return { ...place, rendezvous, launcher: "Open MPI" };
}

function fromSlurm(env: Environment): Place | null {
  // A batch script has SLURM_PROCID too; only what srun started is part of a step.
  const step = env.SLURM_STEP_ID ?? env.SLURM_STEPID;
  if (env.SLURM_PROCID === undefined || step === undefined) return null;
  const [rank, world] = [
    integer(env, "SLURM_PROCID", 0),
    integer(env, env.SLURM_STEP_NUM_TASKS === undefined ? "SLURM_NTASKS" : "SLURM_STEP_NUM_TASKS", 1),
  ];
  const localRank = integer(env, "SLURM_LOCALID", 0);
  const tasks = tasksOfNode(env.SLURM_STEP_TASKS_PER_NODE ?? env.SLURM_TASKS_PER_NODE ?? "", Number(env.SLURM_NODEID));
  const rendezvous = () => {
    const nodes = env.SLURM_STEP_NODELIST ?? env.SLURM_NODELIST ?? env.SLURM_JOB_NODELIST;
    const host = nodes === undefined ? null : firstHost(nodes);
    check(host !== null, "SLURM_STEP_NODELIST", () => `expected a list of hosts, got ${nodes ?? "nothing"}`);
    return { host, port: portOf(`${env.SLURM_JOB_ID ?? env.SLURM_JOBID}.${step}`) };
  };
  return { rank, world, localRank, localWorld: tasks ?? Math.max(localRank + 1, 1), rendezvous, launcher: "Slurm" };
}

/** The first host of Slurm's list: "gpu[03-07,12],cpu1" -> "gpu03". */
export function firstHost(list: string): string | null {
  const match = /^([^,[\]]+)(?:\[(\d+)[^\]]*\])?([^,[\]]*)/.exec(list.trim());
  return match && `${match[1]}${match[2] ?? ""}${match[3]}`;
}

/** Of "4(x2),3" the tasks of node 0, 1 or 2; null where it does not say. */
export function tasksOfNode(text: string, node: number): number | null {
  let at = 0;
  for (const [, tasks, , times] of text.matchAll(/(\d+)(\(x(\d+)\))?/g)) {
    at += Number(times ?? 1);
    if (node < at) return Number(tasks);
  }
  return null;
}

/** A port that depends on the job's name alone. */
function portOf(job: string): number {
  return FIRST_PORT + Number(BigInt(Bun.hash.crc32(job)) % BigInt(PORTS));
}

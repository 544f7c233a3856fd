import packageJson from "../../package.json";
import { DlfsError, ErrorCode, endWithParent, firstError, headerHash, listDevices, loadLibrary } from "../native";
import { Communicator, type Device, type DeviceOptions } from "../tensor";
import { differences, listed } from "./differences";
import { type Ranks, ranksFromEnvironment } from "./environment";
import { defaultPatience, type Facts, type FromAgent, type Patience, type ToAgent, type ToRank } from "./messages";

export interface ProcessGroupOptions {
  ranks: Ranks;
  /** What must be the same on all ranks, besides the code: configuration, data. Plain data, compared as JSON, so keep it small. */
  facts?: Facts;
  /** How long to wait for what; default: see defaultPatience. */
  patience?: Partial<Patience>;
  /** Which start of a training this is, from 0: ranks of an earlier one are refused. Default: DLFS_RESTARTS. */
  attempt?: number;
  /**
   * Hears why all is over; waiting for others has ended by then. Default: prints the message and ends the process, with 2 where the
   * ranks did not come together, else with exitCodes.peer.
   */
  onFailure?: (error: DlfsError) => void;
}

/** Exit codes that tell a launcher what to do. */
export const exitCodes = {
  /** Started wrongly: starting again does not help. */
  usage: 2,
  /** Ended because another rank did. */
  peer: 76,
} as const;

/**
 * The processes that train together. Joining waits until all are there and agree on code and facts; from then on a rank that ends,
 * hangs or falls silent ends all. Exchanges of bytes go by way of rank 0; tensors by the communicator.
 */
export class ProcessGroup implements AsyncDisposable {
  readonly ranks: Ranks;
  readonly rank: number;
  readonly world: number;
  readonly #worker: Worker;
  readonly #steps: Int32Array;
  readonly #onFailure: (error: DlfsError) => void;
  readonly #patience: Patience;
  /** Exchanges under way, by key. */
  readonly #waiting = new Map<string, { resolve: (parts: Uint8Array[]) => void; reject: (error: unknown) => void }>();
  /** How many exchanges of a name there were. */
  readonly #counts = new Map<string, number>();
  #host = "";
  #communicator: Communicator | null = null;
  #knownNames = 0;
  #phase = "start";
  #failure: DlfsError | null = null;
  #joined = Promise.withResolvers<void>();
  #told = Promise.withResolvers<void>();
  #left = Promise.withResolvers<void>();
  #hold: PromiseWithResolvers<void> | null = null;
  /** The first step that this rank has not begun. */
  #next = 0;
  #stopAt = Number.POSITIVE_INFINITY;
  #stopping = false;
  /** Steps before which the ranks have agreed to meet. */
  readonly #meetings = new Set<number>();
  /** One was asked for, and has not been. */
  #meeting = false;

  private constructor({ ranks, facts = {}, patience, attempt, onFailure }: ProcessGroupOptions) {
    const { rank, world, rendezvous } = ranks;
    this.ranks = ranks;
    this.rank = rank;
    this.world = world;
    this.#onFailure = onFailure ?? ((error) => this.#exit(error));
    const shared = new SharedArrayBuffer(4);
    this.#steps = new Int32Array(shared);
    // A launcher that is killed leaves nobody behind who trains on. Programs between it and this process end by themselves.
    const launcher = Number(process.env.DLFS_LAUNCHER_PID);
    if (launcher === process.ppid) endWithParent(launcher, "SIGTERM");
    this.#worker = new Worker(new URL("./agent.ts", import.meta.url).href);
    this.#worker.onmessage = ({ data }: MessageEvent<FromAgent>) => this.#hear(data);
    this.#worker.onerror = ({ message }) => this.#end(`the thread that speaks with the other ranks failed: ${message}`);
    this.#patience = { ...defaultPatience, ...patience };
    const code = { version: packageJson.version, native: headerHash };
    this.#tell({
      kind: "join",
      ...{ rank, world, rendezvous, shared },
      attempt: attempt ?? Number(process.env.DLFS_RESTARTS ?? 0),
      facts: { ...facts, code },
      patience: this.#patience,
    });
  }

  /** Resolves when all ranks are there and agree. */
  static async join(options: ProcessGroupOptions): Promise<ProcessGroup> {
    const group = new ProcessGroup(options);
    await group.#joined.promise;
    return group;
  }

  /** True on rank 0, which writes what is written. */
  get isRoot(): boolean {
    return this.rank === 0;
  }

  /** The collectives of the ranks' devices; after connect(). */
  get communicator(): Communicator {
    if (!this.#communicator)
      throw new DlfsError(ErrorCode.argument, "ProcessGroup", "no communicator: call connect(device) first");
    return this.#communicator;
  }

  /** Connects the ranks' devices. */
  async connect(device: Device): Promise<Communicator> {
    const { rank, world } = this;
    const communicator = new Communicator(device, { rank, world, host: this.#host });
    try {
      await communicator.connect(await this.exchange("addresses", communicator.address()));
    } catch (error) {
      communicator.dispose();
      throw error;
    }
    this.#communicator = communicator;
    this.#tellNames(communicator);
    return communicator;
  }

  /** Every rank's bytes under this name, rank 0's first; on all ranks, or with `to` "root" on rank 0 alone (the others': empty). */
  async exchange(name: string, bytes: Uint8Array, to: "all" | "root" = "all"): Promise<Uint8Array[]> {
    if (this.#failure) throw this.#failure;
    const count = this.#counts.get(name) ?? 0;
    this.#counts.set(name, count + 1);
    const key = `${name} ${count}`;
    const { promise, ...settle } = Promise.withResolvers<Uint8Array[]>();
    this.#waiting.set(key, settle);
    this.#tell({ kind: "send", message: { kind: "part", key, to }, payload: bytes });
    return await promise;
  }

  /** Every rank's value under this name, as JSON. */
  async exchangeJson<T>(name: string, value: T): Promise<T[]> {
    const parts = await this.exchange(name, new TextEncoder().encode(JSON.stringify(value)));
    return parts.map((part) => JSON.parse(new TextDecoder().decode(part)) as T);
  }

  /**
   * Throws, on all ranks, where these are not the same everywhere: what is known only after joining, a resolved configuration or
   * what the data are. Plain data, compared as JSON.
   */
  async agreeOn(facts: Facts): Promise<void> {
    const all = await this.exchangeJson("facts", facts);
    const found = all.flatMap((theirs, rank) => {
      const lines = differences(all[0], theirs);
      return lines.length > 0 ? [`rank ${rank} and rank 0 differ: ${listed(lines)}`] : [];
    });
    if (found.length === 0) return;
    throw new DlfsError(ErrorCode.argument, "training together", `the ranks disagree. ${listed(found)}`);
  }

  /** Does something on rank 0 first, then on all others: what writes files that the others find. */
  async rootFirst<T>(name: string, work: () => Promise<T>): Promise<T> {
    if (!this.isRoot) await this.barrier(name);
    const result = await work();
    if (this.isRoot) await this.barrier(name);
    return result;
  }

  /** Resolves when all ranks have come to it. */
  async barrier(name: string): Promise<void> {
    await this.exchange(name, new Uint8Array());
  }

  /** What this rank is at: in "steps", one that does not come to a collective hangs; anything else may take its time. */
  set phase(phase: string) {
    if (phase === this.#phase) return;
    this.#phase = phase;
    this.#tell({ kind: "phase", phase });
  }

  get phase(): string {
    return this.#phase;
  }

  /** Tells that the values must be the same on all ranks; those where they are not diverged. Returns at once. */
  agree(step: number, what: string, values: Record<string, string>): void {
    this.#tell({ kind: "send", message: { kind: "agree", step, what, values } });
  }

  /** Asks all ranks to end at the same step, soon; several may ask. */
  requestStop(): void {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#tell({ kind: "send", message: { kind: "ask", what: "stop" } });
  }

  /** Asks all ranks to meet before the same step, soon; again only when they have. */
  requestMeeting(): void {
    if (this.#meeting) return;
    this.#meeting = true;
    this.#tell({ kind: "send", message: { kind: "ask", what: "meet" } });
  }

  /** Whether the ranks meet before a step, which mayBegin() has let begin: true on all of them, once for what was asked till then. */
  meetsBefore(step: number): boolean {
    // Before their first step, which need not be that of number 0, ranks agree on one that none of them does.
    const met = [...this.#meetings].filter((agreed) => agreed <= step);
    for (const agreed of met) this.#meetings.delete(agreed);
    if (met.length > 0) this.#meeting = false;
    return met.length > 0;
  }

  /**
   * Whether a step, which is about to begin, is to be done: false from the one on that the ranks agreed to stop at. While they
   * are agreeing on a step, this waits.
   */
  async mayBegin(step: number): Promise<boolean> {
    Atomics.store(this.#steps, 0, step);
    if (this.#communicator) this.#tellNames(this.#communicator);
    while (this.#hold) await this.#hold.promise;
    if (step >= this.#stopAt) return false;
    this.#next = step + 1;
    return true;
  }

  /**
   * Does a training's work, then leaves. An error of this rank's own ends all ranks; of a collective it waits for the reason, which
   * the coordinator knows: who ended, and where.
   */
  async run<T>(work: () => Promise<T>): Promise<T> {
    try {
      const result = await work();
      await this.leave();
      return result;
    } catch (error) {
      if (isOfCollective(error) && !this.#failure) {
        await Promise.race([this.#left.promise, Bun.sleep(this.#patience.silence + this.#patience.hang)]);
      }
      const reason = this.#failure ?? firstError(error);
      await this.fail(error);
      throw reason;
    }
  }

  /** Ends the other ranks: they say that this one failed. Resolves when they have been told. */
  async fail(error: unknown): Promise<void> {
    if (this.#failure) return;
    const message = messageOf(error);
    this.#failure = new DlfsError(ErrorCode.collective, "training together", message);
    this.#tell({ kind: "send", message: { kind: "failed", message } });
    await Promise.race([this.#told.promise, Bun.sleep(1000)]);
    this.#worker.unref(); // it does not keep the process alive
  }

  /** Releases the communicator once all ranks have done their collectives; before its device is disposed of. */
  async disconnect(): Promise<void> {
    const communicator = this.#communicator;
    if (!communicator) return;
    this.phase = "end";
    try {
      // Who closes connections early may lose what others have not yet read.
      if (!this.#failure) await this.barrier("disconnect");
    } catch {
      communicator.abort();
    }
    if (this.#failure) communicator.abort();
    this.#communicator = null;
    communicator.dispose();
  }

  /** Disconnects, and waits until all ranks leave. */
  async leave(): Promise<void> {
    await this.disconnect();
    if (this.#failure) return;
    this.#tell({ kind: "leave" });
    await this.#left.promise;
    this.#worker.unref(); // it ends by itself, and keeps nobody waiting
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.leave();
  }

  #tell(message: ToAgent): void {
    this.#worker.postMessage(message);
  }

  #tellNames({ device, handle, names }: Communicator): void {
    if (names.length === this.#knownNames) return;
    this.#knownNames = names.length;
    this.#tell({ kind: "communicator", backend: device.backend, handle, names });
  }

  #hear(data: FromAgent): void {
    if (data.kind === "over") this.#end(data.message);
    else if (data.kind === "told") this.#told.resolve();
    else if (data.kind === "left") this.#left.resolve();
    else this.#receive(data.message, data.payload);
  }

  #receive(message: ToRank, payload: Uint8Array): void {
    switch (message.kind) {
      case "welcome":
        this.#host = message.host;
        this.#joined.resolve();
        break;
      case "parts": {
        let at = 0;
        const parts = message.sizes.map((size) => {
          at += size;
          return payload.subarray(at - size, at);
        });
        this.#waiting.get(message.key)?.resolve(parts);
        this.#waiting.delete(message.key);
        break;
      }
      case "hold":
        this.#hold ??= Promise.withResolvers<void>();
        // At once: this rank may be waiting for a step that others, which wait here, have not begun.
        this.#tell({ kind: "send", message: { kind: "held", step: this.#next } });
        break;
      case "agreed": {
        const { step, on } = message;
        if (on.includes("stop")) this.#stopAt = step;
        if (on.includes("meet")) this.#meetings.add(step);
        const hold = this.#hold;
        this.#hold = null;
        hold?.resolve();
        break;
      }
    }
  }

  #end(message: string): void {
    if (this.#failure) return;
    this.#failure = new DlfsError(ErrorCode.collective, "training together", message);
    try {
      this.#communicator?.abort();
    } catch {
      // It has been released.
    }
    this.#worker.unref();
    this.#onFailure(this.#failure);
    this.#joined.reject(this.#failure);
    this.#left.resolve();
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
  }

  #exit(error: DlfsError): void {
    console.error(`rank ${this.rank}: error: ${error.message}`);
    process.exit(this.#host === "" ? exitCodes.usage : exitCodes.peer);
  }
}

/**
 * Runs a program's work: with the group of the ranks that a launcher has started, or, without a launcher or with one rank, alone.
 * Resolves to what it gives; the process may be ended then.
 */
export async function withRanks<T>(facts: Facts, work: (group?: ProcessGroup) => Promise<T>): Promise<T> {
  const ranks = ranksFromEnvironment();
  if (!ranks || ranks.world === 1) return await work();
  const group = await ProcessGroup.join({ ranks, facts });
  return await group.run(() => work(group));
}

function messageOf(error: unknown): string {
  const first = firstError(error);
  return first instanceof Error ? first.message : String(first);
}

/** Whether a collective's failure is behind an error, whatever failed while it was on its way up. */
function isOfCollective(error: unknown): boolean {
  if (error instanceof SuppressedError) return isOfCollective(error.suppressed) || isOfCollective(error.error);
  if (error instanceof DlfsError && error.code === ErrorCode.collective) return true;
  return error instanceof Error && error.cause !== undefined && isOfCollective(error.cause);
}

/**
 * The device of a rank: the GPU of its local rank, or the only one that it sees, where a launcher shows each rank its own; on the CPU
 * an even share of the processor's cores.
 */
export function deviceOfRank({ localRank, localWorld }: Ranks, backend: string): DeviceOptions {
  if (backend === "cuda") {
    const seen = listDevices(loadLibrary("cuda")).length;
    return { backend, index: seen === 1 && localWorld > 1 ? 0 : localRank };
  }
  return { backend, threads: Math.max(1, Math.floor(navigator.hardwareConcurrency / localWorld)) };
}

import type { RecordShard } from "../formats/record-shard";
import { type Address, DlfsError, ErrorCode } from "../native";
import type { PinnedBuffer } from "../tensor";
import { COPY_NUMBERS, RecordFiles } from "./record-files";

/** What a worker is told. */
export type CopyRequest =
  | {
      kind: "open";
      paths: string[];
      sizes: number[];
      map: boolean;
      buffers: { address: Address; byteLength: number }[];
    }
  | { kind: "copy"; id: number; buffer: number; copies: Float64Array; checksums: BigUint64Array | null }
  | { kind: "close"; id: number };

/** What it answers to all but "open". */
export interface CopyReply {
  id: number;
  /** Of each copy why it failed, or null. */
  failures: (string | null)[];
  /** What went wrong with all of them. */
  error: string | null;
}

/** A record to be copied, and where to in the buffer. */
export interface RecordCopy {
  shard: number;
  index: number;
  to: number;
  verify: boolean;
}

export interface RecordCopierOptions {
  /** Threads that copy; 0: the calling one, which is blocked meanwhile. */
  workers: number;
  /** Memory-map the files; else they are read. */
  map: boolean;
}

/** Copies records from their files to pinned buffers, on several threads. */
export class RecordCopier {
  readonly #shards: readonly RecordShard[];
  readonly #buffers: readonly PinnedBuffer[];
  readonly #workers: Worker[] = [];
  readonly #files: RecordFiles | null;
  readonly #waiting = new Map<number, { resolve: (reply: CopyReply) => void; reject: (error: Error) => void }>();
  #next = 0;
  #broken: DlfsError | null = null;
  #closed = false;

  constructor(shards: readonly RecordShard[], buffers: readonly PinnedBuffer[], { workers, map }: RecordCopierOptions) {
    this.#shards = shards;
    this.#buffers = buffers;
    const paths = shards.map(({ path }) => path);
    const sizes = shards.map(({ fileBytes }) => fileBytes);
    this.#files = workers === 0 ? new RecordFiles(paths, sizes, map) : null;
    const memory = buffers.map(({ address, byteLength }) => ({ address, byteLength }));
    for (let i = 0; i < workers; i++) {
      const worker = new Worker(new URL("./record-worker.ts", import.meta.url).href);
      worker.onmessage = ({ data }: MessageEvent<CopyReply>) => this.#answer(data);
      worker.onerror = ({ message }) => this.#break(message);
      worker.postMessage({ kind: "open", paths, sizes, map, buffers: memory } satisfies CopyRequest);
      this.#workers.push(worker);
    }
  }

  /**
   * Copies records to a buffer. The places must lie inside of it and not overlap; they belong to this call until it is done.
   *
   * @returns of each record why it is damaged or cannot be read, or null
   */
  async copy(buffer: number, records: readonly RecordCopy[]): Promise<(string | null)[]> {
    // A record always goes to the same thread, so that its pages are mapped, and counted as this process's, only once.
    const threads = Math.max(1, this.#workers.length);
    const groups = new Map<number, number[]>();
    for (const [i, { index, verify }] of records.entries()) {
      const group = 2 * (index % threads) + (verify ? 1 : 0);
      const members = groups.get(group);
      if (members) members.push(i);
      else groups.set(group, [i]);
    }
    const failures: (string | null)[] = new Array(records.length).fill(null);
    const copy = async (group: number, members: number[]): Promise<void> => {
      const part = members.map((i) => records[i] as RecordCopy);
      const found = await this.#copyPart(group >> 1, buffer, part, (group & 1) === 1);
      for (const [k, i] of members.entries()) failures[i] = found[k] as string | null;
    };
    // All of them are over before one failure is reported: the memory is the caller's again then.
    const done = await Promise.allSettled([...groups].map(([group, members]) => copy(group, members)));
    for (const part of done) if (part.status === "rejected") throw part.reason;
    return failures;
  }

  #lengthOf({ shard, index }: RecordCopy): number {
    return this.#shards[shard]?.lengths[index] as number;
  }

  async #copyPart(thread: number, buffer: number, records: readonly RecordCopy[], verify: boolean) {
    const copies = new Float64Array(COPY_NUMBERS * records.length);
    const checksums = verify ? new BigUint64Array(records.length) : null;
    for (const [i, record] of records.entries()) {
      const { offsets, checksums: recorded } = this.#shards[record.shard] as RecordShard;
      copies.set([record.shard, offsets[record.index] as number, this.#lengthOf(record), record.to], COPY_NUMBERS * i);
      if (checksums) checksums[i] = recorded[record.index] as bigint;
    }
    if (this.#files) {
      return this.#files.copy(copies, checksums, (this.#buffers[buffer] as PinnedBuffer).bytes);
    }
    if (this.#broken) throw this.#broken;
    const worker = this.#workers[thread] as Worker;
    const { failures, error } = await this.#ask(worker, { kind: "copy", id: 0, buffer, copies, checksums });
    if (error !== null) throw new DlfsError(ErrorCode.internal, "record worker", error);
    return failures;
  }

  #ask(worker: Worker, request: CopyRequest & { id: number }): Promise<CopyReply> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      worker.postMessage({ ...request, id });
    });
  }

  #answer(reply: CopyReply): void {
    this.#waiting.get(reply.id)?.resolve(reply);
    this.#waiting.delete(reply.id);
  }

  /** A worker has failed as a whole: nothing that is asked of the workers is certain to be answered. */
  #break(message: string): void {
    this.#broken ??= new DlfsError(ErrorCode.internal, "record worker", `a thread that copies has failed: ${message}`);
    for (const { reject } of this.#waiting.values()) reject(this.#broken);
    this.#waiting.clear();
  }

  /** Ends the threads; the buffers must stay until then. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#files?.close();
    const ended = this.#workers.map((worker) => this.#ask(worker, { kind: "close", id: 0 }));
    if (this.#broken) for (const worker of this.#workers) worker.terminate();
    else await Promise.allSettled(ended);
  }
}

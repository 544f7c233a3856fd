/** Checkpoints in a bucket, or wherever a data source writes: in parts, each with its checksum, and an index that comes last. */
import { createHash, randomBytes } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { basename, join } from "node:path";
import { type DataSource, SourceError } from "../data";
import { type CheckpointStoreOptions, makeFolder, readCheckpoint } from "../formats";
import { AtomicFile } from "../formats/atomic-file";
import { check, DlfsError, ErrorCode } from "../native";

/** What is stored of a checkpoint besides its bytes. A checkpoint is there when this is. */
interface Index {
  format: 1;
  iteration: number;
  bytes: number;
  parts: { key: string; bytes: number; sha256: string }[];
}

export interface RemoteCheckpointsOptions extends CheckpointStoreOptions {
  /** Bytes of a part: what is sent, and sent again after a failure, at a time. Default 16 MiB. */
  partBytes?: number;
}

const INDEX = /^checkpoint-(\d{8,16})\.json$/;
const PART = /^checkpoint-(\d{8,16})\/([0-9a-f]+)\/part-\d+$/;

/** Parts sent or received at a time. */
const AT_A_TIME = 3;

const nameOf = (iteration: number): string => `checkpoint-${String(iteration).padStart(8, "0")}`;
const digest = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/**
 * The checkpoints of one run in a data source: objects `checkpoint-<iteration>/<random>/part-<n>` and, once they are all there,
 * `checkpoint-<iteration>.json`, which lists them. An upload that is cut leaves parts that no index names, which the next one removes.
 * Of the checkpoints stay the newest, the best and those of every so many iterations, as in a CheckpointStore.
 */
export class RemoteCheckpoints {
  readonly #keepLast: number;
  readonly #keepEvery: number;
  readonly #partBytes: number;
  /** By iteration. */
  readonly #uploads = new Map<number, Promise<string | null>>();

  constructor(
    readonly source: DataSource,
    { keepLast = 3, keepEvery = Number.POSITIVE_INFINITY, partBytes = 2 ** 24 }: RemoteCheckpointsOptions = {},
  ) {
    check(partBytes >= 1, "RemoteCheckpoints", () => `partBytes: expected a number from 1, got ${partBytes}`);
    this.#keepLast = keepLast;
    this.#keepEvery = keepEvery;
    this.#partBytes = partBytes;
  }

  /** Where a checkpoint's index is or would be, for messages. */
  locate(iteration: number): string {
    return this.source.locate(`${nameOf(iteration)}.json`);
  }

  /** The iterations of the checkpoints that are there, rising. */
  async list(): Promise<number[]> {
    const found: number[] = [];
    for await (const { key } of this.source.list("checkpoint-")) {
      const match = INDEX.exec(key);
      if (match) found.push(Number(match[1]));
    }
    return found.sort((a, b) => a - b);
  }

  /**
   * Copies a checkpoint's file there, which may be removed meanwhile, and then removes the checkpoints that need not stay.
   *
   * @returns where it is
   */
  async save(path: string): Promise<string> {
    const file = await open(path, "r");
    try {
      await using checkpoint = await readCheckpoint(path);
      const { iteration, best } = checkpoint.metadata;
      const upload = randomBytes(6).toString("hex");
      const parts = await this.#send(file, `${nameOf(iteration)}/${upload}`);
      const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
      const index: Index = { format: 1, iteration, bytes, parts };
      await this.source.write(`${nameOf(iteration)}.json`, new TextEncoder().encode(JSON.stringify(index)));
      this.#uploads.set(iteration, Promise.resolve(upload));
      await this.#retain(iteration, best?.iteration);
      return this.locate(iteration);
    } finally {
      await file.close();
    }
  }

  /** Copies files as they are, under their own names: what a run has besides. Those that are not there are left out. */
  async saveFiles(paths: readonly string[]): Promise<void> {
    for (const path of paths) {
      const file = Bun.file(path);
      if (await file.exists()) await this.source.write(basename(path), await file.bytes());
    }
  }

  /**
   * Fetches the newest checkpoint that is intact into a folder, as a CheckpointStore has it there.
   *
   * @returns its file, with an error for each newer one that is damaged; null where there is none at all
   * @throws DlfsError where all are damaged
   */
  async fetchLatest(folder: string): Promise<{ path: string; iteration: number; damaged: DlfsError[] } | null> {
    const damaged: DlfsError[] = [];
    for (const iteration of (await this.list()).reverse()) {
      try {
        return { path: await this.fetch(iteration, folder), iteration, damaged };
      } catch (error) {
        if (!(error instanceof Damaged)) throw error;
        damaged.push(error);
      }
    }
    if (damaged.length === 0) return null;
    const list = damaged.map((error) => `  ${error.message}`).join("\n");
    const where = this.source.locate("");
    throw new DlfsError(ErrorCode.io, where, `none of its ${damaged.length} checkpoints is intact:\n${list}`);
  }

  /** Fetches a checkpoint into a folder; its file appears when it is whole. */
  async fetch(iteration: number, folder: string): Promise<string> {
    const location = this.locate(iteration);
    const { parts } = parseIndex(location, await this.source.read(`${nameOf(iteration)}.json`));
    await makeFolder(folder);
    const path = join(folder, `${nameOf(iteration)}.dlck`);
    const file = await AtomicFile.create(path);
    try {
      for await (const bytes of ahead(parts, (part) => this.#receive(location, part))) await file.append(bytes);
      await file.commit();
    } catch (error) {
      await file.abort();
      throw error;
    }
    return path;
  }

  /** Sends a file in parts, a few at a time. */
  async #send(file: FileHandle, prefix: string): Promise<Index["parts"]> {
    const { size } = await file.stat();
    const numbers = Array.from({ length: Math.ceil(size / this.#partBytes) }, (_, i) => i);
    const sent: Index["parts"] = [];
    for await (const part of ahead(numbers, async (i) => {
      const start = i * this.#partBytes;
      const content = new Uint8Array(Math.min(this.#partBytes, size - start));
      await readAll(file, content, start);
      const key = `${prefix}/part-${String(i).padStart(5, "0")}`;
      await this.source.write(key, content);
      return { key, bytes: content.length, sha256: digest(content) };
    })) {
      sent.push(part);
    }
    return sent;
  }

  async #receive(location: string, { key, bytes, sha256 }: Index["parts"][number]): Promise<Uint8Array> {
    const content = await this.source.read(key).catch((error: unknown) => {
      const missing = error instanceof SourceError && error.reason === "missing";
      throw missing ? new Damaged(location, `${key} is missing`) : error;
    });
    if (content.length !== bytes) throw new Damaged(location, `${key}: expected ${bytes} bytes, got ${content.length}`);
    if (digest(content) !== sha256) throw new Damaged(location, `${key}: its bytes are not those that were written`);
    return content;
  }

  /** Removes checkpoints that need not stay beside that of an iteration, and parts that no index names. */
  async #retain(iteration: number, best: number | undefined): Promise<void> {
    const stored = (await this.list()).filter((other) => other <= iteration);
    const gone = stored.slice(0, -this.#keepLast).filter((other) => other !== best && other % this.#keepEvery !== 0);
    // The index first: what it lists is there as long as it is.
    for (const other of gone) await this.source.remove(`${nameOf(other)}.json`);
    const kept = new Set(stored.filter((other) => !gone.includes(other)));
    const keys: string[] = [];
    for await (const { key } of this.source.list("checkpoint-")) keys.push(key);
    for (const key of keys) {
      const [, digits, upload] = PART.exec(key) ?? [];
      if (digits === undefined || Number(digits) > iteration) continue;
      const named = kept.has(Number(digits)) ? await this.#uploadOf(Number(digits)) : "";
      // An index that cannot be read is no reason to remove anything.
      if (named !== null && named !== upload) await this.source.remove(key);
    }
  }

  /** The upload whose parts the index of a checkpoint names; null where that cannot be said. */
  #uploadOf(iteration: number): Promise<string | null> {
    const known = this.#uploads.get(iteration);
    if (known) return known;
    const asked = this.source.read(`${nameOf(iteration)}.json`).then(
      (bytes) => PART.exec(parseIndex("", bytes).parts[0]?.key ?? "")?.[2] ?? null,
      () => null,
    );
    this.#uploads.set(iteration, asked);
    return asked;
  }
}

/** A stored checkpoint is not what was written; rather than that it cannot be reached. */
class Damaged extends DlfsError {
  constructor(location: string, message: string) {
    super(ErrorCode.io, location, message);
  }
}

function parseIndex(location: string, bytes: Uint8Array): Index {
  let index: Partial<Index> | null = null;
  try {
    index = JSON.parse(new TextDecoder().decode(bytes)) as Partial<Index> | null;
  } catch {
    // said below
  }
  if (typeof index?.format === "number" && index.format !== 1) {
    const found = `is of format ${index.format}, this version reads format 1`;
    throw new DlfsError(ErrorCode.unsupported, location, found);
  }
  const isPart = (part: Partial<Index["parts"][number]>) =>
    typeof part?.key === "string" && typeof part.bytes === "number" && typeof part.sha256 === "string";
  if (!Array.isArray(index?.parts) || !index.parts.every(isPart))
    throw new Damaged(location, "is no index of a checkpoint");
  return index as Index;
}

async function readAll(file: FileHandle, into: Uint8Array, start: number): Promise<void> {
  for (let done = 0; done < into.length; ) {
    const { bytesRead } = await file.read(into, done, into.length - done, start + done);
    if (bytesRead === 0) throw new DlfsError(ErrorCode.io, "checkpoint", "the file became shorter while it was read");
    done += bytesRead;
  }
}

/** The results of `work` in the order of `items`, a few of which are worked on at a time. */
async function* ahead<T, R>(items: readonly T[], work: (item: T) => Promise<R>): AsyncGenerator<R> {
  const running: Promise<R>[] = [];
  try {
    for (let next = 0; next < items.length || running.length > 0; ) {
      while (running.length < AT_A_TIME && next < items.length) {
        const started = work(items[next++] as T);
        started.catch(() => {}); // thrown where its turn comes
        running.push(started);
      }
      yield await (running.shift() as Promise<R>);
    }
  } finally {
    await Promise.allSettled(running); // nothing goes on behind an error
  }
}

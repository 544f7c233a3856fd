import { readdir, unlink } from "node:fs/promises";
import { join } from "node:path";
import { check, DlfsError, ErrorCode } from "../native/error";
import { fileError, makeFolder } from "./atomic-file";
import type { Checkpoint } from "./checkpoint";
import { readCheckpoint, writeCheckpoint } from "./checkpoint";
import type { CheckpointMetadata, CheckpointTensorData } from "./checkpoint-types";

type Tensors = Iterable<CheckpointTensorData> | AsyncIterable<CheckpointTensorData>;

/** Whether a file could not be written because its disk, or a quota, is full. */
function isFull(error: unknown): boolean {
  const code = ((error as Error | null)?.cause as NodeJS.ErrnoException | undefined)?.code;
  return code === "ENOSPC" || code === "EDQUOT";
}

const NAME = /^checkpoint-(\d{8,16})\.dlck$/;

export interface CheckpointStoreOptions {
  /** How many of the newest checkpoints stay; the best one stays besides. Default 3. */
  keepLast?: number;
  /** Those of iterations that this divides stay as well. Default: none. */
  keepEvery?: number;
  /** Told of what had to go before its time because the disk is full. Default: a line on standard error. */
  warn?: (message: string) => void;
}

export interface StoredCheckpoint {
  iteration: number;
  path: string;
}

/**
 * The checkpoints of one run: `checkpoint-<iteration>.dlck` in one folder, of which the newest few and the best stay.
 * The newest is the one of the highest iteration, so a run that goes back to an older checkpoint and takes another way
 * from there belongs into a folder of its own.
 */
export class CheckpointStore {
  private readonly keepLast: number;
  private readonly keepEvery: number;
  private readonly warn: (message: string) => void;

  constructor(
    readonly folder: string,
    options: CheckpointStoreOptions = {},
  ) {
    this.keepLast = options.keepLast ?? 3;
    check(
      Number.isInteger(this.keepLast) && this.keepLast >= 1,
      folder,
      () => `keepLast must be a whole number from 1, got ${this.keepLast}`,
    );
    this.warn = options.warn ?? ((message) => console.warn(`warning: ${message}`));
    this.keepEvery = options.keepEvery ?? Number.POSITIVE_INFINITY;
    check(
      this.keepEvery === Number.POSITIVE_INFINITY || (Number.isInteger(this.keepEvery) && this.keepEvery >= 1),
      folder,
      () => `keepEvery must be a whole number from 1, got ${this.keepEvery}`,
    );
  }

  /** Where the checkpoint of an iteration is or would be. */
  pathOf(iteration: number): string {
    return join(this.folder, `checkpoint-${String(iteration).padStart(8, "0")}.dlck`);
  }

  /** What is there, by rising iteration; empty where the folder is missing. */
  async list(): Promise<StoredCheckpoint[]> {
    let names: string[];
    try {
      names = await readdir(this.folder);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
      throw fileError(this.folder, "list the checkpoints", error);
    }
    return names
      .flatMap((name) => {
        const match = NAME.exec(name);
        return match ? [{ iteration: Number(match[1]), path: join(this.folder, name) }] : [];
      })
      .sort((a, b) => a.iteration - b.iteration);
  }

  /**
   * Writes the checkpoint of `metadata.iteration`, then removes those that need not stay: all but the newest `keepLast`, that of
   * `metadata.best.iteration`, and those of iterations that `keepEvery` divides. Checkpoints of higher iterations, left by a run that
   * was abandoned, are not touched. Where the disk is full, older ones than the newest go one by one before their time, the best one
   * excepted: the latest state is worth more.
   *
   * @param tensors as a function, they can be gone over again, which that takes
   * @returns the new file, and the files that were removed. One that cannot be removed stays and is no error.
   */
  async save(
    metadata: CheckpointMetadata,
    tensors: Tensors | (() => Tensors),
  ): Promise<{ path: string; removed: string[] }> {
    const path = this.pathOf(metadata.iteration);
    await makeFolder(this.folder);
    const removed: string[] = [];
    while (true) {
      try {
        await writeCheckpoint(path, metadata, typeof tensors === "function" ? tensors() : tensors);
        break;
      } catch (error) {
        const gone = typeof tensors === "function" && isFull(error) ? await this.makeRoom(metadata) : null;
        if (gone === null) throw error;
        removed.push(gone);
        this.warn(`${(error as Error).message}; ${gone} had to go`);
      }
    }
    const older = (await this.list()).filter(({ iteration }) => iteration <= metadata.iteration);
    for (const stored of older.slice(0, -this.keepLast)) {
      if (stored.iteration === metadata.best?.iteration || stored.iteration % this.keepEvery === 0) continue;
      const gone = await unlink(stored.path).then(
        () => true,
        () => false,
      );
      if (gone) removed.push(stored.path);
    }
    return { path, removed };
  }

  /** Removes the oldest checkpoint but the newest and the best of those before an iteration; null where there is none. */
  private async makeRoom({ iteration: now, best }: CheckpointMetadata): Promise<string | null> {
    const older = (await this.list()).filter(({ iteration }) => iteration < now);
    for (const { iteration, path } of older.slice(0, -1)) {
      if (iteration === best?.iteration) continue;
      const gone = await unlink(path).then(
        () => true,
        () => false,
      );
      if (gone) return path;
    }
    return null;
  }

  /**
   * Opens the newest checkpoint that is intact to its last byte.
   *
   * @returns it, with an error for each newer one that was passed over because it is damaged (to be shown to the user);
   *   undefined when there is none at all
   * @throws DlfsError when all are damaged, or when the newest one needs a newer dlfs
   */
  async latest(): Promise<{ checkpoint: Checkpoint; damaged: DlfsError[] } | undefined> {
    const stored = await this.list();
    const damaged: DlfsError[] = [];
    for (const { path } of stored.reverse()) {
      let checkpoint: Checkpoint | undefined;
      try {
        checkpoint = await readCheckpoint(path);
        await checkpoint.verify();
        return { checkpoint, damaged };
      } catch (error) {
        await checkpoint?.close();
        if (!(error instanceof DlfsError) || error.code !== ErrorCode.io) throw error;
        damaged.push(error);
      }
    }
    if (damaged.length === 0) return undefined;
    throw new DlfsError(
      ErrorCode.io,
      this.folder,
      `none of its ${damaged.length} checkpoints is intact:\n${damaged.map((error) => `  ${error.message}`).join("\n")}`,
    );
  }
}

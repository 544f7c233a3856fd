/**
 * Checkpoints: a flatbuffers index (schemas/checkpoint.fbs) over raw, 64-byte-aligned tensors (`aligned-file.ts` has the
 * layout). Written in one pass without the whole in memory, atomically; read tensor by tensor, each with its checksum.
 */
import { check, DlfsError, ErrorCode } from "../native/error";
import type { AlignedFormat } from "./aligned-file";
import { AlignedFileReader, AlignedFileWriter, alignUp, damaged } from "./aligned-file";
import { decodeIndex, encodeIndex } from "./checkpoint-index";
import type { CheckpointEntry, CheckpointMetadata, CheckpointTensorData } from "./checkpoint-types";
import { checkTensor } from "./index-tables";

const FORMAT: AlignedFormat = { magic: "DLFSCKPT", version: 1, what: "checkpoint" };

/** Writes a checkpoint tensor by tensor; ends with exactly one `finish()` or `abort()`. A failed call aborts by itself. */
export class CheckpointWriter {
  private readonly entries: CheckpointEntry[] = [];
  private readonly names = new Set<string>();

  private constructor(
    readonly path: string,
    private readonly file: AlignedFileWriter,
  ) {}

  static async create(path: string): Promise<CheckpointWriter> {
    return new CheckpointWriter(path, await AlignedFileWriter.create(path, FORMAT));
  }

  /** Appends one tensor. Its bytes must not change until the promise is fulfilled, and are not kept after it. */
  async add({ name, dtype, shape, data }: CheckpointTensorData): Promise<void> {
    await this.guard(async () => {
      checkTensor(this.path, { name, dtype, shape }, data.length);
      check(!this.names.has(name), this.path, () => `tensor "${name}": added twice`);
      this.names.add(name);
      this.entries.push({ name, dtype, shape: [...shape], ...(await this.file.append(data)) });
    });
  }

  /** Writes the index and puts the file in its place. Until this is done, what stood at the path is untouched. */
  async finish(metadata: CheckpointMetadata): Promise<void> {
    await this.guard(async () => await this.file.commit(encodeIndex(this.path, metadata, this.entries)));
  }

  /** Gives up and removes what was written. */
  async abort(): Promise<void> {
    await this.file.abort();
  }

  private async guard(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (error) {
      await this.abort();
      throw error;
    }
  }
}

/**
 * Writes a checkpoint atomically: on any failure (a full disk, an error of `tensors`, a kill) the file that stood at
 * `path` is as it was, and no other file stays behind but a killed process's, which the next write in the folder removes.
 *
 * @param path its folder must exist
 * @param tensors asked for one at a time; one buffer may serve for one tensor after the other
 * @throws DlfsError of code `io` when the file cannot be written
 */
export async function writeCheckpoint(
  path: string,
  metadata: CheckpointMetadata,
  tensors: Iterable<CheckpointTensorData> | AsyncIterable<CheckpointTensorData>,
): Promise<void> {
  const writer = await CheckpointWriter.create(path);
  try {
    for await (const tensor of tensors) await writer.add(tensor);
  } catch (error) {
    await writer.abort();
    throw error;
  }
  await writer.finish(metadata);
}

/** An open checkpoint: metadata in memory, tensors read on demand. Close it, or declare it with `await using`. */
export class Checkpoint {
  readonly path: string;
  readonly metadata: CheckpointMetadata;
  /** By name, in the order in which they were written. */
  readonly tensors: ReadonlyMap<string, CheckpointEntry>;

  private constructor(private readonly file: AlignedFileReader) {
    const { metadata, tensors } = decodeIndex(file.path, file.index, file.sectionsEnd);
    this.path = file.path;
    this.metadata = metadata;
    this.tensors = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  }

  /** @see readCheckpoint */
  static async open(path: string): Promise<Checkpoint> {
    const file = await AlignedFileReader.open(path, FORMAT);
    try {
      return new Checkpoint(file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * Reads one tensor and compares its checksum.
   *
   * @param into at least as long as the tensor, default: a new array, aligned for any typed array
   * @returns its little-endian bytes; a view of `into` where that was given
   */
  async read(name: string, into?: Uint8Array): Promise<Uint8Array> {
    const entry = this.tensors.get(name);
    if (!entry) {
      throw new DlfsError(ErrorCode.argument, this.path, `there is no tensor "${name}" among its ${this.tensors.size}`);
    }
    return await this.file.read(entry, `tensor "${name}"`, into);
  }

  /** Reads every tensor and compares every checksum; throws at the first damage. Needs memory for the largest one. */
  async verify(): Promise<void> {
    let largest = 0;
    for (const { length } of this.tensors.values()) largest = Math.max(largest, length);
    const buffer = new Uint8Array(largest);
    let end = alignUp(1);
    for (const entry of this.tensors.values()) {
      await this.file.read(entry, `tensor "${entry.name}"`, buffer);
      await this.checkGap(end, entry.offset, `padding before tensor "${entry.name}"`);
      end = entry.offset + entry.length;
    }
    await this.checkGap(end, this.file.sectionsEnd, "padding before the index");
  }

  async close(): Promise<void> {
    await this.file.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Padding is zero: other bytes mean that something wrote into the file. */
  private async checkGap(start: number, end: number, field: string): Promise<void> {
    const length = end - start;
    if (length >= alignUp(1)) throw damaged(this.path, field, `${length} bytes at ${start} belong to no tensor`);
    const bytes = await this.file.readRaw(start, length, field);
    if (bytes.some((byte) => byte !== 0)) throw damaged(this.path, field, `${length} bytes at ${start} are not zero`);
  }
}

/**
 * Opens a checkpoint and reads its index. No tensor is read yet: `checkpoint.read(name)` does that, and
 * `checkpoint.verify()` compares them all.
 *
 * @throws DlfsError that names the file and the field: code `io` for a file that is missing, cut short, damaged or
 *   something else; code `unsupported` for an intact checkpoint of a newer format version
 */
export async function readCheckpoint(path: string): Promise<Checkpoint> {
  return await Checkpoint.open(path);
}

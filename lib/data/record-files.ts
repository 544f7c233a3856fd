import { checksumOf } from "../formats/aligned-file";
import { FileBytes } from "../formats/file-bytes";
import { DlfsError, ErrorCode } from "../native/error";

/** Files that are read through a handle each; mapped ones need none. */
const MAX_HANDLES = 64;

/** Numbers of a copy in a list of copies: see RecordFiles.copy. */
export const COPY_NUMBERS = 4;

/** The files of shards, opened when they are needed, on one thread. */
export class RecordFiles {
  readonly #open = new Map<number, FileBytes>();

  /** @param map memory-map the files; else they are read */
  constructor(
    private readonly paths: readonly string[],
    private readonly sizes: readonly number[],
    private readonly map: boolean,
  ) {}

  /**
   * Copies records to memory.
   *
   * @param copies COPY_NUMBERS numbers each: the shard, bytes from the start of its file, bytes, and bytes from the start of `to`
   * @param checksums what the records' bytes hash to, null where they need not be looked at
   * @returns for each copy why it failed, or null
   */
  copy(copies: Float64Array, checksums: BigUint64Array | null, to: Uint8Array): (string | null)[] {
    const failures: (string | null)[] = [];
    for (let at = 0; at < copies.length; at += COPY_NUMBERS) {
      const [shard, offset, length, target] = copies.subarray(at, at + COPY_NUMBERS) as unknown as [
        number,
        number,
        number,
        number,
      ];
      try {
        const place = to.subarray(target, target + length);
        this.#file(shard).copy(offset, place, "record");
        const expected = checksums?.[at / COPY_NUMBERS];
        const found = expected === undefined ? expected : checksumOf(place);
        failures.push(found === expected ? null : `its checksum is ${hex(found)}, ${hex(expected)} was recorded`);
      } catch (error) {
        if (!(error instanceof DlfsError)) throw error;
        failures.push(error.message);
      }
    }
    return failures;
  }

  #file(shard: number): FileBytes {
    let file = this.#open.get(shard);
    if (!file) {
      const path = this.paths[shard] as string;
      file = FileBytes.open(path, "record shard", { map: this.map });
      const size = this.sizes[shard] as number;
      if (file.size !== size) {
        const found = file.size;
        file.close();
        throw new DlfsError(ErrorCode.io, path, `damaged: file length: expected ${size} bytes, the file has ${found}`);
      }
      if (!file.mapped) this.#makeRoom();
    }
    // The file used last is the last of the map.
    this.#open.delete(shard);
    this.#open.set(shard, file);
    return file;
  }

  #makeRoom(): void {
    const read = [...this.#open].filter(([, file]) => !file.mapped);
    if (read.length < MAX_HANDLES) return;
    const [oldest] = read;
    oldest?.[1].close();
    this.#open.delete(oldest?.[0] as number);
  }

  close(): void {
    for (const file of this.#open.values()) file.close();
    this.#open.clear();
  }
}

function hex(value: bigint | undefined): string {
  return (value ?? 0n).toString(16).padStart(16, "0");
}

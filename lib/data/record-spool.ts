import { randomUUID } from "node:crypto";
import { closeSync, openSync, readSync, unlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fileError } from "./local-data-source";

/** Doubles of a chunk, about: 64 KiB. */
const CHUNK = 8192;

/** readSync and writeSync. */
type Move = (file: number, bytes: Uint8Array, offset: number, length: number, position: number) => number;

/**
 * Rows of doubles in buckets, of which little stays in memory: full chunks go to a file in `folder`, made when the first one
 * is full and without a name from then on, so that nothing is left of it whatever happens. Rows of a bucket keep their order.
 */
export class RecordSpool implements Disposable {
  /** Rows in all. */
  length = 0;
  readonly #chunk: number;
  readonly #open: Float64Array[] = [];
  readonly #filled: Int32Array;
  /** Places in the file, in chunks, of each bucket's full chunks. */
  readonly #written: number[][];
  #piece: Float64Array | null = null;
  #rows = new Float64Array(0);
  #chunks = 0;
  #file = -1;

  /** @param width doubles of a row */
  constructor(
    readonly buckets: number,
    readonly width: number,
    readonly folder: string,
  ) {
    this.#chunk = Math.ceil(CHUNK / width) * width;
    this.#filled = new Int32Array(buckets);
    this.#written = Array.from({ length: buckets }, () => []);
  }

  /** Appends a copy of the row that starts at `at`. */
  push(bucket: number, values: Float64Array, at = 0): void {
    this.#open[bucket] ??= new Float64Array(this.#chunk);
    const chunk = this.#open[bucket] as Float64Array;
    const filled = this.#filled[bucket] as number;
    for (let i = 0; i < this.width; i++) chunk[filled + i] = values[at + i] as number;
    this.length++;
    this.#filled[bucket] = filled + this.width;
    if (filled + this.width === chunk.length) this.#flush(bucket, chunk);
  }

  #flush(bucket: number, chunk: Float64Array): void {
    if (this.#file < 0) {
      const path = join(this.folder, `.dlfs-${randomUUID()}.partial`);
      this.#file = this.#guard(() => openSync(path, "wx+"));
      this.#guard(() => unlinkSync(path));
    }
    const place = this.#chunks++;
    this.#transfer(writeSync, chunk, place);
    (this.#written[bucket] as number[]).push(place);
    this.#filled[bucket] = 0;
  }

  /** The rows of a bucket, in pieces that are valid until the next one is asked for. */
  *pieces(bucket: number): Generator<Float64Array> {
    const places = this.#written[bucket] as number[];
    this.#piece ??= new Float64Array(this.#chunk);
    for (const place of places) {
      this.#transfer(readSync, this.#piece, place);
      yield this.#piece;
    }
    const filled = this.#filled[bucket] as number;
    if (filled > 0) yield (this.#open[bucket] as Float64Array).subarray(0, filled);
  }

  /** All rows of a bucket, valid until the next bucket's are asked for. */
  rows(bucket: number): Float64Array {
    const full = (this.#written[bucket] as number[]).length;
    const length = full * this.#chunk + (this.#filled[bucket] as number);
    if (length > this.#rows.length) this.#rows = new Float64Array(Math.ceil(1.2 * length));
    const rows = this.#rows.subarray(0, length);
    let at = 0;
    for (const piece of this.pieces(bucket)) {
      rows.set(piece, at);
      at += piece.length;
    }
    return rows;
  }

  /** Reads or writes the chunk at a place of the file. */
  #transfer(move: Move, chunk: Float64Array, place: number): void {
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    this.#guard(() => {
      for (let done = 0; done < bytes.length; ) {
        const moved = move(this.#file, bytes, done, bytes.length - done, place * bytes.length + done);
        if (moved === 0) throw new Error("the end of the temporary file came too early");
        done += moved;
      }
    });
  }

  #guard<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw fileError("RecordSpool", `temporary file in ${this.folder}`, error);
    }
  }

  [Symbol.dispose](): void {
    if (this.#file >= 0) closeSync(this.#file);
    this.#file = -1;
  }
}

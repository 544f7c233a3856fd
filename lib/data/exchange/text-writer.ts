import { closeSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { fileError } from "../local-data-source";

/** Characters that are gathered before they are written. */
const BUFFER = 1 << 20;

/** Writes a text file piece by piece; it has its name only when it is complete, and nothing is left of an unfinished one. */
export class TextWriter implements Disposable {
  readonly #partial: string;
  #file: number;
  #buffer: string[] = [];
  #length = 0;

  constructor(readonly path: string) {
    this.#partial = `${path}.${process.pid}.partial`;
    try {
      mkdirSync(dirname(path), { recursive: true });
      this.#file = openSync(this.#partial, "w");
    } catch (error) {
      throw fileError("write", path, error);
    }
  }

  write(text: string): void {
    this.#buffer.push(text);
    this.#length += text.length;
    if (this.#length >= BUFFER) this.#flush();
  }

  #flush(): void {
    const bytes = Buffer.from(this.#buffer.join(""));
    this.#buffer = [];
    this.#length = 0;
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#file, bytes, done);
    } catch (error) {
      throw fileError("write", this.path, error);
    }
  }

  /** Completes the file. */
  finish(): void {
    this.#flush();
    try {
      closeSync(this.#file);
      this.#file = -1;
      renameSync(this.#partial, this.path);
    } catch (error) {
      throw fileError("write", this.path, error);
    }
  }

  [Symbol.dispose](): void {
    if (this.#file >= 0) closeSync(this.#file);
    if (this.#file >= 0) rmSync(this.#partial, { force: true });
    this.#file = -1;
  }
}

/** Writes a list as JSON, one entry a line. */
export function writeList(writer: TextWriter, entries: Iterable<unknown>): void {
  let first = true;
  writer.write("[");
  for (const entry of entries) {
    writer.write(`${first ? "\n" : ",\n"}${JSON.stringify(entry)}`);
    first = false;
  }
  writer.write("\n]");
}

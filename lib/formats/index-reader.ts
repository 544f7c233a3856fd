/** Reading of a flatbuffers index that may hold anything. */
import { DlfsError } from "../native/error";
import { damaged } from "./aligned-file";

/** Reads fields one by one; each failure is an error that names the file and the field. */
export class IndexReader {
  constructor(readonly path: string) {}

  /** The file is damaged at that field. */
  fail(name: string, message: string): never {
    throw damaged(this.path, `index, ${name}`, message);
  }

  /** Runs one read; what goes wrong inside is damage of that field. */
  field<T>(name: string, read: () => T): T {
    try {
      return read();
    } catch (error) {
      if (error instanceof DlfsError) throw error;
      return this.fail(name, (error as Error).message);
    }
  }

  required<T>(name: string, read: () => T | null): T {
    const value = this.field(name, read);
    return value ?? this.fail(name, "it is missing");
  }

  /** A whole number up to 2^53 - 1. */
  count(name: string, read: () => bigint): number {
    const value = this.field(name, read);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) this.fail(name, `${value} is beyond 2^53`);
    return Number(value);
  }

  json(name: string, read: () => string | null): unknown {
    const text = this.required(name, read);
    return this.field(name, () => JSON.parse(text) as unknown);
  }

  list<T, R>(
    name: string,
    length: () => number,
    at: (i: number) => T | null,
    decode: (entry: T, name: string) => R,
  ): R[] {
    const count = this.field(name, length);
    const out: R[] = [];
    for (let i = 0; i < count; i++) {
      const entry = `${name}[${i}]`;
      const value = this.required(entry, () => at(i));
      out.push(decode(value, entry));
    }
    return out;
  }
}

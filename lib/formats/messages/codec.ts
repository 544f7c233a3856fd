/** What the messages of a training have in common: bytes that may hold anything become values, or an error naming the field. */
import type { Builder, ByteBuffer } from "flatbuffers";
import { CheckedByteBuffer } from "../checked-buffer";
import { IndexReader } from "../index-reader";

/** How the messages of one kind are written and read. */
export interface MessageCodec<T> {
  /** The frame's kind, and the flatbuffers file identifier: four ASCII characters. */
  readonly kind: string;
  encode(value: T): Uint8Array;
  /** @throws DlfsError of code `io` naming `source` and the field where the bytes are no such message */
  decode(message: Uint8Array, source: string): T;
}

/** A message of some kind as a table, each read of which is checked. */
export class MessageReader<R extends { __init(i: number, bb: ByteBuffer): R }> extends IndexReader {
  readonly root: R;

  constructor(message: Uint8Array, source: string, kind: string, what: string, Root: new () => R) {
    super(source);
    // A buffer of its own, so that a view which reaches beyond the message cannot be made.
    const own = message.length === message.buffer.byteLength ? message : message.slice();
    const buffer = new CheckedByteBuffer(own);
    this.root = this.field("root", () => {
      if (!buffer.__has_identifier(kind)) throw new RangeError(`it is no ${what}`);
      return new Root().__init(buffer.readInt32(buffer.position()) + buffer.position(), buffer);
    });
  }

  /** A copy of an array of numbers; undefined where there is none. */
  numbers<A extends { slice(): A }>(name: string, read: () => A | null): A | undefined {
    return this.field(name, () => read()?.slice());
  }

  /** Refuses a part that does not fit the others. */
  expectLength(name: string, found: number, expected: number, why: string): void {
    if (found !== expected) this.fail(name, `expected ${expected} numbers for ${why}, got ${found}`);
  }
}

/** A text's place in a message, or 0 for none. */
export function optionalText(b: Builder, text: string | undefined): number {
  return text === undefined ? 0 : b.createString(text);
}

/** Divides memory into slots of any size. */
import { check, ErrorCode } from "../native/error";

/** Where slots begin: any typed array may lie there. */
const ALIGNMENT = 64;

const aligned = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** Free slots are taken where they come first, and join their neighbours when they are given back. */
export class SharedSlots {
  /** Ascending; no two touch. */
  readonly #free: { at: number; bytes: number }[];
  readonly #taken = new Map<number, number>();
  #used = 0;

  constructor(readonly total: number) {
    this.#free = [{ at: 0, bytes: total }];
  }

  get used(): number {
    return this.#used;
  }

  /** Bytes that a slot takes, and that the slots of everything must not be more than. */
  static sizeOf(bytes: number): number {
    return aligned(Math.max(1, bytes));
  }

  /** Where a slot of so many bytes begins; -1 where there is no room at the moment. */
  take(bytes: number): number {
    const size = SharedSlots.sizeOf(bytes);
    const place = this.#free.findIndex((free) => free.bytes >= size);
    if (place < 0) return -1;
    const free = this.#free[place] as { at: number; bytes: number };
    const { at } = free;
    free.at += size;
    free.bytes -= size;
    if (free.bytes === 0) this.#free.splice(place, 1);
    this.#taken.set(at, size);
    this.#used += size;
    return at;
  }

  release(at: number): void {
    const bytes = this.#taken.get(at);
    check(bytes !== undefined, "SharedSlots", () => `no slot begins at ${at}`, ErrorCode.handle);
    this.#taken.delete(at);
    this.#used -= bytes;
    const next = this.#free.findIndex((free) => free.at > at);
    const place = next < 0 ? this.#free.length : next;
    const [before, after] = [this.#free[place - 1], this.#free[place]];
    const joinsBefore = before !== undefined && before.at + before.bytes === at;
    const joinsAfter = after !== undefined && at + bytes === after.at;
    if (joinsBefore) {
      before.bytes += bytes + (joinsAfter ? after.bytes : 0);
      if (joinsAfter) this.#free.splice(place, 1);
    } else if (joinsAfter) {
      after.at = at;
      after.bytes += bytes;
    } else {
      this.#free.splice(place, 0, { at, bytes });
    }
  }
}
